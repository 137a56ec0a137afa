//! Real SDKs with Pod Identity: in a pod with a network of its own and in two pods of the node's network, in one run. Each gets the
//! role of its pod for the pod's token, and none uses the metadata service.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use rolegate_lab::daemon::Daemon;
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, PodBuilder, PodToken, Resource};
use rolegate_lab::node::{NODE_IP, NODE_IP6, Netns, Node, PodNs, available_or_skip, programs_or_skip, skip};
use rolegate_lab::player;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::bed::{ACCOUNT, METADATA, PATIENCE, assert_untouched};
use crate::kit;
use crate::moto::Moto;
use crate::rust_client;
use crate::small::Asking;

/// The SDKs, by the kits that contain them. This test program contains the SDK for Rust.
const CLIENTS: [(&str, &str); 7] =
    [("python", "boto3"), ("python", "awscli"), ("node", "node"), ("go", "go"), ("go", "go-v1"), ("java", "java"), ("python", RUST)];
const RUST: &str = "rust";
/// A client with no request to STS.
const CRT: (&str, &str) = ("native", "crt");
/// Clients of 2022 and 2023, which do not know the file of a token, and send none.
const OLD: [(&str, &str); 2] = [("native", "crt-old"), ("native", "pyarrow")];
/// The SDKs that can be made to request credentials again.
const ASKING: [(&str, &str); 4] = [("python", "boto3"), ("node", "node"), ("go", "go"), ("go", "go-v1")];
/// SDKs for the relative URI.
const RELATIVE: [(&str, &str); 5] = [("python", "boto3"), ("python", "awscli"), ("node", "node"), ("go", "go"), ("java", "java")];
/// The pods: with a network of its own, of the node's network, and of the node's network with another role.
const PODS: [(&str, &str); 3] = [("web-0", "team-a-web"), ("agent-x2x4z", "team-b-agent"), ("exporter-9k2lp", "team-c-exporter")];
/// The addresses for pods with a network of their own, and the one for pods of the node's network.
const OF_PODS: [&str; 2] = ["169.254.170.23", "[fd00:ec2::23]"];
const OF_NODE: &str = "127.0.0.1:8182";

/// The node and everything on it. Fields are dropped in this order.
struct Bed {
    daemon: Daemon,
    moto: Moto,
    imds: Imds,
    pod: PodNs,
    node: Node,
    api: KubeApi,
    files: TempDir,
    _runtime: Runtime,
}

impl Bed {
    /// Creates the node. Returns `None` and reports why if this machine cannot have it.
    fn new() -> Option<Bed> {
        if !available_or_skip() || !programs_or_skip(&["nft", "bash", "timeout"]) {
            return None;
        }
        if let Some(reason) = kit::missing("python") {
            skip(reason);
            return None;
        }
        let node = Node::with_imds().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let api = KubeApi::start(node.ns().tcp_listener((NODE_IP, 0).into()).unwrap()).unwrap();
        let imds = Imds::start(node.imds().unwrap().tcp_listener(METADATA).unwrap()).unwrap();
        drop(guard);
        imds.set_tokens_required(false);
        let pod = node.add_pod(PODS[0].0).unwrap();
        let ips = [pod.ip.to_string(), pod.ip6.to_string()];
        for (number, (name, role)) in PODS.iter().enumerate() {
            let arn = format!("arn:aws:iam::{ACCOUNT}:role/{role}");
            let object = PodBuilder::new("team-a", name).annotation("iam.amazonaws.com/role", &arn);
            let object = if number == 0 { object.ips(ips.each_ref().map(String::as_str)) } else { object.host_network(true) };
            let mut object = object.build();
            let source = json!({ "serviceAccountToken": { "audience": "pods.eks.amazonaws.com", "path": "token" } });
            object["spec"]["volumes"] = json!([{ "name": "token", "projected": { "sources": [source] } }]);
            api.apply(Resource::Pods, object);
        }
        let moto = Moto::start(&node, &PODS.map(|(_, role)| role));
        let setup = moto.setup(&node, &api).argument(format!("--host-ip={NODE_IP6}"));
        let setup = setup.argument("--redirect=nftables").argument("--pod-identity").argument("--pod-identity-relative-uri");
        let daemon = setup.start().unwrap();
        daemon.wait_ready(Some(node.ns())).unwrap();
        let bed = Bed { daemon, moto, imds, pod, node, api, files: tempfile::tempdir().unwrap(), _runtime: runtime };
        for number in 0..PODS.len() {
            bed.mount_token(number, &bed.token(number));
            bed.request_without_an_sdk(number);
        }
        Some(bed)
    }

    fn ns(&self, number: usize) -> &Netns {
        if number == 0 { self.pod.ns() } else { self.node.ns() }
    }

    /// Issues a token for this pod.
    fn token(&self, number: usize) -> String {
        self.api.token_issuer().issue(&self.claims(number))
    }

    fn claims(&self, number: usize) -> PodToken {
        self.api.pod_token("team-a", PODS[number].0).unwrap()
    }

    /// Replaces the file of this pod's token, as the kubelet does: whoever reads it gets the old token or the new one.
    fn mount_token(&self, number: usize, token: &str) {
        let (file, next) = (self.token_file(number), self.files.path().join("next"));
        std::fs::write(&next, token).unwrap();
        std::fs::rename(next, file).unwrap();
    }

    fn token_file(&self, number: usize) -> PathBuf {
        self.files.path().join(PODS[number].0)
    }

    /// Requests credentials as an SDK does, but with more patience: on a busy machine, moto takes longer to start a session than an
    /// SDK waits.
    fn request_without_an_sdk(&self, number: usize) {
        let (address, host) = if number == 0 { ("169.254.170.23:80", OF_PODS[0]) } else { (OF_NODE, OF_NODE) };
        let stream = self.ns(number).connect(address.parse::<SocketAddr>().unwrap(), PATIENCE).unwrap();
        let headers = [("Host", host), ("Authorization", &self.token(number))];
        let response = player::request(stream, "GET", "/v1/credentials", &headers).unwrap();
        assert_eq!(response.status, 200, "{}: {}", response.text(), self.daemon.log());
    }

    /// Returns the command of a client in this pod, with the environment that Pod Identity needs.
    fn command(&self, number: usize, host: &str, program: &str, arguments: &[&str]) -> Command {
        let mut command = kit::command(self.ns(number), "timeout");
        command.args(kit::TIME_LIMIT).arg(program).args(arguments);
        command.env("HOME", self.files.path()).env("TMPDIR", self.files.path()).env("STS_ENDPOINT", Moto::url());
        command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{host}/v1/credentials"));
        command.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", self.token_file(number));
        command
    }

    /// Runs a client, and checks that it has the role of its pod.
    #[track_caller]
    fn check(&self, client: &str, number: usize, host: &str) {
        let (name, role) = PODS[number];
        let mut command = if client == RUST {
            let program = std::env::current_exe().unwrap();
            self.command(number, host, program.to_str().unwrap(), &rust_client::ARGUMENTS)
        } else {
            self.command(number, host, &kit::run_script(), &[client])
        };
        let served = self.served();
        let answer = kit::answer(&command.output().unwrap(), || format!("{client} in {name} with {host}: {}", self.daemon.log()));
        self.moto.assert_identity(&self.node, &answer, role, name);
        assert!(self.served() > served, "{client} in {name} with {host}: {}", self.daemon.log());
    }

    /// Starts a client that requests credentials for each line of its input.
    fn ask(&self, client: &str, number: usize, host: &str) -> Asking {
        Asking::spawn(&mut self.command(number, host, &kit::run_script(), &[client, "ask"]))
    }

    /// Returns how many requests with a token got credentials.
    fn served(&self) -> f64 {
        self.daemon.metric(Some(self.node.ns()), r#"rolegate_http_requests_total{code="200",route="pod-identity"}"#).unwrap()
    }

    /// Fails if a pod used the metadata service, be it that of the daemon or the real one.
    #[track_caller]
    fn assert_no_metadata_service(&self) {
        let metrics = self.daemon.get(Some(self.node.ns()), "/metrics").unwrap().text();
        let requests = metrics.lines().filter(|line| line.starts_with("rolegate_http_requests_total{"));
        let others: Vec<&str> = requests.filter(|line| !line.contains(r#"route="pod-identity""#) && !line.ends_with(" 0")).collect();
        assert_eq!(others, Vec::<&str>::new());
        assert_untouched(&self.imds);
    }
}

/// Returns those of the clients that are installed.
fn installed<const N: usize>(clients: [(&'static str, &'static str); N]) -> impl Iterator<Item = &'static str> {
    clients.into_iter().filter(|(kit, _)| kit::missing(kit).map(skip).is_none()).map(|(_, client)| client)
}

#[test]
fn sdks_get_the_roles_of_pods_of_both_kinds_for_their_tokens() {
    let Some(bed) = Bed::new() else { return };
    for client in installed(CLIENTS) {
        for host in OF_PODS {
            bed.check(client, 0, host);
        }
        for number in 1..PODS.len() {
            bed.check(client, number, OF_NODE);
        }
    }
    for client in installed([CRT]) {
        for (number, host) in [(0, OF_PODS[0]), (0, OF_PODS[1]), (1, OF_NODE), (2, OF_NODE)] {
            let (answer, (name, role)) = (bed.ask(client, number, host).ask(), PODS[number]);
            bed.moto.assert_session(&bed.node, &answer["access_key_id"], role, name);
        }
    }
    for client in installed(OLD) {
        let (served, answer) = (bed.served(), bed.ask(client, 0, OF_PODS[0]).ask());
        assert!(answer["error"].is_string() && bed.served() == served, "{client}: {answer}");
    }
    bed.assert_no_metadata_service();
}

/// Also those that send a token elsewhere send none here.
#[test]
fn sdks_get_the_role_of_their_pod_at_the_relative_uri() {
    let Some(bed) = Bed::new() else { return };
    let (name, role) = PODS[0];
    let served = || {
        let metric = r#"rolegate_http_requests_total{code="200",route="relative-uri"}"#;
        bed.daemon.metric(Some(bed.node.ns()), metric).unwrap()
    };
    for client in installed(RELATIVE) {
        let mut command = bed.command(0, OF_PODS[0], &kit::run_script(), &[client]);
        command.env_remove("AWS_CONTAINER_CREDENTIALS_FULL_URI").env_remove("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
        command.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v1/credentials");
        let before = served();
        let answer = kit::answer(&command.output().unwrap(), || format!("{client}: {}", bed.daemon.log()));
        bed.moto.assert_identity(&bed.node, &answer, role, name);
        assert!(served() > before, "{client}: {}", bed.daemon.log());
    }
    assert_untouched(&bed.imds);
}

/// The expired token shows that an SDK reads the file again: without this, it could get credentials for the first token.
#[test]
fn sdks_use_the_token_that_replaced_another_one() {
    let Some(bed) = Bed::new() else { return };
    let expired = bed.claims(0).issued_at(Timestamp::UNIX_EPOCH).valid_for(SignedDuration::from_hours(1));
    let expired = bed.api.token_issuer().issue(&expired);
    for client in installed(ASKING) {
        let mut asking = bed.ask(client, 0, OF_PODS[0]);
        let (name, role) = PODS[0];
        bed.moto.assert_session(&bed.node, &asking.ask()["access_key_id"], role, name);
        bed.mount_token(0, &expired);
        let answer = asking.ask();
        assert!(answer["error"].is_string(), "{client}: {answer} {}", bed.daemon.log());
        let served = bed.served();
        bed.mount_token(0, &bed.token(0));
        bed.moto.assert_session(&bed.node, &asking.ask()["access_key_id"], role, name);
        assert!(bed.served() > served, "{client}: {}", bed.daemon.log());
    }
    bed.assert_no_metadata_service();
}

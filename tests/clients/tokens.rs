//! Tests of clients that keep a session token across a restart of the daemon, and of clients that use none. Each has a node of
//! its own with the lab's STS, because the daemon is stopped and started in other ways here.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::node::{NODE_IP, Node, PodNs, available_or_skip, find_program, skip};
use rolegate_lab::sts::{Role, Sts};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::bed::{LIST, METADATA};
use crate::kit;
use crate::rust_client::in_the_machines_own_namespace;

/// The name of the client below.
const ENTRY: &str = "tokens::the_client_itself";

/// A node with one pod that has a role.
struct Small {
    pod: PodNs,
    sts: Sts,
    _imds: Imds,
    node: Node,
    files: tempfile::TempDir,
    api: KubeApi,
    _runtime: Runtime,
}

impl Small {
    /// Creates the node. Returns `None` and reports why if this machine cannot have it.
    fn new(programs: &[&str]) -> Option<Small> {
        if !available_or_skip() {
            return None;
        }
        if let Some(missing) = ["iptables", "iptables-restore"].iter().chain(programs).find(|program| find_program(program).is_none()) {
            skip(format!("the program `{missing}` is not installed"));
            return None;
        }
        let node = Node::with_imds().unwrap();
        if let Err(error) = node.ns().sh("iptables -t nat -S") {
            skip(format!("this kernel has no NAT rules: {error}"));
            return None;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let on_node = || node.ns().tcp_listener((NODE_IP, 0).into()).unwrap();
        let (api, sts) = (KubeApi::start(on_node()).unwrap(), Sts::start(on_node()).unwrap());
        let imds = Imds::start(node.imds().unwrap().tcp_listener(METADATA).unwrap()).unwrap();
        drop(guard);
        let pod = node.add_pod("web").unwrap();
        sts.add_role(Role::new("arn:aws:iam::111122223333:role/web-role"));
        let object = PodBuilder::new("team-a", &pod.name).ip(&pod.ip.to_string());
        api.apply(Resource::Pods, object.annotation("iam.amazonaws.com/role", "arn:aws:iam::111122223333:role/web-role").build());
        Some(Small { pod, sts, _imds: imds, node, files: tempfile::tempdir().unwrap(), api, _runtime: runtime })
    }

    /// Starts the daemon as the manifests do, on its usual port.
    fn start(&self, arguments: &[&str]) -> Daemon {
        let setup = Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .inside(self.node.ns())
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
            .argument("--node=node-a")
            .argument(format!("--api-server={}", self.api.url()))
            .argument("--app-port=8181")
            .argument("--iptables")
            .argument(format!("--host-ip={NODE_IP}"))
            .argument(format!("--metadata-addr={}", METADATA.ip()));
        let daemon = arguments.iter().fold(setup, |setup, argument| setup.argument(*argument)).start().unwrap();
        daemon.wait_ready(Some(self.node.ns())).unwrap();
        daemon
    }

    fn directory(&self) -> &Path {
        self.files.path()
    }

    fn issued(&self, access_key_id: &Value) -> bool {
        self.sts.issued().iter().any(|issued| *access_key_id == *issued.access_key_id)
    }

    /// Returns what a client that only supports IMDSv1 gets: the status and the text.
    fn version_one(&self, path: &str) -> (String, String) {
        let mut curl = kit::command(self.pod.ns(), "curl");
        curl.args([
            "--silent",
            "--max-time",
            "10",
            "--noproxy",
            "*",
            "--write-out",
            "\n%{http_code}",
            &format!("http://169.254.169.254{path}"),
        ]);
        let output = curl.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }
}

/// The SDK's client in the pod. It sends a request for each line of its input.
struct Asking {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Asking {
    fn start(small: &Small) -> Asking {
        let program = std::env::current_exe().unwrap();
        let mut command = kit::command(small.pod.ns(), "timeout");
        command.args(["-k", "2", "60"]).arg(program).args(["--exact", ENTRY, "--ignored", "--nocapture"]);
        command.env("ROLEGATE_TEST_ASKS", "1").env("HOME", small.directory()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Asking { process, input, output }
    }

    fn ask(&mut self) -> Value {
        self.input.write_all(b"ask\n").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the client ended");
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends requests with one SDK client, and so with one token, while there are input lines.
#[test]
#[ignore = "is run by the other tests, inside a pod"]
#[allow(clippy::print_stdout, reason = "a client program, whose answers are its output")]
fn the_client_itself() {
    // Tests must not use the machine's own metadata address.
    if std::env::var_os("ROLEGATE_TEST_ASKS").is_none() || in_the_machines_own_namespace() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let config = ProviderConfig::without_region().with_http_client(http);
        let client = imds::Client::builder().configure(&config).build();
        let mut lines = std::io::stdin().lines();
        while let Some(Ok(_)) = lines.next() {
            let answer = match ask(&client).await {
                Ok(answer) => answer,
                Err(error) => json!({ "error": format!("{error:?}") }),
            };
            println!("\n{answer}");
        }
    });
}

async fn ask(client: &imds::Client) -> Result<Value, imds::client::error::ImdsError> {
    let role = String::from(client.get(LIST).await?);
    let document = client.get(format!("{LIST}{role}")).await?;
    let document: Value = serde_json::from_str(document.as_ref()).unwrap_or_default();
    let region = String::from(client.get("/latest/meta-data/placement/region").await?);
    Ok(json!({ "role": role, "access_key_id": document["AccessKeyId"], "region": region }))
}

/// Sends a request, restarts the daemon, and sends another one with the same token.
fn over_a_restart(arguments: impl Fn(&Small) -> Vec<String>) -> Option<(Small, Value, Value)> {
    let small = Small::new(&[])?;
    let arguments = arguments(&small);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut client = Asking::start(&small);
    let mut daemon = small.start(&arguments);
    let before = client.ask();
    daemon.terminate().unwrap();
    daemon.wait().unwrap();
    let daemon = small.start(&arguments);
    let after = client.ask();
    drop(daemon);
    Some((small, before, after))
}

#[test]
fn the_sdk_for_rust_keeps_using_its_token_after_a_restart() {
    let key_file = |small: &Small| vec![format!("--token-key-file={}", small.directory().join("keys").display())];
    let Some((small, before, after)) = over_a_restart(key_file) else { return };
    for answer in [&before, &after] {
        assert_eq!((&answer["role"], &answer["region"]), (&json!("web-role"), &json!("eu-central-1")), "{answer}");
        assert!(small.issued(&answer["access_key_id"]), "{answer}");
    }
}

/// The reason for the key file: the SDK keeps sending a dead token for the rest of its lifetime, and never requests another.
#[test]
fn without_the_key_file_a_restart_breaks_the_sdk_for_rust() {
    let Some((_small, before, after)) = over_a_restart(|_| Vec::new()) else { return };
    assert_eq!(before["role"], "web-role", "{before}");
    let error = after["error"].as_str().unwrap_or_default();
    assert!(error.contains("401"), "{after}");
}

#[test]
fn imdsv1_clients_are_served_and_counted_if_allowed() {
    let Some(small) = Small::new(&["curl"]) else { return };
    let document = format!("{LIST}web-role");
    let required = small.start(&[]);
    assert_eq!(small.version_one(LIST), ("401".to_owned(), "Unauthorized".to_owned()));
    assert_eq!(small.version_one(&document), ("401".to_owned(), "Unauthorized".to_owned()));
    let count = |daemon: &Daemon, outcome: &str| {
        let metric = format!(r#"rolegate_imdsv1_requests_total{{namespace="team-a",outcome="{outcome}"}}"#);
        daemon.metric(Some(small.node.ns()), &metric).unwrap()
    };
    assert_eq!(count(&required, "refused"), 2.0);
    drop(required);

    let optional = small.start(&["--imds-tokens=optional"]);
    assert_eq!(small.version_one(LIST), ("200".to_owned(), "web-role".to_owned()));
    let (status, text) = small.version_one(&document);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(status == "200" && small.issued(&document["AccessKeyId"]), "{text}");
    assert_eq!(count(&optional, "served"), 2.0);
    // IMDSv2 still works beside it.
    let answer = Asking::start(&small).ask();
    assert_eq!(answer["role"], "web-role", "{answer}");
    assert_eq!(count(&optional, "served"), 2.0);
}

//! `rolegate check`, the real command, against the lab.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rolegate_lab::imds::ImdsBehaviour;
use rolegate_lab::kube::{PodBuilder, Resource, Verb, node};
use rolegate_lab::sts::{Behaviour, NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN, Role};
use serde_json::Value;
use tokio::net::TcpSocket;

use crate::world::{Fakes, NODE, PATIENCE, arn};

/// What the command said, and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    text: String,
    error: String,
}

impl Said {
    fn of(output: &Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Said { code: output.status.code().unwrap(), text: text(&output.stdout), error: text(&output.stderr) }
    }

    fn checks(&self) -> Vec<Value> {
        let json: Value = serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(json["version"], 1);
        json["checks"].as_array().unwrap().clone()
    }

    /// The checks with this status, as `SECTION/CHECK`.
    fn with_status(&self, status: &str) -> Vec<String> {
        let name = |check: &Value| format!("{}/{}", check["section"].as_str().unwrap(), check["check"].as_str().unwrap());
        self.checks().iter().filter(|check| check["status"] == status).map(name).collect()
    }

    /// The first check of this name.
    #[track_caller]
    fn check(&self, name: &str) -> Value {
        let (section, check) = name.split_once('/').unwrap();
        let found = self.checks().into_iter().find(|one| one["section"] == section && one["check"] == check);
        found.unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    /// Exactly these checks failed; the advice of the first one has this text.
    #[track_caller]
    fn assert_failed(&self, names: &[&str], advice: &str) {
        assert_eq!((self.code, self.with_status("failed")), (1, names.iter().map(|name| (*name).to_owned()).collect()), "{self:?}");
        let check = self.check(names[0]);
        assert!(check["advice"].as_str().unwrap().contains(advice), "{check}");
        assert_eq!(self.error, "");
    }
}

/// The fakes, and what the command is given for them.
struct Preflight {
    fakes: Fakes,
    arguments: Vec<String>,
    env: BTreeMap<&'static str, String>,
}

impl Preflight {
    fn new() -> Preflight {
        let fakes = Fakes::new();
        fakes.api.apply(Resource::Nodes, node(NODE, &["10.0.0.10"]));
        let arguments = [
            format!("--node={NODE}"),
            format!("--kubeconfig={}", fakes.file("kubeconfig", &fakes.api.kubeconfig())),
            format!("--metadata-addr={}", fakes.imds.addr()),
            format!("--token-key-file={}", fakes.directory().join("keys").display()),
        ];
        let more = ["--base-role-arn=arn:aws:iam::111122223333:role/", "--namespace-restrictions", "--app-port=0", "--metrics-port=0"];
        let env = [
            // Whatever happens, no packet to the metadata address.
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_REGION", "eu-central-1".to_owned()),
            ("AWS_ENDPOINT_URL_STS", fakes.sts.url()),
            ("AWS_ACCESS_KEY_ID", NODE_ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", NODE_SECRET_ACCESS_KEY.to_owned()),
            ("AWS_SESSION_TOKEN", NODE_SESSION_TOKEN.to_owned()),
        ];
        let arguments = arguments.into_iter().chain(more.map(str::to_owned)).collect();
        Preflight { fakes, arguments, env: env.into() }
    }

    fn env(mut self, name: &'static str, value: impl Into<String>) -> Preflight {
        self.env.insert(name, value.into());
        self
    }

    /// In a pod of this name, beside which the API has such a pod.
    fn in_pod(self, pod: PodBuilder) -> Preflight {
        self.fakes.api.apply(Resource::Pods, pod.build());
        self.env("KUBERNETES_SERVICE_HOST", "10.43.0.1").env("POD_NAME", "rolegate-x").env("POD_NAMESPACE", "kube-system")
    }

    fn text(&self, more: &[&str]) -> Said {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        check(&arguments, &self.env)
    }

    fn run(&self, more: &[&str]) -> Said {
        self.text(&[&["--format=json"], more].concat())
    }
}

/// An address on loopback where nothing listens. While its socket is held, no other test gets the port.
fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn check(arguments: &[&str], env: &BTreeMap<&'static str, String>) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    command.arg("check").args(arguments).env_clear().envs(env).env("AWS_EC2_METADATA_DISABLED", "true");
    Said::of(&command.stdin(Stdio::null()).output().unwrap())
}

fn own_pod() -> PodBuilder {
    PodBuilder::new("kube-system", "rolegate-x").node(NODE).ip("10.42.0.9")
}

#[test]
fn a_place_that_has_everything_passes() {
    let preflight = Preflight::new().in_pod(own_pod().host_network(true));
    preflight.fakes.sts.add_role(Role::new(arn("web-role")));
    let said = preflight.run(&["--role=web-role"]);
    assert_eq!(said.code, 0, "{said:?}");
    // Whether the process has capabilities is up to who runs the test; these flags need none.
    assert_eq!((said.with_status("failed"), said.with_status("warning")), (vec![], vec![]), "{said:?}");
    for name in [
        "arguments/flags",
        "kubernetes/api",
        "kubernetes/pods",
        "kubernetes/namespaces",
        "kubernetes/events",
        "kubernetes/node",
        "kubernetes/own-pod",
        "identity/caller",
        "sts/region",
        "sts/endpoint",
        "sts/clock",
        "sts/proxy",
        "sts/ca-bundle",
        "metadata/token",
        "metadata/imds-v1",
        "node/capabilities",
        "node/app-port",
        "role/assume-role",
    ] {
        assert_eq!(said.check(name)["status"], "ok", "{name}: {said:?}");
    }
    let [issued] = &preflight.fakes.sts.issued()[..] else { panic!("one session: {said:?}") };
    assert_eq!((issued.role_arn.as_str(), issued.session_name.as_str()), (arn("web-role").as_str(), "rolegate-check"));
    assert!(said.check("role/assume-role")["detail"].as_str().unwrap().contains(&issued.access_key_id));
    let secrets = [&issued.secret_access_key, &issued.session_token, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN];
    assert!(secrets.iter().all(|secret| !said.text.contains(*secret)), "{said:?}");
    assert_eq!(said.error, "");
}

#[test]
fn the_role_is_assumed_for_the_shortest_time() {
    let preflight = Preflight::new();
    preflight.fakes.sts.add_role(Role::new(arn("web-role")));
    assert_eq!(preflight.run(&["--role=web-role", "--session-duration=12h"]).code, 0);
    let calls = preflight.fakes.sts.calls();
    let durations: Vec<_> = calls.iter().filter(|call| call.action == "AssumeRole").map(|call| call.duration_seconds).collect();
    assert_eq!(durations, [Some(900)]);
    let denied = preflight.run(&["--role=no-such-role"]);
    denied.assert_failed(&["role/assume-role"], "sts:AssumeRole");
    let calls = preflight.fakes.sts.assume_role_calls();
    preflight.run(&["--role=web-role", "--allowed-roles=other"]).assert_failed(&["role/assume-role"], "--allowed-roles");
    assert_eq!(preflight.fakes.sts.assume_role_calls(), calls, "a role that no pod may have is not tried");
}

#[test]
fn the_report_is_text_with_one_line_for_each_check() {
    let preflight = Preflight::new();
    let said = preflight.text(&[]);
    assert_eq!(said.code, 0, "{said:?}");
    let (mut lines, checks) = (said.text.lines(), preflight.run(&[]).checks().len());
    assert_eq!(lines.next(), Some("Arguments"));
    let statuses = ["  ok ", "  warning ", "  failed ", "  skipped "];
    assert_eq!(lines.filter(|line| statuses.iter().any(|status| line.starts_with(status))).count(), checks, "{}", said.text);
    assert!(said.text.lines().last().unwrap().starts_with("ok: 0 failed, 0 warning, "), "{}", said.text);
}

#[test]
fn a_missing_permission_is_named_with_its_rule() {
    let preflight = Preflight::new();
    for (verb, resource) in [(Verb::Watch, "pods"), (Verb::List, "namespaces"), (Verb::Create, "events"), (Verb::List, "serviceaccounts")] {
        preflight.fakes.api.deny(verb, resource);
    }
    let said = preflight.run(&[]);
    said.assert_failed(&["kubernetes/pods", "kubernetes/namespaces"], r#"- {apiGroups: [""], resources: [pods], verbs: [list, watch]}"#);
    assert!(said.check("kubernetes/pods")["detail"].as_str().unwrap().starts_with("watch of pods is not allowed"), "{said:?}");
    let events = said.check("kubernetes/events");
    assert_eq!(events["status"], "warning");
    assert!(events["advice"].as_str().unwrap().ends_with("- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}"));
    let reviews = preflight.fakes.api.requests().into_iter().filter(|request| request.path.ends_with("/selfsubjectaccessreviews"));
    let of_pods =
        reviews.map(|review| review.body["spec"]["resourceAttributes"].clone()).find(|asked| asked["resource"] == "pods").unwrap();
    assert_eq!(of_pods["fieldSelector"]["requirements"][0]["values"][0], NODE);
    // What no flag needs is not asked for.
    assert!(preflight.run(&["--service-account-roles"]).with_status("failed").contains(&"kubernetes/serviceaccounts".to_owned()));
    let without = preflight.run(&["--namespace-restrictions=false", "--events=false"]);
    without.assert_failed(&["kubernetes/pods"], "ClusterRole");
}

#[test]
fn an_api_that_does_not_answer_fails_alone() {
    let preflight = Preflight::new();
    preflight.fakes.api.refuse_connections(true);
    let said = preflight.run(&[]);
    said.assert_failed(&["kubernetes/api"], "--kubeconfig or --api-server");
    assert_eq!(said.check("identity/caller")["status"], "ok");
    preflight.fakes.api.refuse_connections(false);
    preflight.fakes.api.require_token(Some("another"));
    let said = preflight.run(&["--events=false", "--namespace-restrictions=false"]);
    said.assert_failed(&["kubernetes/pods", "kubernetes/node"], "does not accept its token");
    let missing = preflight.run(&["--kubeconfig=/does/not/exist"]);
    missing.assert_failed(&["kubernetes/api"], "check the file of --kubeconfig");
}

#[test]
fn a_node_that_is_not_there_fails() {
    let preflight = Preflight::new();
    preflight.run(&["--node=node-z"]).assert_failed(&["kubernetes/node"], "spec.nodeName");
    // Without the permission, its pods are looked for.
    preflight.fakes.api.deny(Verb::Get, "nodes");
    let said = preflight.run(&["--node=node-z"]);
    assert_eq!((said.code, said.with_status("warning")), (0, vec!["kubernetes/node".to_owned()]), "{said:?}");
    preflight.fakes.api.apply(Resource::Pods, PodBuilder::new("shop", "web").node("node-z").ip("10.42.0.2").build());
    assert_eq!(preflight.run(&["--node=node-z"]).check("kubernetes/node")["status"], "ok");
}

#[test]
fn a_pod_outside_of_the_nodes_network_is_told_so() {
    let preflight = Preflight::new().in_pod(own_pod());
    let said = preflight.run(&[]);
    assert_eq!((said.code, said.with_status("warning")), (0, vec!["kubernetes/own-pod".to_owned()]), "{said:?}");
    assert!(said.check("kubernetes/own-pod")["advice"].as_str().unwrap().contains("hostNetwork: true"));
    let elsewhere = Preflight::new().in_pod(own_pod().node("node-b").host_network(true));
    elsewhere.run(&[]).assert_failed(&["kubernetes/own-pod"], "spec.nodeName");
}

#[test]
fn an_identity_that_sts_denies_fails() {
    let preflight = Preflight::new();
    preflight.fakes.sts.set_behaviour(Behaviour::AccessDenied);
    preflight.run(&[]).assert_failed(&["identity/caller"], "sts:GetCallerIdentity");
    preflight.fakes.sts.set_behaviour(Behaviour::Normal);
    let said = preflight.env("AWS_SECRET_ACCESS_KEY", "wrong").run(&[]);
    assert_eq!((said.code, said.with_status("failed")), (1, vec!["identity/caller".to_owned()]), "{said:?}");
    assert_eq!(said.check("sts/endpoint")["status"], "ok", "it answered");
}

#[test]
fn a_clock_ten_minutes_off_fails_and_one_minute_off_warns() {
    let preflight = Preflight::new();
    preflight.fakes.sts.set_clock_skew(600);
    let said = preflight.run(&[]);
    said.assert_failed(&["sts/clock"], "time synchronization");
    let detail = said.check("sts/clock")["detail"].as_str().unwrap().to_owned();
    let seconds: u32 = detail.split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!((590..=610).contains(&seconds) && detail.contains("behind"), "{detail}");
    preflight.fakes.sts.set_clock_skew(-60);
    let said = preflight.run(&[]);
    assert_eq!((said.code, said.with_status("warning")), (0, vec!["sts/clock".to_owned()]), "{said:?}");
}

#[test]
fn a_missing_region_fails_and_skips_what_needs_it() {
    let mut preflight = Preflight::new();
    preflight.env.remove("AWS_REGION");
    let said = preflight.run(&["--role=web"]);
    said.assert_failed(&["sts/region"], "AWS_REGION");
    for skipped in ["identity/caller", "role/assume-role"] {
        assert_eq!(said.check(skipped)["status"], "skipped");
    }
    assert!(preflight.fakes.sts.calls().is_empty());
}

#[test]
fn sts_that_cannot_be_reached_fails_with_its_endpoint() {
    let (_held, nobody) = nobody();
    let said = Preflight::new().env("AWS_ENDPOINT_URL_STS", format!("http://{nobody}")).run(&[]);
    said.assert_failed(&["sts/endpoint"], "route and DNS");
    assert!(said.check("sts/endpoint")["detail"].as_str().unwrap().starts_with(&format!("http://{nobody}: ")));
    assert_eq!(said.check("identity/caller")["status"], "skipped");
}

#[test]
fn a_metadata_service_without_tokens_fails() {
    let preflight = Preflight::new();
    preflight.fakes.imds.set_behaviour(ImdsBehaviour::Status(403));
    preflight.run(&[]).assert_failed(&["metadata/token"], "HttpEndpoint");
    preflight.fakes.imds.set_behaviour(ImdsBehaviour::Normal);
    preflight.fakes.imds.set_tokens_required(false);
    let said = preflight.run(&[]);
    assert_eq!((said.code, said.with_status("warning")), (0, vec!["metadata/imds-v1".to_owned()]), "{said:?}");
    assert!(said.check("metadata/imds-v1")["advice"].as_str().unwrap().contains("HttpTokens=required"));
    let asked = preflight.fakes.imds.requests();
    assert!(asked.iter().all(|request| ["/latest/api/token", "/latest/meta-data/placement/region"].contains(&request.target.as_str())));
}

#[test]
fn nothing_is_asked_that_the_daemon_would_not_ask() {
    let mut preflight = Preflight::new();
    preflight.arguments.retain(|argument| !argument.starts_with("--metadata-addr"));
    let said = preflight.run(&[]);
    assert_eq!(said.check("metadata/token")["status"], "skipped", "{said:?}");
    assert!(preflight.fakes.imds.requests().is_empty() && preflight.fakes.sts.assume_role_calls() == 0);
}

#[test]
fn the_command_ends_although_nothing_answers() {
    let preflight = Preflight::new();
    preflight.fakes.imds.set_behaviour(ImdsBehaviour::Hang);
    preflight.fakes.sts.set_behaviour(Behaviour::Hang);
    let began = Instant::now();
    let said = preflight.run(&["--sts-timeout=200ms"]);
    said.assert_failed(&["sts/endpoint", "metadata/token"], "route and DNS");
    assert!(said.check("metadata/token")["advice"].as_str().unwrap().contains("HttpPutResponseHopLimit"));
    assert!(began.elapsed() < PATIENCE + Duration::from_secs(10), "{said:?}");
}

#[test]
fn a_laptop_skips_what_it_cannot_know() {
    let preflight = Preflight::new();
    let said = check(&["--format=json"], &preflight.env);
    assert_eq!(said.code, 0, "{said:?}");
    let skipped = said.with_status("skipped");
    for name in ["kubernetes/api", "metadata/token", "role/assume-role"] {
        assert!(skipped.contains(&name.to_owned()), "{name}: {said:?}");
    }
    assert_eq!(
        (said.check("arguments/node")["status"].as_str(), said.check("identity/caller")["status"].as_str()),
        (Some("warning"), Some("ok"))
    );
}

#[test]
fn an_argument_list_is_verified_alone() {
    let none = BTreeMap::new();
    for (list, code, failed) in [
        (&["--args", "--node=$(NODE_NAME)", "--host-ip=$(HOST_IP)", "--iptables=true", "--base-role-arn=arn:aws:iam::1:role/"][..], 1, 1),
        (&["--args", "/kube2iam --node=$(NODE_NAME) --host-ip=$(HOST_IP) --iptables=true"], 0, 0),
        (&["--", "--node=a", "--cache-resync-period=10m"], 0, 0),
        (&["--args", "--node=a", "--bogus"], 1, 1),
        (&["--args", "--node=a", "--app-port=x", "--log-level=loud"], 1, 2),
    ] {
        let said = check(&[&["--format=json"], list].concat(), &none);
        assert_eq!((said.code, said.with_status("failed").len()), (code, failed), "{list:?}: {said:?}");
        assert!(said.checks().iter().all(|check| check["section"] == "arguments"), "{said:?}");
    }
}

#[test]
fn warnings_about_an_argument_list_have_the_reasons_of_the_log() {
    const FREE: &str = "namespace-restrictions-off";
    for (list, reasons) in [
        ("/kube2iam --node=a --cache-resync-period=10m", &["no-effect", FREE][..]),
        ("--node=a --app-port=8181 --metrics-port=8181", &["metrics-port-moved", FREE]),
        ("--node=a --auto-discover-default-role", &["node-role-withheld", FREE]),
        ("--node=a --iptables --host-ip=127.0.0.1", &["host-ip-ignored", FREE]),
        ("--node=a --iptables --host-ip=$(OTHER)", &["variable-not-expanded", FREE]),
        ("--node=a --api-token=x", &["api-token-unused", FREE]),
        ("--node=a --iam-role-session-ttl=30m", &["session-ttl-doubled", FREE]),
        ("/kiam agent --node=a", &["kiam-agent", "kiam-namespaces"]),
        ("agent --node=a --json-log --port 8181 --cert=/a", &["kiam-agent", "kiam-namespaces", "kiam-argument"]),
        ("--node=a --no-json-log --namespace-restrictions", &["kiam-argument"]),
        ("--node=a --namespace-restrictions", &[]),
    ] {
        let list = format!("{list} --token-key-file=/a");
        let said = check(&["--format=json", "--args", &list], &BTreeMap::new());
        let warned: BTreeSet<String> = said.with_status("warning").into_iter().collect();
        let wanted: BTreeSet<String> = reasons.iter().map(|reason| format!("arguments/{reason}")).collect();
        assert_eq!((said.code, warned), (0, wanted), "{list}: {said:?}");
    }
    for list in ["server --bind=0.0.0.0:443", "agent --port=https", "agent --bogus"] {
        let said = check(&["--format=json", "--args", list], &BTreeMap::new());
        assert_eq!((said.code, said.with_status("failed")), (1, vec!["arguments/flags".to_owned()]), "{list}: {said:?}");
    }
}

#[test]
fn wrong_arguments_of_the_daemon_fail_and_wrong_usage_ends_with_2() {
    let preflight = Preflight::new();
    let said = preflight.run(&["--app-port=x"]);
    said.assert_failed(&["arguments/flags"], "docs/flags.md");
    assert!(preflight.fakes.sts.calls().is_empty() && preflight.fakes.api.requests().is_empty());
    for arguments in [&["--bogus"][..], &["--format=xml"], &["--role"], &["--node=a", "--args", "--node=a"]] {
        let said = check(arguments, &preflight.env);
        assert!(said.code == 2 && said.text.is_empty() && !said.error.is_empty(), "{arguments:?}: {said:?}");
    }
    let help = check(&["--help"], &preflight.env);
    assert!(help.code == 0 && help.text.contains("0 nothing failed, 1 at least one check failed, 2 wrong usage"), "{help:?}");
}

#[test]
fn secrets_in_urls_are_not_shown() {
    let (_held, nobody) = nobody();
    let proxied = Preflight::new().env("HTTP_PROXY", format!("http://user:proxy-secret@{nobody}"));
    let proxy = |said: &Said| said.check("sts/proxy")["detail"].as_str().unwrap().to_owned();
    // The fake STS is on loopback, which has no proxy.
    let direct = proxied.run(&[]);
    assert!(direct.code == 0 && !proxy(&direct).contains("http:"), "{direct:?}");
    let said = proxied.env("AWS_ENDPOINT_URL_STS", "http://sts.invalid").run(&[]);
    assert!(!said.text.contains("proxy-secret") && said.error.is_empty(), "{said:?}");
    assert!(proxy(&said).contains(&format!("http://{nobody}")), "{said:?}");
}

#[test]
fn certificates_that_cannot_be_read_fail_before_aws_is_asked() {
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let preflight = Preflight::new();
        let files = ["/does/not/exist".to_owned(), preflight.fakes.file("empty", ""), preflight.fakes.file("other", "no certificate")];
        let mut preflight = preflight;
        for file in files {
            preflight = preflight.env(variable, file);
            let said = preflight.run(&[]);
            assert_eq!(said.code, 1, "{said:?}");
            assert!(said.check("sts/ca-bundle")["advice"].as_str().unwrap().contains("PEM"), "{said:?}");
            assert!(said.check("sts/ca-bundle")["detail"].as_str().unwrap().contains(variable), "{said:?}");
        }
        assert!(preflight.fakes.sts.calls().is_empty());
    }
}

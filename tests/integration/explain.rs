//! Tests of the real `rolegate explain` command, against a daemon and against the Kubernetes API.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::kube::{Fault, PodBuilder, Resource, Verb, namespace, service_account};
use rolegate_lab::player;
use rolegate_lab::sts::{Behaviour, Role};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::world::{Fakes, NODE, World, arn, connect, ip, loopback};

const ROLE: &str = "iam.amazonaws.com/role";
const ALLOWED: &str = "iam.amazonaws.com/allowed-roles";
/// The node's identity in these tests. The lab's own identity has a name that is meant for other tests.
const KEY: &str = "ASIAEXPLAIN000000000";
const SECRET: &str = "explain-secret-key-that-nobody-ever-sees";
const NODES_ROLE: &str = "arn:aws:iam::123456789012:role/nodes";
const NODES_SESSION: &str = "arn:aws:sts::123456789012:assumed-role/nodes/i-0f1e2d3c4b5a69788";

/// The output and exit code of a command.
#[derive(Debug)]
struct CommandOutput {
    code: i32,
    text: String,
    error: String,
}

impl CommandOutput {
    fn last_line(&self) -> &str {
        self.text.lines().last().unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The scenes of the README: one cluster, one daemon, and pods of every kind.
struct Scene {
    fakes: Fakes,
    setup: Setup,
}

fn pod(name: &str, ip: &str, number: u8) -> PodBuilder {
    PodBuilder::new("shop", name).node("node-1").ip(ip).uid(&format!("5f0c7f2e-3b1d-4b6e-9a51-00000000000{number}"))
}

impl Scene {
    fn new() -> Scene {
        let fakes = Fakes::new();
        fakes.sts.add_caller(KEY, SECRET, None, NODES_SESSION);
        fakes.sts.add_role(role("pods/shop-web"));
        let (api, annotated) = (&fakes.api, |pod: PodBuilder, role: &str| pod.annotation(ROLE, role).build());
        let apply = |pod| api.apply(Resource::Pods, pod);
        apply(annotated(pod("web-0", "10.42.0.7", 1), "pods/shop-web"));
        apply(annotated(pod("report-1", "10.42.0.8", 2), "pods/billing"));
        apply(annotated(pod("cache-a", "10.42.0.9", 3), "pods/shop-cache"));
        apply(annotated(pod("cache-b", "10.42.0.9", 4), "pods/shop-cache"));
        apply(pod("plain", "10.42.0.10", 5).build());
        apply(annotated(pod("agent", "10.0.0.10", 6).host_network(true), "pods/shop-web"));
        apply(annotated(pod("job", "10.42.0.11", 7).phase("Succeeded"), "pods/shop-web"));
        apply(annotated(PodBuilder::new("shop", "starting").node("node-1").phase("Pending"), "pods/shop-web"));
        apply(annotated(PodBuilder::new("shop", "elsewhere").node("node-2").ip("10.42.1.7"), "pods/shop-web"));
        apply(PodBuilder::new("shop", "waiting").node("").phase("Pending").build());
        api.apply(Resource::Namespaces, namespace("shop", &[(ALLOWED, r#"["pods/shop-*"]"#)]));
        let setup = Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .argument("--node=node-1")
            .argument("--base-role-arn=arn:aws:iam::123456789012:role/")
            .argument("--namespace-restrictions")
            .argument("--metadata-bind-address=127.0.0.1")
            .argument("--metrics-bind-address=127.0.0.1")
            .argument(format!("--api-server={}", fakes.api.url()))
            .env("AWS_ENDPOINT_URL_STS", fakes.sts.url())
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .without_env("AWS_SESSION_TOKEN");
        Scene { fakes, setup }
    }

    fn daemon(&self) -> Daemon {
        let daemon = self.setup.start().unwrap();
        daemon.wait_ready(None).unwrap();
        daemon.wait_for_event("own-identity").unwrap();
        // Namespaces arrive after the list of pods.
        let deadline = std::time::Instant::now() + crate::world::PATIENCE;
        while ask(&daemon, "shop/web-0", &[]).code != 0 {
            assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
        }
        daemon
    }

    /// Runs the command against the Kubernetes API.
    fn cluster(&self, pod: &str, more: &[&str]) -> CommandOutput {
        let kubeconfig = format!("--kubeconfig={}", self.fakes.file("kubeconfig", &self.fakes.api.kubeconfig()));
        let settings = ["--base-role-arn=arn:aws:iam::123456789012:role/", "--namespace-restrictions", &kubeconfig];
        let sts = [("AWS_ENDPOINT_URL_STS", self.fakes.sts.url())];
        explain(&[&[pod], &settings[..], more].concat(), &[("AWS_ENDPOINT_URL_STS", &sts[0].1)])
    }
}

fn role(name: &str) -> Role {
    Role::new(format!("arn:aws:iam::123456789012:role/{name}")).trusted_by([NODES_ROLE])
}

fn explain(arguments: &[&str], env: &[(&str, &str)]) -> CommandOutput {
    let output = command(arguments, env).output().unwrap();
    said(&output)
}

fn command(arguments: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    command.arg("explain").args(arguments).env_clear();
    // Whatever happens, no packet may go to the metadata address.
    command.envs([("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_REGION", "eu-central-1")]);
    command.envs([("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)]).envs(env.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> CommandOutput {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    CommandOutput { code: output.status.code().unwrap(), text: text(&output.stdout), error: text(&output.stderr) }
}

/// Runs the command against a daemon.
fn ask(daemon: &Daemon, pod: &str, more: &[&str]) -> CommandOutput {
    let url = format!("--admin-url=http://{}", daemon.metrics_address());
    explain(&[&[pod, url.as_str()], more].concat(), &[])
}

/// Calls STS through a daemon, which allows one call a second.
fn assume(daemon: &Daemon, pod: &str, more: &[&str]) -> CommandOutput {
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    loop {
        let said = ask(daemon, pod, &[&["--assume"], more].concat());
        // The answer says how long to wait, so that no process is started too early.
        let Some((_, rest)) = said.error.split_once("try again in ") else { return said };
        let seconds = rest.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("{said:?}"));
        assert!(std::time::Instant::now() < deadline, "{said:?}");
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

/// The expected outcome for each pod: its exit code, its reason, and a part of the sentence.
const OUTCOMES: &[(&str, i32, &str, &str)] = &[
    ("shop/web-0", 0, "", "the pod may use arn:aws:iam::123456789012:role/pods/shop-web"),
    ("shop/report-1", 1, "not-allowed-in-namespace", "add the role to the allowed-roles or permitted annotation of the namespace"),
    ("shop/cache-a", 1, "ambiguous-pod", "shop/cache-b claims the address"),
    ("shop/cache-b", 1, "ambiguous-pod", "shop/cache-a claims the address"),
    ("shop/plain", 1, "no-role", "there is no --default-role"),
    ("shop/agent", 1, "host-network", "remove hostNetwork"),
    ("shop/job", 1, "unknown-pod", "ask about the pod that replaces it"),
    ("shop/starting", 1, "unknown-pod", "kubectl describe pod --namespace shop starting"),
    ("shop/nobody", 3, "unknown-pod", "check both names"),
];

fn check_outcomes(ask: impl Fn(&str, &[&str]) -> CommandOutput) {
    for (pod, code, reason, wanted) in OUTCOMES {
        let said = ask(pod, &[]);
        assert_eq!(said.code, *code, "{pod}: {said:?}");
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let verdict = ["allowed", "denied", "", "unknown"][usize::try_from(*code).unwrap()];
        assert!(said.last_line().starts_with(&format!("{verdict}{reason}: ")), "{pod}: {}", said.text);
        assert!(said.last_line().contains(wanted), "{pod}: {}", said.text);
        assert_eq!(said.error, "", "{pod}");
        let json = ask(pod, &["--output=json"]);
        assert_eq!(json.code, *code);
        let decision = ["allowed", "denied", "", "unknown"][usize::try_from(*code).unwrap()];
        assert_eq!(json.json()["decision"], decision, "{pod}");
    }
}

#[test]
fn a_daemon_explains_every_pod_from_its_own_state() {
    let scene = Scene::new();
    let daemon = scene.daemon();
    check_outcomes(|pod, more| ask(&daemon, pod, more));
    let far = ask(&daemon, "shop/elsewhere", &[]);
    assert_eq!(far.code, 3);
    assert!(far.last_line().contains("kubectl get pod --namespace shop elsewhere --output wide"), "{}", far.text);
    assert_eq!(scene.fakes.sts.assume_role_calls(), 0, "STS is not called");
}

#[test]
fn with_a_kubeconfig_the_kubernetes_api_is_asked() {
    let scene = Scene::new();
    check_outcomes(|pod, more| scene.cluster(pod, more));
    for (pod, node) in [("shop/elsewhere", "node-2"), ("shop/web-0", "node-1")] {
        let said = scene.cluster(pod, &[]);
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.text.starts_with(&format!("pod {pod} on node {node}, as decided by the flags given here")), "{}", said.text);
        assert!(
            said.text.contains("not known yet") && said.text.contains("note: the AWS identity that calls STS is not known"),
            "{}",
            said.text
        );
    }
    let waiting = scene.cluster("shop/waiting", &[]);
    assert!(waiting.code == 3 && waiting.last_line().contains("not scheduled to a node"), "{waiting:?}");
    assert!(scene.fakes.sts.calls().is_empty(), "AWS is not called without --assume");
    let other = scene.cluster("shop/web-0", &["--node=node-2"]);
    assert!(other.code == 3 && other.error.contains("is on node node-1, not on node-2"), "{other:?}");
}

#[test]
fn decisions_about_the_cluster_use_the_flags_of_run() {
    let scene = Scene::new();
    let account = service_account("shop", "default", &[(ROLE, "pods/shop-web")]);
    scene.fakes.api.apply(Resource::ServiceAccounts, account);
    for (pod, flag, code, wanted) in [
        ("shop/plain", "--service-account-roles", 0, "service account shop/default"),
        ("shop/plain", "--default-role=pods/default", 0, "--default-role"),
        ("shop/web-0", "--allowed-roles=pods/billing", 1, "no pattern of --allowed-roles"),
        ("shop/report-1", "--namespace-restrictions=audit", 0, "served only because of audit mode"),
        ("shop/web-0", "--iam-role-key=example.com/role", 1, "neither the pod"),
        ("shop/web-0", "--session-tags=namespace,pod", 0, "kubernetes-pod-name=web-0"),
        ("shop/web-0", "--app-port=8181", 0, "allowed"),
    ] {
        let said = scene.cluster(pod, &[flag]);
        assert_eq!(said.code, code, "{flag}: {said:?}");
        assert!(said.text.contains(wanted), "{flag}: {}", said.text);
    }
}

#[test]
fn large_objects_are_read_like_small_ones() {
    let scene = Scene::new();
    let notes = "<".repeat(1_450_000);
    for number in 1..=4 {
        // Four of these in one page of the list exceed the limit on any answer.
        let large = PodBuilder::new("shop", &format!("large-{number}")).node("node-1").ip(&format!("10.42.1.{number}"));
        scene.fakes.api.apply(Resource::Pods, large.annotation(ROLE, "pods/shop-web").annotation("notes", &notes).build());
    }
    let allowed = [(ALLOWED, r#"["pods/*"]"#), ("notes", &notes)];
    scene.fakes.api.apply(Resource::Namespaces, namespace("shop", &allowed));
    let said = scene.cluster("shop/large-1", &[]);
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn an_api_that_does_not_answer_is_an_error() {
    let scene = Scene::new();
    for (verb, resource, wanted) in [(Verb::Get, "pods", "cannot read pod shop/web-0"), (Verb::Get, "namespaces", "namespace shop")] {
        scene.fakes.api.deny(verb, resource);
        let said = scene.cluster("shop/web-0", &[]);
        assert!(said.code == 3 && said.error.contains(wanted) && said.error.contains("403"), "{said:?}");
        scene.fakes.api.allow(verb, resource);
    }
    scene.fakes.api.fail_next(Fault { resource: Some(Resource::Pods), status: 500, times: 1, ..Fault::default() });
    assert_eq!(scene.cluster("shop/web-0", &[]).code, 3);
    let missing = explain(&["shop/web-0", "--kubeconfig=/does/not/exist"], &[]);
    assert!(missing.code == 3 && missing.error.contains("cannot use the kubeconfig"), "{missing:?}");
    let nobody = loopback().local_addr().unwrap();
    let gone = explain(&["shop/web-0", &format!("--api-server=http://{nobody}")], &[]);
    assert!(gone.code == 3 && gone.error.contains("the Kubernetes API cannot be reached"), "{gone:?}");
}

#[test]
fn usage_errors_have_their_own_exit_code() {
    for (arguments, wanted) in [
        (&["nonsense"][..], "expected NAMESPACE/POD"),
        (&["shop/web/0"], "expected NAMESPACE/POD"),
        (&[], "NAMESPACE/POD"),
        (&["shop/web-0", "--output=xml"], "expected one of text, json"),
        (&["shop/web-0", "--admin-url=ftp://x"], "http://127.0.0.1:9543"),
        (&["shop/web-0", "--admin-url=http://127.0.0.1", "--kubeconfig=/k"], "give one of them"),
        (&["shop/web-0", "--bogus"], "unexpected argument"),
    ] {
        let said = explain(arguments, &[]);
        assert!(said.code == 2 && said.error.contains(wanted) && said.text.is_empty(), "{arguments:?}: {said:?}");
    }
    let help = explain(&["--help"], &[]);
    assert!(
        help.code == 0
            && help.text.contains("--assume")
            && help.text.contains("0 the pod may use its role")
            && help.text.contains("3 unknown"),
        "{help:?}"
    );
}

#[test]
fn a_missing_daemon_is_reported_with_advice() {
    let nobody = loopback().local_addr().unwrap();
    let said = explain(&["shop/web-0", &format!("--admin-url=http://{nobody}")], &[]);
    assert!(said.code == 3 && said.text.is_empty(), "{said:?}");
    for wanted in ["no daemon answers at", "kubectl exec", "kubectl port-forward", "--kubeconfig"] {
        assert!(said.error.contains(wanted), "{wanted}: {said:?}");
    }
    // A server that is not a daemon.
    let fakes = Fakes::new();
    let said = explain(&["shop/web-0", &format!("--admin-url={}", fakes.api.url())], &[]);
    assert!(said.code == 3 && said.error.contains("does not answer `explain`"), "{said:?}");
}

#[test]
fn a_daemon_that_knows_no_pods_yet_says_so() {
    let scene = Scene::new();
    scene.fakes.api.refuse_connections(true);
    let daemon = scene.setup.start().unwrap();
    let said = ask(&daemon, "shop/web-0", &[]);
    assert!(said.code == 3 && said.error.contains("waiting for: ") && said.error.contains("the list of this node's pods"), "{said:?}");
}

#[test]
fn sts_is_called_once_and_the_session_is_not_kept() {
    let scene = Scene::new();
    let daemon = scene.daemon();
    let said = ask(&daemon, "shop/web-0", &["--assume"]);
    assert_eq!(said.code, 0, "{said:?}");
    let [issued] = &scene.fakes.sts.issued()[..] else { panic!("not exactly one session") };
    assert_eq!((issued.session_name.as_str(), issued.role_arn.as_str()), ("web-0", "arn:aws:iam::123456789012:role/pods/shop-web"));
    assert!(
        said.text.contains(&issued.access_key_id) && said.last_line().contains(&format!("STS lets {NODES_SESSION} assume it")),
        "{}",
        said.text
    );
    let everything = [said.text.as_str(), said.error.as_str(), &daemon.log()].concat();
    assert!(!everything.contains(&issued.secret_access_key) && !everything.contains(&issued.session_token));
    // These calls bypass the cache: each command is one call.
    assert_eq!(assume(&daemon, "shop/web-0", &[]).code, 0);
    assert_eq!(scene.fakes.sts.assume_role_calls(), 2);
    assert_eq!(daemon.metric(None, r#"rolegate_explain_sts_requests_total{outcome="ok"}"#).unwrap(), 2.0);
    assert_eq!(daemon.metric(None, r#"rolegate_sts_requests_total{outcome="ok"}"#).unwrap(), 0.0);
    assert_eq!(daemon.metric(None, r#"rolegate_session_lookups_total{result="miss"}"#).unwrap(), 0.0);
    // A pod that is refused costs no call.
    assert_eq!(ask(&daemon, "shop/report-1", &["--assume"]).code, 1);
    assert_eq!(scene.fakes.sts.assume_role_calls(), 2);
}

#[test]
fn calls_to_sts_run_one_at_a_time_and_one_a_second() {
    let scene = Scene::new();
    let daemon = scene.daemon();
    let release = Arc::new(Notify::new());
    scene.fakes.sts.set_role_behaviour("arn:aws:iam::123456789012:role/pods/shop-web", Behaviour::Held(release.clone()));
    let url = format!("--admin-url=http://{}", daemon.metrics_address());
    let first = command(&["shop/web-0", "--assume", &url], &[]).spawn().unwrap();
    let arrived = scene.fakes.sts.wait_until(|calls| calls.iter().any(|call| call.action == "AssumeRole"));
    scene.fakes.runtime.block_on(arrived);
    let second = ask(&daemon, "shop/web-0", &["--assume"]);
    assert!(second.code == 3 && second.error.contains("one at a time"), "{second:?}");
    assert_eq!(ask(&daemon, "shop/web-0", &[]).code, 0, "commands without --assume do not wait");
    release.notify_one();
    assert_eq!(said(&first.wait_with_output().unwrap()).code, 0);
    assert_eq!(scene.fakes.sts.assume_role_calls(), 1);
}

/// Both steps are shown, and both calls are made; a refusal says which of the two it is about.
#[test]
fn a_target_role_is_explained_in_both_steps() {
    const PARTNER: &str = "arn:aws:iam::444455556666:role/partner";
    let scene = Scene::new();
    let allowed = format!(r#"["pods/shop-*", "{PARTNER}"]"#);
    scene.fakes.api.apply(Resource::Namespaces, namespace("shop", &[(ALLOWED, &allowed)]));
    scene.fakes.sts.add_role(Role::new(PARTNER).trusted_by(["arn:aws:iam::123456789012:role/pods/shop-web"]));
    let chained = pod("web-0", "10.42.0.7", 1).annotation(ROLE, "pods/shop-web").annotation("iam.amazonaws.com/target-role", PARTNER);
    scene.fakes.api.apply(Resource::Pods, chained.build());
    let said = |more: &[&str]| scene.cluster("shop/web-0", &[&["--assume", "--session-duration=2h"], more].concat());

    let report = said(&["--output=json"]).json();
    let web = "arn:aws:iam::123456789012:role/pods/shop-web";
    assert_eq!((&report["request"]["source_role"], &report["request"]["role"]), (&json!(web), &json!(PARTNER)));
    assert_eq!((&report["decision"], &report["request"]["duration_seconds"]), (&json!("allowed"), &json!(3600)));
    let steps: Vec<_> = report["policy"].as_array().unwrap().iter().map(|step| step["what"].as_str().unwrap()).collect();
    for (what, count) in [("role", 1), ("target-role", 1), ("partition", 2), ("node-role", 2), ("namespace", 2), ("session-duration", 1)] {
        let found = steps.iter().filter(|step| **step == what).count();
        assert!(found >= count, "{what}: {steps:?}");
    }
    let issued = scene.fakes.sts.issued();
    assert_eq!(issued.len(), 2);
    assert_eq!(report["assume"]["source_access_key_id"], issued[0].access_key_id);
    assert_eq!(report["assume"]["access_key_id"], issued[1].access_key_id);
    assert_eq!(report["message"], format!("the pod may use {PARTNER}, and STS lets {web} assume it"));

    scene.fakes.sts.add_role(Role::new(PARTNER).trusted_by([NODES_ROLE]));
    let answer = said(&[]);
    assert!(answer.code == 1 && answer.text.contains("cannot assume the target role"), "{answer:?}");
    assert!(answer.text.contains(&format!("its trust policy allows sts:AssumeRole for the pod's role {web}")), "{}", answer.text);
    scene.fakes.sts.remove_role(web);
    let answer = said(&[]);
    assert!(answer.code == 1 && answer.text.contains(&format!("for the role of {NODES_SESSION}")), "{answer:?}");
}

#[test]
fn every_sts_refusal_says_what_to_check() {
    let scene = Scene::new();
    let web = "arn:aws:iam::123456789012:role/pods/shop-web";
    let with_id = pod("web-0", "10.42.0.7", 1).annotation(ROLE, "pods/shop-web").annotation("iam.amazonaws.com/external-id", "id-1");
    let denied = ["exists in account 123456789012", &format!("for the role of {NODES_SESSION}"), &format!("sts:AssumeRole on {web}")];
    let said = |more: &[&str]| scene.cluster("shop/web-0", &[&["--assume"], more].concat());

    scene.fakes.sts.remove_role(web);
    let answer = said(&["--session-tags=pod"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(answer.text.contains("denied (sts-denied): STS denied AssumeRole"), "{}", answer.text);
    for wanted in denied.iter().copied().chain(["no external ID was sent", "sts:TagSession"]) {
        assert!(answer.text.contains(wanted), "{wanted}: {}", answer.text);
    }
    scene.fakes.sts.add_role(role("pods/shop-web").external_id("id-2"));
    scene.fakes.api.apply(Resource::Pods, with_id.build());
    let answer = said(&[]);
    assert!(
        answer.code == 1
            && answer.text.contains("an external ID was sent")
            && !answer.text.contains("id-1")
            && !answer.text.contains("TagSession"),
        "{answer:?}"
    );

    scene.fakes.sts.add_role(role("pods/shop-web"));
    let answer = said(&["--session-duration=2h"]);
    let shorter = "sessions of this role last 1h, not 2h as --session-duration says. To fix: raise the role's maximum session duration";
    assert!(answer.code == 0 && answer.text.contains(shorter), "{answer:?}");
    for (behaviour, name) in [
        (Behaviour::Throttling, "throttled"),
        (Behaviour::ExpiredToken, "own-identity"),
        (Behaviour::CloseBeforeAnswer, "unreachable"),
        (Behaviour::InternalFailure, "failed"),
    ] {
        scene.fakes.sts.set_role_behaviour(web, behaviour);
        let before = scene.fakes.sts.assume_role_calls();
        let answer = said(&["--output=json"]);
        assert_eq!((answer.code, scene.fakes.sts.assume_role_calls() - before), (3, 1), "not called exactly once: {answer:?}");
        let report = answer.json();
        assert_eq!((&report["decision"], &report["reason"]), (&json!("unknown"), &json!(format!("sts-{name}"))));
        assert!(!report["check"].as_array().unwrap().is_empty());
    }
    scene.fakes.sts.set_role_behaviour(web, Behaviour::Normal);
    let answer = said(&[]);
    assert!(answer.code == 0 && answer.text.contains("note: STS was called with the AWS identity of this command"), "{answer:?}");
}

/// With a source identity, the report shows it, and says what a role that refuses it must allow.
#[test]
fn a_source_identity_is_shown_and_its_denial_explained() {
    let scene = Scene::new();
    let said = || scene.cluster("shop/web-0", &["--assume", "--source-identity={namespace}.{pod}"]);
    let answer = said();
    for wanted in ["ok  source-identity --source-identity: shop.web-0\n", "      source-identity shop.web-0\n"] {
        assert!(answer.code == 0 && answer.text.contains(wanted), "{wanted:?}: {answer:?}");
    }
    assert_eq!(scene.fakes.sts.issued().last().unwrap().source_identity.as_deref(), Some("shop.web-0"));
    scene.fakes.sts.add_role(role("pods/shop-web").without_source_identity());
    let answer = said();
    let first = "  1. the trust policy of arn:aws:iam::123456789012:role/pods/shop-web allows sts:SetSourceIdentity";
    assert!(answer.code == 1 && answer.text.contains("denied (sts-denied)") && answer.text.contains(first), "{answer:?}");
    scene.fakes.sts.remove_role("arn:aws:iam::123456789012:role/pods/shop-web");
    let answer = said();
    assert!(answer.text.contains("  5. the source identity shop.web-0 was sent"), "{answer:?}");
}

#[test]
fn a_daemon_explains_sts_errors_as_well() {
    let scene = Scene::new();
    let daemon = scene.daemon();
    let web = "arn:aws:iam::123456789012:role/pods/shop-web";
    scene.fakes.sts.set_role_behaviour(web, Behaviour::AccessDenied);
    let said = assume(&daemon, "shop/web-0", &[]);
    assert!(said.code == 1 && said.text.contains("sts-denied") && said.last_line().starts_with("  4. "), "{said:?}");
    scene.fakes.sts.set_role_behaviour(web, Behaviour::Throttling);
    let said = assume(&daemon, "shop/web-0", &[]);
    assert!(said.code == 3 && said.text.contains("unknown (sts-throttled)"), "{said:?}");
}

/// The node's own role is refused without a call to STS once the daemon knows its identity.
#[test]
fn the_nodes_own_role_is_not_requested() {
    let scene = Scene::new();
    scene.fakes.sts.add_role(role("nodes"));
    scene.fakes.api.apply(Resource::Pods, pod("web-0", "10.42.0.7", 1).annotation(ROLE, "nodes").build());
    let said = scene.cluster("shop/web-0", &["--namespace-restrictions=false", "--assume"]);
    assert!(said.code == 1 && said.last_line().starts_with("denied (node-role)"), "{said:?}");
    assert_eq!(scene.fakes.sts.assume_role_calls(), 0);
}

/// All fields of a report. Programs that read reports depend on them.
#[test]
fn the_form_of_the_report_is_stable() {
    let scene = Scene::new();
    let daemon = scene.daemon();
    let mut report = assume(&daemon, "shop/web-0", &["--output=json"]).json();
    let session = report["assume"].take();
    assert_eq!(session["outcome"], "ok");
    assert_eq!((session["identity"].as_str(), session.as_object().unwrap().len()), (Some(NODES_SESSION), 5));
    assert!(session["access_key_id"].as_str().unwrap().starts_with("ASIA") && session["expires_at"].as_str().unwrap().ends_with('Z'));
    let (identity, policy) = (report["identity"].take(), report["policy"].take());
    let step = json!({ "what": "address", "source": "10.42.0.7", "detail": "belongs to this pod only", "verdict": "passed" });
    assert_eq!(identity[3], step);
    let names: Vec<_> = policy.as_array().unwrap().iter().map(|step| step["what"].as_str().unwrap()).collect();
    assert_eq!(names, ["role", "partition", "node-role", "allowed-roles", "session-name", "namespace", "namespace"]);
    let expected = json!({
        "version": 1,
        "namespace": "shop",
        "pod": "web-0",
        "node": "node-1",
        "by": "daemon",
        "decision": "allowed",
        "reason": null,
        "message": format!("the pod may use arn:aws:iam::123456789012:role/pods/shop-web, and STS lets {NODES_SESSION} assume it"),
        "check": [],
        "notes": [
            "requests without a session token (IMDSv1) are refused (--imds-tokens=required); metadata besides credentials: none \
             (--metadata-profile=none)"
        ],
        "identity": null,
        "policy": null,
        "pod_identity": [],
        "request": {
            "role": "arn:aws:iam::123456789012:role/pods/shop-web",
            "source_role": null,
            "session_name": "web-0",
            "source_identity": null,
            "external_id": false,
            "tags": [],
            "has_transitive_tags": false,
            "duration_seconds": 3600,
        },
        "assume": null,
    });
    assert_eq!(report, expected);
    let denied = ask(&daemon, "shop/plain", &["--output=json"]).json();
    assert_eq!((&denied["decision"], &denied["reason"], &denied["request"]), (&json!("denied"), &json!("no-role"), &Value::Null));
}

/// Sends one request to the metrics port.
fn raw(from: std::net::IpAddr, to: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> u16 {
    let headers: Vec<_> = headers.iter().copied().chain([("Connection", "close"), ("X-Rolegate-Explain", "1")]).collect();
    player::request(connect(from, to).unwrap(), method, target, &headers).unwrap().status
}

#[test]
fn web_pages_in_browsers_get_nothing() {
    let world = World::start_with(|setup| setup.argument("--debug"));
    let to = world.daemon.metrics_address();
    let target = "/explain?namespace=shop&pod=web";
    for (method, target, headers, status) in [
        ("GET", target, &[("Host", "localhost:9543")][..], 200),
        ("GET", target, &[("Host", "127.0.0.1")], 200),
        ("GET", target, &[("Host", "[::1]:9543")], 200),
        ("GET", target, &[("Host", "rebound.example.com")], 404),
        ("GET", target, &[("Host", "127.0.0.1.example.com")], 404),
        ("GET", target, &[("Host", "10.0.0.10:9543")], 404),
        ("POST", target, &[("Host", "localhost"), ("Origin", "http://example.com")], 404),
        ("GET", "/debug/store", &[("Host", "rebound.example.com")], 404),
        ("GET", "/debug/store", &[("Host", "localhost")], 200),
        ("GET", "/explain", &[("Host", "localhost")], 400),
        ("GET", "/explain?namespace=shop&pod=../x", &[("Host", "localhost")], 400),
        ("DELETE", target, &[("Host", "localhost")], 405),
        // Through a proxy.
        ("GET", target, &[("Host", "localhost"), ("X-Forwarded-For", "10.0.0.1")], 404),
        ("GET", "/debug/store", &[("Host", "localhost"), ("Via", "1.1 proxy")], 404),
        // A GET makes no calls, whatever its query says.
        ("GET", "/explain?namespace=shop&pod=web&assume=true", &[("Host", "localhost")], 405),
    ] {
        assert_eq!(raw(ip(1), to, method, target, headers), status, "{method} {target} {headers:?}");
    }
    assert_eq!(world.fakes.sts.assume_role_calls(), 0);
}

/// The README shows exactly what the command prints.
#[test]
fn the_readme_shows_the_printed_reports() {
    let scene = Scene::new();
    let daemon = scene.daemon();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let mut real = String::new();
    for pod in ["shop/report-1"] {
        let prompt = format!("$ kubectl exec -n kube-system rolegate-x7k2p -- rolegate explain {pod}\n");
        for line in (prompt + &ask(&daemon, pod, &[]).text).lines() {
            let _ = writeln!(real, "{}", format!("    {line}").trim_end());
        }
        real.push('\n');
    }
    let section = readme.split_once("## Why was my pod refused?").map_or("", |(_, rest)| rest);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    // Indented lines, and the empty lines between them.
    let mut shown = String::new();
    let mut inside = false;
    for line in section.lines() {
        inside = line.starts_with("    ") || inside && line.is_empty();
        if inside {
            let _ = writeln!(shown, "{line}");
        }
    }
    assert_eq!(shown, real, "the README should show this:\n\n{real}");
}

/// A pod that changed is explained in its current state.
#[test]
fn a_change_appears_in_the_next_explanation() {
    let world = World::start();
    let asked = |world: &World| ask(&world.daemon, "shop/plain", &[]).code;
    assert_eq!(asked(&world), 1);
    world.fakes.api.apply(Resource::Pods, crate::world::pod("plain", ip(4), Some("web-role")).build());
    world.eventually(asked, |code| *code == 0);
    let said = ask(&world.daemon, "shop/plain", &[]);
    assert!(said.text.contains(&format!("on node {NODE}")) && said.text.contains(&arn("web-role")), "{}", said.text);
}

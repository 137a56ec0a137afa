//! Tests of the real `rolegate iam-policy` command, against the lab's Kubernetes API.

use std::process::Command;

use rolegate_lab::kube::{PodBuilder, Resource, Verb, namespace, service_account};
use serde_json::Value;

use crate::world::{Fakes, arn};

const ROLE: &str = "iam.amazonaws.com/role";
const BASE: &str = "--base-role-arn=arn:aws:iam::111122223333:role/";
const NODES: &str = "--node-role=arn:aws:iam::111122223333:role/nodes";

struct Cluster {
    fakes: Fakes,
    kubeconfig: String,
}

impl Cluster {
    /// Creates a cluster with pods of two namespaces on two nodes, and one that is not on a node yet.
    fn new() -> Cluster {
        let fakes = Fakes::new();
        let pod = |namespace: &str, name: &str, node: &str, role: &str| {
            let builder = PodBuilder::new(namespace, name).node(node).service_account("app").annotation(ROLE, role);
            fakes.api.apply(Resource::Pods, builder.build());
        };
        pod("shop", "web", "node-1", "web");
        pod("shop", "waiting", "", "waiting");
        pod("books", "api", "node-2", "api");
        fakes.api.apply(Resource::Pods, PodBuilder::new("books", "plain").node("node-2").service_account("annotated").build());
        fakes.api.apply(Resource::Namespaces, namespace("shop", &[("iam.amazonaws.com/allowed-roles", r#"["web", "waiting"]"#)]));
        fakes.api.apply(Resource::Namespaces, namespace("books", &[("iam.amazonaws.com/allowed-roles", r#"["from-account"]"#)]));
        fakes.api.apply(Resource::ServiceAccounts, service_account("books", "annotated", &[(ROLE, "from-account")]));
        let kubeconfig = format!("--kubeconfig={}", fakes.file("operator", &fakes.api.kubeconfig()));
        Cluster { fakes, kubeconfig }
    }

    /// Runs the command. Returns its exit code and what it printed.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
        // Whatever happens, no packet may go to the metadata address.
        command.args(["iam-policy", &self.kubeconfig]).args(arguments).env_clear().env("AWS_EC2_METADATA_DISABLED", "true");
        // As in the daemon's container, which names its own node.
        let output = command.env("NODE_NAME", "node-1").env("TERM", "xterm").output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    fn roles(&self, arguments: &[&str]) -> (Vec<String>, String) {
        let (code, text, error) = self.run(&[&[BASE, NODES], arguments].concat());
        assert_eq!(code, 0, "{error}");
        let document: Value = serde_json::from_str(&text).unwrap();
        (document["trust"].as_object().unwrap().keys().cloned().collect(), error)
    }
}

#[test]
fn roles_of_all_nodes_or_of_one_are_found() {
    let cluster = Cluster::new();
    let (roles, error) = cluster.roles(&[]);
    assert_eq!(roles, [arn("api"), arn("waiting"), arn("web")]);
    let unrestricted: Vec<_> = error.lines().collect();
    assert!(unrestricted.len() == 3 && unrestricted.iter().all(|line| line.contains("(unrestricted-role)")), "{error}");
    assert!(unrestricted[0].contains("namespace books") && unrestricted[0].contains(&arn("api")), "{error}");
    assert_eq!(cluster.roles(&["--node=node-2"]).0, [arn("api")]);
    assert_eq!(cluster.roles(&["--service-account-roles"]).0, [arn("api"), arn("from-account"), arn("waiting"), arn("web")]);
    let (roles, error) = cluster.roles(&["--service-account-roles", "--namespace-restrictions"]);
    assert_eq!(roles, [arn("from-account"), arn("waiting"), arn("web")]);
    assert!(error.contains("api of namespace books (not-allowed-in-namespace)"), "{error}");
    assert!(!error.contains("unrestricted-role"), "{error}");
    let audit = ["--service-account-roles", "--namespace-restrictions=audit"];
    let (roles, error) = cluster.roles(&audit);
    assert_eq!(roles, [arn("from-account"), arn("waiting"), arn("web")], "what the restrictions would refuse is no grant");
    assert!(error.contains("api of namespace books (not-allowed-in-namespace)") && error.contains("--include-audited"), "{error}");
    let (roles, error) = cluster.roles(&[&audit[..], &["--include-audited"]].concat());
    assert_eq!(roles, [arn("api"), arn("from-account"), arn("waiting"), arn("web")]);
    assert!(error.lines().count() == 1 && error.contains("(unrestricted-role)") && error.contains(&arn("api")), "{error}");
    assert_eq!(cluster.roles(&["--allowed-roles=w*"]).0, [arn("waiting"), arn("web")]);
    assert_eq!(cluster.roles(&["--node=node-2", "--default-role=fallback"]).0, [arn("api"), arn("fallback")]);
}

/// The daemon refuses its own role and the intermediate role to pods.
#[test]
fn the_daemons_own_roles_are_left_out() {
    let cluster = Cluster::new();
    let (roles, error) = cluster.roles(&[&format!("--assume-role-arn={}", arn("api"))]);
    assert_eq!(roles, [arn("api"), arn("waiting"), arn("web")]);
    assert!(error.contains("api of namespace books (node-role)"), "{error}");
    let (code, text, error) = cluster.run(&[BASE, &format!("--node-role={}", arn("web"))]);
    let policies: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, policies["trust"].get(arn("web"))), (0, None));
    assert!(error.contains("web of namespace shop (node-role)"), "{error}");
    let (code, _, error) = cluster.run(&[BASE, "--prefix"]);
    assert!(code == 2 && error.contains("--prefix requires --node-role"), "{error}");
}

#[test]
fn one_policy_is_printed_as_the_aws_cli_takes_it() {
    let cluster = Cluster::new();
    let json = |arguments: &[&str]| -> Value {
        let (code, text, error) = cluster.run(&[&[BASE, NODES], arguments].concat());
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&text).unwrap()
    };
    let all = json(&["--session-tags=namespace,service-account"]);
    let one = |policy: &str, more: &[&str]| json(&[&["--session-tags=namespace,service-account", policy], more].concat());
    assert_eq!(one("--policy=node", &[]), all["node"][0]);
    assert_eq!(one("--policy=boundary", &[]), all["boundary"]);
    assert_eq!(one("--policy=trust", &["--role=web"]), all["trust"][arn("web")]);
    let condition = &all["trust"][arn("web")]["Statement"][0]["Condition"]["StringEquals"];
    assert_eq!(condition["aws:RequestTag/kubernetes-namespace"], "shop");
    assert_eq!(condition["aws:RequestTag/kubernetes-service-account"], "app");
    // Several roles have a trust policy, and only one can be printed.
    let (code, text, error) = cluster.run(&[BASE, NODES, "--policy=trust"]);
    assert!((code, text.as_str()) == (1, "") && error.contains("--role"), "{error}");
    assert_eq!(cluster.run(&[BASE, NODES, "--policy=trust", "--role=other"]).0, 1);
}

#[test]
fn what_cannot_be_printed_ends_with_a_code_of_its_own() {
    let cluster = Cluster::new();
    let (code, text, error) = cluster.run(&[NODES]);
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("no-base-arn") && error.contains("no-roles"), "{error}");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["node"].as_array().map(Vec::len), Some(0));
    assert_eq!(cluster.run(&[NODES, "--policy=node"]).0, 1);
    assert_eq!(cluster.run(&[BASE, "--policy=trust"]).0, 2);
    cluster.fakes.api.deny(Verb::List, "pods");
    let (code, text, error) = cluster.run(&[BASE]);
    assert_eq!((code, text.as_str()), (3, ""));
    assert!(error.contains("cannot read the list of pods"), "{error}");
}

/// A pipe is no terminal: there is neither a line of progress nor a color in it.
#[test]
fn a_pipe_gets_no_control_characters() {
    let cluster = Cluster::new();
    for number in 0..600 {
        cluster.fakes.api.apply(Resource::Pods, PodBuilder::new("many", &format!("pod-{number}")).node("node-1").build());
    }
    let (code, text, error) = cluster.run(&[BASE, NODES]);
    assert_eq!((code, error.contains('\x1b'), text.contains('\x1b')), (0, false, false));
    let lists: Vec<_> = cluster.fakes.api.requests().into_iter().filter(|request| request.path == "/api/v1/pods").collect();
    assert_eq!(lists.len(), 3, "pages of 250");
}

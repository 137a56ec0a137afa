//! The daemon's own pod: how it names the node, and what it may not be.

use rolegate_lab::kube::{PodBuilder, Resource};
use rolegate_lab::node::NODE_IP;
use serde_json::Value;

use crate::bed::METADATA;
use crate::cluster::{Cluster, NAMESPACE, NODE, OWN_POD, OWN_UID, Rbac, own_pod};

/// A token that says nothing, as one in a Secret.
const OPAQUE: &str = "opaque";

/// Starts a daemon without `--node`, which has to find its node this way, and to serve a pod.
fn is_found(token: Option<&str>, variables: &[(&str, &str)], by: &str) {
    let Some(cluster) = Cluster::new() else { return };
    cluster.grant(Rbac::Kube2iam);
    let pod = cluster.pod("eni");
    cluster.service_account(&token.map_or_else(|| cluster.token(""), str::to_owned));
    let setup = cluster.setup().argument("--iptables").argument(format!("--host-ip={NODE_IP}"));
    let setup = variables.iter().fold(setup, |setup, (name, value)| setup.env(*name, *value));
    let daemon = setup.start().unwrap();
    daemon.wait_ready(Some(cluster.bed.node.ns())).unwrap();
    let found = daemon.wait_for_event("node-found").unwrap();
    assert_eq!((&found["node"], &found["by"]), (&Value::from(NODE), &Value::from(by)), "{}", daemon.log());
    cluster.bed.assert_served(&pod, METADATA);
}

#[test]
fn the_token_names_the_pod() {
    is_found(None, &[], "pod");
}

#[test]
fn the_environment_names_the_pod() {
    is_found(Some(OPAQUE), &[("POD_NAME", OWN_POD), ("POD_NAMESPACE", NAMESPACE)], "pod");
    is_found(Some(OPAQUE), &[("POD_NAME", OWN_POD), ("POD_UID", OWN_UID)], "pod");
}

#[test]
fn the_host_has_the_name_of_the_pod() {
    is_found(Some(OPAQUE), &[("HOSTNAME", OWN_POD)], "pod");
}

#[test]
fn the_host_has_the_name_of_the_node() {
    is_found(Some(OPAQUE), &[("HOSTNAME", NODE)], "hostname");
}

#[test]
fn a_pod_has_the_address_of_the_host() {
    is_found(Some(OPAQUE), &[], "host-ip");
}

/// Without a service account, a pod of another namespace makes the name ambiguous, and one on another node has that of the host.
#[test]
fn pods_of_others_do_not_name_the_node() {
    let Some(cluster) = Cluster::new() else { return };
    let pod = cluster.pod("eni");
    for name in [OWN_POD, "host-a"] {
        cluster.api.apply(Resource::Pods, PodBuilder::new("team-b", name).node("node-b").host_ip("10.42.0.99").ip("10.42.9.9").build());
    }
    let setup = cluster.setup().argument("--iptables").argument(format!("--host-ip={NODE_IP}"));
    let setup = setup.argument(format!("--kubeconfig={}", cluster.without_service_account()));
    let daemon = setup.env("POD_NAME", OWN_POD).env("HOSTNAME", "host-a").start().unwrap();
    let found = daemon.wait_for_event("node-found").unwrap();
    assert_eq!((&found["node"], &found["by"]), (&Value::from(NODE), &Value::from("host-ip")), "{}", daemon.log());
    daemon.wait_ready(Some(cluster.bed.node.ns())).unwrap();
    cluster.bed.assert_served(&pod, METADATA);
}

/// Starts a daemon that must end with 1, and returns why.
fn ends(cluster: &Cluster, arguments: &[&str]) -> String {
    cluster.grant(Rbac::Kube2iam);
    let setup = arguments.iter().fold(cluster.setup(), |setup, argument| setup.argument(*argument));
    let mut daemon = setup.spawn().unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(1), "{}", daemon.log());
    daemon.events("fatal")[0]["error"].as_str().unwrap().to_owned()
}

#[test]
fn without_any_name_the_daemon_asks_for_one() {
    let Some(cluster) = Cluster::new() else { return };
    let pod = cluster.pod("eni");
    cluster.service_account(OPAQUE);
    let error = ends(&cluster, &["--iptables"]);
    assert!(error.contains("--node"), "{error}");
    cluster.bed.assert_refused(&pod);
}

/// It ends before it would have placed any rule.
#[test]
fn a_self_test_that_cannot_run_leaves_the_guard() {
    let Some(cluster) = Cluster::new() else { return };
    let pod = cluster.pod("cali");
    let error = ends(&cluster, &["--iptables", "--host-interface=cali+", "--self-test=on"]);
    assert!(error.contains("--self-test=on"), "{error}");
    cluster.bed.assert_refused(&pod);
}

#[test]
fn a_pod_outside_of_the_hosts_network_is_an_error() {
    for arguments in [&["--iptables"][..], &["--node=node-a"]] {
        let Some(cluster) = Cluster::new() else { return };
        cluster.own_pod(own_pod().host_network(false).ip("10.42.7.7"));
        let error = ends(&cluster, arguments);
        assert!(error.contains("hostNetwork: true"), "{error}");
    }
}

#[test]
fn the_name_of_another_node_is_an_error() {
    let Some(cluster) = Cluster::new() else { return };
    let error = ends(&cluster, &["--node=node-b"]);
    assert!(error.contains("node-b") && error.contains("node-a"), "{error}");
}

#[test]
fn a_node_without_pods_is_not_ready_and_its_liveness_fails_at_first() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.grant(Rbac::Kube2iam);
    cluster.service_account(OPAQUE);
    let setup = cluster.setup().argument("--node=node-z");
    let daemon = setup.start().unwrap();
    daemon.wait_for_event("no-pods-on-node").unwrap();
    let ns = cluster.bed.node.ns();
    let pending = || cluster.readiness(&daemon);
    cluster.eventually(&daemon, || pending() == "waiting for: a pod of this node in the Kubernetes API (check --node)\n");
    assert_eq!(cluster.probe(8181).unwrap(), 503, "{}", daemon.log());
    assert_eq!(daemon.get(Some(ns), "/healthz").unwrap().status, 200);
    cluster.api.apply(Resource::Pods, PodBuilder::new("team-a", "first").node("node-z").ip("10.42.9.9").build());
    daemon.wait_ready(Some(ns)).unwrap();
    cluster.eventually(&daemon, || cluster.probe(8181).unwrap() == 200);
    // Once ready, it stays alive.
    cluster.api.shutdown();
    assert_eq!(cluster.probe(8181).unwrap(), 200);
}

#[test]
fn after_its_grace_the_start_counts_as_alive() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.grant(Rbac::Kube2iam);
    cluster.service_account(OPAQUE);
    let setup = cluster.setup().argument("--node=node-z").argument("--startup-grace=0");
    let daemon = setup.start().unwrap();
    daemon.wait_for_event("no-pods-on-node").unwrap();
    assert_eq!(cluster.probe(8181).unwrap(), 200, "{}", daemon.log());
}

#[test]
fn rules_of_kube2iam_that_are_left_are_named() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.grant(Rbac::Kube2iam);
    let pod = cluster.pod("eni");
    let rule = "-d 169.254.169.254/32 -i eni+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.0.1:9999";
    cluster.bed.node.ns().sh(&format!("iptables -t nat -A PREROUTING {rule}")).unwrap();
    let daemon = cluster.setup().argument("--iptables").start().unwrap();
    let named = daemon.wait_for_event("legacy-rule").unwrap();
    assert_eq!(named["redirects_to"], "10.42.0.1:9999", "{named}");
    daemon.wait_ready(Some(cluster.bed.node.ns())).unwrap();
    cluster.bed.assert_served(&pod, METADATA);
}

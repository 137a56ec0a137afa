//! `rolegate check` on a node: the packet rules, what kube2iam left, other programs on the ports, and the self-test.

use rolegate_lab::node::{NODE_IP, find_program, skip};
use serde_json::Value;

use crate::bed::{Bed, ROUTED};

const LEFT: &str = "-A PREROUTING -d 169.254.169.254/32 -i veth+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.0.1:8181";

/// What the command says on the node, and its exit code.
fn check(bed: &Bed, by_way_of: &str) -> (i32, Vec<Value>) {
    let program = env!("CARGO_BIN_EXE_rolegate");
    let api = bed.api.url();
    // AWS is left out: without a region, nothing is asked.
    let output = bed.node.ns().sh(&format!(
        "env AWS_EC2_METADATA_DISABLED=true {by_way_of} {program} check --format=json --node=node-a --api-server={api} --redirect=iptables \
         --host-ip={NODE_IP} --app-port=8181 --token-key-file=/x && echo 0 || echo $?"
    ));
    let output = output.unwrap();
    let (json, code) = output.trim_end().rsplit_once('\n').unwrap();
    let report: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {output}"));
    (code.parse().unwrap(), report["checks"].as_array().unwrap().clone())
}

#[track_caller]
fn assert_is(checks: &[Value], name: &str, status: &str) -> String {
    let found = checks.iter().find(|check| check["section"] == "node" && check["check"] == name);
    let check = found.unwrap_or_else(|| panic!("no {name}: {checks:#?}"));
    assert_eq!(check["status"], status, "{check:#}");
    check["detail"].as_str().unwrap().to_owned()
}

#[test]
fn a_node_before_its_first_daemon_warns_and_names_leftovers() {
    let Some(bed) = Bed::new() else { return };
    bed.node.ns().sh(&format!("iptables -t nat {LEFT}")).unwrap();
    let (code, checks) = check(&bed, "");
    assert_eq!(code, 1, "there is no region");
    assert!(assert_is(&checks, "packet-rules", "warning").contains("THE NODE IS OPEN"));
    assert!(assert_is(&checks, "leftovers", "warning").contains("10.42.0.1:8181"));
    for name in ["capabilities", "host-ip", "app-port", "metrics-port"] {
        assert_is(&checks, name, "ok");
    }
    assert_is(&checks, "self-test", "skipped");
    assert_eq!(bed.metadata_requests(), 0);
    // Another program has the daemon's port.
    let _other = bed.node.ns().tcp_listener((NODE_IP, 8181).into()).unwrap();
    assert_is(&check(&bed, "").1, "app-port", "failed");
}

#[test]
fn a_node_that_is_served_passes_and_its_rules_outlive_the_daemon() {
    let Some(bed) = Bed::new() else { return };
    let setup = bed.setup_with_ip().argument("--app-port=8181").argument("--redirect-interval=1h").argument(ROUTED);
    let daemon = bed.start(&setup);
    // The daemon's own self-test keeps its interface.
    let before = bed.node.ns().sh("ip -o link").unwrap();
    let (_, checks) = check(&bed, "");
    for name in ["capabilities", "host-ip", "packet-rules", "leftovers", "self-test", "app-port"] {
        assert_is(&checks, name, "ok");
    }
    assert_eq!(bed.node.ns().sh("ip -o link").unwrap(), before, "the self-test leaves nothing");
    assert_eq!(bed.metadata_requests(), 0);
    drop(daemon);
    // The rules outlive the daemon.
    let rules = assert_is(&check(&bed, "").1, "packet-rules", "ok");
    assert!(rules.contains("no rolegate daemon runs"), "{rules}");
}

#[test]
fn missing_capabilities_are_named_in_a_pod() {
    let Some(bed) = Bed::new() else { return };
    if find_program("setpriv").is_none() {
        return skip("the program `setpriv` is not installed");
    }
    let without = "KUBERNETES_SERVICE_HOST=10.43.0.1 setpriv --bounding-set=-all --inh-caps=-all";
    let (code, checks) = check(&bed, without);
    assert_eq!(code, 1);
    assert!(assert_is(&checks, "capabilities", "failed").contains("NET_ADMIN"));
    assert_is(&checks, "packet-rules", "skipped");
}

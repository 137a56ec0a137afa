//! Tests of the source of the rules' target without `--host-ip`.

use rolegate_lab::kube::{KubeApi, Resource, Verb, node};
use rolegate_lab::node::{NODE_IP, NODE_IP6};
use rolegate_lab::sts::Sts;

use crate::bed::{Bed, METADATA, METADATA6, fetch};

#[test]
fn it_is_the_address_of_the_node_in_the_api() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    bed.api.apply(Resource::Nodes, node("node-a", &["fd00:42::1", "10.42.0.1"]));
    let daemon = bed.start(&bed.setup());
    let port = daemon.metadata_address().port();
    assert_eq!(bed.rules("iptables").targets, [format!("{NODE_IP}:{port}")]);
    assert_eq!(bed.rules("ip6tables").targets, [format!("[{NODE_IP6}]:{port}")]);
    bed.assert_served(&pod, METADATA);
    bed.assert_served(&pod, METADATA6);
}

/// On such a node, the field status.hostIP of a pod is an IPv6 address.
#[test]
fn an_ipv6_address_alone_does_not_leave_ipv4_open() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let setup = || bed.setup().argument(format!("--host-ip={NODE_IP6}"));
    bed.api.deny(Verb::Get, "nodes");
    // An address of the same interface, without the API.
    let daemon = bed.start(&setup());
    bed.assert_served(&pod, METADATA);
    bed.assert_served(&pod, METADATA6);
    drop(daemon);
    bed.api.allow(Verb::Get, "nodes");
    bed.api.apply(Resource::Nodes, node("node-a", &["fd00:42::1", "10.42.0.1"]));
    let _daemon = bed.start(&setup());
    bed.assert_served(&pod, METADATA);
    bed.assert_served(&pod, METADATA6);
}

#[test]
fn a_node_without_ipv4_addresses_serves_ipv6_alone() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    bed.node.ns().sh("ip -4 addr flush scope global").unwrap();
    let inside = bed.runtime().enter();
    let on_node = || bed.node.ns().tcp_listener((NODE_IP6, 0).into()).unwrap();
    let (api, sts) = (KubeApi::start(on_node()).unwrap(), Sts::start(on_node()).unwrap());
    drop(inside);
    sts.unknown_roles_allowed(true);
    api.apply(Resource::Pods, bed.api.get(Resource::Pods, Some("team-a"), "web").unwrap());
    api.apply(Resource::Nodes, node("node-a", &["fd00:42::1"]));
    let setup = bed.setup().argument(format!("--api-server={}", api.url())).env("AWS_ENDPOINT_URL_STS", sts.url());
    let daemon = bed.start(&setup);
    daemon.wait_for_event("ipv4-not-served").unwrap();
    assert_eq!((bed.rules("iptables").targets.len(), bed.rules("ip6tables").targets.len()), (0, 1));
    assert!(bed.node.ns().sh("iptables -S FORWARD").unwrap().contains("-j ROLEGATE-GUARD"));
    assert_eq!(fetch(&pod, METADATA6).unwrap().role, pod.role());
    assert_eq!(bed.metadata_requests_of(&pod), 0);
}

#[test]
fn it_is_that_of_the_interface_if_the_api_has_none() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let interface = pod.host_interface();
    bed.node.ns().sh(&format!("ip addr add 10.42.255.1/32 dev {interface}")).unwrap();
    bed.api.apply(Resource::Nodes, node("node-a", &["10.42.0.1"]));
    bed.api.deny(Verb::Get, "nodes");
    let daemon = bed.start(&bed.setup().argument(format!("--host-interface={interface}")));
    assert_eq!(bed.rules("iptables").targets, [format!("10.42.255.1:{}", daemon.metadata_address().port())]);
    bed.assert_served(&pod, METADATA);
}

/// The kernel drops packets for 127.0.0.1 that arrive from outside.
#[test]
fn it_is_never_a_loopback_address() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    bed.api.deny(Verb::Get, "nodes");
    let daemon = bed.start(&bed.setup().argument("--host-interface=lo,veth+"));
    let target = format!("{NODE_IP}:{}", daemon.metadata_address().port());
    assert_eq!(bed.rules("iptables").targets, [target.clone(), target]);
    bed.assert_served(&pod, METADATA);
}

#[test]
fn it_is_the_bound_address_if_there_is_one() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    bed.api.deny(Verb::Get, "nodes");
    let daemon = bed.start(&bed.setup().argument(format!("--metadata-bind-address={NODE_IP}")));
    assert_eq!(bed.rules("iptables").targets, [daemon.metadata_address().to_string()]);
    bed.assert_served(&pod, METADATA);
}

#[test]
fn without_any_source_the_daemon_reports_it_and_ends() {
    let Some(bed) = Bed::new() else { return };
    bed.api.deny(Verb::Get, "nodes");
    for setup in [bed.setup(), bed.setup().argument("--host-interface=veth+"), bed.setup().argument("--host-interface=missing0")] {
        let error = bed.start_in_vain(&setup);
        assert!(error.contains("403") && error.contains("To fix: give --host-ip"), "{error}");
    }
    assert_eq!(bed.rules("iptables").jumps(), 0);
}

//! Tests that a connection is served only to the pod that opened it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::NODE_ROLE_NAME;
use rolegate_lab::node::{NODE_IP, NODE_IP6, Netns, PodOptions};
use serde_json::Value;

use super::agent::{Answer, By, Connecting, Order};
use super::bed::{BpfBed, Client, Driver};
use crate::bed::{METADATA, METADATA6, PATIENCE};

/// The source port of connections that share one.
const PORT: u16 = 41_000;

/// Waits until the client is served, because the daemon may not know its pod yet.
#[track_caller]
fn wait_until_served(bed: &BpfBed, client: &Client) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = bed.packets();
        let answer = client.fetch(METADATA, By::Connect);
        bed.assert_closed_since(before, &client.role);
        if answer.is_ok() {
            return bed.assert_own_role(client, &answer, &client.role);
        }
        assert!(Instant::now() < deadline, "{answer:?}");
    }
}

/// Opens a connection to the daemon's own port, and checks that it gets nothing over it. Returns the client's address.
#[track_caller]
fn assert_direct_connection_gets_nothing(client: &Client, to: SocketAddr, by: By, from_port: Option<u16>) -> SocketAddr {
    let opened = client.ask(Order::Open(Connecting { from_port, ..Connecting::new(to, by) }));
    let Ok(Answer::Open { local }) = opened else { panic!("{}: {to}: {opened:?}", client.role) };
    let answer = client.ask(Order::FetchOnOpen);
    assert!(answer.is_err(), "{}: {to}: {answer:?}", client.role);
    client.ask(Order::Close).unwrap();
    local
}

/// Checks that the metadata service itself answers the client at both addresses.
#[track_caller]
fn assert_reaches_the_real_service(bed: &BpfBed, client: &Client) {
    for to in [METADATA, METADATA6] {
        let before = bed.packets().of_pods;
        let answer = client.fetch(to, By::Connect);
        assert!(matches!(&answer, Ok(Answer::Fetched { role, .. }) if role == NODE_ROLE_NAME), "{}: {answer:?}", client.role);
        assert!(bed.packets().of_pods > before);
    }
}

#[test]
fn a_direct_connection_gets_nothing() {
    let Some(bed) = BpfBed::new() else { return };
    let clients = [bed.client("web"), bed.host_network_client("agent"), bed.node_process()];
    let daemon = bed.start_bpf();
    let port = daemon.metadata_address().port();
    for client in &clients {
        for ip in [IpAddr::from(NODE_IP), NODE_IP6.into()] {
            assert_direct_connection_gets_nothing(client, SocketAddr::new(ip, port), By::Connect, None);
        }
        assert_direct_connection_gets_nothing(client, SocketAddr::new(NODE_IP.into(), port), By::Mapped, None);
    }
    let refused = daemon.metric(Some(bed.node.ns()), "rolegate_connections_refused_total{reason=\"not-redirected\"}").unwrap();
    assert!(refused >= 3.0, "{refused}");
}

#[test]
fn a_former_connections_record_identifies_no_direct_connection() {
    let Some(bed) = BpfBed::new() else { return };
    let (first, second) = (bed.host_network_client("first"), bed.host_network_client("second"));
    let daemon = bed.start_bpf();
    let direct = SocketAddr::new(NODE_IP.into(), daemon.metadata_address().port());
    for round in 0..20 {
        let answer = first.fetch_from_port(METADATA, PORT);
        bed.assert_own_role(&first, &answer, &format!("round {round}"));
        let local = assert_direct_connection_gets_nothing(&second, direct, By::Connect, Some(PORT));
        assert_eq!(local, SocketAddr::new(NODE_IP.into(), PORT), "not the same addresses");
    }
}

#[test]
fn a_deleted_pods_record_identifies_no_connection_of_its_successor() {
    let Some(bed) = BpfBed::new() else { return };
    let first = bed.client("first");
    let daemon = bed.start_bpf();
    let direct = SocketAddr::new(NODE_IP.into(), daemon.metadata_address().port());
    let answer = first.fetch_from_port(METADATA, PORT);
    bed.assert_own_role(&first, &answer, "the first pod");
    let ip = first.pod.as_ref().unwrap().ip;
    // It ends without closing its connection.
    first.open().unwrap();
    bed.delete(first);
    let second = bed.client_with("second", PodOptions { ip: Some(ip), ..PodOptions::default() });
    let local = assert_direct_connection_gets_nothing(&second, direct, By::Connect, Some(PORT));
    assert_eq!(local, SocketAddr::new(ip.into(), PORT), "not the same addresses");
    wait_until_served(&bed, &second);
    let answer = second.fetch_from_port(METADATA, PORT);
    bed.assert_own_role(&second, &answer, "the second pod");
}

#[test]
fn pods_that_use_the_same_port_in_turn_are_told_apart() {
    let Some(bed) = BpfBed::new() else { return };
    let pods = [bed.host_network_client("agent"), bed.host_network_client("exporter")];
    let _daemon = bed.start_bpf();
    for round in 0..50 {
        for pod in &pods {
            for to in [METADATA, METADATA6] {
                let answer = pod.fetch_from_port(to, PORT);
                bed.assert_own_role(pod, &answer, &format!("round {round}"));
            }
        }
    }
}

#[test]
fn pods_that_start_after_the_daemon_are_served() {
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        let Some(bed) = BpfBed::with_driver(driver) else { return };
        let _daemon = bed.start_bpf();
        wait_until_served(&bed, &bed.client("web"));
        wait_until_served(&bed, &bed.host_network_client("agent"));
    }
}

/// Containers may create control groups of their own in that of theirs.
#[test]
fn a_process_in_a_group_below_its_containers_is_served() {
    let Some(bed) = BpfBed::new() else { return };
    let host = bed.host_network_client("agent");
    let _daemon = bed.start_bpf();
    bed.below(&host, "init.scope/worker").take(host.pid()).unwrap();
    bed.assert_served_past_netfilter(&host, Connecting::new(METADATA, By::Connect));
    // More than the daemon reads of a pod.
    for number in 0..300 {
        bed.below(&host, &format!("group-{number}"));
    }
    bed.below(&host, "group-0/worker").take(host.pid()).unwrap();
    bed.assert_served_past_netfilter(&host, Connecting::new(METADATA, By::Connect));
}

#[test]
fn a_process_that_moves_to_another_pod_never_gets_that_pods_role_on_an_old_connection() {
    let Some(bed) = BpfBed::new() else { return };
    let (first, second) = (bed.host_network_client("first"), bed.host_network_client("second"));
    let _daemon = bed.start_bpf();
    first.open().unwrap();
    second.group.take(first.pid()).unwrap();
    // The socket belongs to the pod in which it was created.
    let before = bed.packets();
    let answer = first.ask(Order::FetchOnOpen);
    if answer.is_ok() {
        bed.assert_own_role(&first, &answer, "the old connection");
    }
    // A new one belongs to the pod in which the process is now.
    let answer = first.fetch(METADATA, By::Connect);
    bed.assert_own_role(&second, &answer, "a new connection");
    bed.assert_closed_since(before, "a process that moved");
}

/// A process of a pod may create a network of its own and give itself any address there.
#[test]
fn an_address_in_a_network_of_its_own_passes_a_pods_role_to_no_other_pod() {
    let Some(bed) = BpfBed::new() else { return };
    let (victim, attacker) = (bed.client("victim"), bed.client("attacker"));
    let daemon = bed.start_bpf();
    let network = Netns::new("of-the-attacker").unwrap();
    let ip = victim.pod.as_ref().unwrap().ip;
    network.sh(&format!("ip addr add {ip}/32 dev lo; ip route add default dev lo")).unwrap();
    let squatter = bed.process_elsewhere(&attacker, &network);
    let started = squatter.ask(&Order::Open(Connecting { from_port: Some(PORT), ..Connecting::new(METADATA, By::Start) })).unwrap();
    assert!(matches!(started, Answer::Open { local } if local == SocketAddr::new(ip.into(), PORT)), "{started:?}");
    // The attacker's connection has the addresses and ports of the victim's.
    let answer = victim.fetch_from_port(METADATA, PORT);
    bed.assert_own_role(&victim, &answer, "the victim");
    // It gets nothing in the victim's name either.
    let direct = SocketAddr::new(NODE_IP.into(), daemon.metadata_address().port());
    assert_direct_connection_gets_nothing(&victim, direct, By::Connect, Some(PORT));
    drop(squatter);
    for _ in 0..2 {
        let answer = victim.fetch_from_port(METADATA, PORT);
        bed.assert_own_role(&victim, &answer, "the victim afterwards");
    }
}

/// A process in the node's network may give its socket the address of any pod.
#[test]
fn a_pods_address_in_the_nodes_network_passes_a_role_to_no_other_pod() {
    let Some(bed) = BpfBed::new() else { return };
    let (victim, attacker) = (bed.client("victim"), bed.host_network_client("attacker"));
    let _daemon = bed.start_bpf();
    bed.assert_served_past_netfilter(&attacker, Connecting::new(METADATA, By::Connect));
    let ip = victim.pod.as_ref().unwrap().ip;
    let squat = Connecting { from_port: Some(PORT), from_ip: Some(ip), ..Connecting::new(METADATA, By::Start) };
    let started = attacker.ask(Order::Open(squat)).unwrap();
    assert!(matches!(started, Answer::Open { local } if local == SocketAddr::new(ip.into(), PORT)), "{started:?}");
    // The daemon's answer to the attacker reaches the victim, which ends that connection.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = victim.fetch_from_port(METADATA, PORT);
        if answer.is_ok() {
            return bed.assert_own_role(&victim, &answer, "the victim");
        }
        assert!(Instant::now() < deadline, "{answer:?}");
    }
}

#[test]
fn static_pods_are_exempt_unless_configured_otherwise() {
    let Some(bed) = BpfBed::new() else { return };
    let pod = bed.static_client("kube-controller");
    let daemon = bed.start_bpf();
    assert_reaches_the_real_service(&bed, &pod);
    drop(daemon);
    bed.allow_netfilter_rules();
    let _daemon = bed.start_with(&bed.setup_bpf().argument("--host-network-exempt=team-b/other"));
    for to in [METADATA, METADATA6] {
        bed.assert_served_past_netfilter(&pod, Connecting::new(to, By::Connect));
    }
}

/// The kubelet has started it, and the API does not know it.
#[test]
fn a_pod_that_is_not_known_gets_nothing() {
    let Some(bed) = BpfBed::new() else { return };
    let ghost = bed.unknown_host_network_client();
    let _daemon = bed.start_bpf();
    let before = bed.packets();
    for to in [METADATA, METADATA6] {
        let answer = ghost.fetch(to, By::Connect);
        assert!(answer.is_err(), "{answer:?}");
    }
    bed.assert_closed_since(before, "a pod that is not known");
}

#[test]
fn a_deleted_pod_of_the_nodes_network_gets_nothing() {
    let Some(bed) = BpfBed::new() else { return };
    let pod = bed.host_network_client("agent");
    let _daemon = bed.start_bpf();
    bed.assert_served_past_netfilter(&pod, Connecting::new(METADATA, By::Connect));
    bed.forget(&pod);
    let deadline = Instant::now() + PATIENCE;
    let before = bed.packets();
    while pod.fetch(METADATA, By::Connect).is_ok() {
        assert!(Instant::now() < deadline, "it is still served");
    }
    bed.assert_closed_since(before, "a deleted pod");
}

#[test]
fn pods_of_the_nodes_network_are_denied_if_configured() {
    let Some(bed) = BpfBed::new() else { return };
    let (pod, web) = (bed.host_network_client("agent"), bed.client("web"));
    let _daemon = bed.start_with(&bed.setup_bpf().argument("--host-network-pods=deny"));
    let before = bed.packets();
    for to in [METADATA, METADATA6] {
        let answer = pod.fetch(to, By::Connect);
        assert!(answer.is_err(), "{answer:?}");
    }
    bed.assert_closed_since(before, "a pod that is denied");
    bed.assert_served_past_netfilter(&web, Connecting::new(METADATA, By::Connect));
}

#[test]
fn pods_of_the_nodes_network_keep_the_real_service_if_configured() {
    let Some(bed) = BpfBed::new() else { return };
    let exempt = bed.host_network_client_without_role("cni", "aws-node");
    let (served, web) = (bed.host_network_client("agent"), bed.client("web"));
    let daemon = bed.start_with(&bed.setup_bpf().argument("--host-network-exempt=team-a/aws-node"));
    assert_reaches_the_real_service(&bed, &exempt);
    // Where it enters the network of a pod, it is treated like any pod.
    let elsewhere = bed.process_elsewhere(&exempt, web.pod.as_ref().unwrap());
    let before = bed.packets();
    for to in [METADATA, METADATA6] {
        let answer = elsewhere.ask(&Order::Fetch(Connecting::new(to, By::Connect)));
        assert!(answer.is_err(), "{answer:?}");
        let _ = elsewhere.ask(&Order::Datagram { to, mapped: false });
    }
    bed.assert_closed_since(before, "an exempt pod's process in a pod's network");
    for client in [&served, &web] {
        bed.assert_served_past_netfilter(client, Connecting::new(METADATA, By::Connect));
    }
    drop(daemon);
    bed.allow_netfilter_rules();
    let _daemon = bed.start_with(&bed.setup_bpf().argument("--host-network-pods=ignore"));
    assert_reaches_the_real_service(&bed, &served);
    bed.assert_served_past_netfilter(&web, Connecting::new(METADATA, By::Connect));
}

/// Returns the findings of the report about pods that use the node's role: their names, subjects and counts.
fn uses_of_node_role(bed: &BpfBed, daemon: &Daemon) -> Vec<(String, String, u64)> {
    let answer = daemon.get(Some(bed.node.ns()), "/report?format=json").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let report: Value = serde_json::from_str(&answer.text()).unwrap();
    let mut found = Vec::new();
    for workload in report["workloads"].as_array().unwrap() {
        for finding in workload["findings"].as_array().unwrap().iter().filter(|finding| finding["reason"] == "uses-node-role") {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            found.push((text(&workload["name"]), text(&finding["subject"]), finding["count"].as_u64().unwrap()));
        }
    }
    found
}

#[test]
fn the_report_names_the_pods_that_use_the_nodes_role() {
    let Some(bed) = BpfBed::new() else { return };
    let user = bed.host_network_client_without_role("exporter", "exporter");
    let exempt = bed.host_network_client_without_role("cni", "aws-node");
    // It connects to nothing.
    let _idle = bed.host_network_client("idle");
    let web = bed.client("web");
    let arguments = ["--host-network-pods=ignore", "--host-network-exempt=team-a/aws-node", "--migrate"];
    let setup = arguments.into_iter().fold(bed.setup_bpf(), Setup::argument);
    let wait_for = |daemon: &Daemon, count: u64| {
        let (wanted, deadline) = ([("exporter".to_owned(), "team-a/exporter".to_owned(), count)], Instant::now() + PATIENCE);
        loop {
            let found = uses_of_node_role(&bed, daemon);
            if found == wanted {
                return;
            }
            assert!(found.iter().all(|(name, _, so_far)| name == "exporter" && *so_far < count), "{found:?}");
            assert!(Instant::now() < deadline, "{found:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let daemon = bed.start_with(&setup);
    assert_eq!(uses_of_node_role(&bed, &daemon), [], "before any pod connects");
    // What would be counted wrongly is counted before what is waited for.
    bed.assert_served_past_netfilter(&web, Connecting::new(METADATA, By::Connect));
    let elsewhere = bed.process_elsewhere(&user, web.pod.as_ref().unwrap());
    let _ = elsewhere.ask(&Order::Fetch(Connecting::new(METADATA, By::Connect)));
    assert_reaches_the_real_service(&bed, &exempt);
    // One connection to each address.
    assert_reaches_the_real_service(&bed, &user);
    wait_for(&daemon, 2);
    assert_reaches_the_real_service(&bed, &user);
    wait_for(&daemon, 4);
    drop(daemon);
    bed.allow_netfilter_rules();
    let daemon = bed.start_with(&setup);
    wait_for(&daemon, 4);
}

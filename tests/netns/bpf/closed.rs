//! Tests that nothing of a pod reaches the metadata service, whatever it sends and whether or not the daemon runs.

use std::time::Instant;

use rolegate_lab::imds::NODE_ROLE_NAME;
use rolegate_lab::node::{find_program, programs_or_skip};

use super::agent::{Answer, By, Connecting, Order};
use super::attacks::{Attack, DROP_TIMEOUT, all, assert_closed, assert_kind, assert_served_and_closed};
use super::bed::{BpfBed, Client};
use crate::bed::{METADATA, METADATA6, PATIENCE};

/// Shows that the other tests of this module can fail.
#[test]
fn without_ebpf_programs_everything_gets_past_the_netfilter_rules() {
    let Some(bed) = BpfBed::new() else { return };
    let Some(uring) = bed.compile("uring") else { return };
    let (pod, host) = (bed.client("web"), bed.host_network_client("agent"));
    let _daemon = bed.start(&bed.setup_nftables());
    let rules = bed.netfilter_rules();
    assert!(rules.contains("table inet rolegate") && rules.contains("chain guard"), "{rules}");
    for client in [&pod, &host] {
        for Attack { name, order, is_request } in all(client, &uring) {
            let before = bed.packets();
            let answer = client.ask(order);
            if is_request {
                let Ok(Answer::Fetched { role, .. }) = &answer else { panic!("{name}: {answer:?}") };
                assert_eq!(role, NODE_ROLE_NAME, "{name}");
            }
            let deadline = Instant::now() + PATIENCE;
            while bed.packets().of_pods == before.of_pods {
                assert!(Instant::now() < deadline, "{}: {name}: no packet arrived: {answer:?}", client.role);
            }
        }
    }
    assert_eq!(bed.netfilter_rules(), rules);
}

#[test]
fn a_pod_gets_its_role_and_no_packet_gets_through() {
    let Some(bed) = BpfBed::new() else { return };
    let Some(uring) = bed.compile("uring") else { return };
    let pods = [bed.client("web"), bed.client("worker")];
    let _daemon = bed.start_bpf();
    for pod in &pods {
        assert_served_and_closed(&bed, pod, &uring);
    }
}

#[test]
fn two_pods_of_the_nodes_network_get_their_roles_and_no_packet_gets_through() {
    let Some(bed) = BpfBed::new() else { return };
    let Some(uring) = bed.compile("uring") else { return };
    let pods = [bed.host_network_client("agent"), bed.host_network_client("exporter")];
    let _daemon = bed.start_bpf();
    for pod in &pods {
        assert_served_and_closed(&bed, pod, &uring);
    }
    for _ in 0..20 {
        for pod in &pods {
            for to in [METADATA, METADATA6] {
                bed.assert_served_past_netfilter(pod, Connecting::new(to, By::Connect));
            }
        }
    }
}

#[test]
fn a_process_of_the_node_is_untouched() {
    let Some(bed) = BpfBed::new() else { return };
    let Some(uring) = bed.compile("uring") else { return };
    let process = bed.node_process();
    let _daemon = bed.start_bpf();
    for Attack { name, order, is_request } in all(&process, &uring) {
        let (before, is_frame) = (bed.packets(), matches!(order, Order::Frame(_)));
        let answer = process.ask(order);
        if is_frame {
            // Frames of the tap device of a pod's virtual machine look the same.
            assert_eq!(bed.packets(), before, "{name}");
            continue;
        }
        if is_request {
            let Ok(Answer::Fetched { role, .. }) = &answer else { panic!("{name}: {answer:?}") };
            assert_eq!(role, NODE_ROLE_NAME, "{name}");
        }
        let deadline = Instant::now() + PATIENCE;
        while bed.packets().of_node_processes == before.of_node_processes {
            assert!(Instant::now() < deadline, "{name}: no packet arrived: {answer:?}");
        }
    }
}

#[test]
fn a_connection_older_than_the_programs_reaches_the_service_no_more() {
    let Some(bed) = BpfBed::new() else { return };
    let clients = [bed.client("web"), bed.host_network_client("agent")];
    let process = bed.node_process();
    for client in clients.iter().chain([&process]) {
        client.open().unwrap();
    }
    assert!(matches!(clients[0].ask(Order::FetchOnOpen), Ok(Answer::Fetched { role, .. }) if role == NODE_ROLE_NAME));
    let _daemon = bed.start_bpf();
    for client in &clients {
        let before = bed.packets();
        let answer = client.ask(Order::FetchOnOpen);
        assert!(answer.is_err(), "{}: {answer:?}", client.role);
        bed.assert_closed_since(before, &client.role);
        client.ask(Order::Close).unwrap();
        bed.assert_closed_since(before, &client.role);
        bed.assert_served_past_netfilter(client, Connecting::new(METADATA, By::Connect));
    }
    let answer = process.ask(Order::FetchOnOpen);
    assert!(matches!(&answer, Ok(Answer::Fetched { role, .. }) if role == NODE_ROLE_NAME), "{answer:?}");
}

#[test]
fn nothing_opens_when_the_daemon_is_killed() {
    let Some(bed) = BpfBed::new() else { return };
    let Some(uring) = bed.compile("uring") else { return };
    let clients = [bed.client("web"), bed.host_network_client("agent")];
    let daemon = bed.start_bpf();
    for client in &clients {
        bed.assert_served_past_netfilter(client, Connecting::new(METADATA, By::Connect));
    }
    // Sends SIGKILL.
    drop(daemon);
    for client in &clients {
        assert_closed(&bed, client, &uring);
        for by in [By::Connect, By::Mapped] {
            assert_kind(&client.fetch(METADATA, by), "ConnectionRefused");
        }
        assert_kind(&client.fetch(METADATA6, By::Connect), "ConnectionRefused");
    }
    // A pod that starts while no daemon runs.
    let late = bed.client("late");
    assert_closed(&bed, &late, &uring);
}

/// The programs are replaced without a moment in which a pod is not subject to any.
#[test]
fn nothing_opens_while_daemons_are_killed_and_started() {
    let Some(bed) = BpfBed::new() else { return };
    let clients = [bed.client("web"), bed.host_network_client("agent")];
    let mut daemon = bed.start_bpf();
    let before = bed.packets();
    for _ in 0..3 {
        bed.allow_netfilter_rules();
        let setup = bed.setup_bpf();
        daemon = std::thread::scope(|scope| {
            let started = scope.spawn(move || {
                // Sends SIGKILL.
                drop(daemon);
                setup.start().unwrap()
            });
            let deadline = Instant::now() + 2 * PATIENCE;
            loop {
                let is_started = started.is_finished();
                // Refused or served. What matters is whether the metadata service sees a packet.
                let answers = clients.each_ref().map(|client| {
                    let answers = [METADATA, METADATA6].map(|to| {
                        let _ = client.ask(Order::Datagram { to, mapped: false });
                        client.fetch(to, By::Connect)
                    });
                    answers.iter().all(Result::is_ok)
                });
                // The rules that the new daemon installs must not help.
                bed.node.ns().sh("nft flush ruleset").unwrap();
                if is_started && answers == [true, true] {
                    return started.join().unwrap();
                }
                assert!(Instant::now() < deadline, "the next daemon never served both");
            }
        });
        bed.remove_netfilter_rules();
        bed.assert_closed_since(before, "while a daemon started");
        for client in &clients {
            bed.assert_served_past_netfilter(client, Connecting::new(METADATA, By::Connect));
        }
    }
}

/// Tries options of sockets with which frames are sent past the exit guard, and one that has nothing to do with it.
const BYPASS: &str = "
import socket, struct
options = {'packet': (socket.socket(socket.AF_PACKET, socket.SOCK_RAW), 263, 20, struct.pack('i', 1))}
try:
    # XDP_UMEM_FILL_RING
    options['xdp'] = (socket.socket(44, socket.SOCK_RAW), 283, 5, struct.pack('i', 64))
except OSError:
    pass
options['long'] = (socket.socket(), socket.SOL_SOCKET, socket.SO_RCVBUF, struct.pack('i', 65536) + bytes(8188))
denied = []
for name, (socket, level, option, value) in options.items():
    try:
        socket.setsockopt(level, option, value)
    except PermissionError:
        denied.append(name)
    except OSError:
        pass
print(sorted(options) == sorted(denied + ['long']), denied)
";

#[test]
fn no_frame_is_sent_past_the_exit_guard() {
    let Some(bed) = BpfBed::new() else { return };
    if !programs_or_skip(&["python3"]) {
        return;
    }
    let (pod, host, process) = (bed.client("web"), bed.host_network_client("agent"), bed.node_process());
    let try_options = |client: &Client| {
        let ns = client.pod.as_ref().map_or(bed.node.ns(), |pod| pod);
        let output = client.group.command(ns, find_program("python3").unwrap()).args(["-c", BYPASS]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(try_options(&host), "False []\n", "before");
    let daemon = bed.start_bpf();
    assert!(try_options(&host).starts_with("True "), "{}", try_options(&host));
    for client in [&pod, &process] {
        assert_eq!(try_options(client), "False []\n", "{}", client.role);
    }
    drop(daemon);
    assert!(try_options(&host).starts_with("True "), "{}", try_options(&host));
}

/// A container runtime opens connections in a pod's network, for `kubectl port-forward`, and the pod may send them elsewhere.
#[test]
fn a_process_of_the_node_in_a_pods_network_reaches_nothing() {
    let Some(bed) = BpfBed::new() else { return };
    let (pod, process) = (bed.client("web"), bed.node_process());
    let runtime = bed.process_elsewhere(&process, pod.pod.as_ref().unwrap());
    let open = Order::Open(Connecting { patience: DROP_TIMEOUT, ..Connecting::new(METADATA, By::Connect) });
    let before = bed.packets();
    assert!(runtime.ask(&open).is_ok(), "without programs");
    assert!(bed.packets().of_pods > before.of_pods);
    runtime.ask(&Order::Close).unwrap();
    let _daemon = bed.start_bpf();
    let before = bed.packets();
    assert!(runtime.ask(&open).is_err());
    runtime.ask(&Order::Datagram { to: METADATA, mapped: false }).unwrap();
    bed.assert_closed_since(before, "a process of the node in a pod's network");
}

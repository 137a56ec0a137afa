//! Tests beside the programs of others, such as a network plugin's load balancer at the root of the control groups.

use std::net::SocketAddr;
use std::process::Command;

use rolegate_lab::node::{Cgroup, NODE_IP, NODE_IP6};

use super::agent::{By, Connecting, Order};
use super::attacks::{DROP_TIMEOUT, assert_closed, assert_kind, assert_served_and_closed};
use super::bed::{BpfBed, Client};
use crate::bed::{METADATA, METADATA6};

/// The port that the programs refuse, so that a test sees that they run.
const REFUSED: u16 = 9999;

fn attach(deny: &str, group: &Cgroup, port: u16, preorder: bool) {
    attach_with(deny, group, port, if preorder { &["preorder"] } else { &[] });
}

fn attach_with(deny: &str, group: &Cgroup, port: u16, mode: &[&str]) {
    for family in ["connect4", "connect6"] {
        let mut command = Command::new(deny);
        command.arg(group.path()).args([family, &port.to_string()]).args(mode);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[track_caller]
fn assert_refused(client: &Client, port: u16) {
    for ip in [NODE_IP.into(), NODE_IP6.into()] {
        let answer = client.ask(Order::Open(Connecting::new(SocketAddr::new(ip, port), By::Connect)));
        assert_kind(&answer, "PermissionDenied");
    }
}

#[test]
fn programs_of_others_run_before_and_after_ours() {
    let Some(bed) = BpfBed::new() else { return };
    let (Some(uring), Some(deny)) = (bed.compile("uring"), bed.compile("deny")) else { return };
    let clients = [bed.client("web"), bed.host_network_client("agent")];
    attach(&deny, &bed.root(), REFUSED, false);
    attach(&deny, &bed.kubepods(), REFUSED + 1, false);
    let daemon = bed.start_bpf();
    attach(&deny, &bed.root(), REFUSED + 2, true);
    attach(&deny, &bed.kubepods(), REFUSED + 3, false);
    attach(&deny, &clients[1].group, REFUSED + 4, false);
    for client in &clients {
        for port in REFUSED..REFUSED + 4 {
            assert_refused(client, port);
        }
        assert_served_and_closed(&bed, client, &uring);
    }
    assert_refused(&clients[1], REFUSED + 4);
    drop(daemon);
    for client in &clients {
        assert_closed(&bed, client, &uring);
        assert_refused(client, REFUSED);
    }
}

/// A load balancer with a service at the daemon's address and port, for example.
#[test]
fn a_connection_that_another_program_sends_elsewhere_is_dropped() {
    let Some(bed) = BpfBed::new() else { return };
    let Some(deny) = bed.compile("deny") else { return };
    let clients = [bed.client("web"), bed.host_network_client("agent")];
    let daemon = bed.start_bpf();
    let port = daemon.metadata_address().port();
    // Nobody listens there: what arrives is refused.
    attach_with(&deny, &bed.root(), port, &["divert", &REFUSED.to_string()]);
    for client in &clients {
        for to in [METADATA, METADATA6] {
            let connecting = Connecting { patience: DROP_TIMEOUT, ..Connecting::new(to, By::Connect) };
            let answer = client.ask(Order::Open(connecting));
            assert!(matches!(&answer, Err(failure) if failure.kind != "ConnectionRefused"), "{}: {answer:?}", client.role);
        }
        let direct = client.ask(Order::Open(Connecting::new(SocketAddr::new(NODE_IP.into(), port), By::Connect)));
        assert_kind(&direct, "ConnectionRefused");
    }
}

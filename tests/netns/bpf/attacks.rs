//! Every way in which a process sends something to the metadata service.

use std::net::SocketAddr;
use std::time::Duration;

use rolegate_lab::node::NODE_IP;

use super::agent::{Answer, By, Connecting, Failure, Order};
use super::bed::{BpfBed, Client};
use super::packets::Frame;
use crate::bed::{METADATA, METADATA6};

/// How long a connection that may be dropped is attempted.
pub(super) const DROP_TIMEOUT: Duration = Duration::from_millis(300);

/// One way.
#[derive(Debug)]
pub(super) struct Attack {
    pub(super) name: String,
    pub(super) order: Order,
    /// Whether it is a request for credentials from the metadata address, which rolegate answers.
    pub(super) is_request: bool,
}

/// Returns all ways of this client. `uring` is the program with which it connects.
pub(super) fn all(client: &Client, uring: &str) -> Vec<Attack> {
    let mut attacks = Vec::new();
    let mut add = |name: String, order: Order, is_request: bool| attacks.push(Attack { name, order, is_request });
    for to in [METADATA, METADATA6] {
        for by in [By::Connect, By::FastOpen, By::FastOpenSend] {
            add(format!("{by:?} to {to}"), Order::Fetch(Connecting::new(to, by)), true);
        }
        for mode in ["inline", "worker", "poller"] {
            let by = By::Uring { program: uring.to_owned(), mode: mode.to_owned() };
            add(format!("io_uring, {mode}, to {to}"), Order::Fetch(Connecting::new(to, by)), true);
        }
    }
    add("mapped address".to_owned(), Order::Fetch(Connecting::new(METADATA, By::Mapped)), true);

    for ip in [METADATA.ip(), METADATA6.ip()] {
        for port in [443, 8080, 1338] {
            let to = SocketAddr::new(ip, port);
            let open = Connecting { patience: DROP_TIMEOUT, ..Connecting::new(to, By::Connect) };
            add(format!("TCP to {to}"), Order::Open(open), false);
        }
        for port in [53, 80, 123] {
            let to = SocketAddr::new(ip, port);
            add(format!("UDP to {to}"), Order::Datagram { to, mapped: false }, false);
        }
        add(format!("ICMP to {ip}"), Order::Echo { to: SocketAddr::new(ip, 0) }, false);
        let (next_hop, interface) = client.next_hop();
        let to = SocketAddr::new(ip, METADATA.port());
        let frame = Frame { interface: interface.to_owned(), next_hop, from: client.address(ip.is_ipv4()), to };
        add(format!("frame to {to}"), Order::Frame(frame), false);
    }
    for port in [80, 443] {
        let to = SocketAddr::new(METADATA.ip(), port);
        let open = Connecting { patience: DROP_TIMEOUT, ..Connecting::new(to, By::Mapped) };
        add(format!("UDP to the mapped address, port {port}"), Order::Datagram { to, mapped: true }, false);
        if port != METADATA.port() {
            add(format!("TCP to the mapped address, port {port}"), Order::Open(open), false);
        }
    }
    let to = SocketAddr::new(METADATA.ip(), 53);
    add("raw datagram in the node's name".to_owned(), Order::Forged { from: NODE_IP, to }, false);
    attacks
}

/// Tries everything. No packet reaches the metadata service. Each request for credentials is answered with the client's own role.
#[track_caller]
pub(super) fn assert_served_and_closed(bed: &BpfBed, client: &Client, uring: &str) {
    for Attack { name, order, is_request } in all(client, uring) {
        let before = bed.packets();
        let answer = client.ask(order);
        if is_request {
            bed.assert_own_role(client, &answer, &name);
        } else {
            assert!(!matches!(answer, Ok(Answer::Open { .. })), "{name}: {answer:?}");
        }
        bed.assert_closed_since(before, &format!("{}: {name}", client.role));
    }
}

/// Tries everything. No packet reaches the metadata service, and no request is answered.
#[track_caller]
pub(super) fn assert_closed(bed: &BpfBed, client: &Client, uring: &str) {
    for Attack { name, order, .. } in all(client, uring) {
        let before = bed.packets();
        let answer = client.ask(order);
        assert!(!matches!(answer, Ok(Answer::Open { .. } | Answer::Fetched { .. })), "{name}: {answer:?}");
        bed.assert_closed_since(before, &format!("{}: {name}", client.role));
    }
}

/// Checks that the connection was refused.
#[track_caller]
pub(super) fn assert_kind(answer: &Result<Answer, Failure>, kind: &str) {
    assert!(matches!(answer, Err(failure) if failure.kind == kind), "{answer:?}");
}

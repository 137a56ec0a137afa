//! Tests beside a program at the root of the control groups that sends connections to the metadata address to the daemon, as Cilium
//! does for a CiliumLocalRedirectPolicy (`docs/cni.md`). The packets of pods pass no netfilter hook.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rolegate_lab::imds::NODE_ROLE_NAME;
use rolegate_lab::node::NODE_IP;

use super::agent::{Answer, By, Connecting, Order};
use super::attacks::DROP_TIMEOUT;
use super::bed::{BpfBed, Client};
use crate::bed::{METADATA, PATIENCE};

/// A policy with a backend. When it is dropped, the policy has none.
struct LocalRedirect {
    holder: Child,
}

impl LocalRedirect {
    /// Sends the node's connections to this port of the node. Returns `None` and reports why if there is no compiler.
    fn new(bed: &BpfBed, port: u16) -> Option<LocalRedirect> {
        let mut command = Command::new(bed.compile("local_redirect")?);
        command.arg(bed.root().path()).args([NODE_IP.to_string(), port.to_string()]);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "attached\n", "{:?}", holder.wait());
        Some(LocalRedirect { holder })
    }
}

impl Drop for LocalRedirect {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn connect() -> Connecting {
    Connecting { patience: DROP_TIMEOUT, ..Connecting::new(METADATA, By::Connect) }
}

/// Checks that the client gets its own role, and that none of its packets reaches the metadata service.
#[track_caller]
fn assert_served(bed: &BpfBed, client: &Client) {
    let before = bed.packets();
    let answer = client.fetch(METADATA, By::Connect);
    bed.assert_own_role(client, &answer, &client.role);
    assert_eq!(bed.packets(), before, "{}", client.role);
}

/// Checks that a process of the node gets no credentials, and that its request does not reach the metadata service.
#[track_caller]
fn assert_node_is_cut_off(bed: &BpfBed, process: &Client) {
    let before = bed.packets();
    let answer = process.fetch(METADATA, By::Connect);
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(bed.packets(), before);
}

/// Waits until the client gets the node's role from the metadata service.
#[track_caller]
fn wait_until_open(client: &Client) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = client.fetch(METADATA, By::Connect);
        if matches!(&answer, Ok(Answer::Fetched { role, .. }) if role == NODE_ROLE_NAME) {
            return;
        }
        assert!(Instant::now() < deadline, "{}: {answer:?}", client.role);
    }
}

#[test]
fn pods_are_served_with_direct_connections_and_reach_the_service_without_a_backend() {
    let Some(bed) = BpfBed::new() else { return };
    let (pods, process) = ([bed.client("web"), bed.client("worker")], bed.node_process());
    let daemon = bed.start(&bed.setup_nftables().argument("--accept-direct-connections"));
    wait_until_open(&process);
    let Some(redirect) = LocalRedirect::new(&bed, daemon.metadata_address().port()) else { return };
    for pod in &pods {
        assert_served(&bed, pod);
        // The policy is for one port of TCP. Nothing else is redirected, and nothing is dropped.
        let before = bed.packets();
        pod.ask(Order::Datagram { to: METADATA, mapped: false }).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while bed.packets().of_pods == before.of_pods {
            assert!(Instant::now() < deadline, "{}: no packet arrived", pod.role);
        }
    }
    assert_node_is_cut_off(&bed, &process);
    // The daemon and its packet rules are still there.
    drop(redirect);
    for client in pods.iter().chain([&process]) {
        wait_until_open(client);
    }
}

#[test]
fn without_direct_connections_no_pod_is_served() {
    let Some(bed) = BpfBed::new() else { return };
    let pod = bed.client("web");
    let daemon = bed.start(&bed.setup_nftables());
    let Some(_redirect) = LocalRedirect::new(&bed, daemon.metadata_address().port()) else { return };
    let before = bed.packets();
    // The rule `direct` drops the connection.
    let answer = pod.ask(Order::Open(connect()));
    assert!(answer.is_err(), "{answer:?}");
    bed.remove_netfilter_rules();
    // The daemon does not rely on the rule: it closes the connection.
    let answer = pod.fetch(METADATA, By::Connect);
    assert!(answer.is_err(), "{answer:?}");
    let refused = daemon.metric(Some(bed.node.ns()), "rolegate_connections_refused_total{reason=\"not-redirected\"}").unwrap();
    assert!(refused > 0.5, "{refused}");
    bed.assert_closed_since(before, "without direct connections");
}

#[test]
fn the_daemons_programs_come_first_and_close_what_the_policy_leaves_open() {
    let Some(bed) = BpfBed::new() else { return };
    let (pod, host, process) = (bed.client("web"), bed.host_network_client("agent"), bed.node_process());
    let daemon = bed.start_bpf();
    let Some(redirect) = LocalRedirect::new(&bed, daemon.metadata_address().port()) else { return };
    for client in [&pod, &host] {
        bed.assert_served_past_netfilter(client, Connecting::new(METADATA, By::Connect));
    }
    assert_node_is_cut_off(&bed, &process);
    drop(redirect);
    for client in [&pod, &host] {
        bed.assert_served_past_netfilter(client, Connecting::new(METADATA, By::Connect));
    }
    wait_until_open(&process);
}

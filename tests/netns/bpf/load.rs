//! Tests of `--redirect=bpf` with many connections.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};

use super::agent::{Answer, Order};
use super::bed::{BpfBed, Client};
use crate::bed::PATIENCE;

/// The number of requests of a hand-over.
const REQUESTS: usize = 20_000;
/// The number of short connections.
const CONNECTIONS: usize = 10_000;
/// The time limit of a whole load.
const TIMEOUT: Duration = Duration::from_secs(120);

fn clients(bed: &BpfBed) -> [Client; 4] {
    [bed.client("web"), bed.client("worker"), bed.host_network_client("agent"), bed.host_network_client("exporter")]
}

fn start(clients: &[Client], new: usize, kept: usize) {
    for client in clients {
        client.ask(Order::StartLoad { role: client.role.clone(), new, kept }).unwrap();
    }
}

fn counts(clients: &[Client]) -> Vec<usize> {
    let count = |client: &Client| match client.ask(Order::CountLoad) {
        Ok(Answer::Answered(count)) => count,
        other => panic!("{other:?}"),
    };
    clients.iter().map(count).collect()
}

/// Waits until each client has this many more answers.
fn wait_for_more(clients: &[Client], more: usize, daemon: &Daemon) {
    let before = counts(clients);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let now = counts(clients);
        if now.iter().zip(&before).all(|(now, before)| *now >= before + more) {
            return;
        }
        assert!(Instant::now() < deadline, "from {before:?} to {now:?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends the load: nothing failed, and STS issued every key for the role of the client that got it. Returns the number of answers.
#[track_caller]
fn finish(bed: &BpfBed, clients: &[Client]) -> usize {
    let mut all = 0;
    for client in clients {
        let Ok(Answer::Load { answered, failed, failures, keys }) = client.ask(Order::FinishLoad) else { panic!("no outcome") };
        assert_eq!((failed, failures.as_slice()), (0, &[][..]), "{}: {failures:#?}", client.role);
        for (key, role) in &keys {
            bed.assert_issued(key, role);
        }
        let roles: BTreeSet<&str> = keys.iter().map(|(_, role)| role.as_str()).collect();
        assert_eq!(roles, BTreeSet::from([client.role.as_str()]));
        all += answered;
    }
    all
}

#[test]
fn ten_thousand_short_connections_are_identified() {
    let Some(bed) = BpfBed::new() else { return };
    let clients = clients(&bed);
    let daemon = bed.start_bpf();
    let before = bed.packets();
    start(&clients, 2, 0);
    wait_for_more(&clients, CONNECTIONS / clients.len(), &daemon);
    let answered = finish(&bed, &clients);
    assert!(answered >= CONNECTIONS, "{answered}");
    bed.assert_closed_since(before, "short connections");
}

/// A daemon that shares its port with the next one.
fn generation(bed: &BpfBed, number: u32) -> (Setup, String) {
    let probe = bed.file(&format!("probe-{number}")).display().to_string();
    let setup = bed
        .setup_bpf()
        .argument("--app-port=8181")
        .argument("--metrics-port=9543")
        .argument(format!("--handover-socket={}", bed.file("handover").display()))
        .argument(format!("--token-key-file={}", bed.file("keys").display()))
        .argument(format!("--probe-socket={probe}"));
    (setup, probe)
}

fn wait_until_ready(probe: &str, daemon: &Daemon) {
    let deadline = Instant::now() + PATIENCE;
    let ask =
        || Command::new(Path::new(env!("CARGO_BIN_EXE_rolegate"))).args(["probe", "ready"]).env("ROLEGATE_PROBE_SOCKET", probe).output();
    while !ask().unwrap().status.success() {
        assert!(Instant::now() < deadline, "never ready\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.wait_for_event("handover-offered").unwrap();
}

#[test]
fn no_request_is_lost_when_daemons_take_over() {
    let Some(bed) = BpfBed::new() else { return };
    let clients = clients(&bed);
    let (setup, probe) = generation(&bed, 0);
    let mut last = setup.start().unwrap();
    wait_until_ready(&probe, &last);
    bed.remove_netfilter_rules();
    let before = bed.packets();
    start(&clients, 1, 1);
    for number in 1..=3 {
        wait_for_more(&clients, REQUESTS / clients.len() / 4, &last);
        bed.allow_netfilter_rules();
        let (setup, probe) = generation(&bed, number);
        let next = setup.start().unwrap();
        next.wait_for_event("handover-received").unwrap();
        wait_until_ready(&probe, &next);
        bed.remove_netfilter_rules();
        wait_for_more(&clients, 100, &next);
        last.terminate().unwrap();
        assert!(last.wait().unwrap().success(), "{}", last.log());
        last = next;
    }
    wait_for_more(&clients, REQUESTS / clients.len() / 4, &last);
    let answered = finish(&bed, &clients);
    assert!(answered >= REQUESTS, "{answered}");
    bed.assert_closed_since(before, "while daemons took over");
}

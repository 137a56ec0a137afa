//! Tests of two daemons on a node, behind the real rules: while one follows the other, no request of a pod is lost, and none
//! reaches the metadata service.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::load::{Connections, Load, Tally};
use socket2::SockRef;

use crate::bed::{Bed, METADATA, PATIENCE, Pod, ROUTED};

/// The minimum number of requests in the whole rolling update.
const REQUESTS: usize = 20_000;
/// The number of daemons that follow the first one.
const GENERATIONS: usize = 3;
const BACKENDS: [&str; 2] = ["iptables", "nftables"];
const PORT: u16 = 8181;
const METRICS_PORT: u16 = 9543;

/// A daemon and its probe socket.
struct Generation {
    daemon: Daemon,
    probe: PathBuf,
}

struct State(tempfile::TempDir);

impl State {
    fn new() -> State {
        State(tempfile::tempdir().unwrap())
    }

    fn start(&self, bed: &Bed, backend: &str, number: usize) -> Generation {
        self.start_with(bed.setup_with_ip().argument(format!("--redirect={backend}")).argument(ROUTED), number)
    }

    fn start_with(&self, setup: Setup, number: usize) -> Generation {
        let at = |name: &str| self.0.path().join(name);
        let probe = at(&format!("probe-{number}"));
        let setup = setup
            .argument(format!("--app-port={PORT}"))
            .argument(format!("--metrics-port={METRICS_PORT}"))
            .argument(format!("--handover-socket={}", at("handover").display()))
            .argument(format!("--token-key-file={}", at("keys").display()))
            .argument(format!("--probe-socket={}", probe.display()));
        Generation { daemon: setup.start().unwrap(), probe }
    }
}

impl Generation {
    /// Waits until the daemon serves and offers its socket for a handover.
    fn wait_offered(&self) {
        let deadline = Instant::now() + PATIENCE;
        let ready = || {
            let mut probe = Command::new(env!("CARGO_BIN_EXE_rolegate"));
            probe.args(["probe", "ready"]).env("ROLEGATE_PROBE_SOCKET", &self.probe).output().unwrap().status.success()
        };
        while !ready() {
            assert!(Instant::now() < deadline, "not ready\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.log_has("handover-offered");
    }

    fn log_has(&self, event: &str) {
        self.daemon.wait_for_event(event).unwrap();
    }
}

/// Starts clients of both kinds in the pod's own network.
fn ask(load: &mut Load, pod: &Pod) {
    for connections in [Connections::New, Connections::New, Connections::Kept] {
        let (start, role) = (load.starter(), pod.role().to_owned());
        let connect = || {
            let stream = std::net::TcpStream::connect_timeout(&METADATA, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // Thousands of closed connections would use up the ports, so they end with a reset.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(stream)
        };
        load.add(pod.run(move || start(&role, connections, Box::new(connect))).unwrap());
    }
}

#[track_caller]
fn assert_right(bed: &Bed, tally: &Tally) {
    assert_eq!((tally.failed, tally.failures.as_slice()), (0, &[][..]), "{tally:#?}");
    assert!(!tally.keys.is_empty());
    tally.keys.iter().for_each(|(key, role)| bed.assert_issued(key, role));
}

/// Runs a sequence of daemons, each with its backend.
fn roll(backends: [&str; GENERATIONS + 1]) {
    let Some(bed) = Bed::new() else { return };
    let pods = [bed.pod("web", "veth"), bed.pod("worker", "cali")];
    bed.count_packets_of_pods();
    let state = State::new();
    let mut last = state.start(&bed, backends[0], 0);
    last.wait_offered();
    let mut load = Load::default();
    pods.iter().for_each(|pod| ask(&mut load, pod));
    for (number, backend) in backends.into_iter().enumerate().skip(1) {
        load.wait_for_more(REQUESTS / GENERATIONS / 3);
        let next = state.start(&bed, backend, number);
        next.log_has("handover-received");
        next.wait_offered();
        last.log_has("handover-shared");
        load.wait_for_more(REQUESTS / GENERATIONS / 3);
        last.daemon.terminate().unwrap();
        assert!(last.daemon.wait().unwrap().success(), "{}", last.daemon.log());
        load.wait_for_more(REQUESTS / GENERATIONS / 3 + GENERATIONS);
        next.log_has("metrics-port-acquired");
        last = next;
    }
    let tally = load.finish();
    assert_right(&bed, &tally);
    assert!(tally.answered >= REQUESTS, "{}", tally.answered);
    assert_eq!(bed.packets_of_pods(), 0, "pods reached the metadata service");
    assert_eq!(stands(&bed), [backends[GENERATIONS]]);
}

/// Returns the backends that have rules of ours.
fn stands(bed: &Bed) -> Vec<&'static str> {
    let tables = bed.node.ns().sh("nft list tables").unwrap();
    let nftables = tables.lines().any(|line| line == "table inet rolegate").then_some("nftables");
    let iptables = (bed.rules("iptables").jumps() == 1).then_some("iptables");
    nftables.into_iter().chain(iptables).collect()
}

#[test]
fn a_rolling_update_loses_no_request_of_twenty_thousand() {
    roll(["iptables"; GENERATIONS + 1]);
}

#[test]
fn a_rolling_update_with_nftables_loses_no_request() {
    roll(["nftables"; GENERATIONS + 1]);
}

/// The new daemon removes the old one's rules, and the old one does not restore them.
#[test]
fn a_rolling_update_that_changes_backends_loses_none() {
    roll(["iptables", "nftables", "iptables", "nftables"]);
}

/// Only the connections that it had accepted are lost. Afterwards the remaining daemon works as if it had been alone.
#[test]
fn a_killed_old_daemon_in_an_overlap_costs_only_its_own_requests() {
    for backend in BACKENDS {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let state = State::new();
        let first = state.start(&bed, backend, 0);
        first.wait_offered();
        let second = state.start(&bed, backend, 1);
        second.wait_offered();
        let mut load = Load::default();
        ask(&mut load, &pod);
        load.wait_for_more(500);
        drop(first.daemon);
        second.log_has("metrics-port-acquired");
        let failed = load.tally().failed;
        assert!(failed <= 3, "each of three clients has one connection: {:?}", load.tally());
        let before = load.answered();
        while load.answered() < before + 500 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let tally = load.finish();
        assert_eq!(tally.failed, failed, "{tally:#?}");
        assert_eq!(bed.metadata_requests_of(&pod), 0);
    }
}

/// Connections are refused for as long as the restart takes, and no answer is ever wrong.
#[test]
fn a_killed_only_daemon_means_refused_connections_until_the_next_serves() {
    for backend in BACKENDS {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let state = State::new();
        for number in 0..3 {
            let daemon = state.start(&bed, backend, number);
            daemon.wait_offered();
            let mut load = Load::default();
            ask(&mut load, &pod);
            load.wait_for_more(100);
            assert_right(&bed, &load.finish());
            drop(daemon.daemon);
            let refused = pod.connect(METADATA, PATIENCE).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(bed.metadata_requests_of(&pod), 0);
    }
}

/// The other socket has the same address and port, but no request of this node arrives on it.
#[test]
fn the_socket_of_another_network_is_not_taken_over() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let state = State::new();
    let elsewhere = state.start_with(bed.setup_with_ip().argument("--redirect=none").inside(bed.node.imds().unwrap()), 0);
    elsewhere.log_has("handover-offered");
    let daemon = state.start(&bed, "iptables", 1);
    daemon.log_has("handover-take-failed");
    assert!(daemon.daemon.log().contains("another network namespace"), "{}", daemon.daemon.log());
    daemon.wait_offered();
    bed.assert_served(&pod, METADATA);
}

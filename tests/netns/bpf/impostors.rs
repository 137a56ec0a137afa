//! A process in the node's network that poses as a later daemon, on a node with BPF programs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};

use super::bed::BpfBed;
use crate::bed::PATIENCE;
use crate::impostors::Impostor;

/// Returns the set-up of a daemon that looks at the programs after a notification alone.
fn setup(bed: &BpfBed, directory: Option<&Path>) -> Setup {
    let setup = bed.setup_bpf().argument("--bpf-interfaces=late0,late1").argument("--redirect-interval=1h");
    match directory {
        Some(directory) => setup.argument(format!("--handover-socket={}", directory.join("handover").display())),
        None => setup,
    }
}

/// Adds an interface, and waits until it has the exit guard.
#[track_caller]
fn assert_guarded_soon(bed: &BpfBed, daemon: &Daemon, interface: &str, case: &str) {
    bed.node.ns().sh(&format!("ip link add {interface} type veth peer name peer-{interface} && ip link set {interface} up")).unwrap();
    let guard = format!("exit_guard-{}", bed.index_of(interface));
    let deadline = Instant::now() + PATIENCE;
    while !bed.has_pin(&guard) {
        assert!(Instant::now() < deadline, "{case}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// It can neither attach programs nor write into the directory of the daemon.
#[test]
fn an_impostor_does_not_keep_a_new_interface_unguarded() {
    let directory = tempfile::tempdir().unwrap();
    for (case, directory) in [("with a directory", Some(directory.path())), ("without", None)] {
        let Some(bed) = BpfBed::new() else { return };
        let daemon = bed.start(&setup(&bed, directory));
        let _impostor = Impostor::new(bed.node.ns());
        assert_guarded_soon(&bed, &daemon, "late0", case);
        // The programs on the pods' control group as well.
        bed.remove_pin("connect4");
        assert_guarded_soon(&bed, &daemon, "late1", case);
        let deadline = Instant::now() + PATIENCE;
        while !bed.has_pin("connect4") {
            assert!(Instant::now() < deadline, "{case}\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The later daemon hangs: nobody but the earlier one can attach the exit guard. It does not configure the programs.
#[test]
fn an_earlier_daemon_attaches_the_exit_guard_beside_a_later_one() {
    let Some(bed) = BpfBed::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let first = bed.start(&setup(&bed, Some(directory.path())).argument("--app-port=8181"));
    let second = bed.start(&setup(&bed, Some(directory.path())).argument("--app-port=8282"));
    second.wait_ready(Some(bed.node.ns())).unwrap();
    assert!(Command::new("kill").args(["-STOP", &second.pid().to_string()]).status().unwrap().success());
    assert_guarded_soon(&bed, &first, "late0", "beside");
    let repairs: Vec<_> = first.events("bpf-programs-repaired").iter().map(|line| line["attached"].clone()).collect();
    assert_eq!(repairs, ["exit_guard on late0"], "the rest is the later daemon's: {}", first.log());
}

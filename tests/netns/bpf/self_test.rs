//! Tests of the self-test with BPF programs: no netfilter rule has a part in its result.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};

use super::bed::{BpfBed, Driver};
use crate::bed::PATIENCE;
use crate::selftest::{FAILED, PASSED, UNAVAILABLE, received};

/// The control group of the helper of a daemon that is in no pod.
const GROUP: &str = "rolegate-self-test";

fn often(setup: Setup) -> Setup {
    setup.argument("--self-test=on").argument("--self-test-interval=1s")
}

/// Returns the set-ups of a daemon in a pod and of one outside, with the place of the helper's control group.
fn both(bed: &BpfBed) -> [(&'static str, Setup); 2] {
    [("in a pod", often(bed.setup_bpf())), ("outside", often(bed.setup_bpf_outside()))]
}

fn group(bed: &BpfBed) -> PathBuf {
    bed.kubepods().path().join(GROUP)
}

fn metric(bed: &BpfBed, daemon: &Daemon, name: &str) -> f64 {
    daemon.metric(Some(bed.node.ns()), name).unwrap()
}

#[track_caller]
fn wait_for(what: &str, daemon: &Daemon, is: impl Fn() -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the test has been repeated, and checks that it always passed.
#[track_caller]
fn assert_passes_repeatedly(bed: &BpfBed, daemon: &Daemon, case: &str) {
    let before = received(bed);
    assert_eq!(before.len(), 1, "{case}: {before:?}");
    wait_for(case, daemon, || received(bed).iter().any(|(name, packets)| *name == before[0].0 && *packets > before[0].1 + 30));
    assert_eq!((metric(bed, daemon, PASSED), metric(bed, daemon, FAILED)), (1.0, 0.0), "{case}: {}", daemon.log());
    assert!(daemon.events("self-test-failed").is_empty(), "{case}: {}", daemon.log());
}

#[test]
fn it_passes_without_any_netfilter_rule_in_a_pod_and_outside() {
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        let Some(bed) = BpfBed::with_driver(driver) else { return };
        for (case, setup) in both(&bed) {
            bed.allow_netfilter_rules();
            let before = bed.packets();
            let mut daemon = bed.start_with(&setup);
            assert_eq!(group(&bed).exists(), case == "outside", "{case}");
            assert_passes_repeatedly(&bed, &daemon, case);
            bed.assert_closed_since(before, case);
            assert_eq!(bed.metadata_requests(), 0, "{case}");
            daemon.terminate().unwrap();
            assert!(daemon.wait().unwrap().success(), "{}", daemon.log());
            assert!(!group(&bed).exists(), "{case}: the control group is left");
        }
    }
}

#[test]
fn a_control_group_that_a_killed_daemon_left_is_removed_by_the_next() {
    let Some(bed) = BpfBed::new() else { return };
    // With SIGKILL.
    drop(bed.start_with(&often(bed.setup_bpf_outside())));
    assert!(group(&bed).exists());
    bed.allow_netfilter_rules();
    let daemon = bed.start_with(&often(bed.setup_bpf()));
    assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
    assert!(!group(&bed).exists());
}

#[test]
fn each_missing_program_fails_it_with_a_reason_of_its_own() {
    let Some(bed) = BpfBed::new() else { return };
    let Some(detach) = bed.compile("detach") else { return };
    let guard = format!("exit_guard-{}", bed.index_of("imds"));
    let programs = [
        ("connect4", "not-denied"),
        ("connect6", "not-denied"),
        ("drop_egress", "not-dropped"),
        ("record_connection", "unrecorded"),
        (&*guard, "exit-guard-missing"),
    ];
    for (case, setup) in both(&bed) {
        bed.allow_netfilter_rules();
        // It looks at links in detail at its start, and at this interval.
        let daemon = bed.start_with(&setup.argument("--redirect-interval=1h"));
        for (program, reason) in programs {
            assert_eq!(metric(&bed, &daemon, PASSED), 1.0, "{case}: {program}");
            let name = format!(r#"rolegate_self_test_failures_total{{reason="{reason}"}}"#);
            let before = metric(&bed, &daemon, &name);
            bed.detach(&detach, program);
            wait_for(&format!("{case}: {program}"), &daemon, || metric(&bed, &daemon, &name) > before);
            assert_eq!((metric(&bed, &daemon, PASSED), metric(&bed, &daemon, FAILED)), (0.0, 1.0), "{case}: {program}");
            let of_reason = |line: &serde_json::Value| line["event"] == "self-test-failed" && line["reason"] == reason;
            daemon.wait_for_log(of_reason).unwrap();
            // Without its pin, the daemon attaches the program again as soon as the test changes its interface.
            bed.remove_pin(program);
            wait_for("it passes again", &daemon, || metric(&bed, &daemon, PASSED) == 1.0);
        }
    }
}

/// The signs say that packets may bypass netfilter, not that they do.
#[test]
fn a_data_plane_that_may_bypass_netfilter_is_judged_with_programs_alone() {
    let Some(bed) = BpfBed::new() else { return };
    bed.node.ns().sh("ip link add cilium_host type veth peer name cilium_net").unwrap();
    for setup in [often(bed.setup_bpf()), often(bed.setup_bpf_outside()).argument("--host-interface=lxc+")] {
        bed.allow_netfilter_rules();
        let daemon = bed.start_with(&setup);
        assert_passes_repeatedly(&bed, &daemon, "cilium_host");
    }
    bed.allow_netfilter_rules();
    let setup = bed.setup_bpf().argument("--redirect=auto").argument("--host-network-pods=ignore").argument("--self-test-interval=1s");
    let daemon = bed.start_with(&setup);
    daemon.wait_for_event("bpf-programs-attached").unwrap();
    assert_eq!((metric(&bed, &daemon, UNAVAILABLE), metric(&bed, &daemon, PASSED)), (1.0, 0.0));
    let said = daemon.wait_for_event("self-test-unavailable").unwrap();
    let reason = said["reason"].as_str().unwrap();
    assert!(reason.contains("--redirect=bpf") && reason.contains("exit guard"), "{reason}");
}

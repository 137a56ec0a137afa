//! The self-test: whether it tells rules that hold from rules that do not, and that nobody sees anything of it.

use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::node::{NODE_IP, find_program, skip};

use crate::bed::{Bed, METADATA, PATIENCE};

const PASSED: &str = r#"rolegate_self_test{state="passed"}"#;
const FAILED: &str = r#"rolegate_self_test{state="failed"}"#;
const UNAVAILABLE: &str = r#"rolegate_self_test{state="unavailable"}"#;
const MISSED: &str = r#"rolegate_self_test_failures_total{reason="missed"}"#;
const OPEN: &str = r#"rolegate_self_test_failures_total{reason="open"}"#;

fn often(setup: Setup) -> Setup {
    setup.argument("--self-test=on").argument("--self-test-interval=1s")
}

/// The daemon under rules that somebody else keeps, so that it repairs nothing.
fn under_own_rules(bed: &Bed) -> Setup {
    often(bed.setup_with_ip()).argument("--redirect=none").argument("--app-port=8181")
}

fn redirect(bed: &Bed) {
    bed.node.ns().sh(&format!("iptables -t nat -A PREROUTING -d {} -p tcp --dport 80 -j DNAT --to {NODE_IP}:8181", METADATA.ip())).unwrap();
}

fn guard(bed: &Bed) {
    bed.node
        .ns()
        .sh(&format!("iptables -A FORWARD -d {} -j REJECT; ip6tables -A FORWARD -d fd00:ec2::254 -j REJECT", METADATA.ip()))
        .unwrap();
}

#[track_caller]
fn wait_for(what: &str, daemon: &Daemon, is: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn metric(bed: &Bed, daemon: &Daemon, name: &str) -> f64 {
    daemon.metric(Some(bed.node.ns()), name).unwrap()
}

fn is_ready(bed: &Bed, daemon: &Daemon) -> bool {
    daemon.get(Some(bed.node.ns()), "/readyz").unwrap().status == 200
}

/// The interfaces and routes of tests on the node.
fn traces(bed: &Bed) -> Vec<String> {
    let text = bed.node.ns().sh("ip -o link; ip route; ip -6 route; ip neigh").unwrap();
    text.lines().filter(|line| line.contains("192.0.0.") || line.contains("rg") || line.contains("fd5e:91c7")).map(str::to_owned).collect()
}

/// It leaves nothing in the metrics of requests, and nothing at the metadata service.
#[track_caller]
fn assert_unnoticed(bed: &Bed, daemon: &Daemon) {
    assert_eq!(bed.metadata_requests(), 0);
    let metrics = daemon.get(Some(bed.node.ns()), "/metrics").unwrap().text();
    let told = metrics.lines().filter(|line| {
        !line.starts_with('#')
            && ["rolegate_http", "rolegate_denials", "rolegate_connections_refused"].iter().any(|name| line.starts_with(name))
    });
    let counted: Vec<_> = told.filter(|line| !line.ends_with(" 0")).collect();
    assert!(counted.is_empty(), "{counted:?}");
    assert!(!daemon.log().contains("192.0.0."), "{}", daemon.log());
}

#[test]
fn it_passes_with_the_rule_and_nobody_notices() {
    let Some(bed) = Bed::new() else { return };
    let mut daemon = bed.start(&often(bed.setup()).argument(format!("--host-ip={NODE_IP},{}", bed.node.ip6())));
    assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
    assert!(traces(&bed).iter().any(|line| line.contains("rolegaterg")), "{:?}", traces(&bed));
    daemon.wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.starts_with("the self-test passed"))).unwrap();
    assert_unnoticed(&bed, &daemon);
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", daemon.log());
    wait_for("nothing is left", &daemon, || traces(&bed).is_empty());
}

#[test]
fn it_fails_while_the_rule_is_gone_and_passes_when_it_is_back() {
    let Some(bed) = Bed::new() else { return };
    guard(&bed);
    redirect(&bed);
    let daemon = bed.start(&under_own_rules(&bed));
    assert_eq!((metric(&bed, &daemon, PASSED), metric(&bed, &daemon, FAILED)), (1.0, 0.0));

    // With the guard, a pod's request is refused.
    bed.node.ns().sh("iptables -t nat -F PREROUTING").unwrap();
    wait_for("the daemon is not ready", &daemon, || !is_ready(&bed, &daemon));
    assert_eq!((metric(&bed, &daemon, PASSED), metric(&bed, &daemon, FAILED)), (0.0, 1.0));
    assert!(daemon.get(Some(bed.node.ns()), "/readyz").unwrap().text().contains("the self-test"));
    assert_eq!(metric(&bed, &daemon, MISSED), 0.0);

    // Without, it reaches the real service.
    bed.node.ns().sh("iptables -F FORWARD").unwrap();
    wait_for("the leak is counted", &daemon, || metric(&bed, &daemon, MISSED) > 0.0);
    daemon.wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.contains("THE REAL METADATA SERVICE"))).unwrap();
    assert!(!is_ready(&bed, &daemon));

    guard(&bed);
    redirect(&bed);
    wait_for("the daemon is ready again", &daemon, || is_ready(&bed, &daemon));
    assert_eq!((metric(&bed, &daemon, PASSED), metric(&bed, &daemon, FAILED)), (1.0, 0.0));
    assert_unnoticed(&bed, &daemon);
}

#[test]
fn another_port_that_is_open_fails_it() {
    let Some(bed) = Bed::new() else { return };
    guard(&bed);
    redirect(&bed);
    let address = (METADATA.ip(), 81).into();
    let _listening = bed.runtime().block_on(async { Imds::start(bed.node.imds().unwrap().tcp_listener(address).unwrap()).unwrap() });
    let daemon = bed.start(&under_own_rules(&bed));
    bed.node.ns().sh("iptables -F FORWARD").unwrap();
    wait_for("the open port is counted", &daemon, || metric(&bed, &daemon, OPEN) > 0.0);
    assert!(!is_ready(&bed, &daemon));
    guard(&bed);
    wait_for("the daemon is ready again", &daemon, || is_ready(&bed, &daemon));
}

#[test]
fn a_daemon_is_not_ready_before_it_passes() {
    let Some(bed) = Bed::new() else { return };
    guard(&bed);
    let daemon = under_own_rules(&bed).start().unwrap();
    wait_for("it has failed", &daemon, || metric(&bed, &daemon, FAILED) == 1.0);
    assert_eq!(daemon.get(Some(bed.node.ns()), "/readyz").unwrap().text(), "waiting for: the self-test\n");
    redirect(&bed);
    daemon.wait_ready(Some(bed.node.ns())).unwrap();
}

#[test]
fn its_interface_is_like_the_pods() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.start(&often(bed.setup_with_ip()).argument("--host-interface=eni+"));
    assert!(traces(&bed).iter().any(|line| line.contains("enirg")), "{:?}", traces(&bed));
    drop(daemon);
    wait_for_no_traces(&bed);
}

#[track_caller]
fn wait_for_no_traces(bed: &Bed) {
    let deadline = Instant::now() + PATIENCE;
    while !traces(bed).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", traces(bed));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The namespace goes with the child, which ends with the daemon; a way at a bridge is taken away at the next start.
#[test]
fn behind_a_bridge_it_is_a_port_of_it_and_a_killed_daemon_leaves_nothing_for_long() {
    let Some(bed) = Bed::new() else { return };
    let setup = often(bed.setup_with_ip()).argument("--host-interface=cni0");
    // No pod has been there: there is nothing to test, and nothing to wait for.
    let daemon = bed.start(&setup);
    assert_eq!(metric(&bed, &daemon, UNAVAILABLE), 1.0);
    let sh = |script: &str| bed.node.ns().sh(script).unwrap();
    sh("ip link add cni0 type bridge && ip addr add 10.43.0.1/24 dev cni0 && ip link set cni0 up");
    wait_for("it passes", &daemon, || metric(&bed, &daemon, PASSED) == 1.0);
    let port = || sh("ip -o link show master cni0 | grep -o 'rolegaterg[0-9a-f]*' | sort -u");

    // A pod's port with a lower address, which the bridge takes; and somebody who takes the test's away.
    sh("ip link add pod0 type veth peer name pod1 && ip link set pod0 address 02:00:00:00:00:01 master cni0 up");
    let first = port();
    sh(&format!("ip link del {first}"));
    wait_for("there is another interface", &daemon, || !port().is_empty());
    assert!(is_ready(&bed, &daemon) && metric(&bed, &daemon, PASSED) == 1.0, "{}", daemon.log());
    assert!(!daemon.log().contains("the self-test failed"), "{}", daemon.log());

    let no_port = || {
        let deadline = Instant::now() + PATIENCE;
        while !port().is_empty() {
            assert!(Instant::now() < deadline, "{}", port());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    drop(daemon);
    no_port();
    for _start in 0..3 {
        let daemon = bed.start(&setup);
        assert_eq!((metric(&bed, &daemon, PASSED), port().lines().count()), (1.0, 1));
        assert!(sh("ip -o link show dev cni0").contains("02:00:00:00:00:01"), "the bridge keeps its address");
        for show in ["ip route show dev cni0", "ip neigh show dev cni0 nud permanent"] {
            assert_eq!(sh(show).matches("192.0.0.").count(), 1, "{show}: {}", sh(show));
        }
        // By SIGKILL.
        drop(daemon);
        no_port();
    }
}

#[test]
fn pods_behind_interfaces_that_are_left_out_are_told() {
    let Some(bed) = Bed::new() else { return };
    let (_covered, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"));
    let setup = bed.setup_with_ip().argument("--host-interface=veth+").argument("--self-test=off").argument("--self-test-interval=1s");
    let daemon = bed.start(&setup);
    let told = daemon.wait_for_log(|line| line["interface"] == left_out.host_interface()).unwrap();
    assert!(told["message"].as_str().unwrap().contains("--host-interface leaves out"), "{told}");
    // Its IPv4 and its IPv6 address.
    assert_eq!(metric(&bed, &daemon, "rolegate_pods_outside_interfaces"), 2.0);
    assert_eq!(metric(&bed, &daemon, r#"rolegate_self_test{state="off"}"#), 1.0);
    drop(left_out);
    wait_for("they are gone", &daemon, || metric(&bed, &daemon, "rolegate_pods_outside_interfaces") == 0.0);
}

/// Without SYS_ADMIN, and where no user namespace can be made: in a changed root, it never can (user_namespaces(7)).
fn without_namespaces(setup: Setup) -> Option<Setup> {
    if find_program("setpriv").is_none() {
        skip("the program `setpriv` is not installed");
        return None;
    }
    let script = "mount --rbind / /mnt && exec chroot /mnt setpriv --bounding-set=-sys_admin \"$0\" \"$@\"";
    Some(setup.by_way_of(["unshare", "--mount", "sh", "-c", script]))
}

#[test]
fn without_the_right_to_namespaces_auto_says_so_and_goes_on() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let Some(setup) = without_namespaces(bed.setup_with_ip()) else { return };
    let daemon = bed.start(&setup);
    let said = daemon.wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.contains("the self-test is not done"))).unwrap();
    assert!(said["message"].as_str().unwrap().contains("SYS_ADMIN"), "{said}");
    assert_eq!(metric(&bed, &daemon, UNAVAILABLE), 1.0);
    bed.assert_served(&pod, METADATA);
    drop(daemon);

    let Some(setup) = without_namespaces(often(bed.setup_with_ip())) else { return };
    let output = setup.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("--self-test=on, and it cannot be done: a network namespace cannot be made"), "{text}");
}

/// By a user namespace, where the kernel lets everybody make one.
#[test]
fn without_sys_admin_a_user_namespace_will_do() {
    let Some(bed) = Bed::new() else { return };
    if find_program("setpriv").is_none() {
        return skip("the program `setpriv` is not installed");
    }
    let allowed = std::process::Command::new("setpriv").args(["--bounding-set=-sys_admin", "unshare", "--user", "--net", "true"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return skip("this system lets nobody make a user namespace");
    }
    let daemon = bed.start(&often(bed.setup_with_ip()).by_way_of(["setpriv", "--bounding-set=-sys_admin"]));
    assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
}

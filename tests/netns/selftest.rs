//! Tests of the self-test: it distinguishes rules that work from rules that do not, and nothing else notices it.

use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::node::{NODE_IP, find_program, skip};

use crate::bed::{Bed, METADATA, PATIENCE, ROUTED};

pub(crate) const PASSED: &str = r#"rolegate_self_test{state="passed"}"#;
pub(crate) const FAILED: &str = r#"rolegate_self_test{state="failed"}"#;
pub(crate) const UNAVAILABLE: &str = r#"rolegate_self_test{state="unavailable"}"#;
const MISSED: &str = r#"rolegate_self_test_failures_total{reason="missed"}"#;
const GUARD_MISSING: &str = r#"rolegate_self_test_failures_total{reason="guard-missing"}"#;
const GUARD_UNKNOWN: &str = r#"rolegate_self_test_failures_total{reason="guard-unknown"}"#;
const OPEN: &str = r#"rolegate_self_test_failures_total{reason="open"}"#;

fn often(setup: Setup) -> Setup {
    setup.argument("--self-test=on").argument("--self-test-interval=1s")
}

/// Returns the set-up of a daemon whose rules are managed outside, so that it repairs nothing.
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

/// Installs the guard with this backend, as a node has it from its boot on.
fn boot_guard(bed: &Bed, backend: &str) {
    let program = env!("CARGO_BIN_EXE_rolegate");
    bed.node.ns().sh(&format!("{program} redirect install --guard --redirect={backend} --redirect-routing-rules=false")).unwrap();
}

/// Returns the interfaces and routes of tests on the node.
fn traces(bed: &Bed) -> Vec<String> {
    let text = bed.node.ns().sh("ip -o link; ip route; ip -6 route; ip neigh").unwrap();
    text.lines().filter(|line| line.contains("192.0.0.") || line.contains("rg") || line.contains("fd5e:91c7")).map(str::to_owned).collect()
}

/// Checks that the test leaves nothing in the request metrics, and nothing at the metadata service.
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
fn it_passes_with_the_rules_and_leaves_no_trace() {
    let Some(bed) = Bed::new() else { return };
    let mut daemon = bed.start(&often(bed.setup()).argument(format!("--host-ip={NODE_IP},{}", bed.node.ip6())));
    assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
    assert!(traces(&bed).iter().any(|line| line.contains("rolegaterg")), "{:?}", traces(&bed));
    daemon.wait_for_event("self-test-passed").unwrap();
    assert_unnoticed(&bed, &daemon);
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", daemon.log());
    wait_for("no trace is left", &daemon, || traces(&bed).is_empty());
}

/// With the routing rules, they refuse a pod's packet before the guard sees it.
#[test]
fn it_passes_with_either_lock() {
    for backend in ["nftables", "iptables"] {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let setup = often(bed.setup()).argument(format!("--host-ip={NODE_IP},{}", bed.node.ip6()));
        let daemon = bed.start(&setup.argument(format!("--redirect={backend}")).argument(ROUTED));
        assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
        bed.assert_served(&pod, METADATA);
        bed.node.ns().sh("ip rule del pref 0 prohibit && ip -6 rule del pref 0 prohibit").unwrap();
        daemon.wait_for_event("routing-rules-repaired").unwrap();
        // With IPv4 alone, port 80 of the IPv6 address is one of those that have to be refused.
        drop(daemon);
        let daemon = bed.start(&often(bed.setup_with_ip()).argument(format!("--redirect={backend}")).argument(ROUTED));
        assert_eq!((metric(&bed, &daemon, PASSED), metric(&bed, &daemon, FAILED)), (1.0, 0.0), "{}", daemon.log());
        assert!(daemon.events("self-test-failed").is_empty(), "{}", daemon.log());
    }
}

#[test]
fn it_fails_while_the_rules_are_gone() {
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

    // Without it, the request reaches the real service.
    bed.node.ns().sh("iptables -F FORWARD").unwrap();
    wait_for("the leak is counted", &daemon, || metric(&bed, &daemon, MISSED) > 0.0);
    let is_open = |reason: &str| ["missed", "guard-missing", "guard-unknown"].contains(&reason);
    daemon.wait_for_log(|line| line["event"] == "self-test-failed" && line["reason"].as_str().is_some_and(is_open)).unwrap();
    assert!(!is_ready(&bed, &daemon));

    guard(&bed);
    redirect(&bed);
    wait_for("the daemon is ready again", &daemon, || is_ready(&bed, &daemon));
    assert_eq!((metric(&bed, &daemon, PASSED), metric(&bed, &daemon, FAILED)), (1.0, 0.0));
    assert_unnoticed(&bed, &daemon);
}

#[test]
fn an_open_port_besides_80_fails_it() {
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

/// On EC2 nothing listens on other ports of the metadata service, and no answer of the service finds its way to the test's
/// addresses: neither a refusal nor silence is evidence of the guard.
#[test]
fn only_the_guards_rejection_counts() {
    for backend in ["nftables", "iptables"] {
        let Some(bed) = Bed::new() else { return };
        redirect(&bed);
        boot_guard(&bed, backend);
        let daemon = bed.start(&under_own_rules(&bed));
        assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
        let open = match backend {
            "nftables" => [
                // One family at a time.
                "nft flush chain inet rolegate exit && nft flush chain inet rolegate guard && nft add rule inet rolegate guard ip6 daddr fd00:ec2::254 reject",
                "nft flush chain inet rolegate exit && nft flush chain inet rolegate guard && nft add rule inet rolegate guard ip daddr 169.254.169.254 reject",
            ],
            _ => [
                "iptables -F ROLEGATE-GUARD && iptables -t security -F ROLEGATE-BACKSTOP && iptables -t mangle -F ROLEGATE-EXIT",
                "ip6tables -F ROLEGATE-GUARD && ip6tables -t security -F ROLEGATE-BACKSTOP && ip6tables -t mangle -F ROLEGATE-EXIT",
            ],
        };
        let no_way_back = "ip route add blackhole 192.0.0.0/24 && ip -6 route add blackhole fd5e:91c7:3ab4:7e57::/64";
        let way_back = "ip route del blackhole 192.0.0.0/24 && ip -6 route del blackhole fd5e:91c7:3ab4:7e57::/64";
        for (family, open) in ["IPv4", "IPv6"].into_iter().zip(open) {
            for answers in [true, false] {
                if !answers {
                    bed.node.imds().unwrap().sh(no_way_back).unwrap();
                }
                // An IPv6 answer comes from the service itself, which listens on port 80 there.
                let reason = match (answers, family) {
                    (true, "IPv4") => GUARD_MISSING,
                    (true, _) => OPEN,
                    (false, _) => GUARD_UNKNOWN,
                };
                let before = metric(&bed, &daemon, reason);
                bed.node.ns().sh(open).unwrap();
                wait_for(&format!("{backend}, {family}, answers: {answers}"), &daemon, || metric(&bed, &daemon, reason) > before);
                assert!(!is_ready(&bed, &daemon) && metric(&bed, &daemon, FAILED) == 1.0);
                boot_guard(&bed, backend);
                wait_for("the test passes with the guard", &daemon, || is_ready(&bed, &daemon));
                assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
                if !answers {
                    bed.node.imds().unwrap().sh(way_back).unwrap();
                }
            }
        }
        assert_unnoticed(&bed, &daemon);
    }
}

/// An error of the node itself about a packet that it has already forwarded, because no host has the address, is not the
/// guard's.
#[test]
fn a_missing_metadata_service_is_no_guard() {
    let Some(bed) = Bed::new() else { return };
    redirect(&bed);
    boot_guard(&bed, "nftables");
    let daemon = bed.start(&under_own_rules(&bed));
    // No host answers the neighbour request for its address.
    bed.node
        .ns()
        .sh("ip link del imds && ip link add imds type veth peer name nobody && ip link set imds up && ip link set nobody up")
        .unwrap();
    bed.node.ns().sh("ip route add 169.254.169.254/32 dev imds").unwrap();
    bed.node.ns().sh("echo 50 > /proc/sys/net/ipv4/neigh/imds/retrans_time_ms").unwrap();
    wait_for("the test passes again with the guard", &daemon, || is_ready(&bed, &daemon) && metric(&bed, &daemon, PASSED) == 1.0);
    bed.node.ns().sh("nft delete table inet rolegate").unwrap();
    wait_for("the missing guard is noticed", &daemon, || metric(&bed, &daemon, GUARD_MISSING) > 0.0);
    let by_the_node = format!("({NODE_IP} answered)");
    let of_guard = |line: &serde_json::Value| {
        line["reason"] == "guard-missing" && line["error"].as_str().is_some_and(|text| text.contains(&by_the_node))
    };
    daemon.wait_for_log(of_guard).unwrap();
    boot_guard(&bed, "nftables");
    wait_for("the test passes again", &daemon, || is_ready(&bed, &daemon));
}

/// Returns a directory with the programs that the daemon finds through PATH, until they are removed.
fn programs() -> tempfile::TempDir {
    let programs = tempfile::tempdir().unwrap();
    put_programs(&programs);
    programs
}

const PROGRAMS: [&str; 8] =
    ["nft", "conntrack", "iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

fn put_programs(to: &tempfile::TempDir) {
    for name in PROGRAMS {
        if let Some(program) = find_program(name) {
            std::os::unix::fs::symlink(program, to.path().join(name)).unwrap();
        }
    }
}

fn take_programs(from: &tempfile::TempDir) {
    for name in PROGRAMS {
        // Not every machine has each of them.
        let _ = std::fs::remove_file(from.path().join(name));
    }
}

#[test]
fn rules_that_cannot_be_repaired_fail_it_until_they_are() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let programs = programs();
    let setup = often(bed.setup_with_ip()).argument("--redirect=auto").argument("--redirect-interval=1s");
    let daemon = bed.start(&setup.env("PATH", programs.path().to_str().unwrap()));
    assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
    let chosen = bed.node.ns().sh("nft list tables").unwrap();
    assert!(chosen.contains("table inet rolegate"), "{chosen}");

    // The daemon also tests the guard of its own rules. With the exit in its place, packets get no answer; with the redirect alone,
    // they get through.
    take_programs(&programs);
    bed.node.ns().sh("nft delete chain inet rolegate guard").unwrap();
    wait_for("the silence is noticed", &daemon, || metric(&bed, &daemon, GUARD_UNKNOWN) > 0.0);
    bed.node.ns().sh("nft delete chain inet rolegate exit").unwrap();
    wait_for("the missing guard is noticed", &daemon, || metric(&bed, &daemon, GUARD_MISSING) > 0.0);
    assert!(!is_ready(&bed, &daemon) && metric(&bed, &daemon, FAILED) == 1.0);
    bed.node.ns().sh("nft delete table inet rolegate").unwrap();
    wait_for("the missing redirect is noticed", &daemon, || metric(&bed, &daemon, MISSED) > 0.0);

    put_programs(&programs);
    wait_for("the test passes after the repair", &daemon, || is_ready(&bed, &daemon) && metric(&bed, &daemon, PASSED) == 1.0);
    assert_eq!(metric(&bed, &daemon, FAILED), 0.0);
    bed.assert_served(&pod, METADATA);
}

/// Returns how many packets arrived on each interface of a test.
pub(crate) fn received(bed: &Bed) -> Vec<(String, u64)> {
    let links: serde_json::Value = serde_json::from_str(&bed.node.ns().sh("ip -json -stats link").unwrap()).unwrap();
    let links = links.as_array().unwrap().iter().filter_map(|link| {
        let name = link["ifname"].as_str()?.starts_with("rolegaterg").then(|| link["ifname"].as_str())??;
        Some((name.to_owned(), link["stats64"]["rx"]["packets"].as_u64()?))
    });
    links.collect()
}

/// Two daemons, as in a rolling update. Each gets some of the other's test connections, and neither takes them for its own or
/// is misled.
#[test]
fn two_daemons_test_at_the_same_time() {
    let Some(bed) = Bed::new() else { return };
    let setup = often(bed.setup_with_ip()).argument("--app-port=8181");
    // Only daemons that hand the port over share it. Each has a socket of its own here.
    let sockets = tempfile::TempDir::new().unwrap();
    let start = |name: &str| bed.start(&setup.clone().argument(format!("--handover-socket={}", sockets.path().join(name).display())));
    let (first, second) = (start("first"), start("second"));
    let before = received(&bed);
    assert_eq!(before.len(), 2, "{before:?}");
    // One test sends about ten packets.
    let went_on = || {
        let now = received(&bed);
        before.iter().all(|(name, packets)| now.iter().any(|(other, more)| other == name && *more > packets + 30))
    };
    wait_for("both test repeatedly with the same interfaces", &first, went_on);
    for daemon in [&first, &second] {
        assert_eq!((metric(&bed, daemon, PASSED), metric(&bed, daemon, FAILED)), (1.0, 0.0), "{}", daemon.log());
        assert!(daemon.events("self-test-failed").is_empty(), "{}", daemon.log());
        assert!(is_ready(&bed, daemon));
    }
    assert_unnoticed(&bed, &first);
    drop(first);
    wait_for("one interface is left", &second, || received(&bed).len() == 1);
    assert_eq!(metric(&bed, &second, PASSED), 1.0, "{}", second.log());
}

/// If pods' packets may bypass every rule, the test's own interface proves nothing.
#[test]
fn it_does_not_pass_if_pods_may_bypass_netfilter() {
    let Some(bed) = Bed::new() else { return };
    let calico = bed.pod("web", "cali");
    let setup = || bed.setup_with_ip().argument("--self-test-interval=1s");
    let daemon = bed.start(&setup());
    assert_eq!(metric(&bed, &daemon, PASSED), 1.0, "{}", daemon.log());
    let on = calico.host_interface();
    let cases = [
        ("ip link add cilium_host type veth peer name cilium_net".to_owned(), "ip link del cilium_host".to_owned(), "Cilium"),
        ("ip link add bpfin.cali type veth peer name bpfout.cali".to_owned(), "ip link del bpfin.cali".to_owned(), "Calico"),
        (format!("tc qdisc add dev {on} clsact"), format!("tc qdisc del dev {on} clsact"), "Calico"),
        // This interface leads to all pods.
        (
            format!(
                "ip link add shim link imds type macvlan && ip link set shim up && ip route replace {} dev shim && \
                 ip -6 route del {ip6} dev {on} && ip -6 route add {ip6} dev shim",
                calico.ip,
                ip6 = calico.ip6
            ),
            format!("ip link del shim && ip route replace {} dev {on} && ip -6 route add {} dev {on}", calico.ip, calico.ip6),
            "macvlan",
        ),
    ];
    for (begin, end, said) in cases {
        if let Err(error) = bed.node.ns().sh(&begin) {
            skip(format!("this kernel cannot do `{begin}`: {error}"));
            continue;
        }
        wait_for(&begin, &daemon, || metric(&bed, &daemon, UNAVAILABLE) == 1.0 && metric(&bed, &daemon, PASSED) == 0.0);
        daemon
            .wait_for_log(|line| {
                line["level"] == "WARN" && line["event"] == "self-test-unavailable" && line["reason"].as_str().unwrap().contains(said)
            })
            .unwrap();
        assert!(is_ready(&bed, &daemon), "pods are served as before");
        bed.node.ns().sh(&end).unwrap();
        wait_for(&end, &daemon, || metric(&bed, &daemon, PASSED) == 1.0);
    }
    drop(daemon);
    bed.node.ns().sh("ip link add cilium_host type veth peer name cilium_net").unwrap();
    let daemon = often(bed.setup_with_ip()).start().unwrap();
    wait_for("the bypass is reported", &daemon, || !daemon.events("self-test-unavailable").is_empty());
    assert!(!is_ready(&bed, &daemon), "--self-test=on requires it");
}

#[test]
fn a_daemon_is_not_ready_before_it_passes() {
    let Some(bed) = Bed::new() else { return };
    guard(&bed);
    let daemon = under_own_rules(&bed).start().unwrap();
    wait_for("the test has failed", &daemon, || metric(&bed, &daemon, FAILED) == 1.0);
    assert_eq!(daemon.get(Some(bed.node.ns()), "/readyz").unwrap().text(), "waiting for: the self-test\n");
    redirect(&bed);
    daemon.wait_ready(Some(bed.node.ns())).unwrap();
}

#[test]
fn its_interface_is_like_those_of_the_pods() {
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

/// The namespace disappears with the child, which ends with the daemon. A route at a bridge is removed at the next start.
#[test]
fn its_bridge_port_disappears_with_a_killed_daemon() {
    let Some(bed) = Bed::new() else { return };
    let setup = often(bed.setup_with_ip()).argument("--host-interface=cni0");
    // No pod has existed yet: there is nothing to test, and nothing to wait for.
    let daemon = bed.start(&setup);
    assert_eq!(metric(&bed, &daemon, UNAVAILABLE), 1.0);
    let sh = |script: &str| bed.node.ns().sh(script).unwrap();
    sh("ip link add cni0 type bridge && ip addr add 10.43.0.1/24 dev cni0 && ip link set cni0 up");
    wait_for("the test passes", &daemon, || metric(&bed, &daemon, PASSED) == 1.0);
    let port = || sh("ip -o link show master cni0 | grep -o 'rolegaterg[0-9a-f]*' | sort -u");

    // A pod's port with a lower address, which the bridge takes, and a deletion of the test's interface.
    sh("ip link add pod0 type veth peer name pod1 && ip link set pod0 address 02:00:00:00:00:01 master cni0 up");
    let first = port();
    sh(&format!("ip link del {first}"));
    wait_for("there is another interface", &daemon, || !port().is_empty());
    assert!(is_ready(&bed, &daemon) && metric(&bed, &daemon, PASSED) == 1.0, "{}", daemon.log());
    assert!(daemon.events("self-test-failed").is_empty(), "{}", daemon.log());

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
        // With SIGKILL.
        drop(daemon);
        no_port();
    }
}

#[test]
fn pods_behind_excluded_interfaces_are_reported() {
    let Some(bed) = Bed::new() else { return };
    let (_covered, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"));
    let setup = bed.setup_with_ip().argument("--host-interface=veth+").argument("--self-test=off").argument("--self-test-interval=1s");
    let daemon = bed.start(&setup);
    let told = daemon.wait_for_log(|line| line["interface"] == left_out.host_interface()).unwrap();
    assert_eq!(told["event"], "pods-outside-rules", "{told}");
    // The pod's IPv4 and IPv6 addresses.
    assert_eq!(metric(&bed, &daemon, "rolegate_pods_outside_interfaces"), 2.0);
    assert_eq!(metric(&bed, &daemon, r#"rolegate_self_test{state="off"}"#), 1.0);
    drop(left_out);
    wait_for("no pod is outside any more", &daemon, || metric(&bed, &daemon, "rolegate_pods_outside_interfaces") == 0.0);
}

/// Runs the daemon without SYS_ADMIN, and where no user namespace can be created: after chroot it never can
/// (user_namespaces(7)).
fn without_namespaces(setup: Setup) -> Option<Setup> {
    if find_program("setpriv").is_none() {
        skip("the program `setpriv` is not installed");
        return None;
    }
    let script = "mount --rbind / /mnt && exec chroot /mnt setpriv --bounding-set=-sys_admin \"$0\" \"$@\"";
    Some(setup.by_way_of(["unshare", "--mount", "sh", "-c", script]))
}

#[test]
fn without_namespaces_auto_warns_and_continues() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let Some(setup) = without_namespaces(bed.setup_with_ip()) else { return };
    let daemon = bed.start(&setup);
    let said = daemon.wait_for_event("self-test-unavailable").unwrap();
    assert!(said["reason"].as_str().unwrap().contains("SYS_ADMIN"), "{said}");
    assert_eq!(metric(&bed, &daemon, UNAVAILABLE), 1.0);
    bed.assert_served(&pod, METADATA);
    drop(daemon);

    let Some(setup) = without_namespaces(often(bed.setup_with_ip())) else { return };
    let output = setup.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("--self-test=on, but the self-test cannot run: cannot create a network namespace"), "{text}");
}

/// The capabilities that the manifests' component gives a container which may not gain more.
#[test]
fn net_admin_and_sys_admin_suffice_and_the_latter_is_dropped() {
    let Some(bed) = Bed::new() else { return };
    if find_program("setpriv").is_none() {
        return skip("the program `setpriv` is not installed");
    }
    const NET_ADMIN: u64 = 1 << 12;
    let setup = often(bed.setup_with_ip()).by_way_of(["setpriv", "--no-new-privs", "--bounding-set=-all,+net_admin,+sys_admin"]);
    let daemon = bed.start(&setup);
    assert_eq!(metric(&bed, &daemon, PASSED), 1.0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    for set in ["CapEff:", "CapPrm:"] {
        let has = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        assert_eq!(u64::from_str_radix(has.trim(), 16).unwrap(), NET_ADMIN, "{status}");
    }
}

/// With a user namespace, if the kernel allows unprivileged ones.
#[test]
fn without_sys_admin_a_user_namespace_is_used() {
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

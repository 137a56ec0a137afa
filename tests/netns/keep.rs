//! Tests of reconciling the rules: the guard before everything else, repairs, the end of the daemon, and manual commands.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{NO_PINS, Setup};
use rolegate_lab::node::{NODE_IP, find_program};

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, Pod, fetch, image};
use crate::kinds::Kind;

const BACKENDS: [&str; 2] = ["nftables", "iptables"];

/// Removes all of our rules from the kernel, as a program does that flushes everything.
fn flush(bed: &Bed, backend: &str) {
    let command = match backend {
        "nftables" => "nft delete table inet rolegate",
        // One table at a time: if the daemon repairs meanwhile, a chain that is in use could not be deleted.
        _ => {
            r"for program in iptables-restore ip6tables-restore; do
            printf '*filter\nCOMMIT\n*nat\nCOMMIT\n' | $program; done"
        }
    };
    bed.node.ns().sh(command).unwrap();
}

fn setup(bed: &Bed, backend: &str) -> Setup {
    bed.setup_with_ip().argument(format!("--redirect={backend}"))
}

/// Runs `rolegate redirect` on the node, without the routing rules unless the arguments turn them on.
pub(crate) fn by_hand(bed: &Bed, arguments: &[&str]) -> Output {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", bed.node.ns().path())).arg("--").arg(env!("CARGO_BIN_EXE_rolegate")).arg("redirect").args(arguments);
    command.env_clear().env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    command.env("ROLEGATE_REDIRECT_ROUTING_RULES", "false").env("ROLEGATE_BPF_PINS", NO_PINS).output().unwrap()
}

/// Runs the command, checks its exit code, and returns its output.
#[track_caller]
pub(crate) fn by_hand_ends(bed: &Bed, arguments: &[&str], code: i32) -> String {
    let output = by_hand(bed, arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// Checks that pods are rejected at both addresses, and that the metadata service sees nothing of it.
#[track_caller]
fn assert_closed(bed: &Bed, pod: &Pod) {
    let before = bed.metadata_requests_of(pod);
    for address in [METADATA, METADATA6] {
        assert_eq!(pod.connect(address, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    assert_eq!(bed.metadata_requests_of(pod), before);
}

/// Waits until a check succeeds. The error is that of the last check.
#[track_caller]
pub(crate) fn wait_until<T>(mut is: impl FnMut() -> io::Result<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match is() {
            Ok(found) => return found,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Checks that the rules lead to this port.
#[track_caller]
fn wait_until_as_wanted(bed: &Bed, backend: &str, port: u16) {
    let (redirect, port, ip) = (format!("--redirect={backend}"), format!("--app-port={port}"), format!("--host-ip={NODE_IP}"));
    wait_until(|| match by_hand(bed, &["status", &redirect, &port, &ip]) {
        Output { status, .. } if status.success() => Ok(()),
        output => Err(io::Error::other(String::from_utf8_lossy(&output.stdout).into_owned())),
    });
}

#[test]
fn flushed_rules_are_repaired() {
    for backend in BACKENDS {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        // The kernel reports changes of these flavours, so the repair does not wait for the interval.
        let daemon = bed.start(&setup(&bed, backend).argument("--redirect-interval=1h"));
        bed.assert_served(&pod, METADATA);
        flush(&bed, backend);
        let repaired = daemon.wait_for_event("rules-repaired").unwrap();
        // The flush may be half done when the notification arrives.
        let differences = repaired["differences"].as_str().unwrap();
        assert!(["missing", "ROLEGATE"].iter().any(|words| differences.contains(words)), "{repaired}");
        wait_until_as_wanted(&bed, backend, daemon.metadata_address().port());
        bed.assert_served(&pod, METADATA);
        assert_eq!(daemon.metric(Some(bed.node.ns()), "rolegate_redirect_in_place").unwrap(), 1.0);
        let repairs = daemon.metric(Some(bed.node.ns()), "rolegate_redirect_repairs_total{outcome=\"repaired\"}").unwrap();
        assert!(repairs >= 1.0, "{repairs}");
    }
}

/// The kernel does not report changes of this flavour.
#[test]
fn flushed_legacy_rules_are_repaired_on_the_interval() {
    let Some(bed) = Bed::new() else { return };
    let Some(kind) = Kind::all().into_iter().find(|kind| kind.name == "iptables-legacy") else { return };
    let pod = bed.pod("web", "veth");
    let daemon = bed.start(&kind.setup(&bed).argument("--redirect-interval=1s"));
    bed.assert_served(&pod, METADATA);
    let repairs = || daemon.metric(Some(bed.node.ns()), "rolegate_redirect_repairs_total{outcome=\"repaired\"}").unwrap();
    for _time in 0..2 {
        let before = repairs();
        bed.node.ns().sh(kind.flush).unwrap();
        // The flush may be half done when it is noticed. The rest is repaired on the next interval.
        wait_until(|| {
            let served = [METADATA, METADATA6].map(|address| fetch(&pod, address).is_ok_and(|fetched| fetched.role == pod.role()));
            let other = pod.connect((METADATA.ip(), 443).into(), PATIENCE).map_err(|error| error.kind());
            let refused = matches!(other, Err(ErrorKind::ConnectionRefused));
            match (served, refused, repairs() > before) {
                ([true, true], true, true) => Ok(()),
                seen => Err(io::Error::other(format!("{seen:?}\n{}", daemon.log()))),
            }
        });
        bed.assert_served(&pod, METADATA);
    }
    assert!(!daemon.events("rules-repaired").is_empty(), "{}", daemon.log());
    assert_eq!(daemon.metric(Some(bed.node.ns()), "rolegate_redirect_in_place").unwrap(), 1.0);
}

/// Another program puts rules for the metadata address ahead of ours.
#[test]
fn rules_put_ahead_of_ours_are_moved_behind() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let daemon = bed.start(&setup(&bed, "iptables"));
    bed.node.ns().sh("iptables -I FORWARD 1 -j ACCEPT && iptables -t nat -I PREROUTING 1 -j ACCEPT").unwrap();
    wait_until_as_wanted(&bed, "iptables", daemon.metadata_address().port());
    bed.assert_served(&pod, METADATA);
}

/// Neither the Kubernetes API nor AWS answers: the start gets no further than the steps that need neither.
#[test]
fn the_guard_is_installed_before_any_request_is_sent() {
    for backend in BACKENDS {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let silent: TcpListener = bed.node.ns().tcp_listener((NODE_IP, 0).into()).unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        bed.assert_not_redirected(&pod);
        let setup = bed.setup().argument(format!("--redirect={backend}")).argument(format!("--api-server={url}"));
        let mut daemon = setup.env("AWS_ENDPOINT_URL_STS", url).start().unwrap();
        assert_closed(&bed, &pod);
        flush(&bed, backend);
        for address in [METADATA, METADATA6] {
            wait_until(|| match pod.connect(address, PATIENCE) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => Err(io::Error::other(format!("{other:?}"))),
            });
        }
        daemon.terminate().unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", daemon.log());
        assert_closed(&bed, &pod);
    }
}

#[test]
fn the_boot_guard_is_taken_over_without_a_gap() {
    for backend in BACKENDS {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let redirect = format!("--redirect={backend}");
        by_hand_ends(&bed, &["install", "--guard", &redirect], 0);
        assert!(by_hand_ends(&bed, &["status", "--guard", &redirect], 0).contains("only the guard is installed"));
        assert_closed(&bed, &pod);
        let before = bed.metadata_requests_of(&pod);
        let daemon = std::thread::scope(|scope| {
            let started = scope.spawn(|| bed.start(&setup(&bed, backend)));
            while !started.is_finished() {
                // The request is refused or served. What matters is whether the metadata service saw it.
                let _ = fetch(&pod, METADATA);
            }
            started.join().unwrap()
        });
        assert_eq!(bed.metadata_requests_of(&pod), before);
        bed.assert_served(&pod, METADATA);
        drop(daemon);
        // A start that fails does not remove the rules that serve pods.
        let log = bed.start_in_vain(&setup(&bed, backend).without_env("AWS_REGION"));
        assert!(log.contains("no AWS region"), "{log}");
        assert_eq!(bed.metadata_requests_of(&pod), before);
    }
}

#[test]
fn rules_are_removed_at_the_end_if_configured() {
    for backend in BACKENDS {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let mut daemon = bed.start(&setup(&bed, backend).argument("--redirect-on-exit=remove"));
        bed.assert_served(&pod, METADATA);
        daemon.terminate().unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", daemon.log());
        assert_eq!(daemon.events("rules-removed").len(), 1, "{}", daemon.log());
        bed.assert_not_redirected(&pod);
    }
}

#[test]
fn the_end_of_one_daemon_keeps_the_rules_of_the_other() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let setup = setup(&bed, "nftables").argument("--app-port=8181").argument("--redirect-on-exit=remove");
    // Only daemons that hand the port over share it. Each has a socket of its own here.
    let sockets = tempfile::TempDir::new().unwrap();
    let start = |name: &str| bed.start(&setup.clone().argument(format!("--handover-socket={}", sockets.path().join(name).display())));
    let (mut first, mut second) = (start("first"), start("second"));
    for daemon in [&mut second, &mut first] {
        bed.assert_served(&pod, METADATA);
        daemon.terminate().unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", daemon.log());
    }
    assert_eq!(second.events("rules-kept").len(), 1, "{}", second.log());
    bed.assert_not_redirected(&pod);
}

#[test]
fn the_later_of_two_daemons_owns_the_rules_while_it_lives() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let start = |port: u16| bed.start(&setup(&bed, "nftables").argument(format!("--app-port={port}")));
    let first = start(8181);
    let second = start(8282);
    first.wait_for_event("rules-of-newer-daemon").unwrap();
    bed.assert_served(&pod, METADATA);
    wait_until_as_wanted(&bed, "nftables", 8282);
    // The later daemon is killed.
    drop(second);
    wait_until_as_wanted(&bed, "nftables", 8181);
    bed.assert_served(&pod, METADATA);
    first.wait_ready(Some(bed.node.ns())).unwrap();
}

#[test]
fn rules_are_installed_inspected_and_removed_by_hand() {
    for backend in BACKENDS {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let (redirect, ip) = (format!("--redirect={backend}"), format!("--host-ip={NODE_IP}"));
        let flags = [redirect.as_str(), ip.as_str(), "--app-port=8181"];
        let ask = |action: &str, code: i32| by_hand_ends(&bed, &[&[action], &flags[..]].concat(), code);
        assert!(ask("status", 1).contains("THE NODE IS OPEN"));
        assert!(ask("install", 0).contains("the rules are installed\n"));
        assert!(ask("install", 0).contains("the rules are already installed"));
        assert_closed(&bed, &pod);
        let told = ask("status", 0);
        assert!(
            told.contains("port 80 is redirected to the daemon at 10.42.0.1:8181") && told.contains("no rolegate daemon runs"),
            "{told}"
        );
        assert!(
            by_hand_ends(&bed, &["status", &redirect], 0).contains("10.42.0.1:8181"),
            "without an address, status uses the installed rules"
        );
        assert!(by_hand_ends(&bed, &["status", &redirect, &ip, "--app-port=9000"], 1).contains("differs ("));
        bed.node
            .ns()
            .sh("iptables -t nat -A PREROUTING -p tcp -d 169.254.169.254 --dport 80 -i cni0 -j DNAT --to-destination 10.0.0.9:8181")
            .unwrap();
        assert!(ask("status", 0).contains("kube2iam or kiam left a rule behind"));
        assert!(ask("render", 0).contains("10.42.0.1:8181"));
        let removed = by_hand_ends(&bed, &["remove", &redirect, "--peers"], 0);
        assert!(removed.contains("removed: ") && removed.contains("10.0.0.9"), "{removed}");
        assert_closed(&bed, &pod);
        assert!(by_hand_ends(&bed, &["remove", "--peers"], 0).contains("no rules of kube2iam or kiam to remove"));
        assert!(by_hand_ends(&bed, &["remove", &redirect], 0).contains("removed: "));
        assert!(by_hand_ends(&bed, &["remove", &redirect], 0).contains("no rules of rolegate to remove"));
        assert_eq!(bed.node.ns().sh("iptables -t nat -S PREROUTING").unwrap().trim(), "-P PREROUTING ACCEPT");
        bed.assert_not_redirected(&pod);
    }
}

#[test]
fn rules_that_a_daemon_needs_are_removed_only_by_force() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let daemon = bed.start(&setup(&bed, "nftables"));
    assert!(by_hand_ends(&bed, &["remove"], 1).contains("a rolegate daemon runs on this node"));
    by_hand_ends(&bed, &["remove", "--peers"], 0);
    bed.assert_served(&pod, METADATA);
    assert_eq!(daemon.metric(Some(bed.node.ns()), "rolegate_redirect_repairs_total{outcome=\"repaired\"}").unwrap(), 0.0);
    assert!(by_hand_ends(&bed, &["remove", "--force"], 0).contains("will install its rules again"));
    drop(daemon);
    by_hand_ends(&bed, &["remove"], 0);
}

/// If the tables of one family cannot be read, the other is closed all the same.
#[test]
fn ipv4_is_closed_by_hand_if_ipv6_cannot_be() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let Some(image) = image("nft") else { return };
    let broken = image.path().join("ip6tables-save");
    std::fs::remove_file(&broken).unwrap();
    std::os::unix::fs::symlink(find_program("false").unwrap(), broken).unwrap();
    let mut command = Command::new(find_program("nsenter").unwrap());
    command.arg(format!("--net={}", bed.node.ns().path())).args(["--", env!("CARGO_BIN_EXE_rolegate"), "redirect", "install", "--guard"]);
    let output =
        command.args(["--redirect=iptables", "--redirect-routing-rules=false"]).env_clear().env("PATH", image.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the IPv6 rules"), "{said}");
    bed.assert_refused(&pod);
}

/// The daemon that owns the rules hangs.
#[test]
fn a_later_daemon_that_hangs_does_not_prevent_repairs() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let start = |port: u16| bed.start(&setup(&bed, "nftables").argument(format!("--app-port={port}")));
    let first = start(8181);
    let second = start(8282);
    first.wait_for_event("rules-of-newer-daemon").unwrap();
    assert!(Command::new("kill").args(["-STOP", &second.pid().to_string()]).status().unwrap().success());
    flush(&bed, "nftables");
    wait_until_as_wanted(&bed, "nftables", 8181);
    bed.assert_served(&pod, METADATA);
}

#[test]
fn unreadable_rules_are_reported_with_exit_code_3() {
    let Some(bed) = Bed::new() else { return };
    let mut command = Command::new(find_program("nsenter").unwrap());
    command.arg(format!("--net={}", bed.node.ns().path())).args(["--", env!("CARGO_BIN_EXE_rolegate"), "redirect", "status"]);
    let output = command.env_clear().env("PATH", "/does/not/exist").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("neither nftables nor iptables works here") && said.contains("cannot run nft"), "{said}");
    by_hand_ends(&bed, &["install"], 1);
    by_hand_ends(&bed, &["install", "--redirect=none"], 2);
}

//! Tests of iptables rules that another program puts ahead of ours: nothing gets through, at boot and later, with each flavour,
//! and if the kernel or a program of the node lacks something.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::Setup;
use rolegate_lab::node::{NODE_IP6, find_program, skip};
use tempfile::TempDir;

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, Pod, fetch, image};
use crate::boot::{guard, try_everything_for};
use crate::keep::by_hand;

const FAMILIES: [&str; 2] = ["iptables", "ip6tables"];
/// How long a connection that is dropped is attempted.
const DROP_TIMEOUT: Duration = Duration::from_millis(300);

/// Runs a test on a node of each flavour, with a pod whose packets to the metadata service are counted.
fn each_flavour(test: impl Fn(&Bed, &Pod, &TempDir, &str)) {
    for flavour in ["nft", "legacy"] {
        let (Some(bed), Some(image)) = (Bed::new(), image(flavour)) else { return };
        let pod = bed.pod("web", "veth");
        bed.count_packets_of_pods();
        try_everything_for(&pod, DROP_TIMEOUT);
        assert!(bed.packets_of_pods() >= 6, "{flavour}: packets are not counted");
        bed.node.imds().unwrap().sh("nft reset counters table inet seen >/dev/null; nft delete table inet seen").unwrap();
        bed.count_packets_of_pods();
        test(&bed, &pod, &image, flavour);
    }
}

fn setup(bed: &Bed, image: &TempDir) -> Setup {
    bed.setup_with_ip().argument(format!("--host-ip={NODE_IP6}")).env("PATH", image.path().to_str().unwrap())
}

/// Accepts packets ahead of our rules, as network plugins and firewalls do.
fn accept_ahead(bed: &Bed, flavour: &str) {
    for family in FAMILIES {
        bed.node.ns().sh(&format!("{family}-{flavour} -w 30 -I FORWARD 1 -j ACCEPT")).unwrap();
    }
}

#[track_caller]
fn assert_closed(bed: &Bed, pod: &Pod, case: &str) {
    assert!(!try_everything_for(pod, DROP_TIMEOUT), "{case}");
    assert_eq!(bed.packets_of_pods(), 0, "{case}: a packet of the pod got through");
    for address in [METADATA, METADATA6] {
        assert!(fetch(bed.node.ns(), address).is_ok(), "{case}: the node's own process, {address}");
    }
}

#[test]
fn an_accept_ahead_of_the_boot_guard_opens_nothing() {
    each_flavour(|bed, pod, image, flavour| {
        let path = image.path().to_str().unwrap();
        for (family, file) in [("iptables", "guard.rules"), ("ip6tables", "guard6.rules")] {
            let file = format!("{}/iptables/{file}", env!("CARGO_MANIFEST_DIR"));
            bed.node.ns().sh(&format!("{family}-{flavour}-restore --noflush -w 60 {file}")).unwrap();
        }
        accept_ahead(bed, flavour);
        assert_closed(bed, pod, &format!("{flavour}, guard.rules"));
        for family in FAMILIES {
            bed.node
                .ns()
                .sh(&format!(
                    "for table in filter security; do {family}-{flavour} -w 30 -t $table -F; {family}-{flavour} -w 30 -t $table -X; done"
                ))
                .unwrap();
        }
        assert!(guard(bed, path).status.success());
        accept_ahead(bed, flavour);
        assert_closed(bed, pod, &format!("{flavour}, the script"));

        // The script is run again, and repairs what is in the wrong place or was emptied.
        for family in FAMILIES {
            let program = format!("{family}-{flavour} -w 30");
            bed.node.ns().sh(&format!("{program} -F ROLEGATE-GUARD; {program} -t security -I FORWARD 1 -j ACCEPT")).unwrap();
            bed.node.ns().sh(&format!("{program} -t security -F ROLEGATE-BACKSTOP")).unwrap();
        }
        assert!(guard(bed, path).status.success());
        bed.assert_refused(pod);
        assert_closed(bed, pod, &format!("{flavour}, the script again"));
        for (family, table) in FAMILIES.into_iter().flat_map(|family| [(family, "filter"), (family, "security")]) {
            let forward = bed.node.ns().sh(&format!("{family}-{flavour} -w 30 -t {table} -S FORWARD")).unwrap();
            let jumps: Vec<_> = forward.lines().map(|line| line.contains("-j ROLEGATE-")).collect();
            assert!(jumps[1] && jumps.iter().filter(|is_jump| **is_jump).count() == 1, "{family} {table}: {forward}");
        }
    });
}

#[test]
fn an_accept_ahead_of_the_daemons_guard_opens_nothing() {
    each_flavour(|bed, pod, image, flavour| {
        // Only notifications of changes cause a comparison, and legacy iptables sends none.
        let _daemon = bed.start(&setup(bed, image).argument("--redirect-interval=1h"));
        for _time in 0..5 {
            accept_ahead(bed, flavour);
            try_everything_for(pod, DROP_TIMEOUT);
            assert_eq!(bed.packets_of_pods(), 0, "{flavour}: a packet of the pod got through");
        }
        if flavour == "legacy" {
            let forward = bed.node.ns().sh("iptables-legacy -w 30 -S FORWARD").unwrap();
            assert_eq!(forward.lines().nth(1), Some("-A FORWARD -j ACCEPT"), "{forward}");
        }
        bed.assert_served(pod, METADATA);
        bed.assert_served(pod, METADATA6);
    });
}

/// The boot guard of an earlier version has no backstop.
#[test]
fn a_guard_without_a_backstop_gets_one_before_the_daemon_is_ready() {
    each_flavour(|bed, pod, image, flavour| {
        assert!(guard(bed, image.path().to_str().unwrap()).status.success());
        for family in FAMILIES {
            bed.node.ns().sh(&format!("{family}-{flavour} -w 30 -t security -F; {family}-{flavour} -w 30 -t security -X")).unwrap();
        }
        // It gets no further than its guard, because its API cannot be reached.
        let mut daemon = setup(bed, image).argument("--api-server=http://127.0.0.1:9").start().unwrap();
        daemon.terminate().unwrap();
        daemon.wait().unwrap();
        accept_ahead(bed, flavour);
        assert_closed(bed, pod, flavour);
    });
}

/// Replaces a program by a script.
fn replace(image: &Path, name: &str, script: &str) {
    let path = image.join(name);
    fs::remove_file(&path).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Makes the legacy programs behave as if the kernel had been built without the table.
fn without_security(image: &Path, flavour: &str) {
    for family in FAMILIES {
        let program = |part: &str| find_program(&format!("{family}-{flavour}{part}")).unwrap().display().to_string();
        let missing = "Table does not exist (do you need to insmod?)";
        let refuse = format!("echo \"can't initialize iptables table 'security': {missing}\" >&2; exit 3");
        replace(image, family, &format!("case \"$*\" in *\"-t security\"*) {refuse} ;; esac\nexec {} \"$@\"", program("")));
        let read = format!("while IFS= read -r line; do [ \"$line\" != '*security' ] || {{ {refuse}; }}; text=\"$text$line\n\"; done");
        let restore = format!("text=\n{read}\nprintf %s \"$text\" | {} \"$@\"", program("-restore"));
        replace(image, &format!("{family}-restore"), &restore);
    }
}

#[test]
fn without_the_security_table_mangle_closes_the_node() {
    each_flavour(|bed, pod, image, flavour| {
        without_security(image.path(), flavour);
        let output = guard(bed, image.path().to_str().unwrap());
        assert!(output.status.success(), "{output:?}");
        accept_ahead(bed, flavour);
        assert_closed(bed, pod, flavour);
        let mangle = format!("iptables-{flavour} -w 30 -t mangle -S FORWARD; ip6tables-{flavour} -w 30 -t mangle -S FORWARD");
        assert_eq!(bed.node.ns().sh(&mangle).unwrap().matches("-j ROLEGATE-BACKSTOP").count(), 2);
        let daemon = bed.start(&setup(bed, image).argument("--redirect-interval=1h").argument("--self-test=off"));
        bed.assert_served(pod, METADATA);
        bed.assert_served(pod, METADATA6);
        assert!(!daemon.events("security-table-missing").is_empty(), "{}", daemon.log());
        accept_ahead(bed, flavour);
        try_everything_for(pod, DROP_TIMEOUT);
        assert_eq!(bed.packets_of_pods(), 0, "{flavour}: a packet of the pod got through");
        assert_eq!(bed.node.ns().sh(&mangle).unwrap().matches("-j ROLEGATE-BACKSTOP").count(), 2);
    });
}

/// The daemon reports the broken program, and keeps the other family closed.
#[test]
fn the_ipv4_guard_is_repaired_while_ip6tables_is_broken() {
    each_flavour(|bed, pod, image, flavour| {
        let daemon = bed.start(&setup(bed, image).argument("--redirect-interval=1s"));
        for program in ["ip6tables", "ip6tables-restore", "ip6tables-save"] {
            replace(image.path(), program, "echo 'ip6tables is broken' >&2; exit 1");
        }
        bed.node.ns().sh(&format!("iptables-{flavour} -w 30 -F; iptables-{flavour} -w 30 -t security -F")).unwrap();
        let since = Instant::now();
        let is_whole = || {
            let rules =
                bed.node.ns().sh(&format!("iptables-{flavour} -w 30 -S FORWARD; iptables-{flavour} -w 30 -S ROLEGATE-GUARD")).unwrap();
            rules.contains("-A FORWARD -d 169.254.169.254/32 -j ROLEGATE-GUARD") && rules.matches("-j REJECT").count() == 2
        };
        while !is_whole() {
            assert!(since.elapsed() < PATIENCE, "{flavour}: not repaired: {}", daemon.log());
            std::thread::yield_now();
        }
        while !daemon.log().contains("ip6tables is broken") {
            assert!(since.elapsed() < PATIENCE, "{flavour}: not reported: {}", daemon.log());
            std::thread::yield_now();
        }
        bed.assert_served(pod, METADATA);
    });
}

/// The command reports it, but it causes no repair, because it is not ours.
#[test]
fn a_nat_chain_ahead_of_ours_is_reported() {
    if find_program("nft").is_none() {
        return skip("the program `nft` is not installed");
    }
    let Some(bed) = Bed::new() else { return };
    let table = "add table inet mesh; add chain inet mesh first { type nat hook prerouting priority -150; }";
    bed.node.ns().sh(&format!("nft '{table}'")).unwrap();
    for backend in ["nftables", "iptables"] {
        let arguments = [format!("--redirect={backend}"), "--host-ip=10.42.0.1".to_owned()];
        let by_hand = |action: &str| by_hand(&bed, &[action, &arguments[0], &arguments[1]]);
        assert!(by_hand("install").status.success());
        let output = by_hand("status");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("the chain first of the table inet mesh has NAT at priority -150"), "{backend}: {said}");
        assert!(output.status.success() && said.matches("has NAT at priority").count() == 1, "{backend}: {said}");
    }
}

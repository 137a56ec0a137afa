//! Tests of the rules across the daemon's life: installed twice, left behind, impossible to install.

use rolegate_lab::daemon::Setup;
use rolegate_lab::node::{NODE_IP, find_program, skip};

use crate::bed::{Bed, METADATA, image};

fn on_port(bed: &Bed, port: u16) -> Setup {
    bed.setup_with_ip().argument(format!("--app-port={port}"))
}

#[test]
fn the_rule_stays_when_the_daemon_ends() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    bed.assert_not_redirected(&pod);
    let mut daemon = bed.start(&bed.setup_with_ip());
    bed.assert_served(&pod, METADATA);
    let rules = bed.rules("iptables");
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", daemon.log());
    bed.assert_refused(&pod);
    assert_eq!(bed.rules("iptables"), rules);
}

#[test]
fn the_rule_stays_when_the_daemon_is_killed() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    drop(bed.start(&bed.setup_with_ip()));
    bed.assert_refused(&pod);
}

#[test]
fn a_restart_leaves_one_jump_and_the_new_target() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    for port in [8181, 8282, 8282] {
        let mut daemon = bed.start(&on_port(&bed, port));
        bed.assert_served(&pod, METADATA);
        let rules = bed.rules("iptables");
        assert_eq!(rules.prerouting, ["-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j ROLEGATE"]);
        assert_eq!(rules.targets, [format!("{NODE_IP}:{port}")]);
        daemon.terminate().unwrap();
        daemon.wait().unwrap();
        bed.assert_refused(&pod);
    }
}

/// An image has one flavour, and the node may have the other.
#[test]
fn either_flavour_of_the_program_will_do() {
    for flavour in ["nft", "legacy"] {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let Some(image) = image(flavour) else { return };
        let setup = bed.setup_with_ip().env("PATH", image.path().to_str().unwrap());
        for _start in 0..2 {
            let _daemon = bed.start(&setup);
            bed.assert_served(&pod, METADATA);
            assert_eq!(bed.rules(&format!("iptables-{flavour}")).jumps(), 1, "{flavour}");
        }
        bed.assert_refused(&pod);
    }
}

/// The rule that kube2iam leaves behind when it is uninstalled, and unrelated rules of other programs.
#[test]
fn rules_of_others_stay_and_do_not_come_first() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let others = [
        "-A PREROUTING -d 169.254.169.254/32 -i veth+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.0.1:1",
        "-A PREROUTING -d 10.43.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:6443",
    ];
    for rule in others {
        bed.node.ns().sh(&format!("iptables -t nat {rule}")).unwrap();
    }
    let _daemon = bed.start(&bed.setup_with_ip());
    bed.assert_served(&pod, METADATA);
    let rules = bed.rules("iptables");
    assert_eq!(rules.jumps(), 1);
    assert_eq!(rules.prerouting[1..], others);
}

/// A rule that another program put ahead of ours while no daemon ran would capture the pods' requests.
#[test]
fn a_restart_moves_the_jump_back_to_the_head() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    drop(bed.start(&bed.setup_with_ip()));
    bed.node.ns().sh("iptables -t nat -I PREROUTING 1 -d 169.254.169.254/32 -p tcp -j DNAT --to-destination 10.42.0.1:1").unwrap();
    let _daemon = bed.start(&bed.setup_with_ip());
    bed.assert_served(&pod, METADATA);
    let rules = bed.rules("iptables");
    assert_eq!((rules.jumps(), rules.prerouting.len()), (1, 2));
    assert!(rules.prerouting[0].ends_with("-j ROLEGATE"), "{:?}", rules.prerouting);
}

/// Otherwise, the node would be open between two starts of a crash loop.
#[test]
fn a_failed_start_leaves_the_rules_in_place() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    // No source names a region.
    let error = bed.start_in_vain(&bed.setup_with_ip().without_env("AWS_REGION"));
    assert!(error.contains("no AWS region"), "{error}");
    assert!(bed.node.ns().sh("iptables -S FORWARD").unwrap().contains("-j ROLEGATE-GUARD"), "at least the guard stays");
    bed.assert_refused(&pod);
}

#[test]
fn without_the_program_the_daemon_reports_it_and_ends() {
    let Some(bed) = Bed::new() else { return };
    let empty = tempfile::tempdir().unwrap();
    let setup = bed.setup_with_ip().env("PATH", empty.path().to_str().unwrap());
    let error = bed.start_in_vain(&setup);
    assert!(error.contains("cannot run iptables") && error.contains("--redirect=none"), "{error}");
}

#[test]
fn without_the_capability_the_daemon_reports_it_and_ends() {
    let Some(bed) = Bed::new() else { return };
    if find_program("setpriv").is_none() {
        return skip("the program `setpriv` is not installed");
    }
    let error = bed.start_in_vain(&bed.setup_with_ip().by_way_of(["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]));
    assert!(error.contains("iptables failed: ") && error.matches("NET_ADMIN").count() == 1, "{error}");
    assert_eq!(bed.rules("iptables").jumps(), 0);
}

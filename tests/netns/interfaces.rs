//! Tests of which interfaces are redirected. Packets that arrive on others are rejected, because the guard applies to all
//! interfaces.

use std::io::ErrorKind;

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE};
use crate::kinds::Kind;

/// Names of pods' interfaces, without the number that follows: those of EC2's trunks and of network plugins, VLANs under their
/// usual name, and anything else that the kernel accepts. With two more digits, none exceeds the kernel's limit.
const NAMES: [&str; 10] = ["vlan123", "eni0a1b2c3d4e5", "cali0123456789", "eth0.", "a-b_c", "v*", "v+", "$x;{}@~", "[ö]", "-"];

#[test]
fn every_interface_is_covered_unless_some_are_named() {
    let Some(bed) = Bed::new() else { return };
    let pods = ["veth", "vlan", "eni", "cali"].map(|prefix| bed.pod(prefix, prefix));
    let _daemon = bed.start(&bed.setup_with_ip());
    pods.iter().for_each(|pod| bed.assert_served(pod, METADATA));
}

#[test]
fn a_prefix_covers_only_its_own_interfaces() {
    let Some(bed) = Bed::new() else { return };
    let (covered, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"));
    let _daemon = bed.start(&bed.setup_with_ip().argument("--host-interface=veth+"));
    bed.assert_served(&covered, METADATA);
    bed.assert_refused(&left_out);
}

#[test]
fn a_list_covers_the_named_interfaces() {
    let Some(bed) = Bed::new() else { return };
    let (first, second, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"), bed.pod("other", "veth"));
    let list = format!("--host-interface={},vlan+", first.host_interface());
    let _daemon = bed.start(&bed.setup_with_ip().argument(list));
    bed.assert_served(&first, METADATA);
    bed.assert_served(&second, METADATA);
    bed.assert_refused(&left_out);
}

#[test]
fn a_negated_name_excludes_only_that_interface() {
    let Some(bed) = Bed::new() else { return };
    let (first, second, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"), bed.pod("other", "veth"));
    let all_but = format!("--host-interface=!{}", left_out.host_interface());
    let _daemon = bed.start(&bed.setup_with_ip().argument(all_but));
    bed.assert_served(&first, METADATA);
    bed.assert_served(&second, METADATA);
    bed.assert_refused(&left_out);
}

#[test]
fn oddly_named_interfaces_are_covered_like_any_other() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pods: Vec<_> = NAMES.into_iter().enumerate().map(|(number, name)| bed.pod(&format!("pod-{number}"), name)).collect();
        bed.count_packets_of_pods();
        let _daemon = bed.start(&kind.setup(&bed));
        for pod in &pods {
            for metadata in [METADATA, METADATA6] {
                bed.assert_served(pod, metadata);
                let other = std::net::SocketAddr::new(metadata.ip(), 443);
                let (interface, refused) = (pod.host_interface(), ErrorKind::ConnectionRefused);
                assert_eq!(pod.connect(other, PATIENCE).unwrap_err().kind(), refused, "{} {interface}", kind.name);
            }
        }
        assert_eq!(bed.packets_of_pods(), 0, "{}", kind.name);
    }
}

/// The name is taken literally, whatever its characters mean to a shell or in the language of the rules.
#[test]
fn an_odd_name_matches_only_that_interface() {
    const GIVEN: [&str; 7] = ["vlan123", "eni0a1b2c3d4e5", "cali0123456789", "eth0.", "a-b_c", "v*", "$x;{}@~"];
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pods: Vec<_> = GIVEN.into_iter().enumerate().map(|(number, name)| bed.pod(&format!("pod-{number}"), name)).collect();
        for (number, covered) in pods.iter().enumerate() {
            let left_out = &pods[(number + 1) % pods.len()];
            let _daemon = bed.start(&kind.setup(&bed).argument(format!("--host-interface={}", covered.host_interface())));
            let case = format!("{} {}", kind.name, covered.host_interface());
            for metadata in [METADATA, METADATA6] {
                bed.assert_served(covered, metadata);
                assert_eq!(left_out.connect(metadata, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{case}");
            }
        }
    }
}

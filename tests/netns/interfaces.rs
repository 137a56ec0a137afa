//! Which interfaces are redirected; what comes in on others is rejected, as the guard knows no interfaces.

use crate::bed::{Bed, METADATA};

#[test]
fn every_interface_is_covered_unless_some_are_named() {
    let Some(bed) = Bed::new() else { return };
    let pods = ["veth", "vlan", "eni", "cali"].map(|prefix| bed.pod(prefix, prefix));
    let _daemon = bed.start(&bed.setup_with_ip());
    pods.iter().for_each(|pod| bed.assert_served(pod, METADATA));
}

#[test]
fn a_prefix_covers_its_own_interfaces_alone() {
    let Some(bed) = Bed::new() else { return };
    let (covered, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"));
    let _daemon = bed.start(&bed.setup_with_ip().argument("--host-interface=veth+"));
    bed.assert_served(&covered, METADATA);
    bed.assert_refused(&left_out);
}

#[test]
fn a_list_covers_what_it_names() {
    let Some(bed) = Bed::new() else { return };
    let (first, second, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"), bed.pod("other", "veth"));
    let list = format!("--host-interface={},vlan+", first.host_interface());
    let _daemon = bed.start(&bed.setup_with_ip().argument(list));
    bed.assert_served(&first, METADATA);
    bed.assert_served(&second, METADATA);
    bed.assert_refused(&left_out);
}

#[test]
fn a_negated_name_leaves_out_that_interface_alone() {
    let Some(bed) = Bed::new() else { return };
    let (first, second, left_out) = (bed.pod("web", "veth"), bed.pod("trunk", "vlan"), bed.pod("other", "veth"));
    let all_but = format!("--host-interface=!{}", left_out.host_interface());
    let _daemon = bed.start(&bed.setup_with_ip().argument(all_but));
    bed.assert_served(&first, METADATA);
    bed.assert_served(&second, METADATA);
    bed.assert_refused(&left_out);
}

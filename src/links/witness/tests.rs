use super::*;

const BRIDGE: u32 = 3;

fn own(interface: u32) -> Link {
    Link { interface, kind: LinkKind::Own }
}

fn shared(interface: u32) -> Link {
    Link { interface, kind: LinkKind::Shared }
}

fn bridge(mac: Option<u8>, port: Option<u32>) -> Link {
    Link { interface: BRIDGE, kind: LinkKind::Bridge { mac: mac.map(|last| [2, 0, 0, 0, 0, last]), port, moved: 0 } }
}

/// Interfaces 10 to 19 are ports.
fn followed(before: Link, now: Option<Link>) -> Option<Link> {
    before.followed_by(now, |bridge, port| bridge == BRIDGE && (10..20).contains(&port))
}

#[test]
fn a_pods_own_link_stays_the_same_or_contradicts() {
    assert_eq!(followed(own(7), Some(own(7))), Some(own(7)));
    for other in [None, Some(own(8)), Some(shared(7)), Some(shared(2)), Some(bridge(None, None))] {
        assert_eq!(followed(own(7), other), None, "{other:?}");
    }
}

#[test]
fn a_changed_mac_or_port_contradicts_and_learned_ones_are_kept() {
    let known = bridge(Some(1), Some(10));
    assert_eq!(followed(bridge(None, None), Some(known)), Some(known));
    assert_eq!(followed(bridge(Some(1), None), Some(bridge(None, Some(10)))), Some(known));
    let unplaced = bridge(Some(1), None);
    assert_eq!(followed(bridge(None, None), Some(unplaced)), Some(bridge(None, None)), "the MAC address may be left over from another pod");
    assert_eq!((unplaced.to_pin(), known.to_pin(), own(7).to_pin()), (bridge(None, None), known, own(7)));
    assert_eq!(followed(known, Some(bridge(None, None))), Some(known), "forgotten by the kernel but not by rolegate");
    for other in [
        Some(bridge(Some(2), Some(10))),
        Some(bridge(Some(1), Some(11))),
        Some(bridge(Some(2), None)),
        Some(Link { interface: 4, ..known }),
        Some(own(BRIDGE)),
        Some(shared(2)),
        None,
    ] {
        assert_eq!(followed(known, other), None, "{other:?}");
    }
}

#[test]
fn a_removed_port_ends_the_link() {
    let gone = bridge(Some(1), Some(30));
    assert_eq!(followed(gone, Some(bridge(Some(1), None))), None);
}

#[test]
fn a_shared_interface_is_replaced_by_a_more_specific_link() {
    assert_eq!(followed(shared(2), Some(own(7))), Some(own(7)));
    assert_eq!(followed(shared(2), Some(shared(4))), Some(shared(4)));
    assert_eq!(followed(shared(2), None), Some(shared(2)));
    assert!(!shared(2).is_exclusive() && !bridge(Some(1), None).is_exclusive());
    assert!(own(7).is_exclusive() && bridge(None, Some(10)).is_exclusive());
}

#[test]
fn a_link_that_changed_in_between_has_moved() {
    let moved = |moved| Link { interface: BRIDGE, kind: LinkKind::Bridge { mac: None, port: None, moved } };
    assert!(moved(1).moved_until(moved(2)));
    assert!(!moved(2).moved_until(moved(2)) && !moved(2).moved_until(moved(0)), "a forgotten link has not moved");
    assert!(!own(7).moved_until(own(8)) && !moved(1).moved_until(own(7)));
}

#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;

const MAC: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 2];

fn bridge(mac: Option<Mac>, port: Option<u32>, moved: u64) -> Link {
    Link { interface: 3, kind: LinkKind::Bridge { mac, port, moved } }
}

#[test]
fn a_link_is_confirmed_by_what_does_not_contradict_it() {
    let known = bridge(Some(MAC), Some(7), 5);
    for now in [known, bridge(None, None, 5), bridge(Some(MAC), None, 5), bridge(None, Some(7), 0)] {
        assert_eq!(known.confirmed(now), Some(known), "{now:?}");
    }
    assert_eq!(bridge(None, None, 5).confirmed(known), Some(known), "what is new is known from here on");
    for now in [
        bridge(Some(OTHER), Some(7), 5),
        bridge(Some(MAC), Some(8), 5),
        // It went elsewhere and back.
        bridge(Some(MAC), Some(7), 6),
        Link { interface: 4, ..known },
        Link { interface: 3, kind: LinkKind::Own },
        Link { interface: 3, kind: LinkKind::Shared },
    ] {
        assert_eq!(known.confirmed(now), None, "{now:?}");
    }
    let own = Link { interface: 3, kind: LinkKind::Own };
    assert_eq!(own.confirmed(own), Some(own));
    assert_eq!(own.confirmed(Link { interface: 4, ..own }), None);
    assert_eq!(own.confirmed(Link { kind: LinkKind::Shared, ..own }), None);
}

#[test]
fn without_a_table_nothing_is_known() {
    let links = Links::none();
    let ip = "10.0.0.1".parse().unwrap();
    links.catch_up();
    links.forget(ip);
    assert_eq!((links.of(ip), links.generation(), links.has_bridges(), links.is_open()), (Reach::Unknown, 0, false, false));
    assert_eq!(links.changes().has_changed().ok(), Some(false), "nobody is woken again and again");
    assert_eq!((links.named("lo"), links.name_of(1), links.master_of(1)), (None, None, None));
}

#[test]
fn the_node_itself_is_nowhere() {
    let links = Links::open().unwrap();
    let loopback = links.named("lo").unwrap();
    assert_eq!(links.name_of(loopback).as_deref(), Some("lo"));
    assert_eq!(links.master_of(loopback), None);
    for ip in ["127.0.0.1", "::ffff:127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
        assert_eq!(links.of(ip.parse().unwrap()), Reach::Nowhere, "{ip}");
    }
}

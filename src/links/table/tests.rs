#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;
use crate::links::event::Prefix;

const BRIDGE: u32 = 3;
const MAC: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 2];

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn interface(index: u32, kind: &str, master: Option<u32>) -> Interface {
    let kind = Some(kind.to_owned()).filter(|kind| !kind.is_empty());
    Interface { index, name: format!("if{index}"), mac: None, kind, master, is_up: true, vlan: None }
}

/// Creates a table with a bridge, its two ports, and a pair.
fn table() -> LinkTable {
    let mut table = LinkTable::default();
    table.set_links(&[
        interface(BRIDGE, "bridge", None),
        interface(7, "veth", Some(BRIDGE)),
        interface(8, "veth", Some(BRIDGE)),
        interface(9, "veth", None),
    ]);
    table
}

fn on_bridge(mac: Option<Mac>, port: Option<u32>) -> KernelAnswer {
    KernelAnswer::Bridge { interface: BRIDGE, mac, port }
}

fn put(table: &mut LinkTable, ip: IpAddr, found: KernelAnswer) -> Reach {
    table.ask(ip);
    let (reach, is_kept) = table.answer(ip, found);
    assert!(is_kept);
    assert_eq!(table.fresh(ip), Some(reach));
    reach
}

/// Checks whether an event changes the generation and makes the answer stale.
#[track_caller]
fn assert_stale(table: &mut LinkTable, ip: IpAddr, event: &LinkEvent, wanted: bool) {
    let before = table.generation();
    table.apply(event);
    assert_eq!((table.generation() != before, table.fresh(ip).is_none()), (wanted, wanted), "{event:?}");
}

fn moved(reach: Reach) -> u64 {
    match reach {
        Reach::By(Link { kind: LinkKind::Bridge { moved, .. }, .. }) => moved,
        other => panic!("{other:?}"),
    }
}

fn neighbour(mac: Option<Mac>) -> LinkEvent {
    LinkEvent::Neighbour { interface: BRIDGE, ip: ip(1), mac }
}

fn forwarding(mac: Mac, port: Option<u32>) -> LinkEvent {
    LinkEvent::Forwarding { bridge: BRIDGE, mac, vlan: None, port }
}

#[test]
fn a_route_says_what_kind_of_link_it_is() {
    let route = |interface| KernelRoute { interface, by_gateway: false, for_one: true, is_unicast: true };
    let table = table();
    let of = |route: KernelRoute| classify(route, table.link(route.interface));
    assert_eq!(of(route(9)), KernelAnswer::Own { interface: 9 });
    assert_eq!(of(KernelRoute { for_one: false, ..route(9) }), KernelAnswer::Shared { interface: 9 }, "Cilium's cilium_host");
    assert_eq!(of(KernelRoute { by_gateway: true, ..route(9) }), KernelAnswer::Shared { interface: 9 });
    assert_eq!(of(route(7)), KernelAnswer::Shared { interface: 7 }, "a port of a bridge");
    assert_eq!(of(KernelRoute { for_one: false, ..route(BRIDGE) }), on_bridge(None, None));
    assert_eq!(of(KernelRoute { by_gateway: true, ..route(BRIDGE) }), KernelAnswer::Shared { interface: BRIDGE });
    assert_eq!(of(KernelRoute { is_unicast: false, ..route(9) }), KernelAnswer::Nowhere);
    assert_eq!(of(route(0)), KernelAnswer::Shared { interface: 0 }, "several next hops");
    for kind in ["ipvlan", "macvlan", "openvswitch", "vlan", ""] {
        assert_eq!(
            classify(route(5), Some(&KnownInterface::of(&interface(5, kind, None)))),
            KernelAnswer::Shared { interface: 5 },
            "{kind}"
        );
    }
    assert_eq!(classify(route(5), Some(&KnownInterface::of(&interface(5, "netkit", None)))), KernelAnswer::Own { interface: 5 });
}

#[test]
fn only_relevant_changes_make_an_answer_stale() {
    let mut table = table();
    let own = put(&mut table, ip(1), KernelAnswer::Own { interface: 9 });
    assert_eq!(own, Reach::By(Link { interface: 9, kind: LinkKind::Own }));
    let network = |last, prefix| LinkEvent::Routes(Prefix { ip: ip(last), prefix });
    let down = Interface { is_up: false, ..interface(9, "veth", None) };
    for (event, wanted) in [
        (network(2, 32), false),
        (network(1, 32), true),
        (network(0, 24), true),
        (network(0, 0), true),
        (LinkEvent::AllRoutes, true),
        // Interfaces that have not changed.
        (LinkEvent::Interface(interface(9, "veth", None)), false),
        (LinkEvent::Interface(Interface { is_up: false, ..interface(7, "veth", Some(BRIDGE)) }), false),
        // The interface comes up again.
        (LinkEvent::Interface(interface(7, "veth", Some(BRIDGE))), true),
        (LinkEvent::Interface(down), true),
        (LinkEvent::Interface(interface(9, "veth", Some(BRIDGE))), true),
        (LinkEvent::Port { interface: 9, bridge: Some(BRIDGE) }, false),
        (LinkEvent::Port { interface: 9, bridge: None }, true),
        (LinkEvent::Gone(9), true),
        (neighbour(Some(MAC)), false),
        (forwarding(MAC, Some(7)), false),
    ] {
        put(&mut table, ip(1), KernelAnswer::Own { interface: 9 });
        assert_stale(&mut table, ip(1), &event, wanted);
    }
    put(&mut table, ip(1), KernelAnswer::Nowhere);
    assert_stale(&mut table, ip(1), &network(1, 32), true);
}

#[test]
fn a_new_or_removed_interface_affects_look_ups_by_name() {
    let mut table = table();
    put(&mut table, ip(1), KernelAnswer::Own { interface: 9 });
    let renamed = Interface { name: "eth9".into(), ..interface(9, "veth", None) };
    for event in [LinkEvent::Interface(interface(10, "veth", None)), LinkEvent::Interface(renamed), LinkEvent::Gone(10), LinkEvent::Gone(8)]
    {
        let before = table.generation();
        table.apply(&event);
        assert!(table.generation() > before, "{event:?}");
        assert!(table.fresh(ip(1)).is_some(), "{event:?}");
    }
}

#[test]
fn a_reconfirmed_neighbour_changes_nothing() {
    let mut table = table();
    put(&mut table, ip(1), on_bridge(Some(MAC), Some(7)));
    for event in [
        neighbour(Some(MAC)),
        forwarding(MAC, Some(7)),
        LinkEvent::Neighbour { interface: 9, ip: ip(1), mac: Some(OTHER) },
        LinkEvent::Neighbour { interface: BRIDGE, ip: ip(2), mac: Some(OTHER) },
        forwarding(OTHER, Some(8)),
        LinkEvent::Forwarding { bridge: 4, mac: MAC, vlan: None, port: Some(8) },
        LinkEvent::Forwarding { bridge: BRIDGE, mac: MAC, vlan: Some(5), port: Some(8) },
    ] {
        assert_stale(&mut table, ip(1), &event, false);
    }
}

#[test]
fn a_move_is_remembered_even_if_it_is_reversed() {
    let mut table = table();
    let all = on_bridge(Some(MAC), Some(7));
    let first = put(&mut table, ip(1), all);
    assert_eq!(first, Reach::By(Link { interface: BRIDGE, kind: LinkKind::Bridge { mac: Some(MAC), port: Some(7), moved: 0 } }));
    for (there, back) in [(neighbour(Some(OTHER)), neighbour(Some(MAC))), (forwarding(MAC, Some(8)), forwarding(MAC, Some(7)))] {
        let before = moved(put(&mut table, ip(1), all));
        assert_stale(&mut table, ip(1), &there, true);
        table.apply(&back);
        let after = moved(put(&mut table, ip(1), all));
        assert!(after > before && after <= table.generation(), "{there:?}");
        assert_eq!(moved(put(&mut table, ip(1), all)), after, "the generation of the move stays");
    }
    // A change that was not announced is noticed in the answer.
    let before = moved(put(&mut table, ip(1), all));
    assert!(moved(put(&mut table, ip(1), on_bridge(Some(MAC), Some(8)))) > before);
}

#[test]
fn a_forgotten_address_is_unknown_and_has_not_moved() {
    let mut table = table();
    let all = on_bridge(Some(MAC), Some(7));
    for (gone, left, again) in [
        (neighbour(None), on_bridge(None, None), neighbour(Some(MAC))),
        (forwarding(MAC, None), on_bridge(Some(MAC), None), forwarding(MAC, Some(7))),
    ] {
        put(&mut table, ip(1), all);
        assert_stale(&mut table, ip(1), &gone, true);
        assert_eq!(moved(put(&mut table, ip(1), left)), 0);
        assert_stale(&mut table, ip(1), &again, true);
        assert_eq!(moved(put(&mut table, ip(1), all)), 0);
    }
}

/// Bridges flood frames to a link-layer address that no port has: any pod can have a connection with it.
#[test]
fn a_link_layer_address_without_a_port_moves_like_any_other() {
    let (own, left) = (on_bridge(Some(MAC), Some(7)), on_bridge(Some(MAC), None));
    let uses: [&dyn Fn(&mut LinkTable); 4] = [
        // The bridge has forgotten the port of a living pod that is idle, or has none because it learns none.
        &|table| {
            put(table, ip(1), left);
        },
        &|table| {
            put(table, ip(1), own);
            table.apply(&forwarding(MAC, None));
            put(table, ip(1), left);
        },
        // A pod that had taken the address is gone, and another one still receives what is sent to it.
        &|table| {
            put(table, ip(1), own);
            table.apply(&LinkEvent::Gone(7));
            put(table, ip(1), left);
        },
        &|table| {
            put(table, ip(1), own);
            table.apply(&LinkEvent::Gone(7));
        },
    ];
    for (case, use_it) in uses.iter().enumerate() {
        let mut table = table();
        use_it(&mut table);
        let before = table.generation();
        table.apply(&neighbour(Some(OTHER)));
        assert!(moved(put(&mut table, ip(1), on_bridge(Some(OTHER), Some(8)))) > before, "case {case}");
    }
}

#[test]
fn the_address_of_a_pod_that_is_gone_has_not_moved_once_its_neighbour_is_removed() {
    let (own, next) = (on_bridge(Some(MAC), Some(7)), on_bridge(Some(OTHER), Some(8)));
    let leftover = Leftover { ip: ip(1), bridge: BRIDGE, mac: MAC, port: 7 };
    let mut table = table();
    put(&mut table, ip(1), own);
    assert_eq!(table.leftovers(), [], "its port exists");
    table.apply(&LinkEvent::Gone(8));
    assert_eq!(table.leftovers(), []);
    table.apply(&LinkEvent::Interface(interface(8, "veth", Some(BRIDGE))));
    table.apply(&LinkEvent::Gone(7));
    assert_eq!(table.leftovers(), [leftover]);
    let before = table.generation();
    assert!(table.forget_leftover(leftover) && table.generation() > before);
    assert_eq!((table.leftovers(), table.forget_leftover(leftover)), (vec![], false));
    table.apply(&neighbour(None));
    table.apply(&neighbour(Some(OTHER)));
    assert_eq!(moved(put(&mut table, ip(1), next)), 0);
    table.apply(&neighbour(Some(MAC)));
    assert!(moved(put(&mut table, ip(1), own)) > 0, "the next change is a move");
}

#[test]
fn a_removed_neighbour_does_not_hide_moves() {
    let leftover = Leftover { ip: ip(1), bridge: BRIDGE, mac: MAC, port: 7 };
    let left = || {
        let mut table = table();
        put(&mut table, ip(1), on_bridge(Some(MAC), Some(7)));
        table.apply(&LinkEvent::Gone(7));
        assert!(table.forget_leftover(leftover));
        table
    };
    let next = on_bridge(Some(OTHER), Some(8));
    // A pod forges the same link-layer address afterwards.
    let mut forged = left();
    forged.apply(&neighbour(None));
    forged.apply(&neighbour(Some(MAC)));
    forged.apply(&neighbour(Some(OTHER)));
    assert!(moved(put(&mut forged, ip(1), next)) > 0);
    // It could not be removed, or a pod got the address meanwhile.
    let mut restored = left();
    restored.restore_leftover(leftover);
    restored.apply(&neighbour(Some(OTHER)));
    assert!(moved(put(&mut restored, ip(1), next)) > 0);
    let mut late = left();
    late.apply(&neighbour(Some(OTHER)));
    late.restore_leftover(leftover);
    assert!(moved(put(&mut late, ip(1), next)) > 0);
    // What moved earlier stays so.
    let mut before = table();
    put(&mut before, ip(1), on_bridge(Some(OTHER), Some(8)));
    before.apply(&neighbour(Some(MAC)));
    let earlier = moved(put(&mut before, ip(1), on_bridge(Some(MAC), Some(7))));
    before.apply(&LinkEvent::Gone(7));
    assert!(before.forget_leftover(leftover));
    assert_eq!((earlier > 0, moved(put(&mut before, ip(1), next))), (true, earlier));
    // Another neighbour is not forgotten.
    assert!(!left().forget_leftover(Leftover { mac: OTHER, ..leftover }));
    assert!(!left().forget_leftover(Leftover { bridge: 4, ..leftover }));
}

/// The API reports the end of a pod, and then the node removes its network.
#[test]
fn an_address_is_kept_until_its_port_is_removed() {
    let leftover = Leftover { ip: ip(1), bridge: BRIDGE, mac: MAC, port: 7 };
    let known = || {
        let mut table = table();
        put(&mut table, ip(1), on_bridge(Some(MAC), Some(7)));
        put(&mut table, ip(2), on_bridge(Some(OTHER), None));
        put(&mut table, ip(3), on_bridge(None, None));
        table
    };
    let mut table = known();
    table.keep_only(&|_| false, true);
    assert_eq!(table.sizes().0, 1, "only the port of one is known");
    table.apply(&LinkEvent::Gone(7));
    table.keep_only(&|_| false, true);
    assert_eq!(table.leftovers(), [leftover]);
    assert!(table.forget_leftover(leftover));
    table.keep_only(&|_| false, true);
    assert_eq!(table.sizes().0, 0);
    // One that could not be removed is not kept, either.
    let mut restored = known();
    restored.apply(&LinkEvent::Gone(7));
    assert!(restored.forget_leftover(leftover));
    restored.restore_leftover(leftover);
    restored.keep_only(&|_| false, true);
    assert_eq!(restored.sizes().0, 0);
    // Without the right to remove neighbours, none is waited for.
    let mut table = known();
    table.keep_only(&|_| false, false);
    assert_eq!(table.sizes().0, 0);
}

#[test]
fn a_vlan_aware_bridge_uses_its_own_vlan() {
    let mut table = table();
    table.set_links(&[Interface { vlan: Some(5), ..interface(BRIDGE, "bridge", None) }, interface(7, "veth", Some(BRIDGE))]);
    put(&mut table, ip(1), on_bridge(Some(MAC), Some(7)));
    let event = |vlan| LinkEvent::Forwarding { bridge: BRIDGE, mac: MAC, vlan, port: Some(8) };
    assert_stale(&mut table, ip(1), &event(Some(6)), false);
    assert_stale(&mut table, ip(1), &event(None), false);
    assert_stale(&mut table, ip(1), &event(Some(5)), true);
}

#[test]
fn changes_announced_during_a_query_count() {
    let mut table = table();
    let all = on_bridge(Some(MAC), Some(7));
    for event in [neighbour(Some(MAC)), LinkEvent::Routes(Prefix { ip: ip(0), prefix: 24 }), LinkEvent::Gone(9)] {
        table.ask(ip(1));
        table.apply(&event);
        let before = table.generation();
        let (reach, is_kept) = table.answer(ip(1), all);
        assert!(!is_kept && reach.link().is_some(), "{event:?}");
        assert_eq!((table.fresh(ip(1)), table.generation() > before), (None, true), "callers must not keep the answer");
    }
    // The port was queried after the link-layer address was known.
    table.ask(ip(1));
    table.saw_mac(ip(1), BRIDGE, MAC);
    table.apply(&forwarding(MAC, Some(8)));
    assert!(!table.answer(ip(1), all).1);
    // A change of another address does not require a new query.
    table.ask(ip(1));
    table.saw_mac(ip(1), BRIDGE, MAC);
    table.apply(&forwarding(OTHER, Some(8)));
    table.apply(&LinkEvent::Neighbour { interface: BRIDGE, ip: ip(2), mac: Some(OTHER) });
    assert!(table.answer(ip(1), all).1);
    // A query without an answer is repeated.
    table.ask(ip(1));
    table.give_up(ip(1));
    assert_eq!(table.fresh(ip(1)), None);
}

#[test]
fn answers_are_not_cached_while_notifications_are_unread() {
    let mut table = table();
    let all = on_bridge(Some(MAC), Some(7));
    put(&mut table, ip(1), all);
    put(&mut table, ip(2), KernelAnswer::Own { interface: 9 });
    let before = table.generation();
    table.fall_behind(NotificationQueue::Neighbours);
    assert!(table.generation() > before && table.is_behind(NotificationQueue::Neighbours) && !table.is_behind(NotificationQueue::Topology));
    assert_eq!((table.fresh(ip(1)), table.fresh(ip(2)).is_some()), (None, true));
    table.ask(ip(1));
    assert!(!table.answer(ip(1), all).1);
    table.catch_up(NotificationQueue::Neighbours);
    put(&mut table, ip(1), all);
    table.fall_behind(NotificationQueue::Topology);
    assert_eq!((table.fresh(ip(1)), table.fresh(ip(2))), (None, None));
    table.ask(ip(2));
    assert!(!table.answer(ip(2), KernelAnswer::Own { interface: 9 }).1);
    table.catch_up(NotificationQueue::Topology);
    put(&mut table, ip(2), KernelAnswer::Own { interface: 9 });
}

#[test]
fn the_table_is_bounded() {
    let mut table = table();
    put(&mut table, ip(1), on_bridge(Some(MAC), Some(7)));
    for number in 0..50_000_u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let mac = [6, 0, 0, a, b, c];
        table.apply(&neighbour(Some(mac)));
        table.apply(&LinkEvent::Neighbour { interface: BRIDGE, ip: [10, a, b, c].into(), mac: Some(mac) });
        table.apply(&forwarding(mac, Some(8)));
    }
    let (records, macs, links) = table.sizes();
    assert!(records == 1 && macs <= 2 + SPARE_MACS && links == 4, "{records} {macs} {links}");
    let last = [0, 0, 255, 255].into();
    let before = table.generation();
    for number in 0..RECORDS * 2 {
        put(&mut table, std::net::Ipv4Addr::from_bits(number.try_into().unwrap()).into(), KernelAnswer::Shared { interface: 9 });
    }
    assert!(table.sizes().0 <= RECORDS && table.generation() > before, "callers must compare forgotten addresses again");
    put(&mut table, last, KernelAnswer::Nowhere);
    table.keep_only(&|ip| ip == last, true);
    assert_eq!(table.fresh(last), Some(Reach::Nowhere));
    let before = table.generation();
    table.keep_only(&|_| false, true);
    assert_eq!(table.fresh(last), None);
    assert!(table.generation() > before);
}

#[test]
fn bridges_count_only_with_ports() {
    let mut table = LinkTable::default();
    table.set_links(&[interface(BRIDGE, "bridge", None), interface(7, "veth", None)]);
    assert!(!table.has_bridges());
    table.apply(&LinkEvent::Port { interface: 7, bridge: Some(BRIDGE) });
    assert!(table.has_bridges());
    assert_eq!((table.named(Digest::of_name("if7")), table.link(7).unwrap().master()), (Some(7), Some(BRIDGE)));
    table.apply(&LinkEvent::Gone(BRIDGE));
    assert!(!table.has_bridges());
    assert_eq!(table.named(Digest::of_name("if3")), None);
    table.apply(&LinkEvent::Port { interface: 70, bridge: Some(BRIDGE) });
    assert!(table.link(70).is_none(), "the interface is not known yet");
}

#[test]
fn a_record_is_small() {
    assert_eq!((size_of::<AddressRecord>(), size_of::<KnownInterface>()), (40, 24));
}

#[test]
fn an_interface_keeps_the_time_at_which_it_was_announced() {
    let mut table = table();
    let appeared = |table: &LinkTable, index| table.link(index).map(|known| known.appeared());
    assert_eq!(appeared(&table, 7), Some(0), "the interface existed before the table");
    table.set_uptime(50);
    table.apply(&LinkEvent::Interface(interface(10, "veth", None)));
    table.set_uptime(60);
    // The interface becomes a port, and changes; an interface that existed before the table changes.
    table.apply(&LinkEvent::Port { interface: 10, bridge: Some(BRIDGE) });
    table.apply(&LinkEvent::Interface(interface(10, "veth", Some(BRIDGE))));
    table.apply(&LinkEvent::Interface(interface(7, "veth", None)));
    assert_eq!((appeared(&table, 10), appeared(&table, 7)), (Some(50), Some(0)));
    // Notifications were lost: an interface that still exists is the same one if its name is the same.
    table.set_links(&[
        interface(10, "veth", None),
        Interface { name: "other".to_owned(), ..interface(7, "veth", None) },
        interface(11, "veth", None),
    ]);
    assert_eq!([10, 7, 11].map(|index| appeared(&table, index)), [Some(50), Some(0), Some(0)]);
    table.apply(&LinkEvent::Gone(10));
    table.apply(&LinkEvent::Interface(interface(10, "veth", None)));
    assert_eq!(appeared(&table, 10), Some(60));
}

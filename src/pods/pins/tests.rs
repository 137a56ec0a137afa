#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use super::*;
use crate::links::LinkKind;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn own(interface: u32) -> Option<Link> {
    Some(Link { interface, kind: LinkKind::Own })
}

fn pod(uid: &str, since: i64, ips: &[&str]) -> Pod {
    let since = Some(Timestamp::from_second(since).unwrap());
    Pod {
        ips: ips.iter().map(|text| ip(text)).collect(),
        sandbox: Sandbox { since, started: since },
        ..crate::pods::tests::pod(uid, "::1")
    }
}

/// Compares without a CNI result.
fn compare(pins: &Pins, pod: &Pod, at: &str, now: Option<Link>) -> Comparison {
    pins.compare(pod, ip(at), now, None, |_, _| true)
}

#[test]
fn a_link_is_pinned_when_first_seen_and_another_is_refused() {
    let (pins, a) = (Pins::default(), pod("a", 100, &["10.0.0.1"]));
    assert_eq!(compare(&pins, &a, "10.0.0.1", own(7)), Comparison::Same);
    assert_eq!(compare(&pins, &a, "10.0.0.1", own(8)), Comparison::Changed);
    assert_eq!(compare(&pins, &a, "10.0.0.1", None), Comparison::Changed);
    assert_eq!(compare(&pins, &a, "10.0.0.1", own(7)), Comparison::Same, "the pod's own link is back");
}

#[test]
fn only_a_later_network_of_a_pod_replaces_its_pin() {
    let pins = Pins::default();
    compare(&pins, &pod("a", 100, &["10.0.0.1"]), "10.0.0.1", own(7));
    let later = pod("a", 101, &["10.0.0.1"]);
    assert_eq!(compare(&pins, &later, "10.0.0.1", own(8)), Comparison::Same);
    let earlier = pod("a", 100, &["10.0.0.1"]);
    assert_eq!(compare(&pins, &earlier, "10.0.0.1", own(7)), Comparison::Changed);
    let unknown = Pod { sandbox: Sandbox::default(), ..earlier };
    assert_eq!(compare(&pins, &unknown, "10.0.0.1", own(7)), Comparison::Changed);
    assert_eq!(compare(&pins, &unknown, "10.0.0.1", own(8)), Comparison::Same);
}

#[test]
fn another_pod_at_the_address_gets_a_pin_of_its_own() {
    let pins = Pins::default();
    let (a, b) = (pod("a", 100, &["10.0.0.1"]), pod("b", 200, &["10.0.0.1"]));
    compare(&pins, &a, "10.0.0.1", own(7));
    assert_eq!(compare(&pins, &b, "10.0.0.1", own(8)), Comparison::Same);
    assert_eq!(compare(&pins, &a, "10.0.0.1", own(8)), Comparison::Changed);
    assert_eq!(pins.keep(&HashSet::from([b.uid.digest()])), HashSet::from([short(ip("10.0.0.1"))]));
    assert!(!pins.is_exclusive(&a.uid, ip("10.0.0.1")) && pins.is_exclusive(&b.uid, ip("10.0.0.1")));
}

#[test]
fn each_address_of_a_pod_is_pinned_separately() {
    let pins = Pins::default();
    let both = pod("a", 100, &["10.0.0.1", "fd00::1"]);
    compare(&pins, &both, "10.0.0.1", own(7));
    compare(&pins, &both, "fd00::1", own(8));
    assert!(pins.is_exclusive(&both.uid, ip("10.0.0.1")) && pins.is_exclusive(&both.uid, ip("fd00::1")));
    compare(&pins, &pod("a", 100, &["fd00::1"]), "fd00::1", own(8));
    assert!(!pins.is_exclusive(&both.uid, ip("10.0.0.1")));
}

#[test]
fn a_cni_result_determines_the_first_pin() {
    let (pins, a) = (Pins::default(), pod("a", 100, &["10.0.0.1"]));
    let compare = |now, expected| pins.compare(&a, ip("10.0.0.1"), now, expected, |_, _| true);
    assert_eq!(compare(own(8), own(7)), Comparison::Changed, "another pod came first");
    assert_eq!(compare(own(8), None), Comparison::Changed);
    assert_eq!(compare(own(7), own(7)), Comparison::Same);
    assert_eq!(compare(own(9), own(9)), Comparison::Same, "the record is of a later network than the API knows");
}

#[test]
fn a_pin_keeps_the_whole_link() {
    let kinds = [None, Some([2, 0, 0, 0, 0, 1])]
        .into_iter()
        .flat_map(|mac| [None, Some(7)].map(|port| LinkKind::Bridge { mac, port, moved: u64::MAX - 1 }));
    let links = kinds.chain([LinkKind::Own, LinkKind::Shared]).map(|kind| Some(Link { interface: 3, kind }));
    for link in links.chain([None]) {
        let (mut table, key) = (PinTable::default(), (Digest::of_name("a"), 1));
        table.put(key, Sandbox::default(), link, 5);
        assert_eq!((table.get(&key).0, table.get(&key).1.trusted_at), (link, 5));
        table.put(key, Sandbox::default(), own(9), 0);
        assert_eq!((table.get(&key), table.moved.len()), ((own(9), Moved::default()), 0));
        table.put(key, Sandbox::default(), link, 5);
        table.remove(&key);
        assert_eq!((table.get(&key), table.pins.len(), table.moved.len()), ((None, Moved::default()), 0, 0));
    }
    assert_eq!(size_of::<Pin>(), 32);
}

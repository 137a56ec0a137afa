#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;

#[test]
fn without_a_table_nothing_is_known() {
    let links = Links::none();
    let ip = "10.0.0.1".parse().unwrap();
    links.catch_up();
    links.keep_only(&|_| false);
    assert_eq!((links.of(ip), links.generation(), links.has_bridges(), links.is_open()), (Reach::Unknown, 0, false, false));
    assert_eq!(links.changes().has_changed().ok(), Some(false), "nobody is woken again and again");
    assert_eq!((links.named(Digest::of_name("lo")), links.master_of(1)), (None, None));
}

#[test]
fn the_node_itself_is_nowhere() {
    let links = Links::open().unwrap();
    let loopback = links.named(Digest::of_name("lo")).unwrap();
    assert_eq!(links.master_of(loopback), None);
    for ip in ["127.0.0.1", "::ffff:127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
        assert_eq!(links.of(ip.parse().unwrap()), Reach::Nowhere, "{ip}");
    }
}

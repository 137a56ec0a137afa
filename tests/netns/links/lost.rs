//! Tests of floods of notifications, of what is lost in them, and of the keeper that recovers it.

use std::net::Ipv4Addr;
use std::time::Duration;

use rolegate::digest::Digest;
use rolegate::links::Reach;

use super::{
    arp, bridged, confirmed, frame, invented, ips, links, mac_of, neighbour, node, now, number, own, parts, send, silence, steal, until,
};
use crate::bed::PATIENCE;

/// More than any notification queue holds.
const FLOOD: u32 = 30_000;

/// Ten thousand forged answers in the names of others, and as many link-layer addresses that no pod has.
#[test]
fn a_flood_about_others_changes_nothing() {
    let Some((node, bridge, [victim, attacker])) = bridged() else { return };
    let links = links(&node);
    silence(&victim);
    let [ip, ip6] = ips(&victim);
    let known = [ip, ip6].map(|ip| now(&links, ip));
    let before = links.generation();
    node.ns().sh("echo 0 >/proc/sys/net/ipv4/neigh/cni0/locktime").unwrap();
    let ([a, b, c, _], target) = (bridge.ip.octets(), bridge.ip);
    // All namespaces share the kernel's neighbour table: more names than these would evict those of other tests.
    let sender = move |number: u32| Ipv4Addr::new(a, b, c, 200 + (number % 50) as u8);
    for part in 0..100_u32 {
        let frames = (part * 100..(part + 1) * 100).map(|number| arp(invented(number), sender(number), target));
        send(&attacker, frames.collect::<Vec<_>>());
        let last = part * 100 + 99;
        until("the node accepts the last forgery", || neighbour(&node, &bridge, sender(last).into()) == Some(invented(last)));
        links.catch_up();
    }
    assert_eq!(links.overflows(), 0, "the notifications were read as they arrived");
    assert_eq!([ip, ip6].map(|ip| now(&links, ip)), known);
    assert_eq!(links.generation(), before, "no known link changed");
}

/// So many notifications arrive that the kernel drops some, and the relevant one is lost.
#[test]
fn what_a_flood_hides_is_read_again() {
    let Some((node, bridge, [victim, attacker])) = bridged() else { return };
    let links = links(&node);
    silence(&victim);
    let ip = victim.ip.into();
    let known = now(&links, ip);
    let (before, stolen) = (links.generation(), mac_of(&victim));
    send(&attacker, (0..FLOOD).map(invented).map(frame));
    steal(&node, &bridge, &attacker, stolen);
    let port = number(node.ns(), attacker.host_interface());
    assert_eq!(links.generation(), before, "the queue has not been read");
    links.catch_up();
    assert!(links.overflows() > 0 && links.generation() > before);
    assert_eq!(links.of(ip), Reach::Unknown, "moves in the meantime have not been read");
    let before = links.generation();
    links.of(ip);
    assert_ne!(links.generation(), before, "no answer may be cached");

    // While the keeper runs, the queue is read to its end, and answers are cached again.
    let keeper = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    keeper.spawn({
        let links = links.clone();
        async move { links.keep().await }
    });
    until("answers are cached again", || {
        let before = links.generation();
        links.of(ip);
        links.of(ip);
        links.generation() == before
    });
    let overflows = links.overflows();
    assert_eq!((parts(now(&links, ip)).1, confirmed(known, now(&links, ip))), (Some(port), None), "the kernel was asked");
    let known = now(&links, ip);
    steal(&node, &bridge, &victim, stolen);
    assert_eq!(confirmed(known, now(&links, ip)), None, "{:?}", links.of(ip));
    assert_eq!(links.overflows(), overflows);
}

#[test]
fn lost_interface_notifications_are_recovered() {
    let Some(node) = node() else { return };
    let pod = node.add_pod("pod").unwrap();
    let links = links(&node);
    assert_eq!(Reach::By(now(&links, pod.ip.into())), own(&node, &pod));
    // More than the queue holds, and then the end of the pod.
    let veth = pod.host_interface();
    node.ns()
        .sh(&format!(
            "i=0; while [ $i -lt {FLOOD} ]; do echo \"route replace 10.43.$((i / 256)).$((i % 256)) dev {veth}\"; i=$((i + 1)); done \
             | ip -batch -; ip link add late type veth peer name other"
        ))
        .unwrap();
    let ip = pod.ip;
    drop(pod);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn({
        let links = links.clone();
        async move { links.keep().await }
    });
    until("the lost change is known", || {
        links.named(Digest::of_name("late")).is_some()
            && links.named(Digest::of_name("veth1")).is_none()
            && links.of(ip.into()) == Reach::Nowhere
    });
    assert!(links.overflows() > 0);
}

#[test]
fn a_keeper_reports_changes() {
    let Some(node) = node() else { return };
    let pod = node.add_pod("pod").unwrap();
    let links = links(&node);
    let known = links.of(pod.ip.into());
    let mut changes = links.changes();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::select! {
            () = links.keep() => panic!("the keeper ended"),
            changed = tokio::time::timeout(PATIENCE, async {
                let ip = pod.ip.into();
                changes.mark_unchanged();
                node.ns().sh(&format!("ip link set {} down", pod.host_interface())).unwrap();
                // Only the keeper catches up.
                while links.of(ip) == known {
                    changes.changed().await.unwrap();
                }
            }) => changed.unwrap(),
        }
    });
    assert_eq!(links.of(pod.ip.into()), Reach::Nowhere);
}

/// A flood hides that the victim's address went to another port and back.
#[test]
fn a_lost_move_and_return_still_changes_the_link() {
    let Some((node, bridge, [victim, attacker])) = bridged() else { return };
    let links = links(&node);
    silence(&victim);
    let ip = victim.ip.into();
    let known = now(&links, ip);
    let mac = mac_of(&victim);
    send(&attacker, (0..FLOOD).map(invented).map(frame));
    steal(&node, &bridge, &attacker, mac);
    steal(&node, &bridge, &victim, mac);
    links.catch_up();
    assert!(links.overflows() > 0);
    assert_eq!(links.of(ip), Reach::Unknown, "the changes have not been read");
    let keeper = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    keeper.spawn({
        let links = links.clone();
        async move { links.keep().await }
    });
    until("everything is read", || {
        links.catch_up();
        links.of(ip).link().is_some()
    });
    assert_eq!(confirmed(known, now(&links, ip)), None);
}

/// A pod may change its link-layer address constantly.
#[test]
fn the_keeper_pauses_between_reads_of_the_neighbours() {
    let Some((node, _bridge, [victim, _])) = bridged() else { return };
    let links = links(&node);
    silence(&victim);
    now(&links, victim.ip.into());
    let changes = links.changes();
    let flap = |last: u8| {
        // The record is about this address again.
        links.of(victim.ip.into());
        node.ns().sh(&format!("ip neigh replace {} lladdr 0a:00:00:00:01:{last:02x} dev cni0 nud reachable", victim.ip)).unwrap();
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut changes = changes;
        let keeper = tokio::spawn({
            let links = links.clone();
            async move { links.keep().await }
        });
        // A task that is never idle keeps the paused clock from advancing.
        let is_announced = async |changes: &mut tokio::sync::watch::Receiver<u64>| {
            for _ in 0..5000 {
                tokio::task::yield_now().await;
            }
            let is_announced = changes.has_changed().unwrap();
            changes.mark_unchanged();
            is_announced
        };
        is_announced(&mut changes).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        is_announced(&mut changes).await;
        flap(1);
        assert!(is_announced(&mut changes).await, "the first change is read at once");
        flap(2);
        assert!(!is_announced(&mut changes).await, "the keeper pauses");
        tokio::time::advance(Duration::from_millis(10)).await;
        assert!(is_announced(&mut changes).await);
        keeper.abort();
    });
}

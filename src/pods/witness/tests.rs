#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::links::LinkKind;
use crate::links::witness::RecordedPod;
use crate::pods::index::{PodUid, Sandbox};
use crate::pods::tests::pod;
use crate::pods::{Lookup, Pods, PodsWriter, pods_with};

const BOOT: i64 = 1000;

/// A node whose view the tests control.
#[derive(Debug)]
struct Fake {
    sights: Mutex<HashMap<IpAddr, Sight>>,
    generation: AtomicU64,
    looks: AtomicU64,
    /// The kept addresses between 10.0.0.1 and 10.0.0.9.
    kept: Mutex<HashSet<IpAddr>>,
    /// Those whose leftovers may be removed.
    over: Mutex<HashSet<IpAddr>>,
    changes: watch::Sender<u64>,
    has_bridges: AtomicBool,
}

/// A port of a bridge that was removed.
const REMOVED: u32 = 8;

impl Fake {
    fn see(&self, at: &str, sight: Sight) {
        self.sights.lock().unwrap_or_else(PoisonError::into_inner).insert(ip(at), sight);
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        self.changes.send_replace(generation);
    }

    /// Sets the interface that leads to an address.
    fn link(&self, at: &str, interface: u32) {
        self.see(at, Sight { link: Some(own(interface)), ..Sight::default() });
    }

    /// Sets the interface that leads to an address, and the pods that CNI results place there.
    fn attach(&self, at: &str, interface: u32, uids: &[&str]) {
        let attached = |uid: &&str| by_uid(uid, uid, own(interface));
        self.see(at, Sight { link: Some(own(interface)), attached: uids.iter().map(attached).collect(), ..Sight::default() });
    }
}

impl Witness for Fake {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn at(&self, ip: IpAddr) -> Sight {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.sights.lock().unwrap_or_else(PoisonError::into_inner).get(&ip).cloned().unwrap_or_default()
    }

    fn has_record(&self, ip: IpAddr) -> bool {
        self.sights.lock().unwrap_or_else(PoisonError::into_inner).get(&ip).is_some_and(|sight| !sight.attached.is_empty())
    }

    fn recorded(&self, ip: IpAddr) -> Vec<RecordedPod> {
        let sights = self.sights.lock().unwrap_or_else(PoisonError::into_inner);
        sights.get(&ip).map(|sight| sight.attached.iter().map(|attached| attached.pod).collect()).unwrap_or_default()
    }

    fn behind(&self, ip: IpAddr) -> Option<u32> {
        // Each /24 network is behind a port with the number of its three leading octets.
        Some(u32::from_be_bytes(if let IpAddr::V4(ip) = ip { ip.octets() } else { [0; 4] }) >> 8)
    }

    fn is_port(&self, _: u32, _: u32) -> bool {
        true
    }

    fn keep(&self, is_kept: &dyn Fn(IpAddr) -> bool) {
        let kept = (1..10).map(|last| IpAddr::from([10, 0, 0, last])).filter(|ip| is_kept(*ip));
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept.collect();
    }

    fn remove_leftovers(&self, is_over: &dyn Fn(IpAddr, u32) -> bool) {
        let over = (1..10).map(|last| IpAddr::from([10, 0, 0, last])).filter(|ip| is_over(*ip, REMOVED));
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = over.collect();
    }

    fn has_records(&self) -> bool {
        let sights = self.sights.lock().unwrap_or_else(PoisonError::into_inner);
        sights.values().any(|sight| !sight.attached.is_empty())
    }

    fn has_bridges(&self) -> bool {
        self.has_bridges.load(Ordering::SeqCst)
    }

    fn catch_up(&self) {}

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn own(interface: u32) -> Link {
    Link { interface, kind: LinkKind::Own }
}

fn by_name(name: &str, interface: u32) -> Attached {
    Attached { pod: RecordedPod { uid: None, name: Digest::of_pod("default", name) }, link: own(interface) }
}

fn by_uid(uid: &str, name: &str, link: Link) -> Attached {
    Attached { pod: RecordedPod { uid: Some(Digest::of_name(uid)), name: Digest::of_pod("default", name) }, link }
}

/// Creates a node that was booted at [`BOOT`], and its pods.
fn node() -> (Arc<Fake>, PodsWriter, Pods) {
    let (changes, _) = watch::channel(0);
    let fake = Arc::new(Fake {
        sights: Mutex::default(),
        generation: AtomicU64::new(0),
        looks: AtomicU64::new(0),
        kept: Mutex::default(),
        over: Mutex::default(),
        changes,
        has_bridges: AtomicBool::new(false),
    });
    let (writer, pods) = pods_with(fake.clone(), Some(Timestamp::from_second(BOOT).unwrap()));
    (fake, writer, pods)
}

fn started(pod: Pod, at: i64) -> Pod {
    let at = Some(Timestamp::from_second(at).unwrap());
    Pod { sandbox: Sandbox { since: at, started: at }, ..pod }
}

fn without_address(uid: &str) -> Pod {
    Pod { ips: Vec::new(), ..pod(uid, "::1") }
}

fn apply(writer: &PodsWriter, pods: impl IntoIterator<Item = Pod>) {
    writer.write(|index| pods.into_iter().for_each(|pod| index.apply(pod)));
}

fn found(pods: &Pods, at: &str) -> Result<String, Option<Objection>> {
    match pods.by_ip(ip(at)) {
        Lookup::Found(pod, _) => Ok(pod.name.clone()),
        Lookup::Objected(_, objection) => Err(Some(objection)),
        Lookup::Ambiguous(_) | Lookup::Unreadable(_) | Lookup::Unknown => Err(None),
    }
}

fn is(name: &str) -> Result<String, Option<Objection>> {
    Ok(name.to_owned())
}

#[test]
fn a_pod_is_refused_while_another_link_leads_to_its_address() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    apply(&writer, [pod("a", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    node.link("10.0.0.1", 8);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    node.see("10.0.0.1", Sight::default());
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)), "nothing leads to the address");
    node.link("10.0.0.1", 7);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
}

/// The API is behind: it names a deleted pod, and the next pod has the address already.
#[test]
fn an_interface_younger_than_the_pods_network_is_another_pods() {
    let (node, writer, pods) = node();
    let appears = |interface, after_boot| {
        let appeared = Some(Duration::from_secs(after_boot));
        node.see("10.0.0.1", Sight { link: Some(own(interface)), appeared, ..Sight::default() });
    };
    let at = |after_boot: i64| started(pod("a", "10.0.0.1"), BOOT + after_boot);
    appears(7, 1_031);
    apply(&writer, [at(1_000)]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    // The claim is compared again each time, and nothing is pinned.
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    apply(&writer, [at(1_001)]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"), "the interface may be announced late");
    // From then on, the pin counts.
    apply(&writer, [at(900)]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    // If either time is not known, nothing contradicts the claim.
    writer.write(|index| index.delete(&PodUid("a".into())));
    apply(&writer, [Pod { sandbox: Sandbox::default(), ..pod("b", "10.0.0.1") }]);
    assert_eq!(found(&pods, "10.0.0.1"), is("b"));
    writer.write(|index| index.delete(&PodUid("b".into())));
    node.link("10.0.0.1", 7);
    apply(&writer, [at(1)]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
}

#[test]
fn the_api_confirms_a_new_network_of_the_same_pod() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    apply(&writer, [started(pod("a", "10.0.0.1"), BOOT + 1)]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    node.link("10.0.0.1", 8);
    // Another field of the pod changes.
    apply(&writer, [Pod { role: Some("other".to_owned()), ..started(pod("a", "10.0.0.1"), BOOT + 1) }]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    apply(&writer, [started(pod("a", "10.0.0.1"), BOOT + 2)]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
}

#[tokio::test]
async fn a_claim_is_pinned_when_it_appears() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    apply(&writer, [pod("a", "10.0.0.1")]);
    pods.pin().await;
    // The pod is deleted without an event; another pod gets its address, and is the first to send a request.
    node.link("10.0.0.1", 8);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    writer.write(|index| index.delete(&PodUid("a".into())));
    apply(&writer, [pod("b", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("b"));
}

#[test]
fn the_kernel_is_queried_once_while_nothing_changes() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    apply(&writer, [pod("a", "10.0.0.1")]);
    for _ in 0..100 {
        assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    }
    assert_eq!(node.looks.load(Ordering::SeqCst), 1);
    node.link("10.0.0.2", 9);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    assert_eq!(node.looks.load(Ordering::SeqCst), 2);
}

#[test]
fn a_forged_status_does_not_take_over_another_pods_address() {
    let (node, writer, pods) = node();
    node.attach("10.0.0.1", 7, &["victim"]);
    // Both before and after the victim's own status has its address.
    apply(&writer, [pod("liar", "10.0.0.1"), without_address("victim")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("victim"));
    apply(&writer, [pod("victim", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("victim"), "the liar does not block the victim either");
    // The victim is on another node, or not known yet.
    writer.write(|index| index.delete(&PodUid("victim".into())));
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::OtherPodAttached)));
}

#[test]
fn a_pod_that_claims_two_addresses_has_the_one_that_the_node_recorded() {
    let (node, writer, pods) = node();
    node.attach("10.0.0.1", 7, &["a"]);
    node.attach("10.0.0.2", 8, &["b"]);
    let both = Pod { ips: vec![ip("10.0.0.1"), ip("10.0.0.2")], ..pod("a", "10.0.0.1") };
    apply(&writer, [both, pod("b", "10.0.0.2")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    assert_eq!(found(&pods, "10.0.0.2"), is("b"));
    // According to the API, `b` has another address by now, so the owner is uncertain.
    apply(&writer, [pod("b", "10.0.0.3")]);
    assert_eq!(found(&pods, "10.0.0.2"), Err(Some(Objection::OtherPodAttached)));
}

#[test]
fn a_new_pod_is_known_by_its_record_before_its_status() {
    let (node, writer, pods) = node();
    apply(&writer, [without_address("a")]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(None));
    node.attach("10.0.0.1", 7, &["a"]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    node.see("10.0.0.2", Sight { link: Some(own(8)), attached: vec![by_name("a", 8)], ..Sight::default() });
    assert_eq!(found(&pods, "10.0.0.2"), is("a"), "a runtime that does not record UIDs");
    node.attach("10.0.0.3", 9, &["unknown"]);
    assert_eq!(found(&pods, "10.0.0.3"), Err(None), "the API does not know the pod");
    for gone in [
        Pod { finished: true, ..without_address("a") },
        Pod { host_network: true, ..without_address("a") },
        Pod { terminating: true, claims_until: Some(Timestamp::MIN), ..without_address("a") },
    ] {
        apply(&writer, [gone.clone()]);
        assert_eq!(found(&pods, "10.0.0.1"), Err(None), "{gone:?}");
    }
}

#[test]
fn an_address_of_the_node_belongs_to_no_pod_despite_records() {
    let (node, writer, pods) = node();
    node.attach("10.0.0.9", 7, &["a"]);
    apply(&writer, [without_address("a")]);
    let addresses = crate::pods::NodeAddresses { ips: [ip("10.0.0.9")].into(), loopback: true };
    writer.write(|index| index.set_node(addresses));
    assert_eq!(found(&pods, "10.0.0.9"), Err(None));
}

#[test]
fn conflicting_records_are_no_evidence() {
    let (node, writer, pods) = node();
    node.attach("10.0.0.1", 7, &["old", "a"]);
    apply(&writer, [pod("a", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    node.attach("10.0.0.1", 7, &["old", "older"]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    apply(&writer, [pod("b", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(None), "two claims, as without records");
    node.attach("10.0.0.1", 7, &["old", "a"]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(None));
}

#[test]
fn during_an_outage_a_new_pod_does_not_get_the_last_pods_role() {
    let (node, writer, pods) = node();
    node.attach("10.0.0.1", 7, &["a"]);
    apply(&writer, [pod("a", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    node.attach("10.0.0.1", 8, &["b"]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::OtherPodAttached)));
    apply(&writer, [without_address("b")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("b"), "the API knows the pod by now");
}

#[test]
fn a_record_and_a_link_that_contradict_each_other_are_both_distrusted() {
    let (node, writer, pods) = node();
    // On a bridge, the record names the pod's own MAC address; the neighbour that answers has another.
    let bridge = |last| Link { interface: 3, kind: LinkKind::Bridge { mac: Some([2, 0, 0, 0, 0, last]), port: None, moved: 0 } };
    let attached = by_uid("a", "a", bridge(1));
    node.see("10.0.0.1", Sight { link: Some(bridge(2)), attached: vec![attached], ..Sight::default() });
    apply(&writer, [pod("a", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)), "even when the link is first seen");
    node.see("10.0.0.1", Sight { link: Some(bridge(1)), attached: vec![attached], ..Sight::default() });
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
}

#[test]
fn no_claim_counts_after_a_reboot_until_the_api_shows_a_later_start() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    apply(&writer, [started(pod("a", "10.0.0.1"), BOOT - 1)]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::BeforeBoot)));
    apply(&writer, [started(pod("a", "10.0.0.1"), BOOT + 20)]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    // A record whose link exists is from this boot.
    apply(&writer, [started(pod("b", "10.0.0.2"), BOOT - 1)]);
    node.attach("10.0.0.2", 8, &["b"]);
    assert_eq!(found(&pods, "10.0.0.2"), is("b"));
    apply(&writer, [pod("c", "10.0.0.3")]);
    assert_eq!(found(&pods, "10.0.0.3"), is("c"), "the API reports no time");
}

#[test]
fn without_the_api_pods_are_served_only_if_the_node_confirms_them() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    let shared = Link { interface: 2, kind: LinkKind::Shared };
    node.see("10.0.0.2", Sight { link: Some(shared), ..Sight::default() });
    apply(&writer, [pod("pinned", "10.0.0.1"), pod("shared", "10.0.0.2"), pod("blind", "10.0.0.3"), pod("recorded", "10.0.0.4")]);
    let all = |pods: &Pods| ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"].map(|at| found(pods, at));
    assert_eq!(all(&pods), ["pinned", "shared", "blind", "recorded"].map(is));
    pods.set_stale(true);
    node.attach("10.0.0.4", 9, &["recorded"]);
    let stale = || Err(Some(Objection::Stale));
    assert_eq!(all(&pods), [is("pinned"), stale(), stale(), is("recorded")]);
    // An address that was not pinned before the outage is not pinned during it.
    node.link("10.0.0.3", 10);
    assert_eq!(found(&pods, "10.0.0.3"), stale());
    node.link("10.0.0.1", 11);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    pods.set_stale(false);
    assert_eq!(found(&pods, "10.0.0.3"), is("blind"));
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_node_to_agree_unless_the_api_is_silent() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    apply(&writer, [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]);
    pods.pin().await;
    node.link("10.0.0.1", 8);
    let waiting = pods.wait_for_ip(ip("10.0.0.1"), Duration::from_secs(2), |_, _| true);
    let back = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        node.link("10.0.0.1", 7);
    };
    let began = tokio::time::Instant::now();
    let (lookup, ()) = tokio::join!(waiting, back);
    assert!(matches!(lookup, Lookup::Found(pod, _) if pod.name == "a"));
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    pods.set_stale(true);
    let began = tokio::time::Instant::now();
    let lookup = pods.wait_for_ip(ip("10.0.0.2"), Duration::from_secs(2), |_, _| true).await;
    assert!(matches!(lookup, Lookup::Objected(_, Objection::Stale)));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[test]
fn every_change_of_the_nodes_view_invalidates_decisions() {
    let (node, writer, pods) = node();
    let before = pods.generation();
    node.link("10.0.0.1", 7);
    let between = pods.generation();
    apply(&writer, [pod("a", "10.0.0.1")]);
    assert!(before < between && between < pods.generation());
}

#[tokio::test]
async fn addresses_of_no_pod_are_not_queried_and_former_ones_forgotten() {
    let (node, writer, pods) = node();
    assert_eq!(found(&pods, "10.0.0.1"), Err(None));
    assert_eq!(node.looks.load(Ordering::SeqCst), 0, "clients may invent any number of addresses");
    node.attach("10.0.0.2", 8, &["b"]);
    apply(&writer, [pod("a", "10.0.0.1"), without_address("b")]);
    assert_eq!(found(&pods, "10.0.0.2"), is("b"));
    pods.pin().await;
    let kept = || node.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(kept(), HashSet::from([ip("10.0.0.1"), ip("10.0.0.2")]));
    writer.write(|index| ["a", "b"].iter().for_each(|uid| index.delete(&PodUid((*uid).into()))));
    pods.pin().await;
    assert_eq!(kept(), HashSet::new());
}

#[tokio::test(start_paused = true)]
async fn a_link_that_moved_and_came_back_is_not_trusted_for_a_while() {
    let (node, writer, pods) = node();
    let see = |moved| {
        let kind = LinkKind::Bridge { mac: Some([2, 0, 0, 0, 0, 1]), port: Some(7), moved };
        node.see("10.0.0.1", Sight { link: Some(Link { interface: 3, kind }), ..Sight::default() });
    };
    see(5);
    apply(&writer, [pod("a", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
    see(6);
    for _ in 0..3 {
        assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    }
    tokio::time::advance(Duration::from_secs(100)).await;
    see(7);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    tokio::time::advance(Duration::from_secs(100)).await;
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)), "each move starts a new period");
    tokio::time::advance(Duration::from_secs(21)).await;
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
}

#[test]
fn an_agreement_is_checked_again_for_the_next_pod_and_after_each_change() {
    let (node, writer, pods) = node();
    let looks = |wanted: &str| {
        let before = node.looks.load(Ordering::SeqCst);
        assert_eq!(found(&pods, "10.0.0.1"), is(wanted));
        assert_eq!(found(&pods, "10.0.0.1"), is(wanted));
        node.looks.load(Ordering::SeqCst) - before
    };
    let terminating = |name| Pod { terminating: true, ..started(pod(name, "10.0.0.1"), BOOT + 1) };
    node.link("10.0.0.1", 7);
    apply(&writer, [started(pod("a", "10.0.0.1"), BOOT + 1)]);
    assert_eq!((looks("a"), looks("a")), (1, 0));
    // The same pod with a later network.
    apply(&writer, [started(pod("a", "10.0.0.1"), BOOT + 2)]);
    assert_eq!((looks("a"), looks("a")), (1, 0));
    // Another pod takes over the address, and the first one gets it back.
    apply(&writer, [terminating("a")]);
    assert_eq!((looks("a"), looks("a")), (1, 0));
    node.link("10.0.0.1", 8);
    apply(&writer, [pod("b", "10.0.0.1")]);
    assert_eq!((looks("b"), looks("b")), (1, 0));
    writer.write(|index| index.delete(&PodUid("b".into())));
    node.link("10.0.0.1", 7);
    assert_eq!((looks("a"), looks("a")), (1, 0));
    // A record names another pod: the claim of the pod that the API names is compared each time.
    node.attach("10.0.0.1", 7, &["c"]);
    apply(&writer, [without_address("c")]);
    assert_eq!((looks("c"), looks("c")), (2, 2));
    // A pod that names the address twice.
    apply(&writer, [Pod { ips: vec![ip("10.0.0.1"), ip("10.0.0.1")], ..pod("c", "10.0.0.1") }]);
    writer.write(|index| index.delete(&PodUid("a".into())));
    assert_eq!((looks("c"), looks("c")), (1, 0));
}

#[test]
fn a_static_pod_with_another_uid_in_its_record_is_served() {
    let (node, writer, pods) = node();
    let attached = by_uid("hash-of-its-manifest", "static", own(7));
    node.see("10.0.0.1", Sight { link: Some(own(7)), attached: vec![attached], ..Sight::default() });
    apply(&writer, [pod("static", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("static"));
    // The record is no evidence for the pod either.
    pods.set_stale(true);
    apply(&writer, [Pod { uid: PodUid("static-2".into()), ..pod("static", "10.0.0.1") }]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::Stale)));
}

#[test]
fn a_living_pods_own_link_belongs_to_no_other_pod() {
    let (node, writer, pods) = node();
    node.link("10.0.0.1", 7);
    apply(&writer, [pod("victim", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), is("victim"));
    // The liar's status has the address, and the victim is terminating.
    apply(&writer, [Pod { terminating: true, ..pod("victim", "10.0.0.1") }, pod("liar", "10.0.0.1")]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::LinkChanged)));
    writer.write(|index| index.delete(&PodUid("victim".into())));
    assert_eq!(found(&pods, "10.0.0.1"), is("liar"), "the link is free");
}

#[test]
fn a_clock_that_was_ahead_does_not_make_pods_predate_the_boot() {
    let (_node, writer, pods) = node();
    apply(&writer, [started(pod("a", "10.0.0.1"), BOOT - 100)]);
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::BeforeBoot)));
    pods.booted_at(Timestamp::from_second(BOOT + 50).unwrap());
    assert_eq!(found(&pods, "10.0.0.1"), Err(Some(Objection::BeforeBoot)), "the earliest time is kept");
    pods.booted_at(Timestamp::from_second(BOOT - 200).unwrap());
    assert_eq!(found(&pods, "10.0.0.1"), is("a"));
}

/// A pod invents addresses, all behind its port of a bridge; new pods still wait for their status.
#[tokio::test(start_paused = true)]
async fn addresses_behind_one_bridge_port_share_their_places() {
    let (node, writer, pods) = node();
    let at = |port: u8, last: u8| IpAddr::from([10, 1, port, last]);
    assert_eq!(pods.network_of(at(1, 1)).await, at(1, 1).into());
    node.has_bridges.store(true, Ordering::SeqCst);
    let port = |port: u32| crate::shares::Network::Port((10 << 16) + (1 << 8) + port);
    assert_eq!([pods.network_of(at(1, 1)).await, pods.network_of(at(1, 2)).await], [port(1); 2]);
    let wait = |at| {
        let pods = pods.clone();
        tokio::spawn(async move { pods.wait_for_ip(at, Duration::from_secs(3600), |_, _| true).await })
    };
    let settle = async || {
        for _ in 0..2000 {
            tokio::task::yield_now().await;
        }
    };
    let new_pods: Vec<_> = (2..60).map(|port| wait(at(port, 1))).collect();
    settle().await;
    let invented: Vec<_> = (0..=255).map(|last| wait(at(1, last))).collect();
    settle().await;
    assert_eq!(invented.iter().filter(|waiter| waiter.is_finished()).count(), new_pods.len());
    writer.write(|index| (2..60).for_each(|port| index.apply(pod(&format!("new-{port}"), &format!("10.1.{port}.1")))));
    for waiter in new_pods {
        assert!(matches!(waiter.await.unwrap(), Lookup::Found(..)));
    }
}

#[tokio::test(start_paused = true)]
async fn only_recorded_pods_may_have_connections_from_before_the_api_knew_them() {
    let (node, writer, pods) = node();
    node.attach("10.0.0.1", 7, &["a"]);
    assert_eq!(pods.candidates(ip("10.0.0.1")), None, "packets of pods cannot change routes");
    node.has_bridges.store(true, Ordering::SeqCst);
    assert_eq!(pods.candidates(ip("10.0.0.1")), Some(vec![by_uid("a", "a", own(7)).pod]));
    assert_eq!(pods.candidates(ip("10.0.0.2")), Some(vec![]));
    // Without any record, a pod's links are known from its first packet on.
    node.see("10.0.0.1", Sight::default());
    assert_eq!(pods.candidates(ip("10.0.0.1")), Some(vec![]), "nothing is pinned yet");
    writer.write(|index| index.list_at([], [], None, false));
    pods.pin().await;
    assert_eq!(pods.candidates(ip("10.0.0.1")), None);
    node.attach("10.0.0.2", 8, &["b"]);
    assert_eq!(pods.candidates(ip("10.0.0.1")), Some(vec![]), "each pod has a record");
}

#[tokio::test(start_paused = true)]
async fn only_addresses_that_no_pod_claims_have_leftovers() {
    let (node, writer, pods) = node();
    let over = || node.over.lock().unwrap_or_else(PoisonError::into_inner).clone();
    pods.pin().await;
    assert_eq!(over(), HashSet::new(), "without a complete list, a pod that is not known may have the address");
    writer.write(|index| {
        index.list_at([(pod("a", "10.0.0.1"), None), (Pod { finished: true, ..pod("b", "10.0.0.2") }, None)], [], None, false)
    });
    pods.pin().await;
    assert_eq!(over(), (2..10).map(|last| IpAddr::from([10, 0, 0, last])).collect());
    // The API still assigns the address to a pod: it is gone if the removed port was the pod's.
    for (port, is_over) in [(7, false), (REMOVED, true)] {
        let uid = format!("at-{port}");
        let kind = LinkKind::Bridge { mac: Some([2, 0, 0, 0, 0, 1]), port: Some(port), moved: 0 };
        node.see("10.0.0.1", Sight { link: Some(Link { interface: 3, kind }), ..Sight::default() });
        writer.write(|index| index.list_at([(pod(&uid, "10.0.0.1"), None)], [], None, false));
        pods.pin().await;
        pods.pin().await;
        assert_eq!(over().contains(&ip("10.0.0.1")), is_over, "{port}");
    }
    writer.write(|index| index.apply(pod("another", "10.0.0.1")));
    pods.pin().await;
    assert!(!over().contains(&ip("10.0.0.1")), "another pod may have it already");
}

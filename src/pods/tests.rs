#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::collections::HashMap;

use futures_util::future::join_all;
use tokio::time::{Instant, advance};

use super::waiting::{MAX_UNKNOWN_WAITING, MAX_UNKNOWN_WAITING_OF_ONE, MAX_WAITING, MAX_WAITING_OF_ONE};
use super::*;

const LONG: Duration = Duration::from_secs(3600);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn pod(uid: &str, at: &str) -> Pod {
    Pod { uid: PodUid(uid.into()), ips: vec![ip(at)], ..Pod::for_test("default", uid) }
}

fn anything(_: &Pod, _: &PodContext) -> bool {
    true
}

fn with_namespace(_: &Pod, context: &PodContext) -> bool {
    context.namespace.is_some()
}

fn namespace(name: &str) -> Namespace {
    Namespace { name: name.to_owned(), allowed_roles: None, permitted: None }
}

/// Runs all other ready tasks, without advancing the clock.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn found(lookup: &Lookup) -> Option<&str> {
    match lookup {
        Lookup::Found(pod, _) => Some(&pod.name),
        Lookup::Ambiguous(_) | Lookup::Unreadable(_) | Lookup::Objected(..) | Lookup::Unknown => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_known_pod_is_answered_at_once() {
    let (writer, pods) = pods();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    let began = Instant::now();
    assert_eq!(found(&pods.wait_for_ip(ip("10.0.0.1"), LONG, anything).await), Some("a"));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_on_two_claims_until_the_api_confirms_them() {
    let (writer, pods) = pods();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    writer.write(|index| index.apply(pod("b", "10.0.0.1")));
    let began = Instant::now();
    let wait = Duration::from_secs(2);
    assert!(matches!(pods.wait_for_ip(ip("10.0.0.1"), wait, anything).await, Lookup::Ambiguous(pods) if pods.len() == 2));
    assert_eq!(began.elapsed(), wait, "the API has not confirmed the claims");
    let confirm = |uids: &[&str]| {
        let uids = uids.iter().map(|uid| PodUid((*uid).into())).collect();
        writer.write(|index| index.set_confirmed(HashMap::from([(ip("10.0.0.1"), uids)])));
    };
    confirm(&["a", "b"]);
    let began = Instant::now();
    assert!(matches!(pods.wait_for_ip(ip("10.0.0.1"), wait, anything).await, Lookup::Ambiguous(pods) if pods.len() == 2));
    assert_eq!(began.elapsed(), Duration::ZERO, "the API has confirmed both claims");
    confirm(&["a", "c"]);
    pods.wait_for_ip(ip("10.0.0.1"), wait, anything).await;
    assert_eq!(began.elapsed(), wait, "these two claims have not been confirmed");
}

#[tokio::test(start_paused = true)]
async fn a_request_from_an_unreadable_pod_does_not_wait() {
    let (writer, pods) = pods();
    writer.write(|index| {
        index.apply(pod("a", "10.0.0.1"));
        let names = PodName { uid: PodUid("a".into()), namespace: "default".to_owned(), name: "a".to_owned() };
        index.unreadable_at(names, None);
        index.apply(pod("b", "10.0.0.1"));
    });
    let began = Instant::now();
    let lookup = pods.wait_for_ip(ip("10.0.0.1"), LONG, anything).await;
    assert!(matches!(lookup, Lookup::Unreadable(pod) if pod.name == "a"));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(pods.ambiguous().is_empty(), "the API has nothing to add");
}

#[tokio::test(start_paused = true)]
async fn a_wait_on_two_claims_ends_when_one_is_gone() {
    let (writer, pods) = pods();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    writer.write(|index| index.apply(pod("b", "10.0.0.1")));
    let waiter = tokio::spawn({
        let pods = pods.clone();
        async move { pods.wait_for_ip(ip("10.0.0.1"), LONG, anything).await }
    });
    settle().await;
    assert!(!waiter.is_finished());
    writer.write(|index| index.delete_at(&PodUid("a".into()), "default", "a", None));
    assert_eq!(found(&waiter.await.unwrap()), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn the_nodes_own_addresses_belong_to_no_pod_and_never_wait() {
    let (writer, pods) = pods();
    let node = |ips: &[&str], loopback| NodeAddresses { ips: ips.iter().map(|text| ip(text)).collect(), loopback };
    writer.write(|index| index.set_node(node(&["10.0.0.10", "2001:db8::10"], true)));
    // A pod that reports the node's address but is not in the host network does not have it.
    writer.write(|index| index.apply(pod("a", "10.0.0.10")));
    writer.write(|index| index.set_host_ips([ip("10.0.0.11")]));
    let began = Instant::now();
    for at in ["10.0.0.10", "2001:db8::10", "127.0.0.1", "127.3.2.1", "::1"] {
        assert_eq!(pods.wait_for_ip(ip(at), LONG, anything).await, Lookup::Unknown, "{at}");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    pods.wait_for_ip(ip("10.0.0.11"), Duration::from_secs(1), anything).await;
    assert_eq!(began.elapsed(), Duration::from_secs(1), "addresses that pods report do not count if the interfaces are known");
    // If loopback addresses belong to pods, requests wait for them; if the interfaces are not known, the addresses that pods
    // report count.
    writer.write(|index| index.set_node(node(&[], false)));
    let began = Instant::now();
    pods.wait_for_ip(ip("10.0.0.11"), LONG, anything).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    pods.wait_for_ip(ip("127.0.0.1"), Duration::from_secs(1), anything).await;
    assert_eq!(began.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_ended_by_the_write_that_makes_the_pod_known() {
    let (writer, pods) = pods();
    let waiter = tokio::spawn({
        let pods = pods.clone();
        async move { (pods.wait_for_ip(ip("10.0.0.1"), LONG, anything).await, Instant::now()) }
    });
    settle().await;
    advance(Duration::from_millis(100)).await;
    // Another pod's event wakes the request, which continues to wait.
    writer.write(|index| index.apply(pod("b", "10.0.0.2")));
    settle().await;
    assert!(!waiter.is_finished());
    let written = Instant::now();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    let (lookup, at) = waiter.await.unwrap();
    assert_eq!(found(&lookup), Some("a"));
    assert_eq!(at, written, "the answer follows the write immediately");
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_after_the_time_it_was_given() {
    let (writer, pods) = pods();
    let began = Instant::now();
    assert_eq!(pods.wait_for_ip(ip("10.0.0.1"), Duration::from_millis(700), anything).await, Lookup::Unknown);
    assert_eq!(began.elapsed(), Duration::from_millis(700));
    assert_eq!(pods.wait_for_ip(ip("10.0.0.1"), Duration::ZERO, anything).await, Lookup::Unknown);
    assert_eq!(began.elapsed(), Duration::from_millis(700));
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_its_namespace_if_needed() {
    let (writer, pods) = pods();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    let waiter = tokio::spawn({
        let pods = pods.clone();
        async move { pods.wait_for_ip(ip("10.0.0.1"), LONG, with_namespace).await }
    });
    settle().await;
    writer.write(|index| index.apply_namespace(namespace("other")));
    settle().await;
    assert!(!waiter.is_finished());
    let began = Instant::now();
    writer.write(|index| index.apply_namespace(namespace("default")));
    let lookup = waiter.await.unwrap();
    assert!(
        matches!(&lookup, Lookup::Found(_, context) if context.namespace.as_ref().is_some_and(|namespace| namespace.name == "default")),
        "{lookup:?}"
    );
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_stays_unknown_leaves_the_pod_found_without_it() {
    let (writer, pods) = pods();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    let began = Instant::now();
    assert!(matches!(
        pods.wait_for_ip(ip("10.0.0.1"), Duration::from_secs(2), with_namespace).await,
        Lookup::Found(_, PodContext { namespace: None, .. })
    ));
    assert_eq!(began.elapsed(), Duration::from_secs(2));
}

fn wait(pods: &Pods, at: IpAddr) -> tokio::task::JoinHandle<Lookup> {
    let pods = pods.clone();
    tokio::spawn(async move { pods.wait_for_ip(at, LONG, anything).await })
}

fn waiters(pods: &Pods, at: IpAddr, count: usize) -> Vec<tokio::task::JoinHandle<Lookup>> {
    (0..count).map(|_| wait(pods, at)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_number_of_waiting_requests_is_bounded() {
    let (writer, pods) = pods();
    let waiters = waiters(&pods, ip("10.0.0.1"), MAX_UNKNOWN_WAITING_OF_ONE);
    settle().await;
    let began = Instant::now();
    assert_eq!(pods.wait_for_ip(ip("10.0.0.1"), LONG, anything).await, Lookup::Unknown);
    assert_eq!((began.elapsed(), pods.waits_turned_away()), (Duration::ZERO, 1), "one more request is answered at once");
    writer.write(|index| index.apply(pod("b", "10.0.0.2")));
    assert_eq!(found(&pods.wait_for_ip(ip("10.0.0.2"), LONG, anything).await), Some("b"), "a known pod needs no place");
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    let lookups = join_all(waiters).await;
    assert!(lookups.into_iter().all(|lookup| found(&lookup.unwrap()) == Some("a")));
    // The places are free again.
    let began = Instant::now();
    pods.wait_for_ip(ip("10.0.0.3"), Duration::from_secs(1), anything).await;
    assert_eq!(began.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn four_unknown_addresses_with_all_places_yield_to_others() {
    let (writer, pods) = pods();
    let greedy: Vec<_> = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        .into_iter()
        .flat_map(|at| waiters(&pods, ip(at), MAX_UNKNOWN_WAITING_OF_ONE))
        .collect();
    settle().await;
    assert_eq!(pods.shared.waiting.taken(), MAX_UNKNOWN_WAITING);
    let honest: Vec<_> = (10..40).map(|last| wait(&pods, IpAddr::from([10, 0, 0, last]))).collect();
    settle().await;
    assert_eq!(pods.shared.waiting.taken(), MAX_UNKNOWN_WAITING);
    assert!(honest.iter().all(|waiter| !waiter.is_finished()));
    assert_eq!(greedy.iter().filter(|waiter| waiter.is_finished()).count(), honest.len(), "displaced requests are answered");
    writer.write(|index| (10..40).for_each(|last| index.apply(pod(&format!("p{last}"), &format!("10.0.0.{last}")))));
    for (waiter, last) in honest.into_iter().zip(10..40) {
        assert_eq!(found(&waiter.await.unwrap()), Some(&*format!("p{last}")));
    }
}

/// A pod invents addresses of its network; a new pod in another network still waits for its status.
#[tokio::test(start_paused = true)]
async fn invented_ipv6_addresses_count_together() {
    let (writer, pods) = pods();
    let honest = [wait(&pods, ip("10.0.0.1")), wait(&pods, ip("fd00:1::1"))];
    settle().await;
    for last in 0..1100 {
        wait(&pods, IpAddr::from(std::net::Ipv6Addr::from_bits((0xfd00_u128 << 112) + last)));
    }
    settle().await;
    assert_eq!(pods.shared.waiting.taken(), MAX_UNKNOWN_WAITING);
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    writer.write(|index| index.apply(pod("b", "fd00:1::1")));
    let lookups = join_all(honest).await;
    assert_eq!(lookups.iter().map(|lookup| found(lookup.as_ref().unwrap())).collect::<Vec<_>>(), [Some("a"), Some("b")]);
}

/// A known pod that waits for its namespace does not compete with unknown addresses.
#[tokio::test(start_paused = true)]
async fn unknown_addresses_take_no_place_of_a_known_pod() {
    let (writer, pods) = pods();
    writer.write(|index| index.apply(pod("a", "10.0.1.1")));
    for last in 0..=255 {
        wait(&pods, IpAddr::from([10, 0, 0, last]));
    }
    settle().await;
    let known: Vec<_> = (0..MAX_WAITING_OF_ONE)
        .map(|_| {
            let pods = pods.clone();
            tokio::spawn(async move { pods.wait_for_ip(ip("10.0.1.1"), LONG, with_namespace).await })
        })
        .collect();
    settle().await;
    assert_eq!(pods.shared.waiting.taken(), MAX_UNKNOWN_WAITING + MAX_WAITING_OF_ONE);
    writer.write(|index| index.apply_namespace(namespace("default")));
    assert!(join_all(known).await.into_iter().all(|lookup| found(&lookup.unwrap()) == Some("a")));
}

fn wait_for_namespace(pods: &Pods, at: &str) -> tokio::task::JoinHandle<Lookup> {
    let (pods, at) = (pods.clone(), ip(at));
    tokio::spawn(async move { pods.wait_for_ip(at, LONG, with_namespace).await })
}

/// Fills all places of known pods with requests from these addresses.
async fn fill(pods: &Pods, flood: &[String]) -> Vec<tokio::task::JoinHandle<Lookup>> {
    let flood = flood.iter().flat_map(|at| (0..MAX_WAITING_OF_ONE).map(|_| wait_for_namespace(pods, at))).collect();
    settle().await;
    assert_eq!(pods.shared.waiting.taken(), MAX_WAITING);
    flood
}

/// 16 pods of one namespace hold all places of known pods; a new pod of another namespace still gets a place.
#[tokio::test(start_paused = true)]
async fn pods_of_one_namespace_with_all_places_yield_to_others() {
    let (writer, pods) = pods();
    let places = MAX_WAITING / MAX_WAITING_OF_ONE;
    let flood: Vec<_> = (0..places).map(|last| format!("10.0.0.{last}")).collect();
    for (last, at) in flood.iter().enumerate() {
        writer.write(|index| index.apply(Pod { namespace: "flood".into(), ..pod(&format!("f{last}"), at) }));
    }
    writer.write(|index| index.apply(pod("new", "10.0.1.1")));
    let flooding = fill(&pods, &flood).await;
    let new = wait_for_namespace(&pods, "10.0.1.1");
    settle().await;
    assert!(!new.is_finished(), "the new pod waits");
    assert_eq!(
        (flooding.iter().filter(|waiter| waiter.is_finished()).count(), pods.waits_turned_away()),
        (1, 1),
        "one request was displaced"
    );
    let turned_away = |name: &str| pods.waits_turned_away_of(&pods.named("flood", name).unwrap().0).map(|turned_away| turned_away.requests);
    assert_eq!((0..places).filter_map(|last| turned_away(&format!("f{last}"))).sum::<u64>(), 1, "the record names its pod");
    assert_eq!(pods.waits_turned_away_of(&pods.named("default", "new").unwrap().0), None);
    writer.write(|index| index.apply_namespace(namespace("default")));
    assert_eq!(found(&new.await.unwrap()), Some("new"));
}

/// Requests from addresses with conflicting claims are not counted in the namespaces of those pods.
#[tokio::test(start_paused = true)]
async fn disputed_addresses_with_all_places_yield_to_pods() {
    let (writer, pods) = pods();
    let flood: Vec<_> = (0..MAX_WAITING / MAX_WAITING_OF_ONE).map(|last| format!("10.0.0.{last}")).collect();
    for (last, at) in flood.iter().enumerate() {
        writer.write(|index| {
            index.apply(pod(&format!("mine{last}"), at));
            index.apply(Pod { namespace: format!("other{last}"), ..pod(&format!("claims{last}"), at) });
        });
    }
    writer.write(|index| index.apply(pod("new", "10.0.1.1")));
    let flooding = fill(&pods, &flood).await;
    let new: Vec<_> = (0..MAX_WAITING_OF_ONE).map(|_| wait_for_namespace(&pods, "10.0.1.1")).collect();
    settle().await;
    assert!(new.iter().all(|waiter| !waiter.is_finished()));
    assert_eq!(flooding.iter().filter(|waiter| waiter.is_finished()).count(), MAX_WAITING_OF_ONE);
    writer.write(|index| index.apply_namespace(namespace("default")));
    assert!(join_all(new).await.into_iter().all(|lookup| found(&lookup.unwrap()) == Some("new")));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_frees_its_place() {
    let (_writer, pods) = pods();
    let waiters = waiters(&pods, ip("10.0.0.1"), MAX_UNKNOWN_WAITING_OF_ONE);
    settle().await;
    assert_eq!(pods.shared.waiting.taken(), MAX_UNKNOWN_WAITING_OF_ONE);
    waiters.iter().for_each(|waiter| waiter.abort());
    join_all(waiters).await;
    assert_eq!(pods.shared.waiting.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_do_not_wait_without_a_writer() {
    let (writer, pods) = pods();
    let waiter = tokio::spawn({
        let pods = pods.clone();
        async move { pods.wait_for_ip(ip("10.0.0.1"), LONG, anything).await }
    });
    settle().await;
    let began = Instant::now();
    drop(writer);
    assert_eq!(waiter.await.unwrap(), Lookup::Unknown);
    assert_eq!(pods.wait_for_ip(ip("10.0.0.1"), LONG, anything).await, Lookup::Unknown);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_handle_reports_changes_since_its_last_call() {
    let (writer, pods) = pods();
    let mut watching = pods.clone();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    let told = tokio::time::timeout(Duration::from_secs(1), watching.changed()).await;
    assert!(told.is_ok());
    let again = tokio::time::timeout(Duration::from_secs(1), watching.changed()).await;
    assert!(again.is_err(), "a change is reported once");
    drop(writer);
    let again = tokio::time::timeout(Duration::from_secs(1), watching.changed()).await;
    assert!(again.is_err(), "nothing changes without a writer");
}

#[test]
fn readers_see_what_the_writer_wrote() {
    let (writer, pods) = pods();
    let reader = pods.clone();
    writer.write(|index| {
        index.apply(pod("b", "10.0.0.2"));
        index.apply(pod("a", "10.0.0.1"));
        index.apply_namespace(namespace("default"));
    });
    assert_eq!(reader.count(), 2);
    assert_eq!(reader.all().iter().map(|pod| &*pod.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(reader.namespaces().into_iter().collect::<Vec<_>>(), ["default"]);
    assert!(reader.namespace("default").is_some() && reader.namespace("other").is_none());
    assert!(matches!(reader.by_ip(ip("10.0.0.1")), Lookup::Found(_, PodContext { namespace: Some(_), .. })));
    assert_eq!(reader.by_ip(ip("10.0.0.3")), Lookup::Unknown);
}

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use proptest::prelude::*;

use super::*;

mod order;

const IP: &str = "10.0.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn uid(text: &str) -> PodUid {
    PodUid(text.into())
}

/// Returns a running pod. Its name is the part of its UID before the first dash.
fn pod(id: &str, ips: &[&str]) -> Pod {
    Pod { uid: uid(id), ips: ips.iter().copied().map(ip).collect(), ..Pod::for_test("default", id.split('-').next().unwrap()) }
}

fn terminating(pod: Pod) -> Pod {
    Pod { terminating: true, ..pod }
}

fn second(number: i64) -> Timestamp {
    Timestamp::from_second(number).unwrap()
}

fn ending(pod: Pod, until: i64) -> Pod {
    Pod { claims_until: Some(second(until)), ..terminating(pod) }
}

fn finished(pod: Pod) -> Pod {
    Pod { finished: true, ..pod }
}

fn index(pods: impl IntoIterator<Item = Pod>) -> Index {
    let mut index = Index::default();
    for pod in pods {
        index.apply(pod);
    }
    index
}

/// Returns the UIDs of the pods that claim the address.
fn claims(index: &Index, at: &str) -> Vec<String> {
    let mut uids: Vec<_> = match index.by_ip(ip(at)) {
        Claims::None => vec![],
        Claims::One(pod) => vec![pod.uid.0.to_string()],
        Claims::Unreadable(_) => vec!["unreadable".to_owned()],
        Claims::Ambiguous(pods) => {
            assert!(pods.len() > 1, "`Ambiguous` has more than one pod");
            pods.iter().map(|pod| pod.uid.0.to_string()).collect()
        }
    };
    uids.sort();
    uids
}

#[test]
fn a_pod_is_found_by_each_of_its_addresses_and_by_no_other() {
    let index = index([pod("a", &[IP, "2001:db8::1"]), pod("b", &["10.0.0.2"])]);
    assert_eq!(claims(&index, IP), ["a"]);
    assert_eq!(claims(&index, "2001:db8::1"), ["a"]);
    assert_eq!(claims(&index, "10.0.0.2"), ["b"]);
    assert!(claims(&index, "10.0.0.3").is_empty());
}

#[test]
fn a_finished_pod_has_no_claim() {
    let index = index([finished(pod("a", &[IP]))]);
    assert!(claims(&index, IP).is_empty());
    assert_eq!(index.len(), 1, "the pod is still known");
}

#[test]
fn a_pod_that_finishes_loses_its_claim() {
    let mut index = index([pod("a", &[IP])]);
    index.apply(finished(pod("a", &[IP])));
    assert!(claims(&index, IP).is_empty());
}

#[test]
fn a_finished_job_does_not_block_the_next_pod_at_its_address() {
    let index = index([finished(pod("job", &[IP])), pod("web", &[IP])]);
    assert_eq!(claims(&index, IP), ["web"]);
}

#[test]
fn a_pod_in_the_hosts_network_has_no_claim() {
    let host = Pod { host_network: true, ..pod("agent", &[IP]) };
    assert!(claims(&index([host.clone()]), IP).is_empty());
    assert_eq!(claims(&index([host, pod("web", &[IP])]), IP), ["web"]);
}

#[test]
fn a_terminating_pod_keeps_its_claim_while_no_other_pod_has_one() {
    assert_eq!(claims(&index([terminating(pod("a", &[IP]))]), IP), ["a"]);
}

#[test]
fn a_terminating_pod_yields_to_one_that_is_not() {
    for pods in [[terminating(pod("old", &[IP])), pod("new", &[IP])], [pod("new", &[IP]), terminating(pod("old", &[IP]))]] {
        assert_eq!(claims(&index(pods), IP), ["new"]);
    }
}

#[test]
fn a_terminating_pods_claim_ends_with_its_time() {
    let mut index = index([ending(pod("a", &[IP]), 20), ending(pod("b", &["10.0.0.2"]), 30), pod("c", &["10.0.0.3"])]);
    let claimed = |index: &Index| [IP, "10.0.0.2", "10.0.0.3"].map(|at| claims(index, at).len());
    assert_eq!((claimed(&index), index.next_claim_end()), ([1, 1, 1], Some(second(20))));
    index.end_claims(second(19));
    assert_eq!((claimed(&index), index.next_claim_end()), ([1, 1, 1], Some(second(20))));
    index.end_claims(second(20));
    assert_eq!((claimed(&index), index.next_claim_end()), ([0, 1, 1], Some(second(30))));
    // Neither a clock that is set back nor another event restores the claim.
    index.end_claims(second(5));
    index.apply(ending(pod("a", &[IP]), 20));
    assert_eq!(claimed(&index), [0, 1, 1]);
    // The pod cannot be read, so its claim ends by its last known state.
    index.unreadable_at(PodName { uid: uid("b"), namespace: "default".to_owned(), name: "b".to_owned() }, None);
    assert_eq!((claims(&index, "10.0.0.2"), index.next_claim_end()), (vec!["unreadable".to_owned()], Some(second(30))));
    assert!(index.contains(&uid("b")), "the pod is known, so that its owner learns why it is refused");
    index.end_claims(second(1000));
    assert_eq!((claimed(&index), index.next_claim_end()), ([0, 0, 1], None));
    assert!(claims(&self::index([Pod { claims_until: Some(Timestamp::MIN), ..pod("d", &[IP]) }]), IP).is_empty(), "before any time is set");
}

#[test]
fn two_living_pods_at_one_address_are_ambiguous() {
    let mut index = index([pod("a", &[IP, "2001:db8::1"]), pod("b", &[IP])]);
    assert_eq!(claims(&index, IP), ["a", "b"]);
    assert_eq!(claims(&index, "2001:db8::1"), ["a"], "each pod keeps the address that it alone claims");
    index.delete(&uid("a"));
    assert_eq!(claims(&index, IP), ["b"]);
}

#[test]
fn two_terminating_pods_at_one_address_are_ambiguous() {
    let index = index([terminating(pod("a", &[IP])), terminating(pod("b", &[IP]))]);
    assert_eq!(claims(&index, IP), ["a", "b"]);
}

#[test]
fn a_pod_that_names_one_address_twice_claims_it_once() {
    assert_eq!(claims(&index([pod("a", &[IP, IP])]), IP), ["a"]);
}

#[test]
fn a_deleted_pod_is_forgotten_and_its_address_goes_to_the_next() {
    let mut index = index([pod("a", &[IP])]);
    index.delete(&uid("a"));
    assert!(claims(&index, IP).is_empty() && index.is_empty());
    index.apply(pod("b", &[IP]));
    assert_eq!(claims(&index, IP), ["b"]);
}

#[test]
fn a_late_deletion_does_not_affect_the_next_pod_at_the_address() {
    let mut index = index([finished(pod("a", &[IP])), pod("b", &[IP])]);
    index.delete(&uid("a"));
    assert_eq!(claims(&index, IP), ["b"]);
    index.delete(&uid("a"));
    index.delete(&uid("never-was"));
    assert_eq!(claims(&index, IP), ["b"]);
}

#[test]
fn a_pod_with_the_same_name_and_another_uid_replaces_the_first() {
    let mut index = index([pod("db-1", &[IP])]);
    index.apply(pod("db-2", &["10.0.0.2"]));
    assert!(claims(&index, IP).is_empty());
    assert_eq!(claims(&index, "10.0.0.2"), ["db-2"]);
    assert_eq!(index.len(), 1);
    // The deletion of the first pod arrives late, and does not affect the second.
    index.delete(&uid("db-1"));
    assert_eq!(claims(&index, "10.0.0.2"), ["db-2"]);
    index.apply(pod("db-3", &[IP]));
    assert_eq!(index.len(), 1, "the name is still known");
}

#[test]
fn the_same_name_in_another_namespace_is_another_pod() {
    let other = Pod { namespace: "other".to_owned(), ..pod("db-2", &["10.0.0.2"]) };
    let index = index([pod("db-1", &[IP]), other]);
    assert_eq!(claims(&index, IP), ["db-1"]);
    assert_eq!(claims(&index, "10.0.0.2"), ["db-2"]);
    assert_eq!(index.namespaces_of_pods().into_iter().collect::<Vec<_>>(), ["default", "other"]);
}

/// Compares the counts of `index.needs` with all pods.
fn assert_needs(index: &Index) {
    let mut needs = PodNeeds::default();
    index.pods.values().for_each(|held| needs.add(&held.pod, index.may_send(&held.pod)));
    index.unreadable.values().filter_map(|unreadable| unreadable.last.as_ref()).for_each(|last| needs.add_claim_end(last));
    assert_eq!(index.needs, needs);
}

#[test]
fn finished_and_host_network_pods_need_no_namespace() {
    let of = |namespace: &str, pod: Pod| Pod { namespace: namespace.to_owned(), service_account: "default".to_owned(), ..pod };
    let finished = of("batch", Pod { finished: true, ..pod("job-1", &[]) });
    let host = of("system", Pod { host_network: true, ..pod("proxy-1", &[]) });
    let mut index = index([finished, host, of("shop", pod("web-1", &[IP]))]);
    assert_eq!(index.namespaces_of_pods().into_iter().collect::<Vec<_>>(), ["shop"]);
    assert_eq!(index.service_accounts_of_pods().into_iter().collect::<Vec<_>>(), [("shop".to_owned(), "default".to_owned())]);
    assert_eq!(index.namespaces().into_iter().collect::<Vec<_>>(), ["batch", "shop", "system"]);
    assert_needs(&index);
    index.apply(of("shop", Pod { finished: true, ..pod("web-1", &[IP]) }));
    assert_eq!((index.namespaces_of_pods().len(), index.service_accounts_of_pods().len()), (0, 0));
    index.delete(&uid("web-1"));
    assert!(!index.has_namespace("shop") && index.has_namespace("batch"));
    assert_needs(&index);
}

#[test]
fn a_changed_address_is_applied() {
    let mut index = index([pod("a", &[])]);
    index.apply(pod("a", &[IP]));
    assert_eq!(claims(&index, IP), ["a"]);
    index.apply(pod("a", &["10.0.0.2"]));
    assert!(claims(&index, IP).is_empty());
    assert_eq!(claims(&index, "10.0.0.2"), ["a"]);
}

#[test]
fn events_may_be_repeated() {
    let mut index = index([pod("a", &[IP]), pod("a", &[IP]), pod("a", &[IP])]);
    assert_eq!(claims(&index, IP), ["a"]);
    index.delete(&uid("a"));
    assert!(claims(&index, IP).is_empty());
    assert!(index.by_ip.is_empty() && index.by_name.is_empty() && index.pods.is_empty(), "nothing is left over: {index:?}");
}

#[test]
fn a_relist_replaces_every_pod_and_keeps_the_namespaces() {
    let mut index = index([pod("a", &[IP]), pod("b", &["10.0.0.2"])]);
    index.apply_namespace(Namespace { name: "default".to_owned(), allowed_roles: None, permitted: None });
    index.reset([pod("c", &[IP]), pod("b", &["10.0.0.2"])]);
    assert_eq!(claims(&index, IP), ["c"]);
    assert_eq!(claims(&index, "10.0.0.2"), ["b"]);
    assert_eq!(index.len(), 2);
    assert!(index.namespace("default").is_some());
    index.reset([]);
    assert!(index.is_empty() && claims(&index, IP).is_empty());
}

#[test]
fn namespaces_are_added_changed_and_deleted() {
    let mut index = Index::default();
    assert_eq!(index.namespace("a"), None);
    for list in [None, Some("[]".to_owned())] {
        let namespace = Namespace { name: "a".to_owned(), allowed_roles: list, permitted: None };
        index.apply_namespace(namespace.clone());
        assert_eq!(index.namespace("a").as_deref(), Some(&namespace));
    }
    index.delete_namespace("a");
    assert_eq!(index.namespace("a"), None);
}

#[test]
fn pods_are_listed_by_namespace_and_name() {
    let other = Pod { namespace: "another".to_owned(), ..pod("z", &[]) };
    let all = index([pod("b", &[]), pod("a", &[]), other]).all();
    assert_eq!(all.iter().map(|pod| &*pod.name).collect::<Vec<_>>(), ["z", "a", "b"]);
}

/// A change of the pods of a node.
#[derive(Clone, Debug)]
enum Event {
    Apply(Box<Pod>),
    Delete(PodUid),
    Reset(Vec<Pod>),
}

/// Few names, UIDs and addresses, so that they collide. A UID belongs to one name, as in a cluster.
fn any_pod() -> impl Strategy<Value = Pod> {
    let address = prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1"]);
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.3), prop::bool::weighted(0.1));
    (0..4_u8, 0..3_u8, prop::collection::vec(address, 0..3), flags).prop_map(|(name, generation, ips, flags)| Pod {
        namespace: if name == 0 { "other" } else { "default" }.to_owned(),
        finished: flags.0,
        terminating: flags.1,
        host_network: flags.2,
        may_have_net_raw: false,
        ..pod(&format!("p{name}-{generation}"), &ips)
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => any_pod().prop_map(|pod| Event::Apply(Box::new(pod))),
        3 => any_pod().prop_map(|pod| Event::Delete(pod.uid)),
        1 => prop::collection::vec(any_pod(), 0..4).prop_map(Event::Reset),
    ]
}

/// The rules of the index without an index: a list of pods that is searched linearly.
#[derive(Default)]
struct Model(Vec<Pod>);

impl Model {
    fn take(&mut self, event: Event) {
        match event {
            Event::Apply(pod) => {
                self.0.retain(|other| (&other.namespace, &other.name) != (&pod.namespace, &pod.name));
                self.0.push(*pod);
            }
            Event::Delete(uid) => self.0.retain(|pod| pod.uid != uid),
            Event::Reset(pods) => {
                self.0.clear();
                pods.into_iter().for_each(|pod| self.take(Event::Apply(Box::new(pod))));
            }
        }
    }

    fn claims(&self, at: &str) -> Vec<String> {
        let claims = |terminating| {
            let with = |pod: &&Pod| !pod.finished && !pod.host_network && pod.terminating == terminating && pod.ips.contains(&ip(at));
            self.0.iter().filter(with).map(|pod| pod.uid.0.to_string()).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        let running = claims(false);
        if running.is_empty() { claims(true) } else { running }
    }
}

proptest! {
    #[test]
    fn after_any_history_the_claims_equal_a_linear_search(history in prop::collection::vec(any_event(), 0..40)) {
        let (mut index, mut model) = (Index::default(), Model::default());
        for event in history {
            model.take(event.clone());
            match event {
                Event::Apply(pod) => index.apply(*pod),
                Event::Delete(uid) => index.delete(&uid),
                Event::Reset(pods) => index.reset(pods),
            }
            for at in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1"] {
                prop_assert_eq!(claims(&index, at), model.claims(at), "{}", at);
            }
            assert_needs(&index);
            prop_assert_eq!(index.len(), model.0.len());
            prop_assert_eq!(index.by_name.len(), model.0.len(), "one name for each pod");
        }
    }
}

use super::*;

fn pod(namespace: &str, uid: &str) -> KeyRequester {
    KeyRequester::Pod { namespace: namespace.to_owned(), uid: PodUid(uid.into()) }
}

impl Demands {
    /// Requests a fetch that ends at once. Returns whether there was one.
    fn fetch(&mut self, requester: &KeyRequester, outcome: FetchOutcome, now: Instant) -> bool {
        let may = self.request(requester, now);
        assert_eq!(self.is_wanted(), may);
        if may {
            self.begin();
            assert!(!self.is_wanted());
            self.end(outcome, now);
        }
        may
    }
}

/// Returns how many fetches these requesters cause in an hour if each requests one every second.
fn in_an_hour(requesters: &[KeyRequester]) -> usize {
    let (mut demands, start) = (Demands::default(), Instant::now());
    let seconds = (0..3600).map(|second| start + Duration::from_secs(second));
    seconds
        .flat_map(|now| requesters.iter().map(move |requester| (requester, now)))
        .filter(|(requester, now)| demands.fetch(requester, FetchOutcome::Unchanged, *now))
        .count()
}

#[test]
fn wasted_fetches_become_rare() {
    assert!((12..=24).contains(&in_an_hour(&[pod("a", "1")])), "a pod");
    let pods: Vec<_> = (0..50).map(|number| pod("a", &number.to_string())).collect();
    assert!((60..=90).contains(&in_an_hour(&pods)), "the pods of a namespace");
    assert!((60..=90).contains(&in_an_hour(&[KeyRequester::HostNetwork])), "the pods in the node's network");
}

#[test]
fn a_pod_delays_no_pod_of_another_namespace() {
    let (mut demands, now) = (Demands::default(), Instant::now());
    assert!(demands.fetch(&pod("a", "1"), FetchOutcome::Unchanged, now));
    assert!(!demands.fetch(&pod("a", "1"), FetchOutcome::Unchanged, now));
    assert!(!demands.fetch(&pod("a", "2"), FetchOutcome::Unchanged, now), "of the same namespace");
    assert!(demands.fetch(&pod("b", "3"), FetchOutcome::Unchanged, now));
    assert!(demands.fetch(&KeyRequester::HostNetwork, FetchOutcome::Unchanged, now));
}

#[test]
fn all_waits_end_when_the_keys_change() {
    let (mut demands, now) = (Demands::default(), Instant::now());
    assert!(demands.fetch(&pod("a", "1"), FetchOutcome::Unchanged, now));
    assert!(demands.fetch(&pod("b", "2"), FetchOutcome::Changed, now));
    assert!(demands.fetch(&pod("a", "1"), FetchOutcome::Unchanged, now));
}

#[test]
fn a_failed_fetch_was_not_wasted() {
    let (mut demands, now) = (Demands::default(), Instant::now());
    assert!(demands.fetch(&pod("a", "1"), FetchOutcome::Failed, now));
    assert!(demands.fetch(&pod("a", "1"), FetchOutcome::Failed, now));
}

#[test]
fn who_requests_a_fetch_while_one_is_under_way_pays_for_the_next_one() {
    let (mut demands, now) = (Demands::default(), Instant::now());
    assert!(demands.request(&pod("a", "1"), now));
    demands.begin();
    assert!(demands.request(&pod("b", "2"), now));
    demands.end(FetchOutcome::Unchanged, now);
    assert!(demands.is_wanted());
    assert!(!demands.request(&pod("a", "1"), now) && demands.request(&pod("b", "2"), now));
}

#[test]
fn wasted_fetches_are_forgotten() {
    let (mut demands, start) = (Demands::default(), Instant::now());
    let hour = start + Duration::from_secs(3600);
    for now in [start, start + LEAST_BETWEEN, start + LEAST_BETWEEN * 4, hour] {
        assert!(demands.fetch(&pod("a", "1"), FetchOutcome::Unchanged, now));
    }
    assert!(demands.fetch(&pod("a", "1"), FetchOutcome::Unchanged, hour + LEAST_BETWEEN), "the pause is again the first one");
}

#[test]
fn the_accounts_are_bounded() {
    let (mut demands, now) = (Demands::default(), Instant::now());
    for number in 0..2 * MAX_ACCOUNTS {
        assert!(demands.fetch(&pod(&format!("n{number}"), &number.to_string()), FetchOutcome::Unchanged, now));
    }
    assert_eq!(demands.wasted.len(), MAX_ACCOUNTS);
}

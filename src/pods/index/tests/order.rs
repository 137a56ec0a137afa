//! Changes that arrive in another order than the API made them.

use std::collections::BTreeMap;

use super::*;

fn at(version: u64, pod: Pod) -> Pod {
    Pod { role: Some(version.to_string()), ..pod }
}

fn apply(index: &mut Index, version: u64, pod: Pod) {
    index.apply_at(at(version, pod), Some(version));
}

fn delete(index: &mut Index, version: u64, pod: &Pod) {
    index.delete_at(&pod.uid, &pod.namespace, &pod.name, Some(version));
}

fn list(index: &mut Index, version: u64, pods: &[(u64, Pod)]) {
    index.list_at(pods.iter().map(|(version, pod)| (at(*version, pod.clone()), Some(*version))), [], Some(version), false);
}

fn incomplete_list(index: &mut Index, version: u64, pods: &[(u64, Pod)]) {
    index.list_at(pods.iter().map(|(version, pod)| (at(*version, pod.clone()), Some(*version))), [], Some(version), true);
}

fn state(index: &Index) -> BTreeMap<String, u64> {
    index.all().iter().map(|pod| (pod.uid.0.to_string(), pod.role.as_deref().unwrap().parse().unwrap())).collect()
}

#[test]
fn an_earlier_state_does_not_replace_a_later_one() {
    let mut index = Index::default();
    apply(&mut index, 7, pod("a", &["10.0.0.2"]));
    apply(&mut index, 5, pod("a", &[IP]));
    assert!(claims(&index, IP).is_empty());
    assert_eq!(claims(&index, "10.0.0.2"), ["a"]);
}

#[test]
fn a_late_or_repeated_event_does_not_restore_a_deleted_pod() {
    let mut index = Index::default();
    let a = pod("a", &[IP]);
    apply(&mut index, 5, a.clone());
    delete(&mut index, 8, &a);
    apply(&mut index, 5, a.clone());
    apply(&mut index, 7, a.clone());
    index.apply(a.clone());
    assert!(index.is_empty());
    // This includes a pod of which only the deletion was seen.
    let b = pod("b", &[IP]);
    delete(&mut index, 9, &b);
    apply(&mut index, 6, b);
    assert!(index.is_empty());
}

#[test]
fn a_list_does_not_restore_a_pod_that_was_deleted_after_it() {
    let mut index = Index::default();
    let (a, b) = (pod("a", &[IP]), pod("b", &["10.0.0.2"]));
    apply(&mut index, 5, a.clone());
    apply(&mut index, 12, b.clone());
    delete(&mut index, 11, &a);
    list(&mut index, 10, &[(5, a.clone())]);
    assert_eq!(state(&index), BTreeMap::from([("b".to_owned(), 12)]), "a pod seen after the list stays");
    apply(&mut index, 9, pod("c", &[]));
    assert_eq!(index.len(), 1, "an older pod that is not in the list was gone");
    list(&mut index, 4, &[(4, pod("d", &[]))]);
    assert_eq!(index.len(), 1, "an earlier list is ignored");
}

#[test]
fn of_two_pods_with_one_name_the_later_one_exists() {
    for late_first in [false, true] {
        let mut index = Index::default();
        let (old, new) = (pod("db-1", &[IP]), pod("db-2", &["10.0.0.2"]));
        if late_first {
            apply(&mut index, 9, new);
            apply(&mut index, 4, old.clone());
        } else {
            apply(&mut index, 4, old.clone());
            apply(&mut index, 9, new);
        }
        assert_eq!(state(&index), BTreeMap::from([("db-2".to_owned(), 9)]));
        apply(&mut index, 5, old);
        assert!(claims(&index, IP).is_empty());
    }
}

/// The watch lags behind a query's response: two pods with one name, one after the other, and a third at their address.
#[test]
fn a_late_deletion_keeps_the_next_pod_with_the_name() {
    let mut index = Index::default();
    let (first, next, beside) = (pod("web-1", &[IP]), pod("web-2", &[IP]), pod("other", &[IP]));
    apply(&mut index, 5, first.clone());
    apply(&mut index, 9, beside);
    // The response, of version 10: the first pod is gone, and the next has had its name since 7.
    index.gone_at(&first.uid, Some(10));
    apply(&mut index, 7, next.clone());
    assert_eq!(claims(&index, IP), ["other", "web-2"]);
    // Events that the watch sends late.
    delete(&mut index, 6, &first);
    assert_eq!(claims(&index, IP), ["other", "web-2"]);
    apply(&mut index, 7, next);
    assert_eq!(claims(&index, IP), ["other", "web-2"]);
}

#[test]
fn a_forgotten_pod_can_be_applied_again() {
    let mut index = Index::default();
    apply(&mut index, 5, pod("a", &[IP]));
    index.delete(&uid("a"));
    assert!(index.is_empty());
    apply(&mut index, 6, pod("a", &[IP]));
    assert_eq!(claims(&index, IP), ["a"]);
}

fn names(pod: &Pod) -> PodName {
    PodName { uid: pod.uid.clone(), namespace: pod.namespace.clone(), name: pod.name.clone() }
}

fn unreadable(index: &mut Index, version: u64, pod: &Pod) {
    index.unreadable_at(names(pod), Some(version));
}

#[test]
fn an_unreadable_pod_blocks_its_address_until_readable_or_gone() {
    let (a, b) = (pod("a", &[IP]), pod("b", &[IP]));
    let known = || {
        let mut index = Index::default();
        apply(&mut index, 5, a.clone());
        unreadable(&mut index, 7, &a);
        apply(&mut index, 8, b.clone());
        assert_eq!(claims(&index, IP), ["unreadable"]);
        assert_eq!(state(&index), BTreeMap::from([("b".to_owned(), 8)]), "the pod is no longer known");
        index
    };
    let mut index = known();
    apply(&mut index, 6, a.clone());
    assert_eq!(claims(&index, IP), ["unreadable"], "according to its last known state");
    apply(&mut index, 9, pod("a", &["10.0.0.2"]));
    assert_eq!((claims(&index, IP), claims(&index, "10.0.0.2")), (vec!["b".to_owned()], vec!["a".to_owned()]));
    let mut index = known();
    delete(&mut index, 9, &a);
    assert_eq!(claims(&index, IP), ["b"]);
    let mut index = known();
    index.gone_at(&a.uid, Some(6));
    assert_eq!(claims(&index, IP), ["unreadable"]);
    index.gone_at(&a.uid, Some(9));
    assert_eq!(claims(&index, IP), ["b"]);
    // A list with the pod, a list without it, and a pod that has its name by now.
    let mut index = known();
    index.list_at([(at(8, b.clone()), Some(8))], [(names(&a), Some(7))], Some(10), false);
    assert_eq!(claims(&index, IP), ["unreadable"]);
    list(&mut index, 11, &[(8, b.clone())]);
    assert_eq!(claims(&index, IP), ["b"]);
    let mut index = known();
    apply(&mut index, 9, pod("a-2", &["10.0.0.2"]));
    assert_eq!(claims(&index, IP), ["b"]);
    assert_eq!(index.by_name.len(), index.len());
    // Another unreadable state changes nothing, and in a new history it is the same pod.
    let mut index = known();
    unreadable(&mut index, 9, &a);
    assert_eq!(claims(&index, IP), ["unreadable"]);
    index.replace_at([(b.clone(), Some(1))], [(names(&a), Some(2))], Some(3), false);
    assert_eq!(claims(&index, IP), ["unreadable"]);
}

#[test]
fn an_unreadable_pod_stays_finished_or_terminating() {
    for (last, next) in [(finished(pod("a", &[IP])), "b"), (terminating(pod("a", &[IP])), "b"), (pod("a", &[IP]), "unreadable")] {
        let mut index = Index::default();
        apply(&mut index, 5, last.clone());
        unreadable(&mut index, 6, &last);
        apply(&mut index, 7, pod("b", &[IP]));
        assert_eq!(claims(&index, IP), [next], "{last:?}");
    }
    let mut index = Index::default();
    apply(&mut index, 5, terminating(pod("a", &[IP])));
    unreadable(&mut index, 6, &pod("a", &[]));
    assert_eq!(claims(&index, IP), ["unreadable"], "if no other pod claims it");
}

#[test]
fn an_unreadable_pod_without_address_may_have_a_terminating_pods_address() {
    let web = ending(pod("web", &[IP]), 20);
    for (last, served) in [
        (None, false),
        (Some(pod("next", &[])), false),
        (Some(pod("next", &["10.0.0.2"])), true),
        (Some(finished(pod("next", &[]))), true),
        (Some(terminating(pod("next", &[]))), true),
        (Some(Pod { host_network: true, ..pod("next", &[]) }), true),
    ] {
        let mut index = index([web.clone(), pod("db", &["10.0.0.3"])]);
        if let Some(last) = last.clone() {
            apply(&mut index, 5, last);
        }
        unreadable(&mut index, 6, &pod("next", &[]));
        assert_eq!(claims(&index, IP) == ["web"], served, "{last:?}");
        assert_eq!(claims(&index, IP).is_empty(), !served, "{last:?}");
        assert_eq!(claims(&index, "10.0.0.3"), ["db"], "a pod that is not terminating keeps its address");
        delete(&mut index, 7, &pod("next", &[]));
        assert_eq!(claims(&index, IP), ["web"]);
    }
}

#[test]
fn an_incomplete_list_removes_no_pod_and_missing_pods_are_not_served() {
    let (a, b, web) = (pod("a", &[IP]), pod("b", &["10.0.0.2"]), ending(pod("web", &["10.0.0.3"]), 20));
    for new_history in [false, true] {
        let mut index = Index::default();
        list(&mut index, 10, &[(5, a.clone()), (6, b.clone()), (7, web.clone())]);
        if new_history {
            index.replace_at([(at(1, b.clone()), Some(1)), (at(2, web.clone()), Some(2))], [], Some(3), true);
        } else {
            incomplete_list(&mut index, 20, &[(6, b.clone()), (7, web.clone())]);
        }
        assert_eq!(claims(&index, IP), ["unreadable"], "the missing pod may be the unreadable one");
        assert_eq!(claims(&index, "10.0.0.2"), ["b"]);
        assert!(claims(&index, "10.0.0.3").is_empty(), "the unreadable pod may have this address");
        list(&mut index, 30, &[(6, b.clone()), (7, web.clone())]);
        assert!(claims(&index, IP).is_empty());
        assert_eq!((claims(&index, "10.0.0.3"), index.unreadable.len()), (vec!["web".to_owned()], 0));
    }
    // A pod whose name another has by now is gone nevertheless, and later events still apply.
    for new_history in [false, true] {
        let mut index = Index::default();
        list(&mut index, 10, &[(5, pod("db-1", &[IP])), (6, b.clone())]);
        if new_history {
            index.replace_at([(at(1, pod("db-2", &["10.0.0.9"])), Some(1))], [], Some(3), true);
        } else {
            incomplete_list(&mut index, 20, &[(15, pod("db-2", &["10.0.0.9"]))]);
        }
        assert!(claims(&index, IP).is_empty());
        assert_eq!((claims(&index, "10.0.0.9"), claims(&index, "10.0.0.2")), (vec!["db-2".to_owned()], vec!["unreadable".to_owned()]));
        apply(&mut index, 25, b.clone());
        assert_eq!(claims(&index, "10.0.0.2"), ["b"]);
        assert_eq!(index.by_name.len(), 2);
    }
}

#[test]
fn a_list_restores_a_pod_that_was_wrongly_considered_gone() {
    let (a, b) = (pod("a", &[IP]), pod("b", &["10.0.0.2"]));
    let gone = || {
        let mut index = Index::default();
        list(&mut index, 10, &[(5, a.clone()), (6, b.clone())]);
        index.gone_at(&a.uid, Some(20));
        apply(&mut index, 21, a.clone());
        assert!(claims(&index, IP).is_empty(), "no event restores it");
        index
    };
    let mut index = gone();
    list(&mut index, 19, &[(5, a.clone()), (6, b.clone())]);
    assert!(claims(&index, IP).is_empty(), "an earlier list does not restore it");
    list(&mut index, 20, &[(5, a.clone()), (6, b.clone())]);
    assert_eq!(claims(&index, IP), ["a"]);
    assert_eq!(index.tombstones.len(), 0);
    // A pod that a list left out, one whose name another took, and one without versions.
    let mut index = Index::default();
    list(&mut index, 10, &[(5, a.clone())]);
    list(&mut index, 11, &[]);
    list(&mut index, 12, &[(5, a.clone())]);
    assert_eq!(claims(&index, IP), ["a"]);
    index.delete_at(&a.uid, &a.namespace, &a.name, None);
    list(&mut index, 13, &[(5, a.clone())]);
    assert_eq!(claims(&index, IP), ["a"]);
    // An unreadable pod exists as well.
    let mut index = gone();
    index.list_at([(at(6, b.clone()), Some(6))], [(names(&a), Some(22))], Some(22), false);
    apply(&mut index, 23, a);
    assert_eq!(claims(&index, IP), ["a"]);
}

#[test]
fn restoring_a_pod_keeps_other_tombstones_of_its_name() {
    let mut index = Index::default();
    let (old, new) = (pod("db-1", &[IP]), pod("db-2", &["10.0.0.2"]));
    apply(&mut index, 4, old.clone());
    apply(&mut index, 6, new.clone());
    index.gone_at(&new.uid, Some(20));
    list(&mut index, 21, &[(6, new)]);
    assert_eq!(claims(&index, "10.0.0.2"), ["db-2"]);
    assert_eq!(index.tombstones.len(), 1);
    apply(&mut index, 5, old);
    assert!(claims(&index, IP).is_empty());
}

#[test]
fn a_new_history_replaces_everything() {
    let mut index = Index::default();
    let (a, b) = (pod("a", &[IP]), pod("b", &["10.0.0.2"]));
    list(&mut index, 100, &[(90, a.clone()), (91, b.clone())]);
    delete(&mut index, 101, &b);
    index.replace_at([(at(40, b), Some(40))], [], Some(50), false);
    assert_eq!(state(&index), BTreeMap::from([("b".to_owned(), 40)]));
    apply(&mut index, 60, a);
    assert_eq!(index.len(), 2);
}

#[test]
fn non_numeric_versions_apply_in_order_of_arrival() {
    let mut index = Index::default();
    index.apply_at(pod("a", &[IP]), None);
    index.apply_at(pod("a", &["10.0.0.2"]), None);
    assert_eq!(claims(&index, "10.0.0.2"), ["a"]);
    index.delete_at(&uid("a"), "default", "a", None);
    index.apply_at(pod("a", &[IP]), None);
    assert!(index.is_empty(), "a deleted UID stays deleted");
    index.list_at([(pod("b", &[IP]), None)], [], None, false);
    index.list_at([(pod("c", &[IP]), None)], [], None, false);
    index.list_at([(pod("b", &[IP]), None)], [], None, false);
    assert_eq!(claims(&index, IP), ["b"]);
}

#[test]
fn tombstones_are_bounded() {
    let mut index = Index::default();
    for number in 0..3 * tombstones::MAX_TOMBSTONES {
        index.delete_at(&uid(&format!("u{number}")), "default", &format!("n{}", number % 7), None);
    }
    assert_eq!(index.tombstones.len(), tombstones::MAX_TOMBSTONES);
}

/// A change that the API made. Pods are recreated under few names, with few addresses.
#[derive(Clone, Debug)]
struct Change {
    pod: Pod,
    is: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Readable,
    Unreadable,
    Deleted,
}

/// A name, the change of its pod, its addresses, its flags, and until when a terminating pod claims its addresses.
type Choice = (u8, u8, (u8, Option<u8>), (bool, bool, bool), i64);

fn any_choice() -> impl Strategy<Value = Choice> {
    let addresses = (0..4_u8, prop::option::weighted(0.3, 1..3_u8));
    (0..3_u8, 0..20_u8, addresses, (prop::bool::weighted(0.1), prop::bool::weighted(0.3), prop::bool::weighted(0.1)), 1..6_i64)
}

/// Returns a history: the change at each version, from 1 on.
fn history(choices: &[Choice]) -> Vec<Change> {
    let mut alive: BTreeMap<u8, Pod> = BTreeMap::new();
    let mut changes = Vec::new();
    for (number, (name, what, (v4, v6), flags, until)) in choices.iter().enumerate() {
        let generation = alive.get(name).map_or_else(|| format!("p{name}-{number}"), |pod| pod.uid.0.to_string());
        let version = u64::try_from(number).unwrap() + 1;
        let addresses: Vec<_> =
            [(*v4 > 0).then(|| format!("10.0.0.{v4}")), v6.map(|v6| format!("2001:db8::{v6}"))].into_iter().flatten().collect();
        let pod = pod(&generation, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
        let claims_until = flags.1.then(|| second(*until));
        let pod = at(version, Pod { finished: flags.0, terminating: flags.1, claims_until, host_network: flags.2, ..pod });
        let is = match what {
            0..7 if alive.contains_key(name) => What::Deleted,
            7..10 => What::Unreadable,
            _ => What::Readable,
        };
        if is == What::Deleted {
            alive.remove(name)
        } else {
            alive.insert(*name, pod.clone())
        };
        changes.push(Change { pod, is });
    }
    changes
}

/// Returns the list as of a version: the version of each pod's last change.
fn snapshot(changes: &[Change], version: usize) -> BTreeMap<PodUid, u64> {
    let mut alive = BTreeMap::new();
    for (number, change) in (1..).zip(&changes[..version]) {
        if change.is == What::Deleted {
            alive.remove(&change.pod.uid)
        } else {
            alive.insert(change.pod.uid.clone(), number)
        };
    }
    alive
}

/// The latest information about a pod: its version, whether it could be read, and the last readable state.
#[derive(Clone, Default)]
struct Last {
    version: u64,
    readable: bool,
    pod: Option<Pod>,
}

/// The state that follows from the received part of a history, computed by searching all of it.
#[derive(Default)]
struct Heard {
    last: BTreeMap<PodUid, Last>,
    /// Events and responses about one pod, and complete lists.
    events: Vec<usize>,
    lists: Vec<usize>,
    /// Pods reported as gone by a version.
    gone: Vec<(PodUid, usize)>,
    /// The latest time that was passed in, in seconds.
    now: i64,
}

impl Heard {
    fn see(&mut self, changes: &[Change], version: usize) {
        let Change { pod, is } = &changes[version - 1];
        let last = self.last.entry(pod.uid.clone()).or_default();
        let number = u64::try_from(version).unwrap();
        if *is != What::Deleted && number > last.version {
            let readable = *is == What::Readable;
            *last = Last { version: number, readable, pod: if readable { Some(pod.clone()) } else { last.pod.take() } };
        }
    }

    /// Returns the pods that exist, as far as is known.
    fn alive<'a>(&'a self, changes: &'a [Change]) -> impl Iterator<Item = (&'a PodUid, &'a Last)> {
        let is_dead = |uid: &PodUid| {
            let death = changes.iter().position(|change| change.is == What::Deleted && change.pod.uid == *uid);
            let Some(death) = death.map(|at| at + 1) else {
                return false;
            };
            let name = &changes[death - 1].pod.name;
            let heard_of_next = self.events.iter().any(|version| *version >= death && changes[*version - 1].pod.name == *name);
            let next_seen = self.last.iter().any(|(other, last)| {
                let is_next = usize::try_from(last.version).unwrap() > death;
                is_next && changes.iter().any(|change| change.pod.uid == *other && change.pod.name == *name)
            });
            let said = self.gone.iter().any(|(gone, version)| gone == uid && *version >= death);
            heard_of_next || next_seen || said || self.lists.iter().any(|version| *version >= death)
        };
        self.last.iter().filter(move |(uid, last)| last.version > 0 && !is_dead(uid))
    }

    fn state(&self, changes: &[Change]) -> BTreeMap<String, u64> {
        self.alive(changes).filter(|(_, last)| last.readable).map(|(uid, last)| (uid.0.to_string(), last.version)).collect()
    }

    fn claims(&self, changes: &[Change], at: &str) -> Vec<String> {
        let holding = |terminating| {
            let pods = self.alive(changes).filter_map(|(uid, last)| Some((uid, last.readable, last.pod.as_ref()?)));
            let in_time = |pod: &Pod| pod.claims_until.is_none_or(|until| second(self.now) < until);
            let with = pods.filter(|(_, _, pod)| {
                !pod.finished && !pod.host_network && in_time(pod) && pod.terminating == terminating && pod.ips.contains(&ip(at))
            });
            with.map(|(uid, readable, _)| (readable, uid.0.to_string())).collect::<Vec<_>>()
        };
        let running = holding(false);
        let may_have_any = |last: &Last| match &last.pod {
            None => true,
            Some(pod) => pod.ips.is_empty() && !pod.finished && !pod.host_network && !pod.terminating,
        };
        let anyone_anywhere = self.alive(changes).any(|(_, last)| !last.readable && may_have_any(last));
        let standing = match running.is_empty() {
            false => running,
            true if anyone_anywhere => Vec::new(),
            true => holding(true),
        };
        if standing.iter().any(|(readable, _)| !readable) {
            return vec!["unreadable".to_owned()];
        }
        standing.into_iter().map(|(_, uid)| uid).collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Hear {
    Event,
    List,
    /// A response about the pod of the change, as of another version.
    Answer(prop::sample::Index),
    Time(i64),
}

proptest! {
    #[test]
    fn no_order_of_arrival_reverts_the_state(
        choices in prop::collection::vec(any_choice(), 1..30),
        heard in prop::collection::vec((prop_oneof![
            7 => Just(Hear::Event),
            2 => Just(Hear::List),
            1 => any::<prop::sample::Index>().prop_map(Hear::Answer),
            1 => (0..6_i64).prop_map(Hear::Time),
        ], any::<prop::sample::Index>()), 0..60),
    ) {
        let changes = history(&choices);
        let (mut index, mut model) = (Index::default(), Heard::default());
        let number = |version: usize| Some(u64::try_from(version).unwrap());
        let take = |index: &mut Index, version: usize| {
            let Change { pod, is } = changes[version - 1].clone();
            match is {
                What::Readable => index.apply_at(pod, number(version)),
                What::Unreadable => index.unreadable_at(names(&pod), number(version)),
                What::Deleted => index.delete_at(&pod.uid, &pod.namespace, &pod.name, number(version)),
            }
        };
        for (hear, which) in heard {
            let version = which.index(changes.len()) + 1;
            match hear {
                Hear::Event => {
                    model.events.push(version);
                    model.see(&changes, version);
                    take(&mut index, version);
                }
                Hear::List => {
                    let listed = snapshot(&changes, version);
                    // A list that is older than the last one is ignored.
                    if model.lists.iter().all(|earlier| *earlier <= version) {
                        model.lists.push(version);
                        listed.values().for_each(|at| model.see(&changes, usize::try_from(*at).unwrap()));
                    }
                    let of = |at: &u64| (changes[usize::try_from(*at).unwrap() - 1].clone(), Some(*at));
                    let (readable, unreadable): (Vec<_>, Vec<_>) = listed.values().map(of).partition(|(change, _)| change.is == What::Readable);
                    let pods = readable.into_iter().map(|(change, at)| (change.pod, at));
                    let unreadable = unreadable.into_iter().map(|(change, at)| (names(&change.pod), at));
                    index.list_at(pods, unreadable, number(version), false);
                }
                Hear::Time(now) => {
                    model.now = model.now.max(now);
                    index.end_claims(second(now));
                }
                Hear::Answer(as_of) => {
                    let asked = &changes[version - 1].pod;
                    let as_of = as_of.index(changes.len()) + 1;
                    let there = snapshot(&changes, as_of).into_values().map(|at| usize::try_from(at).unwrap());
                    let now = there.into_iter().find(|at| changes[*at - 1].pod.name == asked.name);
                    // An unreadable pod is no response.
                    if now.is_some_and(|at| changes[at - 1].is == What::Unreadable) {
                        continue;
                    }
                    if now.is_none_or(|at| changes[at - 1].pod.uid != asked.uid) {
                        let known = model.alive(&changes).any(|(uid, last)| *uid == asked.uid && last.version <= number(as_of).unwrap());
                        if known {
                            model.gone.push((asked.uid.clone(), as_of));
                        }
                        index.gone_at(&asked.uid, number(as_of));
                    }
                    if let Some(at) = now {
                        model.events.push(at);
                        model.see(&changes, at);
                        take(&mut index, at);
                    }
                }
            }
            assert_needs(&index);
            prop_assert_eq!(state(&index), model.state(&changes), "after version {} ({:?})", version, hear);
            for at in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "2001:db8::2"] {
                prop_assert_eq!(claims(&index, at), model.claims(&changes, at), "{} after version {} ({:?})", at, version, hear);
            }
            prop_assert_eq!(index.by_name.len(), index.len() + index.unreadable.len());
            prop_assert_eq!(index.by_ip.values().flat_map(Named::uids).collect::<BTreeSet<_>>().len(),
                index.pods.values().filter(|held| !held.pod.ips.is_empty()).count(), "no address of one that is not there");
        }
    }
}

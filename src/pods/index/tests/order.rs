//! What the API has said in one order, and we hear in another.

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
    index.list_at(pods.iter().map(|(version, pod)| (at(*version, pod.clone()), Some(*version))), Some(version));
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
fn a_deleted_pod_does_not_come_back_by_a_late_or_repeated_event() {
    let mut index = Index::default();
    let a = pod("a", &[IP]);
    apply(&mut index, 5, a.clone());
    delete(&mut index, 8, &a);
    apply(&mut index, 5, a.clone());
    apply(&mut index, 7, a.clone());
    index.apply(a.clone());
    assert!(index.is_empty());
    // Nor one whose deletion is all that was heard of it.
    let b = pod("b", &[IP]);
    delete(&mut index, 9, &b);
    apply(&mut index, 6, b);
    assert!(index.is_empty());
}

#[test]
fn a_list_brings_no_pod_back_that_was_deleted_after_it() {
    let mut index = Index::default();
    let (a, b) = (pod("a", &[IP]), pod("b", &["10.0.0.2"]));
    apply(&mut index, 5, a.clone());
    apply(&mut index, 12, b.clone());
    delete(&mut index, 11, &a);
    list(&mut index, 10, &[(5, a.clone())]);
    assert_eq!(state(&index), BTreeMap::from([("b".to_owned(), 12)]), "what was seen after the list stays");
    apply(&mut index, 9, pod("c", &[]));
    assert_eq!(index.len(), 1, "what was before the list and not in it was gone");
    list(&mut index, 4, &[(4, pod("d", &[]))]);
    assert_eq!(index.len(), 1, "an earlier list is not taken");
}

#[test]
fn of_two_pods_of_one_name_the_later_is_there() {
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

#[test]
fn what_cannot_be_read_is_forgotten_until_it_can_be() {
    let mut index = Index::default();
    apply(&mut index, 5, pod("a", &[IP]));
    index.delete(&uid("a"));
    assert!(index.is_empty());
    apply(&mut index, 6, pod("a", &[IP]));
    assert_eq!(claims(&index, IP), ["a"]);
}

#[test]
fn a_history_that_began_anew_replaces_everything() {
    let mut index = Index::default();
    let (a, b) = (pod("a", &[IP]), pod("b", &["10.0.0.2"]));
    list(&mut index, 100, &[(90, a.clone()), (91, b.clone())]);
    delete(&mut index, 101, &b);
    index.replace_at([(at(40, b), Some(40))], Some(50));
    assert_eq!(state(&index), BTreeMap::from([("b".to_owned(), 40)]));
    apply(&mut index, 60, a);
    assert_eq!(index.len(), 2);
}

#[test]
fn versions_that_are_no_numbers_are_taken_as_they_come() {
    let mut index = Index::default();
    index.apply_at(pod("a", &[IP]), None);
    index.apply_at(pod("a", &["10.0.0.2"]), None);
    assert_eq!(claims(&index, "10.0.0.2"), ["a"]);
    index.delete_at(&uid("a"), "default", "a", None);
    index.apply_at(pod("a", &[IP]), None);
    assert!(index.is_empty(), "a UID that is gone is gone all the same");
    index.list_at([(pod("b", &[IP]), None)], None);
    index.list_at([(pod("c", &[IP]), None)], None);
    index.list_at([(pod("b", &[IP]), None)], None);
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

/// One change that the API made. Pods are made anew under few names; `death` is filled in when they go.
#[derive(Clone, Debug)]
struct Change {
    pod: Pod,
    deleted: bool,
}

/// A history: what happened at each version, from 1 on.
fn history(choices: &[(u8, bool, u8)]) -> Vec<Change> {
    let mut alive: BTreeMap<u8, Pod> = BTreeMap::new();
    let mut changes = Vec::new();
    for (number, (name, delete, address)) in choices.iter().enumerate() {
        let generation = alive.get(name).map_or_else(|| format!("p{name}-{number}"), |pod| pod.uid.0.to_string());
        let version = u64::try_from(number).unwrap() + 1;
        let deleted = *delete && alive.contains_key(name);
        let pod = at(version, pod(&generation, &[&format!("10.0.0.{address}")]));
        if deleted {
            alive.remove(name)
        } else {
            alive.insert(*name, pod.clone())
        };
        changes.push(Change { pod, deleted });
    }
    changes
}

/// The list as of a version.
fn snapshot(changes: &[Change], version: usize) -> BTreeMap<PodUid, (u64, Pod)> {
    let mut alive = BTreeMap::new();
    for (number, change) in (1..).zip(&changes[..version]) {
        if change.deleted {
            alive.remove(&change.pod.uid)
        } else {
            alive.insert(change.pod.uid.clone(), (number, change.pod.clone()))
        };
    }
    alive
}

/// What is known of a history by what was heard of it, found by looking through all of it.
#[derive(Default)]
struct Heard {
    events: Vec<usize>,
    lists: Vec<usize>,
}

impl Heard {
    fn state(&self, changes: &[Change]) -> BTreeMap<String, u64> {
        let mut known: BTreeMap<PodUid, u64> = BTreeMap::new();
        let mut see = |uid: &PodUid, version: u64| {
            let seen = known.entry(uid.clone()).or_default();
            *seen = version.max(*seen);
        };
        let versioned = |version: &usize| (u64::try_from(*version).unwrap(), &changes[*version - 1]);
        self.events.iter().map(versioned).filter(|(_, change)| !change.deleted).for_each(|(version, change)| see(&change.pod.uid, version));
        self.lists.iter().flat_map(|version| snapshot(changes, *version)).for_each(|(uid, (version, _))| see(&uid, version));
        let seen = known.clone();
        let is_dead = |uid: &PodUid| {
            let Some(death) = changes.iter().position(|change| change.deleted && change.pod.uid == *uid).map(|at| at + 1) else {
                return false;
            };
            let name = &changes[death - 1].pod.name;
            let heard_of_next = self.events.iter().any(|version| *version >= death && changes[*version - 1].pod.name == *name);
            let next_listed = seen.iter().any(|(other, version)| {
                let is_next = usize::try_from(*version).unwrap() > death;
                is_next && changes.iter().any(|change| change.pod.uid == *other && change.pod.name == *name)
            });
            heard_of_next || next_listed || self.lists.iter().any(|version| *version >= death)
        };
        known.into_iter().filter(|(uid, _)| !is_dead(uid)).map(|(uid, version)| (uid.0.to_string(), version)).collect()
    }
}

proptest! {
    #[test]
    fn in_whatever_order_a_history_is_heard_nothing_goes_back(
        choices in prop::collection::vec((0..3_u8, prop::bool::weighted(0.35), 1..4_u8), 1..30),
        heard in prop::collection::vec((prop::bool::weighted(0.2), any::<prop::sample::Index>()), 0..60),
    ) {
        let changes = history(&choices);
        let (mut index, mut model) = (Index::default(), Heard::default());
        for (is_list, which) in heard {
            let version = which.index(changes.len()) + 1;
            let number = u64::try_from(version).unwrap();
            if is_list {
                // A list that is older than the last is not taken.
                if model.lists.iter().all(|earlier| *earlier <= version) {
                    model.lists.push(version);
                }
                let pods: Vec<_> = snapshot(&changes, version).into_values().map(|(at, pod)| (pod, Some(at))).collect();
                index.list_at(pods, Some(number));
            } else {
                model.events.push(version);
                let Change { pod, deleted } = changes[version - 1].clone();
                if deleted {
                    index.delete_at(&pod.uid, &pod.namespace, &pod.name, Some(number));
                } else {
                    index.apply_at(pod, Some(number));
                }
            }
            prop_assert_eq!(state(&index), model.state(&changes), "after version {} (list: {})", version, is_list);
            prop_assert_eq!(index.by_name.len(), index.len());
        }
    }
}

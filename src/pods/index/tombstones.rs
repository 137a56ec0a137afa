//! Pods that are gone for good. Keeps late or repeated events from restoring them.

use std::collections::{HashMap, VecDeque};

use super::known::{Name, PodUid, is_older};

/// The maximum number of remembered pods. No API is expected to deliver an event later than this many deletions.
pub(super) const MAX_TOMBSTONES: usize = 1024;

#[derive(Debug)]
struct Tombstone {
    uid: PodUid,
    name: Name,
    /// A version at which the pod is known to have existed or to have been deleted.
    seen: Option<u64>,
}

/// The last pods that were deleted. A UID is never reused, and two pods with one name never exist at the same time.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    order: VecDeque<Tombstone>,
    /// With the version by which the pod was gone.
    uids: HashMap<PodUid, Option<u64>>,
    /// The latest version at which a pod with the name is known to have existed or to have been deleted, and the number of
    /// tombstones with the name.
    names: HashMap<Name, (Option<u64>, usize)>,
}

impl Tombstones {
    /// Records that this pod, seen at one version, was gone by the other, and will not come back.
    pub(super) fn add(&mut self, uid: PodUid, name: Name, seen: Option<u64>, gone_by: Option<u64>) {
        if self.uids.contains_key(&uid) {
            return;
        }
        self.uids.insert(uid.clone(), gone_by);
        let of_name = self.names.entry(name.clone()).or_default();
        *of_name = (of_name.0.max(seen), of_name.1 + 1);
        self.order.push_back(Tombstone { uid, name, seen });
        if self.order.len() > MAX_TOMBSTONES
            && let Some(Tombstone { uid, name, .. }) = self.order.pop_front()
        {
            self.uids.remove(&uid);
            if let Some(of_name) = self.names.get_mut(&name) {
                of_name.1 -= 1;
                if of_name.1 == 0 {
                    self.names.remove(&name);
                }
            }
        }
    }

    /// Returns whether a pod, seen at this version, is gone: this pod itself, or one that had the name before another deleted
    /// pod.
    pub(super) fn cover(&self, uid: &PodUid, name: &Name, version: Option<u64>) -> bool {
        let before = || self.names.get(name).and_then(|of_name| of_name.0).zip(version).is_some_and(|(gone, seen)| seen < gone);
        self.uids.contains_key(uid) || before()
    }

    /// Removes a tombstone because a complete list of this version has the pod, unless the pod was deleted after the list.
    pub(super) fn lift(&mut self, uid: &PodUid, listed_at: Option<u64>) {
        if self.uids.get(uid).is_none_or(|gone_by| is_older(listed_at, *gone_by)) {
            return;
        }
        self.uids.remove(uid);
        let Some(lifted) = self.order.iter().position(|tombstone| tombstone.uid == *uid).and_then(|at| self.order.remove(at)) else {
            return;
        };
        let (mut seen, mut count) = (None, 0);
        for other in self.order.iter().filter(|other| other.name == lifted.name) {
            (seen, count) = (other.seen.max(seen), count + 1);
        }
        if count == 0 {
            self.names.remove(&lifted.name);
        } else {
            self.names.insert(lifted.name, (seen, count));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.order.len(), self.uids.len());
        assert_eq!(self.order.len(), self.names.values().map(|of_name| of_name.1).sum::<usize>());
        self.order.len()
    }
}

//! Pods that are gone for good: what keeps a late or repeated event from bringing one back.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{Name, PodUid};

/// How many are remembered. An event that is later than so many deletions is not expected from any API.
pub(super) const MAX_TOMBSTONES: usize = 1024;

/// The last pods that were deleted. A UID is never used again, and two pods of one name are never there at one time.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    order: VecDeque<(PodUid, Name)>,
    uids: HashSet<PodUid>,
    /// The latest version at which a pod of the name is known to have been there or to have gone, and how many tombstones
    /// have the name.
    names: HashMap<Name, (Option<u64>, usize)>,
}

impl Tombstones {
    /// This pod will not come back.
    pub(super) fn add(&mut self, uid: PodUid, name: Name, version: Option<u64>) {
        if !self.uids.insert(uid.clone()) {
            return;
        }
        let of_name = self.names.entry(name.clone()).or_default();
        *of_name = (of_name.0.max(version), of_name.1 + 1);
        self.order.push_back((uid, name));
        if self.order.len() > MAX_TOMBSTONES
            && let Some((uid, name)) = self.order.pop_front()
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

    /// Whether a pod, seen at this version, is one that is gone: itself, or one that had the name before another that is.
    pub(super) fn cover(&self, uid: &PodUid, name: &Name, version: Option<u64>) -> bool {
        let before = || self.names.get(name).and_then(|of_name| of_name.0).zip(version).is_some_and(|(gone, seen)| seen < gone);
        self.uids.contains(uid) || before()
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

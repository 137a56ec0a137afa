//! The pods that name one address.

use std::sync::atomic::{AtomicU64, Ordering};

use super::known::PodUid;

/// A value that is no generation of a witness.
const NEVER: u64 = u64::MAX;

/// The pods, at least one, that name an address, whether or not they may claim it now.
#[derive(Debug)]
pub(super) struct Named {
    pods: Uids,
    /// The generation of the node's view that was last found to agree with the only claim. It is stored here and not with the
    /// view, so that a request finds it with the same look-up as the pod.
    agreed_at: AtomicU64,
}

#[derive(Debug)]
enum Uids {
    One(PodUid),
    #[allow(clippy::box_collection, reason = "hardly an address has several, and each would pay for the vector's size")]
    Several(Box<Vec<PodUid>>),
}

impl Named {
    pub(super) fn by(uid: PodUid) -> Self {
        Self { pods: Uids::One(uid), agreed_at: AtomicU64::new(NEVER) }
    }

    pub(super) fn uids(&self) -> &[PodUid] {
        match &self.pods {
            Uids::One(uid) => std::slice::from_ref(uid),
            Uids::Several(uids) => uids,
        }
    }

    /// Adds a pod, and discards the agreement.
    pub(super) fn add(&mut self, uid: &PodUid) {
        *self.agreed_at.get_mut() = NEVER;
        // An address that a pod names twice is one claim.
        if self.uids().contains(uid) {
            return;
        }
        match &mut self.pods {
            Uids::One(one) => self.pods = Uids::Several(Box::new(vec![one.clone(), uid.clone()])),
            Uids::Several(uids) => uids.push(uid.clone()),
        }
    }

    /// Removes a pod, and discards the agreement. Returns whether none is left.
    pub(super) fn remove(&mut self, uid: &PodUid) -> bool {
        *self.agreed_at.get_mut() = NEVER;
        match &mut self.pods {
            Uids::One(one) => one == uid,
            Uids::Several(uids) => {
                uids.retain(|other| other != uid);
                if let [one] = uids.as_slice() {
                    self.pods = Uids::One(one.clone());
                    return false;
                }
                uids.is_empty()
            }
        }
    }

    pub(super) fn agrees_at(&self, generation: u64) -> bool {
        self.agreed_at.load(Ordering::Relaxed) == generation && generation != NEVER
    }

    pub(super) fn set_agreed_at(&self, generation: Option<u64>) {
        self.agreed_at.store(generation.unwrap_or(NEVER), Ordering::Relaxed);
    }
}

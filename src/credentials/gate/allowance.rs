//! Limits the number of new sessions that one pod may cause.
//!
//! A pod needs one session, and another one when its role, session name or external ID changes. Whoever may edit the pod can
//! change them endlessly. A pod therefore has at most [`PLACES`] requests in the queue and in flight, and may cause [`BURST`] new
//! sessions at once and one more each [`REFILL`]. Correcting a role a few times stays far below these limits. Restarts of
//! containers do not count, because they do not change the session. Retries of a failed session do not count either: the time for
//! which failures are remembered bounds them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::pods::PodUid;

/// Requests of one pod in the queue and in flight, for sessions that are not cached.
pub(in crate::credentials) const PLACES: usize = 2;
/// New sessions that a pod may cause at once.
pub(in crate::credentials) const BURST: u32 = 5;
/// The time after which a pod may cause one more.
pub(in crate::credentials) const REFILL: Duration = Duration::from_secs(10);
/// The retry interval of a request that found the pod's places taken: one may become free at any time.
const PLACES_TAKEN: Duration = Duration::from_secs(1);
/// Number of pods above which those with their full allowance are forgotten.
const KEPT: usize = 1024;

/// The allowances of all pods that have used a part of them.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    pods: HashMap<PodUid, Allowance>,
    forget_at: usize,
}

#[derive(Debug)]
struct Allowance {
    /// New sessions that it may still cause, as of `counted_at`.
    left: f64,
    counted_at: Instant,
    places: usize,
}

impl Allowance {
    fn left_at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.counted_at);
        (self.left + passed.as_secs_f64() / REFILL.as_secs_f64()).min(BURST.into())
    }

    fn count(&mut self, now: Instant) {
        self.left = self.left_at(now);
        self.counted_at = now;
    }
}

impl Allowances {
    /// Returns how long a pod has to wait before it may request a session that is not cached; `None` if it may now.
    pub(super) fn wait(&self, uid: &PodUid, is_new: bool, now: Instant) -> Option<Duration> {
        let known = self.pods.get(uid)?;
        if known.places >= PLACES {
            return Some(PLACES_TAKEN);
        }
        let left = known.left_at(now);
        // One millisecond more, to allow for rounding.
        (is_new && left < 1.0).then(|| REFILL.mul_f64(1.0 - left) + Duration::from_millis(1))
    }

    /// Whether only a free place is missing.
    pub(super) fn lacks_place_alone(&self, uid: &PodUid, is_new: bool, now: Instant) -> bool {
        self.pods.get(uid).is_some_and(|known| known.places >= PLACES && (!is_new || known.left_at(now) >= 1.0))
    }

    /// Takes a place of the pod.
    pub(super) fn take_place(&mut self, uid: &PodUid, now: Instant) {
        if self.pods.len() >= self.forget_at {
            self.forget(now);
        }
        let full = Allowance { left: BURST.into(), counted_at: now, places: 0 };
        self.pods.entry(uid.clone()).or_insert(full).places += 1;
    }

    /// Charges the pod, which has a place, for a new session.
    pub(super) fn charge(&mut self, uid: &PodUid, now: Instant) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.count(now);
            known.left -= 1.0;
        }
    }

    /// Refunds the charge, because the request is not made.
    pub(super) fn refund(&mut self, uid: &PodUid, now: Instant) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.left += 1.0;
            known.count(now);
        }
    }

    /// Returns a place of the pod.
    pub(super) fn leave_place(&mut self, uid: &PodUid) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.places = known.places.saturating_sub(1);
        }
    }

    /// Forgets the pods that have their whole allowance.
    fn forget(&mut self, now: Instant) {
        self.pods.retain(|_, known| {
            known.count(now);
            known.places > 0 || known.left < BURST.into()
        });
        self.forget_at = KEPT.max(2 * self.pods.len());
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.pods.len()
    }
}

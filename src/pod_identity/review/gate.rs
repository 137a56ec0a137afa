//! The reviews that run at one time: a bounded number, shared fairly by namespace and pod.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::pod_identity::token::Claims;
use crate::pods::PodUid;
use crate::shares::Shares;

/// The most reviews at one time.
pub(super) const MAX_REVIEWS: usize = 16;
/// The most reviews of one pod at one time. A pod has one token, or two while the kubelet replaces it.
pub(super) const MAX_OF_POD: usize = 2;

type Places = Shares<String, PodUid, Arc<Notify>>;

#[derive(Debug)]
pub(super) struct ReviewGate {
    places: Mutex<Places>,
    next: AtomicU64,
}

/// The place of one review, until it is dropped.
#[derive(Debug)]
pub(super) struct ReviewPlace<'a> {
    gate: &'a ReviewGate,
    id: u64,
    lost: Arc<Notify>,
}

impl Default for ReviewGate {
    fn default() -> Self {
        Self { places: Mutex::new(Shares::new(MAX_REVIEWS, MAX_OF_POD)), next: AtomicU64::new(0) }
    }
}

impl ReviewGate {
    /// Takes a place for the pod of these claims, from the pod that has the most if all are taken. `None` if the pod has its share.
    pub(super) fn enter(&self, claims: &Claims) -> Option<ReviewPlace<'_>> {
        let lost = Arc::new(Notify::new());
        let mut places = self.places();
        // Counted under the lock, so that later places have larger numbers.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let displaced = places.enter(id, claims.namespace.clone(), claims.pod_uid.clone(), Arc::clone(&lost)).ok()?;
        if let Some(displaced) = displaced {
            displaced.value.notify_one();
        }
        Some(ReviewPlace { gate: self, id, lost })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReviewPlace<'_> {
    /// Returns when the place was given to another pod.
    pub(super) async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for ReviewPlace<'_> {
    fn drop(&mut self) {
        self.gate.places().leave(self.id);
    }
}

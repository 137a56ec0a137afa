//! Numbers that grow with every change of something, so that what was derived from it can be recognized as current.

use std::sync::atomic::{AtomicU64, Ordering};

/// The generation of something that changes. Reading it is one load, without a lock.
///
/// Whoever changes the thing calls [`Generation::advance`] after the change and before anybody is told of it. Whoever derives something
/// reads [`Generation::now`] first, and derives then. If the number is the same later, nothing of the thing has changed since, except a
/// change that is being made at this moment.
#[derive(Debug, Default)]
pub(crate) struct Generation(AtomicU64);

impl Generation {
    /// Returns the current number.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Counts a change.
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

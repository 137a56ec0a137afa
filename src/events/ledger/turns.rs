//! Turns for writing Events. The node has a rate, and so does each namespace; among namespaces with something to write, the one
//! that has waited longest since its last write is next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The time after which a cause or a namespace without new Events is forgotten. Less than the hour for which the API keeps Events.
pub(in crate::events) const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

/// The maximum burst of writes on a node that has not written any for a while.
pub(in crate::events) const BURST: u32 = 25;
/// The share of that burst available to one namespace, so that some is left for the others.
pub(in crate::events) const BURST_OF_NAMESPACE: u32 = 10;
/// The interval after which a node or a namespace may write one more Event.
pub(in crate::events) const INTERVAL: Duration = Duration::from_secs(1);

/// The rates, and the order of namespaces.
#[derive(Debug, Default)]
pub(super) struct Turns {
    node: WriteBucket,
    /// Namespaces that had a turn within about [`FORGET_AFTER`]. The node's rate bounds their number. They are remembered for longer
    /// than their rate requires, because a forgotten namespace would go ahead of those that wait.
    namespaces: HashMap<String, Turn>,
    /// The number of turns so far.
    count: u64,
}

#[derive(Debug, Default)]
struct Turn {
    bucket: WriteBucket,
    /// The number of the last turn.
    number: u64,
}

/// A token bucket (by the generic cell rate algorithm).
#[derive(Clone, Copy, Debug, Default)]
struct WriteBucket {
    /// When the bucket is full again.
    full_at: Option<Instant>,
}

impl WriteBucket {
    /// Returns when a bucket of `burst` tokens next has one, or `None` if it certainly has one now.
    fn ready_at(self, burst: u32) -> Option<Instant> {
        self.full_at?.checked_sub(INTERVAL * (burst - 1))
    }

    fn take(&mut self, now: Instant) {
        self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + INTERVAL);
    }
}

impl Turns {
    /// Returns when the node may write again, or `None` if it may now.
    pub(super) fn node_ready_at(&self) -> Option<Instant> {
        self.node.ready_at(BURST)
    }

    /// Returns when the namespace's own rate allows the next write, and the number of its last turn. The lowest number is next;
    /// a namespace that has not written lately has 0.
    pub(super) fn of_namespace(&self, namespace: &str) -> (Option<Instant>, u64) {
        self.namespaces.get(namespace).map_or((None, 0), |turn| (turn.bucket.ready_at(BURST_OF_NAMESPACE), turn.number))
    }

    /// Gives a namespace a turn.
    pub(super) fn take(&mut self, namespace: &str, now: Instant) {
        self.count += 1;
        self.node.take(now);
        let turn = self.namespaces.entry(namespace.to_owned()).or_default();
        turn.bucket.take(now);
        turn.number = self.count;
    }

    /// Forgets namespaces that have not written lately.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.namespaces.retain(|_, turn| turn.bucket.full_at.is_some_and(|full_at| now < full_at + FORGET_AFTER));
    }

    /// Returns how many namespaces are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.namespaces.len()
    }
}

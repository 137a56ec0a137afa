//! Requests to STS, as the gate tells them apart.

use std::time::Duration;

/// A session with less time left is close to expiry: its renewal goes before prefetches, and has reserved turns.
pub(in crate::credentials) const NEARLY_ENDED: Duration = Duration::from_secs(5 * 60);

/// The cause of a request to STS, in order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallCause {
    /// A pod waits for the session.
    Demand,
    /// A pod on this node may request the session.
    Prefetch,
    /// A session is close to half of its life.
    Renewal,
}

impl CallCause {
    /// All causes, in order of priority.
    pub const ALL: [Self; 3] = [Self::Demand, Self::Prefetch, Self::Renewal];

    /// Returns the stable name of the cause, used as a metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Prefetch => "prefetch",
            Self::Renewal => "renewal",
        }
    }
}

/// The limits of the node's requests to STS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StsLimits {
    /// Requests per second. The burst is twice as many.
    pub rate: u32,
    /// The highest rate, per second, while STS answers quickly and requests wait. Not less than `rate`.
    pub max_rate: u32,
    /// Requests in flight at the rate `rate`. Rises with the rate, by the same factor.
    pub concurrency: usize,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::credentials) struct Ticket(pub(super) u64);

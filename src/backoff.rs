//! Pauses between attempts. They double with each failure, and are spread at random over nodes and sessions.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

/// Pauses that double with each consecutive failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
}

impl Backoff {
    /// Creates pauses that start at `first` and grow to at most `last`.
    pub(crate) const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last }
    }

    /// Returns the pause after a failure that followed `earlier_failures` consecutive failures.
    pub(crate) fn pause(self, earlier_failures: u32) -> Duration {
        let doublings = 1_u32.checked_shl(earlier_failures).unwrap_or(u32::MAX);
        self.first.saturating_mul(doublings).min(self.last)
    }
}

/// Returns a random number from 0 to 1, which differs from call to call and from node to node.
pub(crate) fn fraction() -> f64 {
    // Each `RandomState` has its own keys, the first of which are random.
    let random = RandomState::new().hash_one(()) >> 32;
    f64::from(u32::try_from(random).unwrap_or(0)) / f64::from(u32::MAX)
}

/// Shortens a pause at random, by up to a quarter.
pub(crate) fn spread(pause: Duration) -> Duration {
    shortened(pause, fraction())
}

/// Shortens a pause by up to a quarter. `fraction` is from 0 (not shortened) to 1 (a quarter).
pub(crate) fn shortened(pause: Duration, fraction: f64) -> Duration {
    pause.mul_f64(1.0 - fraction.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_last_and_never_overflow() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let pauses = [0, 1, 2, 3, 4, 31, 32, u32::MAX].map(|failures| backoff.pause(failures).as_secs());
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10, 10]);
        assert_eq!(Backoff::new(Duration::MAX / 2, Duration::MAX).pause(9), Duration::MAX);
        assert_eq!(Backoff::new(Duration::from_secs(2), Duration::from_secs(1)).pause(0), Duration::from_secs(1));
    }

    #[test]
    fn random_pauses_differ_and_are_shorter_by_at_most_a_quarter() {
        let pauses: Vec<_> = (0..100).map(|_| spread(Duration::from_secs(4))).collect();
        assert!(pauses.iter().all(|pause| (Duration::from_secs(3)..=Duration::from_secs(4)).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        assert_eq!(shortened(Duration::from_secs(4), 2.0), Duration::from_secs(3));
    }
}

//! Chance, so that nodes and sessions do not all do the same thing at the same time.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

/// A number from 0 to 1, another at every call and on every node.
pub(super) fn fraction() -> f64 {
    // Each state has keys of its own, the first of them random.
    let random = RandomState::new().hash_one(()) >> 32;
    f64::from(u32::try_from(random).unwrap_or(0)) / f64::from(u32::MAX)
}

/// Up to a quarter less.
pub(super) fn spread(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - fraction() / 4.0)
}

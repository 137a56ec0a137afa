//! When the node was booted.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// The time of the last boot by the node's present clock: what the kernel has counted since, taken from now (clock_gettime(2),
/// `CLOCK_BOOTTIME`). `None` where the kernel does not tell.
pub fn booted() -> Option<Timestamp> {
    let since = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    Timestamp::now().checked_sub(since).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_was_before_this_process_and_does_not_move() {
        let (first, second) = (booted().unwrap_or(Timestamp::MAX), booted().unwrap_or(Timestamp::MIN));
        assert!(first < Timestamp::now());
        assert!(second.duration_since(first).abs() < jiff::SignedDuration::from_secs(1), "{first} {second}");
    }
}

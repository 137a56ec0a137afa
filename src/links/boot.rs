//! The time of the node's last boot.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Returns the time since the last boot (clock_gettime(2), `CLOCK_BOOTTIME`). `None` if the kernel does not provide it.
pub(crate) fn uptime() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

/// Returns the time of the last boot by the node's current clock: `now` minus [`uptime`].
pub(crate) fn booted(now: Timestamp) -> Option<Timestamp> {
    now.checked_sub(uptime()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_time_matches_the_uptime() {
        let uptime = std::fs::read_to_string("/proc/uptime").ok();
        let seconds = uptime.as_deref().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        let now = Timestamp::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let ago = booted(now).map(|booted| now.duration_since(booted).as_secs_f64());
        // On a loaded machine, time may pass between the two readings.
        assert!(seconds.zip(ago).is_some_and(|(seconds, ago)| (seconds..seconds + 60.0).contains(&(ago + 0.1))), "{seconds:?} {ago:?}");
    }
}

//! Reports overflows of the kernel's notifications about the node's network.

use std::time::Duration;

use tracing::warn;

use crate::links::Links;
use crate::log_once::LOG_EVERY;
use crate::metrics::Metrics;

/// How often the count is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Counts overflows in the metrics and logs them, at most once a minute, for as long as the process lives.
pub(super) async fn report(links: Links, metrics: Metrics) {
    metrics.link_overflows_from({
        let links = links.clone();
        move || links.overflows()
    });
    let mut logged = 0;
    loop {
        let overflows = new_overflows(&mut logged, || links.overflows()).await;
        warn!(
            event = "link-notifications-overflow",
            overflows,
            "the kernel reports network changes faster than rolegate reads them; querying the kernel for each request until it has caught \
             up; look for a pod that floods a bridge (many ARP packets or MAC addresses)"
        );
        tokio::time::sleep(LOG_EVERY).await;
    }
}

/// Waits until there are more than `logged` and returns how many more.
async fn new_overflows(logged: &mut u64, count: impl Fn() -> u64) -> u64 {
    loop {
        let new = count().saturating_sub(*logged);
        if new > 0 {
            *logged += new;
            return new;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_new_overflows_are_reported() {
        let (count, mut logged) = (AtomicU64::new(3), 0);
        let read = || count.load(Ordering::Relaxed);
        assert_eq!(new_overflows(&mut logged, read).await, 3);
        let waited = tokio::time::timeout(LOG_EVERY, new_overflows(&mut logged, read)).await;
        assert!(waited.is_err(), "there are no new ones");
        count.store(5, Ordering::Relaxed);
        assert_eq!((new_overflows(&mut logged, read).await, logged), (2, 5));
    }
}

//! The pauses of the watch between requests to the Kubernetes API.

use std::time::Duration;

use crate::backoff::{Backoff, spread};
use crate::kubernetes::failure::RequestFailure;

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// The longest pause after a failure.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Pauses that grow with consecutive failures, and differ between nodes.
#[derive(Debug, Default)]
pub(super) struct WatchPauses {
    /// Failures since the last complete list.
    failures: u32,
    /// Short-lived watches since the last one that lasted: a list in between does not reset this.
    short_watches: u32,
}

impl WatchPauses {
    /// Records that a list is complete.
    pub(super) fn listed(&mut self) {
        self.failures = 0;
    }

    /// Records that a watch lasted long enough to be useful.
    pub(super) fn lived(&mut self) {
        *self = Self::default();
    }

    /// Records that a watch continued where the last one ended and delivered something, however short it was: the next one must
    /// not wait long, but must not start at once either.
    pub(super) fn brought(&mut self) {
        (self.failures, self.short_watches) = (self.failures.min(1), self.short_watches.min(1));
    }

    /// Returns the pause after another failure. `of_watch` says whether the failure was of a watch that had begun, or could not
    /// continue where the last one ended.
    pub(super) fn pause(&mut self, failure: &RequestFailure, of_watch: bool) -> Duration {
        let doubled = Backoff::new(FIRST_PAUSE, LAST_PAUSE).pause(self.failures.max(self.short_watches));
        let least = failure.retry_after().clamp(FIRST_PAUSE, LAST_PAUSE);
        // Expired history is not the API's fault: the list follows at once, unless the last failure was the same.
        let pause = match failure {
            RequestFailure::Expired | RequestFailure::Lost if self.short_watches == 0 => Duration::ZERO,
            _ => spread(doubled).max(least),
        };
        self.failures = self.failures.saturating_add(1);
        self.short_watches = self.short_watches.saturating_add(of_watch.into());
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::failure::Status;

    #[test]
    fn pauses_grow_to_a_limit_and_reset_after_a_success() {
        let mut backoff = WatchPauses::default();
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause(&RequestFailure::Silent, false)).collect();
        assert!(pauses.iter().all(|pause| (FIRST_PAUSE..=LAST_PAUSE).contains(pause)), "{pauses:?}");
        assert!(pauses[9] >= LAST_PAUSE.mul_f64(0.75) && pauses[4] > pauses[1], "{pauses:?}");
        backoff.listed();
        assert_eq!(backoff.pause(&RequestFailure::Silent, false), FIRST_PAUSE);
    }

    #[test]
    fn only_repeated_loss_of_history_causes_a_pause() {
        for gone in [RequestFailure::Expired, RequestFailure::Lost] {
            let mut backoff = WatchPauses::default();
            backoff.pause(&RequestFailure::Silent, false);
            assert_eq!(backoff.pause(&gone, true), Duration::ZERO, "other failures do not delay the list");
            assert!(backoff.pause(&gone, true) >= FIRST_PAUSE);
        }
    }

    #[test]
    fn short_watches_that_deliver_something_pause_briefly() {
        let mut backoff = WatchPauses::default();
        for _ in 0..20 {
            let pause = backoff.pause(&RequestFailure::Silent, true);
            assert!((FIRST_PAUSE.mul_f64(0.75)..=FIRST_PAUSE * 2).contains(&pause), "{pause:?}");
            backoff.brought();
        }
    }

    #[test]
    fn lists_between_short_watches_do_not_reset_the_pause() {
        let mut backoff = WatchPauses::default();
        let mut pause = || {
            let pause = backoff.pause(&RequestFailure::Expired, true);
            backoff.listed();
            pause
        };
        let pauses: Vec<_> = (0..10).map(|_| pause()).collect();
        assert!(pauses[1] >= FIRST_PAUSE && pauses[4] > pauses[2] && pauses[9] >= LAST_PAUSE.mul_f64(0.75), "{pauses:?}");
        backoff.lived();
        assert_eq!(backoff.pause(&RequestFailure::Expired, true), Duration::ZERO);
    }

    #[test]
    fn retry_after_is_honoured() {
        let body = br#"{"code":429,"reason":"TooManyRequests","message":"later","details":{"retryAfterSeconds":20}}"#;
        let status = RequestFailure::Status(Status::of_answer(429, body));
        assert_eq!(WatchPauses::default().pause(&status, false), Duration::from_secs(20));
        assert_eq!(status.to_string(), "the Kubernetes API answered 429 TooManyRequests: later");
    }
}

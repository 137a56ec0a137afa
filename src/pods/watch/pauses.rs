//! How long the watch waits before it asks the Kubernetes API again.

use std::time::Duration;

use crate::backoff::{Backoff, spread};
use crate::kubernetes::failure::RequestFailure;

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// The longest.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Pauses that grow while failures follow each other, and are not the same on every node.
#[derive(Debug, Default)]
pub(super) struct WatchPauses {
    /// Since the last list that was complete.
    failures: u32,
    /// Watches since the last one that lived: a list between them does not make them better.
    short_watches: u32,
}

impl WatchPauses {
    /// A list came to its end.
    pub(super) fn listed(&mut self) {
        self.failures = 0;
    }

    /// A watch lived long enough to have been of use.
    pub(super) fn lived(&mut self) {
        *self = Self::default();
    }

    /// A watch went on from where the last one was and brought something, however short it was: what comes next must not wait
    /// long, and not come at once either.
    pub(super) fn brought(&mut self) {
        (self.failures, self.short_watches) = (self.failures.min(1), self.short_watches.min(1));
    }

    /// The pause after one more failure; whether it was of a watch that had begun, or could not go on from where it was.
    pub(super) fn pause(&mut self, failure: &RequestFailure, of_watch: bool) -> Duration {
        let doubled = Backoff::new(FIRST_PAUSE, LAST_PAUSE).pause(self.failures.max(self.short_watches));
        let least = failure.retry_after().clamp(FIRST_PAUSE, LAST_PAUSE);
        // History that is gone is no fault of the API's: the list comes at once, unless it was so the last time too.
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
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut backoff = WatchPauses::default();
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause(&RequestFailure::Silent, false)).collect();
        assert!(pauses.iter().all(|pause| (FIRST_PAUSE..=LAST_PAUSE).contains(pause)), "{pauses:?}");
        assert!(pauses[9] >= LAST_PAUSE.mul_f64(0.75) && pauses[4] > pauses[1], "{pauses:?}");
        backoff.listed();
        assert_eq!(backoff.pause(&RequestFailure::Silent, false), FIRST_PAUSE);
    }

    #[test]
    fn lost_history_costs_no_pause_but_the_second_time() {
        for gone in [RequestFailure::Expired, RequestFailure::Lost] {
            let mut backoff = WatchPauses::default();
            backoff.pause(&RequestFailure::Silent, false);
            assert_eq!(backoff.pause(&gone, true), Duration::ZERO, "failures of another kind do not delay it");
            assert!(backoff.pause(&gone, true) >= FIRST_PAUSE);
        }
    }

    #[test]
    fn short_watches_that_bring_something_are_paused_between_and_never_for_long() {
        let mut backoff = WatchPauses::default();
        for _ in 0..20 {
            let pause = backoff.pause(&RequestFailure::Silent, true);
            assert!((FIRST_PAUSE.mul_f64(0.75)..=FIRST_PAUSE * 2).contains(&pause), "{pause:?}");
            backoff.brought();
        }
    }

    #[test]
    fn lists_between_watches_that_do_not_live_shorten_no_pause() {
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
    fn the_api_is_left_alone_for_as_long_as_it_asks() {
        let body = br#"{"code":429,"reason":"TooManyRequests","message":"later","details":{"retryAfterSeconds":20}}"#;
        let status = RequestFailure::Status(Status::of_answer(429, body));
        assert_eq!(WatchPauses::default().pause(&status, false), Duration::from_secs(20));
        assert_eq!(status.to_string(), "the Kubernetes API answered 429 TooManyRequests: later");
    }
}

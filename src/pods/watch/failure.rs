//! What can go wrong with the Kubernetes API, and how long to wait before it is asked again.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use serde::Deserialize;

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// The longest.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Characters of what the API says that are told.
const MAX_MESSAGE: usize = 500;

/// Why there is no answer, or no good one. The text of it is for the log; bodies of answers are not repeated.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestFailure {
    /// The API answered with an error.
    #[error("{0}")]
    Status(Status),
    /// No connection, or it broke.
    #[error("the Kubernetes API cannot be reached: {0}")]
    Unreachable(String),
    /// The connection is there, and nothing comes.
    #[error("the Kubernetes API does not answer")]
    Silent,
    /// It comes too slowly.
    #[error("the Kubernetes API is too slow to complete its answer")]
    Slow,
    /// An answer of more bytes than are taken.
    #[error("the answer of the Kubernetes API is too large")]
    TooLarge,
    /// What came is not what the API sends.
    #[error("the Kubernetes API sent {0}")]
    Malformed(&'static str),
    /// A watch ended as soon as it had begun, or not long after.
    #[error("the Kubernetes API ended the watch immediately")]
    Ended,
    /// A list that shows an earlier state than what is known.
    #[error("the Kubernetes API listed an older state than before")]
    Earlier,
    /// What was to be continued is not there any more: a list is needed.
    #[error("the Kubernetes API no longer has the changes since the last known state")]
    Expired,
    /// A change came of which not even the object's UID can be read. It may have been the end of any.
    #[error("the Kubernetes API sent a watch event that cannot be parsed")]
    Lost,
}

impl RequestFailure {
    /// What the API answered, where it did.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status.code),
            _ => None,
        }
    }

    /// How long the API asks not to be asked.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Status(Status { details: Some(details), .. }) => Duration::from_secs(details.retry_after_seconds),
            _ => Duration::ZERO,
        }
    }

    /// Whether the API gives this cause (`details.causes[].reason`).
    pub(super) fn has_cause(&self, reason: &str) -> bool {
        match self {
            Self::Status(Status { details: Some(details), .. }) => details.causes.iter().any(|cause| cause.reason == reason),
            _ => false,
        }
    }
}

/// A `Status` object, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    reason: String,
    message: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u64,
    causes: Vec<RootCause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootCause {
    reason: String,
}

impl Status {
    /// That of an answer with this code and body, which is no `Status` where something between us and the API answered.
    pub(super) fn of_answer(code: u16, body: &[u8]) -> Self {
        let status: Self = serde_json::from_slice(body).unwrap_or_default();
        Self { code, ..status }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match self.code {
            401 => "; the token or certificate is not valid for this API: check the service account or the kubeconfig",
            403 => "; allow it in the daemon's ClusterRole (see daemonset/rbac.yaml)",
            _ => "",
        };
        write!(f, "the Kubernetes API answered {} {}: {}{advice}", self.code, bounded(&self.reason), bounded(&self.message))
    }
}

/// A text from outside for a log line: of bounded length, without control characters.
fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

/// Pauses that grow while failures follow each other, and are not the same on every node.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Since the last list that was complete.
    failures: u32,
    /// Watches since the last one that lived: a list between them does not make them better.
    short_watches: u32,
}

impl Backoff {
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
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.max(self.short_watches).min(6)).min(LAST_PAUSE);
        let least = failure.retry_after().clamp(FIRST_PAUSE, LAST_PAUSE);
        // History that is gone is no fault of the API's: the list comes at once, unless it was so the last time too.
        let pause = match failure {
            RequestFailure::Expired | RequestFailure::Lost if self.short_watches == 0 => Duration::ZERO,
            _ => doubled.mul_f64(1.0 - jitter() / 4.0).max(least),
        };
        self.failures = self.failures.saturating_add(1);
        self.short_watches = self.short_watches.saturating_add(of_watch.into());
        pause
    }
}

/// A number from 0 to 1 that differs from call to call and from process to process.
pub(crate) fn jitter() -> f64 {
    // Each state has keys of its own, the first of them random.
    let random = RandomState::new().hash_one(()) >> 32;
    f64::from(u32::try_from(random).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause(&RequestFailure::Silent, false)).collect();
        assert!(pauses.iter().all(|pause| (FIRST_PAUSE..=LAST_PAUSE).contains(pause)), "{pauses:?}");
        assert!(pauses[9] >= LAST_PAUSE.mul_f64(0.75) && pauses[4] > pauses[1], "{pauses:?}");
        backoff.listed();
        assert_eq!(backoff.pause(&RequestFailure::Silent, false), FIRST_PAUSE);
    }

    #[test]
    fn lost_history_costs_no_pause_but_the_second_time() {
        for gone in [RequestFailure::Expired, RequestFailure::Lost] {
            let mut backoff = Backoff::default();
            backoff.pause(&RequestFailure::Silent, false);
            assert_eq!(backoff.pause(&gone, true), Duration::ZERO, "failures of another kind do not delay it");
            assert!(backoff.pause(&gone, true) >= FIRST_PAUSE);
        }
    }

    #[test]
    fn short_watches_that_bring_something_are_paused_between_and_never_for_long() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            let pause = backoff.pause(&RequestFailure::Silent, true);
            assert!((FIRST_PAUSE.mul_f64(0.75)..=FIRST_PAUSE * 2).contains(&pause), "{pause:?}");
            backoff.brought();
        }
    }

    #[test]
    fn lists_between_watches_that_do_not_live_shorten_no_pause() {
        let mut backoff = Backoff::default();
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
        assert_eq!(Backoff::default().pause(&status, false), Duration::from_secs(20));
        assert_eq!(status.to_string(), "the Kubernetes API answered 429 TooManyRequests: later");
    }

    #[test]
    fn what_the_api_says_is_told_in_one_line_and_not_without_end() {
        let long = "x".repeat(10_000);
        let body = serde_json::json!({ "reason": "a\u{1b}[31m\nb", "message": format!("\r\n\u{7f}\u{85}{long}") });
        let told = Status::of_answer(500, body.to_string().as_bytes()).to_string();
        assert_eq!(told, format!("the Kubernetes API answered 500 a[31mb: {}", &long[..500]));
    }

    #[test]
    fn an_answer_of_something_between_is_told_by_its_code_alone() {
        let status = Status::of_answer(502, b"<html>who knows what</html>");
        assert_eq!(status.to_string(), "the Kubernetes API answered 502 : ");
    }
}

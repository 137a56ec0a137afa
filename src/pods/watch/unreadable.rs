//! Logs objects that cannot be read. Rate-limited, because an unreadable object may change twice a second.

use std::time::Duration;

use tracing::{debug, warn};

use super::objects::ObjectMeta;
use crate::log_once::{EachKey, WhenFull};

/// The interval between two log lines about one object.
const REPORT_AGAIN: Duration = Duration::from_secs(600);
/// The maximum number of remembered objects. Beyond it, further objects are logged at debug level only.
const MAX_REPORTS: usize = 256;

/// The reason why an object cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum UnreadableReason {
    /// The fields that are used exceed the limit.
    TooLarge,
    /// The object does not have the API's format.
    Malformed,
}

impl UnreadableReason {
    /// The name in the log.
    fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
        }
    }
}

/// The objects that were logged, by their UIDs, and when.
#[derive(Debug)]
pub(super) struct Reports(EachKey<(Option<String>, UnreadableReason)>);

impl Default for Reports {
    fn default() -> Self {
        Self(EachKey::new(REPORT_AGAIN, MAX_REPORTS, WhenFull::StayQuiet))
    }
}

impl Reports {
    /// Logs that an object cannot be read, unless that was logged recently.
    pub(super) fn report(&mut self, resource: &'static str, metadata: Option<&ObjectMeta>, why: UnreadableReason) {
        let text = |of: fn(&ObjectMeta) -> &Option<String>| metadata.and_then(|metadata| of(metadata).as_deref()).unwrap_or_default();
        let (namespace, name, uid) = (text(|it| &it.namespace), text(|it| &it.name), text(|it| &it.uid));
        let is_due = self.is_due(metadata.and_then(|metadata| metadata.uid.as_deref()), why);
        match why {
            _ if !is_due => debug!(resource, namespace, name, uid, reason = why.name(), "an object still cannot be read"),
            UnreadableReason::TooLarge => warn!(
                event = "object-too-large",
                resource,
                namespace,
                name,
                uid,
                "an object from the Kubernetes API is larger than 1 MiB in the fields that rolegate uses; if it is a pod, it gets no \
                 credentials until it is smaller; check who writes its status and annotations"
            ),
            UnreadableReason::Malformed => warn!(
                event = "object-unreadable",
                resource,
                namespace,
                name,
                uid,
                "cannot decode an object from the Kubernetes API; if it is a pod, it gets no credentials until it can be decoded; check \
                 for a proxy between rolegate and the API server that changes responses"
            ),
        }
    }

    fn is_due(&mut self, uid: Option<&str>, why: UnreadableReason) -> bool {
        self.0.is_due((uid.map(str::to_owned), why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reports_are_rate_limited_and_bounded() {
        let mut reports = Reports::default();
        assert!(
            reports.is_due(Some("a"), UnreadableReason::Malformed)
                && reports.is_due(Some("b"), UnreadableReason::Malformed)
                && reports.is_due(None, UnreadableReason::Malformed)
        );
        assert!(!reports.is_due(Some("a"), UnreadableReason::Malformed) && !reports.is_due(None, UnreadableReason::Malformed));
        assert!(reports.is_due(Some("a"), UnreadableReason::TooLarge), "for another reason");
        for number in 0..2 * MAX_REPORTS {
            reports.is_due(Some(&number.to_string()), UnreadableReason::Malformed);
        }
        assert_eq!(reports.0.len(), MAX_REPORTS);
        assert!(!reports.is_due(Some("one more"), UnreadableReason::Malformed));
        tokio::time::advance(REPORT_AGAIN).await;
        assert!(reports.is_due(Some("one more"), UnreadableReason::Malformed) && reports.is_due(Some("a"), UnreadableReason::Malformed));
        assert_eq!(reports.0.len(), 2);
    }
}

//! What can go wrong with the Kubernetes API.

use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use serde::Deserialize;

use crate::text::bounded;

/// Why there is no answer, or no good one. The text of it is for the log; bodies of answers are not repeated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestFailure {
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
    #[error("the Kubernetes API does not come to the end of its answer")]
    Slow,
    /// An answer of more bytes than are taken.
    #[error("the Kubernetes API sent an answer that is far too large")]
    TooLarge,
    /// What came is not what the API sends.
    #[error("the Kubernetes API sent {0}")]
    Malformed(&'static str),
    /// A watch ended as soon as it had begun, or not long after.
    #[error("the Kubernetes API ended the watch at once")]
    Ended,
    /// A list that shows an earlier state than what is known.
    #[error("the Kubernetes API listed an earlier state than it showed before")]
    Earlier,
    /// What was to be continued is not there any more: a list is needed.
    #[error("the Kubernetes API has not kept the changes since the last one seen")]
    Expired,
    /// A change came of which not even the object's UID can be read. It may have been the end of any.
    #[error("the Kubernetes API sent a change that cannot be read")]
    Lost,
}

/// What failures are told apart by in the log. The texts of what the API answers name single objects; that it cannot be reached has
/// many causes, which nothing else tells apart.
pub(crate) type FailureKind = (Discriminant<RequestFailure>, Option<u16>, Option<String>);

impl RequestFailure {
    /// Its kind. Selections of one resource fail together in one kind, and the log needs one line for them.
    pub(crate) fn kind(&self) -> FailureKind {
        let text = matches!(self, Self::Unreachable(_)).then(|| self.to_string());
        (discriminant(self), self.code(), text)
    }

    /// What the API answered, where it did.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status.code),
            _ => None,
        }
    }

    /// How long the API asks not to be asked.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Self::Status(Status { details: Some(details), .. }) => Duration::from_secs(details.retry_after_seconds),
            _ => Duration::ZERO,
        }
    }

    /// Whether the API gives this cause (`details.causes[].reason`).
    pub(crate) fn has_cause(&self, reason: &str) -> bool {
        match self {
            Self::Status(Status { details: Some(details), .. }) => details.causes.iter().any(|cause| cause.reason == reason),
            _ => false,
        }
    }
}

/// A `Status` object, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) code: u16,
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
    pub(crate) fn of_answer(code: u16, body: &[u8]) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_says_is_told_in_one_line_and_not_without_end() {
        let long = "x".repeat(10_000);
        let body = serde_json::json!({ "reason": "a\u{1b}[31m\nb", "message": format!("\r\n\u{7f}\u{85}{long}") });
        let told = Status::of_answer(500, body.to_string().as_bytes()).to_string();
        assert_eq!(told, format!("the Kubernetes API answered 500 a[31mb: {}", &long[..500]));
    }

    #[test]
    fn failures_are_of_one_kind_whatever_object_the_api_names() {
        let refused = |name: &str| {
            let body = format!(r#"{{"message":"{name} may not be read"}}"#);
            RequestFailure::Status(Status::of_answer(403, body.as_bytes())).kind()
        };
        let unreachable = |why: &str| RequestFailure::Unreachable(why.to_owned()).kind();
        assert_eq!((refused("a"), unreachable("reset")), (refused("b"), unreachable("reset")));
        let others = [RequestFailure::Silent.kind(), RequestFailure::Status(Status::of_answer(503, b"")).kind(), unreachable("another CA")];
        assert!(others.iter().all(|kind| *kind != refused("a") && *kind != unreachable("reset")), "{others:?}");
    }

    #[test]
    fn an_answer_of_something_between_is_told_by_its_code_alone() {
        let status = Status::of_answer(502, b"<html>who knows what</html>");
        assert_eq!(status.to_string(), "the Kubernetes API answered 502 : ");
    }
}

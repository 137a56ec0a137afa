//! Failures of requests to the Kubernetes API.

use std::borrow::Cow;
use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use serde::Deserialize;

use crate::advice::Advise;
use crate::text::bounded;

/// The reason why a request failed. Bodies of answers are not part of its text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestFailure {
    /// The API answered with an error.
    #[error("{0}")]
    Status(Status),
    /// The request cannot be made of its target.
    #[error("cannot build a request to the Kubernetes API")]
    NotBuilt,
    /// No connection could be made, or it broke. The text of the underlying error, without the user information of URLs.
    #[error("the Kubernetes API cannot be reached: {0}")]
    Unreachable(String),
    /// The API does not answer on an open connection.
    #[error("the Kubernetes API does not answer")]
    Silent,
    /// The answer arrives too slowly.
    #[error("the Kubernetes API is too slow to complete its answer")]
    Slow,
    /// The answer is larger than the limit.
    #[error("the answer of the Kubernetes API is too large")]
    TooLarge,
    /// The answer is not what the API sends.
    #[error("the Kubernetes API sent {0}")]
    Malformed(&'static str),
    /// A watch ended soon after it began.
    #[error("the Kubernetes API ended the watch immediately")]
    Ended,
    /// A list shows an earlier state than the known one.
    #[error("the Kubernetes API listed an older state than before")]
    Earlier,
    /// The version to continue from is no longer available: a list is needed.
    #[error("the Kubernetes API no longer has the changes since the last known state")]
    Expired,
    /// A change arrived of which not even the object's UID can be read. It may have been the deletion of any object.
    #[error("the Kubernetes API sent a watch event that cannot be parsed")]
    Lost,
}

/// Distinguishes failures in the log. The texts of API errors name single objects, so they are left out. Connection errors differ
/// only in their text.
pub(crate) type FailureKind = (Discriminant<RequestFailure>, Option<u16>, Option<String>);

impl RequestFailure {
    /// Returns the kind. All selections of one resource usually fail in one kind, and the log needs one line for them.
    pub(crate) fn kind(&self) -> FailureKind {
        let text = matches!(self, Self::Unreachable(_)).then(|| self.to_string());
        (discriminant(self), self.code(), text)
    }

    /// Returns the status code, if the API answered.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status.code),
            _ => None,
        }
    }

    /// Returns how long the API asks clients to wait before the next request.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Self::Status(Status { details: Some(details), .. }) => Duration::from_secs(details.retry_after_seconds),
            _ => Duration::ZERO,
        }
    }

    /// Returns whether the API gives this cause (`details.causes[].reason`).
    pub(crate) fn has_cause(&self, reason: &str) -> bool {
        match self {
            Self::Status(Status { details: Some(details), .. }) => details.causes.iter().any(|cause| cause.reason == reason),
            _ => false,
        }
    }
}

/// The fields of a `Status` object that are used.
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
    /// Creates the status of an error that was read already.
    pub(crate) fn of_error(code: u16, reason: &str, message: &str) -> Self {
        Self { code, reason: reason.to_owned(), message: message.to_owned(), details: None }
    }

    /// Creates the status of an answer. Its body may be no `Status` object, for example if a proxy answered.
    pub(crate) fn of_answer(code: u16, body: &[u8]) -> Self {
        let status: Self = serde_json::from_slice(body).unwrap_or_default();
        Self { code, ..status }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the Kubernetes API answered {}", self.code)?;
        if !self.reason.is_empty() {
            write!(f, " {}", bounded(&self.reason))?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", bounded(&self.message))?;
        }
        Ok(())
    }
}

impl Advise for RequestFailure {
    fn advice(&self) -> Option<Cow<'static, str>> {
        if matches!(self, Self::NotBuilt) {
            return Some("this is a bug in rolegate; please report it".into());
        }
        if matches!(self, Self::Malformed(_) | Self::Lost) {
            return Some("check for a proxy between rolegate and the API server that changes responses".into());
        }
        match self.code()? {
            401 => Some("check the service account or the kubeconfig: this API does not accept its token or certificate".into()),
            403 => Some("allow the request in the daemon's ClusterRole (see daemonset/rbac.yaml)".into()),
            _ => None,
        }
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
        assert_eq!(status.to_string(), "the Kubernetes API answered 502");
    }
}

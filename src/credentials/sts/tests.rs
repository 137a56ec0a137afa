#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use aws_sdk_sts::config::http::HttpResponse;
use aws_sdk_sts::error::ErrorMetadata;
use aws_sdk_sts::operation::assume_role;

use super::translate::translate;
use super::*;
use aws_sdk_sts::error::SdkError;

/// Returns the translation of an STS error response with this status and code.
pub(in crate::credentials) fn answered(status: u16, code: &str) -> AssumeRoleError {
    let error = assume_role::AssumeRoleError::generic(ErrorMetadata::builder().code(code).message("no").build());
    translate(&SdkError::service_error(error, HttpResponse::new(status.try_into().unwrap(), "".into())))
}

#[test]
fn errors_that_an_account_owner_may_cause_are_refusals() {
    for (status, code) in [
        (403, "RegionDisabledException"),
        (403, "AccessDenied"),
        (400, "ValidationError"),
        (400, "PackedPolicyTooLarge"),
        (400, "SomethingNew"),
        (403, "SomethingNew"),
        (404, "NoSuchEntity"),
    ] {
        assert!(answered(status, code).is_refusal(), "{status} {code}");
    }
    for (status, code, name) in [
        (400, "Throttling", "throttled"),
        (429, "SomethingNew", "throttled"),
        (503, "SlowDown", "throttled"),
        (403, "ExpiredToken", "own-identity"),
        (403, "InvalidClientTokenId", "own-identity"),
        (500, "InternalFailure", "failed"),
        (503, "ServiceUnavailable", "failed"),
        (500, "SomethingNew", "failed"),
        (408, "RequestTimeout", "failed"),
    ] {
        assert_eq!(answered(status, code).name(), name, "{status} {code}");
    }
}

#[test]
fn a_session_ends_at_most_its_duration_after_the_request() {
    const HOUR: Duration = Duration::from_secs(3600);
    let at = |text: &str| -> Timestamp { format!("2026-01-01T{text}Z").parse().unwrap() };
    let took = Duration::from_secs(1);
    let asked = |sent: &str| AskedSession { sent: at(sent), duration: HOUR, took };
    assert_eq!(asked("12:00:00").at_the_latest(at("12:00:01")).unwrap(), at("13:00:00"));
    // The machine slept for two hours while the response was in transit.
    assert_eq!(asked("12:00:00").at_the_latest(at("14:00:01")).unwrap(), at("13:00:00"));
    // The clock was set back ten minutes during the request.
    assert_eq!(asked("12:00:00").at_the_latest(at("11:50:01")).unwrap(), at("12:50:00"));
}

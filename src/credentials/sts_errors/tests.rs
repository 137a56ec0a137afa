use super::*;
use crate::advice::Advise as _;
use crate::credentials::AssumeRoleError;
use crate::credentials::tests::{chained_request, request, request_with_external_id};

/// Every row of the table, with a message as STS writes it.
const ROWS: &[(&str, &str, StsErrorKind)] = &[
    (
        "AccessDenied",
        "User: arn:aws:sts::111122223333:assumed-role/nodes/i-1 is not authorized to perform: sts:AssumeRole on resource: R",
        StsErrorKind::AssumeRole,
    ),
    ("AccessDeniedException", "no", StsErrorKind::AssumeRole),
    ("AccessDenied", "User: U is not authorized to perform: sts:SetSourceIdentity on resource: R", StsErrorKind::SetSourceIdentity),
    ("AccessDenied", "User: U is not authorized to perform: sts:TagSession on resource: R", StsErrorKind::TagSession),
    (
        "AccessDenied",
        "User: U is not authorized to perform: sts:AssumeRole on resource: R because no VPC endpoint policy allows the sts:AssumeRole action",
        StsErrorKind::PolicyAbove,
    ),
    (
        "AccessDenied",
        "User: U is not authorized to perform: sts:AssumeRole on resource: R with an explicit deny in a service control policy",
        StsErrorKind::PolicyAbove,
    ),
    ("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", StsErrorKind::WebIdentityDenied),
    ("ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", StsErrorKind::Duration),
    (
        "ValidationError",
        "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
        StsErrorKind::Chained,
    ),
    ("ValidationError", "1 validation error detected: Value '1' at 'durationSeconds' failed to satisfy constraint", StsErrorKind::Duration),
    ("ValidationError", "Request ARN is invalid", StsErrorKind::RoleArn),
    ("ValidationError", "1 validation error detected: Value 'x' at 'roleArn' failed to satisfy constraint", StsErrorKind::RoleArn),
    (
        "ValidationError",
        "1 validation error detected: Value 'x' at 'externalId' failed to satisfy constraint",
        StsErrorKind::ExternalIdForm,
    ),
    (
        "ValidationError",
        "1 validation error detected: Value 'x' at 'roleSessionName' failed to satisfy constraint",
        StsErrorKind::Parameter,
    ),
    ("RegionDisabledException", "STS is not activated in this region for account:444455556666.", StsErrorKind::RegionDisabled),
    ("PackedPolicyTooLarge", "Packed size of session tags consumes 110% of allotted space.", StsErrorKind::PackedPolicyTooLarge),
    ("MalformedPolicyDocument", "Syntax errors in policy.", StsErrorKind::MalformedPolicy),
    ("Throttling", "Rate exceeded", StsErrorKind::Throttled),
    ("ThrottlingException", "Rate exceeded", StsErrorKind::Throttled),
    ("TooManyRequestsException", "Rate exceeded", StsErrorKind::Throttled),
    ("RequestLimitExceeded", "Rate exceeded", StsErrorKind::Throttled),
    ("ExpiredToken", "The security token included in the request is expired", StsErrorKind::Expired),
    ("ExpiredTokenException", "The security token included in the request is expired", StsErrorKind::Expired),
    ("InvalidClientTokenId", "The security token included in the request is invalid.", StsErrorKind::UnknownKey),
    ("UnrecognizedClientException", "The security token included in the request is invalid.", StsErrorKind::UnknownKey),
    ("SignatureDoesNotMatch", "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z", StsErrorKind::Clock),
    ("RequestExpired", "Request has expired.", StsErrorKind::Clock),
    ("RequestTimeTooSkewed", "The difference between the request time and the current time is too large.", StsErrorKind::Clock),
    ("IncompleteSignature", "Authorization header requires 'Signature' parameter.", StsErrorKind::Unsigned),
    ("MissingAuthenticationToken", "Request is missing Authentication Token", StsErrorKind::Unsigned),
    ("OptInRequired", "The AWS Access Key Id needs a subscription for the service", StsErrorKind::OptIn),
    ("InvalidIdentityToken", "No OpenIDConnect provider found in your account", StsErrorKind::WebIdentityToken),
    ("IDPRejectedClaim", "The token is expired", StsErrorKind::WebIdentityToken),
    ("IDPCommunicationError", "The identity provider could not be reached", StsErrorKind::Issuer),
    ("InternalFailure", "unknown", StsErrorKind::Service),
    ("ServiceUnavailable", "Service Unavailable", StsErrorKind::Service),
    ("RequestTimeout", "timeout", StsErrorKind::Service),
];

/// A kind that is not in the list does not compile.
fn all() -> Vec<StsErrorKind> {
    use StsErrorKind::*;
    let all = [
        AssumeRole,
        WithoutExternalId,
        WithExternalId,
        SourceRole,
        TargetWithoutExternalId,
        TargetWithExternalId,
        SetSourceIdentity,
        TargetSetSourceIdentity,
        TagSession,
        TargetTagSession,
        PolicyAbove,
        WebIdentityDenied,
        Duration,
        Chained,
        RoleArn,
        ExternalIdForm,
        Parameter,
        RegionDisabled,
        PackedPolicyTooLarge,
        MalformedPolicy,
        OtherRequest,
        Throttled,
        Expired,
        UnknownKey,
        Clock,
        Unsigned,
        OptIn,
        WebIdentityToken,
        Issuer,
        Service,
    ];
    for kind in all {
        match kind {
            AssumeRole
            | WithoutExternalId
            | WithExternalId
            | SourceRole
            | TargetWithoutExternalId
            | TargetWithExternalId
            | SetSourceIdentity
            | TargetSetSourceIdentity
            | TagSession
            | TargetTagSession
            | PolicyAbove
            | WebIdentityDenied
            | Duration
            | Chained
            | RoleArn
            | ExternalIdForm
            | Parameter
            | RegionDisabled
            | PackedPolicyTooLarge
            | MalformedPolicy
            | OtherRequest
            | Throttled
            | Expired
            | UnknownKey
            | Clock
            | Unsigned
            | OptIn
            | WebIdentityToken
            | Issuer
            | Service => {}
        }
    }
    all.to_vec()
}

#[test]
fn each_code_has_its_meaning() {
    for (code, message, kind) in ROWS {
        assert_eq!(StsErrorKind::of(code, message), Some(*kind), "{code}: {message}");
        let text = format!("{code}: {message} (request id 1)");
        assert_eq!(StsErrorKind::of_text(&text), Some(*kind), "{text}");
    }
    for code in ["SomethingNew", "no code", "", "Exception"] {
        assert_eq!(StsErrorKind::of(code, "User: U is not authorized"), None, "{code}");
    }
    let refined = [
        StsErrorKind::WithoutExternalId,
        StsErrorKind::WithExternalId,
        StsErrorKind::SourceRole,
        StsErrorKind::TargetWithoutExternalId,
        StsErrorKind::TargetWithExternalId,
        StsErrorKind::TargetSetSourceIdentity,
        StsErrorKind::TargetTagSession,
        StsErrorKind::OtherRequest,
    ];
    for kind in all().into_iter().filter(|kind| !refined.contains(kind)) {
        assert!(ROWS.iter().any(|(.., row)| *row == kind), "{kind:?} has no row");
    }
}

#[test]
fn each_meaning_has_its_own_advice() {
    let advice: std::collections::BTreeSet<_> = all().into_iter().map(StsErrorKind::advice).collect();
    assert_eq!(advice.len(), all().len());
    for (kind, words) in [
        (StsErrorKind::Clock, "time synchronization"),
        (StsErrorKind::TagSession, "sts:TagSession"),
        (StsErrorKind::SetSourceIdentity, "sts:SetSourceIdentity"),
        (StsErrorKind::WithoutExternalId, "no external ID was sent"),
        (StsErrorKind::WithExternalId, "an external ID was sent"),
        (StsErrorKind::RegionDisabled, "activate STS for this region"),
        (StsErrorKind::PackedPolicyTooLarge, "--session-tags"),
        (StsErrorKind::OptIn, "enable the region"),
    ] {
        assert!(kind.advice().contains(words), "{kind:?}: {}", kind.advice());
    }
}

#[test]
fn owners_are_told_what_they_can_change() {
    for kind in all() {
        let of_role = matches!(kind.class(), StsErrorClass::Denied | StsErrorClass::Invalid);
        let of_daemon = matches!(kind, StsErrorKind::WebIdentityDenied | StsErrorKind::MalformedPolicy);
        assert_eq!(kind.for_owner().is_some(), of_role && !of_daemon, "{kind:?}");
        let note = kind.for_owner().unwrap_or_default();
        assert!(!note.contains("arn:") && !note.contains(char::is_numeric) || kind == StsErrorKind::ExternalIdForm, "{note}");
    }
}

#[test]
fn the_request_tells_whether_an_external_id_was_sent() {
    let denied = AssumeRoleError::Denied { message: "AccessDenied: no".to_owned() };
    let request = request("web");
    assert_eq!(denied.advice_for(&request).as_deref(), Some(StsErrorKind::WithoutExternalId.advice()));
    assert_eq!(denied.for_owner(&request), StsErrorKind::WithoutExternalId.for_owner());
    assert_eq!(denied.advice().as_deref(), Some(StsErrorKind::AssumeRole.advice()));
}

/// The advice is about the call that was refused: who called, and for which role.
#[test]
fn a_refusal_says_which_role_of_a_chain_it_is_about() {
    use StsErrorKind::*;
    let request = chained_request("web", "partner");
    let denial =
        |action: &str| AssumeRoleError::Denied { message: format!("AccessDenied: User: U is not authorized to perform: {action}") };
    for (call, action, kind) in [
        (ChainCall::Source, "sts:AssumeRole on resource: R", SourceRole),
        (ChainCall::Target, "sts:AssumeRole on resource: R", TargetWithoutExternalId),
        (ChainCall::Source, "sts:TagSession on resource: R", TagSession),
        (ChainCall::Target, "sts:TagSession on resource: R", TargetTagSession),
        (ChainCall::Source, "sts:SetSourceIdentity on resource: R", SetSourceIdentity),
        (ChainCall::Target, "sts:SetSourceIdentity on resource: R", TargetSetSourceIdentity),
    ] {
        let refused = denial(action).in_chain(Some(call));
        assert_eq!((refused.name(), refused.is_refusal(), refused.refused_call()), ("denied", true, Some(call)), "{action}");
        assert!(refused.is_remembered() && !refused.is_throttled());
        assert_eq!(refused.advice_for(&request).as_deref(), Some(kind.advice()), "{action}");
        assert_eq!(refused.for_owner(&request), kind.for_owner(), "{action}");
        assert!(refused.to_string().ends_with(&denial(action).to_string()), "{refused}");
    }
    for other in [AssumeRoleError::Throttled, AssumeRoleError::Unreachable { message: "x".to_owned() }] {
        assert_eq!(other.clone().in_chain(Some(ChainCall::Target)), other, "it is not about one of the two roles");
    }
    assert_eq!(denial("x").in_chain(None), denial("x"));
    let with_id = |kind: StsErrorKind, call| kind.with(&request_with_external_id("web", "id"), call);
    assert_eq!(with_id(AssumeRole, Some(ChainCall::Target)), TargetWithExternalId);
    assert_eq!(with_id(AssumeRole, None), WithExternalId);
}

#[test]
fn a_message_of_another_class_does_not_change_the_meaning() {
    let denied = AssumeRoleError::Denied { message: "ExpiredToken: no".to_owned() };
    assert_eq!(denied.kind(), Some(StsErrorKind::AssumeRole));
    let failed = AssumeRoleError::Failed { message: "AccessDenied: no".to_owned() };
    assert_eq!((failed.kind(), failed.for_owner(&request("web"))), (Some(StsErrorKind::Service), None));
}

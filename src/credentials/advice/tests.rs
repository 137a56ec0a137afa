#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says loudly what failed")]

use super::*;
use crate::config::session::SessionTag;
use crate::pods::{Pod, PodContext};
use crate::policy::session::SessionRules;
use crate::policy::{Decision, Policy, Rules};

fn request(external_id: Option<&str>, tags: &[SessionTag]) -> RoleRequest {
    request_by(external_id, SessionRules { tags: tags.to_vec(), ..SessionRules::default() })
}

fn request_with_source_identity() -> RoleRequest {
    let template = Some("{namespace}.{pod}".parse().unwrap());
    request_by(None, SessionRules { source_identity: template, ..SessionRules::default() })
}

fn request_by(external_id: Option<&str>, sessions: SessionRules) -> RoleRequest {
    let pod = Pod {
        role: Some("arn:aws:iam::111122223333:role/team/web".to_owned()),
        external_id: external_id.map(str::to_owned),
        ..Pod::for_test("shop", "web-0")
    };
    request_of(&pod, sessions)
}

fn request_of(pod: &Pod, sessions: SessionRules) -> RoleRequest {
    let policy = Policy::new(Rules { sessions, ..Rules::default() }, crate::policy::node::NodeIdentity::default()).unwrap();
    match policy.decide(pod, &PodContext::default()) {
        Decision::Allow { request, .. } => request,
        Decision::Deny(denial) => panic!("{denial}"),
    }
}

/// Returns the diagnosis as `rolegate explain` prints it.
fn text(diagnosis: &Diagnosis) -> String {
    let check = diagnosis.check.iter().enumerate().map(|(at, check)| format!("{}. {check}\n", at + 1));
    format!("{}\n{}", diagnosis.problem, check.collect::<String>())
}

fn denied_with(message: &str) -> AssumeRoleError {
    AssumeRoleError::Denied { message: message.to_owned() }
}

#[test]
fn a_denial_lists_what_to_check_and_what_was_sent() {
    let denied = denied_with("AccessDenied");
    let plain = denied.diagnose(&request(None, &[]), Some("CALLER"));
    let tagged = denied.diagnose(&request(Some("id-1"), &[SessionTag::Pod]), None);
    let with_identity = denied.diagnose(&request_with_source_identity(), Some("CALLER"));
    // The external ID is a secret between the role's account and the pod.
    assert!(!text(&tagged).contains("id-1"), "{tagged:?}");
    assert_eq!((plain.check.len(), tagged.check.len(), with_identity.check.len()), (4, 5, 5));
    assert!(tagged.check[4].contains("sts:TagSession") && with_identity.check[4].contains("sts:SetSourceIdentity"));
    assert!(!text(&plain).contains("ource identity"), "{plain:?}");
    insta::assert_snapshot!("denied", text(&plain));
    insta::assert_snapshot!("denied_with_external_id_and_tags", text(&tagged));
    insta::assert_snapshot!("denied_with_source_identity", text(&with_identity));
}

const NO_SOURCE_IDENTITY: &str = "AccessDenied: User: arn:aws:sts::111122223333:assumed-role/nodes/i-1 is not authorized to perform: \
                                  sts:SetSourceIdentity on resource: arn:aws:iam::111122223333:role/team/web (request id 1)";

#[test]
fn a_denial_of_the_source_identity_differs_from_other_denials() {
    let denied = denied_with(NO_SOURCE_IDENTITY);
    let given = denied.diagnose(&request_with_source_identity(), Some("CALLER"));
    let inherited = denied.diagnose(&request(None, &[]), Some("CALLER"));
    assert_eq!((given.check.len(), inherited.check.len()), (4, 4));
    insta::assert_snapshot!("source_identity_denied", text(&given));
    insta::assert_snapshot!("inherited_source_identity_denied", text(&inherited));
    let sent = request(None, &[]);
    let advice = |error: &AssumeRoleError| [error.advice_for(&sent).unwrap().into_owned(), error.for_owner(&sent).unwrap().to_owned()];
    for text in advice(&denied) {
        assert!(text.contains("sts:SetSourceIdentity") && !text.contains("sts:AssumeRole"), "{text}");
    }
    for text in advice(&denied_with(&NO_SOURCE_IDENTITY.replace("SetSourceIdentity", "AssumeRole"))) {
        assert!(!text.contains("sts:SetSourceIdentity") && text.contains("sts:AssumeRole") && text.contains("external ID"), "{text}");
    }
}

#[test]
fn a_denial_in_a_chain_names_the_caller_and_the_role_of_the_call() {
    let pod = Pod {
        role: Some("arn:aws:iam::111122223333:role/team/web".to_owned()),
        target_role: Some("arn:aws:iam::444455556666:role/partner".to_owned()),
        external_id: Some("id-1".to_owned()),
        ..Pod::for_test("shop", "web-0")
    };
    let sessions = SessionRules { source_identity: Some("{pod}".parse().unwrap()), tags: vec![SessionTag::Pod], ..SessionRules::default() };
    let request = request_of(&pod, sessions);
    for (call, name) in [(ChainCall::Source, "source"), (ChainCall::Target, "target")] {
        let of = |message: &str| text(&denied_with(message).in_chain(Some(call)).diagnose(&request, Some("CALLER")));
        assert!(!of("AccessDenied").contains("id-1"));
        insta::assert_snapshot!(format!("{name}_role_denied"), of("AccessDenied"));
        insta::assert_snapshot!(format!("{name}_role_source_identity_denied"), of(NO_SOURCE_IDENTITY));
    }
}

#[test]
fn an_invalid_request_names_the_limit_that_it_exceeds() {
    for (name, message) in [
        ("duration", "ValidationError: The requested DurationSeconds exceeds the MaxSessionDuration set for this role."),
        ("chained", "ValidationError: The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"),
        ("tags", "PackedPolicyTooLarge: x"),
        ("region", "RegionDisabledException: x"),
        ("other", "ValidationError: something else"),
    ] {
        let diagnosis = AssumeRoleError::Invalid { message: message.to_owned() }.diagnose(&request(None, &[]), None);
        assert_eq!(diagnosis.check.len(), 1, "{message}: {diagnosis:?}");
        insta::assert_snapshot!(format!("invalid_{name}"), text(&diagnosis));
    }
}

#[test]
fn every_failure_has_something_to_check() {
    let message = || "x".to_owned();
    use AssumeRoleError::*;
    for error in [
        Throttled,
        OwnIdentity { message: message(), advice: "look".into() },
        OwnIdentity { message: message(), advice: CHECK_CREDENTIALS.into() },
        Unreachable { message: message() },
        OtherRole { message: message() },
        Failed { message: message() },
    ] {
        assert!(!error.diagnose(&request(None, &[]), None).check.is_empty(), "{error:?}");
    }
}

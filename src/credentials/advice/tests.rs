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
    let policy = Policy::new(Rules { sessions, ..Rules::default() }, crate::policy::node::NodeIdentity::default()).unwrap();
    match policy.decide(&pod, &PodContext::default()) {
        Decision::Allow { request, .. } => request,
        Decision::Deny(denial) => panic!("{denial}"),
    }
}

#[test]
fn a_denial_is_looked_into_in_order_and_says_what_was_sent() {
    let denied = AssumeRoleError::Denied { message: "AccessDenied".to_owned() };
    let advice = denied.advice(&request(None, &[]), Some("WHO"));
    let starts = ["the role web exists in account 111122223333", "its trust policy", "that role's own policies", "no external id was sent"];
    assert_eq!(advice.check.len(), starts.len());
    assert!(advice.check.iter().zip(starts).all(|(check, start)| check.starts_with(start)), "{advice:?}");
    assert!(advice.check[1].ends_with("to the role of WHO") && advice.problem.contains("AccessDenied"));
    let advice = denied.advice(&request(Some("id-1"), &[SessionTag::Pod]), None);
    assert!(
        advice.check[3].starts_with("an external id was sent")
            && !advice.check[3].contains("id-1")
            && advice.check[4].contains("sts:TagSession"),
        "{advice:?}"
    );
    assert!(
        advice.to_string().starts_with("STS denies it: AccessDenied; 1. the role web exists")
            && advice.to_string().contains("; 5. session tags")
    );
}

const NO_SOURCE_IDENTITY: &str = "AccessDenied: User: arn:aws:sts::111122223333:assumed-role/nodes/i-1 is not authorized to perform: \
                                  sts:SetSourceIdentity on resource: arn:aws:iam::111122223333:role/team/web (request id 1)";

#[test]
fn a_denial_with_a_source_identity_says_what_it_takes() {
    let denied = AssumeRoleError::Denied { message: "AccessDenied".to_owned() };
    let advice = denied.advice(&request_with_source_identity(), Some("WHO"));
    assert_eq!(advice.check.len(), 5);
    for wanted in ["the source identity shop.web-0 was sent", "sts:SetSourceIdentity", "the session of WHO has no other"] {
        assert!(advice.check[4].contains(wanted), "{advice:?}");
    }
    let without = denied.advice(&request(None, &[]), Some("WHO"));
    assert!(!without.to_string().contains("ource"), "{without:?}");
}

#[test]
fn a_denial_of_the_source_identity_alone_is_told_from_others() {
    let denied = AssumeRoleError::Denied { message: NO_SOURCE_IDENTITY.to_owned() };
    let advice = denied.advice(&request_with_source_identity(), Some("WHO"));
    assert_eq!(advice.check.len(), 4);
    assert!(advice.check[0].contains("allows sts:SetSourceIdentity to the role of WHO"), "{advice:?}");
    assert!(advice.check[3].contains("no source identity of its own") && advice.check[3].contains("shop.web-0"), "{advice:?}");
    assert!(!advice.to_string().contains("external id"), "{advice:?}");
    let inherited = denied.advice(&request(None, &[]), Some("WHO"));
    assert!(inherited.check[3].starts_with("--source-identity is not given"), "{inherited:?}");
    for text in [denied.to_string(), denied.for_owner().unwrap().to_owned()] {
        assert!(text.contains("must allow sts:SetSourceIdentity") && !text.contains("external id"), "{text}");
    }
    let other = AssumeRoleError::Denied { message: NO_SOURCE_IDENTITY.replace("SetSourceIdentity", "AssumeRole") };
    for text in [other.to_string(), other.for_owner().unwrap().to_owned()] {
        assert!(!text.contains("SetSourceIdentity") && text.contains("external id"), "{text}");
    }
}

#[test]
fn a_duration_that_is_too_long_is_told_by_its_limit() {
    for (message, wanted) in [
        ("ValidationError: The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", "MaxSessionDuration"),
        (
            "ValidationError: The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
            "last 1h at most",
        ),
        ("PackedPolicyTooLarge: x", "--session-tags"),
        ("ValidationError: something else", "against what STS says"),
    ] {
        let advice = AssumeRoleError::Invalid { message: message.to_owned() }.advice(&request(None, &[]), None);
        assert!(advice.check.len() == 1 && advice.check[0].contains(wanted), "{message}: {advice:?}");
    }
}

#[test]
fn every_failure_has_something_to_look_at() {
    let message = || "x".to_owned();
    use AssumeRoleError::*;
    for error in [
        Throttled,
        OwnIdentity { message: message(), advice: "look".into() },
        Unreachable { message: message() },
        Failed { message: message() },
    ] {
        assert!(!error.advice(&request(None, &[]), None).check.is_empty(), "{error:?}");
    }
}

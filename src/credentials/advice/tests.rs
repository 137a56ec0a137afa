#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says loudly what failed")]

use super::*;
use crate::config::session::SessionTag;
use crate::pods::{Pod, PodUid, Surroundings};
use crate::policy::session::SessionRules;
use crate::policy::{Decision, Policy, Rules};

fn request(external_id: Option<&str>, tags: &[SessionTag]) -> RoleRequest {
    let pod = Pod {
        uid: PodUid("uid".into()),
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        service_account: String::new(),
        role: Some("arn:aws:iam::111122223333:role/team/web".to_owned()),
        external_id: external_id.map(str::to_owned),
        session_name: None,
        ips: Vec::new(),
        finished: false,
        terminating: false,
        claims_until: None,
        host_network: false,
        sandbox: Default::default(),
        may_have_net_raw: false,
    };
    let sessions = SessionRules { tags: tags.to_vec(), ..SessionRules::default() };
    let policy = Policy::new(Rules { sessions, ..Rules::default() }, crate::policy::node::NodeIdentity::default()).unwrap();
    match policy.decide(&pod, &Surroundings::default()) {
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

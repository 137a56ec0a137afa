#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::collections::HashSet;

use std::sync::Arc;

use super::denial::{NamespaceList, RoleMistake, RoleSource};
use super::session::SessionRules;
use super::trace::StepVerdict;
use super::*;
use crate::config::session::{Placeholder, SessionScope, SessionTemplate};
use crate::pods::{Namespace, PodUid};
use crate::role::{CallerIdentity, ParseError};
use std::time::Duration;

mod limits;
mod sources;
mod target;

const BASE: &str = "arn:aws:iam::111122223333:role/";
const NODE: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c";

fn arn(name: &str) -> RoleArn {
    format!("{BASE}{name}").parse().unwrap()
}

fn pod() -> Pod {
    Pod { uid: PodUid("uid-1".into()), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::for_test("default", "web-7f9c-abcde") }
}

fn pod_with(role: &str) -> Pod {
    Pod { role: Some(role.to_owned()), ..pod() }
}

fn rules() -> Rules {
    Rules { base: Some(BASE.parse().unwrap()), ..Rules::default() }
}

/// Creates the policy of a node whose own identity is known.
fn policy(rules: &Rules) -> Policy {
    Policy::new(rules.clone(), NODE.parse::<CallerIdentity>().unwrap().into()).unwrap()
}

/// Returns the decision, after checking that it is the same with and without its steps.
fn decide(rules: &Rules, pod: &Pod, context: &PodContext) -> Decision {
    decide_by(&policy(rules), pod, context)
}

fn decide_by(policy: &Policy, pod: &Pod, context: &PodContext) -> Decision {
    let decision = policy.decide(pod, context);
    let explained = policy.explain(pod, context);
    assert_eq!(explained.decision, decision, "{explained:?}");
    let refused = explained.steps.iter().filter(|step| step.verdict == StepVerdict::Refused).count();
    let expected = match &decision {
        Decision::Allow { audit: None, .. } => 0,
        Decision::Allow { audit: Some(_), .. } | Decision::Deny(_) => 1,
    };
    assert_eq!(refused, expected, "a denial has exactly one refused step: {explained:?}");
    assert!(serde_json::to_string(&explained).is_ok());
    decision
}

fn namespace(list: Option<&str>) -> Namespace {
    Namespace { name: "default".to_owned(), allowed_roles: list.map(str::to_owned), permitted: None }
}

fn context(namespace: Option<&Namespace>) -> PodContext {
    PodContext { namespace: namespace.cloned().map(Arc::new), ..PodContext::default() }
}

fn allowed(rules: &Rules, pod: &Pod) -> RoleRequest {
    match decide(rules, pod, &PodContext::default()) {
        Decision::Allow { request, audit: None } => request,
        other => panic!("{pod:?}: {other:?}"),
    }
}

fn denied(rules: &Rules, pod: &Pod) -> Denial {
    match decide(rules, pod, &PodContext::default()) {
        Decision::Deny(denial) => denial,
        other => panic!("{pod:?}: {other:?}"),
    }
}

#[test]
fn a_pod_has_the_role_that_its_annotation_names() {
    let without_base = Rules { base: None, ..rules() };
    let with_default = Rules { default_role: Some(arn("default")), ..rules() };
    for (rules, annotation, expected) in [
        (&rules(), "web", "arn:aws:iam::111122223333:role/web"),
        (&rules(), "/web", "arn:aws:iam::111122223333:role/web"),
        (&rules(), "team/web", "arn:aws:iam::111122223333:role/team/web"),
        (&rules(), "arn:aws:iam::444455556666:role/path/other", "arn:aws:iam::444455556666:role/path/other"),
        (&without_base, "arn:aws:iam::444455556666:role/other", "arn:aws:iam::444455556666:role/other"),
        (&with_default, "web", "arn:aws:iam::111122223333:role/web"),
    ] {
        assert_eq!(allowed(rules, &pod_with(annotation)).role().as_str(), expected, "{annotation}");
    }
}

#[test]
fn a_pod_without_an_annotation_has_the_default_role_or_none() {
    assert_eq!(denied(&rules(), &pod()), Denial::NoRole);
    let with_default = Rules { default_role: Some(arn("default")), ..rules() };
    assert_eq!(allowed(&with_default, &pod()).role(), &arn("default"));
}

#[test]
fn a_malformed_annotation_denies_and_never_falls_back_to_the_default() {
    use ParseError::*;
    let with_default = Rules { default_role: Some(arn("default")), ..rules() };
    let without_base = Rules { base: None, default_role: Some(arn("default")), ..rules() };
    let bad = |mistake| Denial::BadRole(RoleSource::Pod, mistake);
    let (long, huge) = ("n".repeat(65), "n".repeat(1024 * 1024));
    for (rules, annotation, expected) in [
        (&with_default, "", bad(RoleMistake::Empty)),
        (&without_base, "", bad(RoleMistake::Empty)),
        (&with_default, " ", bad(RoleMistake::Spaces)),
        (&with_default, "/", bad(RoleMistake::Form(RoleName))),
        (&with_default, "//web", bad(RoleMistake::Form(Path))),
        (&with_default, "web ", bad(RoleMistake::Spaces)),
        (&with_default, "web\n", bad(RoleMistake::ControlCharacters)),
        (&with_default, "w*b", bad(RoleMistake::Form(RoleName))),
        (&with_default, "we\u{a0}b", bad(RoleMistake::Spaces)),
        (&with_default, "web\0", bad(RoleMistake::ControlCharacters)),
        (&with_default, "w\u{e9}b", bad(RoleMistake::Form(RoleName))),
        (&with_default, &huge, bad(RoleMistake::Form(TooLong))),
        (&with_default, &long, bad(RoleMistake::Form(RoleName))),
        (&with_default, "arn:", bad(RoleMistake::Form(NotARoleArn))),
        (&with_default, "arn:aws:iam::111122223333:user/web", bad(RoleMistake::Form(NotARoleArn))),
        (&with_default, "arn:aws:iam::1:role/web", bad(RoleMistake::Form(Account))),
        (&with_default, "arn:aws:sts::111122223333:assumed-role/web/s", bad(RoleMistake::Form(NotARoleArn))),
        (&without_base, "web", bad(RoleMistake::NoBaseArn)),
    ] {
        assert_eq!(denied(rules, &pod_with(annotation)), expected, "{annotation:?}");
    }
}

#[test]
fn the_external_id_is_the_pods_own() {
    let with = |id: &str| Pod { external_id: Some(id.to_owned()), ..pod_with("web") };
    assert_eq!(allowed(&rules(), &pod_with("web")).external_id(), None);
    assert_eq!(allowed(&rules(), &with("abc-1")).external_id().map(ExternalId::as_str), Some("abc-1"));
    assert_eq!(allowed(&rules(), &with("")).external_id(), None, "as if it were not there");
    assert_eq!(allowed(&rules(), &with("")), allowed(&rules(), &pod_with("web")));
    for bad in [" ", "x", "a b", "a\nb", &"x".repeat(1225)] {
        assert_eq!(denied(&rules(), &with(bad)), Denial::BadExternalId(ParseError::ExternalId), "{bad:?}");
    }
}

#[test]
fn a_bad_external_id_denies_the_default_role_too() {
    let with_default = Rules { default_role: Some(arn("default")), ..rules() };
    let pod = Pod { external_id: Some("a b".to_owned()), ..pod() };
    assert_eq!(denied(&with_default, &pod), Denial::BadExternalId(ParseError::ExternalId));
}

#[test]
fn the_session_is_named_by_the_annotation_or_after_the_pod() {
    let with = |name: &str| Pod { session_name: Some(name.to_owned()), ..pod_with("web") };
    assert_eq!(allowed(&rules(), &pod_with("web")).session_name().as_str(), "web-7f9c-abcde");
    assert_eq!(allowed(&rules(), &with("batch@night")).session_name().as_str(), "batch@night");
    let long = "x".repeat(64);
    for (odd, expected) in [
        ("", "web-7f9c-abcde"),
        ("x", "pod-x"),
        ("a b", "a-b"),
        ("a/b:c\n\u{e9}", "a-b-c--"),
        ("w_+=,.@-", "w_+=,.@-"),
        (&format!("{long}-end"), &long),
        (&format!("{}\u{1f600}-end", "x".repeat(63)), &format!("{}-", "x".repeat(63))),
    ] {
        assert_eq!(allowed(&rules(), &with(odd)).session_name().as_str(), expected, "{odd:?}");
    }
    let long = Pod { name: format!("{}-abcde", "n".repeat(100)), ..pod_with("web") };
    assert!(allowed(&rules(), &long).session_name().as_str().ends_with("-abcde"));
}

#[test]
fn the_operator_sets_the_session_duration() {
    let long = Rules { session_duration: Duration::from_secs(7200), ..rules() };
    assert_eq!(allowed(&long, &pod_with("web")).duration(), Duration::from_secs(7200));
}

/// The request is the key of the session cache. Two requests are equal if and only if the same is sent to STS for the same pod.
#[test]
fn requests_are_equal_if_sts_gets_the_same_for_the_same_pod() {
    let same = allowed(&rules(), &pod_with("web"));
    assert_eq!(same, allowed(&rules(), &pod_with("/web")));
    let different = [
        allowed(&rules(), &Pod { uid: PodUid("uid-2".into()), namespace: "other".to_owned(), ..pod_with("/web") }),
        allowed(&rules(), &pod_with("web2")),
        allowed(&rules(), &pod_with("path/web")),
        allowed(&rules(), &pod_with("arn:aws:iam::444455556666:role/web")),
        allowed(&rules(), &Pod { external_id: Some("id".to_owned()), ..pod_with("web") }),
        allowed(&rules(), &Pod { external_id: Some("id2".to_owned()), ..pod_with("web") }),
        allowed(&rules(), &Pod { session_name: Some("session".to_owned()), ..pod_with("web") }),
        allowed(&rules(), &Pod { name: "web-7f9c-fghij".to_owned(), ..pod_with("web") }),
        allowed(&Rules { session_duration: Duration::from_secs(3601), ..rules() }, &pod_with("web")),
    ];
    let keys: HashSet<_> = different.into_iter().chain([same.clone(), same]).collect();
    assert_eq!(keys.len(), 10);
}

#[test]
fn pods_of_one_name_share_a_session_only_in_role_scope() {
    let other = Pod { uid: PodUid("uid-2".into()), namespace: "other".to_owned(), ..pod_with("web") };
    let (one, two) = (allowed(&rules(), &pod_with("web")), allowed(&rules(), &other));
    assert_eq!(one.session_name(), two.session_name(), "both have the same session name");
    assert_ne!(one, two);
    assert_eq!(two.holder, Some(other.uid.clone()));
    let sessions = SessionRules { scope: SessionScope::Role, name: SessionTemplate::of(Placeholder::Role), ..SessionRules::default() };
    let shared = Rules { sessions, ..rules() };
    assert_eq!(allowed(&shared, &pod_with("web")), allowed(&shared, &other));
}

#[test]
fn an_operators_template_applies_to_pods_with_a_session_name_too() {
    let named = Pod { session_name: Some("somebody-else".to_owned()), ..pod_with("web") };
    let sessions = SessionRules { pod_may_name: false, name: SessionTemplate::of(Placeholder::Pod), ..SessionRules::default() };
    let given = Rules { sessions, ..rules() };
    assert_eq!(allowed(&given, &named).session_name().as_str(), "web-7f9c-abcde");
    assert_eq!(allowed(&rules(), &named).session_name().as_str(), "somebody-else");
}

/// What STS is told is the key, and not what the pod says.
#[test]
fn session_names_that_become_equal_are_told_apart_only_by_the_pod() {
    let named = |uid: &str, name: &str| Pod { uid: PodUid(uid.into()), session_name: Some(name.to_owned()), ..pod_with("web") };
    let one = allowed(&rules(), &named("uid-1", "a b"));
    assert_eq!(one, allowed(&rules(), &named("uid-1", "a-b")));
    let other = allowed(&rules(), &named("uid-2", "a/b"));
    assert_eq!(one.session_name(), other.session_name());
    assert_ne!(one, other, "another pod has a session of its own");
    assert_ne!(one, allowed(&rules(), &named("uid-1", "a.b")));
}

#[test]
fn a_namespace_limits_the_roles_of_its_pods() {
    use Denial::*;
    const BAD_LIST: Denial = BadNamespaceList(NamespaceList::Allowed, Mistake::NotAList);
    const BAD_PATTERN: Denial = BadNamespaceList(NamespaceList::Allowed, Mistake::BadPattern);
    let base = BASE.parse::<BaseArn>().unwrap();
    let (glob, regexp) = (PatternFormat::Glob, PatternFormat::Regexp);
    let known = |list| Some(namespace(list));
    for (patterns, namespace, role, expected) in [
        (glob, None, "web", Err(NamespaceUnknown)),
        (glob, known(None), "web", Err(NamespaceHasNoList)),
        (glob, known(Some("[]")), "web", Err(NotAllowedInNamespace)),
        (glob, known(Some(r#"["web"]"#)), "web", Ok(())),
        (glob, known(Some(r#"["arn:aws:iam::111122223333:role/web"]"#)), "web", Ok(())),
        (glob, known(Some(r#"["web"]"#)), "web-admin", Err(NotAllowedInNamespace)),
        (glob, known(Some(r#"["web"]"#)), "team/web", Err(NotAllowedInNamespace)),
        (glob, known(Some(r#"["db", "we*"]"#)), "web", Ok(())),
        (glob, known(Some(r#"["*"]"#)), "arn:aws:iam::444455556666:role/web", Err(NotAllowedInNamespace)),
        (glob, known(Some(r#"["w.b"]"#)), "web", Err(NotAllowedInNamespace)),
        (regexp, known(Some(r#"["w.b"]"#)), "web", Ok(())),
        (regexp, known(Some(r#"["web"]"#)), "web-admin", Err(NotAllowedInNamespace)),
        (regexp, known(Some(r#"["web"]"#)), "my-web", Err(NotAllowedInNamespace)),
        // The intent behind a malformed list is unknown, so it allows nothing.
        (glob, known(Some("")), "web", Err(BAD_LIST)),
        (glob, known(Some("web")), "web", Err(BAD_LIST)),
        (glob, known(Some(r#""web""#)), "web", Err(BAD_LIST)),
        (glob, known(Some(r#"{"web": true}"#)), "web", Err(BAD_LIST)),
        (glob, known(Some("null")), "web", Err(BAD_LIST)),
        (glob, known(Some(r#"["web", 1]"#)), "web", Err(BAD_LIST)),
        (glob, known(Some(r#"["web"] ["db"]"#)), "web", Err(BAD_LIST)),
        (glob, known(Some(r#"["web", ""]"#)), "web", Err(BadNamespaceList(NamespaceList::Allowed, Mistake::EmptyPattern))),
        (regexp, known(Some(r#"["web", "("]"#)), "web", Err(BAD_PATTERN)),
        (regexp, known(Some(r#"["(", "web"]"#)), "web", Err(BAD_PATTERN)),
    ] {
        let settings = |restrictions| Rules { base: Some(base.clone()), restrictions, patterns, ..rules() };
        let decide = |restrictions| decide(&settings(restrictions), &pod_with(role), &context(namespace.as_ref()));
        let request = allowed(&settings(Restrictions::Off), &pod_with(role));
        let about = format!("{role} in {namespace:?}");
        assert_eq!(decide(Restrictions::Off), Decision::Allow { request: request.clone(), audit: None }, "{about}");
        let (enforced, audit) = match expected {
            Ok(()) => (Decision::Allow { request: request.clone(), audit: None }, None),
            Err(denial) => (Decision::Deny(denial), Some(denial)),
        };
        assert_eq!(decide(Restrictions::Enforce), enforced, "{about}");
        assert_eq!(decide(Restrictions::Audit), Decision::Allow { request, audit }, "{about}");
    }
}

#[test]
fn without_a_base_a_pattern_is_matched_unchanged() {
    let enforced = Rules { base: None, restrictions: Restrictions::Enforce, ..rules() };
    let decide = |list| decide(&enforced, &pod_with("arn:aws:iam::111122223333:role/web"), &context(Some(&namespace(Some(list)))));
    assert_eq!(decide(r#"["web"]"#), Decision::Deny(Denial::NotAllowedInNamespace));
    assert!(matches!(decide(r#"["*/web"]"#), Decision::Allow { .. }));
    assert!(matches!(decide(r#"["arn:aws:iam::111122223333:role/web"]"#), Decision::Allow { .. }));
}

#[test]
fn the_operators_default_role_needs_no_list() {
    let enforced = Rules { default_role: Some(arn("default")), restrictions: Restrictions::Enforce, ..rules() };
    for namespace in [None, Some(namespace(None)), Some(namespace(Some("[]"))), Some(namespace(Some("malformed")))] {
        for pod in [pod(), pod_with("default")] {
            let decision = decide(&enforced, &pod, &context(namespace.as_ref()));
            assert!(matches!(&decision, Decision::Allow { request, audit: None } if *request.role() == arn("default")), "{decision:?}");
        }
        assert!(matches!(decide(&enforced, &pod_with("default2"), &context(namespace.as_ref())), Decision::Deny(_)));
    }
}

#[test]
fn no_mode_allows_malformed_annotations() {
    for restrictions in [Restrictions::Off, Restrictions::Audit, Restrictions::Enforce] {
        let rules = Rules { restrictions, ..rules() };
        let everything = namespace(Some(r#"["*"]"#));
        for pod in [pod(), pod_with(""), pod_with("we b"), Pod { external_id: Some("x".to_owned()), ..pod_with("web") }] {
            assert!(matches!(decide(&rules, &pod, &context(Some(&everything))), Decision::Deny(_)), "{restrictions:?} {pod:?}");
        }
    }
}

#[test]
fn a_denial_does_not_repeat_the_pods_text() {
    let denial = denied(&rules(), &pod_with("s3cr3t name"));
    assert!(!format!("{denial} {}", denial.name()).contains("s3cr3t"), "{denial}");
}

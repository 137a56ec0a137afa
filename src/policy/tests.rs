#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::collections::HashSet;

use std::sync::Arc;

use super::*;
use crate::pods::PodUid;

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn arn(name: &str) -> RoleArn {
    format!("{BASE}{name}").parse().unwrap()
}

fn pod() -> Pod {
    Pod {
        uid: PodUid("uid-1".into()),
        namespace: "default".to_owned(),
        name: "web-7f9c-abcde".to_owned(),
        role: None,
        external_id: None,
        session_name: None,
        ips: vec!["10.0.0.1".parse().unwrap()],
        finished: false,
        terminating: false,
        host_network: false,
    }
}

fn pod_with(role: &str) -> Pod {
    Pod { role: Some(role.to_owned()), ..pod() }
}

fn policy() -> Policy {
    Policy {
        base: Some(BASE.parse().unwrap()),
        default_role: None,
        restrictions: Restrictions::Off,
        patterns: PatternFormat::Glob,
        session_duration: Duration::from_secs(3600),
    }
}

fn namespace(list: Option<&str>) -> Namespace {
    Namespace { name: "default".to_owned(), allowed_roles: list.map(str::to_owned) }
}

fn around(namespace: Option<&Namespace>) -> Surroundings {
    Surroundings { namespace: namespace.cloned().map(Arc::new) }
}

fn allowed(policy: &Policy, pod: &Pod) -> RoleRequest {
    match policy.decide(pod, &Surroundings::default()) {
        Decision::Allow { request, audit: None } => request,
        other => panic!("{pod:?}: {other:?}"),
    }
}

fn denied(policy: &Policy, pod: &Pod) -> Denial {
    match policy.decide(pod, &Surroundings::default()) {
        Decision::Deny(denial) => denial,
        other => panic!("{pod:?}: {other:?}"),
    }
}

#[test]
fn a_pod_has_the_role_that_its_annotation_names() {
    let without_base = Policy { base: None, ..policy() };
    let with_default = Policy { default_role: Some(arn("default")), ..policy() };
    for (policy, annotation, expected) in [
        (&policy(), "web", "arn:aws:iam::111122223333:role/web"),
        (&policy(), "/web", "arn:aws:iam::111122223333:role/web"),
        (&policy(), "team/web", "arn:aws:iam::111122223333:role/team/web"),
        (&policy(), "arn:aws-cn:iam::444455556666:role/other", "arn:aws-cn:iam::444455556666:role/other"),
        (&without_base, "arn:aws:iam::444455556666:role/other", "arn:aws:iam::444455556666:role/other"),
        (&with_default, "web", "arn:aws:iam::111122223333:role/web"),
    ] {
        assert_eq!(allowed(policy, &pod_with(annotation)).role().as_str(), expected, "{annotation}");
    }
}

#[test]
fn a_pod_without_an_annotation_has_the_default_role_or_none() {
    assert_eq!(denied(&policy(), &pod()), Denial::NoRole);
    let with_default = Policy { default_role: Some(arn("default")), ..policy() };
    assert_eq!(allowed(&with_default, &pod()).role(), &arn("default"));
}

#[test]
fn an_annotation_that_cannot_be_read_denies_and_never_falls_back_to_the_default() {
    use ParseError::*;
    let with_default = Policy { default_role: Some(arn("default")), ..policy() };
    let without_base = Policy { base: None, default_role: Some(arn("default")), ..policy() };
    let long = "n".repeat(65);
    for (policy, annotation, expected) in [
        (&with_default, "", Denial::EmptyRole),
        (&without_base, "", Denial::EmptyRole),
        (&with_default, " ", Denial::BadRole(RoleName)),
        (&with_default, "/", Denial::BadRole(RoleName)),
        (&with_default, "//web", Denial::BadRole(Path)),
        (&with_default, "web ", Denial::BadRole(RoleName)),
        (&with_default, "web\n", Denial::BadRole(RoleName)),
        (&with_default, "w*b", Denial::BadRole(RoleName)),
        (&with_default, &long, Denial::BadRole(RoleName)),
        (&with_default, "arn:", Denial::BadRole(NotARoleArn)),
        (&with_default, "arn:aws:iam::111122223333:user/web", Denial::BadRole(NotARoleArn)),
        (&with_default, "arn:aws:iam::1:role/web", Denial::BadRole(Account)),
        (&with_default, "arn:aws:sts::111122223333:assumed-role/web/s", Denial::BadRole(NotARoleArn)),
        (&without_base, "web", Denial::NoBaseArn),
    ] {
        assert_eq!(denied(policy, &pod_with(annotation)), expected, "{annotation:?}");
    }
}

#[test]
fn the_external_id_is_the_pods_own() {
    let with = |id: &str| Pod { external_id: Some(id.to_owned()), ..pod_with("web") };
    assert_eq!(allowed(&policy(), &pod_with("web")).external_id(), None);
    assert_eq!(allowed(&policy(), &with("abc-1")).external_id().map(ExternalId::as_str), Some("abc-1"));
    for bad in ["", "x", "a b", "a\nb", &"x".repeat(1225)] {
        assert_eq!(denied(&policy(), &with(bad)), Denial::BadExternalId(ParseError::ExternalId), "{bad:?}");
    }
}

#[test]
fn a_bad_external_id_denies_the_default_role_too() {
    let with_default = Policy { default_role: Some(arn("default")), ..policy() };
    let pod = Pod { external_id: Some(String::new()), ..pod() };
    assert_eq!(denied(&with_default, &pod), Denial::BadExternalId(ParseError::ExternalId));
}

#[test]
fn the_session_is_named_by_the_annotation_or_after_the_pod() {
    let with = |name: &str| Pod { session_name: Some(name.to_owned()), ..pod_with("web") };
    assert_eq!(allowed(&policy(), &pod_with("web")).session_name().as_str(), "web-7f9c-abcde");
    assert_eq!(allowed(&policy(), &with("batch@night")).session_name().as_str(), "batch@night");
    for bad in ["", "x", "a b", "a/b", &"x".repeat(65)] {
        assert_eq!(denied(&policy(), &with(bad)), Denial::BadSessionName(ParseError::SessionName), "{bad:?}");
    }
    let long = Pod { name: format!("{}-abcde", "n".repeat(100)), ..pod_with("web") };
    assert!(allowed(&policy(), &long).session_name().as_str().ends_with("-abcde"));
}

#[test]
fn the_session_lasts_as_long_as_the_operator_says() {
    let long = Policy { session_duration: Duration::from_secs(7200), ..policy() };
    assert_eq!(allowed(&long, &pod_with("web")).duration(), Duration::from_secs(7200));
}

/// The request is the key of the session cache: two of them are one key exactly where STS is told the same.
#[test]
fn requests_are_equal_where_sts_is_told_the_same() {
    let same = allowed(&policy(), &pod_with("web"));
    let of_another_pod = Pod { uid: PodUid("uid-2".into()), namespace: "other".to_owned(), ..pod_with("/web") };
    assert_eq!(same, allowed(&policy(), &of_another_pod));
    let different = [
        allowed(&policy(), &pod_with("web2")),
        allowed(&policy(), &pod_with("path/web")),
        allowed(&policy(), &pod_with("arn:aws:iam::444455556666:role/web")),
        allowed(&policy(), &Pod { external_id: Some("id".to_owned()), ..pod_with("web") }),
        allowed(&policy(), &Pod { external_id: Some("id2".to_owned()), ..pod_with("web") }),
        allowed(&policy(), &Pod { session_name: Some("session".to_owned()), ..pod_with("web") }),
        allowed(&policy(), &Pod { name: "web-7f9c-fghij".to_owned(), ..pod_with("web") }),
        allowed(&Policy { session_duration: Duration::from_secs(3601), ..policy() }, &pod_with("web")),
    ];
    let keys: HashSet<_> = different.into_iter().chain([same.clone(), same]).collect();
    assert_eq!(keys.len(), 9);
}

#[test]
fn a_namespace_limits_the_roles_of_its_pods() {
    use Denial::*;
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
        // What the author of a malformed list meant is not known, so it allows nothing.
        (glob, known(Some("")), "web", Err(BadNamespaceList)),
        (glob, known(Some("web")), "web", Err(BadNamespaceList)),
        (glob, known(Some(r#""web""#)), "web", Err(BadNamespaceList)),
        (glob, known(Some(r#"{"web": true}"#)), "web", Err(BadNamespaceList)),
        (glob, known(Some("null")), "web", Err(BadNamespaceList)),
        (glob, known(Some(r#"["web", 1]"#)), "web", Err(BadNamespaceList)),
        (glob, known(Some(r#"["web"] ["db"]"#)), "web", Err(BadNamespaceList)),
        (glob, known(Some(r#"["web", ""]"#)), "web", Err(BadNamespaceList)),
        (regexp, known(Some(r#"["web", "("]"#)), "web", Err(BadNamespaceList)),
        (regexp, known(Some(r#"["(", "web"]"#)), "web", Err(BadNamespaceList)),
    ] {
        let settings = |restrictions| Policy { base: Some(base.clone()), restrictions, patterns, ..policy() };
        let decide = |restrictions| settings(restrictions).decide(&pod_with(role), &around(namespace.as_ref()));
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
fn without_a_base_a_pattern_is_matched_as_it_stands() {
    let enforced = Policy { base: None, restrictions: Restrictions::Enforce, ..policy() };
    let decide = |list| enforced.decide(&pod_with("arn:aws:iam::111122223333:role/web"), &around(Some(&namespace(Some(list)))));
    assert_eq!(decide(r#"["web"]"#), Decision::Deny(Denial::NotAllowedInNamespace));
    assert!(matches!(decide(r#"["*/web"]"#), Decision::Allow { .. }));
    assert!(matches!(decide(r#"["arn:aws:iam::111122223333:role/web"]"#), Decision::Allow { .. }));
}

#[test]
fn the_operators_default_role_needs_no_list() {
    let enforced = Policy { default_role: Some(arn("default")), restrictions: Restrictions::Enforce, ..policy() };
    for namespace in [None, Some(namespace(None)), Some(namespace(Some("[]"))), Some(namespace(Some("malformed")))] {
        for pod in [pod(), pod_with("default")] {
            let decision = enforced.decide(&pod, &around(namespace.as_ref()));
            assert!(matches!(&decision, Decision::Allow { request, audit: None } if *request.role() == arn("default")), "{decision:?}");
        }
        assert!(matches!(enforced.decide(&pod_with("default2"), &around(namespace.as_ref())), Decision::Deny(_)));
    }
}

#[test]
fn no_mode_allows_what_cannot_be_read() {
    for restrictions in [Restrictions::Off, Restrictions::Audit, Restrictions::Enforce] {
        let policy = Policy { restrictions, ..policy() };
        let everything = namespace(Some(r#"["*"]"#));
        for pod in [pod(), pod_with(""), pod_with("we b"), Pod { session_name: Some(String::new()), ..pod_with("web") }] {
            assert!(matches!(policy.decide(&pod, &around(Some(&everything))), Decision::Deny(_)), "{restrictions:?} {pod:?}");
        }
    }
}

#[test]
fn a_denial_does_not_repeat_what_the_pod_says() {
    let denial = denied(&policy(), &pod_with("s3cr3t name"));
    assert!(!format!("{denial} {}", denial.name()).contains("s3cr3t"), "{denial}");
}

//! The sources of roles, names and tags.

use super::*;
use crate::config::ServiceAccountRoles;
use crate::config::session::{SessionScope, SessionTag};
use crate::pods::ServiceAccount;
use crate::role::SessionName;

fn account(role: Option<&str>, eks_role: Option<&str>) -> PodContext {
    let account = ServiceAccount {
        namespace: "default".to_owned(),
        name: "default".to_owned(),
        role: role.map(str::to_owned),
        eks_role: eks_role.map(str::to_owned),
        target_role: None,
    };
    PodContext { service_account: Some(Arc::new(account)), ..PodContext::default() }
}

#[test]
fn a_role_comes_from_the_pod_then_its_service_account_then_the_default() {
    use RoleSource::{EksServiceAccount as OfEks, ServiceAccount as OfAccount};
    use ServiceAccountRoles::{Off, Own, OwnAndEks};
    let bad = |source| Err(Denial::BadRole(source, RoleMistake::Empty));
    let unknown = Err(Denial::ServiceAccountUnknown);
    let nothing = PodContext::default;
    let forbidden = |context: PodContext| PodContext { service_account_forbidden: true, ..context };
    let both = || account(Some("account"), Some("eks"));
    for (service_accounts, default, pod_role, context, expected) in [
        (Own, Some("default"), Some("pod"), both(), Ok("pod")),
        (Own, Some("default"), Some("pod"), nothing(), Ok("pod")),
        (Own, Some("default"), None, both(), Ok("account")),
        (OwnAndEks, Some("default"), None, both(), Ok("account")),
        (Own, Some("default"), None, account(None, Some("eks")), Ok("default")),
        (Own, None, None, account(None, Some("eks")), Err(Denial::NoRole)),
        (OwnAndEks, Some("default"), None, account(None, Some("eks")), Ok("eks")),
        (OwnAndEks, Some("default"), None, account(None, None), Ok("default")),
        (OwnAndEks, None, None, account(None, None), Err(Denial::NoRole)),
        (Off, Some("default"), None, both(), Ok("default")),
        (Off, None, None, both(), Err(Denial::NoRole)),
        (Off, Some("default"), None, nothing(), Ok("default")),
        // A malformed annotation denies. The next source is not used.
        (OwnAndEks, Some("default"), Some(""), both(), bad(RoleSource::Pod)),
        (OwnAndEks, Some("default"), None, account(Some(""), Some("eks")), bad(OfAccount)),
        (OwnAndEks, Some("default"), None, account(None, Some("")), bad(OfEks)),
        (Own, Some("default"), None, account(None, Some("")), Ok("default")),
        // A service account that is not known yet may name a role.
        (Own, Some("default"), None, nothing(), unknown),
        (OwnAndEks, None, None, nothing(), unknown),
        // So may a service account that rolegate may not read. What is already known about it still applies.
        (Own, Some("default"), None, forbidden(nothing()), Err(Denial::ServiceAccountsForbidden)),
        (Own, Some("default"), None, forbidden(both()), Ok("account")),
        (Own, Some("default"), Some("pod"), forbidden(nothing()), Ok("pod")),
        (Off, Some("default"), None, forbidden(nothing()), Ok("default")),
    ] {
        let rules = Rules { service_accounts, default_role: default.map(arn), ..rules() };
        let pod = Pod { role: pod_role.map(str::to_owned), ..pod() };
        let decision = decide(&rules, &pod, &context);
        let found = match &decision {
            Decision::Allow { request, .. } => Ok(request.role().name()),
            Decision::Deny(denial) => Err(*denial),
        };
        assert_eq!(found, expected, "{service_accounts:?} {pod_role:?} {context:?}");
        assert_eq!(policy(&rules).can_decide(&pod, &context), expected != unknown, "{context:?}");
    }
}

#[test]
fn a_pod_without_a_service_account_does_not_wait_for_one() {
    let rules = Rules { service_accounts: ServiceAccountRoles::Own, default_role: Some(arn("default")), ..rules() };
    let pod = Pod { service_account: String::new(), ..pod() };
    assert!(policy(&rules).can_decide(&pod, &PodContext::default()));
    assert_eq!(allowed(&rules, &pod).role(), &arn("default"));
}

#[test]
fn a_role_of_a_service_account_is_limited_like_any_other() {
    let rules = Rules {
        service_accounts: ServiceAccountRoles::Own,
        restrictions: Restrictions::Enforce,
        allowed_roles: Some(vec!["a*".to_owned()]),
        ..rules()
    };
    let listed = |role, list| PodContext { namespace: context(Some(&namespace(Some(list)))).namespace, ..account(Some(role), None) };
    assert!(matches!(decide(&rules, &pod(), &listed("a1", r#"["a1"]"#)), Decision::Allow { .. }));
    assert_eq!(decide(&rules, &pod(), &listed("a1", "[]")), Decision::Deny(Denial::NotAllowedInNamespace));
    assert_eq!(decide(&rules, &pod(), &listed("b1", r#"["b1"]"#)), Decision::Deny(Denial::NotAllowedOnNode));
}

fn named(template: &str, scope: SessionScope) -> Rules {
    let sessions = SessionRules {
        cluster: "prod".to_owned(),
        node: "node-a".to_owned(),
        name: template.parse().unwrap(),
        scope,
        ..SessionRules::default()
    };
    Rules { sessions, ..rules() }
}

#[test]
fn sessions_are_named_by_the_template() {
    let pod = Pod { service_account: "robot".to_owned(), name: "web-0".to_owned(), namespace: "shop".to_owned(), ..pod_with("path/web") };
    for (template, expected) in [
        ("{pod}", "web-0"),
        ("{cluster}.{node}.{namespace}.{pod}", "prod.node-a.shop.web-0"),
        ("{serviceaccount}@{role}", "robot@web"),
        ("a b/{pod}", "a-b-web-0"),
        ("x", "pod-x"),
        (&format!("{}.{{pod}}", "n".repeat(60)), &format!("{}.b-0", "n".repeat(60))),
    ] {
        assert_eq!(allowed(&named(template, SessionScope::Pod), &pod).session_name().as_str(), expected, "{template}");
    }
    let annotated = Pod { session_name: Some("own-name".to_owned()), ..pod };
    assert_eq!(allowed(&named("{pod}", SessionScope::Pod), &annotated).session_name().as_str(), "own-name");
}

#[test]
fn pods_of_one_role_share_a_session_in_role_scope() {
    let rules = named("{cluster}-{role}", SessionScope::Role);
    let request = allowed(&rules, &pod_with("web"));
    assert_eq!(request.session_name().as_str(), "prod-web");
    let other = Pod { name: "other".to_owned(), uid: PodUid("uid-2".into()), session_name: Some("own".to_owned()), ..pod_with("web") };
    assert_eq!(allowed(&rules, &other), request);
    assert_ne!(allowed(&rules, &pod_with("db")), request);
    let odd = Pod { session_name: Some("a b".to_owned()), ..pod_with("web") };
    assert_eq!(allowed(&rules, &odd), request, "an annotation that is not used denies nothing");
}

fn identified(template: &str, scope: SessionScope) -> Rules {
    let rules = named("{role}", scope);
    Rules { sessions: SessionRules { source_identity: Some(template.parse().unwrap()), ..rules.sessions }, ..rules }
}

fn source_identity(rules: &Rules, pod: &Pod) -> Option<String> {
    allowed(rules, pod).source_identity().map(|identity| identity.as_str().to_owned())
}

#[test]
fn source_identities_come_only_from_their_own_template() {
    let pod = Pod { service_account: "robot".to_owned(), name: "web-0".to_owned(), namespace: "shop".to_owned(), ..pod_with("path/web") };
    assert_eq!(source_identity(&named("{namespace}.{pod}", SessionScope::Pod), &pod), None);
    for (template, expected) in [
        ("{namespace}.{pod}", "shop.web-0"),
        ("{cluster}.{node}@{serviceaccount}={role}", "prod.node-a@robot=web"),
        ("aws:{pod}", "aws-web-0"),
        ("x", "pod-x"),
    ] {
        assert_eq!(source_identity(&identified(template, SessionScope::Pod), &pod).as_deref(), Some(expected), "{template}");
    }
    let rules = identified("{namespace}.{pod}", SessionScope::Pod);
    let annotated =
        Pod { session_name: Some("kube-system.dns".to_owned()), external_id: Some("kube-system.dns".to_owned()), ..pod.clone() };
    assert_eq!(source_identity(&rules, &annotated).as_deref(), Some("shop.web-0"));
    let explained = policy(&rules).explain(&pod, &PodContext::default());
    let step = explained.steps.iter().find(|step| step.what == What::SourceIdentity).unwrap();
    assert_eq!((step.source.as_str(), step.detail.as_str()), ("--source-identity", "shop.web-0"));
    let json = serde_json::to_value(&explained.decision).unwrap();
    assert_eq!(json["allow"]["request"]["source_identity"], "shop.web-0");
}

/// The key of the session cache is everything that is sent to STS.
#[test]
fn requests_with_different_source_identities_are_different_keys() {
    // Nothing else differs here: the pods have the same name, and sessions are not bound to one pod.
    let of_template = |template: &str| allowed(&identified(template, SessionScope::Role), &pod_with("web"));
    let requests = [of_template("one"), of_template("two"), allowed(&named("{role}", SessionScope::Role), &pod_with("web"))];
    let keys: HashSet<_> = requests.iter().collect();
    assert_eq!(keys.len(), 3);
    assert_eq!(of_template("{cluster}.{role}"), of_template("prod.web"), "the rendered value is the key, not the template");
}

#[test]
fn tags_describe_the_pod_and_are_part_of_the_session() {
    let mut rules = named("{role}", SessionScope::Pod);
    rules.sessions.tags = SessionTag::NAMES.iter().map(|(_, tag)| *tag).collect();
    let first = Pod { service_account: "robot".to_owned(), ..pod_with("web") };
    let request = allowed(&rules, &first);
    let tags: Vec<_> = request.tags().iter().map(|tag| (tag.key(), tag.value())).collect();
    let expected = [
        ("kubernetes-cluster-name", "prod"),
        ("kubernetes-namespace", "default"),
        ("kubernetes-service-account", "robot"),
        ("kubernetes-pod-name", "web-7f9c-abcde"),
        ("kubernetes-pod-uid", "uid-1"),
        ("kubernetes-node-name", "node-a"),
    ];
    assert_eq!(tags, expected);
    for other in [
        Pod { uid: PodUid("uid-2".into()), ..first.clone() },
        Pod { name: "other".to_owned(), ..first.clone() },
        Pod { namespace: "other".to_owned(), ..first.clone() },
        Pod { service_account: "other".to_owned(), ..first.clone() },
    ] {
        assert_ne!(allowed(&rules, &other), request, "the tags are not part of the key: {other:?}");
    }
    rules.sessions.tags = vec![];
    assert!(allowed(&rules, &first).tags().is_empty());
}

proptest::proptest! {
    /// For any annotations, the policy decides without a panic, the explanation agrees with the decision, and everything sent
    /// to STS is valid.
    #[test]
    fn no_annotation_makes_the_policy_panic(
        role in "(arn:aws:iam::111122223333:role/|arn|web|[:/ \n*]|\\PC){0,6}",
        id in proptest::option::of("(ab|[ :/]|\\PC){0,4}"),
        session in proptest::option::of("(ab|[ :/]|\\PC){0,4}"),
        name in "\\PC{0,80}",
        cluster in "\\PC{0,300}",
    ) {
        let mut rules = named("{cluster}{pod}", SessionScope::Pod);
        rules.sessions.cluster = cluster;
        rules.sessions.tags = vec![SessionTag::Cluster];
        rules.sessions.source_identity = Some(rules.sessions.name.clone());
        let pod = Pod { external_id: id, session_name: session, name, ..pod_with(&role) };
        if let Decision::Allow { request, .. } = decide(&rules, &pod, &PodContext::default()) {
            proptest::prop_assert!(request.session_name().as_str().parse::<SessionName>().is_ok());
            // A source identity has the same form as a session name.
            proptest::prop_assert!(request.source_identity().is_some_and(|identity| identity.as_str().parse::<SessionName>().is_ok()));
            proptest::prop_assert!(request.role().as_str().parse::<RoleArn>().is_ok());
            for tag in request.tags() {
                proptest::prop_assert!(tag.value().len() <= 256);
                proptest::prop_assert!(tag.value().chars().all(|c| c.is_ascii_alphanumeric() || " _.:/=+-@".contains(c)), "{:?}", tag);
            }
        }
    }
}

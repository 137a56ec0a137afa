//! Target roles, which the session of the pod's role assumes.

use super::*;
use crate::config::ServiceAccountRoles;
use crate::config::session::SessionTag;
use crate::pods::ServiceAccount;

const PARTNER: &str = "arn:aws:iam::444455556666:role/partner";

fn named(role: Option<&str>, target: Option<&str>) -> Pod {
    Pod { role: role.map(str::to_owned), target_role: target.map(str::to_owned), ..pod() }
}

fn chained() -> Pod {
    named(Some("web"), Some(PARTNER))
}

/// The service account with a role annotation, an EKS one, and a target.
fn account([role, eks_role, target_role]: [Option<&str>; 3]) -> PodContext {
    let [role, eks_role, target_role] = [role, eks_role, target_role].map(|text| text.map(str::to_owned));
    let account = ServiceAccount { namespace: "default".to_owned(), name: "default".to_owned(), role, eks_role, target_role };
    PodContext { service_account: Some(Arc::new(account)), ..PodContext::default() }
}

#[test]
fn a_target_role_comes_from_the_object_that_names_the_role() {
    use ServiceAccountRoles::{Off, Own, OwnAndEks};
    let (pod_alone, account_alone) = ([Some("web"), Some(PARTNER)], [None, None]);
    let without = |source| Err(Denial::TargetWithoutRole(source));
    let (of_pod, of_account) = (without(RoleSource::PodTarget), without(RoleSource::ServiceAccountTarget));
    let both = Ok(("web", Some("partner")));
    for (service_accounts, [role, target], of_service_account, expected) in [
        (Off, pod_alone, [None; 3], both),
        (Own, pod_alone, [None; 3], both),
        // A pod with a role of its own uses nothing of its service account.
        (OwnAndEks, [Some("web"), None], [Some("other"), Some("eks"), Some("third")], Ok(("web", None))),
        (OwnAndEks, pod_alone, [Some("other"), Some("eks"), Some("third")], both),
        (Own, account_alone, [Some("web"), None, Some(PARTNER)], both),
        (OwnAndEks, account_alone, [Some("web"), Some("eks"), Some(PARTNER)], both),
        (OwnAndEks, account_alone, [None, Some("web"), Some(PARTNER)], both),
        // A target of one object is never combined with a role of another, or with the default role.
        (Off, [None, Some(PARTNER)], [None; 3], of_pod),
        (Own, [None, Some(PARTNER)], [Some("web"), None, None], of_pod),
        (Own, [None, Some(PARTNER)], [Some("web"), None, Some("third")], of_pod),
        (Own, account_alone, [None, None, Some(PARTNER)], of_account),
        (Own, account_alone, [None, Some("eks"), Some(PARTNER)], of_account),
        (Off, account_alone, [Some("web"), None, Some(PARTNER)], Ok(("default", None))),
    ] {
        for default in [None, Some("default")] {
            let rules = Rules { service_accounts, default_role: default.map(arn), ..rules() };
            let decision = decide(&rules, &named(role, target), &account(of_service_account));
            let found = match &decision {
                Decision::Allow { request, .. } => match request.source_role() {
                    Some(source) => Ok((source.name(), Some(request.role().name()))),
                    None => Ok((request.role().name(), None)),
                },
                Decision::Deny(denial) => Err(*denial),
            };
            let expected = if default.is_none() && expected == Ok(("default", None)) { Err(Denial::NoRole) } else { expected };
            assert_eq!(found, expected, "{role:?} {target:?} {of_service_account:?} {default:?}");
        }
    }
}

#[test]
fn a_malformed_target_denies_and_never_leaves_the_first_role_alone() {
    let without_base = Rules { base: None, ..rules() };
    let full = format!("{BASE}web");
    for (rules, target, mistake) in [
        (&rules(), "", RoleMistake::Empty),
        (&rules(), "a b", RoleMistake::Spaces),
        (&rules(), "a\nb", RoleMistake::ControlCharacters),
        (&rules(), "arn:aws:iam::1:role/web", RoleMistake::Form(ParseError::Account)),
        (&without_base, "partner", RoleMistake::NoBaseArn),
    ] {
        assert_eq!(denied(rules, &named(Some(&full), Some(target))), Denial::BadRole(RoleSource::PodTarget, mistake), "{target:?}");
        let accounts = Rules { service_accounts: ServiceAccountRoles::Own, ..rules.clone() };
        let decision = decide(&accounts, &pod(), &account([Some(&full), None, Some(target)]));
        assert_eq!(decision, Decision::Deny(Denial::BadRole(RoleSource::ServiceAccountTarget, mistake)), "{target:?}");
    }
    assert_eq!(denied(&rules(), &named(Some(""), Some(PARTNER))), Denial::BadRole(RoleSource::Pod, RoleMistake::Empty));
}

/// Each limit refuses the pair if it refuses either role.
#[test]
fn both_roles_are_subject_to_every_limit() {
    let on = |rules: Rules| {
        move |role: &str, target: &str, list: &str| decide(&rules, &named(Some(role), Some(target)), &context(Some(&namespace(Some(list)))))
    };
    let is_allowed = |decision: &Decision| matches!(decision, Decision::Allow { audit: None, .. });
    let enforced = on(Rules { restrictions: Restrictions::Enforce, ..rules() });
    let lists = [r#"["web", "arn:aws:iam::444455556666:role/partner"]"#, r#"["web"]"#, r#"["arn:aws:iam::444455556666:role/partner"]"#];
    assert!(is_allowed(&enforced("web", PARTNER, lists[0])));
    let not_allowed = Denial::NotAllowedInNamespace;
    assert_eq!(enforced("web", PARTNER, lists[1]), Decision::Deny(not_allowed.of_target()));
    assert_eq!(enforced("web", PARTNER, lists[2]), Decision::Deny(not_allowed));
    let ceiling = |list: &[&str]| on(Rules { allowed_roles: Some(list.iter().map(|text| (*text).to_owned()).collect()), ..rules() });
    assert!(is_allowed(&ceiling(&["web", PARTNER])("web", PARTNER, "[]")));
    assert_eq!(ceiling(&["web"])("web", PARTNER, "[]"), Decision::Deny(Denial::NotAllowedOnNode.of_target()));
    assert_eq!(ceiling(&[PARTNER])("web", PARTNER, "[]"), Decision::Deny(Denial::NotAllowedOnNode));
    let any = on(rules());
    assert_eq!(any("web", "nodes", "[]"), Decision::Deny(Denial::NodeRole.of_target()));
    assert_eq!(any("nodes", PARTNER, "[]"), Decision::Deny(Denial::NodeRole));
    assert_eq!(any("web", "arn:aws-cn:iam::444455556666:role/partner", "[]"), Decision::Deny(Denial::OtherPartition.of_target()));
    // The exception for the default role is for that role alone.
    let default = on(Rules { restrictions: Restrictions::Enforce, default_role: Some(arn("web")), ..rules() });
    assert_eq!(default("web", PARTNER, "[]"), Decision::Deny(not_allowed.of_target()));
    assert!(is_allowed(&default("web", "web", "[]")));
}

#[test]
fn audit_mode_says_which_role_would_be_refused() {
    let rules = Rules { restrictions: Restrictions::Audit, ..rules() };
    for (list, refused) in [(r#"["web"]"#, PARTNER), ("[\"arn:aws:iam::444455556666:role/partner\"]", "arn:aws:iam::111122223333:role/web")]
    {
        let Decision::Allow { request, audit: Some(denial) } = decide(&rules, &chained(), &context(Some(&namespace(Some(list))))) else {
            panic!("{list}");
        };
        assert_eq!((request.refused_role(denial).as_str(), denial.name()), (refused, "not-allowed-in-namespace"), "{list}");
    }
}

#[test]
fn a_denial_of_the_target_role_keeps_the_reason_and_says_so() {
    for denial in
        [Denial::ForeignAccount, Denial::OtherPartition, Denial::NodeRole, Denial::NotAllowedOnNode, Denial::NotAllowedInNamespace]
    {
        let of_target = denial.of_target();
        assert!(of_target.is_about_target() && !denial.is_about_target());
        assert_eq!((of_target.name(), of_target.is_about_node(), of_target.may_pass()), (denial.name(), denial.is_about_node(), false));
        assert_eq!(of_target.to_string(), format!("the target role is refused: {denial}"));
    }
    for denial in [Denial::NamespaceUnknown, Denial::NamespaceHasNoList, Denial::ContradictedAccount] {
        assert_eq!(denial.of_target(), denial, "it is about both roles");
    }
}

/// The key of the session cache is everything that is sent to STS, in both calls.
#[test]
fn requests_differ_by_each_of_the_two_roles() {
    let rules =
        Rules { sessions: SessionRules { scope: SessionScope::Role, name: "x".parse().unwrap(), ..SessionRules::default() }, ..rules() };
    let pods = [chained(), named(Some("db"), Some(PARTNER)), named(Some("web"), Some("db")), named(Some(PARTNER), None)];
    let keys: HashSet<_> = pods.iter().map(|pod| allowed(&rules, pod)).collect();
    assert_eq!(keys.len(), pods.len());
    let request = allowed(&rules, &chained());
    assert_eq!(request.roles().map(RoleArn::as_str).collect::<Vec<_>>(), ["arn:aws:iam::111122223333:role/web", PARTNER]);
    let json = serde_json::to_value(&request).unwrap();
    assert_eq!((&json["role"], &json["source_role"]), (&PARTNER.into(), &"arn:aws:iam::111122223333:role/web".into()));
    assert_eq!(policy(&rules).named_role(&chained(), &PodContext::default()).unwrap().as_str(), PARTNER);
}

#[test]
fn a_session_of_a_target_role_lasts_an_hour_at_most() {
    let seconds = Duration::from_secs;
    for (configured, expected) in [(900, 900), (3600, 3600), (43_200, 3600)] {
        let rules = Rules { session_duration: seconds(configured), ..rules() };
        let request = allowed(&rules, &chained());
        assert_eq!((request.duration(), request.configured_duration()), (seconds(expected), seconds(configured)));
        assert_eq!(allowed(&rules, &pod_with("web")).duration(), seconds(configured));
        let is_cut = policy(&rules).explain(&chained(), &PodContext::default()).steps.iter().any(|step| step.what == What::SessionDuration);
        assert_eq!(is_cut, expected < configured);
    }
}

#[test]
fn names_of_sessions_use_the_target_role() {
    let sessions = SessionRules { name: "{role}".parse().unwrap(), scope: SessionScope::Role, ..SessionRules::default() };
    assert_eq!(allowed(&Rules { sessions, ..rules() }, &chained()).session_name().as_str(), "partner");
}

#[test]
fn transitive_tags_are_part_of_the_request() {
    let of = |tags: Vec<SessionTag>, transitive_tags| {
        let sessions = SessionRules { tags, transitive_tags, ..SessionRules::default() };
        let rules = Rules { sessions, ..rules() };
        let steps = policy(&rules).explain(&pod_with("web"), &PodContext::default()).steps;
        let text = steps.into_iter().find(|step| step.what == What::SessionTags).map(|step| step.detail);
        (allowed(&rules, &pod_with("web")), text.unwrap_or_default())
    };
    let (plain, plain_text) = of(vec![SessionTag::Namespace], false);
    let (transitive, text) = of(vec![SessionTag::Namespace], true);
    assert!(!plain.has_transitive_tags() && transitive.has_transitive_tags());
    assert_ne!(plain, transitive, "STS is told something else");
    assert_eq!(text, format!("{plain_text} (transitive)"));
    assert_eq!(of(vec![], true).0, of(vec![], false).0, "there is nothing to pass on");
}

proptest::proptest! {
    /// For any annotations, a request for two roles is one in which the same pod would get each of the two alone.
    #[test]
    fn a_pair_is_allowed_only_if_each_role_is(
        role in "(arn:aws:iam::111122223333:role/|web|nodes|a|b|[:/ \n*]){0,3}",
        target in "(arn:aws:iam::111122223333:role/|web|nodes|a|b|[:/ \n*]){0,3}",
    ) {
        let rules = Rules { restrictions: Restrictions::Enforce, allowed_roles: Some(vec!["*a*".to_owned(), "*b*".to_owned()]), ..rules() };
        let around = context(Some(&namespace(Some(r#"["*a", "*web"]"#))));
        let is_allowed = |pod: &Pod| matches!(decide(&rules, pod, &around), Decision::Allow { .. });
        let [alone, other] = [&role, &target].map(|text| is_allowed(&named(Some(text), None)));
        proptest::prop_assert_eq!(is_allowed(&named(Some(&role), Some(&target))), alone && other);
    }
}

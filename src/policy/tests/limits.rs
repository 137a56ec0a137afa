//! The limits of the node and the namespace on roles.

use super::*;
use crate::policy::node::{INTERMEDIATE, OWN};

const PARTITIONS: [&str; 8] = ["aws", "aws-cn", "aws-us-gov", "aws-eusc", "aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f"];

#[test]
fn allowed_roles_of_the_node_limit_every_role() {
    let ceiling = |patterns: &[&str]| Some(patterns.iter().map(|pattern| (*pattern).to_owned()).collect());
    for (patterns, role, expected) in [
        (&["web"][..], "web", true),
        (&["web"], "web-admin", false),
        (&["web"], "team/web", false),
        (&["db", "web*"], "web-admin", true),
        (&["team/*"], "team/web", true),
        (&["*"], "web", true),
        (&["*"], "arn:aws:iam::444455556666:role/web", false),
        (&["arn:aws:iam::444455556666:role/*"], "arn:aws:iam::444455556666:role/web", true),
        (&[], "web", false),
    ] {
        let rules = Rules { allowed_roles: ceiling(patterns), ..rules() };
        let decision = decide(&rules, &pod_with(role), &PodContext::default());
        let by_default = Rules { default_role: Some(allowed(&super::rules(), &pod_with(role)).role), ..rules };
        assert_eq!(policy(&by_default).allows_default_role(), expected, "{role} by {patterns:?}");
        for decision in [decision, decide(&by_default, &pod(), &PodContext::default())] {
            match decision {
                Decision::Allow { .. } => assert!(expected, "{role} by {patterns:?}"),
                Decision::Deny(denial) => assert_eq!((denial, expected), (Denial::NotAllowedOnNode, false), "{role} by {patterns:?}"),
            }
        }
    }
    let unreadable = Rules { allowed_roles: ceiling(&[""]), ..rules() };
    assert_eq!(Policy::new(unreadable, NodeIdentity::default()).err(), Some(Mistake::EmptyPattern));
}

#[test]
fn audit_mode_does_not_lift_the_limits_of_the_node() {
    let audit = Rules { restrictions: Restrictions::Audit, allowed_roles: Some(vec!["web".to_owned()]), ..rules() };
    assert_eq!(decide(&audit, &pod_with("db"), &PodContext::default()), Decision::Deny(Denial::NotAllowedOnNode));
    assert_eq!(decide(&audit, &pod_with("nodes"), &PodContext::default()), Decision::Deny(Denial::NodeRole));
}

/// Creates the policy of a node that is `NODE`, on an instance with this role.
fn policy_on(rules: &Rules, instance_role: Option<&str>) -> Policy {
    let node = NodeIdentity::from(NODE.parse::<CallerIdentity>().unwrap());
    node.set_instance_role(instance_role.map(arn));
    Policy::new(rules.clone(), node).unwrap()
}

#[test]
fn the_nodes_own_role_is_not_for_pods() {
    let allowing = Rules { allow_node_role: true, ..rules() };
    for (rules, instance, role, expected) in [
        (rules(), None, "nodes", false),
        (rules(), None, "path/nodes", false),
        (rules(), None, "Nodes", false),
        (rules(), None, "arn:aws:iam::444455556666:role/nodes", true),
        (rules(), None, "nodes2", true),
        (rules(), None, "nodes/web", true),
        (rules(), Some("instance"), "instance", false),
        (rules(), Some("instance"), "path/Instance", false),
        (rules(), Some("instance"), "nodes", false),
        (rules(), Some("instance"), "web", true),
        (rules(), Some("instance"), "arn:aws:iam::444455556666:role/instance", true),
        (allowing.clone(), Some("instance"), "instance", true),
        (allowing.clone(), Some("instance"), "nodes", true),
    ] {
        let by_default = Rules { default_role: Some(allowed(&allowing, &pod_with(role)).role), ..rules.clone() };
        for decision in [
            decide_by(&policy_on(&rules, instance), &pod_with(role), &PodContext::default()),
            decide_by(&policy_on(&by_default, instance), &pod(), &PodContext::default()),
        ] {
            match decision {
                Decision::Allow { .. } => assert!(expected, "{role}"),
                Decision::Deny(denial) => assert_eq!((denial, expected), (Denial::NodeRole, false), "{role}"),
            }
        }
    }
}

#[test]
fn a_role_is_in_the_partition_of_the_node() {
    let role = |partition: &str| format!("arn:{partition}:iam::444455556666:role/web");
    let china = Rules { base: Some("arn:aws-cn:iam::111122223333:role/".parse().unwrap()), ..rules() };
    for partition in PARTITIONS {
        let pod = pod_with(&role(partition));
        let caller = format!("arn:{partition}:sts::111122223333:assumed-role/nodes/i-0").parse::<CallerIdentity>().unwrap();
        let here = Policy::new(rules(), caller.into()).unwrap();
        assert!(matches!(decide_by(&here, &pod, &PodContext::default()), Decision::Allow { .. }), "{partition}");
        for other in PARTITIONS.iter().filter(|other| **other != partition) {
            let elsewhere = decide_by(&here, &pod_with(&role(other)), &PodContext::default());
            assert_eq!(elsewhere, Decision::Deny(Denial::OtherPartition), "{other} in {partition}");
        }
        // Until the node's identity is known, the base ARN's partition applies.
        let early = Policy::new(china.clone(), NodeIdentity::default()).unwrap();
        let decision = decide_by(&early, &pod, &PodContext::default());
        assert_eq!(matches!(decision, Decision::Allow { .. }), partition == "aws-cn", "{partition}");
    }
}

#[test]
fn the_nodes_identity_applies_once_it_is_known() {
    let node = NodeIdentity::default();
    let policy = Policy::new(Rules { base: None, ..rules() }, node.clone()).unwrap();
    let (own, foreign) = (pod_with(&format!("{BASE}nodes")), pod_with("arn:aws-cn:iam::111122223333:role/web"));
    assert!(!policy.knows_node());
    for pod in [&own, &foreign] {
        assert!(matches!(decide_by(&policy, pod, &PodContext::default()), Decision::Allow { .. }));
    }
    let unknown = policy.node_version();
    assert!(node.set_caller(NODE.parse().unwrap()));
    assert!(policy.knows_node());
    assert_eq!(decide_by(&policy, &own, &PodContext::default()), Decision::Deny(Denial::NodeRole));
    assert_eq!(decide_by(&policy, &foreign, &PodContext::default()), Decision::Deny(Denial::OtherPartition));
    // It also applies when the identity changes to that of another role, and when the instance's role becomes known.
    let first = policy.node_version();
    assert!(!node.set_caller(NODE.parse().unwrap()), "the identity did not change");
    assert_eq!((policy.node_version() == first, first == unknown), (true, false));
    assert!(node.set_caller("arn:aws:sts::111122223333:assumed-role/others/i-0f1e2d3c".parse().unwrap()));
    assert!(matches!(decide_by(&policy, &own, &PodContext::default()), Decision::Allow { .. }));
    assert_eq!(decide_by(&policy, &pod_with(&format!("{BASE}others")), &PodContext::default()), Decision::Deny(Denial::NodeRole));
    let second = policy.node_version();
    assert!(node.set_instance_role(Some(arn("nodes"))));
    assert_eq!(decide_by(&policy, &own, &PodContext::default()), Decision::Deny(Denial::NodeRole));
    assert!(second != first && policy.node_version() != second);
    assert!(Denial::NodeRole.is_about_node() && Denial::OtherPartition.is_about_node() && !Denial::NoRole.is_about_node());
}

/// The daemon's own identity is `NODE`; the intermediate role is `between`.
#[test]
fn pods_get_neither_the_intermediate_nor_the_base_role() {
    let (node, intermediate) = (NodeIdentity::default(), "arn:aws:sts::111122223333:assumed-role/between/rolegate-node-a");
    node.expect_intermediate();
    let early = node.generation();
    node.expect_intermediate();
    assert_eq!(node.generation(), early);
    let policy = Policy::new(rules(), node.clone()).unwrap();
    let denied = |role: &str| decide_by(&policy, &pod_with(role), &PodContext::default()) == Decision::Deny(Denial::NodeRole);
    assert!(!policy.knows_node());
    // One identity is not enough, whichever becomes known first. But a known one is already refused.
    assert!(node.set_intermediate(intermediate.parse().unwrap()));
    assert!(!policy.knows_node() && denied("path/between"));
    assert!(node.set_caller(NODE.parse().unwrap()));
    assert!(policy.knows_node());
    for (role, expected) in [("nodes", true), ("path/Nodes", true), ("between", true), ("web", false), ("nodes2", false)] {
        assert_eq!(denied(role), expected, "{role}");
    }
    let steps = policy.explain(&pod_with("web"), &PodContext::default()).steps;
    let sources: Vec<_> = steps.iter().filter(|step| step.what == What::NodeRole).map(|step| step.source.as_str()).collect();
    assert_eq!(sources, [OWN, INTERMEDIATE]);
    // A new session of the intermediate role, and a new base role: decisions are made again.
    let version = policy.node_version();
    assert!(!node.set_intermediate(intermediate.parse().unwrap()) && policy.node_version() == version);
    assert!(node.set_caller("arn:aws:sts::111122223333:assumed-role/others/i-0".parse().unwrap()));
    assert!(policy.node_version() != version && denied("others") && !denied("nodes") && denied("between"));
    let allowing = Policy::new(Rules { allow_node_role: true, ..rules() }, node).unwrap();
    for role in ["others", "between"] {
        assert!(matches!(decide_by(&allowing, &pod_with(role), &PodContext::default()), Decision::Allow { .. }), "{role}");
    }
}

#[test]
fn the_base_role_is_refused_before_the_intermediate_is_known() {
    let node = NodeIdentity::from(NODE.parse::<CallerIdentity>().unwrap());
    node.expect_intermediate();
    let policy = Policy::new(rules(), node).unwrap();
    assert!(!policy.knows_node());
    assert_eq!(decide_by(&policy, &pod_with("nodes"), &PodContext::default()), Decision::Deny(Denial::NodeRole));
    let steps = policy.explain(&pod_with("web"), &PodContext::default()).steps;
    let told: Vec<_> = steps.iter().filter(|step| step.what == What::NodeRole).map(|step| (step.verdict, step.source.as_str())).collect();
    assert_eq!(told, [(StepVerdict::Passed, OWN), (StepVerdict::Skipped, INTERMEDIATE)]);
}

#[test]
fn either_annotation_of_a_namespace_allows_and_a_bad_one_allows_nothing() {
    use Denial::*;
    let large = "x".repeat(1024 * 1024);
    let bad = |which, mistake| Err(BadNamespaceList(which, mistake));
    for (list, permitted, expected) in [
        (None, None, Err(NamespaceHasNoList)),
        (None, Some(".*web"), Ok(())),
        (None, Some("web"), Err(NotAllowedInNamespace)),
        (None, Some(""), Err(NotAllowedInNamespace)),
        (None, Some("arn:aws:iam::111122223333:role/we"), Err(NotAllowedInNamespace)),
        (None, Some("^arn:aws:iam::111122223333:role/w.b$"), Ok(())),
        (Some(r#"["web"]"#), Some("nothing"), Ok(())),
        (Some(r#"["db"]"#), Some(".*/web"), Ok(())),
        (Some(r#"["db"]"#), Some(".*/db"), Err(NotAllowedInNamespace)),
        (Some("[]"), Some(""), Err(NotAllowedInNamespace)),
        (None, Some("("), bad(NamespaceList::Permitted, Mistake::BadPattern)),
        (Some(r#"["web"]"#), Some("("), bad(NamespaceList::Permitted, Mistake::BadPattern)),
        (Some("web"), Some(".*"), bad(NamespaceList::Allowed, Mistake::NotAList)),
        (Some(r#"[""]"#), Some(".*"), bad(NamespaceList::Allowed, Mistake::EmptyPattern)),
        (Some(&large), None, bad(NamespaceList::Allowed, Mistake::TooLarge)),
        (None, Some(&large), bad(NamespaceList::Permitted, Mistake::TooLarge)),
        (Some("[\"we\nb\"]"), None, bad(NamespaceList::Allowed, Mistake::NotAList)),
    ] {
        let namespace = Namespace { permitted: permitted.map(str::to_owned), ..namespace(list) };
        let enforced = policy(&Rules { restrictions: Restrictions::Enforce, ..rules() });
        // The second time from the cache.
        for _ in 0..2 {
            let found = match decide_by(&enforced, &pod_with("web"), &context(Some(&namespace))) {
                Decision::Allow { .. } => Ok(()),
                Decision::Deny(denial) => Err(denial),
            };
            assert_eq!(found, expected, "{:?} {:?}", list.map(str::len), permitted.map(str::len));
        }
    }
}

#[test]
fn reasons_have_distinct_names() {
    use ParseError::*;
    let role = |mistake| Denial::BadRole(RoleSource::Pod, mistake);
    let form = |error| role(RoleMistake::Form(error));
    let list = |mistake| Denial::BadNamespaceList(NamespaceList::Allowed, mistake);
    let all = [
        Denial::NoRole,
        role(RoleMistake::Empty),
        role(RoleMistake::Spaces),
        role(RoleMistake::ControlCharacters),
        role(RoleMistake::NoBaseArn),
        form(NotARoleArn),
        form(UnknownPartition),
        form(Account),
        form(Path),
        form(RoleName),
        form(TooLong),
        Denial::ServiceAccountUnknown,
        Denial::ServiceAccountsForbidden,
        Denial::OtherPartition,
        Denial::NodeRole,
        Denial::NotAllowedOnNode,
        Denial::BadExternalId(ExternalId),
        Denial::NamespaceUnknown,
        Denial::NamespaceHasNoList,
        list(Mistake::NotAList),
        list(Mistake::TooLarge),
        list(Mistake::BadPattern),
        Denial::NotAllowedInNamespace,
    ];
    let names: HashSet<_> = all.iter().map(|denial| denial.name()).collect();
    assert_eq!(names.len(), all.len());
    assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-')), "{names:?}");
}

#[test]
fn an_explanation_names_every_step_and_ends_with_the_refusal() {
    let rules = Rules { restrictions: Restrictions::Enforce, allowed_roles: Some(vec!["w*".to_owned()]), ..rules() };
    let explained = policy(&rules).explain(&pod_with("web"), &context(Some(&namespace(Some(r#"["db"]"#)))));
    let steps: Vec<_> = explained.steps.iter().map(|step| (step.what, step.verdict)).collect();
    let expected = [
        (What::Role, StepVerdict::Passed),
        (What::Partition, StepVerdict::Passed),
        (What::NodeRole, StepVerdict::Passed),
        (What::AllowedRoles, StepVerdict::Passed),
        (What::SessionName, StepVerdict::Passed),
        (What::Namespace, StepVerdict::Skipped),
        (What::Namespace, StepVerdict::Skipped),
        (What::Namespace, StepVerdict::Refused),
    ];
    assert_eq!(steps, expected, "{explained:#?}");
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["decision"]["deny"]["reason"], "not-allowed-in-namespace");
    assert_eq!(json["steps"][0]["source"], "the role annotation of pod default/web-7f9c-abcde");
    assert_eq!(json["steps"][0]["detail"], r#""web" is arn:aws:iam::111122223333:role/web"#);
    assert_eq!(json["steps"][3]["detail"], r#""w*" matches"#);
    let allowed = serde_json::to_value(policy(&rules).explain(&pod_with("web"), &context(Some(&namespace(Some(r#"["web"]"#)))))).unwrap();
    let request = &allowed["decision"]["allow"]["request"];
    assert_eq!(request["role"], "arn:aws:iam::111122223333:role/web");
    assert_eq!((&request["duration_seconds"], &request["external_id"]), (&3600.into(), &serde_json::Value::Bool(false)));
}

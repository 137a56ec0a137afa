#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::document::is_principal;
use super::*;
use crate::config::Restrictions;
use crate::config::host_network::{HostNetworkConfig, HostNetworkMode};
use crate::config::session::SessionTag;
use crate::pods::{HostNetworkRules, Namespace, OwnPodName, Pod, pods};
use crate::policy::node::NodeIdentity;
use crate::policy::{Policy, Rules};

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn arn(name: &str) -> RoleArn {
    format!("{BASE}{name}").parse().unwrap()
}

fn pod(namespace: &str, name: &str, account: &str, role: &str) -> Pod {
    Pod { role: Some(role.to_owned()), service_account: account.to_owned(), ..Pod::for_test(namespace, name) }
}

fn rules(tags: &[SessionTag]) -> Rules {
    let mut rules = Rules { base: Some(BASE.parse().unwrap()), ..Rules::default() };
    rules.sessions.tags = tags.to_vec();
    rules.sessions.cluster = "prod".to_owned();
    rules
}

fn uses(rules: &Rules, all: Vec<Pod>) -> RolesInUse {
    counted(rules, &NodeIdentity::default(), all, Counted { default_role: rules.default_role.as_ref(), ..Counted::default() })
}

/// The namespace `shop` may have the role `web`, and no other namespace any role.
fn counted(rules: &Rules, node: &NodeIdentity, all: Vec<Pod>, counted: Counted<'_>) -> RolesInUse {
    let (writer, pods) = pods();
    writer.write(|index| {
        index.reset(all);
        for (name, list) in [("shop", Some(r#"["web"]"#.to_owned())), ("evil", None), ("books", None)] {
            index.apply_namespace(Namespace { name: name.to_owned(), allowed_roles: list, permitted: None });
        }
    });
    RolesInUse::of(&pods, &Policy::new(rules.clone(), node.clone()).unwrap(), counted)
}

fn settings() -> IamPolicySettings {
    IamPolicySettings { node_role: Some(arn("nodes")), ..IamPolicySettings::default() }
}

fn printed(policies: &IamPolicies) -> String {
    serde_json::to_string_pretty(policies).unwrap()
}

fn reasons(policies: &IamPolicies) -> Vec<&'static str> {
    policies.warnings.iter().map(|warning| warning.reason).collect()
}

fn json(document: &Document) -> serde_json::Value {
    serde_json::to_value(document).unwrap()
}

const PER_NAMESPACE: [SessionTag; 3] = [SessionTag::Namespace, SessionTag::ServiceAccount, SessionTag::Pod];

#[test]
fn roles_without_session_tags() {
    let all = vec![pod("shop", "web-0", "web", "web"), pod("shop", "web-1", "web", "web"), pod("books", "api", "api", "pods/api")];
    let policies = IamPolicies::new(&uses(&rules(&[]), all.clone()), &settings());
    insta::assert_snapshot!(printed(&policies));
    assert_eq!(reasons(&policies), Vec::<&str>::new());
    // The order of the list does not matter.
    let reversed = IamPolicies::new(&uses(&rules(&[]), all.into_iter().rev().collect()), &settings());
    assert_eq!(printed(&reversed), printed(&policies));
}

#[test]
fn session_tags_are_conditions_of_trust_policies() {
    let mut rules = rules(&[&[SessionTag::Cluster][..], &PER_NAMESPACE].concat());
    rules.default_role = Some(arn("default"));
    let external = |name: &str, id: &str| Pod { external_id: Some(id.to_owned()), ..pod("shop", name, "web", "web") };
    let all = vec![
        external("web-0", "shop-id"),
        external("web-1", "other-id"),
        pod("books", "api-0", "api", "web"),
        pod("books", "api-1", "worker", "web"),
        Pod { role: None, ..pod("books", "plain", "default", "") },
    ];
    let settings = IamPolicySettings { has_tags: true, has_source_identity: true, ..settings() };
    let policies = IamPolicies::new(&uses(&rules, all), &settings);
    insta::assert_snapshot!(printed(&policies));
    assert_eq!(reasons(&policies), ["external-ids-differ", "several-external-ids"]);
}

#[test]
fn target_roles_behind_an_intermediate_role() {
    let target = |name: &str, target: &str| Pod {
        target_role: Some(format!("arn:aws:iam::444455556666:role/{target}")),
        external_id: Some("ours".to_owned()),
        ..pod("shop", name, "web", "web")
    };
    let all = vec![target("a", "data"), target("b", "logs"), pod("shop", "c", "web", "plain")];
    let settings = IamPolicySettings { intermediate: Some(arn("hub")), has_tags: true, ..settings() };
    let policies = IamPolicies::new(&uses(&rules(&[SessionTag::Namespace]), all), &settings);
    insta::assert_snapshot!(printed(&policies));
    assert_eq!(policies.one(&OnePolicy::Chain(None)), policies.one(&OnePolicy::Chain(Some(arn("web")))));
    assert_eq!(policies.one(&OnePolicy::Chain(Some(arn("plain")))), Err(NoPolicy::NotOf(arn("plain").to_string())));
    assert!(matches!(policies.one(&OnePolicy::Trust(None)), Err(NoPolicy::Several(roles)) if roles.len() == 5));
}

#[test]
fn other_partitions_keep_their_arns() {
    for partition in ["aws-cn", "aws-us-gov"] {
        let base = format!("arn:{partition}:iam::111122223333:role/");
        let of = Rules { base: Some(base.parse().unwrap()), ..Rules::default() };
        let settings = IamPolicySettings { node_role: Some(format!("{base}nodes").parse().unwrap()), ..IamPolicySettings::default() };
        let policies = IamPolicies::new(&uses(&of, vec![pod("shop", "a", "web", "web")]), &settings);
        let text = printed(&policies);
        assert_eq!(text.matches("arn:").count(), text.matches(&base).count());
        assert_eq!(policies.trust.keys().collect::<Vec<_>>(), [&format!("{base}web")]);
        assert_eq!(json(&policies.trust[&format!("{base}web")])["Statement"][0]["Principal"]["AWS"], format!("{base}nodes"));
    }
}

#[test]
fn wildcards_in_the_path_of_a_role_match_nothing_else() {
    let odd = r#"a*b?c${aws:username}/web"#;
    let policies = IamPolicies::new(&uses(&rules(&[]), vec![pod("shop", "a", "web", odd)]), &settings());
    let escaped = format!("{BASE}a${{*}}b${{?}}c${{$}}{{aws:username}}/web");
    assert_eq!(json(&policies.node[0])["Statement"][0]["Resource"], escaped);
    assert_eq!(json(&policies.node[0])["Version"], "2012-10-17", "older versions have no variables");
    assert_eq!(json(policies.boundary.as_ref().unwrap())["Statement"][1]["NotResource"], escaped);
    // In a pattern of a path, only the last star is one.
    let by_path =
        IamPolicies::new(&uses(&rules(&[]), vec![pod("shop", "a", "web", odd)]), &IamPolicySettings { by_path: true, ..settings() });
    assert_eq!(json(&by_path.node[0])["Statement"][0]["Resource"], escaped.replace("/web", "/*"));
    // A principal has no way to escape them.
    assert!(!is_principal(&arn(odd)) && is_principal(&arn("pods/web")));
    let target = Pod { target_role: Some("data".to_owned()), ..pod("shop", "a", "web", odd) };
    let policies = IamPolicies::new(&uses(&rules(&[]), vec![target]), &settings());
    assert_eq!(reasons(&policies), ["principal"]);
    assert_eq!(policies.trust.keys().collect::<Vec<_>>(), [arn(odd).as_str()]);
}

/// Pods with this many roles, whose ARNs have 79 characters each.
fn many(count: usize, path: &str) -> Vec<Pod> {
    let name = |number: usize| format!("{path}{}{number:04}", "r".repeat(79 - BASE.len() - path.len() - 4));
    (0..count).map(|number| pod("shop", &format!("pod-{number}"), "web", &name(number))).collect()
}

#[test]
fn a_policy_that_is_too_large_is_split() {
    // Each role takes its ARN, two quotes and a comma.
    let of_one = 79 + 3;
    for count in [1, 70, 73, 74, 75, 130, 800] {
        let policies = IamPolicies::new(&uses(&rules(&[]), many(count, "")), &settings());
        let parts = &policies.node;
        assert!(parts.iter().all(|part| size(part) <= MANAGED), "{count}");
        let resources = |part: &Document| match json(part)["Statement"][0]["Resource"].clone() {
            serde_json::Value::Array(all) => all.len(),
            _ => 1,
        };
        assert_eq!(parts.iter().map(resources).sum::<usize>(), count, "every role is in exactly one part");
        assert!(parts.iter().rev().skip(1).all(|part| size(part) + of_one > MANAGED), "{count}: a part has room for another role");
        assert_eq!(parts.len() > 1, reasons(&policies).contains(&"several-policies"), "{count}");
        // A boundary cannot be split.
        assert_eq!(policies.boundary.is_none(), reasons(&policies).contains(&"boundary-too-large"), "{count}");
        assert!(policies.boundary.as_ref().is_none_or(|boundary| size(boundary) <= MANAGED), "{count}");
        assert_eq!(policies.one(&OnePolicy::Boundary).is_ok(), count <= 70, "{count}");
        match policies.one(&OnePolicy::Node) {
            Ok(policy) => assert!(size(&policy) <= INLINE && resources(&policy) == count, "{count}"),
            Err(error) => assert!(matches!(error, NoPolicy::TooLarge(..)) && count > 120, "{count}: {error}"),
        }
    }
}

#[test]
fn paths_are_allowed_instead_of_roles() {
    let by_path = IamPolicySettings { by_path: true, ..settings() };
    let allowed = |all: Vec<Pod>, settings: &IamPolicySettings| {
        let policies = IamPolicies::new(&uses(&rules(&[]), all), settings);
        assert_eq!(policies.node.len(), 1);
        (json(&policies.node[0])["Statement"][0]["Resource"].clone(), reasons(&policies))
    };
    assert_eq!(allowed(many(800, "pods/"), &by_path), (format!("{BASE}pods/*").into(), vec![]));
    // A longer path below another needs no pattern of its own. A role without a path is allowed alone.
    let mut all = many(3, "pods/");
    all.extend([pod("shop", "b", "web", "pods/web/b"), pod("shop", "c", "web", "alone")]);
    let wanted = serde_json::json!([format!("{BASE}alone"), format!("{BASE}pods/*")]);
    assert_eq!(allowed(all.clone(), &by_path), (wanted, vec![]));
    // The nodes' own role has the same path.
    let own = IamPolicySettings { node_role: Some(arn("pods/nodes")), ..by_path };
    let (resources, reasons) = allowed(vec![pod("shop", "b", "web", "pods/web")], &own);
    assert_eq!((resources, reasons), (format!("{BASE}pods/web").into(), vec!["own-role-in-path"]));
}

#[test]
fn trust_policies_that_exceed_a_quota_are_named() {
    for (namespaces, wanted) in [(2, vec![]), (12, vec!["trust-policy-large"]), (40, vec!["trust-policy-too-large"])] {
        let all = (0..namespaces).map(|number| pod(&format!("namespace-{number}"), "web", "web", "web")).collect();
        let policies = IamPolicies::new(&uses(&rules(&PER_NAMESPACE), all), &IamPolicySettings { has_tags: true, ..settings() });
        assert_eq!(reasons(&policies), wanted, "{namespaces}");
    }
}

#[test]
fn what_is_left_out_is_said() {
    let mut of = rules(&[]);
    of.base = None;
    let host = Pod { host_network: true, ..pod("shop", "agent", "web", "arn:aws:iam::111122223333:role/web") };
    let finished = Pod { finished: true, ..pod("shop", "job", "web", "arn:aws:iam::111122223333:role/job") };
    let plain = Pod { role: None, ..pod("shop", "plain", "web", "") };
    let short = (0..5).map(|number| pod("shop", &format!("short-{number}"), "web", "web"));
    let uses = uses(&of, [host, finished, plain].into_iter().chain(short).collect());
    let policies = IamPolicies::new(&uses, &IamPolicySettings::default());
    assert_eq!(reasons(&policies), ["pods-left-out", "pods-left-out", "no-roles", "no-node-role"]);
    let texts: Vec<_> = policies.warnings.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("agent of namespace shop (host-network)"), "{texts:?}");
    assert!(texts[1].contains("short-0, short-1, short-2 and 2 more of namespace shop (no-base-arn)"), "{texts:?}");
    assert_eq!(policies.one(&OnePolicy::Node), Err(NoPolicy::NotNeeded("no pod has a role, so nothing needs to be allowed")));
    assert!(policies.trust.is_empty());
    // Without roles, the boundary denies every role.
    assert_eq!(json(policies.boundary.as_ref().unwrap())["Statement"][1]["Resource"], "*");
}

#[test]
fn external_ids_are_required_only_if_all_pods_have_one() {
    let external = Pod { external_id: Some("ours".to_owned()), ..pod("shop", "a", "web", "web") };
    let trust = |all: Vec<Pod>| {
        let policies = IamPolicies::new(&uses(&rules(&[]), all), &settings());
        (json(&policies.trust[arn("web").as_str()])["Statement"][0]["Condition"].clone(), reasons(&policies))
    };
    assert_eq!(trust(vec![external.clone()]), (serde_json::json!({"StringEquals": {"sts:ExternalId": "ours"}}), vec![]));
    assert_eq!(trust(vec![external, pod("shop", "b", "web", "web")]), (serde_json::Value::Null, vec!["external-ids-differ"]));
}

/// In audit mode, the daemon serves roles that the restrictions would refuse. A policy for them would be an author's of a pod.
#[test]
fn what_restrictions_would_refuse_is_left_out_in_audit_mode() {
    let audit = Rules { restrictions: Restrictions::Audit, default_role: Some(arn("default")), ..rules(&[]) };
    let target = Pod { target_role: Some("admin".to_owned()), ..pod("shop", "behind", "web", "web") };
    let all = vec![
        pod("shop", "web", "web", "web"),
        pod("shop", "sly", "web", "admin"),
        pod("evil", "sly", "x", "admin"),
        Pod { role: None, ..pod("books", "plain", "x", "") },
        target,
    ];
    let of = |with_audited| {
        let how = Counted { default_role: audit.default_role.as_ref(), with_audited, ..Counted::default() };
        IamPolicies::new(&counted(&audit, &NodeIdentity::default(), all.clone(), how), &settings())
    };
    let policies = of(false);
    assert!(!printed(&policies).contains("admin"), "{}", printed(&policies));
    assert_eq!(policies.trust.keys().collect::<Vec<_>>(), [arn("default").as_str(), arn("web").as_str()]);
    assert_eq!(reasons(&policies), ["pods-left-out"; 3]);
    let texts: Vec<_> = policies.warnings.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("sly of namespace evil (no-namespace-list)") && texts[0].contains("--include-audited"), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("sly of namespace shop (not-allowed-in-namespace)")), "{texts:?}");
    let policies = of(true);
    assert!(policies.trust.contains_key(arn("admin").as_str()));
    // The role that assumes the target role is allowed to the namespace.
    assert_eq!(reasons(&policies), ["unrestricted-role"]);
    let text = policies.warnings[0].to_string();
    assert!(text.contains(arn("admin").as_str()) && text.contains("the namespaces evil, shop "), "{text}");
}

/// The daemon refuses its own identities to pods: a policy that allows them would only serve an attacker on the node.
#[test]
fn the_daemons_own_roles_are_left_out() {
    let target = |name: &str, target: &str| Pod { target_role: Some(target.to_owned()), ..pod("shop", name, "web", "web") };
    let all = vec![
        pod("shop", "fine", "web", "web"),
        pod("evil", "nodes", "x", "nodes"),
        pod("evil", "hub", "x", "hub"),
        pod("evil", "in-path", "x", "other/hub"),
        target("to-nodes", "nodes"),
        target("to-hub", "hub"),
        Pod { target_role: Some("web".to_owned()), ..pod("evil", "from-hub", "x", "hub") },
    ];
    let settings = IamPolicySettings { intermediate: Some(arn("cluster/hub")), ..settings() };
    let uses = counted(&rules(&[]), &settings.identity(), all.clone(), Counted::default());
    let policies = IamPolicies::new(&uses, &settings);
    // The intermediate role itself trusts the nodes.
    assert_eq!(policies.trust.keys().collect::<Vec<_>>(), [arn("cluster/hub").as_str(), arn("web").as_str()]);
    assert_eq!(json(&policies.intermediate.as_ref().unwrap()[0])["Statement"][0]["Resource"], arn("web").as_str());
    assert_eq!(json(&policies.node[0])["Statement"][0]["Resource"], arn("cluster/hub").as_str());
    assert!(policies.chain.is_empty());
    let texts: Vec<_> = policies.warnings.iter().map(ToString::to_string).collect();
    assert!(texts.iter().all(|text| text.contains("(pods-left-out)") && text.contains("(node-role)")), "{texts:?}");
    for name in ["hub", "in-path", "nodes", "from-hub", "to-nodes", "to-hub"] {
        assert!(texts.iter().any(|text| text.contains(name)), "{name}: {texts:?}");
    }
    // As in the daemon, --allow-node-role allows it.
    let allowed = Rules { allow_node_role: true, ..rules(&[]) };
    let uses = counted(&allowed, &settings.identity(), all, Counted::default());
    assert!(IamPolicies::new(&uses, &settings).trust.contains_key(arn("nodes").as_str()));
}

/// Without restrictions, whoever may create pods decides what the policies allow. Each role names all namespaces that ask for it.
#[test]
fn without_restrictions_the_namespaces_of_each_role_are_named() {
    let mut of = rules(&[]);
    of.default_role = Some(arn("default"));
    let many = (0..30).map(|number| pod(&format!("team-{number:02}"), "web", "web", "web"));
    let all = many.chain([pod("evil", "sly", "x", "admin"), Pod { role: None, ..pod("books", "plain", "x", "") }]).collect();
    let how = Counted { default_role: of.default_role.as_ref(), is_unrestricted: true, ..Counted::default() };
    let policies = IamPolicies::new(&counted(&of, &NodeIdentity::default(), all, how), &settings());
    assert_eq!(reasons(&policies), ["unrestricted-role", "unrestricted-role"], "none for the operator's own default role");
    let texts: Vec<_> = policies.warnings.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains(&format!("pods of namespace evil name the role {}, ", arn("admin"))), "{texts:?}");
    assert!((0..30).all(|number| texts[1].contains(&format!("team-{number:02}"))), "{texts:?}");
}

/// A pod of another namespace needs no more than the role's name to make a trust policy accept requests without an external ID, or with
/// one of its author's.
#[test]
fn external_ids_of_other_namespaces_are_named() {
    let with_id = |namespace: &str, id: &str| Pod { external_id: Some(id.to_owned()), ..pod(namespace, "a", "web", "web") };
    let warnings = |tags: &[SessionTag], other: Pod| {
        let settings = IamPolicySettings { has_tags: !tags.is_empty(), ..settings() };
        let policies = IamPolicies::new(&uses(&rules(tags), vec![with_id("shop", "ours"), other]), &settings);
        policies.warnings.iter().map(|warning| (warning.reason, warning.to_string())).collect::<Vec<_>>()
    };
    for tags in [&[][..], &PER_NAMESPACE] {
        let [(reason, text)] = &warnings(tags, pod("evil", "b", "web", "web"))[..] else { panic!("not exactly one") };
        assert!(*reason == "external-ids-differ" && text.contains("pods of namespace evil have none"), "{text}");
        let [(reason, text)] = &warnings(tags, with_id("evil", "mine"))[..] else { panic!("not exactly one") };
        assert!(*reason == "several-external-ids" && text.contains("evil") && text.contains("shop"), "{text}");
        assert!(!text.contains("mine") && !text.contains("ours"), "the log of a pipeline needs no external IDs: {text}");
        assert_eq!(warnings(tags, with_id("evil", "ours")), []);
    }
    // As a target role, it is assumed by another role, without an external ID.
    let target = Pod { target_role: Some("web".to_owned()), ..pod("evil", "b", "web", "other") };
    assert_eq!(warnings(&[], target).iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), ["external-ids-differ"]);
}

#[test]
fn pods_in_the_host_network_count_if_they_are_served() {
    let config = HostNetworkConfig { pods: HostNetworkMode::Serve, exempt: Vec::new() };
    let (writer, pods) = pods();
    writer.write(|index| {
        index.set_host_network(HostNetworkRules::new(config, OwnPodName::default(), true));
        index.reset([Pod { host_network: true, ..pod("shop", "agent", "web", "web") }]);
    });
    let policy = Policy::new(rules(&[]), NodeIdentity::default()).unwrap();
    let uses = RolesInUse::of(&pods, &policy, Counted::default());
    assert_eq!(uses.direct.keys().collect::<Vec<_>>(), [arn("web").as_str()]);
    assert!(uses.unresolved.is_empty());
}

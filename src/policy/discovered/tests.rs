#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use super::super::node::NodeIdentity;
use super::super::rules::Discovered;
use super::super::trace::StepVerdict;
use super::super::{Decision, Rules};
use super::*;
use crate::config::Restrictions;
use crate::pods::{Namespace, Pod, PodContext};

const OWN_BASE: &str = "arn:aws:iam::111122223333:role/";
const OTHER_BASE: &str = "arn:aws:iam::999999999999:role/";
const NODE: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c";
/// Returns an account with these digits in another partition.
const NODE_IN_CHINA: &str = "arn:aws-cn:sts::999999999999:assumed-role/nodes/i-0f1e2d3c";

fn pod(role: Option<&str>) -> Pod {
    Pod { role: role.map(str::to_owned), ..Pod::for_test("shop", "web-0") }
}

fn node(identity: &str) -> NodeIdentity {
    identity.parse::<CallerIdentity>().unwrap().into()
}

fn discovered(base: &str) -> Rules {
    let discovered = Discovered { base: true, default_role: false };
    Rules { base: Some(base.parse().unwrap()), discovered, ..Rules::default() }
}

fn decide(rules: &Rules, node: &NodeIdentity, role: Option<&str>) -> Result<String, Denial> {
    let policy = Policy::new(rules.clone(), node.clone()).unwrap();
    let list = Namespace { name: "shop".to_owned(), allowed_roles: Some(r#"["*"]"#.to_owned()), permitted: None };
    let context = PodContext { namespace: Some(list.into()), ..PodContext::default() };
    let decision = policy.decide(&pod(role), &context);
    assert_eq!(policy.explain(&pod(role), &context).decision, decision);
    match decision {
        Decision::Allow { request, .. } => Ok(request.role().to_string()),
        Decision::Deny(denial) => Err(denial),
    }
}

#[test]
fn a_discovered_base_of_a_foreign_account_is_refused() {
    for (identity, base, allowed) in
        [(NODE, OWN_BASE, true), (NODE, OTHER_BASE, false), (NODE_IN_CHINA, OTHER_BASE, false), (NODE_IN_CHINA, OWN_BASE, false)]
    {
        let (rules, node) = (discovered(base), node(identity));
        let web = format!("{base}web");
        let expected = if allowed { Ok(web.clone()) } else { Err(Denial::ForeignAccount) };
        assert_eq!(decide(&rules, &node, Some("web")), expected, "{identity} {base}");
        // The namespace's patterns are completed with the same base.
        let enforced = Rules { restrictions: Restrictions::Enforce, ..rules.clone() };
        assert_eq!(decide(&enforced, &node, Some("web")), expected, "{identity} {base}");
        assert_eq!(decide(&enforced, &node, Some(&web)), expected, "{identity} {base}, in full");
        let ceiling = Rules { allowed_roles: Some(vec!["*".to_owned()]), ..rules.clone() };
        assert_eq!(decide(&ceiling, &node, Some(&web)), expected, "{identity} {base}, in full");
        let default = Rules { default_role: Some(web.parse().unwrap()), ..rules.clone() };
        assert_eq!(decide(&default, &node, None), expected, "{identity} {base}");
        let found = Policy::new(rules, node).unwrap().foreign_account();
        assert_eq!(found.map(|found| (found.account.to_string(), found.identity.as_str().to_owned())), {
            let account = base.split(':').nth(4).unwrap().to_owned();
            (!allowed).then(|| (account, identity.to_owned()))
        });
    }
}

#[test]
fn rules_set_by_the_operator_are_not_checked() {
    let (given, node) = (Rules { discovered: Discovered::default(), ..discovered(OTHER_BASE) }, node(NODE));
    assert_eq!(decide(&given, &node, Some("web")), Ok(format!("{OTHER_BASE}web")));
    assert_eq!(Policy::new(given, node.clone()).unwrap().foreign_account(), None);
    // Roles named in full that are not in the refused account.
    for role in [format!("{OWN_BASE}web"), "arn:aws:iam::444455556666:role/web".to_owned()] {
        assert_eq!(decide(&discovered(OTHER_BASE), &node, Some(&role)), Ok(role));
    }
}

#[test]
fn a_discovered_default_role_of_a_foreign_account_is_refused() {
    let default = |discovered| Rules {
        base: Some(OWN_BASE.parse().unwrap()),
        default_role: Some(format!("{OTHER_BASE}nodes").parse().unwrap()),
        discovered,
        allow_node_role: true,
        ..Rules::default()
    };
    let node = node(NODE);
    let by_hand = default(Discovered::default());
    assert_eq!(decide(&by_hand, &node, None), Ok(format!("{OTHER_BASE}nodes")));
    let discovered = default(Discovered { base: false, default_role: true });
    assert_eq!(decide(&discovered, &node, None), Err(Denial::ForeignAccount));
    assert_eq!(decide(&discovered, &node, Some("web")), Ok(format!("{OWN_BASE}web")), "the operator set the base");
    assert!(Policy::new(discovered, node).unwrap().foreign_account().is_some());
}

#[test]
fn the_daemons_own_identity_applies_not_the_intermediate_one() {
    let node = node(NODE);
    node.set_intermediate("arn:aws:sts::999999999999:assumed-role/hub/rolegate".parse().unwrap());
    assert_eq!(decide(&discovered(OTHER_BASE), &node, Some("web")), Err(Denial::ForeignAccount));
    assert_eq!(decide(&discovered(OWN_BASE), &node, Some("web")), Ok(format!("{OWN_BASE}web")));
}

/// Decisions are made again when the daemon's identity becomes known, and each time it changes.
#[test]
fn the_daemons_identity_applies_once_it_is_known() {
    let (node, pod, context) = (NodeIdentity::default(), pod(Some("web")), PodContext::default());
    let policy = Policy::new(discovered(OTHER_BASE), node.clone()).unwrap();
    let denied = || policy.decide(&pod, &context) == Decision::Deny(Denial::ForeignAccount);
    assert!(!denied() && !policy.knows_node() && policy.foreign_account().is_none());
    let steps = policy.explain(&pod, &context).steps;
    assert!(steps.iter().any(|step| step.what == What::Account && step.verdict == StepVerdict::Skipped), "{steps:?}");
    let version = policy.node_version();
    node.set_caller(NODE.parse().unwrap());
    assert!(denied() && policy.node_version() != version && Denial::ForeignAccount.is_about_node());
    // Another account than the first is a contradiction, even if it is the discovered one.
    node.set_caller("arn:aws:sts::999999999999:assumed-role/nodes/i-1".parse().unwrap());
    assert_eq!(policy.decide(&pod, &context), Decision::Deny(Denial::ContradictedAccount));
    assert!(policy.foreign_account().is_none() && Denial::ContradictedAccount.is_about_node());
    assert_eq!(policy.explain(&pod, &context).decision, Decision::Deny(Denial::ContradictedAccount));
    node.set_caller(NODE.parse().unwrap());
    assert!(denied());
}

//! Which roles, and how their sessions are named and tagged.

use super::*;

#[test]
fn the_ceiling_is_a_list_of_patterns() {
    let base = format!("--base-role-arn={BASE}");
    let list = |arguments: &[&str]| config(arguments).roles.allowed;
    assert_eq!(
        list(&[&base, "--allowed-roles=web*,team/*", "--allowed-roles=db"]),
        Some(vec!["web*".into(), "team/*".into(), "db".into()])
    );
    assert_eq!(list(&["--auto-discover-base-arn", "--allowed-roles=web"]), Some(vec!["web".into()]));
    for (arguments, told) in [
        (vec!["--allowed-roles="], "--allowed-roles is empty"),
        (vec!["--allowed-roles=,"], "--allowed-roles is empty"),
        (vec!["--allowed-roles=web"], r#"--allowed-roles="web" is a short name"#),
        (vec![&base, "--allowed-roles=we b"], r#"--allowed-roles="we b": expected the ARN or the name"#),
        (vec![&base, &format!("--allowed-roles={}", "x,".repeat(257))], "--allowed-roles: expected at most 256"),
        (vec![&base, &format!("--allowed-roles={}", "x".repeat(2049))], "--allowed-roles="),
    ] {
        let found = mistake(&arguments);
        assert!(found.starts_with(told), "{found}");
    }
}

#[test]
fn the_annotation_of_eks_needs_service_accounts() {
    assert!(mistake(&["--eks-role-annotation"]).contains("--eks-role-annotation requires --service-account-roles"));
}

#[test]
fn a_template_has_what_it_needs() {
    let name = |arguments: &[&str]| config(arguments).sessions.name;
    assert_eq!(name(&["--session-name-template="]), "{pod}".parse().unwrap());
    assert_eq!(name(&["--session-scope=role"]), "{role}".parse().unwrap());
    assert_eq!(name(&["--session-name-template={cluster}.{pod}", "--cluster-name=prod"]), "{cluster}.{pod}".parse().unwrap());
    for (arguments, told) in [
        (vec!["--session-name-template={uid}"], r#"--session-name-template="{uid}": expected a template of text and {cluster}, {node}"#),
        (vec!["--session-name-template={cluster}"], "--session-name-template contains {cluster}: add --cluster-name"),
        (vec!["--session-scope=role", "--session-name-template={pod}"], "--session-name-template names the pod"),
        (vec!["--session-scope=role", "--session-name-template={role}-{namespace}"], "--session-name-template names the pod"),
        (vec!["--session-scope=role", "--session-name-template={serviceaccount}"], "--session-name-template names the pod"),
        (vec!["--session-scope=node"], r#"--session-scope="node": expected one of pod, role"#),
    ] {
        let found = mistake(&arguments);
        assert!(found.starts_with(told), "{found}");
    }
}

#[test]
fn a_source_identity_has_what_it_needs() {
    let identity = |arguments: &[&str]| config(arguments).sessions.source_identity;
    let template = |text: &str| Some(text.parse().unwrap());
    assert_eq!(identity(&["--session-name-template={namespace}.{pod}"]), None);
    assert_eq!(identity(&["--source-identity="]), None);
    assert_eq!(identity(&["--source-identity={cluster}.{pod}", "--cluster-name=prod"]), template("{cluster}.{pod}"));
    assert_eq!(identity(&["--session-scope=role", "--source-identity={node}.{role}"]), template("{node}.{role}"));
    for (arguments, told) in [
        (vec!["--source-identity={uid}"], r#"--source-identity="{uid}": expected a template of text and {cluster}, {node}"#),
        (vec!["--source-identity={cluster}"], "--source-identity contains {cluster}: add --cluster-name"),
        (vec!["--session-scope=role", "--source-identity={pod}"], "--source-identity names the pod"),
        (vec!["--session-scope=role", "--source-identity={role}-{namespace}"], "--source-identity names the pod"),
        (vec!["--session-scope=role", "--source-identity={serviceaccount}"], "--source-identity names the pod"),
    ] {
        let found = mistake(&arguments);
        assert!(found.starts_with(told), "{found}");
    }
}

#[test]
fn tags_have_what_they_need() {
    let tags = |arguments: &[&str]| config(arguments).sessions.tags;
    let all = SessionTag::NAMES.map(|(name, _)| name).join(",");
    let in_order = SessionTag::NAMES.map(|(_, tag)| tag);
    assert_eq!(tags(&[&format!("--session-tags={all}"), "--cluster-name=prod"]), in_order);
    assert_eq!(tags(&["--session-tags=pod", "--session-tags=namespace,pod"]), [SessionTag::Namespace, SessionTag::Pod]);
    assert_eq!(tags(&["--session-scope=role", "--session-tags=node"]), [SessionTag::Node]);
    for (arguments, told) in [
        (vec!["--session-tags=cluster"], "--session-tags contains cluster: add --cluster-name"),
        (vec!["--session-tags=uid"], r#"--session-tags="uid": expected one of cluster, namespace, service-account, pod, pod-uid, node"#),
        (vec!["--session-scope=role", "--session-tags=pod-uid"], "--session-tags=pod-uid: pods share sessions with --session-scope=role"),
    ] {
        let found = mistake(&arguments);
        assert!(found.starts_with(told), "{found}");
    }
}

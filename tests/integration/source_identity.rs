//! Tests of `--source-identity`: the pod's identity in each call to STS, including through role chaining.

use rolegate_lab::kube::Resource;
use rolegate_lab::sts::{Behaviour, Call, Role};

use crate::world::{Fakes, World, arn, ip, pod};

const OF_POD: &str = "--source-identity={namespace}.{pod}";

fn calls_for(world: &World, role: &str) -> Vec<Call> {
    world.fakes.sts.calls().into_iter().filter(|call| call.role_arn == Some(arn(role))).collect()
}

/// Returns the source identity of the session with this key.
fn identity_of(world: &World, document: &serde_json::Value) -> Option<String> {
    let issued = world.fakes.sts.issued();
    issued.into_iter().find(|issued| document["AccessKeyId"] == *issued.access_key_id).unwrap().source_identity
}

/// Starts a world with two pods of one role, whose sessions have the same name.
fn two_pods(more: &str) -> World {
    let fakes = Fakes::new();
    for (name, number) in [("web-0", 2), ("web-1", 3)] {
        let named = pod(name, ip(number), Some("web-role")).annotation("iam.amazonaws.com/session-name", "shop.web-9");
        fakes.api.apply(Resource::Pods, named.build());
    }
    fakes.sts.add_role(Role::new(arn("web-role")));
    let setup = fakes.setup().argument(more);
    fakes.into_world(&setup)
}

#[test]
fn pods_with_different_source_identities_never_share_a_session() {
    let world = two_pods(OF_POD);
    for _ in 0..2 {
        for (number, identity) in [(2, "shop.web-0"), (3, "shop.web-1")] {
            let document = world.document(ip(number), "web-role");
            assert_eq!(identity_of(&world, &document).as_deref(), Some(identity));
        }
    }
    let calls = calls_for(&world, "web-role");
    let told: Vec<_> = calls.iter().map(|call| (call.session_name.as_deref(), call.source_identity.as_deref())).collect();
    let name = Some("shop.web-9");
    assert_eq!(told, [(name, Some("shop.web-0")), (name, Some("shop.web-1"))], "an annotation sets only the session name");
    let line = world.daemon.wait_for_log(|line| line["event"] == "role-assumed" && line["source_identity"] == "shop.web-1").unwrap();
    assert_eq!(line["session"], "shop.web-9");
}

#[test]
fn without_the_flag_sts_gets_no_source_identity() {
    let world = two_pods("--session-name-template={pod}");
    assert_eq!(identity_of(&world, &world.document(ip(2), "web-role")), None);
    assert_eq!(calls_for(&world, "web-role")[0].source_identity, None);
}

#[test]
fn pods_of_one_role_share_session_and_source_identity_in_scope_role() {
    let fakes = Fakes::new();
    fakes.pod("web-0", ip(2), Some("web-role"));
    fakes.pod("web-1", ip(3), Some("web-role"));
    let setup = fakes.setup().argument("--session-scope=role").argument("--source-identity={node}={role}");
    let world = fakes.into_world(&setup);
    let first = world.document(ip(2), "web-role");
    assert_eq!(world.document(ip(3), "web-role")["AccessKeyId"], first["AccessKeyId"]);
    assert_eq!(identity_of(&world, &first).as_deref(), Some("node-a=web-role"));
    assert_eq!(calls_for(&world, "web-role").len(), 1);
}

/// STS keeps a source identity along a chain: that of the intermediate role's session would be that of every pod.
#[test]
fn only_pods_and_not_the_intermediate_role_have_one() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    // The base identity needs no permission for it.
    fakes.sts.add_role(Role::new(arn("between")).without_source_identity());
    for role in ["web-role", "db-role"] {
        fakes.sts.add_role(Role::new(arn(role)).trusted_by([arn("between")]));
    }
    let setup = fakes.setup().argument(format!("--assume-role-arn={}", arn("between"))).argument(OF_POD);
    let world = fakes.into_world(&setup);
    for (number, role, identity) in [(2, "web-role", "shop.web"), (3, "db-role", "shop.db")] {
        let document = world.document(ip(number), role);
        assert_eq!(identity_of(&world, &document).as_deref(), Some(identity));
        let calls = calls_for(&world, role);
        assert!(calls[0].caller_arn.as_deref().unwrap().contains(":assumed-role/between/"), "{calls:?}");
    }
    let between = calls_for(&world, "between");
    assert!(!between.is_empty() && between.iter().all(|call| call.source_identity.is_none()), "{between:?}");
}

#[test]
fn a_role_that_forbids_source_identities_is_refused_with_advice() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    fakes.sts.add_role(Role::new(arn("web-role")).without_source_identity());
    let setup = fakes.setup().argument(OF_POD);
    let world = fakes.into_world(&setup);
    let answer = world.credentials(ip(2), "web-role");
    assert_eq!((answer.status, answer.body.len()), (500, 0));
    world.document(ip(3), "db-role");
    let line = world.daemon.wait_for_event("assume-role-failed").unwrap();
    let advice = line["advice"].as_str().unwrap();
    assert!(line["outcome"] == "denied" && advice.contains("must allow sts:SetSourceIdentity for rolegate's own role"), "{line}");
    assert!(calls_for(&world, "web-role").iter().all(|call| call.source_identity.as_deref() == Some("shop.web")));
    assert!(world.fakes.sts.issued().iter().all(|issued| issued.role_arn != arn("web-role")));
}

#[test]
fn a_session_without_the_source_identity_is_discarded() {
    let world = two_pods(OF_POD);
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::MissingField("SourceIdentity"));
    let answer = world.credentials(ip(2), "web-role");
    assert_eq!((answer.status, answer.body.len()), (500, 0));
    let line = world.daemon.wait_for_event("sts-answered-for-another-role").unwrap();
    assert!(line["error"].as_str().unwrap().contains("does not name a source identity"), "{line}");
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="other-role"}"#), 1.0);
}

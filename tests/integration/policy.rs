//! Tests of the operator's limits and additions, as the pods and STS see them.

use rolegate_lab::imds::NODE_ROLE_NAME;
use rolegate_lab::kube::{PodBuilder, Resource, namespace};
use rolegate_lab::sts::{Behaviour, Call, NODE_ROLE_ARN, Role};

use crate::world::{Fakes, NODE, ROLES, World, arn, ip, pod};

fn assume_role_calls(world: &World) -> Vec<Call> {
    world.fakes.sts.calls().into_iter().filter(|call| call.action == "AssumeRole").collect()
}

fn denials(world: &World, reason: &str) -> f64 {
    world.metric(&format!(r#"rolegate_denials_total{{reason="{reason}"}}"#))
}

#[test]
fn tags_and_names_reach_sts() {
    let world = World::start_with(|setup| {
        let setup = setup.argument("--session-tags=pod,namespace,cluster,node").argument("--cluster-name=prod*1");
        setup.argument("--session-name-template={namespace}.{pod}@{role}")
    });
    world.document(ip(2), "web-role");
    let [call] = &assume_role_calls(&world)[..] else { panic!("not exactly one call") };
    assert_eq!(call.session_name.as_deref(), Some("shop.web@web-role"));
    let tags: Vec<_> = call.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [
        ("kubernetes-cluster-name", "prod-1"),
        ("kubernetes-namespace", "shop"),
        ("kubernetes-pod-name", "web"),
        ("kubernetes-node-name", "node-a"),
    ];
    assert_eq!(tags, expected);
}

#[test]
fn without_the_flag_sts_gets_no_tags() {
    let world = World::start();
    world.document(ip(2), "web-role");
    assert!(assume_role_calls(&world).iter().all(|call| call.tags.is_empty() && call.session_name.as_deref() == Some("web")));
}

#[test]
fn pods_of_one_role_share_a_session_in_scope_role() {
    let fakes = Fakes::new();
    fakes.pod("web-0", ip(2), Some("web-role"));
    fakes.pod("web-1", ip(3), Some("web-role"));
    let setup = fakes.setup().argument("--session-scope=role");
    let world = fakes.into_world(&setup);
    let first = world.document(ip(2), "web-role");
    assert_eq!(world.document(ip(3), "web-role")["AccessKeyId"], first["AccessKeyId"]);
    let [call] = &assume_role_calls(&world)[..] else { panic!("not exactly one call") };
    assert_eq!(call.session_name.as_deref(), Some("web-role"));
}

#[test]
fn a_role_above_the_ceiling_of_the_node_is_refused() {
    let world = World::start_with(|setup| setup.argument("--allowed-roles=web-*"));
    world.document(ip(2), "web-role");
    for target in [ROLES.to_owned(), format!("{ROLES}db-role")] {
        let answer = world.get(ip(3), &target);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{target}");
    }
    assert_eq!(denials(&world, "not-allowed-on-node"), 2.0);
    assert!(assume_role_calls(&world).iter().all(|call| call.role_arn == Some(arn("web-role"))));
    let log = world.daemon.wait_for_log(|line| line["reason"] == "not-allowed-on-node" && line["pod"] == "db").unwrap();
    assert!(log["message"].as_str().unwrap().contains("--allowed-roles"), "{log}");
}

/// Starts a world with one pod that requests the node's own role, which STS would issue.
fn greedy(argument: &str) -> World {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(NODE_ROLE_ARN));
    fakes.api.apply(Resource::Pods, pod("greedy", ip(2), Some(NODE_ROLE_ARN)).build());
    fakes.pod("web", ip(3), Some("web-role"));
    let setup = fakes.setup().argument(argument);
    fakes.into_world(&setup)
}

#[test]
fn no_pod_gets_the_nodes_own_role() {
    let world = greedy("--imds-tokens=required");
    // Whether or not the identity is known at the first request.
    assert_eq!(world.credentials(ip(2), NODE_ROLE_NAME).status, 404);
    world.document(ip(3), "web-role");
    let issued = world.fakes.sts.issued();
    for target in [ROLES.to_owned(), format!("{ROLES}{NODE_ROLE_NAME}")] {
        let answer = world.get(ip(2), &target);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{target}");
    }
    assert_eq!(world.fakes.sts.issued().len(), issued.len(), "STS is not called for it");
    assert!(denials(&world, "node-role") >= 3.0, "{}", world.daemon.log());
}

/// The first attempt to learn the daemon's identity fails, and is repeated after a second.
#[test]
fn nothing_is_served_before_the_own_identity_is_known() {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(NODE_ROLE_ARN));
    fakes.sts.set_behaviour(Behaviour::Then(vec![Behaviour::AccessDenied]));
    fakes.api.apply(Resource::Pods, pod("greedy", ip(2), Some(NODE_ROLE_ARN)).build());
    fakes.pod("web", ip(3), Some("web-role"));
    let setup = fakes.setup().argument("--iam-role-error-ttl=1s");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_event("own-identity-unknown").unwrap();
    let ask = |world: &World| world.credentials(ip(2), NODE_ROLE_NAME).status;
    world.eventually(ask, |status| {
        assert!([500, 404].contains(status), "{status}");
        *status == 404
    });
    assert!(denials(&world, "node-role") >= 1.0, "{}", world.daemon.log());
    world.document(ip(3), "web-role");
}

/// The daemon's identity differs from the node's: by a token of its service account, or by keys of its own as in this test.
#[test]
fn no_pod_gets_the_role_of_the_instance() {
    const DAEMON: &str = "arn:aws:sts::111122223333:assumed-role/daemon/rolegate";
    let fakes = Fakes::new();
    fakes.sts.add_caller("AKIADAEMON", "daemon-secret", None, DAEMON);
    for role in [NODE_ROLE_ARN, &arn("web-role"), &arn("daemon")] {
        fakes.sts.add_role(Role::new(role).trusted_by(["*"]));
    }
    for (number, name, role) in [(2, "greedy", NODE_ROLE_ARN), (3, "web", "web-role"), (4, "selfish", "/path/daemon")] {
        fakes.api.apply(Resource::Pods, pod(name, ip(number), Some(role)).build());
    }
    let setup = fakes.setup().without_env("AWS_SESSION_TOKEN").without_env("AWS_EC2_METADATA_DISABLED");
    let setup = setup.env("AWS_ACCESS_KEY_ID", "AKIADAEMON").env("AWS_SECRET_ACCESS_KEY", "daemon-secret");
    let world = fakes.into_world(&setup);
    let learnt = world.daemon.wait_for_event("instance-role").unwrap();
    assert_eq!(learnt["role"], NODE_ROLE_ARN);
    world.document(ip(3), "web-role");
    for (number, role) in [(2, NODE_ROLE_NAME), (4, "daemon")] {
        assert_eq!(world.credentials(ip(number), role).status, 404, "{role}");
    }
    assert_eq!(denials(&world, "node-role"), 2.0);
    assert!(assume_role_calls(&world).iter().all(|call| call.role_arn == Some(arn("web-role"))));
}

#[test]
fn a_metadata_service_that_does_not_answer_delays_nothing() {
    let fakes = Fakes::new();
    fakes.imds.set_behaviour(rolegate_lab::imds::ImdsBehaviour::Hang);
    fakes.pod("web", ip(2), Some("web-role"));
    let setup = fakes.setup().without_env("AWS_EC2_METADATA_DISABLED");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    world.daemon.wait_for_event("instance-role-unknown").unwrap();
    let log = world.daemon.log();
    assert!(log.find("own-identity") < log.find("instance-role-unknown"), "the start did not wait: {log}");
}

#[test]
fn a_disabled_metadata_service_gets_no_request() {
    let world = greedy("--metadata-profile=none");
    assert_eq!(world.credentials(ip(2), NODE_ROLE_NAME).status, 404);
    world.document(ip(3), "web-role");
    assert!(world.fakes.imds.requests().is_empty());
}

#[test]
fn same_named_pods_in_two_namespaces_have_own_sessions() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    let elsewhere = PodBuilder::new("other", "web").node(NODE).ip(&ip(3).to_string()).annotation("iam.amazonaws.com/role", "web-role");
    fakes.api.apply(Resource::Pods, elsewhere.build());
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    assert_ne!(world.document(ip(2), "web-role")["AccessKeyId"], world.document(ip(3), "web-role")["AccessKeyId"]);
}

#[test]
fn a_pod_names_its_session_if_the_operator_does_not() {
    for (argument, expected) in [("--session-scope=pod", "somebody-else"), ("--session-name-template={pod}", "web")] {
        let fakes = Fakes::new();
        fakes.sts.add_role(Role::new(arn("web-role")));
        let named = pod("web", ip(2), Some("web-role")).annotation("iam.amazonaws.com/session-name", "somebody-else");
        fakes.api.apply(Resource::Pods, named.build());
        let setup = fakes.setup().argument(argument);
        let world = fakes.into_world(&setup);
        world.document(ip(2), "web-role");
        let [call] = &assume_role_calls(&world)[..] else { panic!("not exactly one call") };
        assert_eq!(call.session_name.as_deref(), Some(expected), "{argument}");
    }
}

#[test]
fn pods_get_the_nodes_own_role_if_the_operator_allows_it() {
    let world = greedy("--allow-node-role");
    world.document(ip(2), NODE_ROLE_NAME);
}

#[test]
fn a_role_of_another_partition_is_refused() {
    let fakes = Fakes::new();
    fakes.api.apply(Resource::Pods, pod("far", ip(2), Some("arn:aws-cn:iam::111122223333:role/web")).build());
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    assert_eq!(world.credentials(ip(2), "web").status, 404);
    assert_eq!(denials(&world, "other-partition"), 1.0);
    assert_eq!(assume_role_calls(&world).len(), 0);
}

#[test]
fn a_malformed_annotation_is_refused_with_its_own_reason() {
    let fakes = Fakes::new();
    let cases = [
        ("", "role-empty"),
        (" ", "role-spaces"),
        ("web\n", "role-control-characters"),
        ("arn:aws:s3:::bucket", "not-a-role-arn"),
        ("arn:aws:iam::1:role/web", "role-account"),
        ("arn:aws-mars:iam::111122223333:role/web", "role-partition"),
        (&"x".repeat(100_000), "role-too-long"),
    ];
    for (number, (role, reason)) in (2..).zip(&cases) {
        fakes.api.apply(Resource::Pods, pod(reason, ip(number), Some(role)).build());
    }
    let setup = fakes.setup().argument(format!("--default-role={}", arn("default")));
    let world = fakes.into_world(&setup);
    for (number, (_, reason)) in (2..).zip(&cases) {
        assert_eq!(world.get(ip(number), ROLES).status, 404, "{reason}");
        assert_eq!(denials(&world, reason), 1.0, "{reason}");
    }
    assert_eq!(assume_role_calls(&world).len(), 0);
}

#[test]
fn the_annotation_of_a_namespace_allows_roles() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.apply(Resource::Namespaces, namespace("shop", &[("iam.amazonaws.com/allowed-roles", r#"["web-*"]"#)]));
    let setup = fakes.setup().argument("--namespace-restrictions");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    world.fakes.api.apply(Resource::Namespaces, namespace("shop", &[("iam.amazonaws.com/allowed-roles", "web-*")]));
    world.eventually(|world| world.get(ip(2), ROLES).status, |status| *status == 404);
    assert!(denials(&world, "bad-namespace-list") >= 1.0);
}

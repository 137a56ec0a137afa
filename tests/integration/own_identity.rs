//! Tests of the daemon's own identity at STS. With an intermediate role it has two identities, and pods get neither. Also tests
//! what the daemon does when STS rejects its credentials.

use rolegate_lab::daemon::Setup;
use rolegate_lab::imds::NODE_ROLE_NAME;
use rolegate_lab::kube::Resource;
use rolegate_lab::sts::{Behaviour, Call, NODE_ACCESS_KEY_ID, NODE_ROLE_ARN, NODE_SESSION_ARN, Role};

use crate::world::{Fakes, World, arn, ip, pod};

/// A session that EC2 did not make.
const DAEMON: &str = "arn:aws:sts::111122223333:assumed-role/daemon/rolegate";
const DROPPED: &str = "rolegate_own_credentials_dropped_total";

/// Creates pods of three roles: the base identity's, the intermediate role and another one. STS would issue each of them to any
/// caller, so that only the daemon's policy protects them.
fn fakes_with_a_role_between(base_role: &str) -> Fakes {
    let fakes = Fakes::new();
    for role in [base_role, &arn("between"), &arn("web-role"), &arn("db-role")] {
        fakes.sts.add_role(Role::new(role).trusted_by(["*"]));
    }
    for (number, name, role) in [(2, "greedy", base_role), (3, "thief", "between"), (4, "web", "web-role"), (5, "db", "db-role")] {
        fakes.api.apply(Resource::Pods, pod(name, ip(number), Some(role)).build());
    }
    fakes
}

fn setup_with_a_role_between(fakes: &Fakes) -> Setup {
    fakes.setup().argument(format!("--assume-role-arn={}", arn("between"))).argument("--iam-role-error-ttl=1s")
}

fn calls_for(world: &World, role: &str) -> Vec<Call> {
    world.fakes.sts.calls().into_iter().filter(|call| call.role_arn.as_deref() == Some(role)).collect()
}

fn denied(world: &World) -> f64 {
    world.metric(r#"rolegate_denials_total{reason="node-role"}"#)
}

/// Returns the access key ID of the role's latest session.
fn last_key_of(world: &World, role: &str) -> String {
    let issued = world.fakes.sts.issued();
    issued.iter().rev().find(|issued| issued.role_arn == role).unwrap().access_key_id.clone()
}

#[test]
fn no_pod_gets_the_base_role_of_an_intermediate_role() {
    for (base_role, metadata) in [(NODE_ROLE_ARN.to_owned(), false), (NODE_ROLE_ARN.to_owned(), true), (arn("daemon"), false)] {
        let fakes = fakes_with_a_role_between(&base_role);
        let mut setup = setup_with_a_role_between(&fakes);
        if metadata {
            for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_EC2_METADATA_DISABLED"] {
                setup = setup.without_env(name);
            }
            // Without the instance's role, the daemon's own identity has to be enough.
            fakes.imds.set("/latest/meta-data/iam/info", "{}");
        } else {
            setup = setup.env("AWS_EC2_METADATA_DISABLED", "true");
        }
        if base_role != NODE_ROLE_ARN {
            fakes.sts.add_caller("AKIADAEMON", "daemon-secret", None, DAEMON);
            let keys = setup.without_env("AWS_SESSION_TOKEN").env("AWS_ACCESS_KEY_ID", "AKIADAEMON");
            setup = keys.env("AWS_SECRET_ACCESS_KEY", "daemon-secret");
        }
        let world = fakes.into_world(&setup);
        for (number, role) in [(2, base_role.rsplit('/').next().unwrap()), (3, "between")] {
            assert_eq!(world.credentials(ip(number), role).status, 404, "{role}: {}", world.daemon.log());
        }
        assert_eq!(denied(&world), 2.0, "{base_role}: {}", world.daemon.log());
        world.document(ip(4), "web-role");
        assert_eq!(calls_for(&world, &base_role).len(), 0);
        let identities: Vec<_> = world.fakes.sts.calls().into_iter().filter(|call| call.action == "GetCallerIdentity").collect();
        let callers: Vec<_> = identities.iter().map(|call| call.caller_arn.clone().unwrap()).collect();
        let base = if base_role == NODE_ROLE_ARN { NODE_SESSION_ARN } else { DAEMON };
        assert!(callers.len() == 2 && callers[0] == base && callers[1].contains(":assumed-role/between/"), "{callers:?}");
        let between = world.daemon.wait_for_event("intermediate-identity").unwrap();
        assert_eq!(between["arn"], callers[1].as_str());
    }
}

#[test]
fn pods_get_the_base_role_only_if_the_operator_allows_it() {
    let fakes = fakes_with_a_role_between(NODE_ROLE_ARN);
    let setup = setup_with_a_role_between(&fakes).argument("--allow-node-role");
    let world = fakes.into_world(&setup);
    world.document(ip(2), NODE_ROLE_NAME);
    world.document(ip(3), "between");
}

#[test]
fn readiness_waits_for_the_intermediate_role_with_advice() {
    let fakes = fakes_with_a_role_between(NODE_ROLE_ARN);
    fakes.sts.set_role_behaviour(&arn("between"), Behaviour::AccessDenied);
    let setup = setup_with_a_role_between(&fakes);
    let world = fakes.into_world_without_identity(&setup);
    let line = world.daemon.wait_for_event("own-identity-unknown").unwrap();
    let (message, advice) = (line["error"].as_str().unwrap(), line["advice"].as_str().unwrap());
    let role = arn("between");
    for (text, part) in [
        (message, format!("the role of --assume-role-arn, {role}, cannot be assumed: AccessDenied")),
        (advice, format!("the trust policy of {role}")),
        (advice, format!("the daemon's base identity ({NODE_SESSION_ARN})")),
    ] {
        assert!(text.contains(&part), "{part} is not in {text}");
    }
    assert!(!format!("{message}{advice}").contains("instance profile"), "the advice is about something else: {line}");
    assert_eq!(world.credentials(ip(2), NODE_ROLE_NAME).status, 404, "the base identity is known");
    assert_eq!(world.credentials(ip(4), "web-role").status, 500);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="identity-unknown"}"#), 1.0);
    world.fakes.sts.set_role_behaviour(&role, Behaviour::Normal);
    world.daemon.wait_ready(None).unwrap();
    world.eventually(|world| world.credentials(ip(4), "web-role").status, |status| *status == 200);
    assert_eq!(world.credentials(ip(3), "between").status, 404);
}

#[test]
fn readiness_waits_for_the_base_identity_after_the_intermediate_role() {
    let fakes = fakes_with_a_role_between(NODE_ROLE_ARN);
    // The intermediate role can be assumed, and GetCallerIdentity fails.
    fakes.sts.set_behaviour(Behaviour::AccessDenied);
    for role in ["between", "web-role"] {
        fakes.sts.set_role_behaviour(&arn(role), Behaviour::Slow(std::time::Duration::ZERO));
    }
    let setup = setup_with_a_role_between(&fakes);
    let world = fakes.into_world_without_identity(&setup);
    assert_eq!(world.credentials(ip(4), "web-role").status, 500);
    assert_eq!(world.fakes.sts.assume_role_calls(), 0);
    world.fakes.sts.set_behaviour(Behaviour::Normal);
    world.daemon.wait_ready(None).unwrap();
    assert_eq!(world.credentials(ip(2), NODE_ROLE_NAME).status, 404);
}

/// The node's clock is ten minutes behind: by this clock, the session is still valid.
#[test]
fn an_intermediate_session_that_ended_by_stss_clock_is_replaced_at_once() {
    let fakes = fakes_with_a_role_between(NODE_ROLE_ARN);
    fakes.sts.set_clock_skew(600);
    let setup = setup_with_a_role_between(&fakes);
    let world = fakes.into_world(&setup);
    world.document(ip(4), "web-role");
    let ended = last_key_of(&world, &arn("between"));
    world.fakes.sts.expire(&ended);
    world.document(ip(5), "db-role");
    let outcomes: Vec<_> = calls_for(&world, &arn("db-role")).into_iter().map(|call| call.outcome).collect();
    assert_eq!(outcomes, ["ExpiredToken", "ok"], "one more call, with new credentials");
    assert_eq!(calls_for(&world, &arn("between")).len(), 2);
    assert_ne!(last_key_of(&world, &arn("between")), ended);
    assert_eq!(world.metric(DROPPED), 1.0);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="ok"}"#), 2.0);
    assert_eq!(world.daemon.get(None, "/readyz").unwrap().status, 200);
}

#[test]
fn instance_credentials_that_sts_rejects_are_read_again() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(4), Some("web-role"));
    fakes.pod("db", ip(5), Some("db-role"));
    let mut setup = fakes.setup();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_EC2_METADATA_DISABLED"] {
        setup = setup.without_env(name);
    }
    let world = fakes.into_world(&setup);
    world.document(ip(4), "web-role");
    // By the node's clock, they last for hours.
    let path = credentials_path();
    let reads = |world: &World| world.fakes.imds.requests().iter().filter(|request| request.target == path).count();
    let before = reads(&world);
    world.fakes.sts.add_caller("ASIANEWKEYS", "new-secret", Some("new-token"), NODE_SESSION_ARN);
    give_credentials(&world, "ASIANEWKEYS", "new-secret", "new-token");
    world.fakes.sts.expire(NODE_ACCESS_KEY_ID);
    world.document(ip(5), "db-role");
    assert_eq!((world.metric(DROPPED), reads(&world) - before), (1.0, 1));
}

/// If new credentials are rejected as well, each attempt costs one request to STS and not two.
#[test]
fn own_credentials_that_stay_rejected_are_not_reread() {
    let world = World::start();
    for role in ["web-role", "db-role"] {
        world.fakes.sts.set_role_behaviour(&arn(role), Behaviour::InvalidClientTokenId);
    }
    for (number, role) in [(2, "web-role"), (3, "db-role")] {
        assert_eq!(world.credentials(ip(number), role).status, 500);
    }
    assert_eq!((calls_for(&world, &arn("web-role")).len(), calls_for(&world, &arn("db-role")).len()), (2, 1));
    assert_eq!(world.metric(DROPPED), 1.0);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="own-identity"}"#), 2.0);
}

/// A failed renewal of the intermediate role is reported with its cause: an outage is no fault of the daemon's identity.
#[test]
fn a_failed_intermediate_renewal_names_outage_or_refusal() {
    for (behaviour, outcome) in [
        (Behaviour::AccessDenied, "own-identity"),
        (Behaviour::Throttling, "throttled"),
        (Behaviour::ServiceUnavailable, "failed"),
        (Behaviour::CloseBeforeAnswer, "unreachable"),
    ] {
        let fakes = fakes_with_a_role_between(NODE_ROLE_ARN);
        let setup = setup_with_a_role_between(&fakes).argument("--sts-timeout=30s");
        let world = fakes.into_world(&setup);
        world.fakes.sts.set_role_behaviour(&arn("between"), behaviour.clone());
        world.fakes.sts.expire(&last_key_of(&world, &arn("between")));
        assert_eq!(world.credentials(ip(4), "web-role").status, 500);
        let counted = world.metric(&format!(r#"rolegate_sts_requests_total{{cause="demand",outcome="{outcome}"}}"#));
        // Failures that may be temporary are retried once.
        let asked = if matches!(outcome, "failed" | "unreachable") { 2.0 } else { 1.0 };
        assert_eq!(counted, asked, "{behaviour:?} is not {outcome}: {}", world.daemon.log());
    }
}

/// The check does not wait for the hour in which it is due anyway.
#[test]
fn a_failed_intermediate_role_causes_an_identity_check() {
    let fakes = fakes_with_a_role_between(NODE_ROLE_ARN);
    let setup = setup_with_a_role_between(&fakes);
    let world = fakes.into_world(&setup);
    world.fakes.sts.set_role_behaviour(&arn("between"), Behaviour::AccessDenied);
    world.fakes.sts.expire(&last_key_of(&world, &arn("between")));
    assert_eq!(world.credentials(ip(4), "web-role").status, 500);
    let anew = |line: &serde_json::Value| {
        line["event"] == "own-identity-renewal-failed" && line["error"].as_str().unwrap().contains("--assume-role-arn")
    };
    world.daemon.wait_for_log(anew).unwrap();
    assert_eq!(world.daemon.get(None, "/readyz").unwrap().status, 200, "not unavailable for long yet");
}

/// Returns a daemon that completes short names from a metadata service, which names `account`.
fn discovering(account: &str) -> (Fakes, Setup) {
    let fakes = Fakes::new();
    // Keys that do not come from the metadata service may be of any account.
    fakes.sts.add_caller("AKIADAEMON", "daemon-secret", None, DAEMON);
    fakes.imds.set("/latest/meta-data/iam/info", &iam_info(account));
    let setup = fakes.setup().argument("--base-role-arn=").argument("--auto-discover-base-arn").without_env("AWS_EC2_METADATA_DISABLED");
    let setup = setup.without_env("AWS_SESSION_TOKEN").env("AWS_ACCESS_KEY_ID", "AKIADAEMON").env("AWS_SECRET_ACCESS_KEY", "daemon-secret");
    (fakes, setup)
}

fn is_not_ready(world: &World) {
    let ready = |world: &World| world.daemon.get(None, "/readyz").map(|answer| (answer.status, answer.text())).unwrap_or_default();
    let wanted =
        |(status, text): &(u16, String)| *status == 503 && text.trim() == "waiting for: a base ARN in the daemon's own AWS account";
    world.eventually(ready, wanted);
}

/// Whoever answers at the metadata address could choose the account of every short name.
#[test]
fn a_base_arn_of_another_account_completes_no_role() {
    const FORGED: &str = "999999999999";
    let in_full = format!("arn:aws:iam::{FORGED}:role/web-role");
    for between in [false, true] {
        let (fakes, mut setup) = discovering(FORGED);
        for role in [&in_full, &arn("web-role"), &arn("db-role")] {
            fakes.sts.add_role(Role::new(role).trusted_by(["*"]));
        }
        if between {
            // An intermediate role in that account is no proof.
            let hub = format!("arn:aws:iam::{FORGED}:role/hub");
            fakes.sts.add_role(Role::new(&hub).trusted_by(["*"]));
            setup = setup.argument(format!("--assume-role-arn={hub}"));
        }
        for (number, name, role) in [(2, "short", "web-role"), (3, "full", &in_full), (4, "own", &arn("db-role"))] {
            fakes.api.apply(Resource::Pods, pod(name, ip(number), Some(role)).build());
        }
        fakes.pod("plain", ip(5), None);
        let world = World { daemon: setup.argument("--default-role=web-role").start().unwrap(), fakes };
        is_not_ready(&world);
        let line = world.daemon.wait_for_event("foreign-account").unwrap();
        assert_eq!((line["account"].as_str(), line["level"].as_str()), (Some(FORGED), Some("ERROR")), "{line}");
        assert_eq!(line["identity"], DAEMON);
        for number in [2, 3, 5] {
            assert_eq!(world.credentials(ip(number), "web-role").status, 404, "{number}: {}", world.daemon.log());
        }
        assert_eq!(world.metric(r#"rolegate_denials_total{reason="foreign-account"}"#), 3.0, "{}", world.daemon.log());
        assert_eq!(calls_for(&world, &in_full).len(), 0, "STS was not called");
        // A full ARN in another account does not depend on it.
        world.document(ip(4), "db-role");
    }
}

#[test]
fn a_base_arn_of_the_own_account_or_from_a_flag_is_used() {
    let (fakes, setup) = discovering("111122223333");
    let pod_of = |fakes: &Fakes| {
        fakes.pod("web", ip(2), Some("web-role"));
        fakes.sts.add_role(Role::new(arn("web-role")).trusted_by(["*"]));
    };
    pod_of(&fakes);
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    let (fakes, setup) = discovering("999999999999");
    pod_of(&fakes);
    let setup = setup.argument("--auto-discover-base-arn=false").argument("--base-role-arn=arn:aws:iam::111122223333:role/");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
}

fn credentials_path() -> String {
    format!("/latest/meta-data/iam/security-credentials/{NODE_ROLE_NAME}")
}

/// Makes the metadata service give these credentials to the instance.
fn give_credentials(world: &World, access_key_id: &str, secret_access_key: &str, token: &str) {
    let end = rolegate::clock::Clock::system().now() + std::time::Duration::from_secs(6 * 3600);
    let document = serde_json::json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": end.to_string(),
        "AccessKeyId": access_key_id, "SecretAccessKey": secret_access_key, "Token": token,
    });
    world.fakes.imds.set(&credentials_path(), &document.to_string());
}

fn iam_info(account: &str) -> String {
    format!(
        r#"{{"Code":"Success","InstanceProfileArn":"arn:aws:iam::{account}:instance-profile/nodes","InstanceProfileId":"AIPAEXAMPLE"}}"#
    )
}

/// Waits until the daemon has found the contradiction, and checks that it serves nothing.
#[track_caller]
fn assert_contradicted(world: &World, words: &str) {
    let line = world.daemon.wait_for_event("account-contradicted").unwrap();
    assert!(line["level"] == "ERROR" && line["contradiction"].as_str().unwrap().contains(words), "{line}");
    let ready = |world: &World| world.daemon.get(None, "/readyz").map(|answer| (answer.status, answer.text())).unwrap_or_default();
    world
        .eventually(ready, |(status, text)| *status == 503 && text.contains("a metadata service that agree about this node's AWS account"));
    assert_eq!(world.metric("rolegate_account_contradicted"), 1.0);
    let calls = world.fakes.sts.calls().len();
    // Neither the session that is cached nor a new one.
    for (number, role) in [(2, "web-role"), (3, "db-role")] {
        assert_eq!(world.credentials(ip(number), role).status, 404, "{role}: {}", world.daemon.log());
    }
    assert!(world.metric(r#"rolegate_denials_total{reason="contradicted-account"}"#) >= 2.0);
    assert_eq!(world.fakes.sts.calls().len(), calls, "STS was not called");
}

/// The metadata service gives the instance's credentials, and names an account that STS does not confirm.
#[test]
fn an_instance_of_another_account_than_its_credentials_serves_nothing() {
    let fakes = Fakes::new();
    fakes.imds.set("/latest/meta-data/iam/info", &iam_info("999999999999"));
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some(&arn("db-role")));
    let daemon = fakes.setup().without_env("AWS_EC2_METADATA_DISABLED").start().unwrap();
    let world = World { daemon, fakes };
    assert_contradicted(&world, "999999999999");
}

/// A tenant's Service takes over the metadata address of a node that serves: the next credentials are of the tenant's own account.
#[test]
fn credentials_of_another_account_end_the_service() {
    const FOREIGN: &str = "arn:aws:sts::999999999999:assumed-role/tenant/i-0f1e2d3c4b5a69788";
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    let mut setup = fakes.setup().argument("--iam-role-error-ttl=1s");
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_EC2_METADATA_DISABLED"] {
        setup = setup.without_env(name);
    }
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    assert_eq!(world.metric("rolegate_account_contradicted"), 0.0);

    world.fakes.sts.add_caller("ASIATENANT", "tenant-secret", Some("tenant-token"), FOREIGN);
    give_credentials(&world, "ASIATENANT", "tenant-secret", "tenant-token");
    // The daemon reads new credentials. It notices whose they are as soon as it uses them.
    world.fakes.sts.expire(NODE_ACCESS_KEY_ID);
    assert_ne!(world.credentials(ip(3), "db-role").status, 200, "{}", world.daemon.log());
    assert_contradicted(&world, FOREIGN);
}

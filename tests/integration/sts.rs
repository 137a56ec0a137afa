//! Tests of STS: one call for many requests, and what pods see if it fails.

use rolegate_lab::sts::{Behaviour, Role};

use crate::world::{Fakes, ROLES, TOKEN, World, arn, ip};

#[test]
fn a_hundred_first_requests_make_one_call() {
    let world = World::start();
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::Slow(std::time::Duration::from_millis(300)));
    let token = world.new_token(ip(2)).text();
    let path = format!("{ROLES}web-role");
    let bodies: Vec<_> = std::thread::scope(|scope| {
        let ask = || {
            let answer = world.request(ip(2), "GET", &path, &[(TOKEN, &token)]);
            assert_eq!(answer.status, 200);
            answer.body
        };
        let callers: Vec<_> = (0..100).map(|_| scope.spawn(ask)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    assert_eq!(world.fakes.sts.assume_role_calls(), 1);
    assert_eq!(world.metric(r#"rolegate_session_lookups_total{result="miss"}"#), 1.0);
}

#[test]
fn a_client_that_disconnects_does_not_end_the_call() {
    let world = World::start();
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::Slow(std::time::Duration::from_millis(500)));
    let token = world.new_token(ip(2)).text();
    {
        use std::io::Write as _;
        let mut impatient = world.connect(ip(2));
        write!(impatient, "GET {ROLES}web-role HTTP/1.1\r\nHost: 169.254.169.254\r\n{TOKEN}: {token}\r\n\r\n").unwrap();
        world.fakes.runtime.block_on(world.fakes.sts.wait_until(|calls| calls.iter().any(|call| call.action == "AssumeRole")));
    }
    world.document(ip(2), "web-role");
    assert_eq!(world.fakes.sts.assume_role_calls(), 1);
}

#[test]
fn a_refusal_is_cached_and_affects_no_other_role() {
    let world = World::start();
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::AccessDenied);
    for _ in 0..20 {
        let answer = world.credentials(ip(2), "web-role");
        assert_eq!((answer.status, answer.body.len()), (500, 0));
    }
    assert_eq!(world.fakes.sts.assume_role_calls(), 1);
    world.document(ip(3), "db-role");
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="denied"}"#), 1.0);
    assert_eq!(world.metric(r#"rolegate_session_lookups_total{result="remembered"}"#), 19.0);
    let log = world.daemon.wait_for_log(|line| line["event"] == "credentials-unavailable" && line["pod"] == "web");
    let log = log.unwrap();
    assert!(log["advice"].as_str().unwrap().contains("trust policy"), "the advice does not name the trust policy: {log}");
}

#[test]
fn a_failure_is_forgotten_after_its_ttl() {
    let world = World::start_with(|setup| setup.argument("--iam-role-error-ttl=1s"));
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::AccessDenied);
    assert_eq!(world.credentials(ip(2), "web-role").status, 500);
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::Normal);
    world.eventually(|world| world.credentials(ip(2), "web-role").status, |status| *status == 200);
}

#[test]
fn every_failure_of_sts_is_a_500_with_its_own_metrics_label() {
    use Behaviour::*;
    let cases = [
        (Throttling, "throttled"),
        (ExpiredToken, "own-identity"),
        (InvalidClientTokenId, "own-identity"),
        (RegionDisabled, "invalid"),
        (ServiceUnavailable, "failed"),
        (InternalFailure, "failed"),
        (Malformed, "failed"),
        (MissingFields, "failed"),
        (Truncated, "failed"),
        (CloseBeforeAnswer, "unreachable"),
        (CloseMidBody, "failed"),
    ];
    std::thread::scope(|scope| {
        for (behaviour, outcome) in cases {
            scope.spawn(move || {
                let world = World::start();
                world.fakes.sts.set_role_behaviour(&arn("web-role"), behaviour.clone());
                let answer = world.credentials(ip(2), "web-role");
                assert_eq!((answer.status, answer.body.len()), (500, 0), "{behaviour:?}");
                let counted = world.metric(&format!(r#"rolegate_sts_requests_total{{cause="demand",outcome="{outcome}"}}"#));
                // Failures that may be temporary are retried once, and every call is counted.
                let asked = if matches!(outcome, "failed" | "unreachable") { 2 } else { 1 };
                assert_eq!(counted, f64::from(asked), "{behaviour:?} is not {outcome}:\n{}", world.daemon.log());
                // Except if the daemon's own credentials are rejected: then it retries once with new ones.
                let expected = if outcome == "own-identity" { 2 } else { usize::try_from(asked).unwrap() };
                assert_eq!(world.fakes.sts.assume_role_calls(), expected, "{behaviour:?}");
            });
        }
    });
}

#[test]
fn a_connection_that_is_lost_once_does_not_affect_a_pod() {
    let world = World::start();
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::Then(vec![Behaviour::CloseBeforeAnswer]));
    world.document(ip(2), "web-role");
    for outcome in ["unreachable", "ok"] {
        assert_eq!(world.metric(&format!(r#"rolegate_sts_requests_total{{cause="demand",outcome="{outcome}"}}"#)), 1.0);
    }
}

#[test]
fn a_daemon_without_own_credentials_reports_it() {
    let world = World::start_without_identity(|setup| {
        let setup = setup.without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY").without_env("AWS_SESSION_TOKEN");
        setup.env("HOME", "/nonexistent")
    });
    assert_eq!(world.credentials(ip(2), "web-role").status, 500);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="identity-unknown"}"#), 1.0, "{}", world.daemon.log());
}

#[test]
fn an_unreachable_sts_is_reported() {
    let nobody = crate::world::loopback().local_addr().unwrap();
    let world = World::start_without_identity(|setup| setup.env("AWS_ENDPOINT_URL_STS", format!("http://{nobody}")));
    assert_eq!(world.credentials(ip(2), "web-role").status, 500);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="identity-unknown"}"#), 1.0);
    let log = world.daemon.wait_for_log(|line| line["pod"] == "web").unwrap();
    assert!(log["error"].as_str().unwrap().contains("STS cannot be reached"), "{log}");
}

/// Before the daemon knows its identity, no pod gets anything; and however many pods send requests, STS is not called more
/// often for that.
#[test]
fn a_failing_get_caller_identity_is_retried_with_backoff() {
    let fakes = Fakes::new();
    fakes.sts.set_behaviour(Behaviour::AccessDenied);
    for number in 0..20_u8 {
        fakes.pod(&format!("web-{number}"), ip(number + 2), Some(&format!("role-{number}")));
    }
    let setup = fakes.setup();
    let world = fakes.into_world_without_identity(&setup);
    let began = std::time::Instant::now();
    for number in 0..20_u8 {
        assert_eq!(world.credentials(ip(number + 2), &format!("role-{number}")).status, 500);
    }
    // At the start, then after 1 s, 3 s, 7 s and so on: at most one per second.
    let most = 2 + began.elapsed().as_secs() as usize;
    let asked = world.fakes.sts.calls().len();
    assert!((1..=most).contains(&asked), "{asked} calls, at most {most}");
    assert_eq!(world.fakes.sts.assume_role_calls(), 0);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="identity-unknown"}"#), 20.0, "{}", world.daemon.log());
    let log = world.daemon.wait_for_log(|line| line["pod"] == "web-0").unwrap();
    let advice = log["advice"].as_str().unwrap();
    assert!(advice.contains("must allow sts:GetCallerIdentity") && advice.contains("VPC endpoint"), "{log}");
    assert!(!log.to_string().contains("trust policy"), "{log}");
}

#[test]
fn credentials_near_their_end_are_renewed_before_serving() {
    let world = World::start();
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::ExpiresIn(std::time::Duration::from_secs(11)));
    let first = world.document(ip(2), "web-role");
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::Normal);
    // While STS works, the second half of a session of eleven seconds is not served.
    let second = world.eventually(|world| world.document(ip(2), "web-role"), |document| document["AccessKeyId"] != first["AccessKeyId"]);
    assert_ne!(second["Expiration"], first["Expiration"]);
}

#[test]
fn the_own_identity_comes_from_the_given_metadata_service() {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(arn("k8s/web")));
    fakes.pod("web", ip(2), Some("/k8s/web"));
    fakes.pod("plain", ip(3), None);
    let mut setup = fakes.setup();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_EC2_METADATA_DISABLED"] {
        setup = setup.without_env(name);
    }
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web");
    let calls = world.fakes.sts.calls();
    let call = calls.iter().find(|call| call.action == "AssumeRole").unwrap();
    assert_eq!(call.caller_arn.as_deref(), Some(rolegate_lab::sts::NODE_SESSION_ARN));
    assert_eq!(call.region.as_deref(), Some("eu-central-1"));
    let identity = world.daemon.wait_for_event("own-identity").unwrap();
    assert_eq!(identity["arn"], rolegate_lab::sts::NODE_SESSION_ARN);
    assert!(world.fakes.imds.requests().iter().all(|request| request.method == "PUT" || request.had_valid_token), "always with a token");
}

#[test]
fn base_arn_and_node_role_are_discovered() {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(arn("web")));
    fakes.pod("web", ip(2), Some("web"));
    fakes.pod("plain", ip(3), None);
    let setup = fakes.setup().argument("--base-role-arn=").argument("--auto-discover-base-arn");
    let setup = setup.argument("--auto-discover-default-role").argument("--allow-node-role").without_env("AWS_EC2_METADATA_DISABLED");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web");
    assert_eq!(world.get(ip(3), ROLES).text(), rolegate_lab::imds::NODE_ROLE_NAME, "the operator allowed it with both flags");
}

#[test]
fn no_secret_is_in_the_log_or_the_metrics() {
    let world = World::start_with(|setup| setup.argument("--log-level=trace").argument("--debug"));
    let document = world.document(ip(2), "web-role");
    world.fakes.sts.set_role_behaviour(&arn("db-role"), Behaviour::Malformed);
    world.credentials(ip(3), "db-role");
    let token = world.new_token(ip(2)).text();
    let shown =
        [world.daemon.log(), world.daemon.get(None, "/metrics").unwrap().text(), world.daemon.get(None, "/debug/store").unwrap().text()];
    for secret in [
        document["SecretAccessKey"].as_str().unwrap(),
        document["Token"].as_str().unwrap(),
        &token,
        rolegate_lab::sts::NODE_SECRET_ACCESS_KEY,
    ] {
        assert!(shown.iter().all(|text| !text.contains(secret)), "{secret} is shown");
    }
    assert!(shown[0].contains(document["AccessKeyId"].as_str().unwrap()), "the access key id is how a session is found in CloudTrail");
    assert!(shown[2].contains(r#""127.0.1.2":"web-role""#), "{}", shown[2]);
}

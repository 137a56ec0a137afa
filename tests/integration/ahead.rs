//! Tests of sessions that the daemon fetches ahead of need.

use std::time::Duration;

use rolegate_lab::sts::{Behaviour, Role};

use crate::world::{Fakes, ROLES, TOKEN, World, arn, ip};

/// Starts a daemon that prefetches and has listed its pods.
fn world() -> World {
    let fakes = Fakes::new();
    let setup = fakes.setup().argument("--prefetch=true");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_event("own-identity").unwrap();
    world
}

fn calls_for(world: &World, role: &str) -> usize {
    let arn = arn(role);
    world.fakes.sts.calls().iter().filter(|call| call.role_arn.as_deref() == Some(&arn)).count()
}

#[test]
fn a_session_is_fetched_before_the_first_request() {
    let world = world();
    world.fakes.pod("web", ip(2), Some("web-role"));
    world.eventually(|world| world.metric("rolegate_sessions"), |held| *held == 1.0);
    assert_eq!(calls_for(&world, "web-role"), 1, "requested before the first request of a pod");
    // From now on STS does not answer: what is served was fetched before.
    world.fakes.sts.set_behaviour(Behaviour::Hang);
    world.document(ip(2), "web-role");
    assert_eq!(calls_for(&world, "web-role"), 1);
    assert_eq!(world.metric(r#"rolegate_session_lookups_total{result="hit"}"#), 1.0);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="prefetch",outcome="ok"}"#), 1.0);
    let left = world.metric("rolegate_session_earliest_expiry_seconds");
    assert!((3500.0..=3600.0).contains(&left), "{left}");
}

#[test]
fn a_session_is_renewed_until_its_pod_is_deleted() {
    let world = world();
    world.fakes.sts.set_behaviour(Behaviour::ExpiresIn(Duration::from_secs(12)));
    world.fakes.pod("web", ip(2), Some("web-role"));
    world.fakes.pod("db", ip(3), Some("db-role"));
    let three = |world: &World, role: &str| {
        world.eventually(|world| calls_for(world, role), |calls| *calls >= 3);
    };
    three(&world, "web-role");
    three(&world, "db-role");
    assert!(world.metric(r#"rolegate_sts_requests_total{cause="renewal",outcome="ok"}"#) >= 2.0);
    world.fakes.delete_pod("web");
    world.eventually(|world| world.metric("rolegate_sessions"), |held| *held == 1.0);
    let (web, db) = (calls_for(&world, "web-role"), calls_for(&world, "db-role"));
    // While another session is renewed twice more, none is requested for the deleted pod.
    world.eventually(|world| calls_for(world, "db-role"), |calls| *calls >= db + 2);
    assert_eq!(calls_for(&world, "web-role"), web);
}

#[test]
fn a_request_waits_for_sts_until_the_configured_limit() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    let setup = fakes.setup().argument("--sts-timeout=300ms");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_event("own-identity").unwrap();
    world.fakes.sts.set_behaviour(Behaviour::Hang);
    let token = world.new_token(ip(2)).text();
    let began = std::time::Instant::now();
    let answer = world.request(ip(2), "GET", &format!("{ROLES}web-role"), &[(TOKEN, &token)]);
    assert_eq!((answer.status, answer.body.len()), (500, 0));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let counted = world
        .eventually(|world| world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="unreachable"}"#), |counted| *counted > 0.0);
    assert_eq!(counted, 1.0);
}

#[test]
fn a_role_with_a_lower_limit_gets_one_hour_and_one_attempt() {
    let fakes = Fakes::new();
    fakes.pod("web-1", ip(2), Some("web-role"));
    fakes.pod("web-2", ip(3), Some("web-role"));
    fakes.pod("db", ip(4), Some("db-role"));
    fakes.sts.add_role(Role::new(arn("db-role")).max_session(Duration::from_secs(7200)));
    let setup = fakes.setup().argument("--session-duration=2h");
    let world = fakes.into_world(&setup);
    for (pod, role) in [(2, "web-role"), (3, "web-role"), (4, "db-role")] {
        world.document(ip(pod), role);
    }
    let calls: Vec<_> = world.fakes.sts.calls().into_iter().filter(|call| call.action == "AssumeRole").collect();
    let asked: Vec<_> = calls.iter().map(|call| call.duration_seconds.unwrap()).collect();
    assert_eq!(asked, [7200, 3600, 3600, 7200], "the role's second session is requested with an hour at once");
    let told = world.daemon.events("session-duration-limited").len();
    assert_eq!(told, 1);
}

#[test]
fn expirations_follow_the_clock_of_a_node_ten_minutes_off() {
    for skew in [600, -600] {
        let world = World::start();
        world.fakes.sts.set_clock_skew(skew);
        let document = world.document(ip(2), "web-role");
        let end: jiff::Timestamp = document["Expiration"].as_str().unwrap().parse().unwrap();
        let left = end.duration_since(rolegate::clock::Clock::system().now()).as_secs();
        assert!((3560..=3602).contains(&left), "{left} seconds left, with STS {skew} seconds ahead");
        world.daemon.wait_for_event("clock-skew").unwrap();
    }
}

#[test]
fn a_short_session_is_not_kept_past_its_end_by_clock_skew() {
    let world = World::start();
    world.fakes.sts.set_clock_skew(600);
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::ExpiresIn(Duration::from_secs(3)));
    // By STS's clock it ends 10 minutes and 3 seconds after the node's current time.
    assert_eq!(world.credentials(ip(2), "web-role").status, 500, "less than 5 seconds are left, so it is not served");
}

#[test]
fn the_intermediate_role_is_assumed_first_and_assumes_others() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("thief", ip(3), Some("between"));
    fakes.sts.add_role(Role::new(arn("between")));
    fakes.sts.add_role(Role::new(arn("web-role")).trusted_by([arn("between")]));
    let setup = fakes.setup().argument(format!("--assume-role-arn={}", arn("between"))).argument("--session-duration=2h");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    let calls = world.fakes.sts.calls();
    let call = calls.iter().find(|call| call.role_arn == Some(arn("web-role"))).unwrap();
    assert!(call.caller_arn.as_deref().unwrap().contains(":assumed-role/between/rolegate-node-a"), "{call:?}");
    assert_eq!(call.duration_seconds, Some(3600), "a chained session never gets more");
    let between = calls.iter().filter(|call| call.role_arn == Some(arn("between"))).count();
    assert_eq!(between, 1, "the intermediate role's session is kept");
    assert_eq!(world.credentials(ip(3), "between").status, 404, "the role is now the daemon's own, so no pod gets it");
}

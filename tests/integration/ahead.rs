//! Sessions ahead of need, by the daemon itself.

use rolegate_lab::sts::Behaviour;

use crate::world::{Fakes, ROLES, TOKEN, World, arn, ip};

/// A daemon that fetches ahead, and that has listed its pods.
fn world() -> World {
    let fakes = Fakes::new();
    let setup = fakes.setup().argument("--prefetch=true");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_log(|line| line["message"] == "the daemon's own AWS identity").unwrap();
    world
}

fn calls_for(world: &World, role: &str) -> usize {
    let arn = arn(role);
    world.fakes.sts.calls().iter().filter(|call| call.role_arn.as_deref() == Some(&arn)).count()
}

#[test]
fn a_pods_session_is_there_before_it_asks() {
    let world = world();
    world.fakes.pod("web", ip(2), Some("web-role"));
    world.eventually(|world| world.metric("rolegate_sessions"), |held| *held == 1.0);
    assert_eq!(calls_for(&world, "web-role"), 1, "asked for before the first request");
    // From now on nothing answers: what is served was there.
    world.fakes.sts.set_behaviour(Behaviour::Hang);
    world.document(ip(2), "web-role");
    assert_eq!(calls_for(&world, "web-role"), 1);
    assert_eq!(world.metric(r#"rolegate_session_lookups_total{result="hit"}"#), 1.0);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="prefetch",outcome="ok"}"#), 1.0);
    let left = world.metric("rolegate_session_earliest_expiry_seconds");
    assert!((3500.0..=3600.0).contains(&left), "{left}");
}

#[test]
fn a_session_is_renewed_while_its_pod_is_here_and_forgotten_with_it() {
    let world = world();
    world.fakes.sts.set_behaviour(Behaviour::ExpiresIn(std::time::Duration::from_secs(12)));
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
    // As long as the one beside it is renewed twice more, nobody asks for the deleted pod's.
    world.eventually(|world| calls_for(world, "db-role"), |calls| *calls >= db + 2);
    assert_eq!(calls_for(&world, "web-role"), web);
}

#[test]
fn a_request_waits_for_sts_no_longer_than_it_is_told() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    let setup = fakes.setup().argument("--sts-timeout=300ms");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_log(|line| line["message"] == "the daemon's own AWS identity").unwrap();
    world.fakes.sts.set_behaviour(Behaviour::Hang);
    let token = world.new_token(ip(2)).text();
    let began = std::time::Instant::now();
    let answer = world.request(ip(2), "GET", &format!("{ROLES}web-role"), &[(TOKEN, &token)]);
    assert_eq!((answer.status, answer.body.len()), (500, 0));
    assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
    let counted = world
        .eventually(|world| world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="unreachable"}"#), |counted| *counted > 0.0);
    assert_eq!(counted, 1.0);
}

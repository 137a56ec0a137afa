//! Tests that one pod's use of sessions does not affect other pods, and that STS responses for another session are discarded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rolegate_lab::kube::{PodBuilder, Resource, namespace};
use rolegate_lab::player;
use rolegate_lab::sts::{Behaviour, Role};
use serde_json::Value;

use crate::world::{Fakes, NODE, ROLES, TOKEN, TOKEN_TTL, World, arn, ip, pod};

const SESSION_NAME: &str = "iam.amazonaws.com/session-name";

fn calls_for(world: &World, role: &str) -> usize {
    let arn = arn(role);
    world.fakes.sts.calls().iter().filter(|call| call.role_arn.as_deref() == Some(&arn)).count()
}

/// Starts a daemon that prefetches and knows its identity.
fn world_with(change: impl FnOnce(&Fakes)) -> World {
    let fakes = Fakes::new();
    change(&fakes);
    let setup = fakes.setup().argument("--prefetch=true");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_event("own-identity").unwrap();
    world
}

/// A pod's session name is patched 45 times a second while the pod sends requests, and other pods appear, send requests and
/// have their sessions renewed.
#[test]
fn constant_changes_of_a_session_name_starve_no_other_pod() {
    let world = world_with(|fakes| {
        fakes.pod("evil", ip(2), Some("evil-role"));
        fakes.sts.set_role_behaviour(&arn("evil-role"), Behaviour::Slow(Duration::from_millis(150)));
        // Renewed at about half its lifetime, so that it does not expire if the machine stalls for seconds.
        fakes.pod("held", ip(3), Some("held-role"));
        fakes.sts.set_role_behaviour(&arn("held-role"), Behaviour::ExpiresIn(Duration::from_secs(20)));
    });
    let (began, is_over) = (Instant::now(), AtomicBool::new(false));
    let changes = std::thread::scope(|scope| {
        let attack = scope.spawn(|| {
            let mut changes = 0_usize;
            while !is_over.load(Ordering::Relaxed) {
                changes += 1;
                let changed = pod("evil", ip(2), Some("evil-role")).annotation(SESSION_NAME, &format!("session-{changes}"));
                world.fakes.api.apply(Resource::Pods, changed.build());
                std::thread::sleep(Duration::from_millis(22));
            }
            changes
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                world.credentials(ip(2), "evil-role");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // Whatever fails, the other threads end.
        let others = scope.spawn(|| {
            for number in 10..50 {
                world.fakes.pod(&format!("web-{number}"), ip(number), Some("web-role"));
                world.document(ip(number), "web-role");
                world.document(ip(3), "held-role");
            }
            while calls_for(&world, "held-role") < 2 {
                world.document(ip(3), "held-role");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let others = others.join();
        is_over.store(true, Ordering::Relaxed);
        others.unwrap();
        attack.join().unwrap()
    });
    // Five new sessions at once, and one more every ten seconds. A session that exists is not requested again.
    let most = 5 + usize::try_from(began.elapsed().as_secs()).unwrap() / 10 + 1;
    let of_evil = calls_for(&world, "evil-role");
    assert!(changes > 2 * most, "{changes} changes show nothing");
    assert!((1..=most).contains(&of_evil), "{of_evil} requests of a pod that changed {changes} times, at most {most}");
    assert!(world.metric(r#"rolegate_sts_turned_away_total{reason="too-many-changes"}"#) >= 1.0);
    let line = world.daemon.wait_for_event("sts-request-turned-away").unwrap();
    assert_eq!((&line["namespace"], &line["pod"], &line["reason"]), (&"shop".into(), &"evil".into(), &"too-many-changes".into()));
    let lines = world.daemon.events("sts-request-turned-away").len();
    let minutes = 1 + usize::try_from(began.elapsed().as_secs()).unwrap() / 60;
    assert!(lines <= minutes, "{lines} lines in {minutes} minutes");
    let is_told = |world: &World| {
        let events = world.fakes.api.events();
        events.iter().any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["regarding"]["name"] == "evil" && event["reason"] == "AssumeRoleFailed" && note.starts_with("too-many-changes: ")
        })
    };
    world.eventually(is_told, |told| *told);
    // Nothing of it stays in the queue.
    for cause in ["demand", "prefetch", "renewal"] {
        world.eventually(|world| world.metric(&format!(r#"rolegate_sts_queue{{cause="{cause}"}}"#)), |waiting| *waiting == 0.0);
    }
}

#[test]
fn an_unsent_request_is_not_blamed_on_the_network() {
    let fakes = Fakes::new();
    for (name, last) in [("first", 2), ("second", 3), ("third", 4)] {
        fakes.pod(name, ip(last), Some(name));
    }
    let setup = fakes.setup().argument("--sts-timeout=3s").argument("--sts-concurrency=1");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_event("own-identity").unwrap();
    world.fakes.sts.set_behaviour(Behaviour::Hang);
    let tokens = [2, 3, 4].map(|last| world.new_token(ip(last)).text());
    let ask = |last: u8, name: &str, token: &str| world.request(ip(last), "GET", &format!("{ROLES}{name}"), &[(TOKEN, token)]);
    std::thread::scope(|scope| {
        scope.spawn(|| ask(2, "first", &tokens[0]));
        world.eventually(|world| calls_for(world, "first"), |calls| *calls == 1);
        // Its turn comes when the first one times out, and lasts as long.
        scope.spawn(|| ask(3, "second", &tokens[1]));
        world.eventually(|world| world.metric(r#"rolegate_sts_queue{cause="demand"}"#), |waiting| *waiting == 1.0);
        let answer = ask(4, "third", &tokens[2]);
        assert_eq!((answer.status, answer.body.len()), (500, 0));
    });
    let line = world.daemon.wait_for_log(|line| line["pod"] == "third").unwrap();
    assert!(line["advice"].as_str().unwrap_or_default().contains("--sts-concurrency"), "{line}");
    assert!(!line["error"].as_str().unwrap().contains("cannot be reached"), "{line}");
    assert!(world.metric(r#"rolegate_sts_turned_away_total{reason="queued"}"#) >= 1.0);
}

/// Checks that no key of a session that STS issued appears in an answer.
fn assert_that_nothing_is_shown(world: &World) {
    let shown = world.daemon.log();
    for issued in world.fakes.sts.issued() {
        assert!(!shown.contains(&issued.access_key_id), "{shown}");
    }
}

#[test]
fn a_session_for_another_role_is_never_served() {
    for other in
        ["arn:aws:iam::111122223333:role/other", "arn:aws:iam::444455556666:role/web-role", "arn:aws-cn:iam::111122223333:role/web-role"]
    {
        let world = World::start();
        world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::AnswersFor(other.to_owned()));
        let answer = world.credentials(ip(2), "web-role");
        assert_eq!((answer.status, answer.body.len()), (500, 0), "{other}");
        let line = world.daemon.wait_for_event("sts-answered-for-another-role").unwrap();
        assert_eq!((&line["level"], &line["role"]), (&"ERROR".into(), &arn("web-role").into()), "{line}");
        assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="other-role"}"#), 1.0);
        assert_that_nothing_is_shown(&world);
        world.document(ip(3), "db-role");
    }
}

#[test]
fn an_sts_answer_without_a_role_is_discarded() {
    let world = World::start();
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::MissingField("AssumedRoleUser"));
    assert_eq!(world.credentials(ip(2), "web-role").status, 500);
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="other-role"}"#), 1.0);
    assert_that_nothing_is_shown(&world);
}

#[test]
fn a_renewal_for_another_role_leaves_the_held_session() {
    let world = world_with(|fakes| {
        fakes.sts.add_role(Role::new(arn("web-role")));
        fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::ExpiresIn(Duration::from_secs(14)));
    });
    world.fakes.pod("web", ip(2), Some("web-role"));
    let first = world.document(ip(2), "web-role");
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::AnswersFor(arn("other")));
    let renewed = |world: &World| world.metric(r#"rolegate_sts_requests_total{cause="renewal",outcome="other-role"}"#);
    // The document is that of the previous session until it expires.
    let mut served_after_a_renewal = 0;
    loop {
        let has_failed = world.fakes.sts.calls().iter().filter(|call| call.role_arn == Some(arn("web-role"))).count() >= 2;
        let answer = world.credentials(ip(2), "web-role");
        if answer.status != 200 {
            break;
        }
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(document["AccessKeyId"], first["AccessKeyId"]);
        served_after_a_renewal += usize::from(has_failed);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(served_after_a_renewal > 0, "{}", world.daemon.log());
    assert!(renewed(&world) >= 1.0);
    let issued = world.fakes.sts.issued();
    for other in issued.iter().filter(|issued| issued.role_arn == arn("other")) {
        assert!(!world.daemon.log().contains(&other.access_key_id));
    }
}

/// Finished pods stay in the API as long as their author likes, in any number of namespaces, and their author can set
/// `spec.nodeName` to this node.
#[test]
fn finished_and_host_network_pods_cost_no_watch_of_their_namespaces() {
    let fakes = Fakes::new();
    let setup = fakes.setup().argument("--namespace-restrictions");
    let world = fakes.into_world(&setup);
    for number in 0..60 {
        let pod = PodBuilder::new(&format!("tenant-{number}"), "p").node(NODE);
        let pod = match number % 3 {
            0 => pod.phase("Failed"),
            1 => pod.phase("Succeeded"),
            _ => pod.host_network(true),
        };
        world.fakes.api.apply(Resource::Pods, pod.build());
    }
    // The API delivers in order: once this pod is known, all before it are.
    world.fakes.api.apply(Resource::Namespaces, namespace("shop", &[("iam.amazonaws.com/allowed-roles", r#"["*"]"#)]));
    world.fakes.pod("web", ip(2), Some("web-role"));
    world.eventually(|world| world.get(ip(2), ROLES).text(), |role| role == "web-role");
    assert_eq!(world.fakes.api.watchers(Resource::Namespaces), 1);
}

/// On a real network, a connection never passes to the next pod with the same address.
#[test]
fn a_connection_of_the_previous_pod_is_refused_and_closed() {
    let world = World::start();
    let kept = world.connect(ip(2));
    assert_eq!(player::request(kept.try_clone().unwrap(), "PUT", "/latest/api/token", &[(TOKEN_TTL, "60")]).unwrap().status, 200);
    world.fakes.delete_pod("web");
    world.fakes.pod("next", ip(2), Some("next-role"));
    world.eventually(|world| world.get(ip(2), ROLES).text(), |role| role == "next-role");
    let answer = player::request(kept.try_clone().unwrap(), "PUT", "/latest/api/token", &[(TOKEN_TTL, "60")]).unwrap();
    assert_eq!((answer.status, answer.header("connection")), (500, Some("close")));
}

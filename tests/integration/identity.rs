//! Who is asking: pods that come, go, wait, and share addresses over time.

use std::time::Duration;

use rolegate_lab::kube::{Resource, namespace};

use crate::world::{Fakes, ROLES, TOKEN, World, ip, pod};

#[test]
fn a_pod_that_appears_after_it_asked_is_answered() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=15s"));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| world.get(ip(9), ROLES));
        world.eventually(|world| world.metric("rolegate_pod_waits_in_flight"), |waiting| *waiting == 1.0);
        world.fakes.pod("late", ip(9), Some("late-role"));
        assert_eq!(asked.join().unwrap().text(), "late-role");
    });
    assert_eq!(world.metric(r#"rolegate_pod_wait_seconds_count{outcome="found"}"#), 1.0);
}

#[test]
fn a_pod_that_gets_its_address_after_it_asked_is_answered() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=15s"));
    let without_address =
        || rolegate_lab::kube::PodBuilder::new("shop", "late").node("node-a").annotation("iam.amazonaws.com/role", "late-role");
    world.fakes.api.apply(Resource::Pods, without_address().build());
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| world.get(ip(9), ROLES));
        world.eventually(|world| world.metric("rolegate_pod_waits_in_flight"), |waiting| *waiting == 1.0);
        world.fakes.api.apply(Resource::Pods, without_address().ip(&ip(9).to_string()).build());
        assert_eq!(asked.join().unwrap().text(), "late-role");
    });
}

#[test]
fn a_deleted_pod_gets_nothing_any_more() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=50ms"));
    let token = world.new_token(ip(2)).text();
    world.document(ip(2), "web-role");
    world.fakes.delete_pod("web");
    let ask = |world: &World| world.request(ip(2), "GET", ROLES, &[(TOKEN, &token)]).status;
    world.eventually(ask, |status| *status == 404);
    assert_eq!(world.credentials(ip(2), "web-role").status, 404);
}

#[test]
fn the_next_pod_of_an_address_gets_its_own_role_and_not_the_last_ones() {
    let world = World::start();
    let old_token = world.new_token(ip(2)).text();
    world.document(ip(2), "web-role");
    world.fakes.delete_pod("web");
    world.fakes.pod("next", ip(2), Some("next-role"));
    // The old pod's token may be refused before, and is after; at no time does it open the next one's role.
    let ask = |world: &World| world.request(ip(2), "GET", ROLES, &[(TOKEN, &old_token)]);
    world.eventually(ask, |answer| {
        assert!(answer.status != 200 || answer.text() == "web-role", "{answer:?}");
        answer.status == 401
    });
    assert_eq!(world.get(ip(2), ROLES).text(), "next-role");
    assert_eq!(world.credentials(ip(2), "web-role").status, 404);
    world.document(ip(2), "next-role");
}

#[test]
fn finished_and_host_network_pods_claim_no_address() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=50ms"));
    world.fakes.api.apply(Resource::Pods, pod("job", ip(20), Some("web-role")).phase("Succeeded").build());
    world.fakes.api.apply(Resource::Pods, pod("host", ip(21), Some("web-role")).host_network(true).build());
    world.fakes.api.apply(Resource::Pods, pod("elsewhere", ip(22), Some("web-role")).node("node-b").build());
    // The watch is in order: once the last is known, so are the others.
    world.fakes.pod("marker", ip(23), Some("db-role"));
    world.eventually(|world| world.get(ip(23), ROLES).status, |status| *status == 200);
    for from in [ip(20), ip(21), ip(22)] {
        assert_eq!(world.get(from, ROLES).status, 404, "{from}");
    }
}

#[test]
fn an_address_that_two_living_pods_claim_is_refused_to_both() {
    let world = World::start();
    world.fakes.pod("impostor", ip(2), Some("db-role"));
    world.eventually(|world| world.get(ip(2), ROLES).status, |status| *status == 404);
    let log = world.daemon.wait_for_log(|line| line["reason"] == "ambiguous-pod").unwrap();
    assert_eq!(log["pods"], "shop/impostor, shop/web");
    assert_eq!(world.metric(r#"rolegate_ambiguous_addresses_total{outcome="confirmed"}"#), 1.0);
    let asked = |world: &World, name: &str| {
        let of_one = |query: &str| query.contains(&format!("metadata.name={name}"));
        world.fakes.api.requests().iter().filter(|request| request.query("fieldSelector").is_some_and(of_one)).count()
    };
    assert_eq!((asked(&world, "web"), asked(&world, "impostor")), (1, 1), "each of them is asked about once");
    world.fakes.delete_pod("impostor");
    assert_eq!(world.eventually(|world| world.get(ip(2), ROLES), |answer| answer.status == 200).text(), "web-role");
}

#[test]
fn an_address_whose_last_pod_is_gone_without_the_watchs_word_goes_to_the_next_at_once() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=15s"));
    world.fakes.api.hold_events(Resource::Pods, "web");
    world.fakes.delete_pod("web");
    world.fakes.pod("next", ip(2), Some("next-role"));
    let answers = |world: &World| {
        let answer = world.get(ip(2), ROLES);
        // A token of the last pod does not serve the next one.
        assert!(matches!(answer.status, 200 | 401), "a pod that is known is not refused: {answer:?}");
        answer.text()
    };
    world.eventually(answers, |role| role == "next-role");
    world.eventually(|world| world.metric(r#"rolegate_ambiguous_addresses_total{outcome="settled"}"#), |settled| *settled == 1.0);
    // The late word of its end, and a repeated one of its life, change nothing.
    world.fakes.api.release_events(Resource::Pods, "web");
    world.fakes.pod("marker", ip(23), Some("db-role"));
    world.eventually(|world| world.get(ip(23), ROLES).status, |status| *status == 200);
    world.document(ip(2), "next-role");
}

#[test]
fn a_deleted_pod_does_not_come_back_by_repeated_events() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    let web = world.fakes.api.get(Resource::Pods, Some("shop"), "web").unwrap();
    world.fakes.delete_pod("web");
    world.eventually(|world| world.get(ip(2), ROLES).status, |status| *status == 404);
    let repeated = serde_json::json!({ "type": "ADDED", "object": web }).to_string();
    let marked = |world: &World, name: &str, last: u8| {
        world.fakes.pod(name, ip(last), Some("db-role"));
        world.eventually(|world| world.get(ip(last), ROLES).status, |status| *status == 200);
    };
    world.fakes.api.inject_raw_event(Resource::Pods, &repeated);
    marked(&world, "marker-1", 23);
    assert_eq!(world.get(ip(2), ROLES).status, 404);
    // Also not when a list came between.
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    world.fakes.pod("unseen", ip(24), None);
    world.fakes.api.compact();
    world.fakes.api.refuse_connections(false);
    marked(&world, "marker-2", 25);
    world.fakes.api.inject_raw_event(Resource::Pods, &repeated);
    marked(&world, "marker-3", 26);
    assert_eq!(world.get(ip(2), ROLES).status, 404);
}

#[test]
fn a_changed_annotation_holds_for_the_next_request() {
    let world = World::start();
    world.document(ip(2), "web-role");
    world.fakes.pod("web", ip(2), Some("other-role"));
    assert_eq!(world.eventually(|world| world.get(ip(2), ROLES), |answer| answer.text() != "web-role").text(), "other-role");
    assert_eq!(world.credentials(ip(2), "web-role").status, 404);
    world.document(ip(2), "other-role");
}

#[test]
fn namespaces_limit_roles_where_restrictions_are_on() {
    let fakes = Fakes::new();
    let annotate = |list: &str| namespace("shop", &[("iam.amazonaws.com/allowed-roles", list)]);
    fakes.api.apply(Resource::Namespaces, annotate(r#"["web-*"]"#));
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    let setup = fakes.setup().argument("--namespace-restrictions");
    let world = fakes.into_world(&setup);
    assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
    assert_eq!(world.get(ip(3), ROLES).status, 404);
    world.fakes.api.apply(Resource::Namespaces, annotate(r#"["db-role"]"#));
    world.eventually(|world| world.get(ip(3), ROLES).status, |status| *status == 200);
    assert_eq!(world.get(ip(2), ROLES).status, 404);
    world.fakes.api.apply(Resource::Namespaces, annotate("db-role"));
    world.eventually(|world| world.get(ip(3), ROLES).status, |status| *status == 404);
    assert!(world.metric(r#"rolegate_denials_total{reason="bad-namespace-list"}"#) >= 1.0);
    let queries = world.fakes.api.requests();
    let mut of_namespaces = queries.iter().filter(|request| request.path == "/api/v1/namespaces");
    assert!(
        of_namespaces.all(|request| request.query("fieldSelector") == Some("metadata.name=shop")),
        "only the namespaces of pods here are read"
    );
}

#[test]
fn audit_mode_serves_and_reports() {
    let fakes = Fakes::new();
    fakes.api.apply(Resource::Namespaces, namespace("shop", &[]));
    fakes.pod("web", ip(2), Some("web-role"));
    let setup = fakes.setup().argument("--namespace-restrictions=audit");
    let world = fakes.into_world(&setup);
    assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
    // It is served before the namespace is known, too, and reported as that then.
    let ask = |world: &World| {
        assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
        world.metric(r#"rolegate_audit_denials_total{reason="no-namespace-list"}"#)
    };
    world.eventually(ask, |count| *count >= 1.0);
    world.daemon.wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.starts_with("served in audit mode"))).unwrap();
}

#[test]
fn a_stranger_waits_no_longer_than_it_may() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=300ms"));
    let began = std::time::Instant::now();
    assert_eq!(world.new_token(ip(200)).status, 404);
    assert!(began.elapsed() >= Duration::from_millis(300), "the request was held for the pod to appear");
    assert_eq!(world.metric(r#"rolegate_pod_wait_seconds_count{outcome="unknown"}"#), 1.0);
}

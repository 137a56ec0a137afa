//! Tests of identifying pods that come, go, wait, and reuse addresses over time.

use std::time::Duration;

use rolegate_lab::kube::{Resource, Verb, namespace, service_account};

use crate::world::{Fakes, ROLES, TOKEN, World, ip, pod};

#[test]
fn a_request_is_answered_once_its_pod_appears() {
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
fn a_request_is_answered_once_its_pod_gets_the_address() {
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
fn a_deleted_pod_gets_nothing() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=50ms"));
    let token = world.new_token(ip(2)).text();
    world.document(ip(2), "web-role");
    world.fakes.delete_pod("web");
    let ask = |world: &World| world.request(ip(2), "GET", ROLES, &[(TOKEN, &token)]).status;
    world.eventually(ask, |status| *status == 404);
    assert_eq!(world.credentials(ip(2), "web-role").status, 404);
}

#[test]
fn the_next_pod_of_an_address_gets_its_own_role() {
    let world = World::start();
    let old_token = world.new_token(ip(2)).text();
    world.document(ip(2), "web-role");
    world.fakes.delete_pod("web");
    world.fakes.pod("next", ip(2), Some("next-role"));
    // The old pod's token may be refused earlier, and is refused afterwards. At no time does it give access to the next pod's
    // role.
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
    // The watch is in order: once the last pod is known, so are the others.
    world.fakes.pod("marker", ip(23), Some("db-role"));
    world.eventually(|world| world.get(ip(23), ROLES).status, |status| *status == 200);
    for from in [ip(20), ip(21), ip(22)] {
        assert_eq!(world.get(from, ROLES).status, 404, "{from}");
    }
}

/// Nothing redirects pods in the node's network here. If the daemon did not start, all others would lose their roles.
#[test]
fn settings_for_the_nodes_network_without_programs_are_an_error_in_the_log_and_no_reason_to_stop() {
    for mode in ["serve", "deny"] {
        let world = World::start_with(|setup| setup.argument(format!("--host-network-pods={mode}")));
        let line = world.daemon.wait_for_event("host-network-not-enforced").unwrap();
        assert_eq!((&line["mode"], &line["level"]), (&mode.into(), &"ERROR".into()), "{line}");
        assert_eq!((world.metric("rolegate_host_network_enforced"), world.metric("rolegate_host_network_exempt_pods")), (0.0, 0.0));
        assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
        world.fakes.api.apply(Resource::Pods, pod("agent", ip(20), Some("web-role")).host_network(true).build());
        let [event] = &world.events_of("agent", 1)[..] else { panic!("one Event") };
        assert!(event["note"].as_str().unwrap().contains("it reaches the node's own metadata service"), "{event}");
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
    assert_eq!((asked(&world, "web"), asked(&world, "impostor")), (1, 1), "each pod is looked up once");
    world.fakes.delete_pod("impostor");
    assert_eq!(world.eventually(|world| world.get(ip(2), ROLES), |answer| answer.status == 200).text(), "web-role");
}

#[test]
fn the_next_pod_gets_its_address_if_a_deletion_was_missed() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=15s"));
    world.fakes.api.hold_events(Resource::Pods, "web");
    world.fakes.delete_pod("web");
    world.fakes.pod("next", ip(2), Some("next-role"));
    let answers = |world: &World| {
        let answer = world.get(ip(2), ROLES);
        // A token of the previous pod does not work for the next one.
        assert!(matches!(answer.status, 200 | 401), "a known pod was refused: {answer:?}");
        answer.text()
    };
    world.eventually(answers, |role| role == "next-role");
    world.eventually(|world| world.metric(r#"rolegate_ambiguous_addresses_total{outcome="settled"}"#), |settled| *settled == 1.0);
    // The late event of its deletion and a repeated earlier event change nothing.
    world.fakes.api.release_events(Resource::Pods, "web");
    world.fakes.pod("marker", ip(23), Some("db-role"));
    world.eventually(|world| world.get(ip(23), ROLES).status, |status| *status == 200);
    world.document(ip(2), "next-role");
}

/// Waits until everything that the watch sent before now has been processed, because the watch is in order.
fn settled(world: &World, name: &str, last: u8) {
    world.fakes.pod(name, ip(last), Some("db-role"));
    world.eventually(|world| world.get(ip(last), ROLES).status, |status| *status == 200);
}

#[test]
fn a_forged_address_gives_no_role_until_it_is_corrected() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    world.document(ip(2), "web-role");
    let tokens = [ip(2), ip(3)].map(|from| (from, world.new_token(from).text()));
    // A writer of statuses claims that db has web's address. The kubelet corrects it later.
    world.fakes.pod("db", ip(2), Some("db-role"));
    settled(&world, "marker", 23);
    for (from, token) in &tokens {
        for role in ["web-role", "db-role"] {
            let answer = world.request(*from, "GET", &format!("{ROLES}{role}"), &[(TOKEN, token)]);
            assert!(matches!(answer.status, 401 | 404), "{from} {role}: {answer:?}");
        }
        assert_eq!(world.get(*from, ROLES).status, 404, "{from}");
    }
    world.fakes.pod("db", ip(3), Some("db-role"));
    settled(&world, "marker-2", 24);
    world.document(ip(2), "web-role");
    world.document(ip(3), "db-role");
}

#[test]
fn an_address_has_no_pod_until_the_previous_end_is_known() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    world.document(ip(2), "web-role");
    world.fakes.api.deny(Verb::List, "pods");
    world.fakes.api.hold_events(Resource::Pods, "web");
    world.fakes.delete_pod("web");
    world.fakes.pod("next", ip(2), Some("next-role"));
    settled(&world, "marker", 23);
    assert_eq!(world.get(ip(2), ROLES).status, 404);
    assert_eq!(world.credentials(ip(2), "web-role").status, 404, "never the previous pod's role");
    assert!(world.metric(r#"rolegate_denials_total{reason="ambiguous-pod"}"#) >= 1.0);
    world.fakes.api.release_events(Resource::Pods, "web");
    world.eventually(|world| world.get(ip(2), ROLES), |answer| answer.text() == "next-role");
    world.document(ip(2), "next-role");
}

#[test]
fn a_request_waits_while_the_next_pod_is_unknown() {
    let world = World::start_with(|setup| setup.argument("--default-role=default-role").argument("--backoff-max-elapsed-time=15s"));
    world.document(ip(2), "web-role");
    world.fakes.api.hold_events(Resource::Pods, "next");
    world.fakes.pod("next", ip(2), Some("next-role"));
    world.fakes.delete_pod("web");
    settled(&world, "marker", 23);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| world.get(ip(2), ROLES));
        world.eventually(|world| world.metric("rolegate_pod_waits_in_flight"), |waiting| *waiting == 1.0);
        world.fakes.api.release_events(Resource::Pods, "next");
        assert_eq!(asked.join().unwrap().text(), "next-role");
    });
}

#[test]
fn a_terminating_pod_yields_its_address_early() {
    let world = World::start();
    world.fakes.api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).terminating().build());
    world.fakes.api.hold_events(Resource::Pods, "web");
    world.fakes.delete_pod("web");
    world.fakes.pod("next", ip(2), Some("next-role"));
    settled(&world, "marker", 23);
    world.document(ip(2), "next-role");
    world.fakes.api.release_events(Resource::Pods, "web");
    settled(&world, "marker-2", 24);
    world.document(ip(2), "next-role");
}

#[test]
fn an_unknown_pod_never_gets_the_default_role() {
    let world = World::start_with(|setup| setup.argument("--default-role=default-role").argument("--backoff-max-elapsed-time=20ms"));
    world.fakes.sts.add_role(rolegate_lab::sts::Role::new(crate::world::arn("default-role")));
    assert_eq!(world.get(ip(4), ROLES).text(), "default-role", "a known pod without a role gets it");
    world.fakes.api.hold_events(Resource::Pods, "late");
    world.fakes.pod("late", ip(9), Some("late-role"));
    for _ in 0..3 {
        assert_eq!(world.get(ip(9), ROLES).status, 404);
        assert_eq!(world.credentials(ip(9), "default-role").status, 404);
    }
    world.fakes.api.release_events(Resource::Pods, "late");
    let ask = |world: &World| {
        let answer = world.get(ip(9), ROLES);
        assert!(answer.status != 200 || answer.text() == "late-role", "{answer:?}");
        answer.status
    };
    world.eventually(ask, |status| *status == 200);
}

#[test]
fn a_completed_job_leaves_its_address_to_the_next_pod() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    // The order in which they become known does not matter.
    world.fakes.pod("job", ip(20), Some("web-role"));
    world.eventually(|world| world.get(ip(20), ROLES).status, |status| *status == 200);
    for (phase, name) in [("Succeeded", "job"), ("Failed", "job-2")] {
        world.fakes.api.apply(Resource::Pods, pod(name, ip(20), Some("web-role")).phase(phase).build());
    }
    world.fakes.pod("server", ip(20), Some("server-role"));
    settled(&world, "marker", 23);
    world.document(ip(20), "server-role");
    assert_eq!(world.credentials(ip(20), "web-role").status, 404);
    world.fakes.delete_pod("server");
    world.eventually(|world| world.get(ip(20), ROLES).status, |status| *status == 404);
}

#[test]
fn a_pod_of_another_node_is_ignored_if_the_api_sends_it() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    let far = |name: &str, last| pod(name, ip(last), Some("db-role")).node("node-b").uid(name).build();
    let sent = |object: &serde_json::Value| {
        let line = serde_json::json!({ "type": "ADDED", "object": object }).to_string();
        world.fakes.api.inject_raw_event(Resource::Pods, &line);
    };
    for (name, last) in [("far", 22), ("far-2", 2)] {
        let mut object = far(name, last);
        object["metadata"]["resourceVersion"] = "1000".into();
        sent(&object);
    }
    settled(&world, "marker", 23);
    assert_eq!(world.get(ip(22), ROLES).status, 404);
    world.document(ip(2), "web-role");
}

#[test]
fn unreadable_service_accounts_grant_nothing() {
    let fakes = Fakes::new();
    fakes.sts.add_role(rolegate_lab::sts::Role::new(crate::world::arn("default-role")));
    fakes.sts.add_role(rolegate_lab::sts::Role::new(crate::world::arn("seller-role")));
    let account = |name: &str, role: &str| service_account("shop", name, &[("iam.amazonaws.com/role", role)]);
    fakes.api.apply(Resource::ServiceAccounts, account("seller", "seller-role"));
    let of_account = |name: &str, last, account: &str| {
        fakes.api.apply(Resource::Pods, pod(name, ip(last), None).service_account(account).build());
    };
    of_account("known", 2, "seller");
    of_account("plain", 3, "plain");
    fakes.api.apply(Resource::ServiceAccounts, service_account("shop", "plain", &[]));
    let setup = fakes.setup().argument("--service-account-roles").argument("--default-role=default-role");
    let world = fakes.into_world(&setup.argument("--backoff-max-elapsed-time=60s"));
    assert_eq!(world.get(ip(2), ROLES).text(), "seller-role");
    assert_eq!(world.get(ip(3), ROLES).text(), "default-role");
    for verb in [Verb::List, Verb::Watch] {
        world.fakes.api.deny(verb, "serviceaccounts");
    }
    world.fakes.api.cut_connections();
    world.daemon.wait_for_event("service-accounts-forbidden").unwrap();
    assert_eq!(world.get(ip(2), ROLES).text(), "seller-role", "what is known stays valid");
    assert_eq!(world.get(ip(3), ROLES).text(), "default-role", "even that it names no role");
    // A new service account may name a role. Its pod does not get the default role, and does not wait for an account that
    // cannot be read.
    world.fakes.api.apply(Resource::ServiceAccounts, account("late", "seller-role"));
    world.fakes.api.apply(Resource::Pods, pod("late", ip(9), None).service_account("late").build());
    let began = std::time::Instant::now();
    assert_eq!(world.get(ip(9), ROLES).status, 404);
    assert!(began.elapsed() < Duration::from_secs(30), "it was refused once the API had refused the read");
    assert!(world.metric(r#"rolegate_denials_total{reason="service-accounts-forbidden"}"#) >= 1.0);
    let log = world.daemon.wait_for_log(|line| line["reason"] == "service-accounts-forbidden").unwrap();
    let text = log["advice"].as_str().unwrap();
    assert!(text.contains("daemonset/rbac.yaml") && text.contains("--service-account-roles"), "{text}");
    for verb in [Verb::List, Verb::Watch] {
        world.fakes.api.allow(verb, "serviceaccounts");
    }
    assert_eq!(world.eventually(|world| world.get(ip(9), ROLES), |answer| answer.status == 200).text(), "seller-role");
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
    // Not even after a list.
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
fn a_changed_annotation_applies_to_the_next_request() {
    let world = World::start();
    world.document(ip(2), "web-role");
    world.fakes.pod("web", ip(2), Some("other-role"));
    assert_eq!(world.eventually(|world| world.get(ip(2), ROLES), |answer| answer.text() != "web-role").text(), "other-role");
    assert_eq!(world.credentials(ip(2), "web-role").status, 404);
    world.document(ip(2), "other-role");
}

#[test]
fn namespaces_limit_roles_if_restrictions_are_on() {
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
        "only the namespaces of this node's pods are read"
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
    // It is served before the namespace is known, too, and reported as such.
    let ask = |world: &World| {
        assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
        world.metric(r#"rolegate_audit_denials_total{reason="no-namespace-list"}"#)
    };
    world.eventually(ask, |count| *count >= 1.0);
    world.daemon.wait_for_event("would-be-refused").unwrap();
}

#[test]
fn an_unknown_address_waits_until_the_limit() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=300ms"));
    let began = std::time::Instant::now();
    assert_eq!(world.new_token(ip(200)).status, 500);
    assert!(began.elapsed() >= Duration::from_millis(300), "the request was held for the pod to appear");
    assert_eq!(world.metric(r#"rolegate_pod_wait_seconds_count{outcome="unknown"}"#), 1.0);
}

#[test]
fn a_terminating_pod_is_served_until_it_stops() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    let web = || pod("web", ip(2), Some("web-role"));
    // The next pod gets the address from the CNI plugin, and its events are held.
    world.fakes.api.hold_events(Resource::Pods, "next");
    for (number, ended) in
        [web().terminating().stopped(), web().terminating().without_network(), web().terminating_at("2026-01-01T00:00:00Z")]
            .into_iter()
            .enumerate()
    {
        world.fakes.api.apply(Resource::Pods, web().terminating().build());
        settled(&world, &format!("running-{number}"), 30 + 2 * u8::try_from(number).unwrap());
        world.document(ip(2), "web-role");
        let token = world.new_token(ip(2)).text();
        world.fakes.api.apply(Resource::Pods, ended.build());
        world.fakes.pod("next", ip(2), Some("next-role"));
        settled(&world, &format!("ended-{number}"), 31 + 2 * u8::try_from(number).unwrap());
        assert_eq!(world.request(ip(2), "GET", &format!("{ROLES}web-role"), &[(TOKEN, &token)]).status, 404, "{number}");
        assert_eq!(world.new_token(ip(2)).status, 500, "{number}");
        world.fakes.delete_pod("next");
    }
    world.fakes.pod("next", ip(2), Some("next-role"));
    world.fakes.api.release_events(Resource::Pods, "next");
    world.eventually(|world| world.get(ip(2), ROLES), |answer| answer.text() == "next-role");
    // The events that were held are about several pods of this name. A token may belong to one that has ended by the next
    // request.
    world.eventually(|world| world.credentials(ip(2), "next-role").status, |status| *status == 200);
}

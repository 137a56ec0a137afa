//! Tests of a Kubernetes API that starts late, disappears, uses TLS and tokens, or has thousands of other nodes' pods.

use rolegate_lab::kube::{Fault, KubeApi, PodBuilder, Resource, Verb};

use crate::world::{Fakes, NODE, ROLES, World, ip, loopback, pod};

#[test]
fn the_daemon_waits_for_an_api_that_starts_late() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.refuse_connections(true);
    let daemon = fakes.setup().start().unwrap();
    let error = daemon.wait_for_log(|line| line["error"].as_str().is_some_and(|text| text.contains("cannot be reached"))).unwrap();
    assert_eq!(error["level"], "WARN");
    let ready = daemon.get(None, "/readyz").unwrap();
    assert_eq!((ready.status, ready.text().contains("the list of this node's pods")), (503, true));
    assert_eq!(daemon.get(None, "/healthz").unwrap().status, 200, "liveness is local");
    fakes.api.refuse_connections(false);
    daemon.wait_ready(None).unwrap();
}

#[test]
fn known_pods_are_served_while_the_api_is_gone() {
    let world = World::start();
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    world.eventually(|world| world.metric(r#"rolegate_watch_errors_total{resource="pods"}"#), |errors| *errors >= 1.0);
    world.document(ip(2), "web-role");
    world.fakes.api.refuse_connections(false);
    world.fakes.pod("late", ip(9), Some("late-role"));
    world.eventually(|world| world.get(ip(9), ROLES).status, |status| *status == 200);
}

#[test]
fn a_relist_recovers_what_a_lost_history_missed() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    world.fakes.delete_pod("web");
    world.fakes.pod("new", ip(9), Some("new-role"));
    world.fakes.api.compact();
    world.fakes.api.refuse_connections(false);
    world.eventually(|world| world.get(ip(9), ROLES).status, |status| *status == 200);
    assert_eq!(world.get(ip(2), ROLES).status, 404);
    world.document(ip(3), "db-role");
}

#[test]
fn new_pods_wait_for_the_api_even_at_reused_addresses() {
    let world = World::start_with(|setup| setup.argument("--default-role=default-role").argument("--backoff-max-elapsed-time=20ms"));
    world.document(ip(2), "web-role");
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    world.fakes.pod("new", ip(9), Some("new-role"));
    world.fakes.delete_pod("db");
    world.fakes.pod("next", ip(3), Some("next-role"));
    world.eventually(|world| world.metric(r#"rolegate_watch_errors_total{resource="pods"}"#), |errors| *errors >= 1.0);
    world.document(ip(2), "web-role");
    assert_eq!(world.get(ip(9), ROLES).status, 404, "it does not get the default role either");
    world.fakes.api.compact();
    world.fakes.api.refuse_connections(false);
    let ask = |world: &World| {
        let answer = world.get(ip(3), ROLES);
        assert!(answer.status != 200 || ["db-role", "next-role"].contains(&answer.text().as_str()), "{answer:?}");
        answer.text()
    };
    world.eventually(ask, |role| role == "next-role");
    assert_eq!(world.credentials(ip(3), "db-role").status, 404);
    world.document(ip(9), "new-role");
}

#[test]
fn an_api_restored_from_a_backup_is_followed_again() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=20ms"));
    // The last version that was seen no longer exists on the server.
    let mut far = world.fakes.api.get(Resource::Pods, Some("shop"), "db").unwrap();
    far["metadata"]["resourceVersion"] = "1000000".into();
    far["metadata"]["annotations"]["iam.amazonaws.com/role"] = "lost-role".into();
    let line = serde_json::json!({ "type": "MODIFIED", "object": far }).to_string();
    world.fakes.api.inject_raw_event(Resource::Pods, &line);
    world.eventually(|world| world.get(ip(3), ROLES), |answer| answer.text() == "lost-role");
    world.fakes.api.fail_next(Fault { resource: Some(Resource::Pods), verb: Some(Verb::Watch), status: 504, ..Fault::default() });
    world.fakes.api.cut_connections();
    world.fakes.delete_pod("web");
    assert_eq!(world.eventually(|world| world.get(ip(3), ROLES), |answer| answer.text() != "lost-role").text(), "db-role");
    assert_eq!(world.get(ip(2), ROLES).status, 404);
}

#[test]
fn only_this_nodes_pods_are_listed_page_by_page() {
    let fakes = Fakes::new();
    for number in 0..120_u8 {
        fakes.api.apply(Resource::Pods, pod(&format!("pod-{number}"), ip(number + 10), Some("web-role")).build());
        let elsewhere = PodBuilder::new("shop", format!("far-{number}").as_str()).node("node-b").ip(&ip(number + 10).to_string());
        fakes.api.apply(Resource::Pods, elsewhere.build());
    }
    fakes.api.without_streaming_lists(true);
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    assert_eq!(world.metric("rolegate_pods"), 120.0);
    let requests = world.fakes.api.requests();
    let of_pods: Vec<_> = requests.iter().filter(|request| request.path == "/api/v1/pods").collect();
    assert!(of_pods.iter().all(|request| request.query("fieldSelector") == Some(&format!("spec.nodeName={NODE}"))));
    assert!(of_pods.iter().filter(|request| request.verb == Some(Verb::List)).count() >= 3, "pages of at most 50");
}

#[test]
fn tls_and_a_token_from_a_kubeconfig() {
    let fakes = Fakes::new();
    let tls = fakes.runtime.block_on(async { KubeApi::start_tls(loopback()).unwrap() });
    tls.require_token(Some("the-token"));
    tls.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).build());
    let kubeconfig = fakes.file("kubeconfig-tls", &tls.kubeconfig());
    let world = fakes_with(fakes, |fakes| fakes.setup().argument(format!("--kubeconfig={kubeconfig}")));
    assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
}

#[test]
fn the_api_server_and_its_token_can_be_given_as_flags() {
    let fakes = Fakes::new();
    let tls = fakes.runtime.block_on(async { KubeApi::start_tls(loopback()).unwrap() });
    tls.require_token(Some("the-token"));
    tls.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).build());
    let world = fakes_with(fakes, |fakes| {
        let setup = fakes.setup().argument("--kubeconfig=").argument(format!("--api-server={}", tls.url()));
        setup.argument("--api-token=the-token").argument("--insecure")
    });
    assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
}

#[test]
fn a_rejected_token_is_reported() {
    let fakes = Fakes::new();
    fakes.api.require_token(Some("another"));
    let setup = fakes.setup().argument("--kubeconfig=").argument(format!("--api-server={}", fakes.api.url())).argument("--api-token=wrong");
    let daemon = setup.start().unwrap();
    let log = daemon.wait_for_log(|line| line["error"].as_str().is_some_and(|text| text.contains("401"))).unwrap();
    assert!(log["advice"].as_str().unwrap().contains("check the service account or the kubeconfig"), "{log}");
    assert!(!daemon.log().contains("wrong"));
}

#[test]
fn a_missing_permission_is_reported_with_its_place() {
    let fakes = Fakes::new();
    fakes.api.deny(Verb::Watch, "pods");
    let daemon = fakes.setup().start().unwrap();
    let log = daemon.wait_for_log(|line| line["error"].as_str().is_some_and(|text| text.contains("403"))).unwrap();
    assert!(log["advice"].as_str().unwrap().contains("daemonset/rbac.yaml"), "{log}");
    fakes.api.allow(Verb::Watch, "pods");
    daemon.wait_ready(None).unwrap();
}

#[test]
fn an_api_with_occasional_failures_is_retried() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.fail_next(Fault { resource: Some(Resource::Pods), status: 500, times: 2, ..Fault::default() });
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    assert_eq!(world.metric(r#"rolegate_watch_errors_total{resource="pods"}"#), 2.0);
    world.document(ip(2), "web-role");
}

#[test]
fn an_unreadable_pod_is_refused_and_affects_no_other() {
    let fakes = Fakes::new();
    fakes.pod("before", ip(2), Some("web-role"));
    let mut odd = pod("odd", ip(5), Some("web-role")).build();
    odd["spec"]["hostNetwork"] = "perhaps".into();
    fakes.api.apply(Resource::Pods, odd.clone());
    fakes.pod("past", ip(3), Some("web-role"));
    let setup = fakes.setup().argument("--backoff-max-elapsed-time=20ms");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    world.document(ip(3), "web-role");
    assert_eq!(world.get(ip(5), ROLES).status, 404);
    // This also happens in a watch: a known pod becomes unknown once it cannot be read.
    world.fakes.pod("odd", ip(5), Some("web-role"));
    world.eventually(|world| world.get(ip(5), ROLES).status, |status| *status == 200);
    world.fakes.api.apply(Resource::Pods, odd);
    world.fakes.pod("after", ip(6), Some("web-role"));
    world.eventually(|world| world.get(ip(6), ROLES).status, |status| *status == 200);
    assert_eq!(world.get(ip(5), ROLES).status, 404);
    assert_eq!(world.metric(r#"rolegate_watch_undecodable_total{resource="pods"}"#), 2.0);
    // No other pod gets its address until it is gone.
    world.fakes.pod("other", ip(5), Some("other-role"));
    world.fakes.pod("marker", ip(7), Some("web-role"));
    world.eventually(|world| world.get(ip(7), ROLES).status, |status| *status == 200);
    assert_eq!(world.get(ip(5), ROLES).status, 404);
    let refused = world.daemon.wait_for_log(|line| line["reason"] == "unreadable-pod").unwrap();
    assert_eq!(refused["pod"], "odd");
    world.fakes.delete_pod("odd");
    assert_eq!(world.eventually(|world| world.get(ip(5), ROLES), |answer| answer.status == 200).text(), "other-role");
    let log = world.daemon.wait_for_log(|line| line["name"] == "odd").unwrap();
    assert_eq!((&log["level"], &log["namespace"]), (&"WARN".into(), &"shop".into()));
    assert!(!world.daemon.log().contains("perhaps"), "the unreadable content is in the log");
}

#[test]
fn a_silent_api_is_recognized_as_unreachable() {
    let world = World::start();
    let silence = |world: &World| world.metric("rolegate_watch_last_sign_of_life_seconds");
    assert!(silence(&world) < 20.0, "the list counts as contact");
    world.fakes.api.stall(true);
    world.eventually(silence, |seconds| *seconds >= 1.0);
    world.document(ip(2), "web-role");
    world.fakes.api.stall(false);
    world.fakes.api.send_bookmark(Resource::Pods);
    world.eventually(silence, |seconds| *seconds < 1.0);
}

#[test]
fn an_identity_that_changes_on_disk_is_reloaded() {
    let fakes = Fakes::new();
    fakes.api.require_token(Some("first"));
    fakes.pod("web", ip(2), Some("web-role"));
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    world.fakes.api.require_token(Some("second"));
    world.fakes.file("kubeconfig", &world.fakes.api.kubeconfig());
    world.fakes.api.cut_connections();
    world.fakes.pod("late", ip(9), Some("late-role"));
    world.eventually(|world| world.get(ip(9), ROLES).status, |status| *status == 200);
}

fn fakes_with(fakes: Fakes, setup: impl FnOnce(&Fakes) -> rolegate_lab::daemon::Setup) -> World {
    fakes.sts.add_role(rolegate_lab::sts::Role::new(crate::world::arn("web-role")));
    let setup = setup(&fakes);
    fakes.into_world(&setup)
}

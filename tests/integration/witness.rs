//! Claims that the API makes and that do not count: from before the node's boot, or too old to be believed.

use std::time::Duration;

use rolegate_lab::kube::Resource;

use crate::world::{Fakes, ROLES, World, ip, pod};

const LONG_AGO: &str = "2001-01-01T00:00:00Z";

#[test]
fn a_pod_from_before_the_nodes_boot_gets_nothing_until_the_api_tells_of_something_that_started_since() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).started_at(LONG_AGO).build());
    let setup = fakes.setup().argument("--backoff-max-elapsed-time=50ms");
    let world = fakes.into_world(&setup);
    assert_eq!(world.new_token(ip(2)).status, 500);
    assert_eq!(world.request(ip(2), "GET", ROLES, &[]).status, 500);
    let refused = world.daemon.wait_for_log(|line| line["reason"] == "before-boot").unwrap();
    assert_eq!((&refused["event"], &refused["pod"]), (&"identity-objection".into(), &"web".into()));
    assert!(world.metric(r#"rolegate_denials_total{reason="before-boot"}"#) >= 2.0);
    // The kubelet reports what it has started.
    world.fakes.api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).build());
    world.eventually(|world| world.get(ip(2), ROLES).text(), |role| role == "web-role");
}

#[test]
fn a_request_that_comes_before_the_kubelets_first_report_waits_for_it() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).started_at(LONG_AGO).build());
    let setup = fakes.setup().argument("--backoff-max-elapsed-time=15s");
    let world = fakes.into_world(&setup);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| world.get(ip(2), ROLES));
        world.eventually(|world| world.metric("rolegate_pod_waits_in_flight"), |waiting| *waiting == 1.0);
        world.fakes.api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).build());
        assert_eq!(asked.join().unwrap().text(), "web-role");
    });
}

#[test]
fn pods_that_nothing_on_the_node_confirms_are_refused_when_the_api_was_silent_for_too_long() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    // In an idle cluster, bookmarks are all that is heard.
    fakes.api.set_bookmark_interval(Duration::from_millis(100));
    let setup = fakes.setup().argument("--max-staleness=8s");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    let ready = |world: &World| world.daemon.get(None, "/readyz").map(|answer| (answer.status, answer.text())).unwrap_or_default();
    world.eventually(ready, |(status, text)| *status == 503 && text.contains("a sign of life from the Kubernetes API"));
    world.daemon.wait_for_log(|line| line["event"] == "api-silent").unwrap();
    world.eventually(|world| world.new_token(ip(2)).status, |status| *status == 500);
    let refused = world.daemon.wait_for_log(|line| line["reason"] == "api-stale").unwrap();
    assert_eq!(refused["pod"], "web");
    world.fakes.api.refuse_connections(false);
    world.eventually(|world| world.new_token(ip(2)).status, |status| *status == 200);
    world.eventually(ready, |(status, _)| *status == 200);
    world.document(ip(2), "web-role");
}

#[test]
fn without_a_bound_pods_are_served_however_long_the_api_is_silent() {
    let world = World::start_with(|setup| setup.argument("--max-staleness=0"));
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    world.daemon.wait_for_log(|line| line["resource"] == "pods" && line["level"] == "WARN").unwrap();
    world.document(ip(2), "web-role");
    assert!(world.daemon.wait_ready(None).is_ok());
}

//! Tests of claims from the API that do not count: from before the node's boot, or too old.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use rolegate_lab::kube::Resource;
use rolegate_lab::player;

use crate::world::{Fakes, ROLES, World, connect, ip, pod};

const LONG_AGO: &str = "2001-01-01T00:00:00Z";

#[test]
fn a_pod_from_before_the_boot_waits_for_a_reported_start() {
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
fn a_request_waits_for_the_kubelets_first_report() {
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
fn requests_that_may_not_wait_are_logged_and_explained() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).started_at(LONG_AGO).build());
    // They wait for as long as this test takes.
    let setup = fakes.setup().argument("--backoff-max-elapsed-time=10m");
    let world = fakes.into_world(&setup);
    let ask = || {
        let mut stream = world.connect(ip(2));
        let head = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let waiting: Vec<_> = (0..64).map(|_| ask()).collect();
    world.eventually(|world| world.metric("rolegate_pod_waits_in_flight"), |waiting| *waiting == 64.0);
    let mut head = [0; 12];
    ask().read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 500");
    assert_eq!(world.metric("rolegate_pod_waits_refused_total"), 1.0);
    let line = world.daemon.wait_for_event("pod-wait-limit").unwrap();
    assert_eq!((&line["source"], &line["requests"]), (&"127.0.1.2".into(), &1.into()));
    let question = connect(IpAddr::from([127, 0, 0, 1]), world.daemon.metrics_address()).unwrap();
    let headers = [("Host", "localhost"), ("x-rolegate-explain", "1"), ("Connection", "close")];
    let report = player::request(question, "GET", "/explain?namespace=shop&pod=web", &headers).unwrap().text();
    assert!(report.contains("pod-wait-limit"), "{report}");
    drop(waiting);
}

#[test]
fn unconfirmed_pods_are_refused_if_the_api_is_silent_too_long() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    // In an idle cluster, only bookmarks arrive.
    fakes.api.set_bookmark_interval(Duration::from_millis(100));
    let setup = fakes.setup().argument("--max-staleness=8s");
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    let ready = |world: &World| world.daemon.get(None, "/readyz").map(|answer| (answer.status, answer.text())).unwrap_or_default();
    world.eventually(ready, |(status, text)| *status == 503 && text.contains("contact with the Kubernetes API"));
    world.daemon.wait_for_event("api-silent").unwrap();
    world.eventually(|world| world.new_token(ip(2)).status, |status| *status == 500);
    let refused = world.daemon.wait_for_log(|line| line["reason"] == "api-stale").unwrap();
    assert_eq!(refused["pod"], "web");
    world.fakes.api.refuse_connections(false);
    world.eventually(|world| world.new_token(ip(2)).status, |status| *status == 200);
    world.eventually(ready, |(status, _)| *status == 200);
    world.document(ip(2), "web-role");
}

#[test]
fn without_a_limit_pods_are_served_during_any_silence() {
    let world = World::start_with(|setup| setup.argument("--max-staleness=0"));
    world.fakes.api.refuse_connections(true);
    world.fakes.api.cut_connections();
    world.daemon.wait_for_log(|line| line["resource"] == "pods" && line["level"] == "WARN").unwrap();
    world.document(ip(2), "web-role");
    assert!(world.daemon.wait_ready(None).is_ok());
}

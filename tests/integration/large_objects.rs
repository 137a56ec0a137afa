//! Tests of objects as large as a tenant can make them, and larger: they do not affect other pods, and usually not even their
//! own.

use rolegate_lab::kube::{KubeApi, PodBuilder, Resource, namespace, service_account};
use serde_json::{Value, json};

use crate::world::{Fakes, ROLES, World, arn, ip, pod};

/// A size within etcd's limit of 1.5 MiB. The API server writes `<` as `\u003c`, so a line of a watch is 8.7 MB.
const WITHIN_ETCD: usize = 1_450_000;
/// A size that makes a line of 21 MB, which is more than any object of a real API server has.
const BEYOND_ETCD: usize = 3_500_000;

fn fat(name: &str, last: u8, size: usize) -> PodBuilder {
    pod(name, ip(last), Some(&format!("{name}-role"))).annotation("example.com/notes", &"<".repeat(size))
}

/// Returns a pod with more addresses than are kept for any pod, so that it is too large even after filtering.
fn crowded(name: &str, last: u8) -> Value {
    let mut object = pod(name, ip(last), Some(&format!("{name}-role"))).build();
    let many = (0..100_000_u32).map(|number| json!({ "ip": std::net::Ipv4Addr::from(0x0A00_0000 + number) }));
    object["status"]["podIPs"] = [json!({ "ip": ip(last) })].into_iter().chain(many).collect();
    object
}

/// Returns an object that is nested more deeply than most parsers support.
fn with_deep_fields(mut object: Value) -> Value {
    let deep = (0..100).fold(json!({}), |inner, _| json!({ "f:a": [inner] }));
    object["metadata"]["managedFields"] = json!([{ "manager": "kubectl", "fieldsV1": deep }]);
    object
}

fn requests(api: &KubeApi, path: &str) -> usize {
    api.requests().iter().filter(|request| request.path == path).count()
}

impl World {
    /// Waits until the pod at an address is served, and returns its role.
    fn role_of(&self, last: u8) -> String {
        self.eventually(|world| world.get(ip(last), ROLES), |answer| answer.status == 200).text()
    }

    /// Checks that nothing has been listed again since the watches began.
    #[track_caller]
    fn assert_that_the_watch_went_on(&self, path: &str, requests_before: usize) {
        assert_eq!(requests(&self.fakes.api, path), requests_before, "{}", self.daemon.log());
        for resource in ["pods", "namespaces", "serviceaccounts"] {
            assert_eq!(self.metric(&format!(r#"rolegate_watch_errors_total{{resource="{resource}"}}"#)), 0.0);
        }
    }

    /// Returns the daemon's peak memory, in MiB.
    fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }
}

#[test]
fn a_pod_of_any_size_is_served_and_the_watch_continues() {
    let world = World::start();
    let before = requests(&world.fakes.api, "/api/v1/pods");
    for (name, last, size) in [("fat", 5, WITHIN_ETCD), ("fatter", 6, BEYOND_ETCD)] {
        world.fakes.api.apply(Resource::Pods, fat(name, last, size).build());
        let after = format!("after-{name}");
        world.fakes.pod(&after, ip(last + 10), Some(&after));
        assert_eq!(world.role_of(last), format!("{name}-role"));
        assert_eq!(world.role_of(last + 10), after);
    }
    world.fakes.api.apply(Resource::Pods, with_deep_fields(pod("deep", ip(7), Some("deep-role")).build()));
    assert_eq!(world.role_of(7), "deep-role");
    world.document(ip(2), "web-role");
    world.assert_that_the_watch_went_on("/api/v1/pods", before);
    assert_eq!(world.metric(r#"rolegate_watch_undecodable_total{resource="pods"}"#), 0.0);
    // A change that makes it smaller is processed as fast.
    world.fakes.api.apply(Resource::Pods, pod("fat", ip(5), Some("thin-role")).build());
    world.eventually(|world| world.get(ip(5), ROLES).text(), |role| role == "thin-role");
    println!("peak memory: {} MiB", world.peak_memory());
}

#[test]
fn an_oversized_pod_is_refused_alone_until_it_is_smaller() {
    let world = World::start();
    world.fakes.pod("crowded", ip(5), Some("crowded-role"));
    assert_eq!(world.role_of(5), "crowded-role");
    let before = requests(&world.fakes.api, "/api/v1/pods");
    let undecodable = |world: &World| world.metric(r#"rolegate_watch_undecodable_total{resource="pods"}"#);
    for number in 1..=3_u8 {
        world.fakes.api.apply(Resource::Pods, crowded("crowded", 5));
        let name = format!("next-{number}");
        world.fakes.pod(&name, ip(20 + number), Some(&name));
        assert_eq!(world.role_of(20 + number), name);
        world.document(ip(2), "web-role");
        assert_eq!(world.get(ip(5), ROLES).status, 404);
        assert_eq!(undecodable(&world), f64::from(number));
    }
    let log = world.daemon.wait_for_event("object-too-large").unwrap();
    assert_eq!((&log["level"], &log["namespace"], &log["name"]), (&"WARN".into(), &"shop".into(), &"crowded".into()));
    let refused = world.daemon.wait_for_log(|line| line["reason"] == "unreadable-pod").unwrap();
    assert_eq!(refused["pod"], "crowded");
    let of_it =
        |world: &World| world.fakes.api.events().into_iter().filter(|event| event["regarding"]["name"] == "crowded").collect::<Vec<_>>();
    let events = world.eventually(of_it, |events| !events.is_empty());
    assert_eq!(events[0]["reason"], "PodUnreadable");
    world.fakes.pod("crowded", ip(5), Some("crowded-role"));
    assert_eq!(world.role_of(5), "crowded-role");
    world.assert_that_the_watch_went_on("/api/v1/pods", before);
    let lines = world.daemon.events("object-too-large").len();
    assert_eq!(lines, 1, "one log line, however often it changes");
    println!("peak memory: {} MiB", world.peak_memory());
}

#[test]
fn large_objects_in_the_first_list_affect_no_other_pod() {
    for streaming in [true, false] {
        let fakes = Fakes::new();
        fakes.api.without_streaming_lists(!streaming);
        fakes.pod("before", ip(2), Some("before-role"));
        for (name, last, size) in [("fat", 5, WITHIN_ETCD), ("fatter", 6, BEYOND_ETCD)] {
            fakes.api.apply(Resource::Pods, fat(name, last, size).build());
        }
        fakes.api.apply(Resource::Pods, crowded("crowded", 7));
        fakes.pod("past", ip(3), Some("past-role"));
        let setup = fakes.setup();
        let world = fakes.into_world(&setup);
        for (last, role) in [(2, "before-role"), (3, "past-role"), (5, "fat-role"), (6, "fatter-role")] {
            assert_eq!(world.get(ip(last), ROLES).text(), role, "streaming: {streaming}");
        }
        assert_eq!(world.get(ip(7), ROLES).status, 404);
        let log = world.daemon.wait_for_event("object-too-large").unwrap();
        assert_eq!(log["name"], "crowded");
        let lists = world.fakes.api.requests().iter().filter(|request| request.query("limit").is_some()).count();
        assert_eq!(lists, usize::from(!streaming), "one page is enough");
        world.fakes.api.apply(Resource::Pods, pod("crowded", ip(7), Some("crowded-role")).build());
        assert_eq!(world.role_of(7), "crowded-role");
        assert_eq!(world.metric(r#"rolegate_watch_errors_total{resource="pods"}"#), 0.0);
        println!("peak memory, streaming {streaming}: {} MiB", world.peak_memory());
    }
}

#[test]
fn large_namespaces_and_service_accounts_are_read_like_small_ones() {
    let large = "<".repeat(WITHIN_ETCD);
    let namespace = |roles: &str| namespace("shop", &[("iam.amazonaws.com/allowed-roles", roles), ("example.com/notes", &large)]);
    let account = |role: &str| service_account("shop", "seller", &[("iam.amazonaws.com/role", role), ("example.com/notes", &large)]);
    let fakes = Fakes::new();
    fakes.api.apply(Resource::Namespaces, namespace(r#"["web-role"]"#));
    fakes.api.apply(Resource::ServiceAccounts, account("web-role"));
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    fakes.api.apply(Resource::Pods, pod("seller", ip(4), None).service_account("seller").build());
    let setup = fakes.setup().argument("--namespace-restrictions").argument("--service-account-roles");
    let world = fakes.into_world(&setup);
    assert_eq!((world.role_of(2).as_str(), world.role_of(4).as_str()), ("web-role", "web-role"));
    assert_eq!(world.get(ip(3), ROLES).status, 404, "the role is not allowed in the namespace");
    let paths = ["/api/v1/pods", "/api/v1/namespaces", "/api/v1/namespaces/shop/serviceaccounts"];
    let before = paths.map(|path| requests(&world.fakes.api, path));
    // This also holds for their watches.
    world.fakes.sts.add_role(rolegate_lab::sts::Role::new(arn("other-role")));
    world.fakes.api.apply(Resource::Namespaces, namespace(r#"["db-role","other-role"]"#));
    world.fakes.api.apply(Resource::ServiceAccounts, account("other-role"));
    world.eventually(|world| world.get(ip(3), ROLES).text(), |role| role == "db-role");
    world.eventually(|world| world.get(ip(4), ROLES).text(), |role| role == "other-role");
    assert_eq!(world.get(ip(2), ROLES).status, 404);
    for (path, before) in paths.into_iter().zip(before) {
        world.assert_that_the_watch_went_on(path, before);
    }
    println!("peak memory: {} MiB", world.peak_memory());
}

#[test]
fn the_next_pod_gets_its_address_beside_a_large_pod() {
    let world = World::start();
    world.fakes.pod("tenant-0", ip(9), Some("tenant-0"));
    assert_eq!(world.role_of(9), "tenant-0");
    let before = requests(&world.fakes.api, "/api/v1/pods");
    for number in 1..=4 {
        let (last, next) = (format!("tenant-{}", number - 1), format!("tenant-{number}"));
        // The watch is as busy with the large pod as it can be: a change of it precedes each of the others.
        let patch = |part: &str| {
            let patched = fat("fat", 5, WITHIN_ETCD).annotation("patch", &format!("{number} {part}"));
            world.fakes.api.apply(Resource::Pods, patched.build());
        };
        patch("before the deletion");
        world.fakes.delete_pod(&last);
        patch("before the next pod");
        world.fakes.pod(&next, ip(9), Some(&next));
        patch("afterwards");
        // Until the watch delivers the change, it cannot be known. From then on, the previous pod is gone for good.
        let ask = |world: &World| {
            let answer = world.get(ip(9), ROLES);
            assert!(answer.status != 200 || [&last, &next].contains(&&answer.text()), "{answer:?}");
            answer.text()
        };
        world.eventually(ask, |role| *role == next);
        assert_eq!(world.credentials(ip(9), &last).status, 404, "the role of the pod that had the address before");
        assert_eq!(world.role_of(5), "fat-role");
    }
    world.assert_that_the_watch_went_on("/api/v1/pods", before);
    println!("peak memory: {} MiB", world.peak_memory());
}

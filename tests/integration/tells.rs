//! Every refusal of a pod tells somebody: the operator's log, the owner's Event, `rolegate explain` and the metrics.

use rolegate_lab::kube::Resource;
use serde_json::Value;

use crate::world::{Fakes, ROLES, TOKEN, World, ip, pod};

const TAG: &str = "/latest/meta-data/tags/instance/Name";

/// The lines about refusals of a pod for one reason.
fn lines(world: &World, pod: &str, reason: &str) -> Vec<Value> {
    let lines = world.daemon.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["pod"] == pod && line["reason"] == reason).collect()
}

fn wait_for(world: &World, pod: &str, reason: &str) -> Value {
    world.daemon.wait_for_log(|line| line["pod"] == pod && line["reason"] == reason).unwrap()
}

fn note(world: &World, pod: &str, reason: &str) -> String {
    let find = |world: &World| {
        let events = world.fakes.api.events();
        let event = events.into_iter().find(|event| event["regarding"]["name"] == pod && event["reason"] == reason);
        event.and_then(|event| event["note"].as_str().map(str::to_owned))
    };
    world.eventually(find, Option::is_some).unwrap()
}

fn refusals(world: &World, reason: &str) -> f64 {
    world.metric(&format!(r#"rolegate_pod_refusals_total{{namespace="shop",reason="{reason}"}}"#))
}

#[test]
fn a_request_without_a_token_tells_which_pod_and_which_flag() {
    let world = World::start();
    for _ in 0..20 {
        assert_eq!(world.request(ip(2), "GET", ROLES, &[]).status, 401);
    }
    let line = wait_for(&world, "web", "token");
    assert_eq!((&line["event"], &line["namespace"], &line["path"]), (&"request-refused".into(), &"shop".into(), &ROLES.into()), "{line}");
    assert!(line["level"] == "WARN" && line["advice"].as_str().unwrap().contains("--imds-tokens=optional"), "{line}");
    let note = note(&world, "web", "SessionTokenRequired");
    assert!(note.starts_with("token: ") && note.contains("--imds-tokens=optional"), "{note}");
    assert_eq!((refusals(&world, "token"), lines(&world, "web", "token").len()), (20.0, 1));
}

#[test]
fn a_token_that_is_not_valid_is_logged_and_is_no_event() {
    let world = World::start();
    assert_eq!(world.request(ip(2), "GET", "/", &[(TOKEN, "INVALID")]).status, 401);
    let line = wait_for(&world, "web", "token");
    assert!(line["level"] == "INFO" && line["advice"].as_str().unwrap().contains("--token-key-file"), "{line}");
    assert_eq!(refusals(&world, "token"), 1.0);
    // The Event of another pod comes after every Event of this one.
    assert_eq!(world.request(ip(3), "GET", "/", &[]).status, 401);
    note(&world, "db", "SessionTokenRequired");
    assert_eq!(world.fakes.api.events().len(), 1);
}

#[test]
fn a_closed_path_tells_which_flag_opens_it() {
    let world = World::start();
    assert_eq!(world.get(ip(2), TAG).status, 404);
    let line = wait_for(&world, "web", "path");
    assert_eq!((&line["namespace"], &line["path"], &line["level"]), (&"shop".into(), &TAG.into(), &"WARN".into()), "{line}");
    assert!(line["advice"].as_str().unwrap().contains("--node-info-namespaces"), "{line}");
    let note = note(&world, "web", "MetadataNotServed");
    assert!(note.starts_with("path: ") && note.contains("--node-info-namespaces"), "{note}");
    // No setting opens these.
    assert_eq!(world.get(ip(3), "/latest/user-data").status, 404);
    let line = wait_for(&world, "db", "path");
    assert_eq!((&line["level"], &line["path"], &line["advice"]), (&"INFO".into(), &"/latest/user-data".into(), &Value::Null), "{line}");
}

#[test]
fn a_rejected_request_tells_which_pod_sent_it() {
    let world = World::start();
    assert_eq!(world.request(ip(2), "GET", ROLES, &[("X-Forwarded-For", "10.0.0.1")]).status, 403);
    assert_eq!(world.request(ip(2), "POST", ROLES, &[]).status, 405);
    let line = wait_for(&world, "web", "forwarded");
    assert_eq!((&line["event"], &line["path"]), (&"request-rejected".into(), &ROLES.into()), "{line}");
    assert!(line["advice"].as_str().unwrap().contains("NO_PROXY"), "{line}");
    assert!(note(&world, "web", "RequestForwarded").contains("NO_PROXY=169.254.169.254"));
    wait_for(&world, "web", "method");
    assert_eq!((refusals(&world, "forwarded"), refusals(&world, "method")), (1.0, 1.0));
    // A stranger is nobody's pod.
    assert_eq!(world.request(ip(200), "POST", ROLES, &[]).status, 405);
    let line = world.daemon.wait_for_log(|line| line["reason"] == "method" && line["source"] == ip(200).to_string()).unwrap();
    assert_eq!((&line["pod"], &line["namespace"]), (&Value::Null, &Value::Null));
}

#[test]
fn many_paths_of_one_pod_are_one_line() {
    let world = World::start();
    let token = world.new_token(ip(2)).text();
    for number in 0..200 {
        let path = format!("/latest/meta-data/{number}/{}", "x".repeat(300));
        assert_eq!(world.request(ip(2), "GET", &path, &[(TOKEN, &token)]).status, 404);
    }
    // Whatever the daemon has logged about these, it has logged before this.
    assert_eq!(world.get(ip(3), "/latest/user-data").status, 404);
    wait_for(&world, "db", "path");
    let lines = lines(&world, "web", "path");
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!(line["path"].as_str().unwrap().len(), 128, "{line}");
    assert_eq!(refusals(&world, "path"), 201.0);
}

#[test]
fn a_pod_that_merely_looks_for_a_role_is_told_once() {
    let world = World::start();
    for _ in 0..10 {
        assert_eq!(world.get(ip(4), ROLES).status, 404);
    }
    let line = wait_for(&world, "plain", "no-role");
    assert_eq!((&line["level"], lines(&world, "plain", "no-role").len()), (&"INFO".into(), 1), "{line}");
    assert_eq!(refusals(&world, "no-role"), 10.0);
    assert!(note(&world, "plain", "RoleDenied").starts_with("no-role: "));
    assert_eq!(world.metric(r#"rolegate_events_total{outcome="suppressed"}"#), 0.0, "nothing is left to amend");
}

#[test]
fn the_start_says_what_the_settings_refuse() {
    let world = World::start_with(|setup| setup.argument("--namespace-restrictions=audit").argument("--node-info-namespaces=kube-*"));
    for (event, wanted) in [
        ("request-settings", ["--imds-tokens=required", "--metadata-profile=base"]),
        ("role-settings", ["--namespace-restrictions=audit", "--default-role"]),
    ] {
        let lines = world.daemon.events(event);
        let [line] = &lines[..] else { panic!("{event}: {lines:#?}") };
        for wanted in wanted {
            assert!(line["message"].as_str().unwrap().contains(wanted), "{line}");
        }
    }
    assert_eq!(world.daemon.events("request-settings")[0]["node_info_namespaces"], "kube-*");
}

#[test]
fn an_explanation_says_what_the_settings_mean_for_the_pod() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.apply(Resource::Pods, pod("plain", ip(4), None).build());
    let setup = fakes.setup().argument("--imds-tokens=optional").argument("--node-info-namespaces=shop");
    let world = fakes.into_world(&setup);
    world.daemon.wait_for_event("own-identity").unwrap();
    let explain = |pod: &str| {
        let url = format!("--admin-url=http://{}", world.daemon.metrics_address());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rolegate"));
        command.args(["explain", pod, &url]).env_clear().env("AWS_EC2_METADATA_DISABLED", "true");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let explained = explain("shop/web");
    let note = "note: requests without a session token (IMDSv1) are served (--imds-tokens=optional); metadata besides credentials: \
                node-info, because of --node-info-namespaces\n";
    assert!(explained.contains(note), "{explained}");
    assert!(!explain("shop/plain").contains("note:"), "a pod without a role has another answer");
}

#[test]
fn the_series_of_a_namespace_end_with_its_last_pod() {
    let world = World::start();
    let mut elsewhere = pod("visitor", ip(6), None).build();
    elsewhere["metadata"]["namespace"] = "visitors".into();
    elsewhere["metadata"]["uid"] = "uid-of-visitor".into();
    world.fakes.api.apply(Resource::Pods, elsewhere);
    let series = r#"rolegate_pod_refusals_total{namespace="visitors",reason="no-role"}"#;
    let counted = |world: &World| world.daemon.metric(None, series).ok();
    world.eventually(
        |world| {
            world.get(ip(6), ROLES);
            counted(world)
        },
        |count| count.is_some_and(|count| count >= 1.0),
    );
    assert!(world.fakes.api.delete(Resource::Pods, Some("visitors"), "visitor"));
    world.eventually(counted, |count| count.is_none_or(|count| count == 0.0));
}

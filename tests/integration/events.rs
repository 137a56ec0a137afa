//! Tests of Events on pods: what they tell the pods' owners, and that no request waits for them.

use rolegate_lab::kube::{Fault, RecordedRequest, Resource, Verb, namespace};
use rolegate_lab::sts::{Behaviour, NODE_ROLE_ARN};
use serde_json::Value;

use crate::world::{Fakes, NODE, ROLES, TOKEN, World, arn, ip, pod};

impl World {
    /// Waits until a pod has this many Events, and returns them.
    pub(crate) fn events_of(&self, name: &str, count: usize) -> Vec<Value> {
        let about = |world: &World| {
            let events = world.fakes.api.events();
            events.into_iter().filter(|event| event["regarding"]["name"] == name).collect::<Vec<_>>()
        };
        self.eventually(about, |events| events.len() >= count)
    }

    /// Returns once every Event that was due before this call has been written. Events are written in order.
    fn after_all_events(&self) {
        self.fakes.api.apply(Resource::Pods, pod("marker", ip(99), Some("")).build());
        let ask = |world: &World| {
            world.get(ip(99), ROLES);
            world.fakes.api.events().iter().any(|event| event["regarding"]["name"] == "marker")
        };
        self.eventually(ask, |told| *told);
    }

    fn event_count(&self) -> usize {
        self.fakes.api.events().len()
    }
}

/// Starts a daemon with a pod whose role annotation is refused each time, unlike a missing one.
fn world_with_a_bad_annotation() -> World {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    fakes.api.apply(Resource::Pods, pod("plain", ip(4), Some("two words")).build());
    let setup = fakes.setup();
    fakes.into_world(&setup)
}

fn reason_and_note(event: &Value) -> (&str, &str) {
    (event["reason"].as_str().unwrap(), event["note"].as_str().unwrap())
}

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/";

fn is_event(request: &RecordedRequest) -> bool {
    request.path.starts_with("/apis/events.k8s.io/v1/namespaces/shop/events")
}

#[test]
fn a_refused_pod_gets_one_event_however_often_it_asks() {
    let world = world_with_a_bad_annotation();
    for _ in 0..50 {
        assert_eq!(world.get(ip(4), ROLES).status, 404);
    }
    world.after_all_events();
    let events = world.events_of("plain", 1);
    let [event] = &events[..] else { panic!("{events:#?}") };
    let plain = world.fakes.api.get(Resource::Pods, Some("shop"), "plain").unwrap();
    assert_eq!((&event["regarding"]["uid"], &event["regarding"]["kind"]), (&plain["metadata"]["uid"], &"Pod".into()));
    assert_eq!((&event["reportingController"], &event["reportingInstance"]), (&"rolegate".into(), &NODE.into()));
    assert_eq!((&event["type"], &event["metadata"]["namespace"]), (&"Warning".into(), &"shop".into()));
    let (reason, note) = reason_and_note(event);
    assert!(reason == "RoleDenied" && note.starts_with("role-spaces: "), "{event}");
    assert_eq!(
        world.fakes.api.requests().iter().filter(|request| is_event(request)).count(),
        2,
        "one Event for the pod, and one for the marker"
    );
    // An Event is written before it is counted.
    world.eventually(|world| world.metric(r#"rolegate_events_total{outcome="written"}"#), |count| *count == 2.0);
    let suppressed = world.metric(r#"rolegate_events_total{outcome="suppressed"}"#);
    let folded = event["series"]["count"].as_f64().unwrap_or(1.0);
    assert!(suppressed >= 49.0 && folded <= 50.0, "{suppressed}, {event}");
}

#[test]
fn another_reason_is_another_event() {
    let world = World::start();
    assert_eq!(world.get(ip(4), ROLES).status, 404);
    world.events_of("plain", 1);
    world.fakes.api.apply(Resource::Pods, pod("plain", ip(4), Some("two words")).build());
    let refused = r#"rolegate_denials_total{reason="role-spaces"}"#;
    world.eventually(
        |world| {
            world.get(ip(4), ROLES);
            world.metric(refused)
        },
        |count| *count >= 1.0,
    );
    let events = world.events_of("plain", 2);
    let notes: Vec<_> = events.iter().map(reason_and_note).collect();
    assert!(notes[0].0 == "RoleDenied" && notes[0].1.starts_with("no-role: "), "{notes:?}");
    assert!(notes[1].0 == "RoleDenied" && notes[1].1.starts_with("role-spaces: "), "{notes:?}");
    assert!(!notes[1].1.contains("two words"), "the annotation's text is not repeated");
}

#[test]
fn an_address_conflict_is_reported_without_the_other_pod() {
    let world = World::start();
    let mut impostor = pod("impostor", ip(2), Some("db-role")).build();
    impostor["metadata"]["namespace"] = "another-tenant".into();
    world.fakes.api.apply(Resource::Pods, impostor);
    world.eventually(|world| world.get(ip(2), ROLES).status, |status| *status == 404);
    for (name, namespace, other) in [("web", "shop", "impostor"), ("impostor", "another-tenant", "web")] {
        let events = world.events_of(name, 1);
        let [event] = &events[..] else { panic!("{events:#?}") };
        assert_eq!((&event["metadata"]["namespace"], &event["regarding"]["namespace"]), (&namespace.into(), &namespace.into()));
        let (reason, note) = reason_and_note(event);
        assert!(reason == "AddressAmbiguous" && note.starts_with("ambiguous-pod: another pod"), "{event}");
        for foreign in [other, "another-tenant", "shop"] {
            assert!(!note.contains(foreign), "{foreign} is in {note}");
        }
    }
}

#[test]
fn an_sts_refusal_is_reported_without_the_caller() {
    let world = World::start();
    world.fakes.sts.set_role_behaviour(&arn("web-role"), Behaviour::AccessDenied);
    assert_eq!(world.credentials(ip(2), "web-role").status, 500);
    let events = world.events_of("web", 1);
    let (reason, note) = reason_and_note(&events[0]);
    assert!(reason == "AssumeRoleFailed" && note.starts_with("denied: ") && note.contains("trust policy"), "{note}");
    let log = world.daemon.wait_for_log(|line| line["pod"] == "web").unwrap();
    assert!(log["error"].as_str().unwrap().contains("assumed-role"), "the log has no caller from STS: {log}");
    for foreign in ["arn:", "111122223333", "assumed-role", NODE_ROLE_ARN] {
        assert!(!note.contains(foreign), "{foreign} is in {note}");
    }
}

#[test]
fn a_host_network_pod_gets_an_event_when_it_is_seen() {
    let fakes = Fakes::new();
    fakes.api.apply(Resource::Pods, pod("agent", ip(20), Some("web-role")).host_network(true).build());
    fakes.api.apply(Resource::Pods, pod("proxy", ip(20), None).host_network(true).build());
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    let (reason, note) = (&world.events_of("agent", 1)[0]["reason"], &world.events_of("agent", 1)[0]["note"]);
    assert!(reason == "HostNetworkNotServed" && note.as_str().unwrap().starts_with("host-network: "), "{reason}: {note}");
    world.after_all_events();
    assert_eq!(world.event_count(), 2, "a pod without a role gets no Event: {:#?}", world.fakes.api.events());
}

#[test]
fn audit_mode_reports_become_events() {
    let fakes = Fakes::new();
    fakes.api.apply(Resource::Namespaces, namespace("shop", &[("iam.amazonaws.com/allowed-roles", r#"["db-*"]"#)]));
    fakes.pod("web", ip(2), Some("web-role"));
    let setup = fakes.setup().argument("--namespace-restrictions=audit");
    let world = fakes.into_world(&setup);
    world.eventually(
        |world| {
            assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
            world.metric(r#"rolegate_audit_denials_total{reason="not-allowed-in-namespace"}"#)
        },
        |count| *count >= 1.0,
    );
    let events = world.events_of("web", 1);
    let [event] = &events[..] else { panic!("a namespace that is only late causes no Event: {events:#?}") };
    let (reason, note) = reason_and_note(event);
    assert!(reason == "RoleWouldBeDenied" && note.starts_with("not-allowed-in-namespace: served"), "{event}");
}

#[test]
fn without_events_the_daemon_never_writes_one() {
    let world = World::start_with(|setup| setup.argument("--events=false"));
    world.fakes.api.apply(Resource::Pods, pod("agent", ip(20), Some("web-role")).host_network(true).build());
    assert_eq!(world.get(ip(4), ROLES).status, 404);
    world.daemon.wait_for_log(|line| line["reason"] == "no-role").unwrap();
    // The API sends changes repeatedly. Each time an Event would have had its turn.
    for last in 5..15 {
        world.fakes.pod(&format!("late-{last}"), ip(last), Some("late-role"));
        world.eventually(|world| world.get(ip(last), ROLES).status, |status| *status == 200);
    }
    assert!(!world.fakes.api.requests().iter().any(is_event));
    for outcome in ["written", "suppressed", "dropped", "failed"] {
        assert_eq!(world.metric(&format!(r#"rolegate_events_total{{outcome="{outcome}"}}"#)), 0.0);
    }
}

/// The first write is held for the whole test. Every request is answered meanwhile.
#[test]
fn no_request_waits_for_an_api_that_holds_events() {
    let world = world_with_a_bad_annotation();
    world.fakes.api.hold_event_writes(true);
    assert_eq!(world.get(ip(4), ROLES).status, 404);
    world.eventually(|world| world.fakes.api.requests().iter().filter(|request| is_event(request)).count(), |count| *count == 1);
    for _ in 0..20 {
        assert_eq!(world.get(ip(4), ROLES).status, 404);
        world.document(ip(2), "web-role");
        world.document(ip(3), "db-role");
    }
    // Events that become due meanwhile are accepted, too.
    world.eventually(|world| world.metric(r#"rolegate_events_total{outcome="suppressed"}"#), |count| *count == 20.0);
    assert_eq!(world.event_count(), 0);
    world.fakes.api.hold_event_writes(false);
    assert_eq!(world.events_of("plain", 1).len(), 1);
}

/// The first write is held until all pods have been refused.
#[test]
fn refusals_in_one_namespace_do_not_delay_events_in_another() {
    let world = World::start();
    world.fakes.api.hold_event_writes(true);
    let refuse = |namespace: &str, name: &str, last: u8| {
        let mut refused = pod(name, ip(last), Some("two words")).build();
        refused["metadata"]["namespace"] = namespace.into();
        world.fakes.api.apply(Resource::Pods, refused);
        let counted = |world: &World| world.metric(r#"rolegate_events_total{outcome="suppressed"}"#);
        let before = counted(&world);
        // A repeat is counted once the first refusal has been taken in.
        world.eventually(
            |world| {
                world.get(ip(last), ROLES);
                counted(world)
            },
            |count| *count > before,
        );
    };
    for last in 10..30 {
        refuse("flood", &format!("flood-{last}"), last);
    }
    refuse("bank", "quiet", 30);
    world.fakes.api.hold_event_writes(false);
    world.events_of("quiet", 1);
    let creates = world.fakes.api.requests().into_iter().filter(|request| request.path.starts_with(EVENTS));
    let paths: Vec<_> = creates.map(|request| request.path).take(2).collect();
    assert_eq!(paths, ["flood", "bank"].map(|namespace| format!("{EVENTS}{namespace}/events")));
}

#[test]
fn a_missing_permission_is_logged_once_and_serving_goes_on() {
    let fakes = Fakes::new();
    fakes.api.deny(Verb::Create, "events");
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("plain", ip(4), None);
    fakes.api.apply(Resource::Pods, pod("other", ip(5), Some("two words")).build());
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    assert_eq!(world.get(ip(4), ROLES).status, 404);
    let warned = |event: &str| {
        let warning = world.daemon.wait_for_event(event).unwrap();
        let text = format!("{}; {}", warning["message"].as_str().unwrap(), warning["error"].as_str().unwrap());
        for wanted in ["events.k8s.io", "create, patch", "--events=false"] {
            assert!(text.contains(wanted), "{wanted} is not in {text}");
        }
        assert_eq!((text.matches("daemonset/rbac.yaml").count(), text.contains("  ")), (1, false), "one advice, one sentence: {text}");
        assert_eq!(warning["level"], "WARN");
        warning
    };
    let warning = warned("events-forbidden-in-namespace");
    assert_eq!(warning["namespace"], "shop");
    for _ in 0..5 {
        assert_eq!(world.get(ip(5), ROLES).status, 404);
        world.document(ip(2), "web-role");
    }
    world.eventually(|world| world.metric(r#"rolegate_events_total{outcome="suppressed"}"#), |count| *count == 4.0);
    assert_eq!(world.daemon.events("events-forbidden-in-namespace").len(), 1);
    assert_eq!(world.fakes.api.requests().iter().filter(|request| is_event(request)).count(), 1, "it is not retried constantly");
    // Each other namespace is tried once. The second refusal is logged as one for all namespaces, and later ones are not
    // logged.
    let tries = |world: &World| world.fakes.api.requests().iter().filter(|request| request.path.starts_with(EVENTS)).count();
    for (namespace, ip) in [("second", ip(6)), ("third", ip(7))] {
        let mut elsewhere = pod("plain", ip, None).build();
        elsewhere["metadata"]["namespace"] = namespace.into();
        elsewhere["metadata"]["uid"] = format!("uid-in-{namespace}").into();
        world.fakes.api.apply(Resource::Pods, elsewhere);
        let refused = |world: &World| world.metric(r#"rolegate_denials_total{reason="no-role"}"#);
        let before = refused(&world);
        world.eventually(
            |world| {
                world.get(ip, ROLES);
                refused(world)
            },
            |count| *count > before,
        );
        warned("events-forbidden");
    }
    world.eventually(|world| world.metric(r#"rolegate_events_total{outcome="failed"}"#), |count| *count == 3.0);
    let lines = ["events-forbidden-in-namespace", "events-forbidden"].map(|event| world.daemon.events(event).len());
    assert_eq!((tries(&world), lines), (3, [1, 1]));
}

/// One namespace refuses Events with a rule of its own.
#[test]
fn a_namespace_that_refuses_events_does_not_silence_others() {
    let world = World::start();
    let mut elsewhere = pod("strict", ip(6), None).build();
    elsewhere["metadata"]["namespace"] = "strict".into();
    world.fakes.api.apply(Resource::Pods, elsewhere);
    world.fakes.api.fail_next(Fault { verb: Some(Verb::Create), status: 403, reason: "Forbidden".to_owned(), ..Fault::default() });
    let tried = |world: &World| {
        world.get(ip(6), ROLES);
        world.metric(r#"rolegate_events_total{outcome="failed"}"#)
    };
    world.eventually(tried, |count| *count == 1.0);
    assert_eq!(world.get(ip(4), ROLES).status, 404);
    assert_eq!(world.events_of("plain", 1).len(), 1);
}

#[test]
fn a_busy_api_is_retried() {
    let world = World::start();
    world.fakes.api.fail_next(Fault {
        verb: Some(Verb::Create),
        status: 429,
        reason: "TooManyRequests".to_owned(),
        retry_after: Some(1),
        ..Fault::default()
    });
    assert_eq!(world.get(ip(4), ROLES).status, 404);
    assert_eq!(world.events_of("plain", 1).len(), 1);
    assert_eq!(world.metric(r#"rolegate_events_total{outcome="failed"}"#), 1.0);
    let tries: Vec<_> = world.fakes.api.requests().into_iter().filter(is_event).collect();
    assert_eq!((tries.len(), &tries[0].body), (2, &tries[1].body), "the same Event");
    assert!((tries[1].at - tries[0].at).as_secs() >= 1, "after the time in Retry-After");
}

#[test]
fn a_terminating_namespace_gets_no_events() {
    let world = world_with_a_bad_annotation();
    let mut ending = namespace("shop", &[]);
    ending["status"]["phase"] = "Terminating".into();
    world.fakes.api.apply(Resource::Namespaces, ending);
    let token = world.new_token(ip(4)).text();
    for _ in 0..3 {
        assert_eq!(world.request(ip(4), "GET", ROLES, &[(TOKEN, &token)]).status, 404);
    }
    world.eventually(|world| world.metric(r#"rolegate_events_total{outcome="dropped"}"#), |count| *count == 1.0);
    world.eventually(|world| world.metric(r#"rolegate_events_total{outcome="suppressed"}"#), |count| *count == 2.0);
    assert_eq!(world.fakes.api.requests().iter().filter(|request| is_event(request)).count(), 1);
    assert!(!world.daemon.log().contains("events-forbidden"), "it does not count as a missing permission");
}

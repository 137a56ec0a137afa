//! Target roles: the daemon assumes the pod's role, and with its session the target role.

use std::sync::Arc;

use rolegate_lab::daemon::Setup;
use rolegate_lab::kube::{PodBuilder, Resource, namespace, service_account};
use rolegate_lab::sts::{Behaviour, Call, NODE_ACCESS_KEY_ID, Role};
use tokio::sync::Notify;

use crate::world::{Fakes, ROLES, World, arn, ip, pod};

const TARGET: &str = "iam.amazonaws.com/target-role";
const PARTNER: &str = "arn:aws:iam::444455556666:role/teams/partner";
const HOUR: u32 = 3600;

/// The role in the partner's account, which trusts the pod's role and not the node's.
fn partner() -> Role {
    Role::new(PARTNER).trusted_by([arn("web-role")])
}

fn chained(name: &str, number: u8) -> PodBuilder {
    pod(name, ip(number), Some("web-role")).annotation(TARGET, PARTNER)
}

/// Fakes with one pod that has a target role.
fn fakes() -> Fakes {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(arn("web-role")));
    fakes.sts.add_role(partner());
    fakes.api.apply(Resource::Pods, chained("web", 2).build());
    fakes
}

fn start(change: impl FnOnce(Setup) -> Setup) -> World {
    let fakes = fakes();
    let setup = change(fakes.setup());
    fakes.into_world(&setup)
}

fn assumed(world: &World) -> Vec<Call> {
    world.fakes.sts.calls().into_iter().filter(|call| call.action == "AssumeRole").collect()
}

fn roles(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.role_arn.as_deref().unwrap()).collect()
}

#[test]
fn the_pod_gets_the_session_of_the_target_role_alone() {
    let world = start(|setup| setup);
    assert_eq!(world.get(ip(2), ROLES).text(), "partner");
    let document = world.document(ip(2), "partner");
    let calls = assumed(&world);
    assert_eq!(roles(&calls), [arn("web-role").as_str(), PARTNER]);
    let source = calls[0].access_key_id_issued.as_deref().unwrap();
    assert_eq!(calls[0].caller_access_key_id.as_deref(), Some(NODE_ACCESS_KEY_ID));
    assert_eq!(calls[1].caller_access_key_id.as_deref(), Some(source), "the session of the pod's role signs the second call");
    assert_eq!(calls[1].caller_arn.as_deref(), Some("arn:aws:sts::111122223333:assumed-role/web-role/web"));
    assert_eq!(calls.iter().map(|call| call.session_name.as_deref()).collect::<Vec<_>>(), [Some("web"); 2]);
    assert_eq!(calls.iter().map(|call| call.duration_seconds).collect::<Vec<_>>(), [Some(900), Some(HOUR)]);
    assert_eq!(document["AccessKeyId"].as_str(), calls[1].access_key_id_issued.as_deref());
    let info = world.get(ip(2), "/latest/meta-data/iam/info").text();
    assert!(info.contains("arn:aws:iam::444455556666:instance-profile/") && !info.contains("111122223333"), "{info}");

    // The source role is no name of the pod's role, and its session is served to nobody.
    let other = world.credentials(ip(2), "web-role");
    assert_eq!((other.status, other.body.len()), (404, 0));
    assert_eq!(world.metric(r#"rolegate_denials_total{reason="other-role"}"#), 1.0);
    world.fakes.api.apply(Resource::Pods, pod("plain", ip(3), Some("web-role")).build());
    let plain = world.eventually(|world| world.get(ip(3), ROLES).text(), |text| text == "web-role");
    assert_ne!(world.document(ip(3), &plain)["AccessKeyId"].as_str(), Some(source));
    assert_eq!(assumed(&world).len(), 3);

    let line = world.daemon.wait_for_log(|line| line["event"] == "role-assumed" && line["pod"] == "web").unwrap();
    assert_eq!((&line["role"], &line["source_role"]), (&PARTNER.into(), &arn("web-role").into()));
    assert_eq!(line["source_access_key_id"].as_str(), Some(source));
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="ok"}"#), 3.0);
    let log = world.daemon.log();
    for issued in world.fakes.sts.issued() {
        assert!(!log.contains(&issued.secret_access_key) && !log.contains(&issued.session_token));
    }
}

#[test]
fn a_refused_target_role_leaves_the_pod_without_credentials() {
    let world = start(|setup| setup);
    world.fakes.sts.add_role(partner().trusted_by([arn("other")]));
    for _ in 0..2 {
        let answer = world.credentials(ip(2), "partner");
        assert_eq!((answer.status, answer.body.len()), (500, 0));
    }
    assert_eq!(roles(&assumed(&world)), [arn("web-role").as_str(), PARTNER], "the refusal is remembered");
    let line = world.daemon.wait_for_event("assume-role-failed").unwrap();
    assert_eq!((&line["call"], &line["outcome"], &line["role"]), (&"target".into(), &"denied".into(), &PARTNER.into()));
    assert!(line["advice"].as_str().unwrap().contains("must allow sts:AssumeRole for the pod's role"), "{line}");
    let note = world.events_of("web", 1)[0]["note"].as_str().unwrap().to_owned();
    assert!(note.starts_with("denied: ") && note.contains("pod's role assume the target role") && !note.contains("arn:"), "{note}");
    assert_eq!(world.metric(r#"rolegate_sts_requests_total{cause="demand",outcome="denied"}"#), 1.0);
}

#[test]
fn a_refused_source_role_ends_the_chain() {
    let world = start(|setup| setup);
    world.fakes.sts.remove_role(&arn("web-role"));
    let answer = world.credentials(ip(2), "partner");
    assert_eq!((answer.status, answer.body.len()), (500, 0));
    assert_eq!(roles(&assumed(&world)), [arn("web-role").as_str()]);
    let line = world.daemon.wait_for_event("assume-role-failed").unwrap();
    assert_eq!((&line["call"], &line["source_role"]), (&"source".into(), &arn("web-role").into()));
    assert!(line["advice"].as_str().unwrap().contains("for rolegate's own role"), "{line}");
    let note = world.events_of("web", 1)[0]["note"].as_str().unwrap().to_owned();
    assert!(note.contains("which assumes the target role"), "{note}");
}

/// The list of the namespace names one of the two roles, then both.
#[test]
fn restrictions_apply_to_both_roles() {
    for (list, number, is_about_target) in [(r#"["web-role"]"#, 2, true), (r#"["arn:aws:iam::444455556666:role/teams/*"]"#, 3, false)] {
        let fakes = fakes();
        fakes.api.apply(Resource::Pods, chained("web", number).build());
        fakes.api.apply(Resource::Namespaces, namespace("shop", &[("iam.amazonaws.com/allowed-roles", list)]));
        let setup = fakes.setup().argument("--namespace-restrictions").argument("--backoff-max-elapsed-time=200ms");
        let world = fakes.into_world(&setup);
        for role in ["", "partner", "web-role"] {
            let answer = world.credentials(ip(number), role);
            assert!(answer.status >= 400 && answer.body.is_empty(), "{role}: {}", answer.status);
        }
        let line = world.daemon.wait_for_log(|line| line["reason"] == "not-allowed-in-namespace").unwrap();
        assert_eq!(line.to_string().contains("the target role is refused"), is_about_target, "{line}");
        assert!(assumed(&world).is_empty(), "STS is not asked for a refused pair");
        let both = namespace("shop", &[("iam.amazonaws.com/allowed-roles", r#"["web-role", "arn:aws:iam::444455556666:role/teams/*"]"#)]);
        world.fakes.api.apply(Resource::Namespaces, both);
        world.eventually(|world| world.get(ip(number), ROLES).text(), |text| text == "partner");
    }
}

#[test]
fn the_external_id_is_sent_for_the_target_role_only() {
    let fakes = fakes();
    fakes.sts.add_role(partner().external_id("shop-42"));
    fakes.api.apply(Resource::Pods, chained("web", 2).annotation("iam.amazonaws.com/external-id", "shop-42").build());
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    world.document(ip(2), "partner");
    let calls = assumed(&world);
    assert_eq!(calls.iter().map(|call| call.external_id.as_deref()).collect::<Vec<_>>(), [None, Some("shop-42")]);
}

#[test]
fn tags_and_source_identity_go_to_both_calls_and_transitive_keys_to_the_last() {
    for (more, keys) in [(&[][..], &[][..]), (&["--session-tags-transitive"], &["kubernetes-namespace", "kubernetes-pod-name"])] {
        let world = start(|setup| {
            let setup = setup.argument("--session-tags=pod,namespace").argument("--source-identity={namespace}.{pod}");
            more.iter().fold(setup, |setup, argument| setup.argument(*argument))
        });
        world.document(ip(2), "partner");
        let calls = assumed(&world);
        let tags =
            [("kubernetes-namespace", "shop"), ("kubernetes-pod-name", "web")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        for call in &calls {
            assert_eq!((&call.tags[..], call.source_identity.as_deref()), (&tags[..], Some("shop.web")));
        }
        assert_eq!(calls[0].transitive_tag_keys, [""; 0], "STS would refuse the same tags in the second call");
        assert_eq!(calls[1].transitive_tag_keys, keys);
        let issued = world.fakes.sts.issued();
        let target = issued.iter().find(|issued| issued.role_arn == PARTNER).unwrap();
        assert_eq!((&target.tags[..], target.source_identity.as_deref()), (&tags[..], Some("shop.web")));

        // A pod with one role sends the keys in its only call.
        world.fakes.pod("db", ip(3), Some("db-role"));
        world.eventually(|world| world.get(ip(3), ROLES).text(), |text| text == "db-role");
        world.document(ip(3), "db-role");
        assert_eq!(assumed(&world)[2].transitive_tag_keys, keys);
    }
}

/// What operators read when the target role's trust policy lacks an action.
#[test]
fn a_target_role_that_forbids_tags_is_refused_with_advice() {
    let world = start(|setup| setup.argument("--session-tags=pod"));
    world.fakes.sts.add_role(partner().without_tags());
    assert_eq!(world.credentials(ip(2), "partner").status, 500);
    let line = world.daemon.wait_for_event("assume-role-failed").unwrap();
    let advice = line["advice"].as_str().unwrap();
    assert!(line["call"] == "target" && advice.contains("the target role's trust policy must allow sts:TagSession"), "{line}");
}

#[test]
fn a_session_of_a_target_role_lasts_an_hour_at_most() {
    let fakes = fakes();
    let day = std::time::Duration::from_secs(12 * 3600);
    fakes.sts.add_role(Role::new(arn("web-role")).max_session(day));
    fakes.sts.add_role(partner().max_session(day));
    for (name, number) in [("web-2", 3), ("web-3", 4)] {
        fakes.api.apply(Resource::Pods, chained(name, number).build());
    }
    fakes.api.apply(Resource::Pods, pod("plain", ip(5), Some("web-role")).build());
    let setup = fakes.setup().argument("--session-duration=4h");
    let world = fakes.into_world(&setup);
    for number in [2, 3, 4] {
        world.document(ip(number), "partner");
    }
    world.document(ip(5), "web-role");
    let durations: Vec<_> = assumed(&world).iter().map(|call| call.duration_seconds.unwrap()).collect();
    assert_eq!(durations, [900, HOUR, 900, HOUR, 900, HOUR, 4 * HOUR]);
    world.daemon.wait_for_log(|line| line["event"] == "session-duration-limited" && line["role"] == PARTNER).unwrap();
    assert_eq!(world.daemon.log().matches("session-duration-limited").count(), 1, "it is logged once, not for each pod");
}

/// The pod changes while STS answers: it gets neither the session that it asked for, nor that of the source role.
#[test]
fn a_change_of_the_annotation_between_the_calls_takes_effect() {
    for (changed, expected) in [(Some("second"), "second"), (None, "web-role")] {
        let fakes = fakes();
        fakes.sts.add_role(Role::new(arn("second")).trusted_by([arn("web-role")]));
        let release = Arc::new(Notify::new());
        fakes.sts.set_role_behaviour(PARTNER, Behaviour::Held(release.clone()));
        let setup = fakes.setup();
        let world = fakes.into_world(&setup);
        let first = std::thread::scope(|scope| {
            let asked = scope.spawn(|| world.credentials(ip(2), "partner"));
            world
                .fakes
                .runtime
                .block_on(world.fakes.sts.wait_until(|calls| calls.iter().any(|call| call.role_arn.as_deref() == Some(PARTNER))));
            let now = pod("web", ip(2), Some("web-role"));
            let now = changed.into_iter().fold(now, |now, target| now.annotation(TARGET, target));
            world.fakes.api.apply(Resource::Pods, now.build());
            world.eventually(|world| world.get(ip(2), ROLES).text(), |text| text == expected);
            release.notify_waiters();
            asked.join().unwrap()
        });
        let source = assumed(&world)[0].access_key_id_issued.clone().unwrap();
        assert!(first.status != 200 && first.body.is_empty(), "{} {}", first.status, first.text());
        let document = world.document(ip(2), expected);
        let key = document["AccessKeyId"].as_str().unwrap();
        let issued = world.fakes.sts.issued();
        assert_eq!(issued.iter().find(|issued| issued.access_key_id == key).unwrap().role_arn, arn(expected));
        assert_ne!(key, source);
    }
}

#[test]
fn a_service_account_names_role_and_target_together() {
    let fakes = fakes();
    let account = |name: &str, more: &[(&str, &str)]| {
        fakes.api.apply(Resource::ServiceAccounts, service_account("shop", name, more));
    };
    account("both", &[("iam.amazonaws.com/role", "web-role"), (TARGET, PARTNER)]);
    account("role", &[("iam.amazonaws.com/role", "web-role")]);
    account("target", &[(TARGET, PARTNER)]);
    let with = |name: &str, number, role, account: &str| pod(name, ip(number), role).service_account(account);
    for builder in [
        with("both", 10, None, "both"),
        with("own", 11, Some("web-role"), "both"),
        with("mixed", 12, None, "role").annotation(TARGET, PARTNER),
        with("alone", 13, None, "target"),
    ] {
        fakes.api.apply(Resource::Pods, builder.build());
    }
    fakes.sts.add_role(Role::new(arn("common")));
    let setup = fakes.setup().argument("--service-account-roles").argument("--default-role=common");
    let world = fakes.into_world(&setup);
    assert_eq!(world.get(ip(10), ROLES).text(), "partner");
    assert_eq!(world.get(ip(11), ROLES).text(), "web-role", "a pod with its own role uses nothing of its service account");
    for (number, name) in [(12, "mixed"), (13, "alone")] {
        let answer = world.get(ip(number), ROLES);
        assert!(answer.status == 404 && answer.body.is_empty(), "{name}: {} {}", answer.status, answer.text());
        let line = world.daemon.wait_for_log(|line| line["pod"] == name && line["reason"] == "target-role-without-role").unwrap();
        assert!(line["advice"].as_str().unwrap().contains("target-role"), "{line}");
        assert!(world.events_of(name, 1)[0]["note"].as_str().unwrap().starts_with("target-role-without-role: "));
    }
    assert!(assumed(&world).is_empty());
}

/// What STS says of the source role's session is nothing about the daemon's own credentials.
#[test]
fn rejected_credentials_of_the_source_role_are_no_fault_of_the_daemon() {
    for rejection in [Behaviour::ExpiredToken, Behaviour::InvalidClientTokenId] {
        let world = start(|setup| setup);
        world.fakes.sts.set_role_behaviour(PARTNER, Behaviour::Then(vec![rejection]));
        world.document(ip(2), "partner");
        assert_eq!(roles(&assumed(&world)), [arn("web-role").as_str(), PARTNER, PARTNER], "only the failed call is repeated");
        assert_eq!(world.metric("rolegate_own_credentials_dropped_total"), 0.0);
        let line = world.daemon.wait_for_event("sts-retry").unwrap();
        assert_eq!((&line["outcome"], &line["role"]), (&"failed".into(), &PARTNER.into()));
    }
}

#[test]
fn a_session_of_another_role_is_discarded_in_both_calls() {
    for role in [arn("web-role"), PARTNER.to_owned()] {
        let world = start(|setup| setup);
        world.fakes.sts.set_role_behaviour(&role, Behaviour::AnswersFor(arn("third")));
        let answer = world.credentials(ip(2), "partner");
        assert_eq!((answer.status, answer.body.len()), (500, 0));
        let line = world.daemon.wait_for_event("sts-answered-for-another-role").unwrap();
        assert_eq!(line["role"], role);
        assert_eq!(roles(&assumed(&world)).contains(&PARTNER), role == PARTNER);
    }
}

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]

use super::look::look;
use super::*;
use crate::config::{Restrictions, ServiceAccountRoles};
use crate::pods::{NodeAddresses, Pod, PodUid, Pods, PodsWriter, pods};
use crate::policy::node::NodeIdentity;
use crate::policy::{Policy, Rules};

fn pod(name: &str, ips: &[&str]) -> Pod {
    Pod {
        uid: PodUid(name.into()),
        role: Some("arn:aws:iam::111122223333:role/web".to_owned()),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Pod::for_test("shop", name)
    }
}

fn known(all: impl IntoIterator<Item = Pod>) -> (PodsWriter, Pods) {
    let (writer, known) = pods();
    writer.write(|index| index.reset(all));
    (writer, known)
}

/// Returns a node whose daemon knows its own identity.
fn known_node() -> NodeIdentity {
    "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e".parse::<crate::role::CallerIdentity>().unwrap().into()
}

fn refused(message: &str) -> AskedSts {
    AskedSts { source_access_key_id: None, answer: Err(AssumeRoleError::Denied { message: message.to_owned() }) }
}

fn look_at(name: &str, pods: &Pods, rules: Rules) -> (Report, Option<RoleRequest>) {
    let name = PodReference::new("shop", name).unwrap();
    look(&name, "node-a", By::Daemon, pods, &Policy::new(rules, known_node()).unwrap())
}

/// Checks the decision, its reason, and part of its message.
fn check(pods: &Pods, name: &str, decision: ReportedDecision, reason: Option<&str>, wanted: &str) -> Report {
    let (report, request) = look_at(name, pods, Rules::default());
    assert_eq!((report.decision, report.reason.as_deref()), (decision, reason), "{report:?}");
    assert!(report.message.contains(wanted), "{report:?}");
    assert_eq!(request.is_some(), decision == ReportedDecision::Allowed, "only an allowed pod has a request for STS");
    assert_eq!(report.request.is_some(), request.is_some());
    report
}

#[test]
fn a_pod_is_identified_by_an_address_of_its_own() {
    let leaving = Pod { terminating: true, ..pod("leaving", &["10.0.0.2"]) };
    let (_writer, pods) = known([pod("web", &["10.0.0.1"]), leaving]);
    check(&pods, "web", ReportedDecision::Allowed, None, "role/web");
    let report = check(&pods, "leaving", ReportedDecision::Allowed, None, "role/web");
    assert!(report.identity.iter().any(|step| step.what == "phase" && step.detail.starts_with("terminating")));
    check(&pods, "nobody", ReportedDecision::Unknown, Some("unknown-pod"), "--output wide");
}

/// No pod gets credentials before the daemon knows its identity.
#[test]
fn a_daemon_without_an_identity_allows_nothing() {
    let (_writer, pods) = known([pod("web", &["10.0.0.1"]), Pod { role: None, ..pod("plain", &["10.0.0.2"]) }]);
    let policy = Policy::new(Rules::default(), NodeIdentity::default()).unwrap();
    let look_at = |name, by| look(&PodReference::new("shop", name).unwrap(), "node-a", by, &pods, &policy);
    let (report, request) = look_at("web", By::Daemon);
    assert_eq!((report.decision, report.reason.as_deref()), (ReportedDecision::Unknown, Some("identity-unknown")), "{report:?}");
    assert!(report.message.contains("role/web") && report.message.contains("--assume"), "{report:?}");
    assert!(request.is_some(), "with --assume, STS returns the daemon's identity and the decision is repeated");
    assert_eq!(look_at("plain", By::Daemon).0.decision, ReportedDecision::Denied, "a denial does not depend on the daemon's identity");
    // With the cluster as the source, the caller's identity is unknown.
    let (report, _) = look_at("web", By::Cluster);
    assert!(report.decision == ReportedDecision::Allowed && report.notes.len() == 1, "{report:?}");
}

#[test]
fn the_value_of_an_external_id_is_never_shown() {
    let secret = Pod { external_id: Some("s3cr3t-id".to_owned()), ..pod("web", &["10.0.0.1"]) };
    let (_writer, pods) = known([secret]);
    let (mut report, request) = look_at("web", &pods, Rules::default());
    let request = request.unwrap();
    report.asked(&request, None, refused("no"));
    assert!(report.request.as_ref().is_some_and(|request| request.external_id), "{report:?}");
    for text in [serde_json::to_string(&report).unwrap(), serde_json::to_string(&request).unwrap(), render::text(&report)] {
        assert!(text.contains("external") && !text.contains("s3cr3t"), "{text}");
    }
}

#[test]
fn reasons_why_a_pod_is_not_identified_come_with_advice() {
    let finished = Pod { finished: true, ..pod("finished", &["10.0.0.2"]) };
    let host = Pod { host_network: true, ..pod("host", &["10.0.0.3"]) };
    let before = Pod { terminating: true, ..pod("before", &["10.0.0.5"]) };
    let (writer, pods) = known([
        finished,
        host,
        before,
        pod("after", &["10.0.0.5"]),
        pod("one", &["10.0.0.6"]),
        pod("two", &["10.0.0.6"]),
        pod("starting", &[]),
        pod("node", &["10.0.0.7"]),
    ]);
    writer.write(|index| index.set_node(NodeAddresses { ips: ["10.0.0.7".parse().unwrap()].into(), loopback: true }));
    for (name, reason, wanted) in [
        ("finished", "unknown-pod", "has finished"),
        ("host", "host-network", "remove hostNetwork"),
        ("before", "ambiguous-pod", "belongs to pod shop/after"),
        ("one", "ambiguous-pod", "shop/two claims"),
        ("starting", "unknown-pod", "kubectl describe pod"),
        ("node", "unknown-pod", "an address of the node"),
    ] {
        let report = check(&pods, name, ReportedDecision::Denied, Some(reason), wanted);
        assert!(report.identity.iter().filter(|step| step.verdict == StepVerdict::Refused).count() == 1, "{report:?}");
        assert!(!report.policy.is_empty(), "the role is shown nevertheless");
    }
    check(&pods, "after", ReportedDecision::Allowed, None, "role/web");
}

#[test]
fn a_default_role_and_an_unknown_list_of_pods_are_said() {
    let (_writer, pods) = known([Pod { role: None, ..pod("plain", &["10.0.0.2"]) }]);
    let default = Rules { default_role: Some("arn:aws:iam::111122223333:role/default".parse().unwrap()), ..Rules::default() };
    let (report, request) = look_at("plain", &pods, default);
    assert!(request.is_some() && report.notes.len() == 1 && report.notes[0].contains("--default-role"), "{report:?}");
    let (_writer, unlisted) = crate::pods::pods();
    check(&unlisted, "web", ReportedDecision::Unknown, Some("pods-not-listed"), "has not received the list");
}

#[test]
fn one_good_address_is_enough_and_the_other_is_noted() {
    let (_writer, pods) = known([pod("web", &["10.0.0.1", "fd00::1"]), pod("other", &["fd00::1"])]);
    let report = check(&pods, "web", ReportedDecision::Allowed, None, "role/web");
    assert!(report.notes.len() == 1 && report.notes[0].contains("shop/other claims the address fd00::1"), "{report:?}");
}

#[test]
fn a_pod_that_is_refused_twice_gets_both_reasons() {
    let unannotated = Pod { role: None, ..pod("one", &["10.0.0.6"]) };
    let (_writer, pods) = known([unannotated, pod("two", &["10.0.0.6"])]);
    let report = check(&pods, "one", ReportedDecision::Denied, Some("ambiguous-pod"), "shop/two");
    assert!(report.notes[0].contains(&Denial::NoRole.with_advice()), "{report:?}");
}

#[test]
fn refusals_by_policy_keep_their_texts() {
    let (_writer, pods) = known([pod("web", &["10.0.0.1"]), Pod { role: None, ..pod("plain", &["10.0.0.2"]) }]);
    let restricted = || Rules { restrictions: Restrictions::Enforce, ..Rules::default() };
    let accounts = Rules { service_accounts: ServiceAccountRoles::Own, ..Rules::default() };
    for (name, rules, denial) in [
        ("web", restricted(), Denial::NamespaceUnknown),
        ("plain", Rules::default(), Denial::NoRole),
        ("plain", accounts, Denial::ServiceAccountUnknown),
    ] {
        let (report, request) = look_at(name, &pods, rules);
        assert!(request.is_none() && report.decision == ReportedDecision::Denied, "{report:?}");
        assert_eq!((report.reason.as_deref(), report.message), (Some(denial.name()), denial.with_advice()));
    }
    let audit = Rules { restrictions: Restrictions::Audit, ..Rules::default() };
    let (report, request) = look_at("web", &pods, audit);
    assert!(request.is_some() && report.notes[0].contains(&Denial::NamespaceUnknown.to_string()), "{report:?}");
}

#[test]
fn policy_steps_keep_their_serialized_names() {
    use crate::policy::trace::What::*;
    for what in [Role, Partition, NodeRole, AllowedRoles, ExternalId, SessionName, SessionTags, Namespace] {
        assert_eq!(serde_json::to_value(what).unwrap(), what.name());
    }
}

#[test]
fn a_report_survives_serialization() {
    let (_writer, pods) = known([pod("web", &["10.0.0.1"])]);
    let (report, _) = look_at("web", &pods, Rules::default());
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    for step in report.policy {
        assert!(text.contains(&format!(r#""what":"{}""#, step.what)));
    }
}

/// What `rolegate explain` says about a pod in the node's network, in each mode.
#[test]
fn pods_in_the_nodes_network_are_explained_by_their_treatment() {
    use crate::config::{ExemptPods, HostNetworkConfig, HostNetworkMode};
    use crate::pods::{HostNetworkRules, OwnPodName};
    let explained = |mode, is_enforced, name: &str| {
        let host = |name: &str| Pod { host_network: true, service_account: name.to_owned(), ..pod(name, &["10.0.0.3"]) };
        let (writer, pods) = known([host("host"), host("cni")]);
        let exempt = vec![ExemptPods::OfAccount { namespace: "shop".to_owned(), name: "cni".to_owned() }];
        let rules = HostNetworkRules::new(HostNetworkConfig { pods: mode, exempt }, OwnPodName::default(), is_enforced);
        writer.write(|index| index.set_host_network(rules));
        let (report, request) = look_at(name, &pods, Rules::default());
        assert_eq!(request.is_some(), report.decision == ReportedDecision::Allowed);
        let step = report.identity.iter().find(|step| step.what == "network").unwrap();
        assert!(step.detail.starts_with("hostNetwork"), "{step:?}");
        (report.decision, report.reason.unwrap_or_default(), report.message, report.notes)
    };
    for (mode, is_enforced, name, decision, reason, text) in [
        (HostNetworkMode::Ignore, true, "host", ReportedDecision::Denied, "host-network", "--host-network-pods=serve"),
        (HostNetworkMode::Serve, true, "host", ReportedDecision::Allowed, "", "role/web"),
        (HostNetworkMode::Deny, true, "host", ReportedDecision::Denied, "host-network", "--host-network-pods=deny"),
        (HostNetworkMode::Serve, true, "cni", ReportedDecision::Denied, "host-network-exempt", "--host-network-exempt=shop/cni"),
        (HostNetworkMode::Deny, true, "cni", ReportedDecision::Denied, "host-network-exempt", "--host-network-exempt=shop/cni"),
        (HostNetworkMode::Serve, false, "host", ReportedDecision::Denied, "host-network", "real metadata service"),
    ] {
        let (decided, said, message, notes) = explained(mode, is_enforced, name);
        assert_eq!((decided, said.as_str(), message.contains(text)), (decision, reason, true), "{mode:?} {name}: {message}");
        let is_told = notes.iter().any(|note| note.contains("has no effect"));
        assert_eq!(is_told, !is_enforced, "{notes:?}");
    }
    let (.., notes) = explained(HostNetworkMode::Ignore, true, "cni");
    assert!(notes.iter().any(|note| note.contains("the same in every mode")), "{notes:?}");
}

/// Reports as users see them.
#[test]
fn reports_of_every_decision() {
    let host = Pod { host_network: true, ..pod("host", &["10.0.0.3"]) };
    let (_writer, pods) = known([
        pod("web", &["10.0.0.1"]),
        Pod { role: None, ..pod("plain", &["10.0.0.2"]) },
        host,
        pod("one", &["10.0.0.6"]),
        pod("two", &["10.0.0.6"]),
        pod("starting", &[]),
    ]);
    for name in ["web", "plain", "host", "one", "starting", "nobody"] {
        insta::assert_snapshot!(name, render::text(&look_at(name, &pods, Rules::default()).0));
    }
    let restricted = |restrictions| render::text(&look_at("web", &pods, Rules { restrictions, ..Rules::default() }).0);
    insta::assert_snapshot!("restricted", restricted(Restrictions::Enforce));
    insta::assert_snapshot!("audit", restricted(Restrictions::Audit));
    let policy = Policy::new(Rules::default(), NodeIdentity::default()).unwrap();
    let unknown = |by| render::text(&look(&PodReference::new("shop", "web").unwrap(), "node-a", by, &pods, &policy).0);
    insta::assert_snapshot!("identity_unknown", unknown(By::Daemon));
    insta::assert_snapshot!("by_the_cluster", unknown(By::Cluster));
    let (mut report, request) = look_at("web", &pods, Rules::default());
    report.asked(&request.unwrap(), None, refused("AccessDenied"));
    insta::assert_snapshot!("denied_by_sts", render::text(&report));
}

//! What is handed over for pods' owners, request by request.

use super::*;
use crate::digest::Digest;
use crate::pods::RecordedPod;

impl Node {
    /// Pods and causes since the last time this was asked.
    fn told(&self) -> Vec<(String, EventCause)> {
        let mut records = self.records.lock().unwrap();
        std::iter::from_fn(|| records.try_recv().ok()).map(|record| (record.pod.name.clone(), record.cause)).collect()
    }

    async fn ask_for(&self, role: &str) -> u16 {
        self.ask("10.0.0.1", "GET", &format!("{LIST}{role}"), &[]).await.status
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_told_to_the_pod() {
    let node = node(TokenMode::Optional, &[("web-1", "10.0.0.1", None)]);
    assert_eq!(node.ask_for("").await, 404);
    assert_eq!(node.told(), [("web-1".to_owned(), EventCause::Denied(Denial::NoRole))]);
    assert_eq!(node.ask_for("").await, 404);
    assert_eq!(node.told(), [], "once: every SDK looks for a role, in each pod");
    assert!(node.counted(r#"rolegate_pod_refusals_total{namespace="default",reason="no-role"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn each_claimant_of_an_address_is_told() {
    let node = node(TokenMode::Optional, &[WEB, ("db-1", "10.0.0.1", Some("db"))]);
    assert_eq!(node.ask_for("").await, 404);
    let mut told = node.told();
    told.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(told, ["db-1", "web-1"].map(|name| (name.to_owned(), EventCause::AddressAmbiguous)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_sts_is_told_each_time_also_where_it_is_remembered() {
    let node = node(TokenMode::Optional, &[("web-1", "10.0.0.1", Some("broken"))]);
    for _ in 0..2 {
        assert_eq!(node.ask_for("broken").await, 500);
        let told = node.told();
        assert!(matches!(&told[..], [(pod, EventCause::AssumeRoleFailed { name: "denied", .. })] if pod == "web-1"), "{told:?}");
    }
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_default_role_is_told_as_one() {
    for (default, status) in [("broken", 500), ("nodes", 404)] {
        let known = [("web-1", "10.0.0.1", None)];
        let role = format!("arn:aws:iam::111122223333:role/{default}").parse().unwrap();
        let node = node_with(TokenMode::Optional, &known, |rules| rules.default_role = Some(role));
        assert_eq!(node.ask_for(if status == 404 { "" } else { default }).await, status);
        let told = node.told();
        let [(_, cause)] = &told[..] else { panic!("{told:?}") };
        match cause {
            EventCause::AssumeRoleFailed { name: "denied", sentence } => assert!(sentence.contains("names no role"), "{sentence}"),
            cause => assert_eq!(*cause, EventCause::RefusedOnNode { by_default: true }),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_setting_or_the_client_can_change_is_told() {
    let node = node(TokenMode::Required, &[WEB]);
    let told = |cause| [("web-1".to_owned(), cause)];
    assert_eq!(node.ask_for("").await, 401);
    assert_eq!(node.told(), told(EventCause::TokenRequired));
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[(TOKEN, "INVALID")]).await.status, 401);
    assert_eq!(node.told(), [], "SDKs request a new token");
    assert_eq!(node.get("10.0.0.1", "/latest/meta-data/tags/instance/Name").await.status, 404);
    assert_eq!(node.told(), told(EventCause::MetadataClosed { setting: "--node-info-namespaces" }));
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[("x-forwarded-for", "10.1.1.1")]).await.status, 403);
    assert_eq!(node.told(), told(EventCause::Forwarded));
    for reason in ["token", "path", "forwarded"] {
        let count = if reason == "token" { 2 } else { 1 };
        assert!(node.counted(&format!("rolegate_pod_refusals_total{{namespace=\"default\",reason=\"{reason}\"}} {count}")), "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_on_a_connection_of_an_earlier_pod_blames_nobody() {
    let node = node(TokenMode::Required, &[WEB]);
    let mut origin = Origin::new("10.0.0.1".parse().unwrap(), Hosts::default());
    origin.candidates = Some(Vec::new());
    assert_eq!(node.ask_on(&origin, "GET", LIST, &[("x-forwarded-for", "10.1.1.1")]).await.status, 403);
    assert!(node.counted(r#"rolegate_denials_total{reason="forwarded"} 1"#));
    assert_eq!(node.told(), []);
}

#[tokio::test(start_paused = true)]
async fn a_connection_belongs_only_to_the_pods_that_had_its_address() {
    let node = node(TokenMode::Optional, &[WEB]);
    let recorded = |uid: Option<&str>, name| RecordedPod { uid: uid.map(Digest::of_name), name: Digest::of_pod("default", name) };
    let own = recorded(Some("uid-of-web-1"), "web-1");
    for (candidates, status) in [
        (vec![own], 200),
        (vec![recorded(Some("uid-of-another"), "another"), own], 200),
        (vec![recorded(None, "web-1")], 200),
        (vec![recorded(Some("uid-of-another"), "web-1")], 500),
        (vec![recorded(None, "another")], 500),
        (vec![], 500),
    ] {
        let mut origin = Origin::new("10.0.0.1".parse().unwrap(), Hosts::default());
        origin.candidates = Some(candidates.clone());
        assert_eq!(node.ask_on(&origin, "GET", LIST, &[]).await.status, status, "{candidates:?}");
        assert_eq!(origin.is_over(), status == 500, "{candidates:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_now_is_no_refusal_of_the_pod() {
    let node = node(TokenMode::Required, &[WEB]);
    node.proxy.values().set_for_test("meta-data/placement/region", "eu-central-1");
    assert_eq!(node.get("10.0.0.1", "/latest/meta-data/placement/availability-zone").await.status, 404);
    assert!(node.counted(r#"rolegate_denials_total{reason="path"} 1"#));
    let metrics = String::from_utf8(node.proxy.metrics.render()).unwrap();
    assert!(!metrics.contains("rolegate_pod_refusals_total{"), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn what_audit_only_reports_is_told_but_not_that_the_namespace_is_late() {
    let node = node_with(TokenMode::Optional, &[WEB], |rules| rules.restrictions = Restrictions::Audit);
    assert_eq!(node.ask_for("").await, 200);
    assert!(node.counted(r#"rolegate_audit_denials_total{reason="namespace-unknown"} 1"#));
    assert_eq!(node.told(), []);
    let namespace = Namespace { name: "default".to_owned(), allowed_roles: None, permitted: None };
    node.writer.write(|index| index.apply_namespace(namespace));
    assert_eq!(node.ask_for("").await, 200);
    assert_eq!(node.told(), [("web-1".to_owned(), EventCause::WouldBeDenied(Denial::NamespaceHasNoList))]);
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_itself_or_is_about_no_pod_is_told_to_nobody() {
    let node = node(TokenMode::Required, &[WEB]);
    assert_eq!(node.ask("10.9.9.9", "GET", LIST, &[]).await.status, 404);
    assert_eq!(node.get("10.0.0.1", &format!("{LIST}another")).await.status, 404);
    assert_eq!(node.get("10.0.0.1", "/latest/user-data").await.status, 404);
    assert_eq!(node.ask("10.0.0.1", "POST", LIST, &[]).await.status, 405);
    assert_eq!(node.get("10.0.0.1", &format!("{LIST}web")).await.status, 200);
    assert_eq!(node.told(), []);
}

/// What is the node's to mend is told by its log: an outage of STS would else be an Event on each of its pods.
#[tokio::test(start_paused = true)]
async fn what_its_owner_cannot_change_is_told_to_no_pod() {
    let node = node_with(TokenMode::Optional, &[WEB], |rules| rules.restrictions = Restrictions::Enforce);
    assert_eq!(node.ask_for("").await, 500);
    assert!(node.counted(r#"rolegate_denials_total{reason="namespace-unknown"} 1"#));
    assert_eq!(node.told(), []);
}

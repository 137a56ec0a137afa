#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use super::*;
use crate::explain::{Assumed, ReportedTag, StsParameters, VERSION};

fn step(what: &str, source: &str, detail: &str, verdict: StepVerdict) -> ReportStep {
    ReportStep { what: what.to_owned(), source: source.to_owned(), detail: detail.to_owned(), verdict }
}

fn report() -> Report {
    Report {
        version: VERSION,
        namespace: "shop".to_owned(),
        pod: "web-0".to_owned(),
        node: "node-a".to_owned(),
        by: By::Daemon,
        decision: ReportedDecision::Allowed,
        reason: None,
        message: "the pod may use ROLE".to_owned(),
        check: Vec::new(),
        notes: Vec::new(),
        identity: vec![step("address", "10.0.0.1", "belongs to this pod only", StepVerdict::Passed)],
        policy: vec![step("allowed-roles", "--allowed-roles", "not set: every role is allowed", StepVerdict::Skipped)],
        pod_identity: vec![step(
            "container",
            "app",
            "the variable AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE is missing",
            StepVerdict::Refused,
        )],
        request: Some(StsParameters {
            role: "ROLE".to_owned(),
            source_role: None,
            session_name: "web-0".to_owned(),
            source_identity: Some("shop.web-0".to_owned()),
            external_id: true,
            tags: vec![ReportedTag { key: "key".to_owned(), value: "value".to_owned() }],
            has_transitive_tags: false,
            duration_seconds: 5400,
        }),
        assume: None,
    }
}

#[test]
fn every_part_has_its_lines() {
    let assume = Some(Assumed {
        identity: Some("WHO".into()),
        outcome: "ok".into(),
        source_access_key_id: None,
        access_key_id: Some("ASIA1".into()),
        expires_at: Some("LATER".into()),
    });
    insta::assert_snapshot!("allowed", text(&Report { assume, notes: vec!["by the way".to_owned()], ..report() }));
}

/// Both steps of a request with a target role are shown.
#[test]
fn a_target_role_has_its_lines() {
    let assume = Some(Assumed {
        identity: Some("WHO".into()),
        outcome: "ok".into(),
        source_access_key_id: Some("ASIA1".into()),
        access_key_id: Some("ASIA2".into()),
        expires_at: Some("LATER".into()),
    });
    let mut report = Report { assume, ..report() };
    let request = report.request.as_mut().unwrap();
    request.source_role = Some("SOURCE".to_owned());
    request.has_transitive_tags = true;
    insta::assert_snapshot!("target_role", text(&report));
}

#[test]
fn the_last_line_states_the_decision() {
    let refused = |decision, reason: &str, check: &[&str]| Report {
        decision,
        reason: Some(reason.to_owned()),
        message: "change this".to_owned(),
        check: check.iter().map(|&text| text.to_owned()).collect(),
        ..report()
    };
    for (name, report) in [
        ("denied", refused(ReportedDecision::Denied, "no-role", &[])),
        ("unknown", refused(ReportedDecision::Unknown, "unknown-pod", &[])),
        ("denied_by_sts", refused(ReportedDecision::Denied, "sts-denied", &["one", "two"])),
    ] {
        let text = text(&report);
        let (_, end) = text.split_once("\n\nSTS request").unwrap();
        let reason = report.reason.as_deref().unwrap();
        assert!(end.contains(&format!("({reason})")), "{text}");
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn the_text_of_the_refusal_appears_once() {
    let policy = vec![step("role", "--default-role", "change this", StepVerdict::Refused)];
    let reason = Some("no-role".to_owned());
    let text = text(&Report { decision: ReportedDecision::Denied, reason, message: "change this".to_owned(), policy, ..report() });
    assert!(text.contains("  no  role            --default-role: no-role\n"), "{text}");
    assert_eq!(text.matches("change this").count(), 1);
}

#[test]
fn a_refusal_by_sts_has_its_own_line() {
    let assume = Some(Assumed {
        identity: None,
        outcome: "own-identity".to_owned(),
        source_access_key_id: None,
        access_key_id: None,
        expires_at: None,
    });
    let text = text(&Report { assume, ..report() });
    assert!(text.contains("  no  caller          not known\n  no  session         own-identity\n"), "{text}");
}

#[test]
fn control_characters_are_replaced_and_empty_parts_omitted() {
    let policy = vec![step("role\u{1b}[2J", "a\nb", "\r\u{7}", StepVerdict::Passed)];
    let text = text(&Report { policy, identity: Vec::new(), request: None, notes: vec!["\u{1b}]0;x".to_owned()], ..report() });
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    assert!(text.contains("a?b: ??\n") && !text.contains("\nPod\n") && !text.contains("STS"), "{text}");
}

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]

use std::collections::BTreeMap;

use super::merge::annotation_value;
use super::recorder::Recorder;
use super::render::{report_csv, report_text};
use super::reporter::MigrationReporter;
use super::*;
use crate::config::{PatternFormat, Restrictions};
use crate::pods::{Namespace, Pod, PodContext, PodOwner, Pods, PodsWriter, pods};
use crate::policy::node::NodeIdentity;
use crate::policy::{Decision, Denial, Policy, Rules};

const BILLING: &str = "arn:aws:iam::111122223333:role/billing";

struct Node {
    writer: PodsWriter,
    pods: Pods,
    reporter: MigrationReporter,
}

impl Node {
    fn new(change: impl FnOnce(&mut Rules, &mut MigrationReporter)) -> Self {
        let (writer, pods) = pods();
        let mut rules = Rules { base: Some("arn:aws:iam::111122223333:role/".parse().unwrap()), ..Rules::default() };
        rules.restrictions = Restrictions::Audit;
        let identity = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e".parse::<crate::role::CallerIdentity>().unwrap();
        let policy = |rules: &Rules| Policy::new(rules.clone(), NodeIdentity::from(identity.clone())).unwrap().into();
        let strict = StrictSettings {
            tokens: TokenMode::Required,
            profile: MetadataProfile::Base,
            node_info_namespaces: vec!["monitoring".to_owned()],
            restricted: true,
            node_role_withheld: false,
        };
        let mut reporter = MigrationReporter {
            node: "node-a".to_owned(),
            recorder: Recorder::on("node-a"),
            pods: pods.clone(),
            policy: policy(&rules),
            strict: Some(strict),
            allowed_roles: "iam.amazonaws.com/allowed-roles".to_owned(),
            patterns: PatternFormat::Glob,
        };
        change(&mut rules, &mut reporter);
        reporter.policy = policy(&rules);
        Self { writer, pods, reporter }
    }

    fn list(&self, list: Option<&str>) {
        let namespace = Namespace { name: "shop".to_owned(), allowed_roles: list.map(str::to_owned), permitted: None };
        self.writer.write(|index| index.apply_namespace(namespace));
    }

    fn pods(&self, all: impl IntoIterator<Item = Pod>) {
        self.writer.write(|index| index.reset(all));
    }

    /// What the proxy does with a request of a pod for its role.
    fn asks(&self, pod: &Pod) {
        let policy = &self.reporter.policy;
        let context = PodContext { namespace: self.pods.namespace("shop"), ..PodContext::default() };
        match policy.decide(pod, &context) {
            Decision::Allow { audit: Some(denial), request } => self.reporter.recorder.restricted(pod, request.role(), denial),
            Decision::Allow { .. } => {}
            Decision::Deny(denial) => self.reporter.recorder.denied(pod, policy.named_role(pod, &context), denial),
        }
    }

    fn found(&self) -> Vec<(String, FindingKind, String, String, u64)> {
        let all = self.reporter.report().workloads;
        let of = |workload: ReportedWorkload| {
            let name = format!("{}/{}", workload.kind, workload.name);
            let findings = workload.findings.into_iter();
            findings.map(move |one| (name.clone(), one.finding, one.subject, one.reason, one.count)).collect::<Vec<_>>()
        };
        all.into_iter().flat_map(of).collect()
    }
}

fn pod(name: &str, ip: u8, role: Option<&str>) -> Pod {
    let owner = Some(Box::new(PodOwner { kind: "StatefulSet".into(), name: name.into() }));
    let (role, ips) = (role.map(str::to_owned), vec![[10, 0, 0, ip].into()]);
    Pod { owner, role, ips, ..Pod::for_test("shop", &format!("{name}-0")) }
}

fn row(workload: &str, finding: FindingKind, subject: &str, reason: &str, count: u64) -> (String, FindingKind, String, String, u64) {
    (workload.to_owned(), finding, subject.to_owned(), reason.to_owned(), count)
}

#[tokio::test]
async fn a_role_is_a_finding_until_the_namespace_allows_it() {
    let node = Node::new(|_, _| {});
    node.list(Some(r#"["web"]"#));
    let (web, billing) = (pod("web", 1, Some("web")), pod("billing", 2, Some("billing")));
    node.pods([web.clone(), billing.clone(), pod("plain", 3, None)]);
    let wanted = |count| vec![row("StatefulSet/billing", FindingKind::Role, BILLING, "not-allowed-in-namespace", count)];
    assert_eq!(node.found(), wanted(0), "before it asks");
    [&web, &billing, &billing].iter().for_each(|pod| node.asks(pod));
    assert_eq!(node.found(), wanted(2));
    let [namespace] = &node.reporter.report().namespaces[..] else { panic!("one") };
    assert_eq!(namespace.value, format!(r#"["web","{BILLING}"]"#));
    let value = namespace.value.clone();
    node.list(None);
    assert_eq!(node.found()[0], row("StatefulSet/billing", FindingKind::Role, BILLING, "no-namespace-list", 2), "of now");
    node.list(Some(&value));
    assert_eq!(node.found(), []);
    assert_eq!(node.reporter.report().namespaces, []);
}

#[tokio::test]
async fn a_star_in_the_path_of_a_role_is_never_in_a_glob() {
    let star = "arn:aws:iam::111122223333:role/*/admin";
    let node = Node::new(|_, _| {});
    node.list(Some(r#"["web"]"#));
    let (hostile, billing) = (pod("hostile", 1, Some(star)), pod("billing", 2, Some("billing")));
    node.pods([hostile.clone()]);
    node.asks(&hostile);
    assert_eq!(node.found(), [row("StatefulSet/hostile", FindingKind::Role, star, "not-allowed-in-namespace", 1)]);
    assert_eq!(node.reporter.report().namespaces, []);
    node.pods([billing, hostile]);
    let report = node.reporter.report();
    assert_eq!(report.namespaces[0].missing, [BILLING]);
    let line = report_csv(&report).lines().find(|line| line.contains("hostile")).map(str::to_owned).unwrap();
    assert!(!line.contains("kubectl"), "{line}");
    // What pods did that are gone.
    node.pods([]);
    assert_eq!((node.found().len(), node.reporter.report().namespaces), (1, vec![]));
    let node = Node::new(|_, reporter| reporter.patterns = PatternFormat::Regexp);
    node.list(Some("[]"));
    node.pods([pod("hostile", 1, Some(star))]);
    assert_eq!(node.reporter.report().namespaces[0].missing, [regex::escape(star)]);
}

#[tokio::test]
async fn what_pods_did_that_are_gone_is_judged_by_the_list_of_now() {
    let node = Node::new(|_, _| {});
    node.list(Some("[]"));
    let job = pod("import", 1, Some("billing"));
    node.asks(&job);
    assert_eq!(node.found(), [row("StatefulSet/import", FindingKind::Role, BILLING, "not-allowed-in-namespace", 1)]);
    node.list(Some(r#"["bill*"]"#));
    assert_eq!(node.found(), []);
    node.writer.write(|index| index.delete_namespace("shop"));
    assert_eq!(node.found().len(), 1, "the list is not known");
    assert!(node.reporter.report().namespaces[0].note.is_some());
}

#[tokio::test]
async fn a_ceiling_is_a_refusal_and_not_an_advice_for_the_namespace() {
    let node = Node::new(|rules, _| rules.allowed_roles = Some(vec!["web".to_owned()]));
    node.list(Some("[]"));
    let admin = pod("admin", 1, Some("admin"));
    node.pods([admin.clone()]);
    node.asks(&admin);
    let role = "arn:aws:iam::111122223333:role/admin";
    assert_eq!(node.found(), [row("StatefulSet/admin", FindingKind::Refused, role, "not-allowed-on-node", 1)]);
    assert_eq!(node.reporter.report().namespaces, []);
}

#[tokio::test]
async fn a_pod_without_a_role_is_named_only_where_kube2iam_gave_it_one() {
    for withheld in [false, true] {
        let node = Node::new(|_, reporter| reporter.strict.as_mut().unwrap().node_role_withheld = withheld);
        let plain = pod("plain", 1, None);
        node.pods([plain.clone()]);
        node.asks(&plain);
        let wanted = vec![row("StatefulSet/plain", FindingKind::Refused, "", "no-role", 1)];
        assert_eq!(node.found(), if withheld { wanted } else { Vec::new() });
    }
}

#[tokio::test]
async fn what_is_not_known_yet_is_no_finding() {
    let node = Node::new(|_, _| {});
    node.pods([pod("web", 1, Some("web"))]);
    assert_eq!(node.found(), [], "the namespace is not known");
    node.reporter.recorder.denied(&pod("web", 1, None), None, Denial::ServiceAccountUnknown);
    assert_eq!(node.found(), []);
}

#[tokio::test]
async fn metrics_count_workloads_of_namespaces_with_pods_here() {
    let node = Node::new(|_, _| {});
    let (web, gone) = (pod("web", 1, None), Pod { namespace: "gone".to_owned(), ..pod("web", 2, None) });
    node.pods([web.clone()]);
    for path in ["meta-data/mac", "meta-data/hostname"] {
        [&web, &gone].iter().for_each(|pod| node.reporter.recorder.metadata(pod, "node-info", path.to_owned()));
    }
    node.reporter.recorder.without_token(&web, Some(b"curl/8"));
    assert_eq!(node.reporter.counts(), [("imdsv1", "shop".to_owned(), 1), ("metadata", "shop".to_owned(), 1)]);
    assert_eq!(node.reporter.report().node_info_namespaces().as_deref(), Some("monitoring,gone,shop"));
}

#[tokio::test]
async fn patterns_of_a_regexp_list_match_the_role_alone() {
    let node = Node::new(|rules, reporter| (rules.patterns, reporter.patterns) = (PatternFormat::Regexp, PatternFormat::Regexp));
    node.list(None);
    node.pods([pod("web", 1, Some("a.b+c"))]);
    let value = node.reporter.report().namespaces[0].value.clone();
    assert_eq!(value, r#"["arn:aws:iam::111122223333:role/a\\.b\\+c"]"#);
    node.list(Some(&value));
    assert_eq!(node.found(), []);
}

#[tokio::test]
async fn an_invalid_list_is_replaced_and_a_note_says_so() {
    let node = Node::new(|_, _| {});
    node.pods([pod("web", 1, Some("billing"))]);
    for list in ["web", r#"["web", ""]"#] {
        node.list(Some(list));
        let [namespace] = &node.reporter.report().namespaces[..] else { panic!("one") };
        assert_eq!((&namespace.existing, namespace.value.clone()), (&None, format!(r#"["{BILLING}"]"#)), "{list}");
        assert!(namespace.note.is_some(), "{list}");
    }
}

#[tokio::test]
async fn a_pod_that_uses_the_node_role_is_a_finding_of_its_own() {
    let node = Node::new(|_, _| {});
    let (agent, annotated) =
        (Pod { host_network: true, ..pod("agent", 1, None) }, Pod { host_network: true, ..pod("web", 1, Some("web")) });
    node.pods([agent.clone(), annotated.clone()]);
    assert_eq!(node.found().len(), 1, "only the annotated pod, before any connects");
    for pod in [&agent, &annotated] {
        node.reporter.recorder.used_node_role(pod, "shop/default".to_owned(), 3);
    }
    let wanted = [
        row("StatefulSet/agent", FindingKind::HostNetwork, "shop/default", "uses-node-role", 3),
        row("StatefulSet/web", FindingKind::HostNetwork, "arn:aws:iam::111122223333:role/web", "host-network", 0),
        row("StatefulSet/web", FindingKind::HostNetwork, "shop/default", "uses-node-role", 3),
    ];
    assert_eq!(node.found(), wanted);
    assert_eq!(node.reporter.counts(), [("host-network", "shop".to_owned(), 2)]);
}

fn report(node: &str, count: u64) -> MigrationReport {
    let finding = |finding, subject: &str, reason: &str| Finding {
        finding,
        subject: subject.to_owned(),
        reason: reason.to_owned(),
        count,
        last_seen_seconds: Some(count),
        advice: "do".to_owned(),
    };
    let findings =
        vec![finding(FindingKind::Imdsv1, "curl/8", "no-token"), finding(FindingKind::Role, BILLING, "not-allowed-in-namespace")];
    let missing = vec![BILLING.to_owned(), format!("{BILLING}-{node}")];
    let existing = vec!["it's \u{e4}\u{1b}".to_owned()];
    MigrationReport {
        version: REPORT_VERSION,
        nodes: vec![ReportedNode { node: node.to_owned(), recorded_seconds: 60, findings_recorded: true, error: None }],
        strict: None,
        left_out: 1,
        namespaces: vec![ReportedNamespace {
            name: "shop".to_owned(),
            annotation: "iam.amazonaws.com/allowed-roles".to_owned(),
            value: annotation_value(Some(&existing), &missing),
            existing: Some(existing),
            missing,
            note: None,
        }],
        workloads: vec![ReportedWorkload { namespace: "shop".to_owned(), kind: "Job".to_owned(), name: "a".to_owned(), findings }],
        protocols: vec![ReportedProtocol {
            namespace: "shop".to_owned(),
            kind: "Job".to_owned(),
            name: "a".to_owned(),
            protocol: CredentialProtocol::Imdsv2,
            requests: 4,
            credentials: 2,
            last_seen_seconds: count,
        }],
        protocols_left_out: 1,
    }
}

#[test]
fn reports_of_nodes_are_added_up_by_workload() {
    let mut merged = MigrationReport::of_nobody();
    merged.merge(report("b", 3));
    merged.merge(MigrationReport::failed("c", "away".to_owned()));
    assert!(!merged.is_complete());
    merged.merge(report("a", 2));
    assert_eq!(merged.nodes.iter().map(|node| &*node.node).collect::<Vec<_>>(), ["a", "b", "c"]);
    let [workload] = &merged.workloads[..] else { panic!("{merged:?}") };
    let counted: Vec<_> = workload.findings.iter().map(|one| (one.finding, one.count, one.last_seen_seconds)).collect();
    assert_eq!(counted, [(FindingKind::Imdsv1, 5, Some(2)), (FindingKind::Role, 5, Some(2))]);
    let [namespace] = &merged.namespaces[..] else { panic!("{merged:?}") };
    let value: Vec<String> = serde_json::from_str(&namespace.value).unwrap();
    assert_eq!(value, ["it's \u{e4}\u{1b}", BILLING, &format!("{BILLING}-a"), &format!("{BILLING}-b")]);
    assert_eq!(merged.left_out, 2);
    let protocols: Vec<_> =
        merged.protocols.iter().map(|used| (used.protocol, used.requests, used.credentials, used.last_seen_seconds)).collect();
    assert_eq!((protocols, merged.protocols_left_out), (vec![(CredentialProtocol::Imdsv2, 8, 4, 2)], 2));
    let sent: MigrationReport = serde_json::from_slice(&serde_json::to_vec(&merged).unwrap()).unwrap();
    assert_eq!(sent, merged);
}

#[tokio::test(start_paused = true)]
async fn protocols_are_reported_without_strict_settings_too() {
    let node = Node::new(|_, reporter| reporter.strict = None);
    let (web, billing) = (pod("web", 1, Some("web")), pod("billing", 2, Some("billing")));
    node.list(Some("[]"));
    node.pods([web.clone(), billing.clone()]);
    let recorder = &node.reporter.recorder;
    recorder.requested(&web, CredentialProtocol::Imdsv2);
    tokio::time::advance(std::time::Duration::from_secs(5)).await;
    for (pod, protocol) in [(&web, CredentialProtocol::PodIdentity), (&billing, CredentialProtocol::Imdsv1)] {
        recorder.requested(pod, protocol);
        recorder.answered(pod, protocol);
    }
    let report = node.reporter.report();
    let used: Vec<_> = report.protocols.iter().map(|one| (&*one.name, one.protocol, one.credentials, one.last_seen_seconds)).collect();
    let wanted = [
        ("billing", CredentialProtocol::Imdsv1, 1, 0),
        ("web", CredentialProtocol::Imdsv2, 0, 5),
        ("web", CredentialProtocol::PodIdentity, 1, 0),
    ];
    assert_eq!(used, wanted);
    assert_eq!((report.workloads.len(), report.without_findings().collect::<Vec<_>>()), (0, vec!["node-a"]));
    let text = report_text(&report);
    assert!(text.contains("workloads by protocol: imdsv1 1, imdsv2 1, pod-identity 1, relative-uri 0\n"), "{text}");
    assert!(text.contains("workloads that get credentials from the metadata service: 1\n"), "{text}");
    assert!(!text.contains("no findings\n"), "nothing was looked for: {text}");
}

/// Daemons of earlier versions are read as well, while nodes are updated.
#[test]
fn a_report_of_an_earlier_version_is_read() {
    let mut old = serde_json::to_value(report("a", 1)).unwrap();
    old.as_object_mut().unwrap().retain(|name, _| !name.starts_with("protocols"));
    old["nodes"][0].as_object_mut().unwrap().remove("findings_recorded");
    let read: MigrationReport = serde_json::from_value(old).unwrap();
    assert_eq!((read.protocols.len(), read.without_findings().count(), read.workloads.len()), (0, 0, 1));
}

#[test]
fn text_and_csv_have_nothing_that_a_terminal_a_shell_or_a_spreadsheet_acts_on() {
    let mut hostile = report("a", 1);
    hostile.workloads[0].findings[0].subject = "=1+1\",\u{1b}[31m\n".to_owned();
    hostile.protocols[0].name = "\u{1b}[31m".to_owned();
    let (text, csv) = (report_text(&hostile), report_csv(&hostile));
    let command = r#"kubectl annotate namespace shop --overwrite 'iam.amazonaws.com/allowed-roles=["it'\''s \u00e4\u001b","#;
    assert!(text.contains(command), "{text}");
    assert!(csv.contains("\"'=1+1\"\",?[31m?\""), "{csv}");
    assert_eq!(csv.lines().count(), 3);
    assert!([text, csv].iter().all(|text| text.chars().all(|c| matches!(c, '\n' | '\r' | ' '..='~'))));
}

#[test]
fn kinds_have_the_names_that_json_has() {
    let names: BTreeMap<_, _> = FindingKind::ALL.into_iter().collect();
    for (kind, name) in &names {
        assert_eq!((serde_json::to_value(kind).unwrap(), kind.name()), ((*name).into(), *name));
    }
    assert_eq!(names.len(), 5);
    for (place, (protocol, name)) in CredentialProtocol::ALL.into_iter().enumerate() {
        assert_eq!((serde_json::to_value(protocol).unwrap(), protocol.name(), protocol as usize), (name.into(), name, place));
    }
}

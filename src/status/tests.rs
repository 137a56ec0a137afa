#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what failed")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use secrecy::SecretString;

use super::collector::StatusCollector;
use super::page::{content_security_policy, page};
use super::*;
use crate::clock::Clock;
use crate::config::{MetadataProfile, PatternFormat, TokenMode};
use crate::connections::ConnectionRecord;
use crate::credentials::cache::{CacheSettings, Sessions};
use crate::credentials::gate::StsLimits;
use crate::credentials::{AssumeRole, AssumeRoleError, Credentials, StsOfNode};
use crate::explain::By;
use crate::explain::explainer::{ExplainRate, Explainer, OfDaemon, PacedManifests};
use crate::explain::modes::RequestModes;
use crate::metrics::{ComparedRules, Metrics, RuleKind, RuleState};
use crate::pods::{Pod, PodManifest, PodManifests, Pods, PodsWriter, pods};
use crate::policy::node::NodeIdentity;
use crate::policy::patterns::Patterns;
use crate::policy::{Decision, Policy, RoleRequest, Rules};
use crate::readiness::{PACKET_RULES, Readiness};

const KEY: &str = "ASIASTATUSMUSTNOTSHOW";
const SECRET: &str = "secret-of-status-must-not-show";
const TOKEN: &str = "token-of-status-must-not-show";
/// The path of a role may hold any of these characters (IAM, "CreateRole").
const MARKUP: &str = "arn:aws:iam::111122223333:role/<script>alert('1')</script>&\"/web";

/// An STS that refuses roles with `denied` in their names.
#[derive(Debug)]
struct Sts(Clock);

impl AssumeRole for Sts {
    async fn assume_role(&self, request: &RoleRequest, _: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        if request.role().as_str().contains("denied") {
            return Err(AssumeRoleError::Denied { message: format!("{SECRET} is not authorized") });
        }
        let (now, secret) = (self.0.now(), |text: &str| SecretString::from(text.to_owned()));
        Ok(Credentials::new(KEY.to_owned(), secret(SECRET), secret(TOKEN), now, now + Duration::from_secs(3600)))
    }
}

impl StsOfNode for Sts {
    async fn own_identity(&self) -> Result<String, AssumeRoleError> {
        Ok("arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e".to_owned())
    }
}

#[derive(Debug)]
struct NoManifests;

impl PodManifests for NoManifests {
    fn read<'a>(&'a self, _: &'a str, _: &'a str) -> futures_util::future::BoxFuture<'a, Result<PodManifest, String>> {
        Box::pin(async { Err("there are no manifests here".to_owned()) })
    }
}

struct Bed {
    writer: PodsWriter,
    pods: Pods,
    metrics: Metrics,
    readiness: Readiness,
    sessions: Arc<Sessions<Sts>>,
    policy: Arc<Policy>,
    explainer: Option<Explainer<Sts>>,
    collector: StatusCollector<Sts>,
}

impl Bed {
    fn new() -> Self {
        let ((writer, pods), metrics, readiness) = (pods(), Metrics::new(), Readiness::default());
        let node: NodeIdentity =
            "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e".parse::<crate::role::CallerIdentity>().unwrap().into();
        let policy = Arc::new(Policy::new(Rules::default(), node).unwrap());
        let clock = Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap());
        let limits = StsLimits { rate: 1000, max_rate: 1000, concurrency: 1000 };
        let settings = CacheSettings { error_ttl: Duration::from_secs(30), timeout: Duration::from_secs(60), limits };
        let sessions = Sessions::new(Sts(clock.clone()), settings, clock.clone(), metrics.clone());
        let node_info = Patterns::new(PatternFormat::Glob, None, Vec::new()).unwrap();
        let modes = RequestModes { tokens: TokenMode::Required, profile: MetadataProfile::Base, node_info };
        let explainer = Explainer {
            node: "node-a".to_owned(),
            by: By::Daemon,
            policy: policy.clone(),
            pods: pods.clone(),
            sts: Sts(clock.clone()),
            metrics: metrics.clone(),
            pace: ExplainRate::default(),
            manifests: PacedManifests::new(Arc::new(NoManifests)),
            pod_identity: None,
            daemon: Some(OfDaemon { readiness: readiness.clone(), sessions: sessions.clone(), limits: ConnectionRecord::default(), modes }),
        };
        let collector = StatusCollector {
            node: "node-a".to_owned(),
            started_at: clock.now(),
            clock,
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            pods: pods.clone(),
            explainer: Arc::new(OnceLock::new()),
        };
        Self { writer, pods, metrics, readiness, sessions, policy, explainer: Some(explainer), collector }
    }

    /// The daemon has its policy from now on.
    fn started(mut self) -> Self {
        assert!(self.collector.explainer.set(self.explainer.take().unwrap()).is_ok());
        self
    }

    fn pod(&self, name: &str, last: u8, role: Option<&str>) {
        self.writer.write(|index| {
            index.apply(Pod {
                ips: vec![IpAddr::from(Ipv4Addr::new(10, 0, 0, last))],
                role: role.map(str::to_owned),
                ..Pod::for_test("shop", name)
            });
        });
    }

    /// Requests the session of a pod.
    async fn get(&self, name: &str) {
        let (pod, context) = self.pods.named("shop", name).unwrap();
        let Decision::Allow { request, .. } = self.policy.decide(&pod, &context) else { panic!("{name} may have no role") };
        let _ = self.sessions.get(&request, &pod).await;
    }

    async fn json(&self) -> String {
        serde_json::to_string_pretty(&self.collector.collect().await).unwrap()
    }
}

fn arn(name: &str) -> String {
    format!("arn:aws:iam::111122223333:role/{name}")
}

#[tokio::test(start_paused = true)]
async fn the_document_has_the_documented_form() {
    let bed = Bed::new().started();
    let _pending = bed.readiness.step(PACKET_RULES);
    bed.pod("denied", 2, Some(&arn("denied")));
    bed.pod("markup", 3, Some(MARKUP));
    bed.pod("odd", 4, Some("two words"));
    bed.pod("plain", 5, None);
    bed.pod("web", 6, Some(&arn("web")));
    bed.pod("twin", 6, Some(&arn("twin")));
    bed.pod("idle", 7, Some(&arn("idle")));
    bed.writer.write(|index| index.apply(Pod { host_network: true, role: Some(arn("agent")), ..Pod::for_test("tools", "agent") }));
    for name in ["denied", "markup"] {
        bed.get(name).await;
    }
    let rules = |family, state| ComparedRules {
        kind: RuleKind::Packet,
        backend: "nftables",
        family: Some(family),
        redirects_to: Some(([10, 0, 0, 9], 8181).into()),
        state,
    };
    bed.metrics.rules_compared(rules("ipv4", RuleState::InPlace));
    bed.metrics.rules_compared(ComparedRules { redirects_to: None, ..rules("ipv6", RuleState::Unknown) });
    bed.metrics.rules_repaired(RuleKind::Packet, Some("ipv4"));
    bed.metrics.self_test("failed", ["failed"]);
    bed.metrics.self_test_failed("missed");
    bed.metrics.connection_refused("source-limit");
    tokio::time::advance(Duration::from_secs(90)).await;
    let json = bed.json().await;
    insta::assert_snapshot!(json);
    for text in [json, page(&bed.collector.collect().await)] {
        for secret in [KEY, SECRET, TOKEN, "two words"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_daemon_has_its_policy_the_pods_are_shown_without_a_decision() {
    let bed = Bed::new();
    bed.pod("web", 6, Some(&arn("web")));
    let status = bed.collector.collect().await;
    assert_eq!(
        (&*status.pods[0].name, status.pods[0].decision, status.pods[0].reason.as_deref()),
        ("web", ReportedDecision::Unknown, Some("starting"))
    );
    assert_eq!(status.self_test.state, "pending");
    assert!(page(&status).contains("starting"));
}

#[tokio::test(start_paused = true)]
async fn there_are_as_many_rows_as_pods() {
    let bed = Bed::new().started();
    let none = bed.collector.collect().await;
    assert!(none.pods.is_empty() && page(&none).contains("No pods of this node are known."));
    for number in 0..250 {
        bed.pod(&format!("web-{number:03}"), number, Some(&arn(&format!("web-{number}"))));
    }
    let many = bed.collector.collect().await;
    let rows = page(&many).matches("<th scope=\"row\">shop/<wbr>").count();
    assert_eq!((many.pods.len(), rows), (250, 250));
    assert!(many.pods.is_sorted_by_key(|pod| pod.name.clone()));
    assert!(many.pods.iter().all(|pod| pod.decision == ReportedDecision::Allowed && pod.session.is_none()), "{:?}", many.pods[0]);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_shown_until_it_expires_even_if_its_renewal_fails() {
    let bed = Bed::new().started();
    bed.pod("web", 6, Some(&arn("web")));
    bed.get("web").await;
    let session = async || bed.collector.collect().await.pods.remove(0).session;
    tokio::time::advance(Duration::from_secs(600)).await;
    let held = session().await.unwrap();
    assert_eq!((held.state, held.age_seconds, held.expires_in_seconds, held.error), ("valid", Some(600), Some(3000), None));
    assert_eq!((held.issued_at.as_deref(), held.expires_at.as_deref()), (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T01:00:00Z")));
    tokio::time::advance(Duration::from_secs(3000)).await;
    assert_eq!(session().await, None, "it has expired");
}

/// Every text of the document, not only those that may hold markup today.
#[test]
fn no_value_becomes_markup() {
    let evil = "</td><script>alert(1)</script>\"'&amp;\u{202e}";
    let text = || evil.to_owned();
    let status = StatusDocument {
        version: VERSION,
        generated_at: text(),
        daemon: DaemonStatus {
            version: evil,
            node: text(),
            started_at: text(),
            uptime_seconds: 1,
            ready: false,
            not_ready: vec![ConditionStatus { cause: evil, waiting_for: evil }],
        },
        pods: vec![PodStatus {
            namespace: text(),
            name: text(),
            addresses: vec![text()],
            host_network: true,
            decision: ReportedDecision::Denied,
            reason: Some(text()),
            message: text(),
            notes: vec![text()],
            role: Some(text()),
            source_role: Some(text()),
            session: Some(SessionStatus {
                state: evil,
                issued_at: Some(text()),
                age_seconds: Some(1),
                expires_at: Some(text()),
                expires_in_seconds: Some(100_000),
                error: Some(evil),
            }),
        }],
        rules: vec![RuleStatus {
            kind: evil,
            backend: evil,
            family: Some(evil),
            in_place: false,
            state: evil,
            redirects_to: Some(text()),
            last_checked_at: Some(text()),
            repairs: 1,
            last_repaired_at: Some(text()),
        }],
        watch: WatchStatus { listed: true, last_contact_at: text(), silent_seconds: 1, stale: true },
        sts_errors: vec![StsErrorStatus { code: evil, role: text(), count: 1, last_at: text() }],
        limits: vec![LimitStatus { metric: evil, limit: text(), count: 1 }],
        self_test: SelfTestStatus { state: evil, reason: Some(evil), last_result_at: Some(text()) },
    };
    let page = page(&status);
    assert!(!page.contains("<script") && !page.contains("&amp;amp;\u{202e}") && !page.contains('\u{202e}'), "{page}");
    // The title, the heading and the list show the node.
    assert!(page.matches("&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;amp;\u{fffd}").count() >= 27, "{page}");
}

/// Otherwise the browser would not apply the style.
#[test]
fn the_policy_allows_exactly_the_style_of_the_page() {
    let page = page(&StatusDocument {
        version: VERSION,
        generated_at: String::new(),
        daemon: DaemonStatus {
            version: "",
            node: String::new(),
            started_at: String::new(),
            uptime_seconds: 0,
            ready: true,
            not_ready: Vec::new(),
        },
        pods: Vec::new(),
        rules: Vec::new(),
        watch: WatchStatus { listed: false, last_contact_at: String::new(), silent_seconds: 0, stale: false },
        sts_errors: Vec::new(),
        limits: Vec::new(),
        self_test: SelfTestStatus { state: "off", reason: None, last_result_at: None },
    });
    let style = page.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let hash =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, ring::digest::digest(&ring::digest::SHA256, style.as_bytes()));
    assert!(content_security_policy().contains(&format!("style-src 'sha256-{hash}'")));
    assert!(!page.contains(" style=") && !style.contains("url(") && !style.contains("@import"), "{page}");
}

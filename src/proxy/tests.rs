#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header::{CONNECTION, CONTENT_TYPE, SERVER};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::advance;

use super::route::Hosts;
use super::*;
use crate::config::{MetadataProfile, PatternFormat, Restrictions};
use crate::credentials::cache;
use crate::credentials::gate::StsLimits;
use crate::credentials::{AssumeRoleError, Credentials};
use crate::events::EventRecord;
use crate::pods::index::Index;
use crate::pods::{Namespace, PodName, PodUid, PodsWriter, pods};
use crate::policy::Rules;
use crate::policy::node::NodeIdentity;
use crate::policy::patterns::Patterns;
use crate::role::CallerIdentity;

mod events;
mod host_network;
mod identity;
mod memory;
mod pod_identity;
mod waiting;

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const LIST: &str = "/latest/meta-data/iam/security-credentials/";
const NODE: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c";
const WAIT: Duration = Duration::from_secs(2);

/// An STS whose sessions name their role; of a role `broken` it gives none.
#[derive(Clone)]
struct FakeSts {
    clock: Clock,
    calls: Arc<AtomicUsize>,
    /// Done while the next call is under way.
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

type Meanwhile = Box<dyn FnOnce() + Send>;
type Change = fn(&mut Index, &PodUid);

impl AssumeRole for FakeSts {
    async fn assume_role(&self, request: &RoleRequest, _: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
            meanwhile();
        }
        if request.role().name() == "broken" {
            return Err(AssumeRoleError::Denied { message: "arn:aws:iam::111122223333:role/broken".to_owned() });
        }
        let issued_at = self.clock.now();
        Ok(Credentials::new(
            format!("ASIA-{}", request.role().name()),
            "secret".to_owned().into(),
            "token".to_owned().into(),
            issued_at,
            issued_at + jiff::SignedDuration::from_hours(1),
        ))
    }
}

struct Node {
    proxy: Proxy<FakeSts>,
    writer: Arc<PodsWriter>,
    sts: FakeSts,
    /// What pods' owners are to be told.
    records: Mutex<tokio::sync::mpsc::Receiver<EventRecord>>,
}

/// A node with these pods: name, address, role.
fn node(tokens: TokenMode, known: &[(&str, &str, Option<&str>)]) -> Node {
    node_with(tokens, known, |_| {})
}

fn node_with(tokens: TokenMode, known: &[(&str, &str, Option<&str>)], change: impl FnOnce(&mut Rules)) -> Node {
    node_of(NODE.parse::<CallerIdentity>().unwrap().into(), tokens, known, change)
}

/// A node whose own identity is known once it is in `identity`.
fn node_of(identity: NodeIdentity, tokens: TokenMode, known: &[(&str, &str, Option<&str>)], change: impl FnOnce(&mut Rules)) -> Node {
    let mut rules = Rules { base: Some("arn:aws:iam::111122223333:role/".parse().unwrap()), ..Rules::default() };
    change(&mut rules);
    let policy = Policy::new(rules, identity).unwrap();
    let (writer, pods) = pods();
    writer.write(|index| index.reset(known.iter().map(|(name, at, role)| pod(name, at, *role))));
    let (proxy, sts, records) = proxy_with(policy, tokens, pods);
    Node { proxy, writer: Arc::new(writer), sts, records: Mutex::new(records) }
}

/// A proxy for these pods.
pub(crate) fn proxy_of(pods: Pods) -> Proxy<impl AssumeRole> {
    let policy = Policy::new(Rules::default(), NODE.parse::<CallerIdentity>().unwrap().into()).unwrap();
    proxy_with(policy, TokenMode::Required, pods).0
}

fn proxy_with(policy: Policy, tokens: TokenMode, pods: Pods) -> (Proxy<FakeSts>, FakeSts, tokio::sync::mpsc::Receiver<EventRecord>) {
    let clock = Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap());
    let sts = FakeSts { clock: clock.clone(), calls: Arc::default(), meanwhile: Arc::default() };
    let metrics = Metrics::new();
    let limits = StsLimits { rate: 1000, max_rate: 1000, concurrency: 1000 };
    let of_cache = cache::CacheSettings { error_ttl: Duration::from_secs(30), timeout: Duration::from_secs(60), limits };
    let sessions = Sessions::new(sts.clone(), of_cache, clock.clone(), metrics.clone());
    let access = Access::new(MetadataProfile::Base, Patterns::new(PatternFormat::Glob, None, Vec::new()).unwrap());
    let settings = ProxySettings { policy: Arc::new(policy), tokens, pod_wait: WAIT, access };
    let (events, records) = Reporter::new(metrics.clone());
    (Proxy::new(settings, pods, sessions, Tokens::new(clock.clone()).unwrap(), clock, metrics, events), sts, records)
}

pub(crate) fn pod(name: &str, at: &str, role: Option<&str>) -> Pod {
    Pod {
        uid: PodUid(format!("uid-of-{name}").into()),
        role: role.map(str::to_owned),
        ips: vec![at.parse().unwrap()],
        ..Pod::for_test("default", name)
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Node {
    /// Asks as the pod at this address. What holds for every answer is checked here.
    async fn ask(&self, from: &str, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask_on(&Origin::new(from.parse().unwrap(), Hosts::default()), method, target, headers).await
    }

    /// Asks on a connection.
    async fn ask_on(&self, origin: &Origin, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(target).header("host", "169.254.169.254");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (request, ()) = request.body(()).unwrap().into_parts();
        let (head, body) = self.proxy.handle(origin, &request, Body::Unread).await.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let answer = Answer { status: head.status.as_u16(), headers: head.headers, body };
        assert_eq!(answer.header(SERVER), Some("EC2ws"), "{answer:?}");
        assert_eq!(answer.header(CONTENT_TYPE), Some("text/plain"), "{answer:?}");
        if head.status != StatusCode::OK {
            let is_empty = matches!(method, "GET" | "HEAD") && head.status != StatusCode::UNAUTHORIZED;
            assert_eq!(answer.body.is_empty(), is_empty, "{method} {target}: {}", answer.body);
            assert_eq!(answer.header(TTL), None);
        }
        answer
    }

    async fn token(&self, from: &str) -> String {
        let answer = self.ask(from, "PUT", "/latest/api/token", &[(TTL, "60")]).await;
        assert_eq!(answer.status, 200);
        answer.body
    }

    /// Asks with a token of its own.
    async fn get(&self, from: &str, target: &str) -> Answer {
        let token = self.token(from).await;
        self.ask(from, "GET", target, &[(TOKEN, &token)]).await
    }

    fn counted(&self, line: &str) -> bool {
        String::from_utf8(self.proxy.metrics.render()).unwrap().lines().any(|found| found == line)
    }
}

const WEB: (&str, &str, Option<&str>) = ("web-1", "10.0.0.1", Some("web"));
const DB: (&str, &str, Option<&str>) = ("db-1", "10.0.0.2", Some("team/db"));
const PATHS: &[&str] = &[
    "/",
    "/latest/",
    LIST,
    "/latest/meta-data/iam/security-credentials/web",
    "/latest/meta-data/iam/security-credentials/other",
    "/latest/meta-data/iam/info",
    "/latest/user-data",
    "/no/such/path",
];

#[tokio::test(start_paused = true)]
async fn a_token_opens_the_way_to_the_pods_own_credentials() {
    let node = node(TokenMode::Required, &[WEB, DB]);
    let token = node.ask("10.0.0.1", "PUT", "/latest/api/token", &[(TTL, "21600")]).await;
    assert_eq!((token.status, token.header(TTL)), (200, Some("21600")));
    assert!(!token.body.is_empty() && token.body.bytes().all(|byte| byte.is_ascii_graphic()), "{}", token.body);
    let with = [(TOKEN, token.body.as_str())];
    let list = node.ask("10.0.0.1", "GET", LIST, &with).await;
    assert_eq!((list.status, list.body.as_str()), (200, "web"), "the bare name, without a newline");
    let document = node.ask("10.0.0.1", "GET", "/latest/meta-data/iam/security-credentials/web", &with).await;
    assert_eq!(
        (document.status, document.body.as_str()),
        (
            200,
            concat!(
                r#"{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"ASIA-web","#,
                r#""SecretAccessKey":"secret","Token":"token","Expiration":"2026-01-01T01:00:00Z"}"#
            )
        )
    );
    assert!(node.counted(r#"rolegate_http_requests_total{code="200",route="credentials"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn of_a_role_with_a_path_the_bare_name_is_listed() {
    let node = node(TokenMode::Required, &[WEB, DB]);
    for list in [LIST, "/latest/meta-data/iam/security-credentials", "/2021-03-23/meta-data/iam/security-credentials/"] {
        assert_eq!(node.get("10.0.0.2", list).await.body, "db");
    }
    let document = node.get("10.0.0.2", "/latest/meta-data/iam/security-credentials/db/").await;
    assert!(document.status == 200 && document.body.contains("ASIA-db"), "{document:?}");
}

#[tokio::test(start_paused = true)]
async fn a_role_is_given_under_its_exact_name_and_no_other() {
    let node = node(TokenMode::Required, &[WEB, DB]);
    let others = [
        "db",
        "WEB",
        "Web",
        "web2",
        "we",
        "team/db",
        "node",
        "broken",
        "web/web",
        "team/web",
        "role/web",
        "web/more",
        "arn:aws:iam::111122223333:role/db",
        "arn:aws:iam::111122223333:role/team/web",
        "arn:aws:iam::444455556666:role/web",
        "arn:aws-cn:iam::111122223333:role/web",
        "ARN:aws:iam::111122223333:role/web",
        "arn:aws:iam::111122223333:role/WEB",
        "arn:aws:iam::111122223333:role",
        "arn:aws:iam::111122223333:web",
        "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c",
        "arn:aws:iam::111122223333:role/nodes",
    ];
    for other in others {
        for list in [LIST, "/latest/meta-data/iam/security-credentials-extended/"] {
            for slash in ["", "/"] {
                let answer = node.get("10.0.0.1", &format!("{list}{other}{slash}")).await;
                assert_eq!(answer.status, 404, "{list}{other}{slash}");
            }
        }
    }
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0, "STS was not asked");
    assert!(node.counted(&format!(r#"rolegate_denials_total{{reason="other-role"}} {}"#, others.len() * 4)));
}

/// kube2iam completes what is asked for with the base ARN, and serves the ARN as well.
#[tokio::test(start_paused = true)]
async fn a_pods_own_role_is_given_by_name_path_and_arn() {
    let own = [
        ("10.0.0.1", "web", "ASIA-web"),
        ("10.0.0.1", "arn:aws:iam::111122223333:role/web", "ASIA-web"),
        ("10.0.0.2", "db", "ASIA-db"),
        ("10.0.0.2", "team/db", "ASIA-db"),
        ("10.0.0.2", "arn:aws:iam::111122223333:role/team/db", "ASIA-db"),
    ];
    let node = node(TokenMode::Required, &[WEB, DB]);
    for (ip, form, key) in own {
        for (list, slash) in [(LIST, ""), (LIST, "/"), ("/latest/meta-data/iam/security-credentials-extended/", "")] {
            let answer = node.get(ip, &format!("{list}{form}{slash}")).await;
            assert!(answer.status == 200 && answer.body.contains(key), "{form}: {answer:?}");
        }
    }
    for odd in ["team%2fdb", "team%2Fdb", "arn%3aaws:iam::111122223333:role/team/db", "team/../db", "team/./db", "team\\db"] {
        assert_eq!(node.get("10.0.0.2", &format!("{LIST}{odd}")).await.status, 400, "{odd}");
    }
    assert_eq!(node.get("10.0.0.2", &format!("{LIST}Team/db")).await.status, 404);
    // The base ARN may have a path, which short names do not repeat.
    let short = node_with(TokenMode::Required, &[("api-1", "10.0.0.3", Some("team/api"))], |rules| {
        rules.base = Some("arn:aws:iam::111122223333:role/k8s/".parse().unwrap());
    });
    for (form, status) in [("api", 200), ("team/api", 200), ("k8s/team/api", 200), ("k8s/api", 404), ("s/team/api", 404), ("eam/api", 404)]
    {
        assert_eq!(short.get("10.0.0.3", &format!("{LIST}{form}")).await.status, status, "{form}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_token_every_path_is_401_where_one_is_required() {
    let node = node(TokenMode::Required, &[WEB]);
    for path in PATHS {
        for method in ["GET", "HEAD"] {
            assert_eq!(node.ask("10.0.0.1", method, path, &[]).await.status, 401, "{method} {path}");
        }
    }
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_token_version_1_is_served_where_it_is_allowed() {
    let node = node(TokenMode::Optional, &[WEB]);
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.body, "web");
    let document = node.ask("10.0.0.1", "GET", "/latest/meta-data/iam/security-credentials/web", &[]).await;
    assert!(document.body.contains("ASIA-web"), "{document:?}");
    assert_eq!(node.get("10.0.0.1", LIST).await.body, "web", "version 2 too");
    assert_eq!(node.ask("10.0.0.1", "GET", "/latest/user-data", &[]).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_good_is_401_on_every_path_in_every_mode() {
    for mode in [TokenMode::Required, TokenMode::Optional] {
        let node = node(mode, &[WEB, DB]);
        let (own, foreign) = (node.token("10.0.0.1").await, node.token("10.0.0.2").await);
        let bad = [
            vec![(TOKEN, foreign.as_str())],
            vec![(TOKEN, "")],
            vec![(TOKEN, "AAAA")],
            vec![(TOKEN, &own[1..])],
            vec![(TOKEN, own.as_str()), (TOKEN, own.as_str())],
            vec![(TOKEN, own.as_str()), (TOKEN, foreign.as_str())],
        ];
        for path in PATHS {
            for headers in &bad {
                assert_eq!(node.ask("10.0.0.1", "GET", path, headers).await.status, 401, "{mode:?} {path} {headers:?}");
            }
        }
        assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_ends() {
    let node = node(TokenMode::Required, &[WEB]);
    let token = node.token("10.0.0.1").await;
    advance(Duration::from_secs(59)).await;
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[(TOKEN, &token)]).await.status, 200);
    advance(Duration::from_secs(1)).await;
    for path in PATHS {
        assert_eq!(node.ask("10.0.0.1", "GET", path, &[(TOKEN, &token)]).await.status, 401, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_pod_that_has_the_address_next_has_nothing_of_the_token() {
    let node = node(TokenMode::Required, &[WEB]);
    let token = node.token("10.0.0.1").await;
    node.writer.write(|index| {
        index.delete(&PodUid("uid-of-web-1".into()));
        index.apply(pod("db-1", "10.0.0.1", Some("db")));
    });
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[(TOKEN, &token)]).await.status, 401);
    assert_eq!(node.get("10.0.0.1", LIST).await.body, "db");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_address_gets_nothing_also_where_there_is_a_default_role() {
    let with_default = |rules: &mut Rules| rules.default_role = Some("arn:aws:iam::111122223333:role/default".parse().unwrap());
    let node = node_with(TokenMode::Optional, &[WEB, ("plain", "10.0.0.3", None)], with_default);
    let began = tokio::time::Instant::now();
    for path in PATHS.iter().chain(&["/latest/meta-data/iam/security-credentials/default"]) {
        assert_eq!(node.ask("10.0.0.9", "GET", path, &[]).await.status, 404, "{path}");
    }
    // SDKs that are told 404 here never ask for a token again.
    assert_eq!(node.ask("10.0.0.9", "PUT", "/latest/api/token", &[(TTL, "60")]).await.status, 500);
    assert!(node.counted(r#"rolegate_denials_total{reason="unknown-pod"} 10"#));
    assert_eq!(began.elapsed(), WAIT * 10, "each was held for as long as the pod might have become known");
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
    // A pod that is known and names no role has it.
    assert_eq!(node.ask("10.0.0.3", "GET", LIST, &[]).await.body, "default");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_before_its_pod_is_held_until_the_pod_is_known() {
    let node = Arc::new(node(TokenMode::Optional, &[]));
    let asking = tokio::spawn({
        let node = node.clone();
        async move { node.ask("10.0.0.1", "GET", LIST, &[]).await }
    });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!asking.is_finished());
    let began = tokio::time::Instant::now();
    node.writer.write(|index| index.apply(pod("web-1", "10.0.0.1", Some("web"))));
    assert_eq!(asking.await.unwrap().body, "web");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_unknown_and_then_known_has_a_token_when_it_tries_again() {
    let node = node(TokenMode::Required, &[]);
    let put = async || node.ask("10.0.0.1", "PUT", "/latest/api/token", &[(TTL, "60")]).await.status;
    assert_eq!(put().await, 500);
    assert_eq!(put().await, 500);
    node.writer.write(|index| index.apply(pod("web-1", "10.0.0.1", Some("web"))));
    assert_eq!(put().await, 200);
    assert_eq!(node.get("10.0.0.1", LIST).await.body, "web");
    // Its next state cannot be read: the claim is there, and nobody is served.
    let name = PodName { uid: PodUid("uid-of-web-1".into()), namespace: "default".to_owned(), name: "web-1".to_owned() };
    node.writer.write(|index| index.unreadable_at(name, None));
    assert_eq!(put().await, 500);
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.status, 404);
    assert!(node.counted(r#"rolegate_denials_total{reason="unreadable-pod"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_two_pods_claim_gets_nothing() {
    let node = node(TokenMode::Optional, &[WEB, ("liar", "10.0.0.1", Some("web"))]);
    for path in PATHS {
        assert_eq!(node.ask("10.0.0.1", "GET", path, &[]).await.status, 404, "{path}");
    }
    assert_eq!(node.ask("10.0.0.1", "PUT", "/latest/api/token", &[(TTL, "60")]).await.status, 500);
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
    assert!(node.counted(r#"rolegate_denials_total{reason="ambiguous-pod"} 9"#));
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_role_or_with_a_bad_one_gets_404() {
    let node = node(TokenMode::Required, &[("plain", "10.0.0.1", None), ("bad", "10.0.0.2", Some("")), ("worse", "10.0.0.3", Some("a b"))]);
    for from in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        for path in [LIST, "/latest/meta-data/iam/security-credentials/web", "/latest/meta-data/iam/info"] {
            assert_eq!(node.get(from, path).await.status, 404, "{from} {path}");
        }
    }
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_changed_is_another_role_at_once() {
    let node = node(TokenMode::Required, &[WEB]);
    assert_eq!(node.get("10.0.0.1", &format!("{LIST}web")).await.status, 200);
    node.writer.write(|index| index.apply(pod("web-1", "10.0.0.1", Some("other"))));
    assert_eq!(node.get("10.0.0.1", LIST).await.body, "other");
    assert_eq!(node.get("10.0.0.1", &format!("{LIST}web")).await.status, 404);
    assert!(node.get("10.0.0.1", &format!("{LIST}other")).await.body.contains("ASIA-other"));
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_sts_is_500_and_tells_the_pod_nothing() {
    let node = node(TokenMode::Required, &[("b", "10.0.0.1", Some("broken")), DB]);
    assert_eq!(node.get("10.0.0.1", LIST).await.body, "broken");
    for _ in 0..3 {
        assert_eq!(node.get("10.0.0.1", &format!("{LIST}broken")).await.status, 500);
    }
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 1);
    assert_eq!(node.get("10.0.0.2", &format!("{LIST}db")).await.status, 200, "another role is served");
}

#[tokio::test(start_paused = true)]
async fn the_instance_profile_is_the_pods_own() {
    let node = node(TokenMode::Required, &[WEB]);
    let info = node.get("10.0.0.1", "/latest/meta-data/iam/info").await;
    let document: serde_json::Value = serde_json::from_str(&info.body).unwrap();
    assert_eq!(document["Code"], "Success");
    assert_eq!(document["InstanceProfileArn"], "arn:aws:iam::111122223333:instance-profile/web");
    assert_eq!(document["LastUpdated"], "2026-01-01T00:00:00Z");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_pods_own_is_not_there() {
    let node = node(TokenMode::Required, &[WEB]);
    for path in [
        "/latest/user-data",
        "/latest/dynamic/instance-identity/pkcs7",
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "/latest/meta-data/iam/security-credentials-extended/db",
        "/latest/meta-data/iam/security-credentials/db",
        "/latest/meta-data/public-keys/",
        "/latest/meta-data/ami-id",
        "/2099-01-01/meta-data/iam/security-credentials/",
        "/healthz",
        "/metrics",
        "/debug/store",
    ] {
        assert_eq!(node.get("10.0.0.1", path).await.status, 404, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_metadata_client_sends_is_refused_before_anything_is_looked_at() {
    let node = node(TokenMode::Optional, &[WEB]);
    let path = "/latest/meta-data/iam/security-credentials/web";
    for (method, target, headers, status, closes) in [
        ("GET", "/latest/meta-data/iam/security-credentials/%77eb", &[][..], 400, true),
        ("GET", path, &[("content-length", "5")], 400, true),
        ("GET", path, &[("transfer-encoding", "chunked")], 400, true),
        ("GET", path, &[("host", "169.254.169.254")], 400, true),
        ("PUT", "/latest/api/token", &[], 400, true),
        ("PUT", "/latest/api/token", &[(TTL, "0")], 400, true),
        ("PUT", "/latest/api/token", &[(TTL, "60"), ("x-forwarded-for", "10.0.0.1")], 403, false),
        ("PUT", "/2021-03-23/api/token", &[(TTL, "60")], 403, false),
        ("GET", path, &[("x-forwarded-for", "10.0.0.1")], 403, false),
        ("GET", "http://evil.example/latest/meta-data/iam/security-credentials/web", &[], 400, true),
        ("POST", path, &[], 405, false),
        ("PUT", path, &[(TTL, "60")], 405, false),
        ("GET", "/latest/api/token", &[], 405, false),
        ("TRACE", path, &[], 405, true),
        ("OPTIONS", "*", &[], 405, true),
    ] {
        for from in ["10.0.0.1", "10.0.0.9"] {
            let began = tokio::time::Instant::now();
            let answer = node.ask(from, method, target, headers).await;
            assert_eq!(answer.status, status, "{method} {target} {headers:?}");
            assert_eq!(answer.header(CONNECTION), closes.then_some("close"), "{method} {target} {headers:?}");
            assert_eq!(began.elapsed(), Duration::ZERO, "no wait for a pod");
        }
    }
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn no_header_says_who_asks() {
    let node = node(TokenMode::Optional, &[WEB, DB]);
    for header in ["x-real-ip", "client-ip", "true-client-ip", "x-client-ip", "via", "x-forwarded-host", "podname"] {
        assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[(header, "10.0.0.2")]).await.body, "web", "{header}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_restrictions_need_is_waited_for_and_then_refused() {
    let node = node_with(TokenMode::Optional, &[WEB], |rules| rules.restrictions = Restrictions::Enforce);
    let began = tokio::time::Instant::now();
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.status, 500, "nothing is decided yet");
    assert_eq!(began.elapsed(), WAIT);
    let set = |list: &str| {
        let namespace = Namespace { name: "default".to_owned(), allowed_roles: Some(list.to_owned()), permitted: None };
        node.writer.write(|index| index.apply_namespace(namespace));
    };
    set(r#"["db"]"#);
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.status, 404);
    assert_eq!(node.ask("10.0.0.1", "GET", &format!("{LIST}web"), &[]).await.status, 404);
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
    set(r#"["web"]"#);
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.body, "web");
    assert_eq!(began.elapsed(), WAIT);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_need_the_namespace_does_not_wait_for_it() {
    let enforced = node_with(TokenMode::Optional, &[WEB], |rules| rules.restrictions = Restrictions::Enforce);
    let began = tokio::time::Instant::now();
    let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "60")];
    assert_eq!(enforced.ask("10.0.0.1", "PUT", "/latest/api/token", &ttl).await.status, 200);
    assert_eq!(enforced.ask("10.0.0.1", "GET", "/latest/user-data", &[]).await.status, 404);
    let audited = node_with(TokenMode::Optional, &[WEB], |rules| rules.restrictions = Restrictions::Audit);
    assert_eq!(audited.ask("10.0.0.1", "GET", LIST, &[]).await.body, "web", "a report must not slow a pod down");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn in_audit_mode_the_pod_is_served_and_counted() {
    let node = node_with(TokenMode::Optional, &[WEB], |rules| rules.restrictions = Restrictions::Audit);
    node.writer.write(|index| index.apply_namespace(Namespace { name: "default".to_owned(), allowed_roles: None, permitted: None }));
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.body, "web");
    assert!(node.counted(r#"rolegate_audit_denials_total{reason="no-namespace-list"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn what_changed_while_sts_was_asked_is_not_served_as_it_was() {
    let uid = PodUid("uid-of-web-1".into());
    let changes: [(&str, Change); 4] = [
        ("deleted", |index, uid| index.delete(uid)),
        ("another pod has the address", |index, uid| {
            index.delete(uid);
            index.apply(pod("next", "10.0.0.1", Some("web")));
        }),
        ("two claim the address", |index, _| index.apply(pod("next", "10.0.0.1", Some("web")))),
        ("another role", |index, _| index.apply(pod("web-1", "10.0.0.1", Some("db")))),
    ];
    for (what, change) in changes {
        let node = node(TokenMode::Optional, &[WEB]);
        let (writer, uid) = (node.writer.clone(), uid.clone());
        *node.sts.meanwhile.lock().unwrap() = Some(Box::new(move || writer.write(|index| change(index, &uid))));
        let answer = node.ask("10.0.0.1", "GET", &format!("{LIST}web"), &[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (500, ""), "{what}");
        assert!(node.counted(r#"rolegate_denials_total{reason="changed"} 1"#), "{what}");
    }
    // What has nothing to do with it does not matter.
    let node = node(TokenMode::Optional, &[WEB]);
    let writer = node.writer.clone();
    *node.sts.meanwhile.lock().unwrap() = Some(Box::new(move || writer.write(|index| index.apply(pod("db", "10.0.0.9", None)))));
    assert_eq!(node.ask("10.0.0.1", "GET", &format!("{LIST}web"), &[]).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn who_asks_without_a_token_is_counted_by_namespace() {
    for (mode, outcome, status) in [(TokenMode::Optional, "served", 200), (TokenMode::Required, "refused", 401)] {
        let node = node(mode, &[WEB]);
        assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.status, status);
        let token = node.ask("10.0.0.1", "PUT", "/latest/api/token", &[(TTL, "60")]).await.body;
        assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[(TOKEN, &token)]).await.status, 200);
        assert!(node.counted(&format!(r#"rolegate_imdsv1_requests_total{{namespace="default",outcome="{outcome}"}} 1"#)), "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_extended_document_has_the_account_too() {
    let node = node(TokenMode::Required, &[WEB]);
    assert_eq!(node.get("10.0.0.1", "/latest/meta-data/iam/security-credentials-extended/").await.body, "web");
    let document = |answer: Answer| serde_json::from_str::<serde_json::Value>(&answer.body).unwrap();
    let extended = document(node.get("10.0.0.1", "/latest/meta-data/iam/security-credentials-extended/web").await);
    let plain = document(node.get("10.0.0.1", "/latest/meta-data/iam/security-credentials/web").await);
    assert_eq!((&extended["AccountId"], &plain["AccountId"]), (&"111122223333".into(), &serde_json::Value::Null));
    assert_eq!(extended["AccessKeyId"], plain["AccessKeyId"]);
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 1, "it is the same session");
}

#[tokio::test(start_paused = true)]
async fn versions_and_directories_are_listed_by_what_the_pod_may_read() {
    let node = node(TokenMode::Required, &[WEB, ("plain-1", "10.0.0.9", None)]);
    let values = node.proxy.values();
    values.set_for_test("meta-data/placement/region", "eu-central-1");
    for path in ["/latest/meta-data/placement/region", "/2021-03-23/meta-data/placement/region/"] {
        assert_eq!(node.get("10.0.0.9", path).await.body, "eu-central-1", "also without a role");
    }
    assert!(node.get("10.0.0.1", "/").await.body.ends_with("\n2021-03-23\n2021-07-15\n2022-09-24\n2024-04-11\nlatest"));
    assert_eq!(node.get("10.0.0.1", "/latest").await.body, "meta-data");
    assert_eq!(node.get("10.0.0.1", "/latest/meta-data/").await.body, "iam/\nplacement/");
    assert_eq!(node.get("10.0.0.9", "/latest/meta-data/").await.body, "placement/");
    assert_eq!(node.get("10.0.0.1", "/latest/meta-data/iam").await.body, "info\nsecurity-credentials/");
    assert_eq!(node.get("10.0.0.9", "/latest/meta-data/iam").await.status, 404);
    assert_eq!(node.ask("10.0.0.1", "GET", "/", &[(TOKEN, "INVALID")]).await.status, 401, "as fluent-bit finds out which version there is");
    assert_eq!(node.ask("10.0.0.77", "GET", "/", &[]).await.status, 404, "nothing for strangers");
}

#[tokio::test(start_paused = true)]
async fn metadata_that_could_not_be_read_yet_is_an_error_that_sdks_try_again() {
    let node = node(TokenMode::Required, &[WEB]);
    assert_eq!(node.get("10.0.0.1", "/latest/meta-data/placement/region").await.status, 500);
    assert!(node.counted(r#"rolegate_denials_total{reason="metadata"} 1"#));
}

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says loudly what failed")]

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::*;
use crate::clock::Clock;
use crate::config::{MetadataProfile, PatternFormat, TokenMode};
use crate::credentials::cache::{self, Sessions};
use crate::credentials::gate::StsLimits;
use crate::credentials::{AssumeRole, AssumeRoleError, Credentials};
use crate::explain::By;
use crate::explain::explainer::{ASK_AGAIN, ExplainRate, LAST_PAUSE, OfDaemon, PacedManifests};
use crate::explain::modes::RequestModes;
use crate::pods::{Pod, PodManifest, PodManifests, pods};
use crate::policy::node::NodeIdentity;
use crate::policy::patterns::Patterns;
use crate::policy::{Policy, RoleRequest, Rules};
use crate::status::collector::StatusCollector;

/// A fake STS that denies each request, and answers as many as it has permits.
#[derive(Clone, Debug)]
struct Sts(Arc<tokio::sync::Semaphore>);

impl AssumeRole for Sts {
    async fn assume_role(&self, _: &RoleRequest, _: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        self.0.acquire().await.unwrap().forget();
        Err(AssumeRoleError::Denied { message: "no".to_owned() })
    }
}

impl StsOfNode for Sts {
    async fn own_identity(&self) -> Result<String, AssumeRoleError> {
        Ok("WHO".to_owned())
    }
}

fn admin(answers: &Arc<tokio::sync::Semaphore>) -> Admin<Sts> {
    let (writer, pods) = pods();
    writer.write(|index| {
        index.apply(Pod {
            role: Some("arn:aws:iam::111122223333:role/web".to_owned()),
            ips: vec!["10.0.0.1".parse().unwrap()],
            ..Pod::for_test("shop", "web")
        });
    });
    let (metrics, readiness) = (Metrics::new(), Readiness::default());
    let node: NodeIdentity = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e".parse::<crate::role::CallerIdentity>().unwrap().into();
    let clock = Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap());
    let of_cache = cache::CacheSettings {
        error_ttl: Duration::from_secs(30),
        timeout: Duration::from_secs(60),
        limits: StsLimits { rate: 1000, max_rate: 1000, concurrency: 1000 },
    };
    let sessions = Sessions::new(Sts(answers.clone()), of_cache, clock, metrics.clone());
    let node_info = Patterns::new(PatternFormat::Glob, None, Vec::new()).unwrap();
    let modes = RequestModes { tokens: TokenMode::Required, profile: MetadataProfile::Base, node_info };
    let explainer = Explainer {
        node: "node-a".to_owned(),
        by: By::Daemon,
        policy: Arc::new(Policy::new(Rules::default(), node).unwrap()),
        pods: pods.clone(),
        sts: Sts(answers.clone()),
        metrics: metrics.clone(),
        pace: ExplainRate::default(),
        manifests: PacedManifests::new(Arc::new(NoManifests)),
        pod_identity: None,
        daemon: Some(OfDaemon { readiness: readiness.clone(), sessions, limits: ConnectionRecord::default(), modes }),
    };
    let record = explainer.daemon.as_ref().unwrap().limits.clone();
    let explainer = Arc::new(OnceLock::from(explainer));
    let collector = StatusCollector {
        node: "node-a".to_owned(),
        clock: Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap()),
        started_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        pods: pods.clone(),
        explainer: explainer.clone(),
    };
    Admin {
        status: Some(StatusPage::new(collector)),
        metrics,
        readiness,
        pods,
        debug: true,
        namespace_labels: false,
        record,
        explainer,
        reporter: Arc::default(),
        rendered: Rendered::default(),
    }
}

/// No pod has a manifest.
#[derive(Debug)]
struct NoManifests;

impl PodManifests for NoManifests {
    fn read<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<PodManifest, String>> {
        async { Err("there are no manifests here".to_owned()) }.boxed()
    }
}

async fn status(admin: &Admin<Sts>, peer: &str, method: Method, target: &str, headers: &[(&str, &str)]) -> StatusCode {
    ask(admin, peer, method, target, headers).await.0
}

async fn ask(admin: &Admin<Sts>, peer: &str, method: Method, target: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers.iter().filter(|(_, value)| *value != NOT_SENT) {
        request = request.header(*name, *value);
    }
    if target.starts_with("/explain") && !headers.contains(&(HEADER, NOT_SENT)) {
        request = request.header(HEADER, "1");
    }
    let peer: SocketAddr = peer.parse().unwrap();
    let source = admin.source(peer.ip(), "10.0.0.99".parse().unwrap());
    let (status, _, body) = admin.answer(&request.body(()).unwrap().into_parts().0, peer, &source).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Marks a header that a request omits, although the requests in this file usually send it.
const NOT_SENT: &str = "not sent";
const WEB: &str = "/explain?namespace=shop&pod=web";
const LOCAL: &[(&str, &str)] = &[("Host", "localhost:9543")];
const ASSUME: &str = "/explain?namespace=shop&pod=web&assume=true";

fn none() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(0))
}

#[tokio::test]
async fn only_peers_on_loopback_see_pods() {
    let admin = admin(&none());
    for target in [WEB, "/debug/store"] {
        for peer in ["127.0.0.1:1", "127.5.0.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(status(&admin, peer, Method::GET, target, LOCAL).await, 200, "{peer} {target}");
        }
        for peer in ["10.0.0.1:1", "169.254.169.254:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(ask(&admin, peer, Method::GET, target, LOCAL).await, (StatusCode::NOT_FOUND, String::new()), "{peer} {target}");
        }
    }
    assert_eq!(status(&admin, "10.0.0.1:1", Method::POST, ASSUME, LOCAL).await, 404);
}

#[tokio::test]
async fn only_requests_with_a_loopback_host_are_answered() {
    let admin = admin(&none());
    let of = |headers: Vec<(&'static str, &'static str)>| {
        let admin = &admin;
        async move { status(admin, "127.0.0.1:1", Method::GET, WEB, &headers).await.as_u16() }
    };
    for host in ["localhost", "LOCALHOST:80", "127.0.0.1:9543", "127.1.2.3", "[::1]", "[::1]:9543"] {
        assert_eq!(of(vec![("Host", host)]).await, 200, "{host}");
    }
    for host in ["example.com", "localhost.example.com", "127.0.0.1.nip.io:9543", "10.0.0.1", "user@localhost", "", "[::2]", "0.0.0.0"] {
        assert_eq!(of(vec![("Host", host)]).await, 404, "{host}");
    }
    assert_eq!(of(vec![]).await, 404, "no Host");
    assert_eq!(of(vec![("Host", "localhost"), ("Host", "localhost")]).await, 404, "two Host headers");
    assert_eq!(of(vec![("Host", "localhost"), ("Origin", "null")]).await, 404, "a web page in a browser");
}

/// A reverse proxy in the node's network is a peer on loopback, and may name a loopback address in `Host`.
#[tokio::test]
async fn requests_from_a_proxy_or_a_browser_are_not_answered() {
    let admin = admin(&none());
    let names = [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "x-forwarded-anything",
        "X-Real-IP",
        "Via",
        "Sec-Fetch-Site",
        "Sec-Fetch-Mode",
    ];
    for target in [WEB, "/debug/store"] {
        for name in names {
            let headers = [("Host", "localhost"), (name, "1")];
            assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, target, &headers).await, 404, "{target} {name}");
        }
        assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, target, &[("Host", "localhost"), ("X-Forward", "1")]).await, 200, "{target}");
    }
    // The command sends this header. A URL alone cannot.
    let without = [("Host", "localhost"), (HEADER, NOT_SENT)];
    for (method, target, expected) in [(Method::GET, WEB, 404), (Method::POST, ASSUME, 404), (Method::GET, "/debug/store", 200)] {
        assert_eq!(status(&admin, "127.0.0.1:1", method, target, &without).await, expected, "{target}");
    }
}

#[tokio::test]
async fn a_get_never_calls_sts() {
    // STS would deny the request.
    let admin = admin(&Arc::new(tokio::sync::Semaphore::new(1)));
    let (status, body) = ask(&admin, "127.0.0.1:1", Method::GET, ASSUME, LOCAL).await;
    assert!(status == StatusCode::METHOD_NOT_ALLOWED && body.contains("use POST"), "{status} {body}");
    let (status, body) = ask(&admin, "127.0.0.1:1", Method::GET, WEB, LOCAL).await;
    let report: Report = serde_json::from_str(&body).unwrap();
    assert_eq!((status, report.decision, report.assume), (StatusCode::OK, ReportedDecision::Allowed, None));
}

/// The notes say what keeps a pod from credentials that it is allowed to have.
#[tokio::test(start_paused = true)]
async fn the_state_of_the_daemon_appears_in_the_notes() {
    let answers = none();
    let admin = admin(&answers);
    let notes = || async {
        let (_, body) = ask(&admin, "127.0.0.1:1", Method::GET, WEB, LOCAL).await;
        let mut notes = serde_json::from_str::<Report>(&body).unwrap().notes;
        assert!(notes.pop().is_some_and(|settings| settings.contains("--imds-tokens")), "the settings come last");
        notes
    };
    assert_eq!(notes().await, [""; 0]);
    let step = admin.readiness.step("the packet rule");
    assert!(matches!(&notes().await[..], [note] if note.contains("the packet rule")), "{:?}", notes().await);
    step.done();
    tokio::time::advance(Duration::from_secs(200)).await;
    assert!(matches!(&notes().await[..], [note] if note.contains("Kubernetes API for 3m 20s")), "{:?}", notes().await);
    admin.metrics.watch_alive();
    // The pod made a request, and STS denied it.
    let explainer = admin.explainer.get().unwrap();
    let (_, request) = crate::explain::look::look(&"shop/web".parse().unwrap(), "node-a", By::Daemon, &explainer.pods, &explainer.policy);
    answers.add_permits(1);
    explainer.daemon.as_ref().unwrap().sessions.get(&request.unwrap(), &explainer.pods.all()[0]).await.unwrap_err();
    assert!(matches!(&notes().await[..], [note] if note.contains("AssumeRole")), "{:?}", notes().await);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(notes().await, [""; 0], "an expired error is not noted");
}

/// A caller that repeatedly asks for a role that STS denies must not get the node's account throttled.
#[tokio::test(start_paused = true)]
async fn calls_to_sts_back_off_while_it_denies() {
    let admin = admin(&Arc::new(tokio::sync::Semaphore::new(100)));
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert_eq!(status(&admin, "127.0.0.1:1", Method::POST, ASSUME, LOCAL).await, 200);
        let asked = tokio::time::Instant::now();
        loop {
            let (status, body) = ask(&admin, "127.0.0.1:1", Method::POST, ASSUME, LOCAL).await;
            if status == 200 {
                break;
            }
            assert_eq!(status, 429, "{body}");
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        pauses.push(asked.elapsed().as_secs());
        // The call that ended the wait failed, too.
        tokio::time::advance(LAST_PAUSE).await;
    }
    assert_eq!(pauses[..3], [2, 8, 32]);
    assert_eq!(pauses[3..], [60; 5]);
    let text = String::from_utf8(admin.metrics.render()).unwrap();
    assert!(text.contains(r#"rolegate_explain_sts_requests_total{outcome="denied"} 16"#), "{text}");
    let of_pods: Vec<_> = text.lines().filter(|line| line.starts_with("rolegate_sts_requests_total{")).collect();
    let are_zero = !of_pods.is_empty() && of_pods.iter().all(|line| line.ends_with(" 0"));
    assert!(are_zero, "calls for explanations do not count as calls for pods: {of_pods:?}");
}

#[tokio::test(start_paused = true)]
async fn sts_is_called_once_at_a_time_and_once_a_second() {
    let answers = none();
    let admin = admin(&answers);
    let post = || status(&admin, "127.0.0.1:1", Method::POST, ASSUME, LOCAL);
    let first = async {
        let (status, body) = ask(&admin, "127.0.0.1:1", Method::POST, ASSUME, LOCAL).await;
        let report: Report = serde_json::from_str(&body).unwrap();
        assert_eq!((status.as_u16(), report.reason.as_deref()), (200, Some("sts-denied")));
    };
    let second = async {
        // The first call is waiting for STS.
        tokio::time::sleep(ASK_AGAIN * 3).await;
        assert_eq!(post().await, 429, "one at a time");
        answers.add_permits(1);
    };
    tokio::join!(first, second);
    answers.add_permits(1);
    tokio::time::sleep(ASK_AGAIN).await;
    assert_eq!(post().await, 429, "two seconds after a failure");
    tokio::time::sleep(ASK_AGAIN).await;
    assert_eq!(post().await, 200);
}

#[tokio::test(start_paused = true)]
async fn metrics_show_namespaces_only_to_the_node_by_default() {
    let mut admin = admin(&none());
    admin.metrics.without_token("shop", true);
    let metrics = async |admin: &Admin<Sts>, peer: &str| ask(admin, peer, Method::GET, "/metrics", &[]).await.1;
    // A pod of this node, a pod of another node, and scrapers elsewhere.
    for peer in ["10.0.0.1:1", "10.9.0.1:1", "127.5.0.9:1", "[::ffff:10.0.0.1]:1"] {
        let text = metrics(&admin, peer).await;
        assert!(!text.contains("shop") && text.contains(r#"rolegate_imdsv1_requests_total{outcome="served"} 1"#), "{peer}: {text}");
    }
    for peer in ["127.0.0.1:1", "[::1]:1", "10.0.0.99:1", "[::ffff:10.0.0.99]:1"] {
        assert!(metrics(&admin, peer).await.contains(r#"{namespace="shop",outcome="served"} 1"#), "{peer}");
    }
    admin.namespace_labels = true;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(metrics(&admin, "10.9.0.1:1").await.contains(r#"{namespace="shop",outcome="served"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn metrics_are_rendered_once_a_second_except_for_the_node() {
    let admin = admin(&none());
    let metrics = async |peer: &str| ask(&admin, peer, Method::GET, "/metrics", &[]).await.1;
    let first = metrics("10.0.0.1:1").await;
    assert!(first.contains("rolegate_metrics_renderings_total 1\n"), "{first}");
    admin.metrics.denied("no-role");
    for peer in ["10.0.0.1:2", "10.0.0.2:1", "10.9.0.1:1"] {
        assert_eq!(metrics(peer).await, first);
    }
    let now = metrics("127.0.0.1:1").await;
    assert!(
        now.contains(r#"rolegate_denials_total{reason="no-role"} 1"#) && now.contains("rolegate_metrics_renderings_total 1\n"),
        "{now}"
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    let second = metrics("10.0.0.1:1").await;
    assert!(second.contains("no-role") && second.contains("rolegate_metrics_renderings_total 2\n"), "{second}");
}

/// The notes name the limits that closed connections of the pod, and what to do about them.
#[tokio::test(start_paused = true)]
async fn limits_that_closed_connections_appear_in_the_notes() {
    let admin = admin(&none());
    let source = admin.source("10.0.0.1".parse().unwrap(), "10.0.0.99".parse().unwrap());
    admin.record.closed(&source, Port::Metadata, Limit::Source);
    admin.record.closed(&source, Port::Metadata, Limit::Source);
    tokio::time::advance(Duration::from_secs(100)).await;
    let notes = || async {
        let (_, body) = ask(&admin, "127.0.0.1:1", Method::GET, WEB, LOCAL).await;
        let mut notes = serde_json::from_str::<Report>(&body).unwrap().notes;
        assert!(notes.pop().is_some_and(|settings| settings.contains("--imds-tokens")), "the settings come last");
        notes
    };
    let of_pod = notes().await;
    assert!(
        matches!(&of_pod[..], [note] if ["2 connections", "1m 40s", "source-limit"].iter().all(|part| note.contains(part))),
        "{of_pod:?}"
    );
    tokio::time::advance(Duration::from_secs(600)).await;
    admin.metrics.watch_alive();
    assert_eq!(notes().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn pods_are_limited_on_this_port_and_the_node_is_not() {
    let (admin, room) = (admin(&none()), Room::new());
    let local = "10.0.0.99".parse().unwrap();
    let of = |text: &str| admin.source(text.parse().unwrap(), local);
    let hold =
        |source: &Source, count: usize| (0..count).map_while(|_| room.admit(source, |ip| admin.source_of(ip)).ok()).collect::<Vec<_>>();
    let (pod, node) = (of("10.0.0.1"), of("10.0.0.99"));
    let of_pod = hold(&pod, 100);
    assert_eq!((of_pod.len(), room.admit(&pod, |ip| admin.source_of(ip)).unwrap_err()), (4, Limit::Source));
    let flood: Vec<_> = (1..=200).flat_map(|last| hold(&of(&format!("10.9.0.{last}")), 1)).collect();
    assert!(flood.len() >= 20);
    assert_eq!(hold(&node, 100).len(), 64);
    tokio::time::advance(Duration::from_secs(10)).await;
    let scraper = hold(&of("10.8.0.1"), 1);
    assert_eq!((scraper.len(), futures_util::FutureExt::now_or_never(scraper[0].closing())), (1, None));
    // Requests beyond the rate wait, on whichever connection they arrive.
    let delays: Vec<_> = (0..30).map(|_| room.delay(&pod)).collect();
    assert!(delays[..20].iter().all(Duration::is_zero) && delays[29] == Duration::from_secs(1), "{delays:?}");
    assert!(room.delay(&node).is_zero());
}

#[tokio::test]
async fn a_pod_that_is_not_known_yet_is_no_answer() {
    let mut admin = admin(&none());
    let step = admin.readiness.step("the list");
    assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, WEB, LOCAL).await, 200, "this pod is already known");
    let other = "/explain?namespace=shop&pod=other";
    assert_eq!(
        ask(&admin, "127.0.0.1:1", Method::GET, other, LOCAL).await,
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for: the list\n".to_owned())
    );
    step.done();
    assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, other, LOCAL).await, 200, "there is no such pod");
    admin.explainer = Arc::default();
    assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, WEB, LOCAL).await, 503);
}

#[tokio::test]
async fn malformed_queries_are_refused() {
    let admin = admin(&none());
    for target in ["/explain", "/explain?", "/explain?namespace=shop", "/explain?pod=web", "/explain?namespace=shop&pod=w%65b"] {
        assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, target, LOCAL).await, 400, "{target}");
    }
    for (method, target, expected) in
        [(Method::PUT, WEB, 405), (Method::POST, "/metrics", 405), (Method::POST, "/explain/x", 405), (Method::GET, "/explain/x", 404)]
    {
        assert_eq!(status(&admin, "127.0.0.1:1", method, target, LOCAL).await, expected, "{target}");
    }
}

/// Scrapers keep connections open. A connection that is displaced is closed, whether or not it has carried a request.
#[tokio::test]
async fn a_displaced_idle_connection_is_closed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let (admin, room) = (admin(&none()), Room::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let of = |last: u32| Source::unknown(IpAddr::from((0x0a09_0000 + last).to_be_bytes()));
    let admit = |last| room.admit(&of(last), |ip| admin.source_of(ip)).unwrap();
    let permit = admit(0);
    let busy: Vec<_> = (1..64).map(admit).inspect(ConnectionPermit::request_begins).collect();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let scraper = async {
        client.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "the connection stays open");
        }
        // The connection is idle after a while, and the newcomer displaces it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let newcomer = admit(64);
        assert_eq!(client.read_buf(&mut answer).await.unwrap(), 0, "the connection is closed");
        newcomer
    };
    let (newcomer, ()) = tokio::join!(scraper, admin.connection(stream, peer, of(0), permit, &room));
    assert!(newcomer.is_unknown() && busy.iter().all(|permit| futures_util::FutureExt::now_or_never(permit.closing()).is_none()));
}

/// The kernel may block on other users before it says whose address this is, and every new connection would wait with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_source_is_determined_without_a_kernel_lookup() {
    let node = Arc::new(crate::links::witness::held::Held::default());
    node.answers.add_permits(100);
    let (writer, pods) = crate::pods::pods_with(node.clone(), None);
    writer.write(|index| index.apply(crate::proxy::tests::pod("web", "10.0.0.1", None)));
    let admin = Admin { pods, ..admin(&none()) };
    let of_web = || admin.source("10.0.0.1".parse().unwrap(), "10.0.0.99".parse().unwrap());
    assert_eq!((of_web(), node.asked()), (Source::Disputed("10.0.0.1".parse().unwrap()), 0));
    admin.pods.by_ip("10.0.0.1".parse().unwrap());
    assert!(matches!(of_web(), Source::Pod(pod) if pod.name == "web"));
}

/// Pods can invent source addresses only behind a bridge. The port distinguishes these from clients elsewhere.
#[tokio::test(start_paused = true)]
async fn pods_of_this_node_cannot_keep_scrapers_out() {
    let room = Room::new();
    let hold = |source: &Source| room.admit(source, Source::unknown).inspect(ConnectionPermit::request_begins);
    let scraper = Source::unknown("10.8.0.1".parse().unwrap());
    let kept = hold(&scraper).unwrap();
    // All known pods and addresses that they invent: more than there are places, and more often than the rate allows.
    let pods: Vec<_> = (0..100).filter_map(|pod| hold(&Source::pod(&format!("ns{}", pod % 9), &pod.to_string())).ok()).collect();
    let invented = |n: u32| Source::Unknown(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), crate::shares::Network::Port(n % 40));
    let invented: Vec<_> = (0..2000).filter_map(|n| hold(&invented(n)).ok()).collect();
    let open = |permits: &[ConnectionPermit]| {
        permits.iter().filter(|permit| futures_util::FutureExt::now_or_never(permit.closing()).is_none()).count()
    };
    assert_eq!((open(&pods), open(&invented)), (32, MAX_INVENTED));
    assert_eq!(open(&[kept]), 1, "the scraper is not displaced");
    assert!((0..7).all(|_| hold(&scraper).is_ok()), "the scraper can reconnect");
    assert!((2..20).all(|last| hold(&Source::unknown(IpAddr::from([10, 8, 0, last]))).is_ok()), "others can connect");
    assert!(hold(&Source::Node).is_ok());
}

const STATUS: [&str; 2] = ["/status", "/status.json"];

#[tokio::test]
async fn the_status_is_for_people_on_the_node_alone() {
    let admin = admin(&none());
    for target in STATUS {
        for peer in ["127.0.0.1:1", "127.5.0.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            for method in [Method::GET, Method::HEAD] {
                assert_eq!(status(&admin, peer, method, target, LOCAL).await, 200, "{peer} {target}");
            }
        }
        for peer in ["10.0.0.1:1", "10.0.0.99:1", "169.254.169.254:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(ask(&admin, peer, Method::GET, target, LOCAL).await, (StatusCode::NOT_FOUND, String::new()), "{peer} {target}");
        }
        for host in ["example.com", "localhost.example.com", "127.0.0.1.nip.io:9543", "10.0.0.1", "user@localhost", "", "0.0.0.0"] {
            assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, target, &[("Host", host)]).await, 404, "{host} {target}");
        }
        assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, target, &[]).await, 404, "no Host");
        for header in ["Forwarded", "Via", "X-Forwarded-For", "X-Real-IP", "Origin"] {
            let headers = [("Host", "localhost"), (header, "1")];
            assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, target, &headers).await, 404, "{header} {target}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let answer = status(&admin, "127.0.0.1:1", method.clone(), target, LOCAL).await;
            assert_eq!(answer, 405, "{method} {target}");
        }
    }
}

/// Browsers send these headers to loopback addresses. Another page must not read or open the status.
#[tokio::test]
async fn a_browser_shows_the_status_only_if_a_person_opens_it() {
    let admin = admin(&none());
    let of = async |headers: &[(&str, &str)]| {
        let headers: Vec<_> = [("Host", "localhost:9543")].iter().chain(headers).copied().collect();
        status(&admin, "127.0.0.1:1", Method::GET, "/status", &headers).await.as_u16()
    };
    let (site, mode) = ("Sec-Fetch-Site", ("Sec-Fetch-Mode", "navigate"));
    for good in ["none", "same-origin"] {
        assert_eq!(of(&[(site, good), mode]).await, 200, "{good}");
    }
    for bad in ["cross-site", "same-site", "", "None", "none, none"] {
        assert_eq!(of(&[(site, bad), mode]).await, 404, "{bad}");
    }
    assert_eq!(of(&[mode]).await, 404, "a browser that does not say where the request comes from");
    assert_eq!(of(&[(site, "none"), (site, "none")]).await, 404);
    assert_eq!(of(&[(site, "same-origin"), ("Origin", "http://localhost:9543")]).await, 404);
    // The other pages are not for browsers at all.
    for target in [WEB, "/debug/store"] {
        let headers = [("Host", "localhost"), (site, "none")];
        assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, target, &headers).await, 404, "{target}");
    }
}

#[tokio::test]
async fn there_is_no_status_unless_it_is_switched_on() {
    let mut admin = admin(&none());
    admin.status = None;
    for target in STATUS {
        assert_eq!(ask(&admin, "127.0.0.1:1", Method::GET, target, LOCAL).await, (StatusCode::NOT_FOUND, String::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_is_made_once_a_second_for_all() {
    let admin = admin(&none());
    let at = async || {
        let (_, text) = ask(&admin, "127.0.0.1:1", Method::GET, "/status.json", LOCAL).await;
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["daemon"]["uptime_seconds"].as_u64().unwrap()
    };
    assert_eq!(at().await, 0);
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(at().await, 0);
    tokio::time::advance(Duration::from_millis(3001)).await;
    assert_eq!(at().await, 4);
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(at().await, 4, "nothing is made anew within a second");
}

#[test]
fn what_the_port_serves_is_not_kept_and_the_page_loads_nothing() {
    let of = |kind| respond((StatusCode::OK, kind, Bytes::new())).headers().clone();
    for kind in [TEXT, JSON, CSV, HTML] {
        assert_eq!(
            (of(kind)["cache-control"].to_str().unwrap(), of(kind)["x-content-type-options"].to_str().unwrap()),
            ("no-store", "nosniff")
        );
        assert_eq!(of(kind).contains_key("content-security-policy"), kind == HTML);
    }
    let policy = of(HTML)["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && policy.contains("frame-ancestors 'none'"), "{policy}");
}

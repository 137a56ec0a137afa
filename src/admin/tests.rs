#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says loudly what failed")]
use http_body_util::BodyExt as _;

use super::*;
use crate::credentials::{AssumeRole, AssumeRoleError, Credentials};
use crate::explain::By;
use crate::explain::explainer::ASK_AGAIN;
use crate::pods::{Pod, PodUid, pods};
use crate::policy::{Policy, RoleRequest, Rules};

/// Answers as often as it is let, and denies.
#[derive(Debug)]
struct Sts(Arc<tokio::sync::Semaphore>);

impl AssumeRole for Sts {
    async fn assume_role(&self, _: &RoleRequest) -> Result<Credentials, AssumeRoleError> {
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
            uid: PodUid("uid".into()),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            service_account: String::new(),
            role: Some("arn:aws:iam::111122223333:role/web".to_owned()),
            external_id: None,
            session_name: None,
            ips: vec!["10.0.0.1".parse().unwrap()],
            finished: false,
            terminating: false,
            claims_until: None,
            host_network: false,
        });
    });
    let metrics = Metrics::new();
    let explainer = Explainer {
        node: "node-a".to_owned(),
        by: By::Daemon,
        policy: Arc::new(Policy::new(Rules::default(), crate::policy::node::NodeIdentity::default()).unwrap()),
        pods: pods.clone(),
        sts: Sts(answers.clone()),
        metrics: metrics.clone(),
        asked: tokio::sync::Mutex::default(),
    };
    Admin { metrics, readiness: Readiness::default(), debug: Some(pods), explainer: Arc::new(OnceLock::from(explainer)) }
}

async fn status(admin: &Admin<Sts>, peer: &str, method: Method, target: &str, headers: &[(&str, &str)]) -> StatusCode {
    ask(admin, peer, method, target, headers).await.0
}

async fn ask(admin: &Admin<Sts>, peer: &str, method: Method, target: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = admin.answer(&request.body(()).unwrap().into_parts().0, peer.parse().unwrap()).await;
    let status = answer.status();
    (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

const WEB: &str = "/explain?namespace=shop&pod=web";
const LOCAL: &[(&str, &str)] = &[("Host", "localhost:9543")];
const ASSUME: &str = "/explain?namespace=shop&pod=web&assume=true";

fn none() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(0))
}

#[tokio::test]
async fn only_peers_on_loopback_are_told_of_pods() {
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
async fn only_requests_to_a_name_of_loopback_are_answered() {
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
    assert_eq!(of(vec![("Host", "localhost"), ("Host", "localhost")]).await, 404, "two of them");
    assert_eq!(of(vec![("Host", "localhost"), ("Origin", "null")]).await, 404, "a page of a browser");
}

#[tokio::test]
async fn a_get_never_asks_sts() {
    // STS would refuse.
    let (status, body) = ask(&admin(&Arc::new(tokio::sync::Semaphore::new(1))), "127.0.0.1:1", Method::GET, ASSUME, LOCAL).await;
    let report: Report = serde_json::from_str(&body).unwrap();
    assert_eq!((status, report.decision, report.assume), (StatusCode::OK, Decision::Allowed, None));
}

#[tokio::test(start_paused = true)]
async fn sts_is_asked_once_at_a_time_and_once_a_second() {
    let answers = none();
    let admin = admin(&answers);
    let post = || status(&admin, "127.0.0.1:1", Method::POST, ASSUME, LOCAL);
    let first = async {
        let (status, body) = ask(&admin, "127.0.0.1:1", Method::POST, ASSUME, LOCAL).await;
        let report: Report = serde_json::from_str(&body).unwrap();
        assert_eq!((status.as_u16(), report.reason.as_deref()), (200, Some("sts-denied")));
    };
    let second = async {
        // The first one waits for STS now.
        tokio::time::sleep(ASK_AGAIN * 3).await;
        assert_eq!(post().await, 429, "one at a time");
        answers.add_permits(1);
    };
    tokio::join!(first, second);
    answers.add_permits(1);
    assert_eq!(post().await, 429, "one a second");
    tokio::time::sleep(ASK_AGAIN).await;
    assert_eq!(post().await, 200);
}

#[tokio::test]
async fn what_is_not_known_yet_is_no_answer() {
    let mut admin = admin(&none());
    let step = admin.readiness.step("the list");
    assert_eq!(status(&admin, "127.0.0.1:1", Method::GET, WEB, LOCAL).await, 200, "this pod is known already");
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
async fn odd_questions_are_refused() {
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

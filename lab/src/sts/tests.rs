//! Tests the fake STS with requests that AWS's own signer signed.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue should panic on the spot")]

mod behaviours;
mod bounds;
mod signatures;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::*;

const APP: &str = "arn:aws:iam::111122223333:role/team/app-role";
const NEXT: &str = "arn:aws:iam::444455556666:role/next";

fn start() -> Sts {
    let sts = Sts::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    sts.add_role(Role::new(APP));
    sts
}

/// A caller and its keys.
#[derive(Clone)]
struct Client {
    addr: SocketAddr,
    key: String,
    secret: String,
    token: Option<String>,
    region: &'static str,
    service: &'static str,
    time: SystemTime,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Client {
    fn node(sts: &Sts) -> Client {
        Client {
            addr: sts.addr(),
            key: NODE_ACCESS_KEY_ID.to_owned(),
            secret: NODE_SECRET_ACCESS_KEY.to_owned(),
            token: None,
            region: "eu-central-1",
            service: "sts",
            time: SystemTime::now(),
        }
    }

    fn session(sts: &Sts, issued: &Issued) -> Client {
        Client {
            key: issued.access_key_id.clone(),
            secret: issued.secret_access_key.clone(),
            token: Some(issued.session_token.clone()),
            ..Client::node(sts)
        }
    }

    fn signed(&self, form: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let token = self.token.clone();
        let identity = Credentials::new(&self.key, &self.secret, token, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(self.time)
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let url = format!("http://{}/", self.addr);
        let kind = "application/x-www-form-urlencoded";
        let headers = [("content-type", kind), ("x-amz-lab", "a   b ")];
        let signable = SignableRequest::new("POST", &url, headers.into_iter(), SignableBody::Bytes(body.as_bytes())).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        let mut request = Request::post("/")
            .header("host", self.addr.to_string())
            .header("user-agent", "lab-test/1")
            .body(Full::from(body.clone()))
            .unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        instructions.apply_to_request_http1x(&mut request);
        request
    }

    async fn try_call(&self, form: &[(&str, &str)]) -> Result<Answer, hyper::Error> {
        exchange(self.addr, self.signed(form)).await
    }

    async fn call(&self, form: &[(&str, &str)]) -> Answer {
        self.try_call(form).await.unwrap()
    }

    async fn assume(&self, role_arn: &str) -> Answer {
        self.call(&assume(role_arn)).await
    }

    async fn assume_with(&self, role_arn: &str, more: &[(&str, &str)]) -> Answer {
        let mut form = assume(role_arn);
        form.extend_from_slice(more);
        self.call(&form).await
    }

    async fn who(&self) -> Answer {
        self.call(&WHO).await
    }
}

impl Answer {
    /// The text of the first element of this name.
    fn text(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.body.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once(&format!("</{name}>"))?;
        Some(text)
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str) -> &str {
        assert_eq!((self.status, self.text("Code")), (status, Some(code)), "{self:?}");
        self.text("Message").unwrap()
    }
}

const WHO: [(&str, &str); 2] = [("Action", "GetCallerIdentity"), ("Version", "2011-06-15")];

fn assume(role_arn: &str) -> Vec<(&str, &str)> {
    vec![("Action", "AssumeRole"), ("Version", "2011-06-15"), ("RoleArn", role_arn), ("RoleSessionName", "pod-1")]
}

async fn exchange(addr: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() })
    };
    // The exchange reports the error itself if the connection ends.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}

/// Fails a test whose condition never becomes true.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

#[tokio::test]
async fn assume_role_returns_usable_credentials() {
    let sts = start();
    let answer = Client::node(&sts).assume(APP).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "text/xml");
    assert_eq!(answer.headers["x-amzn-requestid"], answer.text("RequestId").unwrap());
    assert!(answer.body.starts_with("<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>"));
    let arn = "arn:aws:sts::111122223333:assumed-role/app-role/pod-1";
    assert_eq!(answer.text("Arn"), Some(arn));
    let id = answer.text("AssumedRoleId").unwrap();
    assert!(id.starts_with("AROA") && id.ends_with(":pod-1") && id.len() == 21 + 6);

    let [issued] = &sts.issued()[..] else { panic!("not exactly one session") };
    assert_eq!(issued.access_key_id, "ASIAAPPROLEX00000001");
    assert_eq!(answer.text("AccessKeyId"), Some(&*issued.access_key_id));
    assert_eq!(answer.text("SecretAccessKey"), Some(&*issued.secret_access_key));
    assert_eq!(answer.text("SessionToken"), Some(&*issued.session_token));
    let expiration = answer.text("Expiration").unwrap();
    assert_eq!(expiration, issued.expires_at.to_string());
    assert_eq!(expiration.len(), "2026-01-01T00:00:00Z".len());
    let left = issued.expires_at.as_second() - jiff::Timestamp::now().as_second();
    assert!((3590..=3600).contains(&left), "{left}");

    let who = Client::session(&sts, issued).who().await;
    assert_eq!((who.status, who.text("Arn")), (200, Some(arn)));
    assert_eq!(who.text("UserId"), Some(id));
    assert_eq!(who.text("Account"), Some("111122223333"));
}

#[tokio::test]
async fn the_node_is_accepted_with_and_without_its_token() {
    let sts = start();
    let mut node = Client::node(&sts);
    assert_eq!(node.who().await.text("Arn"), Some(NODE_SESSION_ARN));
    node.token = Some(NODE_SESSION_TOKEN.to_owned());
    assert_eq!(node.who().await.text("Arn"), Some(NODE_SESSION_ARN));
    node.token = Some("another".to_owned());
    node.who().await.refused(403, "InvalidClientTokenId");
}

#[tokio::test]
async fn calls_are_recorded_with_their_parameters() {
    let sts = start();
    let more = [
        ("DurationSeconds", "1200"),
        ("ExternalId", "ext/1"),
        ("Tags.member.2.Key", "b"),
        ("Tags.member.2.Value", "two & two"),
        ("Tags.member.1.Key", "a"),
        ("Tags.member.1.Value", "one"),
    ];
    assert_eq!(Client::node(&sts).assume_with(APP, &more).await.status, 200);
    Client::node(&sts).assume(NEXT).await;
    Client::node(&sts).who().await;
    sts.wait_for_answers(3).await;

    let calls = sts.calls();
    let first = &calls[0];
    assert_eq!(first.action, "AssumeRole");
    assert_eq!(first.role_arn.as_deref(), Some(APP));
    assert_eq!(first.session_name.as_deref(), Some("pod-1"));
    assert_eq!(first.duration_seconds, Some(1200));
    assert_eq!(first.external_id.as_deref(), Some("ext/1"));
    let tags = [("a", "one"), ("b", "two & two")];
    assert_eq!(first.tags, tags.map(|(k, v)| (k.to_owned(), v.to_owned())));
    assert_eq!(first.caller_arn.as_deref(), Some(NODE_SESSION_ARN));
    assert_eq!(first.region.as_deref(), Some("eu-central-1"));
    assert_eq!(first.user_agent.as_deref(), Some("lab-test/1"));
    assert_eq!(first.outcome, Call::OK);
    assert_eq!(first.access_key_id_issued.as_deref(), Some("ASIAAPPROLEX00000001"));
    assert_eq!(calls[1].outcome, "AccessDenied");
    assert_eq!(calls[1].access_key_id_issued, None);
    assert_eq!(calls[2].action, "GetCallerIdentity");
    assert_eq!((sts.assume_role_calls(), sts.in_flight()), (2, 0));
    assert_eq!(sts.max_in_flight(), 1);
}

#[tokio::test]
async fn sessions_are_unique() {
    let sts = start();
    for _ in 0..3 {
        Client::node(&sts).assume(APP).await;
    }
    let keys: Vec<String> = sts.issued().into_iter().map(|i| i.access_key_id).collect();
    assert_eq!(keys, [1, 2, 3].map(|n| format!("ASIAAPPROLEX0000000{n}")).to_vec());
    let issued = sts.issued();
    assert_ne!(issued[0].session_token, issued[1].session_token);
    assert_ne!(issued[0].secret_access_key, issued[1].secret_access_key);
}

#[tokio::test]
async fn one_connection_carries_several_calls() {
    let sts = start();
    let client = Client::node(&sts);
    let stream = TcpStream::connect(sts.addr()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let calls = async {
        for _ in 0..3 {
            sender.ready().await.unwrap();
            let answer = sender.send_request(client.signed(&assume(APP))).await;
            let answer = answer.unwrap();
            assert_eq!(answer.status(), 200);
            answer.into_body().collect().await.unwrap();
        }
        drop(sender);
    };
    let (_, ended) = soon(async { tokio::join!(calls, connection) }).await;
    ended.unwrap();
}

#[tokio::test]
async fn it_stops_at_shutdown_and_with_its_last_handle() {
    let sts = start();
    sts.set_behaviour(Behaviour::Hang);
    let client = Client::node(&sts);
    let hanging = tokio::spawn(async move { client.try_call(&WHO).await });
    soon(sts.wait_for_calls(1)).await;
    let other = sts.clone();
    drop(sts);
    assert!(TcpStream::connect(other.addr()).await.is_ok());
    other.shutdown();
    soon(other.stopped()).await;
    assert!(TcpStream::connect(other.addr()).await.is_err());
    assert!(soon(hanging).await.unwrap().is_err());

    let sts = start();
    let (addr, server) = (sts.addr(), Arc::clone(&sts.server));
    drop(sts);
    assert!(TcpStream::connect(addr).await.is_ok());
    let stopped = server.stopped_token();
    drop(server);
    soon(stopped.cancelled()).await;
    assert!(TcpStream::connect(addr).await.is_err());
}

#[test]
fn starting_needs_a_runtime() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(Sts::start(listener).is_err());
}

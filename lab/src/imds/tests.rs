//! Tests the fake IMDS over raw connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue should panic on the spot")]

use std::time::SystemTime;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::sts::NODE_SESSION_ARN;

fn start() -> Imds {
    Imds::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        let (_, value) = headers.find(|(key, _)| *key == name)?;
        Some(value)
    }
}

/// Sends these bytes, and reads until the service closes the connection.
async fn raw(imds: &Imds, bytes: &str) -> String {
    let mut stream = TcpStream::connect(imds.addr()).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn send(imds: &Imds, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let headers: String = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: imds\r\nConnection: close\r\n{headers}\r\n");
    let answer = raw(imds, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

async fn token(imds: &Imds) -> String {
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "60")];
    let answer = send(imds, "PUT", "/latest/api/token", &ttl).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

async fn get_with(imds: &Imds, target: &str, token: &str) -> Answer {
    send(imds, "GET", target, &[("X-aws-ec2-metadata-token", token)]).await
}

async fn get(imds: &Imds, target: &str) -> Answer {
    let token = token(imds).await;
    get_with(imds, target, &token).await
}

/// Fails a test whose condition never becomes true.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

#[tokio::test]
async fn a_token_opens_the_data() {
    let imds = start();
    let ttl = [("x-AWS-ec2-metadata-token-TTL-seconds", "21600")];
    let answer = send(&imds, "PUT", "/latest/api/token", &ttl).await;
    assert_eq!(answer.status, 200);
    let echo = answer.header("X-Aws-Ec2-Metadata-Token-Ttl-Seconds");
    assert_eq!(echo, Some("21600"));
    assert_eq!(answer.body.len(), 56);
    assert_eq!(answer.header("Content-Type"), Some("text/plain"));
    let id = get_with(&imds, "/latest/meta-data/instance-id", &answer.body).await;
    assert_eq!((id.status, &*id.body), (200, "i-0f1e2d3c4b5a69788"));
    assert_eq!(id.header("Server"), Some("EC2ws"));
    assert_eq!(id.header("Content-Type"), Some("text/plain"));
    assert_eq!(id.header("Content-Length"), Some("19"));
    assert_ne!(token(&imds).await, token(&imds).await);
}

#[tokio::test]
async fn refused_tokens() {
    let imds = start();
    let name = "X-aws-ec2-metadata-token-ttl-seconds";
    for ttl in ["0", "21601", "-1", "", "1h", "+5", "99999999999999999999"] {
        let answer = send(&imds, "PUT", "/latest/api/token", &[(name, ttl)]).await;
        assert_eq!(answer.status, 400, "{ttl}");
    }
    let put = async |target: &str, more: &[(&str, &str)]| {
        let headers = [&[(name, "1")], more].concat();
        send(&imds, "PUT", target, &headers).await.status
    };
    assert_eq!(send(&imds, "PUT", "/latest/api/token", &[]).await.status, 400);
    assert_eq!(put("/latest/api/token", &[]).await, 200);
    assert_eq!(put("/latest/api/token/", &[]).await, 200);
    let forwarded = [("X-Forwarded-For", "10.0.0.1")];
    assert_eq!(put("/latest/api/token", &forwarded).await, 403);
    assert_eq!(put("/2021-03-23/api/token", &[]).await, 403);
    assert_eq!(put("/latest/meta-data/instance-id", &[]).await, 405);
    assert_eq!(put("/", &[]).await, 405);
    assert_eq!(get(&imds, "/latest/api/token").await.status, 405);
    for method in ["POST", "DELETE", "OPTIONS", "PATCH", "get"] {
        let answer = send(&imds, method, "/latest/meta-data/", &[]).await;
        assert_eq!(answer.status, 405, "{method}");
    }
}

#[tokio::test]
async fn data_needs_a_valid_token() {
    let imds = start();
    for target in ["/", "/latest/meta-data/instance-id", "/nothing"] {
        let answer = send(&imds, "GET", target, &[]).await;
        assert_eq!(answer.status, 401);
        assert_eq!(get_with(&imds, target, "INVALID").await.status, 401);
    }
    let token = token(&imds).await;
    assert_eq!(get_with(&imds, "/", &token).await.status, 200);
    imds.advance_clock(Duration::from_secs(60));
    assert_eq!(get_with(&imds, "/", &token).await.status, 401);
    let requests = imds.requests();
    let valid: Vec<bool> = requests.iter().map(|r| r.had_valid_token).collect();
    let expected = [false, false, false, false, false, false, false, true, false];
    assert_eq!(valid, expected);
}

#[tokio::test]
async fn a_restart_forgets_tokens() {
    let imds = start();
    let token = token(&imds).await;
    imds.forget_tokens();
    assert_eq!(get_with(&imds, "/", &token).await.status, 401);
}

#[tokio::test]
async fn optional_tokens() {
    let imds = start();
    imds.set_tokens_required(false);
    let answer = send(&imds, "GET", "/latest/meta-data/placement/region", &[]).await;
    assert_eq!((answer.status, &*answer.body), (200, "eu-central-1"));
    assert_eq!(get_with(&imds, "/", "INVALID").await.status, 401);
    assert_eq!(get(&imds, "/").await.status, 200);
}

#[tokio::test]
async fn listings() {
    let imds = start();
    let versions = get(&imds, "/").await.body;
    assert!(versions.starts_with("1.0\n2007-01-19\n"));
    assert!(versions.ends_with("\n2021-03-23\nlatest"));
    for (target, listing) in [
        ("/latest", "dynamic\nmeta-data\nuser-data"),
        ("/2016-09-02/", "dynamic\nmeta-data\nuser-data"),
        ("/latest/dynamic/", "instance-identity/"),
        ("/latest/meta-data/placement/", "availability-zone\navailability-zone-id\nregion"),
        ("/latest/meta-data/iam", "info\nsecurity-credentials/"),
        ("/latest/meta-data/iam/security-credentials", NODE_ROLE_NAME),
        ("/latest/meta-data/iam/security-credentials/", NODE_ROLE_NAME),
        ("/latest/meta-data/network/interfaces/macs/", "0a:1b:2c:3d:4e:5f/"),
        ("/latest/meta-data/public-keys/", "0=node-key"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
    ] {
        let answer = get(&imds, target).await;
        assert_eq!((answer.status, &*answer.body), (200, listing), "{target}");
    }
    let top = get(&imds, "/latest/meta-data/").await.body;
    for directory in ["iam/", "identity-credentials/", "public-keys/", "spot/"] {
        assert_eq!(top.lines().filter(|line| *line == directory).count(), 1);
    }
    assert!(top.lines().any(|line| line == "instance-id"), "{top}");
}

#[tokio::test]
async fn every_leaf_answers_with_and_without_a_slash_in_every_version() {
    let imds = start();
    let token = token(&imds).await;
    let leaves = [
        "dynamic/instance-identity/document",
        "dynamic/instance-identity/pkcs7",
        "dynamic/instance-identity/rsa2048",
        "dynamic/instance-identity/signature",
        "meta-data/ami-id",
        "meta-data/autoscaling/target-lifecycle-state",
        "meta-data/block-device-mapping/root",
        "meta-data/events/maintenance/scheduled",
        "meta-data/hostname",
        "meta-data/iam/info",
        "meta-data/identity-credentials/ec2/info",
        "meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "meta-data/instance-life-cycle",
        "meta-data/instance-type",
        "meta-data/local-hostname",
        "meta-data/local-ipv4",
        "meta-data/mac",
        "meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f/subnet-id",
        "meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f/vpc-id",
        "meta-data/placement/availability-zone",
        "meta-data/reservation-id",
        "meta-data/security-groups",
        "meta-data/services/domain",
        "meta-data/services/partition",
        "meta-data/spot/instance-action",
        "meta-data/tags/instance/Name",
        "user-data",
    ];
    for leaf in leaves {
        for target in [format!("/latest/{leaf}"), format!("/latest/{leaf}/"), format!("/2021-03-23/{leaf}")] {
            let answer = get_with(&imds, &target, &token).await;
            assert_eq!(answer.status, 200, "{target}");
            assert!(!answer.body.is_empty());
        }
    }
    for target in [
        "/latest/meta-data/nothing",
        "/latest/meta-data/instance-id/nothing",
        "/latest/nothing",
        "/2099-01-01/meta-data/",
        "/favicon.ico",
        "/latest/meta-data/iam/security-credentials/other",
        "/latest/meta-data/iam/security-credentials-extended/",
    ] {
        assert_eq!(get_with(&imds, target, &token).await.status, 404, "{target}");
    }
}

#[tokio::test]
async fn paths_are_parsed_leniently() {
    let imds = start();
    for target in [
        "//latest//meta-data/instance-id",
        "/latest/%6deta-data/instance%2Did",
        "/latest/meta-data/placement/../instance-id",
        "/latest/meta-data/x/%2e%2e/./instance-id?a=b",
        "http://imds/latest/meta-data/instance-id",
        "/latest/meta-data/instance-id#x",
    ] {
        let answer = get(&imds, target).await;
        assert_eq!(answer.body, "i-0f1e2d3c4b5a69788", "{target}");
        // The record keeps the original target.
        assert_eq!(imds.requests().last().unwrap().target, target);
    }
    assert_eq!(get(&imds, "/latest/%zz%").await.status, 404);
}

#[tokio::test]
async fn the_nodes_credentials_are_those_of_the_sts() {
    let imds = start();
    let target = format!("/latest/meta-data/iam/security-credentials/{NODE_ROLE_NAME}");
    let before = SystemTime::now();
    let answer = get(&imds, &target).await;
    let document: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(document["Code"], "Success");
    assert_eq!(document["Type"], "AWS-HMAC");
    assert_eq!(document["AccessKeyId"], NODE_ACCESS_KEY_ID);
    assert_eq!(document["SecretAccessKey"], NODE_SECRET_ACCESS_KEY);
    assert_eq!(document["Token"], NODE_SESSION_TOKEN);
    let expiration = document["Expiration"].as_str().unwrap();
    assert_eq!(expiration.len(), "2026-01-01T00:00:00Z".len());
    let expiration: jiff::Timestamp = expiration.parse().unwrap();
    let before = jiff::Timestamp::try_from(before).unwrap().as_second();
    let left = expiration.as_second() - before;
    assert!((21_600..21_660).contains(&left), "{left}");
    imds.advance_clock(Duration::from_secs(3600));
    let later = get(&imds, &target).await.body;
    let later: serde_json::Value = serde_json::from_str(&later).unwrap();
    assert_ne!(later["Expiration"], document["Expiration"]);

    assert_eq!(NODE_ACCESS_KEY_ID.len(), 20);
    assert_eq!(NODE_SECRET_ACCESS_KEY.len(), 40);
    assert_eq!(NODE_IDENTITY_ACCESS_KEY_ID.len(), 20);
    assert_eq!(NODE_IDENTITY_SECRET.len(), 40);
    assert!(NODE_ROLE_ARN.ends_with(&format!(":role/{NODE_ROLE_NAME}")));
    assert!(NODE_ROLE_ARN.contains(NODE_ACCOUNT));
    assert!(NODE_SESSION_ARN.contains(&format!(":assumed-role/{NODE_ROLE_NAME}/")));
}

#[tokio::test]
async fn the_profile_is_that_of_the_node() {
    let imds = start();
    let answer = get(&imds, "/latest/meta-data/iam/info").await;
    let info: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(info["Code"], "Success");
    assert_eq!(info["InstanceProfileArn"], format!("arn:aws:iam::111122223333:instance-profile/{NODE_ROLE_NAME}"));
    let answer = get(&imds, "/latest/dynamic/instance-identity/document").await;
    let document: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(document["region"], "eu-central-1");
    assert_eq!(document["accountId"], "111122223333");
}

#[tokio::test]
async fn secrets_are_recognized_wherever_they_are_served() {
    let imds = start();
    let token = token(&imds).await;
    let found = |bytes: &str| Imds::node_credentials_leaked_in(bytes.as_bytes());
    assert_eq!(found(&token), Some(NODE_IMDS_TOKEN_MARKER));
    for (path, secret) in [
        ("iam/security-credentials/", NODE_ROLE_NAME),
        ("iam/info", NODE_ROLE_NAME),
        ("iam/security-credentials/NODE-ROLE-MUST-NEVER-LEAK", NODE_SECRET_ACCESS_KEY),
        ("identity-credentials/ec2/security-credentials/ec2-instance", NODE_IDENTITY_SECRET),
        ("public-keys/0/openssh-key", NODE_PUBLIC_KEY),
        ("managed-ssh-keys/signer-cert", NODE_PUBLIC_KEY),
        ("../user-data", NODE_USER_DATA_SECRET),
        ("../dynamic/instance-identity/pkcs7", NODE_SIGNED_IDENTITY),
        ("../dynamic/instance-identity/rsa2048", NODE_SIGNED_IDENTITY),
        ("../dynamic/instance-identity/signature", NODE_SIGNED_IDENTITY),
    ] {
        let answer = get_with(&imds, &format!("/latest/meta-data/{path}"), &token).await;
        assert_eq!(found(&answer.body), Some(secret), "{path}");
        let swapped = answer.body.to_ascii_lowercase();
        assert_eq!(found(&swapped), Some(secret), "{path}");
    }
    for harmless in ["/", "/latest/meta-data/", "/latest/meta-data/placement/region", "/latest/dynamic/instance-identity/document"] {
        let answer = get_with(&imds, harmless, &token).await;
        assert_eq!(found(&answer.head), None);
        assert_eq!(found(&answer.body), None);
    }
    for secret in SECRETS {
        assert_eq!(found(&format!("x{secret}x")), Some(secret));
        assert_eq!(found(&secret[1..]), None);
    }
    assert_eq!(found(""), None);
}

#[tokio::test]
async fn values_can_be_set_and_removed() {
    let imds = start();
    imds.set("meta-data/instance-id", "i-1");
    imds.set("/latest/meta-data/new/leaf", "value");
    assert_eq!(get(&imds, "/latest/meta-data/instance-id").await.body, "i-1");
    assert_eq!(get(&imds, "/latest/meta-data/new").await.body, "leaf");
    assert_eq!(get(&imds, "/latest/meta-data/new/leaf").await.body, "value");
    imds.remove("meta-data/instance-id");
    imds.remove("meta-data/placement");
    for gone in ["instance-id", "placement", "placement/region"] {
        let answer = get(&imds, &format!("/latest/meta-data/{gone}")).await;
        assert_eq!(answer.status, 404, "{gone}");
    }
    // A role that appears later.
    imds.remove("meta-data/iam/security-credentials");
    let list = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(get(&imds, list).await.status, 404);
    imds.set("meta-data/iam/security-credentials/other", "{}");
    assert_eq!(get(&imds, list).await.body, "other");
}

#[tokio::test]
async fn requests_are_recorded_byte_for_byte() {
    let imds = start();
    let mut stream = TcpStream::connect(imds.addr()).await.unwrap();
    let request = "GET //x%2F?q HTTP/1.0\r\nhOsT:  a \r\nX-Two: 1\r\nX-Two: 2\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected = ImdsRequest {
        method: "GET".to_owned(),
        target: "//x%2F?q".to_owned(),
        version: "HTTP/1.0".to_owned(),
        headers: vec![pair("hOsT", "a"), pair("X-Two", "1"), pair("X-Two", "2")],
        had_valid_token: false,
        peer: stream.local_addr().unwrap(),
        status: 401,
    };
    assert_eq!(imds.requests(), [expected]);
    assert_eq!(imds.requests()[0].header("x-two"), Some("1"));
}

#[tokio::test]
async fn connections_are_kept_and_bodies_are_requests() {
    let imds = start();
    imds.set_tokens_required(false);
    let smuggled = "GET /latest/user-data HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let request = format!("GET /latest/meta-data/mac HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    let answers = raw(&imds, &request).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 2);
    assert!(answers.contains(NODE_USER_DATA_SECRET));
    let targets: Vec<String> = imds.requests().into_iter().map(|r| r.target).collect();
    assert_eq!(targets, ["/latest/meta-data/mac", "/latest/user-data"]);
}

#[tokio::test]
async fn unreadable_requests_are_refused() {
    let imds = start();
    for request in
        ["GET / HTTP/2.0\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "GET /\r\n\r\n", "nonsense\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n"]
    {
        let answer = raw(&imds, request).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request}");
    }
    assert!(imds.requests().iter().all(|request| request.status == 400));
    assert_eq!(imds.requests().len(), 5);
}

#[tokio::test]
async fn head_has_no_body() {
    let imds = start();
    imds.set_tokens_required(false);
    let answer = send(&imds, "HEAD", "/latest/meta-data/instance-id", &[]).await;
    assert_eq!((answer.status, &*answer.body), (200, ""));
    assert_eq!(answer.header("Content-Length"), Some("19"));
}

#[tokio::test]
async fn behaviours() {
    let imds = start();
    imds.set_behaviour(ImdsBehaviour::Status(503));
    let answer = send(&imds, "PUT", "/latest/api/token", &[]).await;
    assert_eq!((answer.status, &*answer.body), (503, ""));

    imds.set_behaviour(ImdsBehaviour::Close);
    assert_eq!(raw(&imds, "GET / HTTP/1.1\r\n\r\n").await, "");
    assert_eq!(imds.requests()[1].status, 0);

    let delay = Duration::from_millis(50);
    imds.set_behaviour(ImdsBehaviour::Slow(delay));
    let before = std::time::Instant::now();
    token(&imds).await;
    assert!(before.elapsed() >= delay);

    imds.set_behaviour(ImdsBehaviour::Hang);
    let hung = imds.clone();
    let hanging = tokio::spawn(async move { raw(&hung, "GET / HTTP/1.1\r\n\r\n").await });
    soon(imds.wait_for_requests(4)).await;
    assert_eq!(imds.requests()[3].status, 0);
    imds.set_behaviour(ImdsBehaviour::Normal);
    assert_eq!(get(&imds, "/").await.status, 200);
    imds.shutdown();
    soon(imds.stopped()).await;
    assert_eq!(soon(hanging).await.unwrap(), "");
    assert!(TcpStream::connect(imds.addr()).await.is_err());
}

use std::net::TcpListener;
use std::sync::Arc;

use http::Method;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Client, document, send_on, soon};
use super::{apply_pod, names, start, version};
use crate::kube::{ClientIdentity, Fault, KubeApi, Resource, Verb};

#[tokio::test]
async fn a_token_is_required() {
    let (api, client) = start();
    api.require_token(Some("s3cret"));
    for wrong in [client.clone(), client.clone().token("other")] {
        let (code, status) = wrong.get("/api/v1/pods").await;
        assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")));
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(401)));
        assert_eq!(wrong.get("/healthz").await, (200, json!("ok")));
    }
    client.clone().token("s3cret").get_ok("/api/v1/pods").await;
    let config: Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    assert_eq!(config["users"][0]["user"]["token"], "s3cret");
    assert_eq!(config["clusters"][0]["cluster"]["server"], api.url());
    api.require_token(None);
    client.get_ok("/api/v1/pods").await;
}

#[tokio::test]
async fn a_cut_breaks_watches_and_idle_connections() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    apply_pod(&api, "a", "node-a");
    watch.expect(&[("ADDED", "a")]).await;
    let mut idle = TcpStream::connect(api.addr()).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: lab\r\n\r\n").await.unwrap();
    let mut answer = [0; 1024];
    assert!(soon(idle.read(&mut answer)).await.unwrap() > 0);

    api.cut_connections();
    assert_eq!(api.watchers(Resource::Pods), 0);
    watch.line().await.unwrap_err();
    let error = soon(idle.read(&mut answer)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // New connections are accepted.
    client.watch("/api/v1/pods?watch=true").await.expect(&[("ADDED", "a")]).await;
}

#[tokio::test]
async fn a_revoked_watch_breaks_even_if_its_connection_came_after_the_cut() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    apply_pod(&api, "a", "node-a");
    watch.expect(&[("ADDED", "a")]).await;
    // Closing the watches is the last step of a cut.
    api.state().store().close_watches();
    watch.line().await.unwrap_err();
}

#[tokio::test]
async fn a_stall_answers_later() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    api.stall(true);
    let list = tokio::spawn({
        let client = client.clone();
        async move { client.get_ok("/api/v1/pods").await }
    });
    // The request is read while the server stalls.
    soon(api.wait_for_request(|it| it.verb == Some(Verb::List))).await;
    apply_pod(&api, "a", "node-a");
    watch.expect_silence().await;
    api.stall(false);
    // It is answered afterwards, with an object that did not exist when it was read.
    assert_eq!(names(&soon(list).await.unwrap()), ["a"]);
    watch.expect(&[("ADDED", "a")]).await;
}

#[tokio::test]
async fn refused_connections() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    api.refuse_connections(true);
    let request = client.request(Method::GET, "/api/v1/pods", None);
    soon(client.send(request)).await.unwrap_err();
    // Open connections stay open.
    apply_pod(&api, "a", "node-a");
    watch.expect(&[("ADDED", "a")]).await;
    api.refuse_connections(false);
    client.get_ok("/api/v1/pods").await;
}

#[tokio::test]
async fn the_next_requests_fail() {
    let (api, client) = start();
    api.fail_next(Fault {
        resource: Some(Resource::Pods),
        verb: Some(Verb::List),
        status: 429,
        reason: "TooManyRequests".to_owned(),
        times: 2,
        retry_after: Some(7),
    });
    client.get_ok("/api/v1/namespaces").await;
    drop(client.watch("/api/v1/pods?watch=true").await);
    for _ in 0..2 {
        let request = client.request(Method::GET, "/api/v1/pods", None);
        let response = soon(client.send(request)).await.unwrap();
        assert_eq!(response.headers()["retry-after"], "7");
        let (code, status) = document(response).await;
        assert_eq!((code, &status["code"]), (429, &json!(429)));
        assert_eq!(status["reason"], "TooManyRequests");
        assert_eq!(status["details"]["retryAfterSeconds"], 7);
    }
    client.get_ok("/api/v1/pods").await;
    api.fail_next(Fault::default());
    assert_eq!(client.get("/version").await.0, 500);
    assert_eq!(client.get("/version").await.0, 200);
}

#[tokio::test]
async fn held_events_are_sent_when_released_and_not_missed() {
    let (api, client) = start();
    let start = apply_pod(&api, "late", "node-a");
    let path = |version| format!("/api/v1/pods?watch=true&resourceVersion={version}");
    let mut watch = client.watch(&path(start)).await;
    api.hold_events(Resource::Pods, "late");
    let written = apply_pod(&api, "late", "node-b");
    let other = apply_pod(&api, "other", "node-a");
    watch.expect(&[("ADDED", "other")]).await;
    watch.expect_silence().await;
    // Changes whose events are held can be read.
    let list = client.get_ok("/api/v1/pods").await;
    assert_eq!(list["items"][0]["spec"]["nodeName"], "node-b");
    // A watch that resumes before the held event receives it, too, until it has moved past it. A watch that began with a list
    // has it in that list.
    let mut resumed = client.watch(&path(other)).await;
    let mut listed = client.watch("/api/v1/pods?watch=true").await;
    listed.expect(&[("ADDED", "late"), ("ADDED", "other")]).await;
    api.release_events(Resource::Pods, "late");
    let mut resumed_again = client.watch(&path(other)).await;
    for watch in [&mut watch, &mut resumed, &mut resumed_again] {
        let (kind, object) = watch.event().await;
        assert_eq!((kind.as_str(), &object["spec"]["nodeName"]), ("MODIFIED", &json!("node-b")));
        assert_eq!(version(&object), written, "the event has the version that the list has shown");
    }
    listed.expect_silence().await;
    assert!(api.resource_version() > other);
    client.watch(&path(api.resource_version())).await.expect_silence().await;
    // The hold is over.
    apply_pod(&api, "late", "node-c");
    watch.expect(&[("MODIFIED", "late")]).await;
}

#[tokio::test]
async fn a_version_shows_the_same_state_with_and_without_a_hold() {
    let (api, client) = start();
    let start = apply_pod(&api, "late", "node-a");
    let mut watch = client.watch(&format!("/api/v1/pods?watch=true&resourceVersion={start}")).await;
    api.hold_events(Resource::Pods, "late");
    assert!(api.delete(Resource::Pods, Some("team"), "late"));
    let deleted = api.resource_version();
    let next = apply_pod(&api, "late", "node-b");
    let other = apply_pod(&api, "other", "node-a");
    let at = |version| format!("/api/v1/pods?resourceVersion={version}&resourceVersionMatch=Exact");
    let seen = || async {
        let mut seen = Vec::new();
        for version in start..=other {
            let list = client.get_ok(&at(version)).await;
            seen.push(list["items"].as_array().unwrap().iter().map(|item| item["metadata"].clone()).collect::<Vec<_>>());
        }
        seen
    };
    let while_held = seen().await;
    assert_eq!(while_held.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0, 1, 2]);
    api.release_events(Resource::Pods, "late");
    assert_eq!(seen().await, while_held);
    assert_eq!(client.get_ok("/api/v1/pods").await["items"][0]["metadata"], while_held[3][0]);
    // The pod that a list has shown was created after the previous pod of the same name was deleted.
    watch.expect(&[("ADDED", "other")]).await;
    for (expected, at) in [("DELETED", deleted), ("ADDED", next)] {
        let (kind, object) = watch.event().await;
        assert_eq!((kind.as_str(), version(&object)), (expected, at));
    }
}

#[tokio::test]
async fn a_denied_verb_is_forbidden_and_access_reviews_say_so() {
    let (api, client) = start();
    let review = |verb: &str| {
        let client = client.clone();
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": { "verb": verb, "resource": "serviceaccounts" } },
        });
        async move {
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            let (code, review) = client.post(path, &body).await;
            assert_eq!((code, &review["kind"]), (201, &json!("SelfSubjectAccessReview")));
            review["status"]["allowed"].as_bool().unwrap()
        }
    };
    assert!(review("list").await);
    api.deny(Verb::List, "serviceaccounts");
    assert!(!review("list").await);
    assert!(review("watch").await);
    let (code, status) = client.get("/api/v1/serviceaccounts").await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    assert_eq!(
        status["message"],
        "serviceaccounts is forbidden: User \"system:serviceaccount:kube-system:rolegate\" cannot list resource \
         \"serviceaccounts\" in API group \"\" at the cluster scope"
    );
    drop(client.watch("/api/v1/serviceaccounts?watch=true").await);
    client.get_ok("/api/v1/pods").await;
    api.allow(Verb::List, "serviceaccounts");
    assert!(review("list").await);
    client.get_ok("/api/v1/serviceaccounts").await;

    api.deny(Verb::Create, "events");
    let (code, _) = client.post("/api/v1/namespaces/team/events", &json!({})).await;
    assert_eq!(code, 403);
}

#[tokio::test]
async fn raw_lines_reach_open_watches() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    api.inject_raw_event(Resource::Namespaces, "not for pods");
    api.inject_raw_event(Resource::Pods, "{not json");
    assert_eq!(watch.line().await.unwrap().unwrap(), "{not json");
}

#[tokio::test]
async fn tls_with_a_ca_of_its_own() {
    let api = KubeApi::start_tls(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    assert!(api.url().starts_with("https://127.0.0.1:"));
    assert!(api.kubeconfig().contains("certificate-authority-data"));
    let ca = CertificateDer::from_pem_slice(api.ca_pem().unwrap().as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let config = |roots| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        tokio_rustls::TlsConnector::from(Arc::new(config))
    };
    let connector = config(roots);
    for name in ["127.0.0.1", "localhost", "::1"] {
        let stream = TcpStream::connect(api.addr()).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        let stream = soon(connector.connect(name, stream)).await.unwrap();
        let request = Client::new(api.addr()).request(Method::GET, "/api/v1/pods", None);
        let (code, _) = document(soon(send_on(stream, request)).await.unwrap()).await;
        assert_eq!(code, 200);
    }
    // No other CA and no other name is accepted.
    let other = KubeApi::start_tls(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    for (address, name) in [(other.addr(), "localhost"), (api.addr(), "example.com")] {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        soon(connector.connect(name, stream)).await.unwrap_err();
    }
}

#[tokio::test]
async fn it_stops_with_its_last_handle() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    let second = api.clone();
    drop(api);
    apply_pod(&second, "a", "node-a");
    watch.expect(&[("ADDED", "a")]).await;
    drop(second);
    watch.line().await.unwrap_err();
}

#[tokio::test]
async fn shutdown_closes_everything() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    api.shutdown();
    watch.line().await.unwrap_err();
    assert_eq!(api.watchers(Resource::Pods), 0);
    let request = client.request(Method::GET, "/api/v1/pods", None);
    soon(client.send(request)).await.unwrap_err();
}

/// Returns a connector with the current roots, for this client.
fn connector(api: &KubeApi, identity: &ClientIdentity) -> tokio_rustls::TlsConnector {
    let ca = CertificateDer::from_pem_slice(api.ca_pem().unwrap().as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn certificates_identify_clients_until_their_ca_is_replaced() {
    let api = KubeApi::start_tls(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    api.require_client_certificate(true);
    let ask = async |connector: &tokio_rustls::TlsConnector| {
        let stream = TcpStream::connect(api.addr()).await.unwrap();
        let stream = soon(connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream)).await?;
        let request = Client::new(api.addr()).request(Method::GET, "/api/v1/pods", None);
        let (code, _) = document(soon(send_on(stream, request)).await?).await;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(code)
    };
    let (one, two) = (api.client_identity("one").unwrap(), api.client_identity("two").unwrap());
    assert_eq!(ask(&connector(&api, &one)).await.unwrap(), 200);
    assert_eq!(ask(&connector(&api, &two)).await.unwrap(), 200);
    api.replace_client_ca().unwrap();
    assert!(ask(&connector(&api, &one)).await.is_err(), "the old CA is no longer accepted");
    let three = api.client_identity("three").unwrap();
    let by_the_old = connector(&api, &three);
    assert_eq!(ask(&by_the_old).await.unwrap(), 200);
    api.replace_server_ca().unwrap();
    assert!(ask(&by_the_old).await.is_err(), "the client does not trust the new server CA");
    assert_eq!(ask(&connector(&api, &three)).await.unwrap(), 200);
    let clients: Vec<_> = api.requests().into_iter().map(|request| request.client.unwrap()).collect();
    assert_eq!(clients, ["one", "two", "three", "three"]);
}

#[tokio::test]
async fn a_client_without_a_required_certificate_gets_401() {
    let (api, client) = start();
    api.require_client_certificate(true);
    assert_eq!(client.get("/api/v1/pods").await.0, 401);
    assert_eq!(client.get("/healthz").await.0, 200);
    assert!(api.client_identity("one").is_err() && api.replace_client_ca().is_err(), "the server does not use TLS");
    api.require_client_certificate(false);
    client.get_ok("/api/v1/pods").await;
}

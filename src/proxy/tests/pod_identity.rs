//! Requests at the addresses of Pod Identity.

use std::net::SocketAddr;

use rolegate_lab::kube::{PodToken, SigningKey};
use serde_json::Value;

use super::*;
use crate::config::flags::DEFAULT_POD_IDENTITY_AUDIENCE;
use crate::pod_identity::keys::tests::{FakeSource, start};
use crate::pod_identity::verifier::Verifier;

const ADDRESS: &str = "169.254.170.23:80";
const RELATIVE: &str = "169.254.170.2:80";
const WEB: &str = "10.42.0.2";
const PLAIN: &str = "10.42.0.3";

fn uid(number: usize) -> String {
    format!("5b1c7a90-2f4e-4d36-9a8b-0000000000{number:02x}")
}

/// A node with a pod that has a role and a pod that has none.
async fn identity_node() -> (Node, Arc<FakeSource>) {
    let Node { proxy, writer, sts, records } = node(TokenMode::Required, &[]);
    let pod = |number, name, at: &str, role: Option<&str>| Pod {
        uid: PodUid(uid(number).into()),
        namespace: "shop".to_owned(),
        ..pod(name, at, role)
    };
    writer.write(|index| index.reset([pod(1, "web", WEB, Some("web")), pod(2, "plain", PLAIN, None)]));
    let source = FakeSource::new(SigningKey::es256());
    let verifier = Verifier::new(start(&source).await, DEFAULT_POD_IDENTITY_AUDIENCE, proxy.clock.clone());
    let proxy = proxy.with_pod_identity(Some(PodIdentity { verifier, node: "node-a".to_owned(), reviews: None }));
    (Node { proxy, writer, sts, records }, source)
}

/// Issues a token of the pod that has a role, as the kubelet gets one now.
fn token(node: &Node, source: &FakeSource) -> String {
    source.issuer.issue(&PodToken::new("shop", "web", &uid(1)).issued_at(node.proxy.clock.now()))
}

impl Node {
    async fn ask_identity(&self, from: &str, to: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let origin = Origin::new(from.parse().unwrap(), Hosts::default());
        self.ask_identity_on(&origin, to, headers).await
    }

    async fn ask_identity_on(&self, origin: &Origin, to: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let local: SocketAddr = to.parse().unwrap();
        let request = Request::get("/v1/credentials").header("host", local.ip().to_string());
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let (head, ()) = request.body(()).unwrap().into_parts();
        let response = match to {
            RELATIVE => self.proxy.handle_relative_uri(origin, local, &head).await,
            _ => self.proxy.handle_pod_identity(origin, local, &head).await,
        };
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn pods_are_served_through_an_hour_without_the_api() {
    let (node, source) = identity_node().await;
    let first = token(&node, &source);
    assert_eq!(node.ask_identity(WEB, ADDRESS, &[("authorization", &first)]).await.0, 200);
    source.set_down(true);
    for minute in (5..60).step_by(5) {
        advance(Duration::from_secs(5 * 60)).await;
        // One that is remembered, and one that has to be verified with the last keys.
        for token in [&first, &token(&node, &source)] {
            let (status, document) = node.ask_identity(WEB, ADDRESS, &[("authorization", token)]).await;
            assert_eq!((status, document["AccessKeyId"].as_str()), (200, Some("ASIA-web")), "minute {minute}: {document}");
        }
    }
    // Without the keys of the cluster, a token of a new key has to wait.
    source.issuer.rotate(SigningKey::es256());
    let (status, error) = node.ask_identity(WEB, ADDRESS, &[("authorization", &token(&node, &source))]).await;
    assert_eq!((status, error["Code"].as_str()), (503, Some("ServiceUnavailableException")));
    source.set_down(false);
    advance(Duration::from_secs(60)).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(node.ask_identity(WEB, ADDRESS, &[("authorization", &token(&node, &source))]).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn at_the_relative_uri_the_address_says_which_pod_it_is() {
    let (node, source) = identity_node().await;
    let of_web = token(&node, &source);
    // SDKs send a token if their environment has one. It says nothing here.
    for headers in [&[][..], &[("authorization", "secret")], &[("authorization", &of_web)]] {
        let (status, document) = node.ask_identity(WEB, RELATIVE, headers).await;
        assert_eq!((status, document["AccessKeyId"].as_str()), (200, Some("ASIA-web")), "{headers:?}");
        assert_eq!(node.ask_identity(PLAIN, RELATIVE, headers).await.0, 403, "{headers:?}");
    }
    let mut of_node = Origin::new("169.254.170.2".parse().unwrap(), Hosts::default());
    of_node.is_of_node = true;
    assert_eq!(node.ask_identity_on(&of_node, RELATIVE, &[("authorization", &of_web)]).await.0, 403);
    for (header, status) in [(("x-forwarded-for", "10.0.0.1"), 403), (("origin", "http://a.example"), 400), (("host", "a.example"), 400)] {
        assert_eq!(node.ask_identity(WEB, RELATIVE, &[header]).await.0, status, "{header:?}");
    }
    // Behind the address, another pod begins.
    let origin = Origin::new(WEB.parse().unwrap(), Hosts::default());
    assert_eq!(node.ask_identity_on(&origin, RELATIVE, &[]).await.0, 200);
    node.writer.write(|index| index.reset([Pod { uid: PodUid(uid(3).into()), ..pod("next", WEB, Some("next")) }]));
    assert_eq!(node.ask_identity_on(&origin, RELATIVE, &[]).await.0, 503);
    assert!(origin.is_over());
    assert_eq!(node.ask_identity(WEB, RELATIVE, &[]).await.1["AccessKeyId"], "ASIA-next");
}

#[tokio::test(start_paused = true)]
async fn clients_are_told_of_events_only_if_there_is_one() {
    let (node, source) = identity_node().await;
    let message = |error: &Value| error["Message"].as_str().unwrap().contains("Events");
    let plain = source.issuer.issue(&PodToken::new("shop", "plain", &uid(2)).issued_at(node.proxy.clock.now()));
    let (status, error) = node.ask_identity(PLAIN, ADDRESS, &[("authorization", &plain)]).await;
    assert!(status == 403 && message(&error), "{error}");
    // Nobody can be told of an unknown pod.
    let (status, error) = node.ask_identity("10.42.0.99", RELATIVE, &[]).await;
    assert!(status == 403 && !message(&error), "{error}");
    let without_events = Node { proxy: Proxy { events: Reporter::off(Metrics::new()), ..node.proxy }, ..node };
    let (status, error) = without_events.ask_identity(PLAIN, ADDRESS, &[("authorization", &plain)]).await;
    assert!(status == 403 && !message(&error), "{error}");
}

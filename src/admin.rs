//! The operators' port: `/metrics`, `/healthz`, `/readyz`, `/explain`, and with `--debug` `/debug/store`.
//!
//! Liveness is local: it says that the process answers. Readiness says that this node's pods can be served, or what is
//! still to be done for that. The explanation and the debug page tell which pod has which role, so they answer peers on
//! loopback alone, no page of a browser there, and nothing that says it was sent on by a proxy; the explanation wants a header
//! of its own besides. A GET of it asks nobody; a POST with `assume=true` asks STS once, one at a time, one a second, and more
//! rarely while STS gives nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use crate::connections::{Limits, Permit, Timely};
use crate::credentials::StsOfNode;
use crate::explain::explainer::Explainer;
use crate::explain::{Decision, HEADER, Report};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::readiness::Readiness;

mod local;

use local::{is_local, question};

/// Connections at one time: the node's own, and those of all others together.
const MAX_CONNECTIONS: usize = 64;
/// Connections of one other source: pods reach this port too.
const MAX_OF_SOURCE: usize = 8;
/// Time for a request's head to arrive, and for an answer to be taken.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Status, type and body.
type Page = (StatusCode, &'static str, Vec<u8>);

/// Who may have how many connections. The kubelet's probes come from the node itself, and never wait for anybody else.
#[derive(Debug)]
struct Room {
    node: Limits,
    others: Limits,
}

impl Room {
    fn new() -> Self {
        Self { node: Limits::new(MAX_CONNECTIONS, MAX_CONNECTIONS), others: Limits::new(MAX_CONNECTIONS, MAX_OF_SOURCE) }
    }

    fn admit(&self, stream: &TcpStream, peer: SocketAddr) -> Option<Permit> {
        let (peer, local) = (peer.ip().to_canonical(), stream.local_addr().ok()?.ip().to_canonical());
        // Only the node itself can connect to one of its addresses from the same address.
        let from_the_node = peer == local || peer == IpAddr::V4(Ipv4Addr::LOCALHOST) || peer == IpAddr::V6(Ipv6Addr::LOCALHOST);
        let limits = if from_the_node { &self.node } else { &self.others };
        limits.admit(peer).ok()
    }
}

/// The operators' port.
#[derive(Debug)]
pub struct Admin<A> {
    /// What is scraped.
    pub metrics: Metrics,
    /// What is not done yet.
    pub readiness: Readiness,
    /// For the debug page; `None` where it is off.
    pub debug: Option<Pods>,
    /// For explanations, once the daemon knows by what it decides.
    pub explainer: Arc<OnceLock<Explainer<A>>>,
}

impl<A: StsOfNode> Admin<A> {
    /// Serves for as long as the process.
    pub async fn serve(self, listener: TcpListener) {
        let admin = Arc::new(self);
        let room = Room::new();
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(permit) = room.admit(&stream, peer) {
                        let admin = admin.clone();
                        running.spawn(async move {
                            admin.connection(stream, peer).await;
                            drop(permit);
                        });
                    }
                }
                Err(error) => {
                    debug!(%error, "a connection to the metrics port could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            Ok::<_, Infallible>(self.answer(&request.into_parts().0, peer).await)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(Timely::connection(stream, HEAD_TIMEOUT)), service);
        if let Err(error) = connection.await {
            debug!(%error, "a connection to the metrics port ended early");
        }
    }

    async fn answer(&self, request: &Parts, peer: SocketAddr) -> Response<Full<Bytes>> {
        const NOT_FOUND: Page = (StatusCode::NOT_FOUND, TEXT, Vec::new());
        let (status, kind, body) = match (&request.method, request.uri.path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4", self.metrics.render()),
            (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, TEXT, b"ok\n".to_vec()),
            (&Method::GET | &Method::HEAD, "/readyz") => match self.readiness.pending().as_slice() {
                [] => (StatusCode::OK, TEXT, b"ready\n".to_vec()),
                _ => (StatusCode::SERVICE_UNAVAILABLE, TEXT, self.waiting()),
            },
            (&Method::GET, "/debug/store") => match &self.debug {
                Some(pods) if is_local(peer, &request.headers) => (StatusCode::OK, JSON, store(pods)),
                _ => NOT_FOUND,
            },
            (&Method::GET | &Method::POST, "/explain") if is_local(peer, &request.headers) && request.headers.contains_key(HEADER) => {
                self.explain(request).await
            }
            (&Method::POST, "/explain") | (&Method::GET | &Method::HEAD, _) => NOT_FOUND,
            _ => (StatusCode::METHOD_NOT_ALLOWED, TEXT, Vec::new()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    async fn explain(&self, request: &Parts) -> Page {
        let asked = match question(&request.uri) {
            Ok(asked) => asked,
            Err(error) => return (StatusCode::BAD_REQUEST, TEXT, format!("{error}\n").into_bytes()),
        };
        let Some(explainer) = self.explainer.get() else {
            return (StatusCode::SERVICE_UNAVAILABLE, TEXT, self.waiting());
        };
        // Only a POST changes anything outside.
        if asked.assume && request.method != Method::POST {
            let refusal = "assume=true asks STS, which a GET does not: send it as a POST, or leave it out\n";
            return (StatusCode::METHOD_NOT_ALLOWED, TEXT, refusal.into());
        }
        let report = match asked.assume {
            false => explainer.explain(&asked.pod).await,
            true => match explainer.assume(&asked.pod).await {
                Ok(report) => report,
                Err(busy) => return (StatusCode::TOO_MANY_REQUESTS, TEXT, format!("{busy}\n").into_bytes()),
            },
        };
        // A pod that is not known before the first list is no news.
        if is_not_known(&report) && !self.readiness.pending().is_empty() {
            return (StatusCode::SERVICE_UNAVAILABLE, TEXT, self.waiting());
        }
        match serde_json::to_vec(&report) {
            Ok(body) => (StatusCode::OK, JSON, body),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, Vec::new()),
        }
    }

    fn waiting(&self) -> Vec<u8> {
        format!("waiting for: {}\n", self.readiness.pending().join(", ")).into_bytes()
    }
}

fn is_not_known(report: &Report) -> bool {
    report.decision == Decision::Unknown && report.identity.is_empty()
}

/// What kube2iam's page of this name shows: role annotations and namespaces by address, namespaces' lists by name.
fn store(pods: &Pods) -> Vec<u8> {
    let (mut roles, mut namespaces, mut lists) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for pod in pods.all() {
        for ip in pod.ips.iter().filter(|_| !pod.finished && !pod.host_network) {
            roles.insert(ip.to_string(), pod.role.clone());
            namespaces.insert(ip.to_string(), pod.namespace.clone());
        }
        if let Some(namespace) = pods.namespace(&pod.namespace) {
            let list = namespace.allowed_roles.as_deref().and_then(|list| serde_json::from_str::<Vec<String>>(list).ok());
            lists.insert(pod.namespace.clone(), list.unwrap_or_default());
        }
    }
    json!({ "rolesByIP": roles, "namespaceByIP": namespaces, "rolesByNamespace": lists }).to_string().into_bytes()
}

#[cfg(test)]
mod tests;

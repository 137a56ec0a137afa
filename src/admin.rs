//! The operators' port: `/metrics`, `/healthz`, `/readyz`, and with `--debug` `/debug/store`.
//!
//! Liveness is local: it says that the process answers. Readiness says that this node's pods can be served, or what is
//! still to be done for that. The debug page tells which pod has which role, so it answers peers on loopback alone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use crate::connections::{Limits, Permit, Timely};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::readiness::Readiness;

/// Connections at one time: the node's own, and those of all others together.
const MAX_CONNECTIONS: usize = 64;
/// Connections of one other source: pods reach this port too.
const MAX_OF_SOURCE: usize = 8;
/// Time for a request's head to arrive, and for an answer to be taken.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
pub struct Admin {
    /// What is scraped.
    pub metrics: Metrics,
    /// What is not done yet.
    pub readiness: Readiness,
    /// For the debug page; `None` where it is off.
    pub debug: Option<Pods>,
}

impl Admin {
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
            Ok::<_, Infallible>(self.answer(request.method(), request.uri().path(), peer))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(Timely::connection(stream, HEAD_TIMEOUT)), service);
        if let Err(error) = connection.await {
            debug!(%error, "a connection to the metrics port ended early");
        }
    }

    fn answer(&self, method: &Method, path: &str, peer: SocketAddr) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        let (status, kind, body) = match (method, path) {
            (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4", self.metrics.render()),
            (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, TEXT, b"ok\n".to_vec()),
            (&Method::GET | &Method::HEAD, "/readyz") => match self.readiness.pending().as_slice() {
                [] => (StatusCode::OK, TEXT, b"ready\n".to_vec()),
                pending => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("waiting for: {}\n", pending.join(", ")).into_bytes()),
            },
            (&Method::GET, "/debug/store") => match &self.debug {
                Some(pods) if peer.ip().to_canonical().is_loopback() => (StatusCode::OK, "application/json", store(pods)),
                _ => (StatusCode::NOT_FOUND, TEXT, Vec::new()),
            },
            (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, TEXT, Vec::new()),
            _ => (StatusCode::METHOD_NOT_ALLOWED, TEXT, Vec::new()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
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

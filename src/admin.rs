//! The operators' port: `/metrics`, `/healthz`, `/readyz`, `/explain`, and with `--debug` `/debug/store`.
//!
//! Liveness is local: it says that the process answers. Readiness says that this node's pods can be served, or what is
//! still to be done for that. The explanation and the debug page tell which pod has which role, so they answer peers on
//! loopback alone, no page of a browser there, and nothing that says it was sent on by a proxy; the explanation wants a header
//! of its own besides. A GET of it asks nobody; a POST with `assume=true` asks STS once, one at a time, one a second, and more
//! rarely while STS gives nothing.
//!
//! Pods can reach this port, too. What they may use of it is limited by pod. The node itself is not limited, so that the
//! kubelet's probes never wait for other clients. The metrics are rendered at most once a second for all other clients, and only
//! the node itself sees namespaces, unless the operator configures it otherwise.
//!
//! The probe socket answers the two probes alone: this daemon's own, also while the port is that of another.

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
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::debug;

use crate::connections::ACCEPT_PAUSE;
use crate::connections::{
    Admitted, Closing, ConnectionLimits, ConnectionPermit, ConnectionRecord, ConnectionSettings, Limit, Port, Rates, Source, Timely,
};
use crate::credentials::StsOfNode;
use crate::explain::explainer::Explainer;
use crate::explain::{HEADER, Report, ReportedDecision};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::readiness::Readiness;

mod local;
mod rendered;

use local::{is_local, question};
pub(crate) use rendered::Rendered;

/// Limits on open connections. Pods of this node share one set of places; addresses that belong to no pod of this node, mostly
/// those of scrapers on other nodes, share another. Nobody waits; an idle connection is closed for a client that has none.
const CONNECTIONS: ConnectionSettings = ConnectionSettings { all: 32, per_source: 4, node: 64, unknown: 64, per_unknown: 8, waiting: 0 };
/// Connections of all addresses together that belong to no known pod and are behind a pod's port of a bridge.
const MAX_INVENTED: usize = 16;
/// New connections of one source a second.
const CONNECTION_RATE: u32 = 50;
/// Requests of one source a second, over all its connections. Further requests wait.
const REQUEST_RATE: u32 = 10;
/// Connections at the probe socket: the kubelet asks one question at a time.
const MAX_PROBES: usize = 16;
/// Time for a request's head to arrive, and for an answer to be taken.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Status, type and body.
type AdminPage = (StatusCode, &'static str, Bytes);

const NOT_FOUND: AdminPage = (StatusCode::NOT_FOUND, TEXT, Bytes::new());

/// What each source may take.
#[derive(Debug)]
struct Room {
    clients: Share,
    /// For addresses of no known pod that are behind a pod's port of a bridge: a pod may have invented them. Clients elsewhere, as
    /// a scraper on another node, lose nothing by them.
    invented: Share,
}

#[derive(Debug)]
struct Share {
    limits: ConnectionLimits,
    connections: Rates,
    requests: Rates,
}

impl Share {
    fn new(settings: ConnectionSettings) -> Self {
        Self { limits: ConnectionLimits::new(settings), connections: Rates::new(CONNECTION_RATE), requests: Rates::new(REQUEST_RATE) }
    }
}

impl Room {
    fn new() -> Self {
        Self { clients: Share::new(CONNECTIONS), invented: Share::new(ConnectionSettings { unknown: MAX_INVENTED, ..CONNECTIONS }) }
    }

    fn of(&self, source: &Source) -> &Share {
        if source.is_behind_port() { &self.invented } else { &self.clients }
    }

    fn admit(&self, source: &Source, who: impl Fn(IpAddr) -> Source) -> Result<ConnectionPermit, Limit> {
        let share = self.of(source);
        share.connections.admits(source)?;
        match share.limits.admit(source, who) {
            Admitted::Open(permit) => Ok(permit),
            Admitted::Refused(limit) => Err(limit),
            // Nothing waits here: the settings allow no waiting connections.
            Admitted::Wait(_) => Err(Limit::Source),
        }
    }

    fn delay(&self, source: &Source) -> Duration {
        self.of(source).requests.delay(source)
    }
}

/// The operators' port.
#[derive(Debug)]
pub(crate) struct Admin<A> {
    /// What is scraped.
    pub metrics: Metrics,
    /// What is not done yet.
    pub readiness: Readiness,
    /// The pods: who connects, and what the debug page shows.
    pub pods: Pods,
    /// Whether there is a debug page.
    pub debug: bool,
    /// Whether clients other than the node itself see namespaces in the metrics.
    pub namespace_labels: bool,
    /// The record of connections that limits closed.
    pub record: ConnectionRecord,
    /// For explanations, once the daemon knows by what it decides.
    pub explainer: Arc<OnceLock<Explainer<A>>>,
    /// The last rendering of the metrics.
    pub rendered: Rendered,
}

impl<A: StsOfNode> Admin<A> {
    /// Serves for as long as the process.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let admin = self;
        let room = Arc::new(Room::new());
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Ok(local) = stream.local_addr() else { continue };
                    let source = admin.source(peer.ip(), local.ip());
                    let (admin, room) = (admin.clone(), room.clone());
                    if let Source::Unknown(ip, _) = source
                        && admin.pods.has_bridges()
                    {
                        // The kernel is asked, which may wait.
                        running.spawn(async move {
                            let source = Source::Unknown(ip, admin.pods.network_of(ip).await);
                            if let Some(permit) = admin.admitted(&source, &room) {
                                admin.connection(stream, peer, source, permit, &room).await;
                            }
                        });
                    } else if let Some(permit) = admin.admitted(&source, &room) {
                        running.spawn(async move { admin.connection(stream, peer, source, permit, &room).await });
                    }
                }
                Err(error) => {
                    debug!(%error, "a connection to the metrics port could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Returns the place of a connection. Where it gets none, this is counted and recorded.
    fn admitted(&self, source: &Source, room: &Room) -> Option<ConnectionPermit> {
        let admitted = room.admit(source, |ip| self.source_of(ip));
        if let Err(limit) = &admitted {
            self.metrics.metrics_port_refused(limit.name());
            self.record.closed(source, Port::Metrics, *limit);
        }
        admitted.ok()
    }

    fn source(&self, peer: IpAddr, local: IpAddr) -> Source {
        let (peer, local) = (peer.to_canonical(), local.to_canonical());
        // Only the node itself can connect to one of its addresses from the same address.
        let is_node = peer == local || peer == IpAddr::V4(Ipv4Addr::LOCALHOST) || peer == IpAddr::V6(Ipv6Addr::LOCALHOST);
        if is_node { Source::Node } else { self.source_of(peer) }
    }

    fn source_of(&self, ip: IpAddr) -> Source {
        Source::at_once(ip, self.pods.at_once(ip))
    }

    /// Serves the two probes, and nothing else, to this user's own processes, for as long as the process.
    pub(crate) async fn serve_probes(self: Arc<Self>, listener: UnixListener) {
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) if running.len() < MAX_PROBES => {
                    let admin = self.clone();
                    running.spawn(async move { admin.probes(stream).await });
                }
                Ok(_) => debug!("a probe was not heard: there are too many at one time"),
                Err(error) => {
                    debug!(%error, "a probe could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn probes(&self, stream: UnixStream) {
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            Ok::<_, Infallible>(respond(self.probed(&request.into_parts().0).unwrap_or(NOT_FOUND)))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(Timely::new(stream, HEAD_TIMEOUT)), service);
        if let Err(error) = connection.await {
            debug!(%error, "a probe ended early");
        }
    }

    /// The answer to a probe, where it is one.
    fn probed(&self, request: &Parts) -> Option<AdminPage> {
        match (&request.method, request.uri.path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => Some((StatusCode::OK, TEXT, Bytes::from_static(b"ok\n"))),
            (&Method::GET | &Method::HEAD, "/readyz") => Some(match self.readiness.pending().as_slice() {
                [] => (StatusCode::OK, TEXT, Bytes::from_static(b"ready\n")),
                _ => (StatusCode::SERVICE_UNAVAILABLE, TEXT, self.waiting()),
            }),
            _ => None,
        }
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, source: Source, permit: ConnectionPermit, room: &Room) {
        let (source, permit) = (&source, &permit);
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            permit.request_begins();
            // One request of a connection is under way at a time, so that this slows the connection down.
            tokio::time::sleep(room.delay(source)).await;
            let response = respond(self.answer(&request.into_parts().0, peer, source).await);
            permit.request_ends();
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(Timely::connection(stream, HEAD_TIMEOUT)), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            closing = permit.closing() => {
                debug!(%peer, ?closing, "a connection to the metrics port gave its place to another source");
                if closing == Closing::Displaced {
                    self.record.closed(source, Port::Metrics, Limit::Displaced);
                    return;
                }
                // A request that has arrived is still answered.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "a connection to the metrics port ended early");
        }
    }

    async fn answer(&self, request: &Parts, peer: SocketAddr, source: &Source) -> AdminPage {
        if let Some(page) = self.probed(request) {
            return page;
        }
        match (&request.method, request.uri.path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4", self.metrics_for(source).await),
            (&Method::GET, "/debug/store") if self.debug && is_local(peer, &request.headers) => (StatusCode::OK, JSON, store(&self.pods)),
            (&Method::GET | &Method::POST, "/explain") if is_local(peer, &request.headers) && request.headers.contains_key(HEADER) => {
                self.explain(request).await
            }
            (&Method::POST, "/explain") | (&Method::GET | &Method::HEAD, _) => NOT_FOUND,
            _ => (StatusCode::METHOD_NOT_ALLOWED, TEXT, Bytes::new()),
        }
    }

    /// Returns the current metrics for the node itself, and a rendering of the last second for others.
    async fn metrics_for(&self, source: &Source) -> Bytes {
        if *source == Source::Node {
            return self.metrics.render().into();
        }
        self.rendered
            .get(|| {
                self.metrics.rendering();
                if self.namespace_labels { self.metrics.render() } else { self.metrics.render_without_namespaces() }
            })
            .await
    }

    async fn explain(&self, request: &Parts) -> AdminPage {
        let asked = match question(&request.uri) {
            Ok(asked) => asked,
            Err(error) => return (StatusCode::BAD_REQUEST, TEXT, format!("{error}\n").into()),
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
                Err(busy) => return (StatusCode::TOO_MANY_REQUESTS, TEXT, format!("{busy}\n").into()),
            },
        };
        // A pod that is not known before the first list is no news.
        if is_not_known(&report) && !self.readiness.pending().is_empty() {
            return (StatusCode::SERVICE_UNAVAILABLE, TEXT, self.waiting());
        }
        match serde_json::to_vec(&report) {
            Ok(body) => (StatusCode::OK, JSON, body.into()),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, Bytes::new()),
        }
    }

    fn waiting(&self) -> Bytes {
        format!("waiting for: {}\n", self.readiness.pending().join(", ")).into()
    }
}

fn respond((status, kind, body): AdminPage) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn is_not_known(report: &Report) -> bool {
    report.decision == ReportedDecision::Unknown && report.identity.is_empty()
}

/// What kube2iam's page of this name shows: role annotations and namespaces by address, namespaces' lists by name.
fn store(pods: &Pods) -> Bytes {
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
    json!({ "rolesByIP": roles, "namespaceByIP": namespaces, "rolesByNamespace": lists }).to_string().into()
}

#[cfg(test)]
mod tests;

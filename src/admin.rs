//! The operators' port: `/metrics`, `/healthz`, `/readyz`, `/explain`, with `--migrate` `/report`, with `--status-page` `/status` and
//! `/status.json`, and with `--debug` `/debug/store`.
//!
//! Liveness is local: it says that the process answers. Readiness says that this node's pods can be served, or what still has
//! to happen first. The explanation, the report, the status and the debug page reveal which pod has which role. They therefore answer
//! only peers on loopback, and neither web pages in a browser nor requests that a proxy forwarded; the explanation also requires a header of
//! its own, and the status also answers a browser in which a person opens it. All others get 404, as where there is no such page. A GET of the explanation makes no calls. A POST with `assume=true` calls STS once; these calls run one at a time,
//! at most one per second, and back off while STS returns errors.
//!
//! Pods can reach this port, too. What they may use of it is limited by pod. The node itself is not limited, so that the
//! kubelet's probes never wait for other clients. The metrics are rendered at most once a second for all other clients, and
//! only the node itself sees namespaces, unless the operator configures it otherwise.
//!
//! The probe socket serves only the two probes, and always those of this daemon, even while another daemon has the port.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
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
use crate::report::render::{report_csv, report_text};
use crate::report::reporter::MigrationReporter;
use crate::status::page::{content_security_policy, page};

mod local;
mod rendered;
mod status;

use local::{ReportFormat, is_local, is_local_page, question};
pub(crate) use rendered::Rendered;
pub(crate) use status::StatusPage;

/// Limits on open connections. Pods of this node share one set of places. Addresses that belong to no pod of this node, mostly
/// scrapers on other nodes, share another. No connection waits: if there is no free place, an idle connection is closed.
const CONNECTIONS: ConnectionSettings = ConnectionSettings { all: 32, per_source: 4, node: 64, unknown: 64, per_unknown: 8, waiting: 0 };
/// The maximum number of connections from all addresses together that belong to no known pod and are behind a pod's port of a
/// bridge.
const MAX_INVENTED: usize = 16;
/// New connections per second from one source.
const CONNECTION_RATE: u32 = 50;
/// Requests per second from one source, over all its connections. Further requests wait.
const REQUEST_RATE: u32 = 10;
/// Connections at the probe socket. The kubelet sends one probe at a time.
const MAX_PROBES: usize = 16;
/// The time for a request's head to arrive, and for the client to read a response.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const CSV: &str = "text/csv; charset=utf-8";

/// The status, content type and body of a response.
type AdminPage = (StatusCode, &'static str, Bytes);

const NOT_FOUND: AdminPage = (StatusCode::NOT_FOUND, TEXT, Bytes::new());

/// The places and rates of each source.
#[derive(Debug)]
struct Room {
    clients: Share,
    /// The share of addresses that belong to no known pod and are behind a pod's port of a bridge: a pod may have invented
    /// them. Clients elsewhere, such as a scraper on another node, are not affected.
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
    /// The metrics that are served.
    pub metrics: Metrics,
    /// The steps that readiness waits for.
    pub readiness: Readiness,
    /// The pods, which identify clients and appear on the debug page.
    pub pods: Pods,
    /// Whether the debug page is served.
    pub debug: bool,
    /// Whether clients other than the node itself see namespaces in the metrics.
    pub namespace_labels: bool,
    /// The record of connections that limits closed.
    pub record: ConnectionRecord,
    /// The explainer, once the daemon's policy is ready.
    pub explainer: Arc<OnceLock<Explainer<A>>>,
    /// The reporter of the migration report, once the daemon's policy is ready.
    pub reporter: Arc<OnceLock<MigrationReporter>>,
    /// The last rendering of the metrics.
    pub rendered: Rendered,
    /// The status page, if it is served.
    pub status: Option<StatusPage<A>>,
}

impl<A: StsOfNode> Admin<A> {
    /// Serves the port for the lifetime of the process.
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
                        // Asking the kernel may block.
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
                    debug!(%error, "cannot accept a connection to the metrics port; retrying");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Returns the permit for a connection. If it gets none, the rejection is counted and recorded.
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

    /// Serves only the two probes, to processes of this user, for the lifetime of the process.
    pub(crate) async fn serve_probes(self: Arc<Self>, listener: UnixListener) {
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) if running.len() < MAX_PROBES => {
                    let admin = self.clone();
                    running.spawn(async move { admin.probes(stream).await });
                }
                Ok(_) => debug!("closed a connection to --probe-socket: there are too many at the same time"),
                Err(error) => {
                    debug!(%error, "cannot accept a connection at --probe-socket; retrying");
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
            debug!(%error, "a connection to --probe-socket ended early");
        }
    }

    /// Returns the response to a probe, or `None` if the request is not a probe.
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
            // A connection carries one request at a time, so this delays the whole connection.
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
                debug!(%peer, reason = closing.name(), "closed a connection to the metrics port to make room for another client");
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
            (&Method::GET | &Method::HEAD, path @ ("/status" | "/status.json")) if is_local_page(peer, &request.headers) => {
                self.status(path).await
            }
            (&Method::GET, "/report") if is_local(peer, &request.headers) => self.report(request),
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
            .get(async {
                self.metrics.rendering();
                if self.namespace_labels { self.metrics.render() } else { self.metrics.render_without_namespaces() }.into()
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
        // Only a POST may have effects outside the daemon.
        if asked.assume && request.method != Method::POST {
            let refusal = "assume=true requires a POST request: use POST, or remove assume\n";
            return (StatusCode::METHOD_NOT_ALLOWED, TEXT, refusal.into());
        }
        let report = match asked.assume {
            false => explainer.explain(&asked.pod).await,
            true => match explainer.assume(&asked.pod).await {
                Ok(report) => report,
                Err(busy) => return (StatusCode::TOO_MANY_REQUESTS, TEXT, format!("{busy}\n").into()),
            },
        };
        // Before the first list, an unknown pod means nothing.
        if is_not_known(&report) && !self.readiness.pending().is_empty() {
            return (StatusCode::SERVICE_UNAVAILABLE, TEXT, self.waiting());
        }
        match serde_json::to_vec(&report) {
            Ok(body) => (StatusCode::OK, JSON, body.into()),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, Bytes::new()),
        }
    }

    fn report(&self, request: &Parts) -> AdminPage {
        let Some(format) = ReportFormat::of(&request.uri) else {
            return (StatusCode::BAD_REQUEST, TEXT, Bytes::from_static(b"expected format=text, format=json or format=csv\n"));
        };
        let Some(reporter) = self.reporter.get() else {
            return (StatusCode::SERVICE_UNAVAILABLE, TEXT, self.waiting());
        };
        let report = reporter.report();
        match format {
            ReportFormat::Text => (StatusCode::OK, TEXT, report_text(&report).into()),
            ReportFormat::Csv => (StatusCode::OK, CSV, report_csv(&report).into()),
            ReportFormat::Json => match serde_json::to_vec(&report) {
                Ok(body) => (StatusCode::OK, JSON, body.into()),
                Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, Bytes::new()),
            },
        }
    }

    async fn status(&self, path: &str) -> AdminPage {
        let Some(status) = &self.status else { return NOT_FOUND };
        let document = status.document().await;
        if path == "/status" {
            return (StatusCode::OK, HTML, page(&document).into());
        }
        match serde_json::to_vec(&*document) {
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
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // What the port serves is true for a moment, and much of it is for people on the node alone.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if kind == HTML {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(content_security_policy()));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
    response
}

fn is_not_known(report: &Report) -> bool {
    report.decision == ReportedDecision::Unknown && report.identity.is_empty()
}

/// Renders the contents of kube2iam's page of this name: role annotations and namespaces by address, and the allowed roles by
/// namespace.
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

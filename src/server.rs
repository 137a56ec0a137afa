//! The pod-facing port: which connections are let in, and with which identity.
//!
//! A connection must have been redirected: its original destination, as the kernel's NAT remembers it, is the metadata
//! address. One that came straight to the port is closed before a byte of it is read, but for probes: a connection from
//! the node's own address may ask for `/healthz`.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use crate::config::LimitsConfig;
use crate::connections::ACCEPT_PAUSE;
use crate::connections::{
    Admitted, Closing, ConnectionLimits, ConnectionPermit, ConnectionRecord, ConnectionSettings, Limit, Overdue, Port, Progress,
    ProgressTimer, Rates, Source, Timely, Timeouts,
};
use crate::credentials::AssumeRole;
use crate::drain::Drain;
use crate::handover::AcceptQueue;
use crate::log_once::Condition;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6, METADATA_PORT};
use crate::metrics::Metrics;
use crate::proxy::route::{Body, Hosts, is_chunked_token_request};
use crate::proxy::{Origin, Proxy};
use crate::self_test::Probes;

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Connections of the node itself, which probes the port.
const MAX_OF_NODE: usize = 64;
/// When stopping, the backlog is taken for empty after this time without a connection.
const LAST_ACCEPT: Duration = Duration::from_millis(20);
/// How long the last look at the backlog may take at all.
const LAST_ACCEPTS: Duration = Duration::from_millis(200);

/// The pod-facing port.
#[derive(Debug)]
pub(crate) struct Server<A> {
    proxy: Arc<Proxy<A>>,
    accept_direct: bool,
    metrics: Metrics,
    drain: Drain,
    timeouts: Timeouts,
    limits: ConnectionLimits,
    rates: Rates,
    record: ConnectionRecord,
    accepting: Accepting,
    probes: Probes,
}

/// Whether connections can be accepted: told when it changes, as it may stay so for long.
#[derive(Debug)]
struct Accepting {
    fails: Condition,
    metrics: Metrics,
}

impl Accepting {
    fn new(metrics: Metrics) -> Self {
        Self { fails: Condition::default(), metrics }
    }

    /// It failed; the answer is whether it did not before.
    fn failed(&self, error: &std::io::Error) -> bool {
        self.metrics.connection_refused("accept-failed");
        let is_news = self.fails.begins();
        if is_news {
            warn!(
                event = "accept-failed", %error,
                "cannot accept connections; retrying; if files are exhausted (EMFILE, ENFILE), raise the limit of open files"
            );
        }
        is_news
    }

    /// It worked; the answer is whether it did not before.
    fn worked(&self) -> bool {
        let is_news = self.fails.ends();
        if is_news {
            info!(event = "accept-recovered", "accepting connections again");
        }
        is_news
    }
}

/// A connection that was accepted.
#[derive(Debug)]
struct Arrival {
    stream: TcpStream,
    admission: Admission,
    /// What limits count it for.
    source: Source,
    /// The generation of the pods in which it was accepted, where the kernel has to be asked whose address it is.
    unchecked: Option<u64>,
}

/// What a connection may be used for.
#[derive(Debug)]
enum Admission {
    /// A pod's.
    Pod(Origin),
    /// A probe of the node's own.
    Probe,
    /// Nothing: it is closed.
    Refused,
}

impl<A: AssumeRole> Server<A> {
    /// Creates a server that passes the requests of pods to `proxy`, and adds connections that a limit closes to `record`.
    pub(crate) fn new(
        proxy: Proxy<A>,
        accept_direct: bool,
        limits: LimitsConfig,
        metrics: Metrics,
        drain: Drain,
        record: ConnectionRecord,
    ) -> Self {
        let LimitsConfig { connections, connections_per_pod, connection_rate, head_timeout, idle_timeout } = limits;
        let unknown = limits.unknown();
        let settings = ConnectionSettings {
            all: connections,
            per_source: connections_per_pod,
            node: MAX_OF_NODE,
            unknown,
            per_unknown: (unknown / 4).min(connections_per_pod).max(1),
            waiting: limits.waiting(),
        };
        Self {
            proxy: Arc::new(proxy),
            accept_direct,
            accepting: Accepting::new(metrics.clone()),
            metrics,
            drain,
            timeouts: Timeouts { idle: idle_timeout, head: head_timeout },
            limits: ConnectionLimits::new(settings),
            rates: Rates::new(connection_rate),
            record,
            probes: Probes::default(),
        }
    }

    /// Tells these what arrives of the self-test.
    #[must_use]
    pub(crate) fn with_probes(self, probes: Probes) -> Self {
        Self { probes, ..self }
    }

    /// Accepts until the drain begins; the connections that are open then live on in the drain.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, queue: &AcceptQueue) {
        loop {
            tokio::select! {
                accepted = listener.accept() => self.accepted(accepted).await,
                () = self.drain.begun() => break,
            }
        }
        // Another daemon accepts from the same queue: what is in it is for that one.
        if queue.is_shared() {
            return;
        }
        // What the kernel has accepted for us already would be reset when the listener closes.
        let backlog = async {
            while let Ok(accepted) = tokio::time::timeout(LAST_ACCEPT, listener.accept()).await {
                self.accepted(accepted).await;
            }
        };
        // Somebody who connects again and again must not keep us from the end.
        let _ = tokio::time::timeout(LAST_ACCEPTS, backlog).await;
    }

    async fn accepted(self: &Arc<Self>, accepted: std::io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, peer)) => {
                self.accepting.worked();
                self.take(stream, peer);
            }
            Err(error) => {
                self.accepting.failed(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let from = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        if Probes::is_source(from.ip()) && original_destination(&stream).is_some_and(is_metadata) {
            // The self-test's, which only wants to be seen: told first, then closed.
            self.probes.arrived(from);
            return drop(stream);
        }
        let admission = self.admit(&stream, peer);
        if matches!(admission, Admission::Refused) {
            self.metrics.connection_refused("not-redirected");
            debug!(source = %peer, "closed a connection that was not redirected from the metadata address");
            return;
        }
        // Changes on which the handshake depended, such as a forged neighbour, were announced before.
        self.proxy.pods().catch_up();
        let mut arrival = self.arrival(stream, admission, from.ip());
        let server = self.clone();
        if let Source::Unknown(ip, _) = arrival.source
            && self.proxy.pods().has_bridges()
        {
            return self.drain.track(async move {
                arrival.source = Source::Unknown(ip, server.proxy.pods().network_of(ip).await);
                let admitted = server.admitted(&arrival.source);
                server.enter(arrival, admitted).await;
            });
        }
        match self.admitted(&arrival.source) {
            Admitted::Refused(limit) => self.refused(&arrival.source, limit),
            admitted => self.drain.track(async move { server.enter(arrival, admitted).await }),
        }
    }

    fn admitted(&self, source: &Source) -> Admitted {
        match self.rates.admits(source) {
            Ok(()) => self.limits.admit(source, |ip| self.source_at_once(ip)),
            Err(limit) => Admitted::Refused(limit),
        }
    }

    async fn enter(&self, arrival: Arrival, admitted: Admitted) {
        let place = match admitted {
            Admitted::Open(permit) => Ok(permit),
            Admitted::Wait(waiting) => {
                let _waits = self.metrics.connection_waits();
                waiting.place().await
            }
            Admitted::Refused(limit) => Err(limit),
        };
        match place {
            Ok(permit) => self.open(arrival, permit).await,
            Err(limit) => self.refused(&arrival.source, limit),
        }
    }

    /// Finds out what limits count a connection for. Never asks the kernel, which may wait: all connections wait for this one.
    fn arrival(&self, stream: TcpStream, mut admission: Admission, ip: IpAddr) -> Arrival {
        let pods = self.proxy.pods();
        let Admission::Pod(origin) = &mut admission else {
            return Arrival { stream, admission, source: Source::Node, unchecked: None };
        };
        // Read first, so that a change in between is noticed later.
        let generation = pods.generation();
        let found = pods.at_once(ip);
        let unchecked = found.is_err().then_some(generation);
        let source = Source::at_once(ip, found);
        origin.late = unchecked.is_none() && matches!(source, Source::Unknown(..)) && pods.distrusts_newcomers();
        Arrival { stream, admission, source, unchecked }
    }

    /// Asks the kernel whose address a connection has. This may wait, so the connection's own task does it.
    fn check(&self, admission: &mut Admission, source: &Source, permit: &ConnectionPermit, generation: u64) {
        let Admission::Pod(origin) = admission else { return };
        let pods = self.proxy.pods();
        pods.catch_up();
        let now = self.source(origin.ip);
        permit.settle(&now);
        // The API knew no pod there when it was accepted. The node's records did, unless they have changed since then.
        let was_known = !matches!(now, Source::Unknown(..)) && pods.generation() == generation;
        origin.late = matches!(source, Source::Unknown(..)) && !was_known && pods.distrusts_newcomers();
    }

    /// Returns the source behind this address, from what is known now. May wait for the kernel.
    fn source(&self, ip: IpAddr) -> Source {
        Source::of(ip, self.proxy.pods().by_ip(ip))
    }

    /// Returns the source behind this address, as far as is known without asking the kernel.
    fn source_at_once(&self, ip: IpAddr) -> Source {
        Source::at_once(ip, self.proxy.pods().at_once(ip))
    }

    /// Counts and records a connection that a limit closes.
    fn refused(&self, source: &Source, limit: Limit) {
        self.metrics.connection_refused(limit.name());
        self.record.closed(source, Port::Metadata, limit);
    }

    async fn open(&self, arrival: Arrival, permit: ConnectionPermit) {
        let Arrival { stream, mut admission, source, unchecked } = arrival;
        let _open = self.metrics.connection();
        if let Some(generation) = unchecked {
            self.check(&mut admission, &source, &permit, generation);
        }
        self.connection(stream, admission, &source, &permit).await;
    }

    /// Counts the connection for its pod, if the pod has become known since.
    fn settle(&self, admission: &Admission, permit: &ConnectionPermit) {
        if let Admission::Pod(origin) = admission
            && permit.is_unknown()
        {
            permit.settle(&self.source(origin.ip));
        }
    }

    /// What the kernel says of a connection decides what it may be used for.
    fn admit(&self, stream: &TcpStream, peer: SocketAddr) -> Admission {
        let (Ok(local), ip) = (stream.local_addr(), peer.ip().to_canonical()) else {
            return Admission::Refused;
        };
        let redirected = original_destination(stream).is_some_and(is_metadata);
        if redirected {
            return Admission::Pod(Origin::new(ip, Hosts::default()));
        }
        if self.accept_direct {
            let own = SocketAddr::new(local.ip().to_canonical(), local.port());
            return Admission::Pod(Origin::new(ip, Hosts { own: Some(own) }));
        }
        // Only the node itself can connect to one of its addresses from the same address.
        let from_the_node = ip == local.ip().to_canonical() || ip.is_loopback();
        if from_the_node { Admission::Probe } else { Admission::Refused }
    }

    async fn connection(&self, stream: TcpStream, admission: Admission, source: &Source, permit: &ConnectionPermit) {
        let admission = &admission;
        // Requests since the connection's last turn: one that sends many at once gets one answered in each turn, as others do.
        let turn = &AtomicU32::new(0);
        let progress = &Progress::new(self.timeouts);
        let mut timer = progress.timer();
        let service = service_fn(|request: Request<Incoming>| async move {
            if turn.fetch_add(1, Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
            progress.request_begins();
            permit.request_begins();
            self.settle(admission, permit);
            let (request, incoming) = request.into_parts();
            let mut is_last = false;
            let mut response = match admission {
                Admission::Pod(origin) => {
                    let body = read_body(&request, incoming, progress).await;
                    is_last = body != Body::Unread;
                    self.proxy.handle(origin, &request, body).await
                }
                Admission::Probe | Admission::Refused => probe(&request),
            };
            self.settle(admission, permit);
            progress.request_ends();
            let is_over = matches!(admission, Admission::Pod(origin) if origin.is_over());
            if permit.request_ends() || is_over || is_last || self.drain.has_begun() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        });
        let stream = Timely::connection(stream, self.timeouts.head).reporting_to(progress.clone());
        let connection = http1::Builder::new()
            // `timer` has the timeouts: that of hyper does not tell an idle connection from a slow request.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut in_turns = std::future::poll_fn(|context| {
            turn.store(0, Ordering::Relaxed);
            connection.as_mut().poll(context)
        });
        let ended = tokio::select! {
            biased;
            ended = &mut in_turns => ended,
            overdue = timer.overdue() => return self.metrics.connection_ended(overdue.name()),
            closing = permit.closing() => {
                self.metrics.connection_ended(closing.name());
                if closing == Closing::Displaced {
                    if matches!(source, Source::Unknown(..)) {
                        self.record.closed(source, Port::Metadata, Limit::Displaced);
                    }
                    return;
                }
                self.finish(connection.as_mut(), &mut timer).await
            }
            () = self.drain.closing() => self.finish(connection.as_mut(), &mut timer).await,
        };
        if let Err(error) = ended {
            let reason = ended_by(&error);
            self.metrics.connection_ended(reason);
            let source = match admission {
                Admission::Pod(origin) => Some(tracing::field::display(origin.ip)),
                Admission::Probe | Admission::Refused => None,
            };
            debug!(source, %error, reason, "a connection to the app port ended early");
        }
    }

    /// Ends a connection gracefully: a request that has arrived is still answered.
    async fn finish<S>(&self, mut connection: Pin<&mut Connection<S>>, timer: &mut ProgressTimer) -> hyper::Result<()>
    where
        S: HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible>,
    {
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            ended = connection => ended,
            _ = timer.overdue() => Ok(()),
            () = self.drain.forced() => Ok(()),
        }
    }
}

type Connection<S> = http1::Connection<TokioIo<Timely<TcpStream>>, S>;

/// Why a connection ended before its peer was done with it.
fn ended_by(error: &hyper::Error) -> &'static str {
    // An answer that is not taken in time is an error of the stream.
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    if error.is_timeout() || source.is_some_and(|source| source.kind() == std::io::ErrorKind::TimedOut) {
        "timeout"
    } else if error.is_parse() {
        "malformed"
    } else {
        "peer"
    }
}

/// Reads the body of a request for a token, the only one that may have any. No other body is read: the request is refused, and
/// the connection ends.
async fn read_body(request: &http::request::Parts, mut incoming: Incoming, progress: &Progress) -> Body {
    if !is_chunked_token_request(&request.method, &request.uri, request.version, &request.headers) {
        return Body::Unread;
    }
    // hyper drops extensions, accepts other forms of 0, and hides a Content-Length. The bytes show all of these.
    match tokio::time::timeout_at(progress.request_deadline(), incoming.frame()).await {
        Ok(None) if progress.has_empty_chunked_body() => Body::EmptyChunked,
        _ => Body::Unread,
    }
}

/// The only answers to a connection that was not redirected: kube2iam's liveness probe asks for this on the app port.
fn probe(request: &http::request::Parts) -> Response<Full<Bytes>> {
    let healthy = matches!(request.method, Method::GET | Method::HEAD) && request.uri.path() == "/healthz";
    let (status, body) = if healthy { (StatusCode::OK, "ok\n") } else { (StatusCode::NOT_FOUND, "") };
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Where a connection was going before NAT; `None` where it was not rewritten. The kernel keeps this for IPv4 also under a
/// socket of IPv6 (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`).
fn original_destination(stream: &impl AsFd) -> Option<SocketAddr> {
    if let Ok(v4) = getsockopt(stream, sockopt::OriginalDst) {
        let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
        return Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)));
    }
    let v6 = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
    Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)), u16::from_be(v6.sin6_port)))
}

fn is_metadata(address: SocketAddr) -> bool {
    address.port() == METADATA_PORT && [IpAddr::V4(METADATA_IPV4), IpAddr::V6(METADATA_IPV6)].contains(&address.ip())
}

#[cfg(test)]
mod tests;

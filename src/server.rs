//! The pod-facing port: which connections are admitted, and with which identity.
//!
//! A connection must have been redirected: its original destination, which the kernel's NAT keeps, is the metadata address, or the
//! kernel's programs recorded that its client connected to that address ([`redirected`]). A connection that came straight to the port
//! is closed before a byte of it is read. The only exception is a probe: a connection from the node's own address may request
//! `/healthz`, which fails until the daemon was ready once.
//!
//! Pods connect to the addresses of Pod Identity directly. There, the token of each request says which pod sent it, and the source address
//! of the connection must be that of this pod. At the address of the relative URI, the source address alone says which pod it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use crate::cgroup::RedirectedSocket;
use crate::config::LimitsConfig;
use crate::connections::ACCEPT_PAUSE;
use crate::connections::{
    Admitted, ConnectionLimits, ConnectionPermit, ConnectionRecord, ConnectionSettings, Limit, Port, Rates, Source, Timeouts,
};
use crate::credentials::AssumeRole;
use crate::drain::Drain;
use crate::handover::AcceptQueue;
use crate::log_once::Condition;
use crate::metrics::Metrics;
use crate::proxy::route::Hosts;
use crate::proxy::{Origin, Proxy};
use crate::readiness::StartupHealth;
use crate::self_test::{ProbeArrival, Probes};

mod connection;
mod host_clients;
mod host_network;
mod redirected;
mod resolve;

pub(crate) use host_clients::HostClients;
pub(crate) use redirected::Redirected;
use redirected::is_metadata;

/// The largest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The most headers of a request.
const MAX_HEADERS: usize = 64;
/// The most connections of the node itself, which probes the port.
const MAX_OF_NODE: usize = 64;
/// While stopping, the backlog counts as empty after this time without a connection.
const LAST_ACCEPT: Duration = Duration::from_millis(20);
/// The longest time that emptying the backlog may take while stopping.
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
    health: Option<StartupHealth>,
    redirected: Option<Redirected>,
    host_clients: Option<HostClients>,
}

/// Whether connections can be accepted. Changes are logged once, because the state may last.
#[derive(Debug)]
struct Accepting {
    fails: Condition,
    metrics: Metrics,
}

impl Accepting {
    fn new(metrics: Metrics) -> Self {
        Self { fails: Condition::default(), metrics }
    }

    /// Records that accepting failed. Returns whether it worked before.
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

    /// Records that accepting worked. Returns whether it failed before.
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
    /// The source that limits count it for.
    source: Source,
    /// Whether the kernel has yet to be asked whose address it is.
    is_unchecked: bool,
    /// The kernel's record of its client, whose control group has yet to be found.
    unresolved: Option<RedirectedSocket>,
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The metadata service.
    Metadata,
    /// Credentials by service account tokens.
    PodIdentity,
    /// Credentials without a token, for pods with a network of their own (`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`).
    RelativeUri,
}

/// What a connection may be used for, by its origin.
#[derive(Debug)]
enum Admission {
    /// Requests of a pod.
    Pod(Origin),
    /// Requests with service account tokens, at this address.
    PodIdentity(Origin, SocketAddr),
    /// Requests for credentials without a token, at this address.
    RelativeUri(Origin, SocketAddr),
    /// A probe of the node itself.
    Probe,
    /// Nothing: it is closed.
    Refused,
}

impl Admission {
    /// Returns the origin of pods' requests.
    fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Pod(origin) | Self::PodIdentity(origin, _) | Self::RelativeUri(origin, _) => Some(origin),
            Self::Probe | Self::Refused => None,
        }
    }

    fn origin_mut(&mut self) -> Option<&mut Origin> {
        match self {
            Self::Pod(origin) | Self::PodIdentity(origin, _) | Self::RelativeUri(origin, _) => Some(origin),
            Self::Probe | Self::Refused => None,
        }
    }
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
            health: None,
            redirected: None,
            host_clients: None,
        }
    }

    /// Identifies the clients of connections that the kernel's programs redirected.
    #[must_use]
    pub(crate) fn with_redirected(self, redirected: Option<Redirected>) -> Self {
        Self { redirected, ..self }
    }

    /// Reports the arrivals of self-tests to these probes.
    #[must_use]
    pub(crate) fn with_probes(self, probes: Probes) -> Self {
        Self { probes, ..self }
    }

    /// Answers probes by this: without it, the process is well as soon as it accepts.
    #[must_use]
    pub(crate) fn with_health(self, health: StartupHealth) -> Self {
        Self { health: Some(health), ..self }
    }

    /// Accepts connections until the drain begins. Connections that are open then end with the drain.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, service: Service, queue: &AcceptQueue) {
        loop {
            tokio::select! {
                accepted = listener.accept() => self.accepted(accepted, service).await,
                () = self.drain.begun() => break,
            }
        }
        // Another daemon accepts from the same queue, and takes what is in it.
        if queue.is_shared() {
            return;
        }
        // Connections that the kernel has already accepted would be reset when the listener closes.
        let backlog = async {
            while let Ok(accepted) = tokio::time::timeout(LAST_ACCEPT, listener.accept()).await {
                self.accepted(accepted, service).await;
            }
        };
        // A client that connects again and again must not delay the end.
        let _ = tokio::time::timeout(LAST_ACCEPTS, backlog).await;
    }

    async fn accepted(self: &Arc<Self>, accepted: std::io::Result<(TcpStream, SocketAddr)>, service: Service) {
        match accepted {
            Ok((stream, peer)) => {
                self.accepting.worked();
                match service {
                    Service::Metadata => self.take(stream, peer),
                    Service::PodIdentity => self.take_at_own_address(stream, peer, Admission::PodIdentity),
                    Service::RelativeUri => self.take_at_own_address(stream, peer, Admission::RelativeUri),
                }
            }
            Err(error) => {
                self.accepting.failed(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let from = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Ok(record) = self.redirected.as_ref().map_or(Ok(None), |redirected| redirected.record_of(&stream, from)) else {
            return self.metrics.connection_refused("record-unreadable");
        };
        let is_redirected = record.is_some() || original_destination(&stream).is_some_and(is_metadata);
        if Probes::is_source(from.ip()) {
            let arrival = match is_redirected {
                true if record.is_some() => ProbeArrival::Recorded,
                true => ProbeArrival::ByRules,
                false => ProbeArrival::Direct,
            };
            self.probes.arrived(from, arrival);
            if is_redirected {
                // A self-test only needs to arrive: it is reported, and then closed.
                return drop(stream);
            }
        }
        let mut admission = self.admit(&stream, peer, is_redirected);
        if matches!(admission, Admission::Refused) {
            self.metrics.connection_refused("not-redirected");
            debug!(source = %peer, "closed a connection that was not redirected from the metadata address");
            return;
        }
        // Changes on which the handshake depended, such as a forged neighbour, were announced before.
        self.proxy.pods().catch_up();
        if let (Some(record), Some(redirected)) = (record, &self.redirected) {
            return match redirected.known(record) {
                Some(process) => {
                    if let Admission::Pod(origin) = &mut admission {
                        origin.process = Some(process);
                    }
                    self.admit_arrival(self.arrival(stream, admission, from.ip()));
                }
                None if record.is_in_host_network => self.resolve_first(stream, admission, from.ip(), record),
                // Limits count its address, and its control group is found once it is open.
                None => {
                    let arrival = self.arrival(stream, admission, from.ip());
                    self.admit_arrival(Arrival { unresolved: Some(record), ..arrival });
                }
            };
        }
        self.admit_by_address(self.arrival(stream, admission, from.ip()));
    }

    /// Takes a connection to an address of the daemon's own, to which clients connect without packet rules.
    fn take_at_own_address(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, admission: fn(Origin, SocketAddr) -> Admission) {
        let (Ok(local), ip) = (stream.local_addr(), peer.ip().to_canonical()) else {
            return self.metrics.connection_refused("accept-failed");
        };
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        self.proxy.pods().catch_up();
        let mut origin = Origin::new(ip, Hosts::default());
        // Only a socket in the node's network can connect from the address that it connects to, or from a loopback address. With direct
        // connections, loopback addresses are taken for pods'.
        origin.is_of_node = ip == local.ip() || (ip.is_loopback() && !self.accept_direct);
        if origin.is_of_node {
            return self.take_host_client(stream, admission(origin, local), SocketAddr::new(ip, peer.port()), local);
        }
        self.admit_by_address(self.arrival(stream, admission(origin, local), ip));
    }

    /// Admits a connection whose source is known by its address. If that is unknown, the kernel may have to be asked what to count it by.
    fn admit_by_address(self: &Arc<Self>, mut arrival: Arrival) {
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
        self.admit_arrival(arrival);
    }

    fn admit_arrival(self: &Arc<Self>, arrival: Arrival) {
        let server = self.clone();
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

    /// Finds the source that limits count a connection for. This never asks the kernel, because all other connections would wait for
    /// its answer.
    fn arrival(&self, stream: TcpStream, mut admission: Admission, ip: IpAddr) -> Arrival {
        let pods = self.proxy.pods();
        let Some(origin) = admission.origin_mut() else {
            return Arrival { stream, admission, source: Source::Node, is_unchecked: false, unresolved: None };
        };
        if let Some(source) = redirected::source(origin, pods) {
            return Arrival { stream, admission, source, is_unchecked: false, unresolved: None };
        }
        let found = pods.at_once(ip);
        let is_unchecked = found.is_err();
        let source = Source::at_once(ip, found);
        if matches!(source, Source::Unknown(..)) {
            origin.candidates = pods.candidates(ip);
        }
        Arrival { stream, admission, source, is_unchecked, unresolved: None }
    }

    /// Asks the kernel whose address a connection has. This may wait, so the connection's own task does it.
    fn check(&self, admission: &Admission, permit: &ConnectionPermit) {
        let Some(origin) = admission.origin() else { return };
        self.proxy.pods().catch_up();
        permit.settle(&self.source(origin.ip));
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
        let Arrival { stream, mut admission, source, is_unchecked, unresolved } = arrival;
        let _open = self.metrics.connection();
        if let Some(record) = unresolved
            && !self.resolve(&mut admission, record).await
        {
            return;
        }
        if is_unchecked {
            self.check(&admission, &permit);
        }
        self.connection(stream, admission, &source, &permit).await;
    }

    /// What is pending of the daemon's start.
    fn starting(&self) -> Vec<&'static str> {
        self.health.as_ref().map(StartupHealth::pending).unwrap_or_default()
    }

    /// Counts the connection for its pod, if the pod has become known since.
    fn settle(&self, admission: &Admission, permit: &ConnectionPermit) {
        // A pod in the node's network that asks for metadata is counted by its UID from the beginning.
        if let Some(origin) = admission.origin()
            && permit.is_unknown()
        {
            match (origin.is_of_node, origin.pod()) {
                (true, Some(pod)) => permit.settle(&Source::in_host_network(pod.0.clone(), self.proxy.pods().by_uid(&pod.0))),
                (true, None) => {}
                (false, _) => permit.settle(&self.source(origin.ip)),
            }
        }
    }

    /// Decides what a connection may be used for, by what the kernel knows of it.
    fn admit(&self, stream: &TcpStream, peer: SocketAddr, is_redirected: bool) -> Admission {
        let (Ok(local), ip) = (stream.local_addr(), peer.ip().to_canonical()) else {
            return Admission::Refused;
        };
        if is_redirected {
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
}

/// The only answers to a connection that was not redirected: kube2iam's liveness probe asks for this on the app port.
fn probe(request: &http::request::Parts, starting: &[&str]) -> Response<Full<Bytes>> {
    let is_health = matches!(request.method, Method::GET | Method::HEAD) && request.uri.path() == "/healthz";
    let (status, body) = match starting {
        _ if !is_health => (StatusCode::NOT_FOUND, Bytes::new()),
        [] => (StatusCode::OK, Bytes::from_static(b"ok\n")),
        pending => (StatusCode::SERVICE_UNAVAILABLE, format!("starting; waiting for: {}\n", pending.join(", ")).into()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Returns the destination of a connection before NAT, or `None` if NAT did not rewrite it (`SO_ORIGINAL_DST`,
/// `IP6T_SO_ORIGINAL_DST`). For IPv4, the kernel keeps it under a socket of IPv6 as well.
fn original_destination(stream: &impl AsFd) -> Option<SocketAddr> {
    if let Ok(v4) = getsockopt(stream, sockopt::OriginalDst) {
        let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
        return Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)));
    }
    let v6 = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
    Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)), u16::from_be(v6.sin6_port)))
}

#[cfg(test)]
mod tests;

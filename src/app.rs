//! The composition root: what there is, and who gets it. Binds first, so that a port in use is known before anything else
//! and the real ports can be told; then serves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::admin::Admin;
use crate::config::{self, BaseRole, Config, DefaultRole, PatternFormat, Restrictions, ServiceAccountRoles};
use crate::credentials::Clock;
use crate::credentials::cache::{self, Sessions};
use crate::credentials::gate::Limits;
use crate::credentials::refresh::Refresh;
use crate::credentials::sts::{Aws, AwsError, Sts};
use crate::drain::Drain;
use crate::events::Reporter;
use crate::events::writer::Writer;
use crate::explain::By;
use crate::explain::explainer::{Explainer, OfDaemon, Pace};
use crate::metrics::Metrics;
use crate::pods::watch::{Watch, client};
use crate::pods::{self, Needs, NodeAddresses, Pods};
use crate::policy::node::NodeIdentity;
use crate::policy::patterns::Patterns;
use crate::policy::session::SessionRules;
use crate::policy::{Policy, Rules};
use crate::proxy::metadata::{Access, Metadata};
use crate::proxy::token::{KeyFile, Tokens};
use crate::proxy::{Proxy, Settings};
use crate::readiness::Readiness;
use crate::redirect;
use crate::role::{BaseArn, RoleArn, SessionName};
use crate::server::Server;
use crate::tasks::Tasks;

pub mod explain;
mod node;
mod rule;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;
/// Pause between questions that a late API leaves open.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long a failing start waits for the rule.
const LAST_RULE: Duration = Duration::from_secs(30);

/// The daemon, its ports bound.
#[derive(Debug)]
pub struct App {
    /// Where pods are served.
    pub metadata_address: SocketAddr,
    /// Where operators are served.
    pub metrics_address: SocketAddr,
    metadata: TcpListener,
    admin: TcpListener,
    config: Config,
}

impl App {
    /// Takes the two ports.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let metadata = listen(config.server.address, config.server.port, "--app-port", true)?;
        let admin = listen(config.admin.address, config.admin.port, "--metrics-port", false)?;
        Ok(Self { metadata_address: metadata.local_addr()?, metrics_address: admin.local_addr()?, metadata, admin, config })
    }

    /// Serves until `stop`, then finishes what is under way.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { metadata_address, metrics_address, metadata, admin, config } = self;
        let version = env!("CARGO_PKG_VERSION");
        info!(version, node = %config.pods.node, %metadata_address, %metrics_address, "rolegate starts");
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let (metrics, readiness, drain) = (Metrics::new(), Readiness::default(), Drain::default());
        let running = readiness.step("the daemon's start");
        let identity = readiness.step("the daemon's own AWS identity");
        let mut tasks = Tasks::default();

        // The first list, the rule and the identity of AWS are steps of their own: each may be late.
        let kube = client::connect(&config.pods.api).await?;
        let needs = Needs {
            namespaces: config.roles.restrictions != Restrictions::Off,
            service_accounts: config.roles.service_accounts != ServiceAccountRoles::Off,
        };
        let (writer, pods) = pods::pods();
        let watch = Watch {
            client: kube.clone(),
            node: config.pods.node.clone(),
            node_addresses: Box::new(node_addresses(config.server.accept_direct)),
            now: Box::new(|| Clock::system().now()),
            annotations: config.pods.annotations.clone(),
            writer,
            pods: pods.clone(),
            needs,
            metrics: metrics.clone(),
        };
        tasks.spawn("pod watch", watch.run(readiness.step("the list of this node's pods")));
        let events = if config.pods.events {
            let (events, records) = Reporter::new(metrics.clone());
            let (api, node, pods) = (kube.clone(), config.pods.node.clone(), pods.clone());
            tasks.spawn("events", Writer { api, node, pods, records, clock: Clock::system(), metrics: metrics.clone() }.run());
            events
        } else {
            Reporter::off(metrics.clone())
        };
        let debug = config.admin.debug.then(|| pods.clone());
        let explainer = Arc::<OnceLock<_>>::default();
        let of_admin = Admin { metrics: metrics.clone(), readiness: readiness.clone(), debug, explainer: explainer.clone() };
        tasks.spawn("metrics port", of_admin.serve(admin));

        // At once: until the rule is there, pods reach the real service. What it brings waits for the acceptor.
        let rule = readiness.step("the packet rule");
        let rule = rule::place(&config.redirect, metadata_address, kube, &config.pods.node, rule);
        let mut rule = std::pin::pin!(rule.fuse());
        let mut stop = std::pin::pin!(stop);
        let mut prepared = std::pin::pin!(prepare(&config, pods, events, &metrics, &readiness, &drain, &explainer));
        let prepared = loop {
            tokio::select! {
                placed = &mut rule, if !rule.is_terminated() => placed?,
                prepared = &mut prepared => break prepared,
                ended = tasks.first_ended() => return Err(ended.into()),
                () = &mut stop => return Ok(()),
            }
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                // A daemon that cannot start, and is started again and again, must not leave the node open.
                if !rule.is_terminated() {
                    let _ = tokio::time::timeout(LAST_RULE, rule).await;
                }
                return Err(error);
            }
        };
        tasks.spawn("sessions", prepared.refresh.run());
        tasks.spawn("own identity", node::follow_identity(prepared.sts, identity, readiness.clone()));
        if !config.metadata.disabled {
            tasks.spawn("instance role", node::follow_instance_role(prepared.aws, prepared.node));
        }
        tasks.spawn("metadata", prepared.metadata.keep(config.metadata.address.clone(), metrics.clone()));
        if let Some(file) = prepared.key_file {
            tasks.spawn("keys of session tokens", prepared.tokens.keep(file));
        }
        let mut acceptor = tokio::spawn(prepared.server.serve(metadata));
        running.done();
        let ended = loop {
            tokio::select! {
                placed = &mut rule, if !rule.is_terminated() => if let Err(error) = placed { break Err(error) },
                ended = tasks.first_ended() => break Err(ended.into()),
                acceptor = &mut acceptor => break Err(anyhow::anyhow!("the acceptor ended: {acceptor:?}")),
                () = &mut stop => break Ok(()),
            }
        };
        // Not ready any more, whatever was before.
        let _stopping = readiness.step("the end of the daemon");
        drain.begin();
        if ended.is_ok() {
            acceptor.await.context("the acceptor ended")?;
            drain.finish().await;
        }
        ended
    }
}

/// What serves pods, and what it asks.
struct Prepared {
    server: Arc<Server<Sts>>,
    refresh: Refresh<Sts>,
    sts: Sts,
    tokens: Tokens,
    key_file: Option<KeyFile>,
    metadata: Metadata,
    aws: Aws,
    node: NodeIdentity,
}

/// Makes the way of a request, once AWS has told what it takes.
async fn prepare(
    config: &Config,
    pods: Pods,
    events: Reporter,
    metrics: &Metrics,
    readiness: &Readiness,
    drain: &Drain,
    explainer: &OnceLock<Explainer<Sts>>,
) -> anyhow::Result<Prepared> {
    let clock = Clock::system();
    let aws = load_aws(config).await?;
    let node = NodeIdentity::default();
    let sts = aws.sts(clock.clone(), node.clone(), metrics.clone());
    let policy = Policy::new(rules(Some(&aws), config, &node).await?, node.clone()).context("--allowed-roles")?;
    if !policy.allows_default_role() {
        bail!("--default-role is not among --allowed-roles: every pod without a role would be refused; add it, or leave it out");
    }
    info!(region = aws.region(), "STS of this region is used");
    let policy = Arc::new(policy);
    let of_sts = &config.sessions;
    let limits = Limits { rate: of_sts.rate, concurrency: of_sts.concurrency };
    let of_cache = cache::Settings { error_ttl: of_sts.error_ttl, timeout: of_sts.timeout, limits };
    let sessions = Sessions::new(sts.clone(), of_cache, clock.clone(), metrics.clone());
    let refresh = Refresh {
        pods: pods.clone(),
        policy: policy.clone(),
        sessions: sessions.clone(),
        prefetch: of_sts.prefetch,
        spread: of_sts.prefetch_spread,
    };
    // It is given once: this runs once.
    let _ = explainer.set(Explainer {
        node: config.pods.node.clone(),
        by: By::Daemon,
        policy: policy.clone(),
        pods: pods.clone(),
        sts: sts.asked_once(),
        metrics: metrics.clone(),
        pace: Pace::default(),
        daemon: Some(OfDaemon { readiness: readiness.clone(), sessions: sessions.clone() }),
    });
    let node_info =
        Patterns::new(PatternFormat::Glob, None, config.metadata.node_info_namespaces.clone()).context("--node-info-namespaces")?;
    let access = Access::new(config.metadata.profile, node_info);
    let settings = Settings { policy, tokens: config.server.tokens, pod_wait: config.pods.wait, access };
    let tokens = Tokens::new(clock.clone())?;
    let key_file = config.server.token_key_file.clone().map(KeyFile::new);
    if let Some(file) = &key_file
        && let Err(error) = tokens.sync(file)
    {
        warn!("session tokens end with this process, until this is mended: {error}");
    }
    let proxy = Proxy::new(settings, pods, sessions, tokens.clone(), clock, metrics.clone(), events);
    let metadata = proxy.values();
    if config.server.accept_direct {
        warn!("--accept-direct-connections is on: whoever reaches the app port from a pod's address is served; not for a node");
    }
    let server = Arc::new(Server::new(proxy, config.server.accept_direct, config.server.limits, metrics.clone(), drain.clone()));
    Ok(Prepared { server, refresh, sts, aws, node, tokens, key_file, metadata })
}

async fn load_aws(config: &Config) -> Result<Aws, AwsError> {
    let session = SessionName::derived_from(&format!("rolegate-{}", config.pods.node));
    let between = config.sessions.between.as_ref().map(|role| (role, &session));
    if let Some((role, _)) = between {
        info!(%role, "pods' roles are assumed by this one");
    }
    Aws::load(&config.metadata.address, config.sessions.timeout, between).await
}

/// What no pod has for its own. Where whoever connects is served, loopback addresses are taken for pods'.
fn node_addresses(accept_direct: bool) -> impl Fn() -> NodeAddresses {
    move || {
        let ips = redirect::interface_addresses().into_iter().filter(|ip| !ip.is_loopback()).collect();
        NodeAddresses { ips, loopback: !accept_direct }
    }
}

/// A listening socket. Without an address, all of them: IPv6 and IPv4 in one where the node has IPv6. A port that is `shared`
/// may be that of another daemon, too, while one takes over from the other (SO_REUSEPORT: of the same user alone).
fn listen(address: Option<IpAddr>, port: u16, flag: &str, shared: bool) -> anyhow::Result<TcpListener> {
    let wanted = config::listen_address(address, port);
    let socket = match Socket::new(Domain::for_address(wanted), Type::STREAM, None) {
        Ok(socket) => socket,
        // A kernel without IPv6.
        Err(_) if address.is_none() => return listen(Some(Ipv4Addr::UNSPECIFIED.into()), port, flag, shared),
        Err(error) => return Err(error).context("cannot make a socket"),
    };
    if address.is_none() && socket.set_only_v6(false).is_err() {
        return listen(Some(Ipv4Addr::UNSPECIFIED.into()), port, flag, shared);
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    let bound = socket.bind(&wanted.into()).and_then(|()| socket.listen(BACKLOG));
    bound.with_context(|| match address {
        Some(address) => format!("cannot listen on {address} port {port}; choose another {flag} or stop what uses it"),
        None => format!("cannot listen on port {port}; choose another {flag} or stop what uses it"),
    })?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// What pods may have. Without AWS, nothing may be discovered: see [`needs_aws`].
async fn rules(aws: Option<&Aws>, config: &Config, node: &NodeIdentity) -> anyhow::Result<Rules> {
    let (roles, sessions) = (&config.roles, &config.sessions);
    let aws = || aws.context("the metadata service is needed for what is to be discovered");
    let (base, mut instance_role) = match &roles.base {
        BaseRole::None => (None, None),
        BaseRole::Given(base) => (Some(base.clone()), None),
        BaseRole::Discover => {
            let base = aws()?.discover_base().await?;
            let role = aws()?.discover_node_role(&base, "--base-role-arn").await?;
            (Some(base), Some(role))
        }
    };
    node.set_instance_role(instance_role.clone());
    if let Some(base) = &base {
        info!(base = base.as_str(), "short role names are completed");
    }
    let default_role = match &roles.default {
        DefaultRole::None => None,
        DefaultRole::Given(role) => Some(complete(role, base.as_ref())?),
        DefaultRole::NodeRole => {
            if instance_role.is_none() {
                instance_role = Some(aws()?.discover_node_role(&aws()?.discover_base().await?, "--default-role").await?);
                node.set_instance_role(instance_role.clone());
            }
            instance_role.clone()
        }
    };
    if let (DefaultRole::NodeRole, Some(role)) = (&roles.default, &default_role) {
        warn!(%role, "--auto-discover-default-role: every pod without a role gets the node's own");
    }
    Ok(Rules {
        base,
        default_role,
        service_accounts: roles.service_accounts,
        allowed_roles: roles.allowed.clone(),
        allow_node_role: roles.allow_node_role,
        restrictions: roles.restrictions,
        patterns: roles.patterns,
        sessions: SessionRules {
            cluster: sessions.cluster.clone().unwrap_or_default(),
            node: config.pods.node.clone(),
            name: sessions.name.clone(),
            pod_may_name: sessions.pod_may_name,
            scope: sessions.scope,
            tags: sessions.tags.clone(),
        },
        session_duration: sessions.duration,
    })
}

/// Whether the settings leave something to the metadata service.
fn needs_aws(config: &Config) -> bool {
    config.roles.base == BaseRole::Discover || config.roles.default == DefaultRole::NodeRole
}

fn complete(role: &str, base: Option<&BaseArn>) -> anyhow::Result<RoleArn> {
    let completed = match base {
        _ if role.starts_with("arn:") => role.parse(),
        Some(base) => base.complete(role),
        None => bail!("--default-role is a short name, and there is no base ARN"),
    };
    completed.context("--default-role")
}

//! The composition root: what there is, and who gets it. Binds first, so that a port in use is known before anything else
//! and the real ports can be told; then serves.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

use crate::admin::Admin;
use crate::config::{BaseRole, Config, DefaultRole, PatternFormat, RedirectBackend, Restrictions, ServiceAccountRoles, listen_address};
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
use crate::handover::{self, Queue};
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
use crate::readiness::{Readiness, Step};
use crate::redirect::chosen::{Chosen, System};
use crate::redirect::interface_addresses;
use crate::redirect::keep::Keeper;
use crate::redirect::probe::{Ability, Probes, STEP, SelfTest};
use crate::role::{BaseArn, RoleArn, SessionName};
use crate::server::Server;
use crate::startup_taint::StartupTaint;
use crate::tasks::Tasks;
use crate::unix_socket;

use self::rule::PacketRules;

mod door;
pub mod explain;
mod node;
pub mod redirect;
mod rule;

use door::Door;

/// The step of the start after which this node's pods are known.
const PODS_KNOWN: &str = "the list of this node's pods";
/// How soon it is looked again whether AWS has told who the daemon is.
const IDENTITY_AGAIN: Duration = Duration::from_millis(50);
/// Pause between questions that a late API leaves open.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// A step of the start: everything that serves pods is made.
const START: &str = "the daemon's start";
/// A step of the start: the packet rules are in place.
const RULES: &str = "the packet rules";

/// The daemon, its ports bound.
#[derive(Debug)]
pub struct App {
    /// Where pods are served.
    pub metadata_address: SocketAddr,
    /// Where operators are served.
    pub metrics_address: SocketAddr,
    metadata: Door,
    /// Without it, another daemon has the port as yet.
    admin: Option<TcpListener>,
    probe_socket: Option<UnixListener>,
    config: Config,
    rules: Option<PacketRules>,
    metrics: Metrics,
    readiness: Readiness,
    self_test: Ability,
}

impl App {
    /// Puts the guard of the packet rules in place, and takes the two ports and the socket for probes: a daemon that cannot
    /// start, and is started again and again, must not leave the node open.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let (metrics, readiness) = (Metrics::new(), Readiness::default());
        let mut rules = PacketRules::guard(&config.redirect, config.server.accept_direct, &metrics, &readiness).await?;
        let metadata = guarded(&mut rules, Door::find(&config.server)).await?;
        let admin = match door::listen_for_operators(config.admin.address, config.admin.port) {
            // The daemon before has it until it ends.
            Err(error) if config.server.handover_socket.is_some() && door::is_in_use(&error) => None,
            bound => Some(bound?),
        };
        let probe_socket = config.admin.probe_socket.as_deref().map(unix_socket::place).transpose().context("--probe-socket")?;
        let probe_socket = probe_socket.map(|(listener, _)| listener);
        let metrics_address = match &admin {
            Some(admin) => admin.local_addr()?,
            None => listen_address(config.admin.address, config.admin.port),
        };
        let (metadata_address, self_test) = (metadata.address()?, Ability::Off);
        Ok(Self { metadata_address, metrics_address, metadata, admin, probe_socket, config, rules, metrics, readiness, self_test })
    }

    /// With the self-test, whose helper has to be started before there are threads.
    #[must_use]
    pub fn with_self_test(self, self_test: Ability) -> Self {
        Self { self_test, ..self }
    }

    /// Serves until `stop`, then finishes what is under way.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let leaving = self.rules.as_ref().filter(|_| self.config.redirect.remove_on_exit).map(PacketRules::leaving);
        let mut tasks = Tasks::default();
        self.serve_with(&mut tasks, stop).await?;
        if let Some(leaving) = leaving {
            // What keeps the rules would take their end for somebody's change.
            tasks.end().await;
            leaving.remove().await;
        }
        Ok(())
    }

    async fn serve_with(self, tasks: &mut Tasks, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self {
            metadata_address,
            metrics_address,
            metadata: mut door,
            admin,
            probe_socket,
            config,
            mut rules,
            metrics,
            readiness,
            self_test,
        } = self;
        let version = env!("CARGO_PKG_VERSION");
        info!(version, node = %config.pods.node, %metadata_address, %metrics_address, "rolegate starts");
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let drain = Drain::default();
        let running = readiness.step(START);
        let identity = readiness.step("the daemon's own AWS identity");
        // Ready only when it has passed, where it can be done.
        let self_test_step = matches!(self_test, Ability::Able(_)).then(|| readiness.step(STEP));
        let probes = Probes::default();

        // The first list, the rule and the identity of AWS are steps of their own: each may be late.
        let kube = guarded(&mut rules, client::connect(&config.pods.api)).await?;
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
        tasks.spawn("pod watch", watch.run(readiness.step(PODS_KNOWN)));
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
        let of_admin = Arc::new(of_admin);
        if let Some(listener) = probe_socket {
            tasks.spawn("probe socket", of_admin.clone().serve_probes(listener));
        }
        let (address, port) = (config.admin.address, config.admin.port);
        tasks.spawn("metrics port", async move {
            let listener = match admin {
                Some(listener) => listener,
                None => door::wait_for_operators(address, port).await,
            };
            of_admin.serve(listener).await;
        });

        let taint_api = kube.clone();
        // At once: until then pods are refused. What the rules bring waits for the acceptor.
        let placed = readiness.step(RULES);
        let place = async {
            match rules {
                Some(rules) => rules.place(&config.redirect, metadata_address, kube, &config.pods.node, &probes, placed).await.map(Some),
                None => {
                    placed.done();
                    Ok(None)
                }
            }
        };
        let mut place = std::pin::pin!(place.fuse());
        let mut stop = std::pin::pin!(stop);
        let mut prepared = std::pin::pin!(prepare(&config, pods.clone(), events, &metrics, &readiness, &drain, &explainer));
        let prepared = loop {
            tokio::select! {
                placed = &mut place, if !place.is_terminated() => keep(tasks, placed?),
                prepared = &mut prepared => break prepared?,
                // Whoever listened there is gone before this daemon can serve: connections wait here from now on.
                listening = door.listen_when_alone() => listening?,
                ended = tasks.first_ended() => return Err(ended.into()),
                () = &mut stop => return Ok(()),
            }
        };
        tasks.spawn("sessions", prepared.refresh.run());
        tasks.spawn("own identity", node::follow_identity(prepared.sts, identity, readiness.clone()));
        if !config.metadata.disabled {
            tasks.spawn("instance role", node::follow_instance_role(prepared.aws, prepared.node.clone()));
        }
        tasks.spawn("metadata", prepared.metadata.keep(config.metadata.address.clone(), metrics.clone()));
        if let Some(key) = config.pods.startup_taint.clone() {
            let (api, node, identity) = (taint_api, config.pods.node.clone(), prepared.node.clone());
            let taint = StartupTaint { api, node, key, readiness: readiness.clone(), metrics: metrics.clone() };
            tasks.spawn("start-up taint", async move {
                identified(&identity).await;
                taint.run().await;
            });
        }
        if let Some(file) = prepared.key_file {
            tasks.spawn("keys of session tokens", prepared.tokens.keep(file));
        }
        let self_test = SelfTest {
            ability: self_test,
            config: config.self_test,
            interfaces: config.redirect.interfaces.clone(),
            has_rules: config.redirect.backend != RedirectBackend::None,
            pods,
            probes: probes.clone(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
        };
        tasks.spawn("self-test", self_test.run(self_test_step, &[START, RULES]));
        let server = Arc::new(prepared.server.with_probes(probes.clone()));
        let entrance = Entrance { door, server, node: prepared.node, readiness: readiness.clone(), drain: drain.clone() };
        let mut acceptor = tokio::spawn(entrance.serve(config.server.handover_socket.clone(), running));
        let ended = loop {
            tokio::select! {
                placed = &mut place, if !place.is_terminated() => match placed {
                    Ok(keeper) => keep(tasks, keeper),
                    Err(error) => break Err(error),
                },
                ended = tasks.first_ended() => break Err(ended.into()),
                acceptor = &mut acceptor => break Err(match acceptor {
                    Ok(Err(error)) => error,
                    ended => anyhow::anyhow!("the acceptor ended: {ended:?}"),
                }),
                () = &mut stop => break Ok(()),
            }
        };
        // Not ready any more, whatever was before.
        let _stopping = readiness.step("the end of the daemon");
        drain.begin();
        if ended.is_ok() {
            acceptor.await.context("the acceptor ended")??;
            drain.finish().await;
        }
        ended
    }
}

/// Does this, and keeps the guard meanwhile.
async fn guarded<T>(rules: &mut Option<PacketRules>, work: impl Future<Output = T>) -> T {
    match rules {
        Some(rules) => rules.keep_during(work).await,
        None => work.await,
    }
}

/// The packet rules are kept true from now on.
fn keep(tasks: &mut Tasks, keeper: Option<Keeper<Arc<Chosen>, System>>) {
    if let Some(mut keeper) = keeper {
        tasks.spawn("packet rules", async move { keeper.keep().await });
    }
}

/// The pod-facing port, until the drain begins.
struct Entrance {
    door: Door,
    server: Arc<Server<Sts>>,
    node: NodeIdentity,
    readiness: Readiness,
    drain: Drain,
}

impl Entrance {
    /// Accepts when it is time to, and offers the socket to the next daemon meanwhile.
    async fn serve(self, handover_socket: Option<PathBuf>, running: Step) -> anyhow::Result<()> {
        let Self { door, server, node, readiness, drain } = self;
        let able = async {
            readiness.done(&[PODS_KNOWN]).await;
            // The other daemon may know it.
            identified(&node).await;
        };
        let (listener, giver) = tokio::select! {
            opened = door.open(able) => opened?,
            () = drain.begun() => return Ok(()),
        };
        running.done();
        let queue = Queue::default();
        let socket = listener.as_fd().try_clone_to_owned()?;
        let offer = async {
            let offer = async {
                match handover_socket {
                    Some(path) => handover::offer(path, socket, queue.clone(), giver).await,
                    None => std::future::pending().await,
                }
            };
            // From then on the others know that nothing is accepted here, and a newcomer is given nothing.
            tokio::select! {
                () = offer => {}
                () = drain.begun() => {}
            }
        };
        tokio::join!(server.serve(listener, &queue), offer);
        Ok(())
    }
}

/// Returns when AWS has told who the daemon is: without that every pod is refused.
async fn identified(node: &NodeIdentity) {
    while !node.known().has_all_callers() {
        tokio::time::sleep(IDENTITY_AGAIN).await;
    }
}

/// What serves pods, and what it asks.
struct Prepared {
    server: Server<Sts>,
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
    let server = Server::new(proxy, config.server.accept_direct, config.server.limits, metrics.clone(), drain.clone());
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
        let ips = interface_addresses().into_iter().filter(|ip| !ip.is_loopback()).collect();
        NodeAddresses { ips, loopback: !accept_direct }
    }
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

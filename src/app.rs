//! The composition root: what there is, and who gets it. Binds first, so that a port in use is known before anything else
//! and the real ports can be told; then serves.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

use crate::admin::{Admin, Rendered};
use crate::config::{Config, RedirectBackend, Restrictions, ServiceAccountRoles, listen_address};
use crate::connections::ConnectionRecord;
use crate::credentials::Clock;
use crate::credentials::sts::Sts;
use crate::drain::Drain;
use crate::events::Reporter;
use crate::events::writer::Writer;
use crate::handover::{self, AcceptQueue};
use crate::links::Links;
use crate::links::boot;
use crate::links::cni::Results;
use crate::links::view::NodeView;
use crate::metrics::Metrics;
use crate::pods::watch::{PodWatch, client, second_witness};
use crate::pods::{self, Needs, NodeAddresses};
use crate::policy::node::NodeIdentity;
use crate::readiness::{Readiness, ReadinessStep};
use crate::redirect::backend::{SelectedBackend, System};
use crate::redirect::interface_addresses;
use crate::redirect::reconcile::Reconciler;
use crate::self_test::{Ability, Probes, STEP, SelfTest};
use crate::server::Server;
use crate::startup_taint::StartupTaint;
use crate::tasks::Tasks;
use crate::unix_socket;

use self::packet_rules::PacketRules;

pub mod explain_command;
pub mod failure;
mod listener;
mod node;
mod overflows;
mod packet_rules;
mod prepare;
pub mod redirect_command;

use listener::PodListener;
use prepare::{SharedWithAdmin, prepare};

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
    metadata: PodListener,
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
        let metadata = guarded(&mut rules, PodListener::find(&config.server)).await?;
        let admin = match listener::listen_for_operators(config.admin.address, config.admin.port) {
            // The daemon before has it until it ends.
            Err(error) if config.server.handover_socket.is_some() && listener::is_in_use(&error) => None,
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
            metadata: mut listener,
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
        let booted = boot::booted(Clock::system().now());
        let (links, results) = (open_links(), Results::none());
        let view = NodeView::new(links.clone(), results.clone(), booted);
        let (writer, pods) = pods::pods_with(Arc::new(view.clone()), booted);
        tasks.spawn("overflows of notifications", overflows::report(links.clone(), metrics.clone()));
        tasks.spawn("links of the node", async move { links.keep().await });
        tasks.spawn("view of the node", view.keep());
        if let Some(directory) = config.pods.cni_results.clone() {
            tasks.spawn("CNI results", results.keep(directory, metrics.clone()));
        }
        let watch = PodWatch {
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
        tasks
            .spawn("pins of pods' links", second_witness::keep_pins(pods.clone(), metrics.clone(), || boot::booted(Clock::system().now())));
        if let Some(max) = config.pods.max_staleness {
            tasks.spawn("staleness of the API", second_witness::bound_staleness(pods.clone(), metrics.clone(), readiness.clone(), max));
        }
        let events = if config.pods.events {
            let (events, records) = Reporter::new(metrics.clone());
            let (api, node, pods) = (kube.clone(), config.pods.node.clone(), pods.clone());
            tasks.spawn("events", Writer { api, node, pods, records, clock: Clock::system(), metrics: metrics.clone() }.run());
            events
        } else {
            Reporter::off(metrics.clone())
        };
        let (explainer, record) = (Arc::<OnceLock<_>>::default(), ConnectionRecord::default());
        metrics.pod_waits_refused_from({
            let pods = pods.clone();
            move || pods.waits_turned_away()
        });
        let of_admin = Arc::new(Admin {
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            pods: pods.clone(),
            debug: config.admin.debug,
            namespace_labels: config.admin.namespace_labels,
            record: record.clone(),
            explainer: explainer.clone(),
            rendered: Rendered::default(),
        });
        if let Some(listener) = probe_socket {
            tasks.spawn("probe socket", of_admin.clone().serve_probes(listener));
        }
        let (address, port) = (config.admin.address, config.admin.port);
        tasks.spawn("metrics port", async move {
            let listener = match admin {
                Some(listener) => listener,
                None => listener::wait_for_operators(address, port).await,
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
        let shared = SharedWithAdmin { explainer: &explainer, record };
        let mut prepared = std::pin::pin!(prepare(&config, pods.clone(), events, &metrics, &readiness, &drain, shared));
        let prepared = loop {
            tokio::select! {
                placed = &mut place, if !place.is_terminated() => reconcile(tasks, placed?),
                prepared = &mut prepared => break prepared?,
                // Whoever listened there is gone before this daemon can serve: connections wait here from now on.
                listening = listener.listen_when_alone() => listening?,
                ended = tasks.first_ended() => return Err(ended.into()),
                () = &mut stop => return Ok(()),
            }
        };
        tasks.spawn("sessions", prepared.refresh.run());
        tasks.spawn("own identity", node::follow_identity(prepared.sts, prepared.policy, identity, readiness.clone()));
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
        let entrance = Entrance { listener, server, node: prepared.node, readiness: readiness.clone(), drain: drain.clone() };
        let mut acceptor = tokio::spawn(entrance.serve(config.server.handover_socket.clone(), running));
        let ended = loop {
            tokio::select! {
                placed = &mut place, if !place.is_terminated() => match placed {
                    Ok(reconciler) => reconcile(tasks, reconciler),
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
        Some(rules) => rules.reconcile_during(work).await,
        None => work.await,
    }
}

/// The table of the node's links. Without it, pods are identified by the API alone.
fn open_links() -> Links {
    Links::open().unwrap_or_else(|error| {
        warn!(
            event = "links-unavailable", %error,
            "cannot read the network interfaces, routes and neighbours of this node; identifying pods without checking their links"
        );
        Links::none()
    })
}

/// The packet rules are kept true from now on.
fn reconcile(tasks: &mut Tasks, reconciler: Option<Reconciler<Arc<SelectedBackend>, System>>) {
    if let Some(mut reconciler) = reconciler {
        tasks.spawn("packet rules", async move { reconciler.reconcile().await });
    }
}

/// The pod-facing port, until the drain begins.
struct Entrance {
    listener: PodListener,
    server: Arc<Server<Sts>>,
    node: NodeIdentity,
    readiness: Readiness,
    drain: Drain,
}

impl Entrance {
    /// Accepts when it is time to, and offers the socket to the next daemon meanwhile.
    async fn serve(self, handover_socket: Option<PathBuf>, running: ReadinessStep) -> anyhow::Result<()> {
        let Self { listener, server, node, readiness, drain } = self;
        let able = async {
            readiness.done(&[PODS_KNOWN]).await;
            // The other daemon may know it.
            identified(&node).await;
        };
        let (listener, giver) = tokio::select! {
            opened = listener.open(able) => opened?,
            () = drain.begun() => return Ok(()),
        };
        running.done();
        let queue = AcceptQueue::default();
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

/// What no pod has for its own. Where whoever connects is served, loopback addresses are taken for pods'.
fn node_addresses(accept_direct: bool) -> impl Fn() -> NodeAddresses {
    move || {
        let ips = interface_addresses().into_iter().filter(|ip| !ip.is_loopback()).collect();
        NodeAddresses { ips, loopback: !accept_direct }
    }
}

//! The composition root: what there is, and who gets it. Binds first, so that a port in use is known before anything else
//! and the real ports can be told; then serves.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

use crate::cgroup::RedirectPrograms;
use crate::config::{Config, IdentityEndpoint, listen_address};
use crate::credentials::sts::Sts;
use crate::drain::Drain;
use crate::handover::{self, AcceptQueue};
use crate::kubernetes::client::{self, Client};
use crate::kubernetes::setup::is_of_service_account;
use crate::metrics::Metrics;
use crate::pods::HostNetworkRules;
use crate::pods::watch::manifest::ApiManifests;
use crate::policy::node::NodeIdentity;
use crate::readiness::{
    NODE_NAMED, OWN_IDENTITY, PACKET_RULES, PODS_KNOWN, Readiness, ReadinessStep, SELF_TEST_PASSED, SHUT_DOWN, START, StartupHealth,
};
use crate::redirect::interface_addresses;
use crate::report::recorder::Recorder;
use crate::self_test::{Ability, Probes};
use crate::server::{Server, Service};
use crate::tasks::{TaskEnded, Tasks};
use crate::unix_socket;

use self::packet_rules::{Keepers, PacketRules};

mod bpf_programs;
pub(crate) mod check_command;
pub(crate) mod explain_command;
pub(crate) mod failure;
pub(crate) mod iam_policy_command;
mod listener;
mod node;
mod overflows;
mod own_pod;
mod packet_rules;
mod pod_identity;
mod prepare;
pub(crate) mod redirect_command;
pub(crate) mod report_command;
mod settings;
mod start;

use listener::PodListener;
use own_pod::OwnPod;
use pod_identity::IdentityListener;
use prepare::{RequestSources, connection_of, prepare};
use start::Start;

/// The task that accepts pods' connections.
const ACCEPTOR: &str = "acceptor";

/// The daemon, its ports bound.
#[derive(Debug)]
pub(crate) struct App {
    /// Where pods are served.
    pub metadata_address: SocketAddr,
    /// Where operators are served.
    pub metrics_address: SocketAddr,
    metadata: PodListener,
    pod_identity: Vec<IdentityListener>,
    /// Without it, another daemon has the port as yet.
    admin: Option<TcpListener>,
    probe_socket: Option<UnixListener>,
    config: Config,
    rules: Option<PacketRules>,
    metrics: Metrics,
    readiness: Readiness,
    self_test: Ability,
    programs: Option<RedirectPrograms>,
}

impl App {
    /// Puts the guard of the packet rules in place, and takes the two ports and the socket for probes: a daemon that cannot
    /// start, and is started again and again, must not leave the node open.
    pub(crate) async fn bind(config: Config) -> anyhow::Result<Self> {
        let (metrics, readiness) = (Metrics::new(), Readiness::default());
        metrics.readiness_of(readiness.clone());
        if config.admin.role_label {
            metrics.show_roles();
        }
        let mut rules = PacketRules::guard(&config.redirect, config.server.accept_direct, &metrics, &readiness).await?;
        if let Some(rules) = &mut rules {
            rules.attach(&config.redirect, &metrics, &readiness).await?;
        }
        let metadata = guarded(&mut rules, PodListener::find(&config.server)).await?;
        let pod_identity =
            guarded(&mut rules, pod_identity::listen(config.pod_identity.as_ref(), config.server.handover_socket.as_deref())).await?;
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
        let programs = rules.as_ref().and_then(PacketRules::programs);
        Ok(Self {
            metadata_address,
            metrics_address,
            metadata,
            pod_identity,
            admin,
            probe_socket,
            config,
            rules,
            metrics,
            readiness,
            self_test,
            programs,
        })
    }

    /// With the self-test, whose helper has to be started before there are threads.
    #[must_use]
    pub(crate) fn with_self_test(self, self_test: Ability) -> Self {
        Self { self_test, ..self }
    }

    /// Serves until `stop`, then finishes what is under way.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let leaving = self.rules.as_ref().filter(|_| self.config.redirect.remove_on_exit).map(PacketRules::leaving);
        let mut tasks = Tasks::default();
        let served = self.serve_with(&mut tasks, stop).await;
        // Tasks end before the rules are removed: the self-test removes its control group, and the keeper of the rules would otherwise
        // repair them.
        tasks.end().await;
        served?;
        if let Some(leaving) = leaving {
            leaving.remove().await;
        }
        Ok(())
    }

    async fn serve_with(self, tasks: &mut Tasks, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self {
            metadata_address,
            metrics_address,
            metadata: mut listener,
            pod_identity,
            admin,
            probe_socket,
            mut config,
            mut rules,
            metrics,
            readiness,
            self_test,
            programs,
        } = self;
        let version = env!("CARGO_PKG_VERSION");
        info!(event = "starting", version, node = %config.pods.node, %metadata_address, %metrics_address, "starting rolegate");
        for warning in &config.warnings {
            warn!(event = "configuration", reason = warning.reason, "{warning}");
        }
        if let Some(strict) = &config.migrate {
            warn!(
                event = "migration-mode",
                opened = strict.opened(config.roles.restrictions),
                "--migrate is on; serving requests that the strict settings would refuse, and recording them for rolegate report; remove \
                 --migrate once the report is empty"
            );
        }
        if let Some(routing) = rules.as_mut().and_then(PacketRules::take_routing) {
            tasks.spawn("routing rules", routing.keep());
        }
        let exit_guard = rules.as_mut().and_then(PacketRules::exit_guard_check);
        let (drain, probes) = (Drain::default(), Probes::default());
        let running = readiness.step(START);
        // The first list, the rule and the identity of AWS are steps of their own: each may be late.
        let identity = readiness.step(OWN_IDENTITY);
        // Ready only when it has passed, where it can be done.
        let self_test_step = matches!(self_test, Ability::Able(_)).then(|| readiness.step(SELF_TEST_PASSED));
        // Those of the system are read by the Kubernetes client as well.
        connection_of(&config.aws).check_authorities()?;
        let kube = guarded(&mut rules, client::connect(&config.pods.api)).await?;
        let mut start = Start { config: &config, metrics: &metrics, readiness: &readiness, tasks };
        // At once, for the kubelet's probes: the rest may wait for the API.
        let host_network = HostNetworkRules::new(config.pods.host_network.clone(), own_pod::name(&config.pods.own_pod), programs.is_some());
        let host_network = host_network.with_tokens(config.pod_identity.is_some());
        let (pods, writer) = start.open_pods(host_network);
        let shared = start.serve_operators(&pods, admin, probe_socket);
        let mut stop = std::pin::pin!(stop);
        let own_pod = OwnPod::new(&config.pods.own_pod, interface_addresses);
        if config.pods.node.is_empty() {
            let named = readiness.step(NODE_NAMED);
            config.pods.node = tokio::select! {
                found = guarded(&mut rules, own_pod.find_node(&kube)) => found?,
                ended = tasks.first_ended() => return Err(ended.into()),
                () = &mut stop => return Ok(()),
            };
            named.done();
        }
        let mut start = Start { config: &config, metrics: &metrics, readiness: &readiness, tasks };
        start.follow_pods(&kube, &pods, writer);
        let recorder = Recorder::on(&config.pods.node);
        let cgroups = programs.map(|programs| start.exempt_pods(&pods, programs, &recorder));
        let (redirected, exempted) = cgroups.unzip();
        let events = start.write_events(&kube, &pods);

        // At once: until then pods are refused. What the rules bring waits for the acceptor.
        let placed = readiness.step(PACKET_RULES);
        let place = async {
            let placed = place(rules, &config, metadata_address, &kube, &probes, placed);
            let (placed, ()) = tokio::try_join!(placed, check_own_pod(&own_pod, &config, &kube))?;
            anyhow::Ok(placed)
        };
        let mut place = std::pin::pin!(place.fuse());
        let pod_identity_parts = config.pod_identity.as_ref().map(|config| start.follow_issuer(config, &kube));
        let manifests = Arc::new(ApiManifests::new(kube.clone()));
        let sources = RequestSources { pods: pods.clone(), events, pod_identity: pod_identity_parts, recorder, manifests };
        let prepared = prepare(&config, sources, &metrics, &readiness, &drain, shared);
        let prepared = async {
            // The daemon's own pod needs the real metadata service.
            if let Some(exempted) = exempted {
                let _ = exempted.await;
            }
            prepared.await
        };
        let mut prepared = std::pin::pin!(prepared);
        let prepared = loop {
            tokio::select! {
                placed = &mut place, if !place.is_terminated() => reconcile(start.tasks, &metrics, placed?),
                prepared = &mut prepared => break prepared?,
                // Whoever listened there is gone before this daemon can serve: connections wait here from now on.
                listening = listener.listen_when_alone() => listening?,
                ended = start.tasks.first_ended() => return Err(ended.into()),
                () = &mut stop => return Ok(()),
            }
        };
        let (server, node) = start.follow_aws(prepared, identity, kube.clone());
        start.test_itself((self_test, self_test_step), exit_guard, pods, &probes);
        let health = StartupHealth::new(readiness.clone(), config.server.startup_grace);
        start.follow_health(health.clone());
        let host_clients = start.tell_host_clients_apart();
        let server = server.with_probes(probes.clone()).with_health(health).with_redirected(redirected).with_host_clients(host_clients);
        let server = Arc::new(server);
        let entrance = Entrance { server, node, readiness: readiness.clone(), drain: drain.clone() };
        let handover_socket = config.server.handover_socket.clone();
        let mut acceptor = tokio::spawn(async move {
            let metadata = entrance.serve(listener, Service::Metadata, handover_socket, Some(running));
            let others = pod_identity.into_iter().map(|listener| entrance.serve_pod_identity(listener));
            futures_util::future::try_join(metadata, futures_util::future::try_join_all(others)).await?;
            anyhow::Ok(())
        });
        let ended = loop {
            tokio::select! {
                placed = &mut place, if !place.is_terminated() => match placed {
                    Ok(reconciler) => reconcile(start.tasks, &metrics, reconciler),
                    Err(error) => break Err(error),
                },
                ended = start.tasks.first_ended() => break Err(ended.into()),
                acceptor = &mut acceptor => break Err(match acceptor {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) => TaskEnded::Unexpected { name: ACCEPTOR, how: "returned" }.into(),
                    Err(error) => TaskEnded::of(ACCEPTOR, &error).into(),
                }),
                () = &mut stop => break Ok(()),
            }
        };
        // Not ready any more, whatever was before.
        let _stopping = readiness.step(SHUT_DOWN);
        drain.begin();
        if ended.is_ok() {
            acceptor.await.map_err(|error| TaskEnded::of(ACCEPTOR, &error))??;
            drain.finish().await;
        }
        ended
    }
}

/// Places the rules where there are to be some; what keeps them is the answer.
async fn place(
    rules: Option<PacketRules>,
    config: &Config,
    metadata: SocketAddr,
    kube: &Client,
    probes: &Probes,
    step: ReadinessStep,
) -> anyhow::Result<Option<Keepers>> {
    let Some(rules) = rules else {
        step.done();
        return Ok(None);
    };
    rules.place(&config.redirect, metadata, kube.clone(), &config.pods.node, probes, step).await.map(Some)
}

/// Checks the daemon's own pod, where it has one that has to be in the network of its node.
async fn check_own_pod(own_pod: &OwnPod, config: &Config, kube: &Client) -> anyhow::Result<()> {
    if !is_of_service_account(&config.pods.api) || config.server.accept_direct {
        return Ok(());
    }
    Ok(own_pod.check(kube, &config.pods.node).await?)
}

/// Does this, and keeps the guard meanwhile.
async fn guarded<T>(rules: &mut Option<PacketRules>, work: impl Future<Output = T>) -> T {
    match rules {
        Some(rules) => rules.reconcile_during(work).await,
        None => work.await,
    }
}

/// The packet rules are kept true from now on.
fn reconcile(tasks: &mut Tasks, metrics: &Metrics, keepers: Option<Keepers>) {
    let Some(Keepers { mut rules, bpf, backend, placed }) = keepers else { return };
    tasks.spawn("redirects by other programs", packet_rules::follow_foreign_redirects(metrics.clone(), backend, placed));
    tasks.spawn("packet rules", async move { rules.reconcile().await });
    if let Some(mut bpf) = bpf {
        tasks.spawn("BPF programs", async move { bpf.keep().await });
    }
}

/// The pod-facing ports, until the drain begins.
struct Entrance {
    server: Arc<Server<Sts>>,
    node: NodeIdentity,
    readiness: Readiness,
    drain: Drain,
}

impl Entrance {
    /// Accepts on an address of Pod Identity, once no other program has it.
    async fn serve_pod_identity(&self, mut listener: IdentityListener) -> anyhow::Result<()> {
        let found = tokio::select! {
            found = listener.listener() => found?,
            () = self.drain.begun() => return Ok(()),
        };
        let service = match listener.endpoint {
            IdentityEndpoint::Pods | IdentityEndpoint::HostNetwork => Service::PodIdentity,
            IdentityEndpoint::RelativeUri => Service::RelativeUri,
        };
        self.serve(found, service, listener.handover_socket, None).await
    }

    /// Accepts when it is time to, and offers the socket to the next daemon meanwhile.
    async fn serve(
        &self,
        listener: PodListener,
        service: Service,
        handover_socket: Option<PathBuf>,
        running: Option<ReadinessStep>,
    ) -> anyhow::Result<()> {
        let Self { server, node, readiness, drain } = self;
        let able = async {
            readiness.done(&[PODS_KNOWN]).await;
            // Without it, every pod is refused. The other daemon may know it.
            node.clone().identified().await;
        };
        let (listener, giver) = tokio::select! {
            opened = listener.open(able) => opened?,
            () = drain.begun() => return Ok(()),
        };
        if let Some(running) = running {
            running.done();
        }
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
        tokio::join!(server.clone().serve(listener, service, &queue), offer);
        Ok(())
    }
}

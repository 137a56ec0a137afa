//! The steps of the daemon's start: each begins some of the tasks that run beside the service.

use std::sync::{Arc, OnceLock};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::prepare::{Prepared, SharedWithAdmin};
use super::{listener, node, overflows, own_pod, pod_identity};
use crate::admin::{Admin, Rendered, StatusPage};
use crate::cgroup::{PodCgroups, RedirectPrograms};
use crate::clock::Clock;
use crate::config::{Config, HostNetworkMode, PodIdentityConfig, RedirectBackend, Restrictions, ServiceAccountRoles};
use crate::connections::ConnectionRecord;
use crate::credentials::sts::Sts;
use crate::events::Reporter;
use crate::events::writer::Writer;
use crate::exemptions::Exemptions;
use crate::kubernetes::client::Client;
use crate::kubernetes::setup::is_of_service_account;
use crate::links::Links;
use crate::links::boot;
use crate::links::cni::Results;
use crate::links::view::NodeView;
use crate::metrics::Metrics;
use crate::pod_identity::addresses;
use crate::pod_identity::keys::{ApiKeySource, issuer_keys};
use crate::pod_identity::review::{ApiTokenReviewer, TokenReviews};
use crate::pod_identity::verifier::Verifier;
use crate::pods::watch::{PodWatch, second_witness};
use crate::pods::{self, HostNetworkRules, Needs, NodeAddresses, Pods, PodsWriter};
use crate::policy::node::NodeIdentity;
use crate::proxy::pod_identity::settings::PodIdentity;
use crate::readiness::{OWN_POD_KNOWN, PACKET_RULES, PODS_KNOWN, Readiness, ReadinessStep, START, StartupHealth};
use crate::redirect::bpf::ExitGuardCheck;
use crate::redirect::interface_addresses;
use crate::report::node_role::NodeRoleUse;
use crate::report::recorder::Recorder;
use crate::report::reporter::MigrationReporter;
use crate::self_test::{Ability, Probes, Redirection, SelfTest};
use crate::server::{HostClients, Redirected, Server};
use crate::startup_taint::StartupTaint;
use crate::status::collector::StatusCollector;
use crate::tasks::Tasks;

/// What each step of the start uses.
pub(super) struct Start<'a> {
    pub(super) config: &'a Config,
    pub(super) metrics: &'a Metrics,
    pub(super) readiness: &'a Readiness,
    pub(super) tasks: &'a mut Tasks,
}

impl Start<'_> {
    /// Begins to follow what the node itself sees of its pods. None is known before [`Start::follow_pods`].
    pub(super) fn open_pods(&mut self, host_network: HostNetworkRules) -> (Pods, PodsWriter) {
        let Self { config, metrics, tasks, .. } = self;
        let (mode, is_enforced) = (host_network.mode(), host_network.is_enforced());
        metrics.host_network_enforced(is_enforced && mode != HostNetworkMode::Ignore);
        if mode != HostNetworkMode::Ignore && !is_enforced {
            error!(
                event = "host-network-not-enforced",
                mode = mode.name(),
                "--host-network-pods has no effect, because nothing on this node redirects pods in the node's network; these pods \
                 reach the real metadata service, all others are served; set --redirect=bpf, and see the log lines about the BPF programs"
            );
        }
        let booted = boot::booted(Clock::system().now());
        let (links, results) = (open_links(), Results::none());
        let view = NodeView::new(links.clone(), results.clone(), booted);
        let (writer, pods) = pods::pods_with(Arc::new(view.clone()), booted);
        writer.write(|index| index.set_host_network(host_network));
        tasks.spawn("overflows of notifications", overflows::report(links.clone(), metrics.clone()));
        tasks.spawn("links of the node", async move { links.keep().await });
        tasks.spawn("view of the node", view.keep());
        if let Some(directory) = config.pods.cni_results.clone() {
            tasks.spawn("CNI results", results.keep(directory, metrics.clone()));
        }
        (pods, writer)
    }

    /// Begins to follow what the Kubernetes API says of this node's pods.
    pub(super) fn follow_pods(&mut self, kube: &Client, pods: &Pods, writer: PodsWriter) {
        let Self { config, metrics, readiness, tasks } = self;
        let needs = Needs {
            namespaces: config.roles.restrictions != Restrictions::Off,
            service_accounts: config.roles.service_accounts != ServiceAccountRoles::Off,
            owners: true,
        };
        let watch = PodWatch {
            client: kube.clone(),
            node: config.pods.node.clone(),
            node_addresses: Box::new(node_addresses(config.server.accept_direct)),
            now: Box::new(|| Clock::system().now()),
            annotations: config.pods.annotations.clone(),
            writer,
            pods: pods.clone(),
            needs,
            token_audience: config.pod_identity.as_ref().map(|config| config.audience.clone()),
            metrics: metrics.clone(),
        };
        tasks.spawn("pod watch", watch.run(readiness.step(PODS_KNOWN)));
        tasks
            .spawn("pins of pods' links", second_witness::keep_pins(pods.clone(), metrics.clone(), || boot::booted(Clock::system().now())));
        if let Some(max) = config.pods.max_staleness {
            tasks.spawn("staleness of the API", second_witness::bound_staleness(pods.clone(), metrics.clone(), readiness.clone(), max));
        }
        // In a cluster, the daemon's own pod is one of them.
        if is_of_service_account(&config.pods.api) {
            let (pods, readiness, node) = (pods.clone(), readiness.clone(), config.pods.node.clone());
            let step = readiness.step(OWN_POD_KNOWN);
            tasks.spawn("pods of this node", async move { own_pod::await_pods(pods, &readiness, &node, step).await });
        }
    }

    /// Begins to exempt pods in the node's network from redirection, and with `--migrate` to record which use the node's role. Returns what identifies redirected connections, and when the
    /// first exemptions have been made.
    pub(super) fn exempt_pods(
        &mut self,
        pods: &Pods,
        programs: RedirectPrograms,
        recorder: &Recorder,
    ) -> (Redirected, oneshot::Receiver<()>) {
        let Self { config, metrics, tasks, .. } = self;
        let RedirectPrograms { sockets, exemptions, passed, pods_cgroup } = programs;
        let cgroups = PodCgroups::new(pods_cgroup);
        let (first, exempted) = oneshot::channel();
        let exemptions = Exemptions { pods: pods.clone(), cgroups: cgroups.clone(), kernel: exemptions, metrics: metrics.clone() };
        tasks.spawn("exemptions in the node's network", exemptions.run(first));
        if config.migrate.is_some() {
            let used = NodeRoleUse { pods: pods.clone(), cgroups: cgroups.clone(), kernel: passed, recorder: recorder.clone() };
            tasks.spawn("use of the node's role", used.run());
        }
        (Redirected::new(sockets, cgroups), exempted)
    }

    /// Starts the tasks that fetch the issuer's keys and keep the addresses of Pod Identity on the node. Returns the parts that serve
    /// Pod Identity.
    pub(super) fn follow_issuer(&mut self, config: &PodIdentityConfig, kube: &Client) -> PodIdentity {
        let (keys, refresher) = issuer_keys(Arc::new(ApiKeySource::new(kube.clone())), config.issuers.clone(), self.metrics.clone());
        self.tasks.spawn("keys of the service account issuer", refresher.run());
        self.tasks.spawn("addresses of Pod Identity", addresses::keep(config.assigned()));
        let reviewer = || Arc::new(ApiTokenReviewer::new(kube.clone()));
        PodIdentity {
            verifier: Verifier::new(keys, &config.audience, Clock::system()),
            node: self.config.pods.node.clone(),
            reviews: config.token_review.then(|| TokenReviews::new(reviewer(), &config.audience, self.metrics.clone())),
        }
    }

    /// With Pod Identity, starts the task that looks for the control groups of pods. Returns what distinguishes clients in the node's
    /// network by their control groups.
    pub(super) fn tell_host_clients_apart(&mut self) -> Option<HostClients> {
        let (config, cgroups) = (self.config, Arc::default());
        config.pod_identity.as_ref()?;
        let clients = pod_identity::host_clients(Arc::clone(&cgroups))?;
        self.tasks.spawn("control group of all pods", pod_identity::find_pods_cgroup(config.redirect.bpf.cgroup.clone(), cgroups));
        Some(clients)
    }

    /// Begins to write Events, where they are switched on.
    pub(super) fn write_events(&mut self, kube: &Client, pods: &Pods) -> Reporter {
        let Self { config, metrics, tasks, .. } = self;
        if !config.pods.events {
            return Reporter::off(metrics.clone());
        }
        let (events, records) = Reporter::new(metrics.clone());
        let (api, node, pods) = (kube.clone(), config.pods.node.clone(), pods.clone());
        tasks.spawn("events", Writer { api, node, pods, records, clock: Clock::system(), metrics: metrics.clone() }.run());
        events
    }

    /// Begins to serve operators and the kubelet's probes. The explainer is for whoever makes the way of a request; the record
    /// is of the pods' connections.
    pub(super) fn serve_operators(
        &mut self,
        pods: &Pods,
        admin: Option<TcpListener>,
        probe_socket: Option<UnixListener>,
    ) -> SharedWithAdmin {
        let Self { config, metrics, readiness, tasks } = self;
        let (explainer, reporter, record) = (Arc::<OnceLock<_>>::default(), Arc::<OnceLock<_>>::default(), ConnectionRecord::default());
        metrics.migration_findings_from({
            let reporter = reporter.clone();
            move || reporter.get().map(MigrationReporter::counts).unwrap_or_default()
        });
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
            reporter: reporter.clone(),
            rendered: Rendered::default(),
            status: config.admin.status_page.then(|| {
                let clock = Clock::system();
                StatusPage::new(StatusCollector {
                    node: config.pods.node.clone(),
                    started_at: clock.now(),
                    clock,
                    metrics: metrics.clone(),
                    readiness: readiness.clone(),
                    pods: pods.clone(),
                    explainer: explainer.clone(),
                })
            }),
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
        SharedWithAdmin { explainer, reporter, record }
    }

    /// Begins what follows AWS, and what waits for its answers. The server is for the acceptor.
    pub(super) fn follow_aws(&mut self, prepared: Prepared, identity: ReadinessStep, kube: Client) -> (Server<Sts>, NodeIdentity) {
        let Self { config, metrics, readiness, tasks } = self;
        let Prepared { server, refresh, sts, tokens, key_file, metadata, aws, node, policy } = prepared;
        tasks.spawn("sessions", refresh.run());
        tasks.spawn("account of this node", node::follow_contradictions(node.clone(), metrics.clone(), readiness.clone()));
        tasks.spawn("own identity", node::follow_identity(sts, policy, identity, readiness.clone()));
        if !config.metadata.disabled {
            tasks.spawn("instance role", node::follow_instance_role(aws, node.clone()));
        }
        tasks.spawn("metadata", metadata.keep(config.metadata.address.clone(), metrics.clone()));
        if let Some(key) = config.pods.startup_taint.clone() {
            let (api, name, identity) = (kube, config.pods.node.clone(), node.clone());
            let taint = StartupTaint { api, node: name, key, readiness: readiness.clone(), metrics: metrics.clone() };
            tasks.spawn("start-up taint", async move {
                identity.identified().await;
                taint.run().await;
            });
        }
        if let Some(file) = key_file {
            tasks.spawn("keys of session tokens", tokens.keep(file));
        }
        (server, node)
    }

    /// Begins to note when the daemon is ready first, for the liveness probe on the app port.
    pub(super) fn follow_health(&mut self, health: StartupHealth) {
        self.tasks.spawn("first readiness", async move {
            health.follow().await;
            std::future::pending().await
        });
    }

    /// Begins the self-test.
    pub(super) fn test_itself(
        &mut self,
        (ability, step): (Ability, Option<ReadinessStep>),
        exit_guard: Option<ExitGuardCheck>,
        pods: Pods,
        probes: &Probes,
    ) {
        let Self { config, metrics, readiness, tasks } = self;
        let self_test = SelfTest {
            ability,
            config: config.self_test,
            interfaces: config.redirect.interfaces.clone(),
            has_rules: config.redirect.backend != RedirectBackend::None,
            redirection: Redirection::of(&config.redirect),
            exit_guard,
            pods,
            probes: probes.clone(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
        };
        tasks.spawn_fallible("self-test", self_test.run(step, &[START, PACKET_RULES]));
    }
}

/// The table of the node's links. Without it, pods are identified by the API alone.
fn open_links() -> Links {
    Links::open().unwrap_or_else(|error| {
        warn!(
            event = "links-unavailable", %error,
            "cannot read the network interfaces, routes and neighbours of this node; identifying pods without checking which interface \
             leads to their address"
        );
        Links::none()
    })
}

/// What no pod has for its own. Where whoever connects is served, loopback addresses are taken for pods'.
fn node_addresses(accept_direct: bool) -> impl Fn() -> NodeAddresses {
    move || {
        let ips = interface_addresses().into_iter().filter(|ip| !ip.is_loopback()).collect();
        NodeAddresses { ips, loopback: !accept_direct }
    }
}

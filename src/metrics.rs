//! Every metric, in one place. `docs/metrics.md` documents their names, labels and help texts; a test compares the two. To bound
//! the number of series, no label holds an address or a pod, and none a role unless the operator asks for it. Only metrics that show
//! who is refused, or who a stricter setting would break, have the label `namespace`.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::time::Instant;

mod descriptions;
mod handles;
mod host_network;
mod initial;
mod limits;
pub(crate) mod observed;
mod pod_identity;
mod process;
mod readiness;
mod record;
mod register;
mod render;
mod roles;

use descriptions::*;
pub use descriptions::{ALL, Description};
pub use handles::{InFlight, RouteMeters};
use observed::Observed;
pub use observed::{ComparedRules, RuleKind, RuleState};
use pod_identity::PodIdentityMetrics;
use process::ProcessMetrics;
use readiness::ReadinessMetrics;
use register::Registrar;
use render::{text, without_namespaces};
pub use roles::RoleMeters;
use roles::RoleMetrics;

use crate::readiness::Readiness;

/// Handles to the metrics of one process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<MetricsInner>);

#[derive(Debug)]
struct MetricsInner {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    denials: IntCounterVec,
    pod_refusals: IntCounterVec,
    audited: IntCounterVec,
    imdsv1: IntCounterVec,
    connections: IntGauge,
    connections_waiting: IntGauge,
    connections_refused: IntCounterVec,
    connections_ended: IntCounterVec,
    metrics_refused: IntCounterVec,
    metrics_renderings: IntCounter,
    pods: IntGauge,
    pods_that_may_forge: IntGauge,
    pod_waits_refused: IntCounter,
    /// The source of `pod_waits_refused`, read at each scrape.
    pod_waits_source: OnceLock<CountSource>,
    link_overflows: IntCounter,
    link_overflows_source: OnceLock<CountSource>,
    pod_waits: HistogramVec,
    pods_awaited: IntGauge,
    watch_errors: IntCounterVec,
    watch_undecodable: IntCounterVec,
    watch_sign_of_life: IntGauge,
    /// The time of the last sign of life; initially the start of the process.
    watch_alive_at: Mutex<Instant>,
    ambiguous: IntCounterVec,
    sessions: IntCounterVec,
    metadata_reads: IntCounterVec,
    sessions_held: IntGauge,
    earliest_end: IntGaugeVec,
    served_late: IntCounter,
    /// The source of the number of sessions, read at each scrape.
    holdings: OnceLock<HoldingsSource>,
    sts_requests: IntCounterVec,
    sts_queue: IntGaugeVec,
    sts_turned_away: IntCounterVec,
    sts_seconds: Histogram,
    sts_in_flight: IntGauge,
    own_credentials_dropped: IntCounter,
    sts_explained: IntCounterVec,
    events: IntCounterVec,
    redirect_in_place: IntGauge,
    foreign_redirects: IntGauge,
    account_contradicted: IntGauge,
    redirect_routing_rules: IntGauge,
    redirect_repairs: IntCounterVec,
    redirect_check_failures: IntCounter,
    redirect_forgotten: IntCounter,
    self_test: IntGaugeVec,
    self_test_failures: IntCounterVec,
    pods_outside: IntGauge,
    cni_results: IntGaugeVec,
    startup_taint: IntCounterVec,
    host_network_enforced: IntGauge,
    exempt_pods: IntGauge,
    exemption_updates: IntCounterVec,
    migration_findings: IntGaugeVec,
    migration_source: OnceLock<FindingsSource>,
    pod_identity: PodIdentityMetrics,
    readiness: ReadinessMetrics,
    roles: RoleMetrics,
    process: ProcessMetrics,
    observed: Observed,
}

/// The content of the session cache at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Unexpired sessions.
    pub sessions: usize,
    /// The time until the first of them expires.
    pub earliest_end: Option<Duration>,
}

/// A counter that another module keeps; it is read at each scrape.
struct CountSource(Box<dyn Fn() -> u64 + Send + Sync>);

impl std::fmt::Debug for CountSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CountSource")
    }
}

struct HoldingsSource(Box<dyn Fn() -> Holdings + Send + Sync>);

impl std::fmt::Debug for HoldingsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HoldingsSource")
    }
}

/// The number of workloads with findings, by kind and namespace.
type Findings = Vec<(&'static str, String, usize)>;

struct FindingsSource(Box<dyn Fn() -> Findings + Send + Sync>);

impl std::fmt::Debug for FindingsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FindingsSource")
    }
}

impl MetricsInner {
    /// Creates the series of counters whose labels are known beforehand.
    fn start(&self) {
        for (counters, values) in [
            (&self.denials, initial::DENIALS),
            (&self.denials, initial::AUDITED),
            (&self.audited, initial::AUDITED),
            (&self.connections_refused, initial::CONNECTIONS_REFUSED),
            (&self.connections_ended, initial::CONNECTIONS_ENDED),
            (&self.metrics_refused, initial::METRICS_REFUSED),
            (&self.watch_errors, initial::RESOURCES),
            (&self.watch_undecodable, initial::RESOURCES),
            (&self.ambiguous, initial::AMBIGUOUS),
            (&self.sessions, initial::SESSIONS),
            (&self.metadata_reads, initial::METADATA_READS),
            (&self.sts_turned_away, initial::STS_TURNED_AWAY),
            (&self.sts_explained, initial::STS_OUTCOMES),
            (&self.events, initial::EVENTS),
            (&self.redirect_repairs, initial::REDIRECT_REPAIRS),
            (&self.self_test_failures, initial::SELF_TEST_FAILURES),
            (&self.startup_taint, initial::STARTUP_TAINT),
            (&self.exemption_updates, initial::EXEMPTION_UPDATES),
        ] {
            initial::start(counters, values);
        }
        for cause in initial::CAUSES {
            for outcome in initial::STS_OUTCOMES {
                self.sts_requests.with_label_values(&[cause, outcome]);
            }
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates metrics that are all zero.
    pub fn new() -> Self {
        let register = Registrar(Registry::new());
        let build_info = register.gauges(&BUILD_INFO);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let inner = MetricsInner {
            requests: register.counters(&REQUESTS),
            request_seconds: register.histograms(&REQUEST_SECONDS),
            denials: register.counters(&DENIALS),
            pod_refusals: register.counters(&POD_REFUSALS),
            audited: register.counters(&AUDITED),
            imdsv1: register.counters(&IMDSV1),
            connections: register.gauge(&CONNECTIONS),
            connections_waiting: register.gauge(&CONNECTIONS_WAITING),
            connections_refused: register.counters(&CONNECTIONS_REFUSED),
            connections_ended: register.counters(&CONNECTIONS_ENDED),
            metrics_refused: register.counters(&METRICS_REFUSED),
            metrics_renderings: register.counter(&METRICS_RENDERINGS),
            pods: register.gauge(&PODS),
            pods_that_may_forge: register.gauge(&PODS_THAT_MAY_FORGE),
            pod_waits_refused: register.counter(&POD_WAITS_REFUSED),
            pod_waits_source: OnceLock::new(),
            link_overflows: register.counter(&LINK_OVERFLOWS),
            link_overflows_source: OnceLock::new(),
            pod_waits: register.histograms(&POD_WAITS),
            pods_awaited: register.gauge(&PODS_AWAITED),
            watch_errors: register.counters(&WATCH_ERRORS),
            watch_undecodable: register.counters(&WATCH_UNDECODABLE),
            watch_sign_of_life: register.gauge(&WATCH_SIGN_OF_LIFE),
            watch_alive_at: Mutex::new(Instant::now()),
            ambiguous: register.counters(&AMBIGUOUS),
            sessions: register.counters(&SESSIONS),
            metadata_reads: register.counters(&METADATA_READS),
            sessions_held: register.gauge(&SESSIONS_HELD),
            earliest_end: register.gauges(&EARLIEST_END),
            served_late: register.counter(&SERVED_LATE),
            holdings: OnceLock::new(),
            sts_requests: register.counters(&STS_REQUESTS),
            sts_queue: register.gauges(&STS_QUEUE),
            sts_turned_away: register.counters(&STS_TURNED_AWAY),
            sts_seconds: register.histograms(&STS_SECONDS).with_label_values::<&str>(&[]),
            sts_in_flight: register.gauge(&STS_IN_FLIGHT),
            own_credentials_dropped: register.counter(&OWN_CREDENTIALS_DROPPED),
            sts_explained: register.counters(&STS_EXPLAINED),
            events: register.counters(&EVENTS),
            redirect_in_place: register.gauge(&REDIRECT_IN_PLACE),
            foreign_redirects: register.gauge(&FOREIGN_REDIRECTS),
            account_contradicted: register.gauge(&ACCOUNT_CONTRADICTED),
            redirect_routing_rules: register.gauge(&REDIRECT_ROUTING_RULES),
            redirect_repairs: register.counters(&REDIRECT_REPAIRS),
            redirect_check_failures: register.counters(&REDIRECT_CHECK_FAILURES).with_label_values::<&str>(&[]),
            redirect_forgotten: register.counters(&REDIRECT_FORGOTTEN).with_label_values::<&str>(&[]),
            self_test: register.add(IntGaugeVec::new(Opts::new(SELF_TEST.name, SELF_TEST.help), SELF_TEST.labels)),
            self_test_failures: register.counters(&SELF_TEST_FAILURES),
            pods_outside: register.gauge(&PODS_OUTSIDE),
            cni_results: register.gauges(&CNI_RESULTS),
            startup_taint: register.counters(&STARTUP_TAINT),
            host_network_enforced: register.gauge(&HOST_NETWORK_ENFORCED),
            exempt_pods: register.gauge(&EXEMPT_PODS),
            exemption_updates: register.counters(&EXEMPTION_UPDATES),
            migration_findings: register.gauges(&MIGRATION_FINDINGS),
            migration_source: OnceLock::new(),
            pod_identity: PodIdentityMetrics::new(&register),
            readiness: ReadinessMetrics::new(&register),
            roles: RoleMetrics::new(&register),
            process: ProcessMetrics::new(&register),
            observed: Observed::default(),
            registry: register.0,
        };
        inner.start();
        Self(Arc::new(inner))
    }

    /// Sets the source of the metrics of readiness. Only the first call has an effect.
    pub fn readiness_of(&self, readiness: Readiness) {
        self.0.readiness.follow(readiness);
    }

    /// Switches the metric with a role label on.
    pub fn show_roles(&self) {
        self.0.roles.switch_on();
    }

    /// Returns the counters of a role; `None` unless [`Self::show_roles`] was called.
    pub fn role_meters(&self, role: &str) -> Option<RoleMeters> {
        self.0.roles.of(role)
    }

    /// Removes the series of all roles but these. They are not computed if there are no such series.
    pub fn keep_roles(&self, roles: impl FnOnce() -> BTreeSet<String>) {
        self.0.roles.keep(roles);
    }

    /// Renders the metrics in the text format of Prometheus, version 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        text(&self.gather())
    }

    /// Renders the metrics like [`Self::render`], without namespaces: series that differ only in the namespace are added up.
    pub fn render_without_namespaces(&self) -> Vec<u8> {
        text(&self.gather().into_iter().map(without_namespaces).collect::<Vec<_>>())
    }

    fn gather(&self) -> Vec<MetricFamily> {
        if let Some(HoldingsSource(source)) = self.0.holdings.get() {
            let Holdings { sessions, earliest_end } = source();
            self.0.sessions_held.set(i64::try_from(sessions).unwrap_or(i64::MAX));
            self.0.earliest_end.reset();
            if let Some(end) = earliest_end {
                self.0.earliest_end.with_label_values::<&str>(&[]).set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
            }
        }
        if let Some(FindingsSource(findings)) = self.0.migration_source.get() {
            let findings = findings();
            self.0.migration_findings.reset();
            for (finding, namespace, workloads) in findings {
                self.0.migration_findings.with_label_values(&[finding, &namespace]).set(i64::try_from(workloads).unwrap_or(i64::MAX));
            }
        }
        if let Some(CountSource(count)) = self.0.pod_waits_source.get() {
            self.0.pod_waits_refused.inc_by(count().saturating_sub(self.0.pod_waits_refused.get()));
        }
        if let Some(CountSource(count)) = self.0.link_overflows_source.get() {
            self.0.link_overflows.inc_by(count().saturating_sub(self.0.link_overflows.get()));
        }
        self.0.pod_identity.refresh();
        self.0.readiness.refresh();
        self.0.process.refresh();
        self.0.watch_sign_of_life.set(i64::try_from(self.watch_silence().as_secs()).unwrap_or(i64::MAX));
        self.0.registry.gather()
    }

    /// Returns the metrics of one route.
    pub fn route(&self, route: &'static str) -> RouteMeters {
        RouteMeters {
            answered: Default::default(),
            seconds: self.0.request_seconds.with_label_values(&[route]),
            route,
            requests: self.0.requests.clone(),
        }
        .started()
    }

    /// Counts a refused request.
    pub fn denied(&self, reason: &'static str) {
        self.0.denials.with_label_values(&[reason]).inc();
    }

    /// Counts a refused request of a pod of this namespace.
    pub fn pod_refused(&self, namespace: &str, reason: &'static str) {
        self.0.pod_refusals.with_label_values(&[namespace, reason]).inc();
    }

    /// Counts a served request that enforced namespace restrictions would have refused.
    pub fn audited(&self, reason: &'static str) {
        self.0.audited.with_label_values(&[reason]).inc();
    }

    /// Counts a request without a session token from a pod of this namespace.
    pub fn without_token(&self, namespace: &str, served: bool) {
        self.0.imdsv1.with_label_values(&[namespace, if served { "served" } else { "refused" }]).inc();
    }

    /// Removes the series of all namespaces but these, the ones with pods on this node. Otherwise the number of series would grow
    /// without bound on a node where namespaces come and go.
    pub fn keep_namespaces(&self, namespaces: &BTreeSet<String>) {
        for counters in [&self.0.imdsv1, &self.0.pod_refusals] {
            for family in counters.collect() {
                for metric in family.get_metric() {
                    let labels: HashMap<&str, &str> = metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
                    if !labels.get("namespace").is_some_and(|namespace| namespaces.contains(*namespace)) {
                        // It was there just now, and nobody else takes one away.
                        let _ = counters.remove(&labels);
                    }
                }
            }
        }
    }

    /// Counts an Event for a pod's owner, by outcome.
    pub fn event(&self, outcome: &'static str) {
        self.0.events.with_label_values(&[outcome]).inc();
    }

    /// Sets whether the packet rules were correct at the last check.
    pub fn redirect_in_place(&self, is: bool) {
        self.0.redirect_in_place.set(i64::from(is));
    }

    /// Sets how many redirects of the node's own metadata requests there are.
    pub fn foreign_redirects(&self, found: usize) {
        self.0.foreign_redirects.set(i64::try_from(found).unwrap_or(i64::MAX));
    }

    /// Sets whether STS and the metadata service contradict each other about the account of this node.
    pub fn account_contradicted(&self, is: bool) {
        self.0.account_contradicted.set(i64::from(is));
    }

    /// Sets whether the routing rules were in place at the last check.
    pub fn routing_rules_in_place(&self, are: bool) {
        self.0.redirect_routing_rules.set(i64::from(are));
    }

    /// Counts a repair of changed packet rules or routing rules.
    pub fn redirect_repaired(&self, succeeded: bool) {
        self.0.redirect_repairs.with_label_values(&[if succeeded { "repaired" } else { "failed" }]).inc();
    }

    /// Counts a failed check of the packet rules or the routing rules.
    pub fn redirect_check_failed(&self) {
        self.0.redirect_check_failures.inc();
    }

    /// Counts connections older than the packet rules that were ended.
    pub fn redirect_forgot(&self, connections: u64) {
        self.0.redirect_forgotten.inc_by(connections);
    }

    /// Sets the state of the last self-test: 1 for `state`, 0 for the others of `all`.
    pub fn self_test(&self, state: &'static str, all: impl IntoIterator<Item = &'static str>) {
        self.0.observed.self_test(state);
        for one in all {
            self.0.self_test.with_label_values(&[one]).set(i64::from(one == state));
        }
    }

    /// Counts a failed self-test.
    pub fn self_test_failed(&self, reason: &'static str) {
        self.0.observed.self_test_failed(reason);
        self.0.self_test_failures.with_label_values(&[reason]).inc();
    }

    /// Sets the number of addresses of pods behind interfaces that the rules do not match.
    pub fn pods_outside(&self, count: usize) {
        self.0.pods_outside.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many files of CNI results are used and how many are ignored.
    pub fn cni_results(&self, used: usize, ignored: usize) {
        for (state, count) in [("used", used), ("ignored", ignored)] {
            self.0.cni_results.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts a check for the start-up taint.
    pub fn startup_taint(&self, outcome: &'static str) {
        self.0.startup_taint.with_label_values(&[outcome]).inc();
    }

    /// Counts an open connection of a pod until the returned value is dropped.
    pub fn connection(&self) -> InFlight {
        InFlight::new(&self.0.connections)
    }

    /// Counts a waiting connection of a pod until the returned value is dropped.
    pub fn connection_waits(&self) -> InFlight {
        InFlight::new(&self.0.connections_waiting)
    }

    /// Counts a connection to the metrics port that was closed before a byte was read.
    pub fn metrics_port_refused(&self, reason: &'static str) {
        self.0.metrics_refused.with_label_values(&[reason]).inc();
    }

    /// Counts a rendering of the metrics for a client other than the node itself.
    pub fn rendering(&self) {
        self.0.metrics_renderings.inc();
    }

    /// Counts a connection of a pod that was closed before a byte was read.
    pub fn connection_refused(&self, reason: &'static str) {
        self.0.connections_refused.with_label_values(&[reason]).inc();
    }

    /// Counts a connection of a pod that did not end normally.
    pub fn connection_ended(&self, reason: &'static str) {
        self.0.connections_ended.with_label_values(&[reason]).inc();
    }

    /// Sets the number of known pods.
    pub fn pods_known(&self, count: usize) {
        self.0.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the number of pods on bridges that may have the capability NET_RAW.
    pub fn pods_that_may_forge(&self, count: usize) {
        self.0.pods_that_may_forge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a request that waits for its pod until the returned value is dropped.
    pub fn pod_wait(&self) -> InFlight {
        InFlight::new(&self.0.pods_awaited)
    }

    /// Sets the source of the counter of requests that were not allowed to wait for their pod. Only the first call has an effect.
    pub fn pod_waits_refused_from(&self, source: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.0.pod_waits_source.set(CountSource(Box::new(source)));
    }

    /// Sets the source of the findings of the migration report, which names only namespaces with pods on this node. Only the first
    /// call has an effect.
    pub(crate) fn migration_findings_from(&self, source: impl Fn() -> Findings + Send + Sync + 'static) {
        let _ = self.0.migration_source.set(FindingsSource(Box::new(source)));
    }

    /// Sets the source of the counter of lost notifications about the node's network. Only the first call has an effect.
    pub fn link_overflows_from(&self, source: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.0.link_overflows_source.set(CountSource(Box::new(source)));
    }

    /// Records how long a request waited for its pod.
    pub fn pod_waited(&self, found: bool, waited: Duration) {
        let outcome = if found { "found" } else { "unknown" };
        self.0.pod_waits.with_label_values(&[outcome]).observe(waited.as_secs_f64());
    }

    /// Counts a failed list or watch.
    pub fn watch_failed(&self, resource: &'static str) {
        self.0.watch_errors.with_label_values(&[resource]).inc();
    }

    /// Counts an object that could not be parsed.
    pub fn watch_undecodable(&self, resource: &'static str) {
        self.0.watch_undecodable.with_label_values(&[resource]).inc();
    }

    /// Notes that the watch of this node's pods heard from the API now.
    pub fn watch_alive(&self) {
        *self.watch_alive_at() = Instant::now();
    }

    /// Returns the time since the watch of this node's pods last heard from the API.
    pub fn watch_silence(&self) -> Duration {
        self.watch_alive_at().elapsed()
    }

    fn watch_alive_at(&self) -> MutexGuard<'_, Instant> {
        self.0.watch_alive_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a check with the API of an address that several pods claim.
    pub fn ambiguous(&self, outcome: &'static str) {
        self.0.ambiguous.with_label_values(&[outcome]).inc();
    }

    /// Returns the counter of session lookups with this result.
    pub fn session_lookups(&self, result: &'static str) -> IntCounter {
        self.0.sessions.with_label_values(&[result])
    }

    /// Counts a read of a group of values from the real metadata service.
    pub fn metadata_read(&self, outcome: &'static str) {
        self.0.metadata_reads.with_label_values(&[outcome]).inc();
    }

    /// Sets the source of the number of sessions. Only the first call has an effect.
    pub fn sessions_from(&self, source: impl Fn() -> Holdings + Send + Sync + 'static) {
        let _ = self.0.holdings.set(HoldingsSource(Box::new(source)));
    }

    /// Returns the counter of credentials that were served with less than 25 minutes left.
    pub fn session_served_late(&self) -> IntCounter {
        self.0.served_late.clone()
    }

    /// Returns the gauge of queued AssumeRole requests of one cause.
    pub fn sts_queue(&self, cause: &'static str) -> IntGauge {
        self.0.sts_queue.with_label_values(&[cause])
    }

    /// Counts a request for a session that ended without a request to STS.
    pub fn sts_turned_away(&self, reason: &'static str) {
        self.0.sts_turned_away.with_label_values(&[reason]).inc();
    }

    /// Counts an AssumeRole request in flight until the returned value is dropped.
    pub fn sts_request(&self) -> InFlight {
        InFlight::new(&self.0.sts_in_flight)
    }

    /// Counts a completed AssumeRole request and its duration.
    pub fn sts_answered(&self, outcome: &'static str, cause: &'static str, took: Duration) {
        self.0.sts_requests.with_label_values(&[cause, outcome]).inc();
        self.0.sts_seconds.observe(took.as_secs_f64());
    }

    /// Counts credentials of the daemon that were dropped because STS rejected them.
    pub fn own_credentials_dropped(&self) {
        self.0.own_credentials_dropped.inc();
    }

    /// Counts a fetch of the keys of the service account issuer.
    pub fn issuer_keys_fetched(&self, has_worked: bool) {
        self.0.pod_identity.keys_fetched(has_worked);
    }

    /// Counts a review of a service account token by the Kubernetes API, by outcome.
    pub fn token_reviewed(&self, outcome: &'static str) {
        self.0.pod_identity.token_reviewed(outcome);
    }

    /// Counts a completed AssumeRole request of `rolegate explain --assume`.
    pub fn explained(&self, outcome: &'static str) {
        self.0.sts_explained.with_label_values(&[outcome]).inc();
    }
}

#[cfg(test)]
mod tests;

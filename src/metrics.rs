//! Every metric, in one place. The names, labels and texts below are what `docs/metrics.md` documents; a test compares
//! the two. No label ever holds an address, a pod or a role, and a namespace only where it says who
//! would break by a change, so that their number is bounded.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::time::Instant;

mod render;

use render::{text, without_namespaces};

/// A metric as it is documented.
#[derive(Debug)]
pub struct Description {
    /// The full name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The label names.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

macro_rules! descriptions {
    ($($constant:ident = $kind:literal $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(const $constant: Description =
            Description { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)*
        /// Every metric.
        pub const ALL: &[Description] = &[$($constant),*];
    };
}

descriptions! {
    BUILD_INFO = "gauge" "rolegate_build_info" ["version"] "Always 1; the label is the version that runs.";
    REQUESTS = "counter" "rolegate_http_requests_total" ["route", "code"]
        "Requests of pods, by route and status code.";
    REQUEST_SECONDS = "histogram" "rolegate_http_request_duration_seconds" ["route"]
        "Time from a request's head to its answer, including waits for the pod to become known and for STS.";
    DENIALS = "counter" "rolegate_denials_total" ["reason"]
        "Requests refused, by reason.";
    AUDITED = "counter" "rolegate_audit_denials_total" ["reason"]
        "Requests served that enforced namespace restrictions would have refused.";
    IMDSV1 = "counter" "rolegate_imdsv1_requests_total" ["namespace", "outcome"]
        "Requests of pods without a session token, by the pod's namespace and whether they were served or refused.";
    CONNECTIONS = "gauge" "rolegate_connections" []
        "Open connections of pods.";
    CONNECTIONS_WAITING = "gauge" "rolegate_connections_waiting" []
        "Connections of pods beyond a limit that wait until there is room.";
    CONNECTIONS_REFUSED = "counter" "rolegate_connections_refused_total" ["reason"]
        "Connections of pods that were closed before a byte was read, by reason.";
    CONNECTIONS_ENDED = "counter" "rolegate_connections_ended_total" ["reason"]
        "Connections of pods that did not end normally, by reason.";
    METRICS_REFUSED = "counter" "rolegate_metrics_port_refused_total" ["reason"]
        "Connections to the metrics port closed before a byte was read, by reason.";
    METRICS_RENDERINGS = "counter" "rolegate_metrics_renderings_total" []
        "Times the metrics were rendered for clients other than the node itself, at most once a second.";
    PODS = "gauge" "rolegate_pods" []
        "Known pods of this node.";
    POD_WAITS_REFUSED = "counter" "rolegate_pod_waits_refused_total" []
        "Requests that were not allowed to wait, or to continue waiting, for their pod to become known, because too many requests \
         waited.";
    PODS_THAT_MAY_FORGE = "gauge" "rolegate_pods_with_net_raw_on_bridges" []
        "Pods behind a bridge that may have the capability NET_RAW.";
    LINK_OVERFLOWS = "counter" "rolegate_link_notification_overflows_total" []
        "Times that the kernel's notifications about the node's network were lost or too many to be read at once.";
    POD_WAITS = "histogram" "rolegate_pod_wait_seconds" ["outcome"]
        "Time that requests waited for the pod behind their address to become known, by outcome.";
    PODS_AWAITED = "gauge" "rolegate_pod_waits_in_flight" []
        "Requests that wait for the pod behind their address to become known.";
    WATCH_ERRORS = "counter" "rolegate_watch_errors_total" ["resource"]
        "Failed lists and watches of the Kubernetes API.";
    WATCH_UNDECODABLE = "counter" "rolegate_watch_undecodable_total" ["resource"]
        "Objects of the Kubernetes API that could not be parsed and were skipped.";
    WATCH_SIGN_OF_LIFE = "gauge" "rolegate_watch_last_sign_of_life_seconds" []
        "Seconds since the watch of this node's pods last heard from the Kubernetes API, at the time of the scrape.";
    AMBIGUOUS = "counter" "rolegate_ambiguous_addresses_total" ["outcome"]
        "Addresses that several running pods claimed, by the result of a check with the Kubernetes API.";
    SESSIONS = "counter" "rolegate_session_lookups_total" ["result"]
        "Lookups in the session cache, by result.";
    METADATA_READS = "counter" "rolegate_metadata_reads_total" ["outcome"]
        "Reads of a group of values from the real metadata service, by outcome.";
    SESSIONS_HELD = "gauge" "rolegate_sessions" []
        "Unexpired sessions in the cache, at the time of the scrape.";
    EARLIEST_END = "gauge" "rolegate_session_earliest_expiry_seconds" []
        "Seconds until the first session in the cache expires, at the time of the scrape; absent if the cache is empty.";
    SERVED_LATE = "counter" "rolegate_sessions_served_late_total" []
        "Times that credentials with less than 25 minutes left were served.";
    STS_REQUESTS = "counter" "rolegate_sts_requests_total" ["cause", "outcome"]
        "AssumeRole requests, by cause and outcome.";
    STS_QUEUE = "gauge" "rolegate_sts_queue" ["cause"]
        "AssumeRole requests in this node's queue, by cause.";
    STS_TURNED_AWAY = "counter" "rolegate_sts_turned_away_total" ["reason"]
        "Requests for sessions that ended without a request to STS, by reason.";
    STS_SECONDS = "histogram" "rolegate_sts_request_duration_seconds" []
        "Duration of AssumeRole requests.";
    STS_IN_FLIGHT = "gauge" "rolegate_sts_requests_in_flight" []
        "AssumeRole requests in flight.";
    OWN_CREDENTIALS_DROPPED = "counter" "rolegate_own_credentials_dropped_total" []
        "Times that STS rejected the daemon's own credentials before they expired by the node's clock, so that new ones were loaded.";
    STS_EXPLAINED = "counter" "rolegate_explain_sts_requests_total" ["outcome"]
        "AssumeRole requests of rolegate explain --assume, by outcome; no other metric counts them.";
    SELF_TEST = "gauge" "rolegate_self_test" ["state"]
        "Result of the last self-test: 1 for its state, 0 for the others.";
    SELF_TEST_FAILURES = "counter" "rolegate_self_test_failures_total" ["reason"]
        "Failed self-tests, by reason.";
    PODS_OUTSIDE = "gauge" "rolegate_pods_outside_interfaces" []
        "Addresses of pods behind interfaces that --host-interface does not match.";
    EVENTS = "counter" "rolegate_events_total" ["outcome"]
        "Events for the owners of pods, by outcome.";
    REDIRECT_IN_PLACE = "gauge" "rolegate_redirect_in_place" []
        "1 if the packet rules were correct at the last check, else 0.";
    REDIRECT_REPAIRS = "counter" "rolegate_redirect_repairs_total" ["outcome"]
        "Repairs of packet rules that had been changed, by outcome.";
    REDIRECT_CHECK_FAILURES = "counter" "rolegate_redirect_check_failures_total" []
        "Failed checks of the packet rules, after which their state is unknown.";
    REDIRECT_FORGOTTEN = "counter" "rolegate_redirect_forgotten_connections_total" []
        "Connections of pods to the real metadata service that were older than the packet rules and were ended.";
    CNI_RESULTS = "gauge" "rolegate_cni_result_files" ["state"]
        "Files in the directory of --cni-results, by whether they are used or ignored.";
    STARTUP_TAINT = "counter" "rolegate_startup_taint_looks_total" ["outcome"]
        "Checks of this node for the start-up taint, by outcome.";
}

/// Seconds; the SDKs give up after one, some after half of one.
const REQUEST_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Handles to the metrics of one process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<MetricsInner>);

#[derive(Debug)]
struct MetricsInner {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    denials: IntCounterVec,
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
    /// Who counts them.
    pod_waits_source: OnceLock<CountSource>,
    link_overflows: IntCounter,
    link_overflows_source: OnceLock<CountSource>,
    pod_waits: HistogramVec,
    pods_awaited: IntGauge,
    watch_errors: IntCounterVec,
    watch_undecodable: IntCounterVec,
    watch_sign_of_life: IntGauge,
    /// When it was; at first the start of the process.
    watch_alive_at: Mutex<Instant>,
    ambiguous: IntCounterVec,
    sessions: IntCounterVec,
    metadata_reads: IntCounterVec,
    sessions_held: IntGauge,
    earliest_end: IntGaugeVec,
    served_late: IntCounter,
    /// Who counts the sessions at a scrape.
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
    redirect_repairs: IntCounterVec,
    redirect_check_failures: IntCounter,
    redirect_forgotten: IntCounter,
    self_test: IntGaugeVec,
    self_test_failures: IntCounterVec,
    pods_outside: IntGauge,
    cni_results: IntGaugeVec,
    startup_taint: IntCounterVec,
}

/// What is held at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Sessions that have not ended.
    pub sessions: usize,
    /// The time until the first of them does.
    pub earliest_end: Option<Duration>,
}

/// A counter that is kept elsewhere and read when the metrics are rendered.
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

/// Registers metrics; a name given twice is a mistake in this file, found by every test.
struct Registrar(Registry);

impl Registrar {
    fn add<M: prometheus::core::Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        #[expect(clippy::expect_used, reason = "a start-up invariant: the descriptions above are valid and unique")]
        let metric = metric.expect("a description is valid");
        #[expect(clippy::expect_used, reason = "a start-up invariant: the descriptions above are valid and unique")]
        self.0.register(Box::new(metric.clone())).expect("every metric is described once");
        metric
    }

    fn counters(&self, description: &Description) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(description.name, description.help), description.labels))
    }

    fn counter(&self, description: &Description) -> IntCounter {
        self.add(IntCounter::new(description.name, description.help))
    }

    fn gauges(&self, description: &Description) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(description.name, description.help), description.labels))
    }

    fn gauge(&self, description: &Description) -> IntGauge {
        self.add(IntGauge::new(description.name, description.help))
    }

    fn histograms(&self, description: &Description) -> HistogramVec {
        let options = HistogramOpts::new(description.name, description.help).buckets(REQUEST_BUCKETS.to_vec());
        self.add(HistogramVec::new(options, description.labels))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Fresh metrics, all zero.
    pub fn new() -> Self {
        let register = Registrar(Registry::new());
        let build_info = register.gauges(&BUILD_INFO);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self(Arc::new(MetricsInner {
            requests: register.counters(&REQUESTS),
            request_seconds: register.histograms(&REQUEST_SECONDS),
            denials: register.counters(&DENIALS),
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
            redirect_repairs: register.counters(&REDIRECT_REPAIRS),
            redirect_check_failures: register.counters(&REDIRECT_CHECK_FAILURES).with_label_values::<&str>(&[]),
            redirect_forgotten: register.counters(&REDIRECT_FORGOTTEN).with_label_values::<&str>(&[]),
            self_test: register.add(IntGaugeVec::new(Opts::new(SELF_TEST.name, SELF_TEST.help), SELF_TEST.labels)),
            self_test_failures: register.counters(&SELF_TEST_FAILURES),
            pods_outside: register.gauge(&PODS_OUTSIDE),
            cni_results: register.gauges(&CNI_RESULTS),
            startup_taint: register.counters(&STARTUP_TAINT),
            registry: register.0,
        }))
    }

    /// The text form that Prometheus scrapes, version 0.0.4.
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
        if let Some(CountSource(count)) = self.0.pod_waits_source.get() {
            self.0.pod_waits_refused.inc_by(count().saturating_sub(self.0.pod_waits_refused.get()));
        }
        if let Some(CountSource(count)) = self.0.link_overflows_source.get() {
            self.0.link_overflows.inc_by(count().saturating_sub(self.0.link_overflows.get()));
        }
        self.0.watch_sign_of_life.set(i64::try_from(self.watch_silence().as_secs()).unwrap_or(i64::MAX));
        self.0.registry.gather()
    }

    /// The meters of one route.
    pub fn route(&self, route: &'static str) -> RouteMeters {
        RouteMeters {
            answered: Default::default(),
            seconds: self.0.request_seconds.with_label_values(&[route]),
            route,
            requests: self.0.requests.clone(),
        }
    }

    /// A request was refused.
    pub fn denied(&self, reason: &'static str) {
        self.0.denials.with_label_values(&[reason]).inc();
    }

    /// A request was served that enforcement would have refused.
    pub fn audited(&self, reason: &'static str) {
        self.0.audited.with_label_values(&[reason]).inc();
    }

    /// A pod of this namespace asked without a session token.
    pub fn without_token(&self, namespace: &str, served: bool) {
        self.0.imdsv1.with_label_values(&[namespace, if served { "served" } else { "refused" }]).inc();
    }

    /// These are the namespaces that have pods here. What was counted of others goes: their number would grow for as long as
    /// the process lives, on a node where namespaces come and go.
    pub fn keep_namespaces(&self, namespaces: &BTreeSet<String>) {
        for family in self.0.imdsv1.collect() {
            for labels in family.get_metric().iter().map(|metric| metric.get_label()) {
                let label = |name: &str| labels.iter().find(|label| label.name() == name).map_or("", |label| label.value());
                let (namespace, outcome) = (label("namespace"), label("outcome"));
                if !namespaces.contains(namespace) {
                    // It was there just now, and nobody else takes one away.
                    let _ = self.0.imdsv1.remove_label_values(&[namespace, outcome]);
                }
            }
        }
    }

    /// This became of something that a pod's owner was to be told.
    pub fn event(&self, outcome: &'static str) {
        self.0.events.with_label_values(&[outcome]).inc();
    }

    /// The packet rules are as wanted, or not.
    pub fn redirect_in_place(&self, is: bool) {
        self.0.redirect_in_place.set(i64::from(is));
    }

    /// Packet rules that had been changed were to be put right.
    pub fn redirect_repaired(&self, succeeded: bool) {
        self.0.redirect_repairs.with_label_values(&[if succeeded { "repaired" } else { "failed" }]).inc();
    }

    /// The packet rules could not be compared.
    pub fn redirect_check_failed(&self) {
        self.0.redirect_check_failures.inc();
    }

    /// So many connections from before the packet rules were ended.
    pub fn redirect_forgot(&self, connections: u64) {
        self.0.redirect_forgotten.inc_by(connections);
    }

    /// The self-test ended so: this state alone is 1 among these.
    pub fn self_test(&self, state: &'static str, all: impl IntoIterator<Item = &'static str>) {
        for one in all {
            self.0.self_test.with_label_values(&[one]).set(i64::from(one == state));
        }
    }

    /// A self-test did not pass.
    pub fn self_test_failed(&self, reason: &'static str) {
        self.0.self_test_failures.with_label_values(&[reason]).inc();
    }

    /// So many addresses of pods are behind interfaces that the rules leave out.
    pub fn pods_outside(&self, count: usize) {
        self.0.pods_outside.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many files of CNI results are used and how many are ignored.
    pub fn cni_results(&self, used: usize, ignored: usize) {
        for (state, count) in [("used", used), ("ignored", ignored)] {
            self.0.cni_results.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// This came of a look for the start-up taint.
    pub fn startup_taint(&self, outcome: &'static str) {
        self.0.startup_taint.with_label_values(&[outcome]).inc();
    }

    /// A connection of a pod is open for as long as the answer lives.
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

    /// A connection was closed before a byte was read.
    pub fn connection_refused(&self, reason: &'static str) {
        self.0.connections_refused.with_label_values(&[reason]).inc();
    }

    /// A connection did not come to an orderly end.
    pub fn connection_ended(&self, reason: &'static str) {
        self.0.connections_ended.with_label_values(&[reason]).inc();
    }

    /// How many pods are known.
    pub fn pods_known(&self, count: usize) {
        self.0.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the number of pods on bridges that may have the capability NET_RAW.
    pub fn pods_that_may_forge(&self, count: usize) {
        self.0.pods_that_may_forge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A request waits for its pod for as long as the answer lives.
    pub fn pod_wait(&self) -> InFlight {
        InFlight::new(&self.0.pods_awaited)
    }

    /// Sets the source of the counter of requests that were not allowed to wait for their pod. Only the first call has an effect.
    pub fn pod_waits_refused_from(&self, source: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.0.pod_waits_source.set(CountSource(Box::new(source)));
    }

    /// Sets what counts overflows of notifications about the node's network, at each scrape. The first stays.
    pub fn link_overflows_from(&self, source: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.0.link_overflows_source.set(CountSource(Box::new(source)));
    }

    /// A request waited for its pod.
    pub fn pod_waited(&self, found: bool, waited: Duration) {
        let outcome = if found { "found" } else { "unknown" };
        self.0.pod_waits.with_label_values(&[outcome]).observe(waited.as_secs_f64());
    }

    /// A list or watch failed.
    pub fn watch_failed(&self, resource: &'static str) {
        self.0.watch_errors.with_label_values(&[resource]).inc();
    }

    /// An object could not be read.
    pub fn watch_undecodable(&self, resource: &'static str) {
        self.0.watch_undecodable.with_label_values(&[resource]).inc();
    }

    /// The watch of this node's pods heard from the API just now.
    pub fn watch_alive(&self) {
        *self.watch_alive_at() = Instant::now();
    }

    /// How long the watch of this node's pods has not heard from the API.
    pub fn watch_silence(&self) -> Duration {
        self.watch_alive_at().elapsed()
    }

    fn watch_alive_at(&self) -> MutexGuard<'_, Instant> {
        self.0.watch_alive_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API was asked about an address that several pods claim.
    pub fn ambiguous(&self, outcome: &'static str) {
        self.0.ambiguous.with_label_values(&[outcome]).inc();
    }

    /// The counter of one result of session lookups.
    pub fn session_lookups(&self, result: &'static str) -> IntCounter {
        self.0.sessions.with_label_values(&[result])
    }

    /// A group of values was read from the real metadata service, or was not.
    pub fn metadata_read(&self, outcome: &'static str) {
        self.0.metadata_reads.with_label_values(&[outcome]).inc();
    }

    /// Who counts the sessions that are held, at each scrape. The first stays.
    pub fn sessions_from(&self, source: impl Fn() -> Holdings + Send + Sync + 'static) {
        let _ = self.0.holdings.set(HoldingsSource(Box::new(source)));
    }

    /// The counter of credentials that were served with less than 25 minutes left.
    pub fn session_served_late(&self) -> IntCounter {
        self.0.served_late.clone()
    }

    /// AssumeRole requests that wait for their turn, of one cause.
    pub fn sts_queue(&self, cause: &'static str) -> IntGauge {
        self.0.sts_queue.with_label_values(&[cause])
    }

    /// Counts a request for a session that ended without a request to STS.
    pub fn sts_turned_away(&self, reason: &'static str) {
        self.0.sts_turned_away.with_label_values(&[reason]).inc();
    }

    /// AssumeRole is under way for as long as the answer lives.
    pub fn sts_request(&self) -> InFlight {
        InFlight::new(&self.0.sts_in_flight)
    }

    /// AssumeRole ended.
    pub fn sts_answered(&self, outcome: &'static str, cause: &'static str, took: Duration) {
        self.0.sts_requests.with_label_values(&[cause, outcome]).inc();
        self.0.sts_seconds.observe(took.as_secs_f64());
    }

    /// Credentials of the daemon's own were dropped, which STS took no more.
    pub fn own_credentials_dropped(&self) {
        self.0.own_credentials_dropped.inc();
    }

    /// AssumeRole ended that was asked for an explanation.
    pub fn explained(&self, outcome: &'static str) {
        self.0.sts_explained.with_label_values(&[outcome]).inc();
    }
}

/// One more in a gauge, until dropped.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl InFlight {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The meters of one route. The counters of its statuses are looked up once each, then kept: a request that is answered
/// from memory should not pay for a map of labels.
#[derive(Debug)]
pub struct RouteMeters {
    route: &'static str,
    seconds: Histogram,
    requests: IntCounterVec,
    answered: [OnceLock<IntCounter>; STATUSES.len()],
}

/// The statuses that pods are answered.
const STATUSES: [(u16, &str); 8] =
    [(200, "200"), (400, "400"), (401, "401"), (403, "403"), (404, "404"), (405, "405"), (500, "500"), (0, "other")];

impl RouteMeters {
    /// A request was answered.
    pub fn answered(&self, status: u16, took: Duration) {
        let at = STATUSES.iter().position(|(known, _)| *known == status).unwrap_or(STATUSES.len() - 1);
        let counter = self.answered[at].get_or_init(|| self.requests.with_label_values(&[self.route, STATUSES[at].1]));
        counter.inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchs_silence_grows_until_it_is_heard_of() {
        let metrics = Metrics::new();
        let told = |seconds| String::from_utf8_lossy(&metrics.render()).contains(&format!("last_sign_of_life_seconds {seconds}\n"));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(told(61));
        metrics.watch_alive();
        assert!(told(0));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert!(told(7));
    }

    #[test]
    fn what_was_counted_of_a_namespace_goes_with_its_last_pod() {
        let metrics = Metrics::new();
        let keep = |names: &[&str]| metrics.keep_namespaces(&names.iter().map(|name| (*name).to_owned()).collect());
        let told = |name: &str| String::from_utf8_lossy(&metrics.render()).matches(&format!("namespace=\"{name}\"")).count();
        keep(&["shop", "tools"]);
        for name in ["shop", "tools"] {
            metrics.without_token(name, true);
            metrics.without_token(name, false);
        }
        keep(&["shop", "tools", "new"]);
        assert_eq!((told("shop"), told("tools")), (2, 2));
        keep(&["tools"]);
        assert_eq!((told("shop"), told("tools")), (0, 2));
        keep(&["shop", "tools"]);
        metrics.without_token("shop", true);
        assert_eq!(told("shop"), 1, "it begins anew");
    }

    #[test]
    fn what_is_measured_is_rendered() {
        let metrics = Metrics::new();
        metrics.route("credentials").answered(200, Duration::from_millis(3));
        metrics.route("credentials").answered(418, Duration::from_millis(3));
        metrics.denied("no-role");
        let open = metrics.connection();
        let text = String::from_utf8_lossy(&metrics.render()).into_owned();
        for line in [
            r#"rolegate_http_requests_total{code="200",route="credentials"} 1"#,
            r#"rolegate_http_requests_total{code="other",route="credentials"} 1"#,
            r#"rolegate_denials_total{reason="no-role"} 1"#,
            "rolegate_connections 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(open);
        assert!(String::from_utf8_lossy(&metrics.render()).contains("rolegate_connections 0"));
    }
}

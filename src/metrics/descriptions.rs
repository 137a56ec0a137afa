//! The name, kind, labels and help text of every metric, which `docs/metrics.md` repeats.

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
        $(pub(super) const $constant: Description =
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
    POD_REFUSALS = "counter" "rolegate_pod_refusals_total" ["namespace", "reason"]
        "Refused requests of known pods, by the pod's namespace and the reason.";
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
    KEY_FETCHES = "counter" "rolegate_issuer_key_fetches_total" ["outcome"]
        "Fetches of the keys of the service account issuer, by outcome; only with --pod-identity.";
    KEYS_AGE = "gauge" "rolegate_issuer_keys_age_seconds" []
        "Seconds since the keys of the service account issuer were last fetched, at the time of the scrape; absent before the first fetch.";
    TOKEN_REVIEWS = "counter" "rolegate_token_reviews_total" ["outcome"]
        "Reviews of service account tokens by the Kubernetes API, by outcome; only with --pod-identity-token-review.";
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
    HOST_NETWORK_ENFORCED = "gauge" "rolegate_host_network_enforced" []
        "1 if --host-network-pods is in effect on this node, else 0: then all pods in the node's network reach the real metadata \
         service.";
    EXEMPT_PODS = "gauge" "rolegate_host_network_exempt_pods" []
        "Pods in the node's network that the kernel lets reach the real metadata service.";
    EXEMPTION_UPDATES = "counter" "rolegate_host_network_exemption_updates_total" ["outcome"]
        "Updates of the pods in the node's network that the kernel lets reach the real metadata service, by outcome.";
    EVENTS = "counter" "rolegate_events_total" ["outcome"]
        "Events for the owners of pods, by outcome.";
    REDIRECT_IN_PLACE = "gauge" "rolegate_redirect_in_place" []
        "1 if the packet rules were correct at the last check, else 0.";
    REDIRECT_ROUTING_RULES = "gauge" "rolegate_redirect_routing_rules" []
        "1 if the routing rules were in place at the last check, else 0.";
    REDIRECT_REPAIRS = "counter" "rolegate_redirect_repairs_total" ["outcome"]
        "Repairs of packet rules and routing rules that had been changed, by outcome.";
    REDIRECT_CHECK_FAILURES = "counter" "rolegate_redirect_check_failures_total" []
        "Failed checks of the packet rules and routing rules, after which their state is unknown.";
    FOREIGN_REDIRECTS = "gauge" "rolegate_foreign_redirects" []
        "Redirects by other programs, of the node's own metadata requests or of connections to the daemon, found by the last search.";
    REDIRECT_FORGOTTEN = "counter" "rolegate_redirect_forgotten_connections_total" []
        "Connections that were older than the packet rules, led elsewhere than to the daemon, and were ended.";
    ACCOUNT_CONTRADICTED = "gauge" "rolegate_account_contradicted" []
        "1 while STS and the metadata service contradict each other about the AWS account of this node, else 0.";
    CNI_RESULTS = "gauge" "rolegate_cni_result_files" ["state"]
        "Files in the directory of --cni-results, by whether they are used or ignored.";
    STARTUP_TAINT = "counter" "rolegate_startup_taint_looks_total" ["outcome"]
        "Checks of this node for the start-up taint, by outcome.";
    READY = "gauge" "rolegate_ready" []
        "1 if the daemon is ready, else 0.";
    NOT_READY = "gauge" "rolegate_not_ready" ["cause"]
        "1 for each condition that keeps the daemon from being ready, 0 for the others.";
    ROLE_CREDENTIALS = "counter" "rolegate_role_credentials_total" ["role", "outcome"]
        "Requests for credentials of pods that may have the role, by role and outcome; only with --metrics-role-label.";
    PROCESS_CPU = "counter" "process_cpu_seconds_total" []
        "CPU time of the process, in user and kernel mode, in seconds.";
    PROCESS_RESIDENT = "gauge" "process_resident_memory_bytes" []
        "Resident memory of the process, in bytes.";
    PROCESS_VIRTUAL = "gauge" "process_virtual_memory_bytes" []
        "Virtual memory of the process, in bytes.";
    PROCESS_OPEN_FDS = "gauge" "process_open_fds" []
        "Open file descriptors of the process.";
    PROCESS_MAX_FDS = "gauge" "process_max_fds" []
        "Maximum number of open file descriptors of the process.";
    PROCESS_START = "gauge" "process_start_time_seconds" []
        "Start of the process, in seconds since 1970.";
    MIGRATION_FINDINGS = "gauge" "rolegate_migration_findings" ["finding", "namespace"]
        "Workloads that the strict settings would refuse something, by kind of finding and namespace; only with --migrate.";
}

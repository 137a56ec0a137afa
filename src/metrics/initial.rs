//! The values of labels that are known beforehand. Counters with them have all their series from the start, with the value 0, so that
//! `rate()` and `increase()` see the first event.
//!
//! Counters with a namespace or a role do not: which ones there will be is not known. A test compares these values with the documented
//! ones, which another test compares with the code that counts.

use prometheus::IntCounterVec;

/// The causes of requests to STS.
pub(super) const CAUSES: &[&str] = &["demand", "prefetch", "renewal"];
/// The outcomes of requests to STS.
pub(super) const STS_OUTCOMES: &[&str] =
    &["ok", "denied", "invalid", "too-long", "throttled", "own-identity", "identity-unknown", "unreachable", "other-role", "failed"];
/// The reasons of refusals, besides those of [`AUDITED`].
pub(super) const DENIALS: &[&str] = &[
    "unknown-pod",
    "unknown-cgroup",
    "host-network",
    "host-network-exempt",
    "cgroup-conflict",
    "not-in-host-network",
    "pods-not-listed",
    "ambiguous-pod",
    "unreadable-pod",
    "link-changed",
    "cni-result-conflict",
    "before-boot",
    "api-stale",
    "no-role",
    "target-role-without-role",
    "role-empty",
    "role-spaces",
    "role-control-characters",
    "role-too-long",
    "not-a-role-arn",
    "role-partition",
    "role-account",
    "role-path",
    "role-name",
    "no-base-arn",
    "service-account-unknown",
    "service-accounts-forbidden",
    "foreign-account",
    "contradicted-account",
    "other-partition",
    "node-role",
    "not-allowed-on-node",
    "bad-external-id",
    "changed",
    "other-role",
    "token",
    "path",
    "metadata",
    "sts",
    "malformed",
    "forwarded",
    "host",
    "method",
    "token-version",
    "token-other-pod",
    "token-other-node",
    "token-expired",
    "token-not-yet-valid",
    "token-wrong-issuer",
    "token-wrong-audience",
    "token-not-of-pod",
    "token-unknown-key",
    "token-bad-signature",
    "token-wrong-algorithm",
    "token-unsupported-algorithm",
    "token-too-large",
    "token-missing",
    "token-not-compact",
    "token-bad-header",
    "token-critical-extension",
    "token-bad-key-id",
    "token-bad-payload",
    "token-bad-claim",
    "token-no-keys",
    "token-keys-outdated",
    "token-review-refused",
    "token-review-unavailable",
    "node-without-token",
    "token-fetches-limited",
];
/// The reasons of refusals that `--namespace-restrictions=audit` counts, and serves.
pub(super) const AUDITED: &[&str] = &[
    "namespace-unknown",
    "no-namespace-list",
    "not-allowed-in-namespace",
    "bad-namespace-list",
    "namespace-list-too-large",
    "bad-namespace-pattern",
];
pub(super) const CONNECTIONS_REFUSED: &[&str] = &[
    "limit",
    "room",
    "namespace-room",
    "source-limit",
    "unknown-limit",
    "source-rate",
    "unknown-rate",
    "cgroup-limit",
    "record-unreadable",
    "cgroups-unreadable",
    "not-redirected",
    "accept-failed",
];
pub(super) const CONNECTIONS_ENDED: &[&str] = &["timeout", "idle", "malformed", "peer", "made-room", "displaced"];
pub(super) const METRICS_REFUSED: &[&str] = &["limit", "namespace-room", "source-limit", "source-rate", "unknown-limit", "unknown-rate"];
pub(super) const RESOURCES: &[&str] = &["pods", "namespaces", "serviceaccounts"];
pub(super) const KEY_FETCHES: &[&str] = &["ok", "failed"];
pub(super) const TOKEN_REVIEWS: &[&str] = &["confirmed", "refused", "failed", "skipped", "turned-away"];
pub(super) const AMBIGUOUS: &[&str] = &["settled", "confirmed", "unanswered"];
pub(super) const SESSIONS: &[&str] = &["hit", "miss", "shared", "remembered", "turned-away"];
pub(super) const METADATA_READS: &[&str] = &["ok", "failed"];
pub(super) const STS_TURNED_AWAY: &[&str] = &["too-many-changes", "queue-full", "queued", "superseded"];
pub(super) const EVENTS: &[&str] = &["written", "suppressed", "dropped", "failed"];
pub(super) const REDIRECT_REPAIRS: &[&str] = &["repaired", "failed"];
pub(super) const SELF_TEST_FAILURES: &[&str] = &[
    "missed",
    "refused",
    "timeout",
    "unreachable",
    "open",
    "guard-missing",
    "guard-unknown",
    "denied",
    "by-rules",
    "unrecorded",
    "not-denied",
    "not-dropped",
    "exit-guard-missing",
    "exit-guard-wrong",
    "exit-guard-unknown",
    "not-made",
    "helper",
];
pub(super) const STARTUP_TAINT: &[&str] = &["removed", "absent", "conflict", "forbidden", "failed"];
pub(super) const EXEMPTION_UPDATES: &[&str] = &["written", "failed"];

/// Creates the series of a counter with one label.
pub(super) fn start(counters: &IntCounterVec, values: &[&str]) {
    for value in values {
        counters.with_label_values(&[value]);
    }
}

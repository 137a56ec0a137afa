//! The status of the daemon for people: what it serves to which pod, and what it has seen of its own parts.
//!
//! A [`StatusDocument`] has only plain data: no credentials, no access key IDs, no session names, and no text of annotations. `/status.json`
//! is this document, and `/status` shows it as a page without scripts. Both are made for one request at a time, from what other modules
//! know: nothing is recorded for them while a pod's request is answered. There are at most as many rows as pods.

use serde::Serialize;

use crate::explain::ReportedDecision;

pub(crate) mod collector;
mod html;
pub(crate) mod page;

/// The version of the document's form. It grows if a field is removed or changes its meaning.
pub(crate) const VERSION: u32 = 1;

/// The status of one daemon. Times are in RFC 3339 format, in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StatusDocument {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// When the document was made.
    pub(crate) generated_at: String,
    /// The process.
    pub(crate) daemon: DaemonStatus,
    /// The pods of the node, in the order of namespace and name.
    pub(crate) pods: Vec<PodStatus>,
    /// The rules that the daemon keeps.
    pub(crate) rules: Vec<RuleStatus>,
    /// The watch of the node's pods.
    pub(crate) watch: WatchStatus,
    /// The last failures of STS, the last one first.
    pub(crate) sts_errors: Vec<StsErrorStatus>,
    /// The limits that have turned something away since the start.
    pub(crate) limits: Vec<LimitStatus>,
    /// The last self-test.
    pub(crate) self_test: SelfTestStatus,
}

/// The process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DaemonStatus {
    /// The version of rolegate.
    pub(crate) version: &'static str,
    /// The node; empty while the daemon does not know it.
    pub(crate) node: String,
    /// When the daemon started.
    pub(crate) started_at: String,
    /// For how long it has run.
    pub(crate) uptime_seconds: u64,
    /// Whether `/readyz` answers 200.
    pub(crate) ready: bool,
    /// The conditions that are not met.
    pub(crate) not_ready: Vec<ConditionStatus>,
}

/// A condition of readiness that is not met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ConditionStatus {
    /// The label `cause` of `rolegate_not_ready`.
    pub(crate) cause: &'static str,
    /// The text of `/readyz`.
    pub(crate) waiting_for: &'static str,
}

/// A pod and the decision about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PodStatus {
    /// The namespace.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
    /// The addresses from which requests are the pod's; for a pod in the node's network, those of the node, or none.
    pub(crate) addresses: Vec<String>,
    /// Whether the pod is in the node's network.
    pub(crate) host_network: bool,
    /// The decision, as `rolegate explain` reports it.
    pub(crate) decision: ReportedDecision,
    /// The code of the reason; `None` if the role is allowed.
    pub(crate) reason: Option<String>,
    /// The decision as a sentence, with what to do.
    pub(crate) message: String,
    /// What else is to be said about the decision.
    pub(crate) notes: Vec<String>,
    /// The ARN of the role that the pod gets or names; `None` if it names none, or none that is valid.
    pub(crate) role: Option<String>,
    /// The ARN of the role that assumes it, if it is a target role.
    pub(crate) source_role: Option<String>,
    /// The session; `None` if the pod may not have one, or it was never requested.
    pub(crate) session: Option<SessionStatus>,
}

/// A session, without anything that identifies it in AWS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SessionStatus {
    /// `valid` if there are credentials that pods get now, else `requested` or `failed`.
    pub(crate) state: &'static str,
    /// When STS issued the credentials.
    pub(crate) issued_at: Option<String>,
    /// Their age.
    pub(crate) age_seconds: Option<u64>,
    /// When they expire.
    pub(crate) expires_at: Option<String>,
    /// The time until then.
    pub(crate) expires_in_seconds: Option<u64>,
    /// The outcome of the last request to STS, if it failed.
    pub(crate) error: Option<&'static str>,
}

/// Rules of one kind and one address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RuleStatus {
    /// `packet-rules`, `routing-rules` or `bpf-programs`.
    pub(crate) kind: &'static str,
    /// What keeps them.
    pub(crate) backend: &'static str,
    /// `ipv4` or `ipv6`; `None` if they are for both.
    pub(crate) family: Option<&'static str>,
    /// Whether they were as wanted at the last check.
    pub(crate) in_place: bool,
    /// The result of the last check.
    pub(crate) state: &'static str,
    /// Where they send pods' requests, if anywhere.
    pub(crate) redirects_to: Option<String>,
    /// When they were compared last; a check that failed does not count.
    pub(crate) last_checked_at: Option<String>,
    /// How often they were repaired since the start.
    pub(crate) repairs: u64,
    /// When they were repaired last.
    pub(crate) last_repaired_at: Option<String>,
}

/// The watch of the node's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WatchStatus {
    /// Whether there was a complete list of pods.
    pub(crate) listed: bool,
    /// When the Kubernetes API was last heard from; before the first time, the start of the daemon.
    pub(crate) last_contact_at: String,
    /// The time since then.
    pub(crate) silent_seconds: u64,
    /// Whether this is longer than `--max-staleness`.
    pub(crate) stale: bool,
}

/// Failures of STS with one code, for one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StsErrorStatus {
    /// The outcome, as in `rolegate_sts_requests_total`.
    pub(crate) code: &'static str,
    /// The ARN of the role.
    pub(crate) role: String,
    /// How many.
    pub(crate) count: u64,
    /// When the last of them was.
    pub(crate) last_at: String,
}

/// A limit that has turned something away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LimitStatus {
    /// The metric that counts it.
    pub(crate) metric: &'static str,
    /// The limit: the value of the metric's label, empty if it has none.
    pub(crate) limit: String,
    /// How often, since the start.
    pub(crate) count: u64,
}

/// The last self-test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SelfTestStatus {
    /// `passed`, `failed`, `unavailable` or `off`; `pending` before the first result.
    pub(crate) state: &'static str,
    /// The reason of a failure, as in `rolegate_self_test_failures_total`.
    pub(crate) reason: Option<&'static str>,
    /// When this was found.
    pub(crate) last_result_at: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests;

//! Collects the status from the parts of the daemon that know it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::{Timestamp, TimestampRound, Unit};
use tokio::time::Instant;

use super::{
    ConditionStatus, DaemonStatus, LimitStatus, PodStatus, RuleStatus, SelfTestStatus, SessionStatus, StatusDocument, StsErrorStatus,
    VERSION, WatchStatus,
};
use crate::clock::Clock;
use crate::credentials::StsOfNode;
use crate::credentials::cache::SessionView;
use crate::explain::explainer::Explainer;
use crate::explain::look::look_at;
use crate::explain::{By, Report, ReportedDecision};
use crate::metrics::observed::RuleRecord;
use crate::metrics::{ComparedRules, Metrics, RuleState};
use crate::pods::{Pod, PodContext, Pods};
use crate::readiness::{CONDITIONS, Readiness};

/// The number of pods after which other tasks get a turn.
const AT_ONCE: usize = 16;
/// The code of a decision before the daemon has its policy.
const STARTING: &str = "starting";

/// Where the status comes from.
#[derive(Debug)]
pub(crate) struct StatusCollector<A> {
    /// The name of the node in the settings. If it is empty, the explainer has the one that was found.
    pub(crate) node: String,
    /// The wall clock.
    pub(crate) clock: Clock,
    /// When the daemon started.
    pub(crate) started_at: Timestamp,
    /// Counts and records.
    pub(crate) metrics: Metrics,
    /// The conditions of the daemon.
    pub(crate) readiness: Readiness,
    /// The pods.
    pub(crate) pods: Pods,
    /// What decides about pods, once the daemon has its policy.
    pub(crate) explainer: Arc<OnceLock<Explainer<A>>>,
}

impl<A: StsOfNode> StatusCollector<A> {
    /// Returns the status now.
    pub(crate) async fn collect(&self) -> StatusDocument {
        let times = Times { wall: self.clock.now(), monotonic: Instant::now() };
        StatusDocument {
            version: VERSION,
            generated_at: written(times.wall),
            daemon: self.daemon(&times),
            pods: self.pods(&times).await,
            rules: self.metrics.rules().into_iter().map(|record| rule(record, &times)).collect(),
            watch: self.watch(&times),
            sts_errors: self.sts_errors(&times),
            limits: self.limits(),
            self_test: self.self_test(&times),
        }
    }

    fn daemon(&self, times: &Times) -> DaemonStatus {
        let pending = self.readiness.pending();
        let not_ready = pending.iter().map(|waiting_for| {
            let cause = CONDITIONS.iter().find(|(condition, _)| condition == waiting_for).map_or("other", |(_, cause)| cause);
            ConditionStatus { cause, waiting_for }
        });
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION"),
            node: self.explainer.get().map_or(&self.node, |explainer| &explainer.node).clone(),
            started_at: written(self.started_at),
            uptime_seconds: seconds_between(self.started_at, times.wall),
            ready: pending.is_empty(),
            not_ready: not_ready.collect(),
        }
    }

    async fn pods(&self, times: &Times) -> Vec<PodStatus> {
        let mut found = Vec::new();
        for (pod, context) in self.pods.all_with_context() {
            if found.len() % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            found.push(self.pod(&pod, &context, times).await);
        }
        found
    }

    async fn pod(&self, pod: &Arc<Pod>, context: &PodContext, times: &Times) -> PodStatus {
        let mut status = PodStatus {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            addresses: pod.ips.iter().map(ToString::to_string).collect(),
            host_network: pod.host_network,
            decision: ReportedDecision::Unknown,
            reason: Some(STARTING.to_owned()),
            message: "the daemon is still starting".to_owned(),
            notes: Vec::new(),
            role: None,
            source_role: None,
            session: None,
        };
        let Some(explainer) = self.explainer.get() else { return status };
        let blank = Report::undecided(&pod.namespace, &pod.name, &explainer.node, By::Daemon);
        let (Report { decision, reason, message, notes, request: parameters, .. }, request) =
            look_at(blank, (pod, context), &self.pods, &explainer.policy);
        (status.decision, status.reason, status.message, status.notes) = (decision, reason, message, notes);
        match parameters {
            Some(parameters) => (status.role, status.source_role) = (Some(parameters.role), parameters.source_role),
            None => status.role = explainer.policy.named_role(pod, context).map(|role| role.to_string()),
        }
        if let (Some(request), Some(daemon)) = (request, &explainer.daemon) {
            status.session = daemon.sessions.view(&request).await.and_then(|view| session(view, times));
        }
        status
    }

    fn watch(&self, times: &Times) -> WatchStatus {
        let silence = self.metrics.watch_silence();
        WatchStatus {
            listed: self.pods.is_listed(),
            last_contact_at: times.before(silence),
            silent_seconds: silence.as_secs(),
            stale: self.pods.is_stale(),
        }
    }

    fn sts_errors(&self, times: &Times) -> Vec<StsErrorStatus> {
        let failures = self.metrics.sts_failures().into_iter();
        failures
            .map(|record| StsErrorStatus { code: record.code, role: record.role, count: record.count, last_at: times.of(record.last_at) })
            .collect()
    }

    fn limits(&self) -> Vec<LimitStatus> {
        let reached = self.metrics.limits_reached().into_iter();
        reached.map(|limit| LimitStatus { metric: limit.metric, limit: limit.limit, count: limit.count }).collect()
    }

    fn self_test(&self, times: &Times) -> SelfTestStatus {
        match self.metrics.last_self_test() {
            Some(record) => SelfTestStatus { state: record.state, reason: record.reason, last_result_at: Some(times.of(record.at)) },
            None => SelfTestStatus { state: "pending", reason: None, last_result_at: None },
        }
    }
}

/// One moment, by both clocks.
struct Times {
    wall: Timestamp,
    monotonic: Instant,
}

impl Times {
    /// Returns the wall clock time of an earlier moment.
    fn of(&self, at: Instant) -> String {
        self.before(self.monotonic.saturating_duration_since(at))
    }

    fn before(&self, ago: Duration) -> String {
        written(self.wall.checked_sub(ago).unwrap_or(self.wall))
    }
}

/// Returns a time in RFC 3339 format, in whole seconds.
fn written(time: Timestamp) -> String {
    time.round(TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Trunc)).unwrap_or(time).to_string()
}

fn seconds_between(earlier: Timestamp, later: Timestamp) -> u64 {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default().as_secs()
}

fn rule(record: RuleRecord, times: &Times) -> RuleStatus {
    let ComparedRules { kind, backend, family, redirects_to, state } = record.rules;
    RuleStatus {
        kind: kind.name(),
        backend,
        family,
        in_place: state == RuleState::InPlace,
        state: state.name(),
        redirects_to: redirects_to.map(|to| to.to_string()),
        last_checked_at: record.compared_at.map(|at| times.of(at)),
        repairs: record.repairs,
        last_repaired_at: record.repaired_at.map(|at| times.of(at)),
    }
}

fn session(view: SessionView, times: &Times) -> Option<SessionStatus> {
    let SessionView { issued_at, expires_at, is_requested, failure } = view;
    let state = match (expires_at, is_requested, failure) {
        (Some(_), _, _) => "valid",
        (None, true, _) => "requested",
        (None, false, Some(_)) => "failed",
        // The credentials have expired, and nobody has asked for others.
        (None, false, None) => return None,
    };
    Some(SessionStatus {
        state,
        issued_at: issued_at.map(written),
        age_seconds: issued_at.map(|at| seconds_between(at, times.wall)),
        expires_at: expires_at.map(written),
        expires_in_seconds: expires_at.map(|at| seconds_between(times.wall, at)),
        error: failure,
    })
}

//! What the status page shows and a number cannot: when rules were compared last, why the self-test failed, and which roles STS refused.
//!
//! It is recorded where the metrics are counted, never for a request that is answered from memory, and everything in it is bounded.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// The number of failures of STS that are remembered, of different roles or with different codes.
pub(crate) const MAX_STS_FAILURES: usize = 20;

/// A set of rules that the daemon keeps in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleKind {
    /// The packet rules.
    Packet,
    /// The routing rules.
    Routing,
    /// The BPF programs.
    Programs,
}

impl RuleKind {
    /// Returns the stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet-rules",
            Self::Routing => "routing-rules",
            Self::Programs => "bpf-programs",
        }
    }
}

/// The result of a comparison of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleState {
    /// The rules are as wanted.
    InPlace,
    /// Only the guard is in place: pods are not redirected yet, and cannot reach the real service.
    Guarded,
    /// The rules differ, and cannot be repaired.
    Wrong,
    /// The rules cannot be read.
    Unknown,
    /// A daemon that was started later has its own rules in place.
    AnotherDaemons,
    /// The kernel lacks what the rules need.
    Unsupported,
}

impl RuleState {
    /// Returns the stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InPlace => "in-place",
            Self::Guarded => "guard-only",
            Self::Wrong => "wrong",
            Self::Unknown => "unknown",
            Self::AnotherDaemons => "of-another-daemon",
            Self::Unsupported => "unsupported",
        }
    }
}

/// The rules of one kind and one address family, as they were compared last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedRules {
    /// Which rules.
    pub kind: RuleKind,
    /// What keeps them: `nftables`, `iptables`, `rtnetlink` or `bpf`.
    pub backend: &'static str,
    /// `ipv4` or `ipv6`; `None` if they are for both.
    pub family: Option<&'static str>,
    /// Where they send pods' requests, if anywhere.
    pub redirects_to: Option<SocketAddr>,
    /// The result.
    pub state: RuleState,
}

/// The record of one kind of rules and one family.
#[derive(Clone, Debug)]
pub(crate) struct RuleRecord {
    /// The last result.
    pub(crate) rules: ComparedRules,
    /// When they were compared last. A comparison that failed does not count.
    pub(crate) compared_at: Option<Instant>,
    /// How often they were repaired.
    pub(crate) repairs: u64,
    /// When they were repaired last.
    pub(crate) repaired_at: Option<Instant>,
}

/// Failures of STS with one code, for one role.
#[derive(Clone, Debug)]
pub(crate) struct StsFailureRecord {
    /// The outcome, as in `rolegate_sts_requests_total`.
    pub(crate) code: &'static str,
    /// The ARN of the role.
    pub(crate) role: String,
    /// How many.
    pub(crate) count: u64,
    /// When the last of them was.
    pub(crate) last_at: Instant,
}

/// The last result of the self-test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SelfTestRecord {
    /// The state, as in `rolegate_self_test`.
    pub(crate) state: &'static str,
    /// The reason of a failure, as in `rolegate_self_test_failures_total`.
    pub(crate) reason: Option<&'static str>,
    /// When it was recorded.
    pub(crate) at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Observed {
    rules: Mutex<Vec<RuleRecord>>,
    sts_failures: Mutex<Vec<StsFailureRecord>>,
    self_test: Mutex<Option<SelfTestRecord>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observed {
    /// Records the result of a comparison of rules.
    pub(super) fn rules_compared(&self, rules: ComparedRules) {
        let is_known = rules.state != RuleState::Unknown;
        let mut records = locked(&self.rules);
        let of_rules = |record: &&mut RuleRecord| (record.rules.kind, record.rules.family) == (rules.kind, rules.family);
        let compared_at = is_known.then(Instant::now);
        match records.iter_mut().find(of_rules) {
            Some(record) => {
                record.rules = rules;
                record.compared_at = compared_at.or(record.compared_at);
            }
            None => {
                records.push(RuleRecord { rules, compared_at, repairs: 0, repaired_at: None });
                records.sort_by_key(|record| (record.rules.kind, record.rules.family));
            }
        }
    }

    /// Records a successful repair of the rules of this kind: of one family, or with `None` of all that are known.
    pub(super) fn rules_repaired(&self, kind: RuleKind, family: Option<&'static str>) {
        let mut records = locked(&self.rules);
        for record in records.iter_mut().filter(|record| record.rules.kind == kind && (family.is_none() || record.rules.family == family)) {
            (record.repairs, record.repaired_at) = (record.repairs + 1, Some(Instant::now()));
        }
    }

    /// Records that STS did not assume a role. With too many roles, those whose failure is longest ago are forgotten.
    pub(super) fn sts_failed(&self, code: &'static str, role: &str) {
        let (mut records, last_at) = (locked(&self.sts_failures), Instant::now());
        let before = records.iter().position(|record| record.code == code && record.role == role).map(|at| records.remove(at));
        let count = before.map_or(0, |before| before.count) + 1;
        if records.len() >= MAX_STS_FAILURES {
            records.remove(0);
        }
        records.push(StsFailureRecord { code, role: role.to_owned(), count, last_at });
    }

    /// Returns the rules that are kept, in a fixed order.
    pub(super) fn rules(&self) -> Vec<RuleRecord> {
        locked(&self.rules).clone()
    }

    /// Returns the failures of STS, the last one first.
    pub(super) fn sts_failures(&self) -> Vec<StsFailureRecord> {
        locked(&self.sts_failures).iter().rev().cloned().collect()
    }

    /// Returns the last result of the self-test.
    pub(super) fn last_self_test(&self) -> Option<SelfTestRecord> {
        *locked(&self.self_test)
    }

    pub(super) fn self_test(&self, state: &'static str) {
        *locked(&self.self_test) = Some(SelfTestRecord { state, reason: None, at: Instant::now() });
    }

    pub(super) fn self_test_failed(&self, reason: &'static str) {
        if let Some(record) = &mut *locked(&self.self_test) {
            record.reason = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Metrics;

    fn rules(family: &'static str, state: RuleState) -> ComparedRules {
        ComparedRules { kind: RuleKind::Packet, backend: "nftables", family: Some(family), redirects_to: None, state }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_comparison_keeps_the_time_of_the_last_one() {
        let metrics = Metrics::new();
        let start = Instant::now();
        metrics.rules_repaired(RuleKind::Packet, None);
        assert!(metrics.rules().is_empty());
        for family in ["ipv6", "ipv4"] {
            metrics.rules_compared(rules(family, RuleState::InPlace));
        }
        tokio::time::advance(Duration::from_secs(9)).await;
        metrics.rules_compared(rules("ipv4", RuleState::Unknown));
        metrics.rules_compared(rules("ipv6", RuleState::InPlace));
        metrics.rules_repaired(RuleKind::Packet, None);
        metrics.rules_repaired(RuleKind::Packet, Some("ipv6"));
        metrics.rules_repaired(RuleKind::Routing, None);
        let found: Vec<_> = metrics
            .rules()
            .into_iter()
            .map(|record| (record.rules.family, record.rules.state, record.compared_at.map(|at| (at - start).as_secs()), record.repairs))
            .collect();
        assert_eq!(found, [(Some("ipv4"), RuleState::Unknown, Some(0), 1), (Some("ipv6"), RuleState::InPlace, Some(9), 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_sts_are_counted_by_role_and_bounded() {
        let metrics = Metrics::new();
        let found = || metrics.sts_failures().into_iter().map(|record| (record.code, record.role, record.count)).collect::<Vec<_>>();
        metrics.sts_failed("denied", "a");
        metrics.sts_failed("denied", "b");
        metrics.sts_failed("denied", "a");
        metrics.sts_failed("throttled", "b");
        let (a, b) = ("a".to_owned(), "b".to_owned());
        assert_eq!(found(), [("throttled", b.clone(), 1), ("denied", a, 2), ("denied", b, 1)]);
        for role in 0..3 * MAX_STS_FAILURES {
            metrics.sts_failed("denied", &role.to_string());
        }
        assert_eq!((found().len(), &*found()[0].1), (MAX_STS_FAILURES, "59"));
    }
}

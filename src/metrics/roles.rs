//! The metric with a role label, which is off by default.
//!
//! The counters of a role are looked up once for each session, not for each request. A role has series while a session of it is wanted.
//! Only so many roles have their own; the rest share one, so that pods' authors cannot create series without bound.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec};

use super::descriptions::ROLE_CREDENTIALS;
use super::register::Registrar;

/// The number of roles with series of their own.
pub(super) const MAX_ROLES: usize = 100;
/// The value of the label for all other roles. It is no ARN.
pub(super) const OTHER_ROLES: &str = "other";
/// The values of the label `outcome`.
const OUTCOMES: [&str; 2] = ["served", "failed"];

#[derive(Debug)]
pub(super) struct RoleMetrics {
    is_on: AtomicBool,
    counters: IntCounterVec,
    /// The roles with series of their own.
    own: Mutex<BTreeSet<String>>,
}

/// The counters of one role.
#[derive(Clone, Debug)]
pub struct RoleMeters {
    served: IntCounter,
    failed: IntCounter,
}

impl RoleMeters {
    /// Counts an answered request for credentials of the role.
    pub fn answered(&self, is_served: bool) {
        if is_served { &self.served } else { &self.failed }.inc();
    }
}

impl RoleMetrics {
    pub(super) fn new(register: &Registrar) -> Self {
        Self { is_on: AtomicBool::new(false), counters: register.counters(&ROLE_CREDENTIALS), own: Mutex::default() }
    }

    pub(super) fn switch_on(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Returns the counters of a role; `None` if the metric is off.
    pub(super) fn of(&self, role: &str) -> Option<RoleMeters> {
        if !self.is_on.load(Ordering::Relaxed) {
            return None;
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let has_own = own.contains(role) || (own.len() < MAX_ROLES && own.insert(role.to_owned()));
        let [served, failed] =
            OUTCOMES.map(|outcome| self.counters.with_label_values(&[if has_own { role } else { OTHER_ROLES }, outcome]));
        Some(RoleMeters { served, failed })
    }

    /// Removes the series of all roles but these.
    pub(super) fn keep(&self, roles: impl FnOnce() -> BTreeSet<String>) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let roles = roles();
        self.own.lock().unwrap_or_else(PoisonError::into_inner).retain(|role| {
            let stays = roles.contains(role);
            if !stays {
                for outcome in OUTCOMES {
                    // The series were created with the entry.
                    let _ = self.counters.remove_label_values(&[&**role, outcome]);
                }
            }
            stays
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn series(metrics: &Metrics) -> Vec<String> {
        let text = String::from_utf8(metrics.render()).unwrap();
        text.lines().filter(|line| line.starts_with("rolegate_role_credentials_total")).map(str::to_owned).collect()
    }

    #[test]
    fn no_role_is_shown_unless_the_metric_is_on() {
        let metrics = Metrics::new();
        assert!(metrics.role_meters("arn:aws:iam::1:role/a").is_none());
        metrics.show_roles();
        metrics.role_meters("arn:aws:iam::1:role/a").unwrap().answered(true);
        let of_role = |outcome| format!(r#"rolegate_role_credentials_total{{outcome="{outcome}",role="arn:aws:iam::1:role/a"}} "#);
        assert_eq!(series(&metrics), [of_role("failed") + "0", of_role("served") + "1"]);
    }

    #[test]
    fn the_number_of_roles_is_bounded_and_series_go_with_their_role() {
        let metrics = Metrics::new();
        metrics.show_roles();
        let name = |number: usize| format!("role-{number:04}");
        for number in 0..MAX_ROLES + 50 {
            metrics.role_meters(&name(number)).unwrap().answered(false);
        }
        assert_eq!(series(&metrics).len(), 2 * (MAX_ROLES + 1));
        assert!(series(&metrics).contains(&r#"rolegate_role_credentials_total{outcome="failed",role="other"} 50"#.to_owned()));
        let kept = [name(3), name(4), name(MAX_ROLES + 1)];
        metrics.keep_roles(|| kept.iter().cloned().collect());
        assert_eq!(series(&metrics).len(), 2 * 3, "two roles and the others");
        metrics.role_meters(&name(MAX_ROLES + 1)).unwrap().answered(true);
        assert_eq!(series(&metrics).len(), 2 * 4, "there is room again");
    }
}

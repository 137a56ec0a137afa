//! The metrics of readiness: whether the daemon is ready, and which conditions are not met.

use std::sync::OnceLock;

use prometheus::{IntGauge, IntGaugeVec};

use super::descriptions::{NOT_READY, READY};
use super::register::Registrar;
use crate::readiness::{CONDITIONS, Readiness};

#[derive(Debug)]
pub(super) struct ReadinessMetrics {
    ready: IntGauge,
    not_ready: IntGaugeVec,
    /// Read at each scrape.
    source: OnceLock<Readiness>,
}

impl ReadinessMetrics {
    pub(super) fn new(register: &Registrar) -> Self {
        Self { ready: register.gauge(&READY), not_ready: register.gauges(&NOT_READY), source: OnceLock::new() }
    }

    /// Sets the source. Only the first call has an effect.
    pub(super) fn follow(&self, readiness: Readiness) {
        let _ = self.source.set(readiness);
    }

    /// Updates the values for a scrape.
    pub(super) fn refresh(&self) {
        let Some(readiness) = self.source.get() else { return };
        let pending = readiness.pending();
        self.ready.set(i64::from(pending.is_empty()));
        for (condition, cause) in CONDITIONS {
            self.not_ready.with_label_values(&[cause]).set(i64::from(pending.contains(&condition)));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;
    use crate::readiness::{CONDITIONS, PACKET_RULES, PODS_KNOWN, Readiness};

    fn values(metrics: &Metrics) -> (usize, Vec<String>) {
        let text = String::from_utf8_lossy(&metrics.render()).into_owned();
        let of_readiness = text.lines().filter(|line| line.starts_with("rolegate_not_ready{") || line.starts_with("rolegate_ready"));
        let all: Vec<_> = of_readiness.map(str::to_owned).collect();
        (all.len(), all.into_iter().filter(|line| line.ends_with(" 1")).collect())
    }

    #[test]
    fn each_cause_has_a_series_and_the_pending_ones_are_1() {
        let (metrics, readiness) = (Metrics::new(), Readiness::default());
        metrics.readiness_of(readiness.clone());
        let all = CONDITIONS.len() + 1;
        assert_eq!(values(&metrics), (all, vec!["rolegate_ready 1".to_owned()]));
        let (list, rules) = (readiness.step(PODS_KNOWN), readiness.step(PACKET_RULES));
        let (packet_rules, pod_list) = (r#"rolegate_not_ready{cause="packet-rules"} 1"#, r#"rolegate_not_ready{cause="pod-list"} 1"#);
        assert_eq!(values(&metrics), (all, vec![packet_rules.to_owned(), pod_list.to_owned()]));
        list.done();
        assert_eq!(values(&metrics), (all, vec![packet_rules.to_owned()]));
        rules.done();
        assert_eq!(values(&metrics), (all, vec!["rolegate_ready 1".to_owned()]));
    }
}

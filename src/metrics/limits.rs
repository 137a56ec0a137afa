//! Which limits have turned something away, for the status page.

use prometheus::IntCounterVec;
use prometheus::core::Collector as _;

use super::descriptions::{CONNECTIONS_ENDED, CONNECTIONS_REFUSED, METRICS_REFUSED, POD_WAITS_REFUSED, STS_TURNED_AWAY, TOKEN_REVIEWS};
use super::{CountSource, Metrics};

/// How often one limit has turned something away since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LimitCount {
    /// The metric that counts it.
    pub(crate) metric: &'static str,
    /// Its label; empty if the metric has none.
    pub(crate) limit: String,
    /// How often.
    pub(crate) count: u64,
}

/// Reasons that are no limits: the connection is not a pod's, or something failed.
const NO_LIMITS: [&str; 4] = ["not-redirected", "accept-failed", "record-unreadable", "cgroups-unreadable"];
/// Reasons why an open connection gave its place to another one.
const MADE_ROOM: [&str; 2] = ["made-room", "displaced"];

impl Metrics {
    /// Returns the limits that have turned something away, each with how often.
    pub(crate) fn limits_reached(&self) -> Vec<LimitCount> {
        let waits = self.0.pod_waits_source.get().map_or(0, |CountSource(count)| count());
        let mut found = Vec::new();
        found.extend(by_label(&self.0.connections_refused, CONNECTIONS_REFUSED.name, |reason| !NO_LIMITS.contains(&reason)));
        found.extend(by_label(&self.0.connections_ended, CONNECTIONS_ENDED.name, |reason| MADE_ROOM.contains(&reason)));
        found.extend(by_label(&self.0.metrics_refused, METRICS_REFUSED.name, |_| true));
        found.push(LimitCount { metric: POD_WAITS_REFUSED.name, limit: String::new(), count: waits });
        found.extend(by_label(&self.0.sts_turned_away, STS_TURNED_AWAY.name, |reason| reason != "superseded"));
        found.extend(by_label(self.0.pod_identity.token_reviews(), TOKEN_REVIEWS.name, |outcome| outcome == "turned-away"));
        found.retain(|limit| limit.count > 0);
        found
    }
}

/// Returns the counts of a counter with one label.
fn by_label(counters: &IntCounterVec, metric: &'static str, is_limit: impl Fn(&str) -> bool) -> Vec<LimitCount> {
    let families = counters.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let of_series = series.filter_map(|series| {
        let limit = series.get_label().first()?.value();
        // Counters of whole numbers.
        is_limit(limit).then(|| LimitCount { metric, limit: limit.to_owned(), count: series.get_counter().get_value() as u64 })
    });
    of_series.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_turned_something_away_are_listed() {
        let metrics = Metrics::new();
        assert!(metrics.limits_reached().is_empty());
        metrics.connection_refused("not-redirected");
        metrics.connection_refused("source-limit");
        metrics.connection_refused("source-limit");
        metrics.connection_ended("idle");
        metrics.connection_ended("displaced");
        metrics.sts_turned_away("superseded");
        metrics.sts_turned_away("queue-full");
        metrics.token_reviewed("confirmed");
        metrics.token_reviewed("turned-away");
        metrics.pod_waits_refused_from(|| 7);
        let found = metrics.limits_reached();
        let found: Vec<_> = found.iter().map(|LimitCount { metric, limit, count }| (*metric, &**limit, *count)).collect();
        assert_eq!(
            found,
            [
                ("rolegate_connections_refused_total", "source-limit", 2),
                ("rolegate_connections_ended_total", "displaced", 1),
                ("rolegate_pod_waits_refused_total", "", 7),
                ("rolegate_sts_turned_away_total", "queue-full", 1),
                ("rolegate_token_reviews_total", "turned-away", 1),
            ]
        );
    }
}

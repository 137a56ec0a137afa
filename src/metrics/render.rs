//! The metrics as text, with or without namespaces.

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, TextEncoder};

/// The text form that Prometheus scrapes, version 0.0.4.
pub(super) fn text(families: &[MetricFamily]) -> Vec<u8> {
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(families, &mut text) {
        tracing::error!(event = "metrics-render-failed", %error, "cannot encode the metrics; this is a bug in rolegate; please report it");
    }
    text
}

/// The name of the label that holds a namespace, in every metric that has one.
const NAMESPACE: &str = "namespace";

/// Adds up the series of a family that differ only in their namespace. A histogram with namespaces is omitted.
pub(super) fn without_namespaces(mut family: MetricFamily) -> MetricFamily {
    let has_namespace = |metric: &Metric| metric.get_label().iter().any(|label| label.name() == NAMESPACE);
    if !family.get_metric().iter().any(has_namespace) {
        return family;
    }
    let kind = family.get_field_type();
    let mut sums: BTreeMap<Vec<(String, String)>, f64> = BTreeMap::new();
    for metric in family.get_metric() {
        let value = match kind {
            MetricType::COUNTER => metric.get_counter().get_value(),
            MetricType::GAUGE => metric.get_gauge().get_value(),
            _ => continue,
        };
        let labels = metric.get_label().iter().filter(|label| label.name() != NAMESPACE);
        *sums.entry(labels.map(|label| (label.name().to_owned(), label.value().to_owned())).collect()).or_default() += value;
    }
    let series = |(labels, sum): (Vec<(String, String)>, f64)| {
        let mut metric = Metric::from_label(labels.into_iter().map(label_pair).collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(sum);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(sum);
            metric.set_gauge(gauge);
        }
        metric
    };
    family.set_metric(sums.into_iter().map(series).collect());
    family
}

fn label_pair((name, value): (String, String)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name);
    pair.set_value(value);
    pair
}

#[cfg(test)]
mod tests {
    use prometheus::{IntGaugeVec, Opts};

    use super::super::{ALL, Description, Metrics};
    use super::*;

    /// Covers every metric with a namespace, including future ones.
    #[test]
    fn no_namespace_is_in_the_form_without_them_and_sums_are() {
        let metrics = Metrics::new();
        for _ in 0..3 {
            metrics.without_token("secret-a", true);
        }
        metrics.without_token("secret-b", true);
        metrics.without_token("secret-b", false);
        let of = |description: &Description| Opts::new(format!("test_{}", description.name), description.help);
        for description in ALL.iter().filter(|description| description.labels.contains(&NAMESPACE)) {
            let names: Vec<_> = description.labels.iter().map(|name| if *name == NAMESPACE { "secret-c" } else { "x" }).collect();
            let gauge = IntGaugeVec::new(of(description), description.labels).unwrap_or_else(|error| panic!("{error}"));
            gauge.with_label_values(&names).set(7);
            assert!(metrics.0.registry.register(Box::new(gauge)).is_ok());
        }
        let with = String::from_utf8_lossy(&metrics.render()).into_owned();
        assert!(["secret-a", "secret-b", "secret-c"].iter().all(|name| with.contains(name)), "{with}");
        let without = String::from_utf8_lossy(&metrics.render_without_namespaces()).into_owned();
        assert!(!without.contains("secret") && !without.contains("namespace=\""), "{without}");
        for line in [
            r#"rolegate_imdsv1_requests_total{outcome="served"} 4"#,
            r#"rolegate_imdsv1_requests_total{outcome="refused"} 1"#,
            r#"test_rolegate_imdsv1_requests_total{outcome="x"} 7"#,
            "rolegate_connections 0",
        ] {
            assert!(without.contains(line), "{line} is not in\n{without}");
        }
    }
}

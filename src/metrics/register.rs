//! Creates metrics from their descriptions and registers them.

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::descriptions::Description;

/// Upper bounds in seconds. Most SDKs time out after one second, some after half a second.
const REQUEST_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Registers metrics. Two metrics of one name are a mistake that every test finds.
pub(super) struct Registrar(pub(super) Registry);

impl Registrar {
    pub(super) fn add<M: prometheus::core::Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        #[expect(clippy::expect_used, reason = "a start-up invariant: the descriptions are valid and unique")]
        let metric = metric.expect("a description is valid");
        #[expect(clippy::expect_used, reason = "a start-up invariant: the descriptions are valid and unique")]
        self.0.register(Box::new(metric.clone())).expect("every metric is described once");
        metric
    }

    pub(super) fn counters(&self, description: &Description) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(description.name, description.help), description.labels))
    }

    pub(super) fn counter(&self, description: &Description) -> IntCounter {
        self.add(IntCounter::new(description.name, description.help))
    }

    pub(super) fn gauges(&self, description: &Description) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(description.name, description.help), description.labels))
    }

    pub(super) fn gauge(&self, description: &Description) -> IntGauge {
        self.add(IntGauge::new(description.name, description.help))
    }

    pub(super) fn histograms(&self, description: &Description) -> HistogramVec {
        let options = HistogramOpts::new(description.name, description.help).buckets(REQUEST_BUCKETS.to_vec());
        self.add(HistogramVec::new(options, description.labels))
    }
}

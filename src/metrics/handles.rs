//! Handles that a caller keeps: a gauge of what is in flight, and the metrics of one route.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

/// Adds one to a gauge until it is dropped.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl InFlight {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics of one route. The counter of each status is looked up once and kept, so that a request answered from memory does
/// not pay for a lookup by labels.
#[derive(Debug)]
pub struct RouteMeters {
    pub(super) route: &'static str,
    pub(super) seconds: Histogram,
    pub(super) requests: IntCounterVec,
    pub(super) answered: [OnceLock<IntCounter>; STATUSES.len()],
}

/// The statuses that only requests with service account tokens get.
const ONLY_WITH_POD_IDENTITY: [u16; 2] = [429, 503];
/// The routes of Pod Identity.
const OF_POD_IDENTITY: [&str; 2] = ["pod-identity", "relative-uri"];

/// The statuses of answers to pods.
const STATUSES: [(u16, &str); 10] = [
    (200, "200"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
    (0, "other"),
];

impl RouteMeters {
    /// Creates the series of each status that the route may have.
    pub(super) fn started(self) -> Self {
        for (at, (status, label)) in STATUSES.iter().enumerate() {
            if *status != 0 && (OF_POD_IDENTITY.contains(&self.route) || !ONLY_WITH_POD_IDENTITY.contains(status)) {
                let _ = self.answered[at].set(self.requests.with_label_values(&[self.route, label]));
            }
        }
        self
    }

    /// Counts an answered request and its duration.
    pub fn answered(&self, status: u16, took: Duration) {
        let at = STATUSES.iter().position(|(known, _)| *known == status).unwrap_or(STATUSES.len() - 1);
        let counter = self.answered[at].get_or_init(|| self.requests.with_label_values(&[self.route, STATUSES[at].1]));
        counter.inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

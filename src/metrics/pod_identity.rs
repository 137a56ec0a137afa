//! The metrics of Pod Identity.

use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounterVec, IntGaugeVec};
use tokio::time::Instant;

use super::descriptions::{KEY_FETCHES, KEYS_AGE, TOKEN_REVIEWS};
use super::initial;
use super::register::Registrar;

#[derive(Debug)]
pub(super) struct PodIdentityMetrics {
    key_fetches: IntCounterVec,
    keys_age: IntGaugeVec,
    /// When the keys were last fetched.
    keys_fetched_at: Mutex<Option<Instant>>,
    token_reviews: IntCounterVec,
}

impl PodIdentityMetrics {
    pub(super) fn new(register: &Registrar) -> Self {
        let (key_fetches, token_reviews) = (register.counters(&KEY_FETCHES), register.counters(&TOKEN_REVIEWS));
        initial::start(&key_fetches, initial::KEY_FETCHES);
        initial::start(&token_reviews, initial::TOKEN_REVIEWS);
        Self { key_fetches, keys_age: register.gauges(&KEYS_AGE), keys_fetched_at: Mutex::default(), token_reviews }
    }

    /// Counts a fetch of the keys.
    pub(super) fn keys_fetched(&self, has_worked: bool) {
        self.key_fetches.with_label_values(&[if has_worked { "ok" } else { "failed" }]).inc();
        if has_worked {
            *self.keys_fetched_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Counts a review of a token.
    pub(super) fn token_reviewed(&self, outcome: &'static str) {
        self.token_reviews.with_label_values(&[outcome]).inc();
    }

    /// Returns the counters of token reviews.
    pub(super) fn token_reviews(&self) -> &IntCounterVec {
        &self.token_reviews
    }

    /// Updates what depends on the time of the scrape.
    pub(super) fn refresh(&self) {
        if let Some(at) = *self.keys_fetched_at.lock().unwrap_or_else(PoisonError::into_inner) {
            self.keys_age.with_label_values::<&str>(&[]).set(i64::try_from(at.elapsed().as_secs()).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::metrics::Metrics;

    #[tokio::test(start_paused = true)]
    async fn the_age_of_the_keys_grows_until_the_next_fetch() {
        let metrics = Metrics::new();
        let age = || {
            let text = String::from_utf8_lossy(&metrics.render()).into_owned();
            text.lines().find_map(|line| line.strip_prefix("rolegate_issuer_keys_age_seconds ").map(str::to_owned))
        };
        metrics.issuer_keys_fetched(false);
        assert_eq!(age(), None);
        metrics.issuer_keys_fetched(true);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(age().as_deref(), Some("61"));
        metrics.issuer_keys_fetched(false);
        assert_eq!(age().as_deref(), Some("61"));
        metrics.issuer_keys_fetched(true);
        assert_eq!(age().as_deref(), Some("0"));
    }
}

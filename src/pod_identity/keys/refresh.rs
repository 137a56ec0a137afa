//! The task that fetches the keys.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::demands::LEAST_BETWEEN;
use super::known::{IssuerKeys, TrustedIssuer};
use super::set::{KeySet, issuer_of};
use super::source::{KeySource, KeySourceError};
use crate::advice::{Advise as _, chain};
use crate::backoff::{Backoff, spread};
use crate::log_once::Condition;
use crate::metrics::Metrics;

/// How often the keys are fetched, minus a jitter of up to a quarter. A key that the cluster withdraws continues to work for this time.
pub const REFRESH_EVERY: Duration = Duration::from_secs(5 * 60);
/// The timeout of a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses after failures. Tokens do not shorten them.
const AFTER_FAILURES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// The task that fetches the keys.
pub struct KeyRefresher {
    keys: IssuerKeys,
    source: Arc<dyn KeySource>,
    issuers: Vec<String>,
    failing: Condition,
    metrics: Metrics,
}

/// Creates the read side and the task. If `issuers` is empty, the accepted issuer is the one that the configuration document of the source
/// names. During a change of the issuer, give the old one and the new one, because pods keep tokens of the old one until the kubelet
/// replaces them. The metrics count the fetches.
pub fn issuer_keys(source: Arc<dyn KeySource>, issuers: Vec<String>, metrics: Metrics) -> (IssuerKeys, KeyRefresher) {
    let keys = IssuerKeys::new();
    (keys.clone(), KeyRefresher { keys, source, issuers, failing: Condition::default(), metrics })
}

impl KeyRefresher {
    /// Fetches the keys until the process ends.
    pub async fn run(self) {
        let (mut failures, mut demanded) = (0, None::<Instant>);
        loop {
            self.keys.begin();
            let fetched = self.fetch().await;
            self.metrics.issuer_keys_fetched(fetched.is_ok());
            let pause = match fetched {
                Ok(trusted) => {
                    failures = 0;
                    self.accept(trusted);
                    spread(REFRESH_EVERY)
                }
                Err(error) => {
                    self.keys.end(None);
                    self.log_failure(&error);
                    let pause = spread(AFTER_FAILURES.pause(failures));
                    failures = failures.saturating_add(1);
                    pause
                }
            };
            // The first token with an unknown key causes a fetch at once, even if the last regular fetch has just ended.
            let wanted = async {
                if failures > 0 {
                    return std::future::pending().await;
                }
                self.keys.wanted().await;
                if let Some(demanded) = demanded {
                    sleep_until(demanded + LEAST_BETWEEN).await;
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = wanted => demanded = Some(Instant::now()),
            }
        }
    }

    async fn fetch(&self) -> Result<TrustedIssuer, KeySourceError> {
        let fetch = async {
            if !self.issuers.is_empty() {
                let keys = KeySet::parse(&self.source.keys().await?)?;
                return Ok(TrustedIssuer { issuers: self.issuers.clone(), keys });
            }
            let (keys, configuration) = try_join(self.source.keys(), self.source.configuration()).await?;
            Ok(TrustedIssuer { issuers: vec![issuer_of(&configuration)?], keys: KeySet::parse(&keys)? })
        };
        timeout(FETCH_TIMEOUT, fetch).await.unwrap_or(Err(KeySourceError::Slow))
    }

    fn accept(&self, trusted: TrustedIssuer) {
        let (issuers, usable, unusable) = (trusted.issuers.join(", "), trusted.keys.len(), trusted.keys.unusable().to_vec());
        if self.keys.end(Some(trusted)) {
            info!(
                event = "issuer-keys-changed",
                issuers,
                keys = usable,
                "the keys or the name of the service account issuer changed, or were fetched for the first time; using them"
            );
            if let Some(reason) = unusable.first() {
                warn!(
                    event = "issuer-keys-unusable",
                    unusable = unusable.len(),
                    %reason,
                    "cannot use some keys of the service account issuer; refusing tokens signed with them; let the API server sign with an \
                     RSA key of at least 2048 bits, or with a key on P-256 or P-384"
                );
            }
        }
        if self.failing.ends() {
            info!(event = "issuer-keys-fetched-again", "the keys of the service account issuer can be fetched again");
        }
    }

    fn log_failure(&self, error: &KeySourceError) {
        if !self.failing.begins() {
            return;
        }
        warn!(
            event = "issuer-keys-fetch-failed",
            error = chain(error),
            advice = error.advice().as_deref(),
            "cannot fetch the keys of the service account issuer; retrying, using the last known ones; check the connection to the API server"
        );
    }
}

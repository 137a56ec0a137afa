//! Confirmation of tokens by the API server (TokenReview), in addition to the verification with the issuer's keys. The API server also
//! knows which pods and service accounts were deleted.
//!
//! Only tokens that are valid by themselves, and that their own pod sent, are reviewed. A confirmed token is reviewed again after
//! [`REVIEW_EVERY`]. While the API is not available, a token that was confirmed before stays confirmed, and a new one has to wait.
//! Requests with the same token share one review. [`gate`] shares the reviews that run at one time fairly among pods.

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::token::{BearerToken, Claims, TokenDigest, TokenError};
use super::token_cache::token_cache;
use crate::advice::{Advise as _, chain};
use crate::backoff::spread;
use crate::log_once::Condition;
use crate::metrics::Metrics;

mod api;
mod gate;

pub use api::ApiTokenReviewer;
use api::ReviewError;
pub use api::{ReviewedToken, TokenReviewer};
use gate::ReviewGate;

/// How long a confirmed token is used before the API is asked again, minus a jitter of up to a quarter. A withdrawn token continues to work
/// for this time.
pub const REVIEW_EVERY: Duration = Duration::from_secs(5 * 60);
/// How long a refusal is remembered. It is short, because an API server may be behind another one that issued the token.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// How long a token that was confirmed before is used after a review that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
/// The time after a review that failed in which no other one is tried, so that requests do not wait for an API that is not available.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest time that a token waits for its review. SDKs give up after one or two seconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lets the API confirm tokens; cheap to clone.
#[derive(Clone, Debug)]
pub struct TokenReviews(Arc<ReviewState>);

struct ReviewState {
    reviewer: Arc<dyn TokenReviewer>,
    audience: String,
    verdicts: Cache<TokenDigest, Verdict>,
    gate: ReviewGate,
    failing: Condition,
    /// The end of the pause after a failure.
    paused_until: Mutex<Option<Instant>>,
    metrics: Metrics,
}

impl std::fmt::Debug for ReviewState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReviewState").field("audience", &self.audience).field("failing", &self.failing).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Verdict {
    outcome: ReviewOutcome,
    /// Whether the last answer of the API confirmed the token.
    is_confirmed: bool,
    /// When the API is asked again.
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReviewOutcome {
    Confirmed,
    Refused,
    /// The API was not asked for a while, or did not answer.
    Unavailable,
    /// The pod has too many reviews at this time, so the API was not asked. If that counted like an API that is not available, a pod could
    /// keep a withdrawn token by causing it.
    TurnedAway,
}

impl TokenReviews {
    /// Creates reviews of tokens for this audience.
    pub fn new(reviewer: Arc<dyn TokenReviewer>, audience: &str, metrics: Metrics) -> Self {
        Self(Arc::new(ReviewState {
            reviewer,
            audience: audience.to_owned(),
            verdicts: token_cache(),
            gate: ReviewGate::default(),
            failing: Condition::default(),
            paused_until: Mutex::default(),
            metrics,
        }))
    }

    /// Checks that the API confirms a token with these claims, or did so within [`REVIEW_EVERY`].
    pub async fn confirm(&self, token: &BearerToken, claims: &Claims) -> Result<(), TokenError> {
        let (state, digest) = (&self.0, token.digest());
        let review = async {
            let was_confirmed = state.verdicts.get(&digest).await.is_some_and(|earlier| earlier.is_confirmed);
            state.verdict(token, claims, was_confirmed).await
        };
        let is_over = |verdict: &Verdict| verdict.until <= Instant::now();
        // Concurrent calls for one token share one evaluation.
        let verdict = state.verdicts.entry(digest).or_insert_with_if(review, is_over).await.into_value();
        match verdict.outcome {
            ReviewOutcome::Confirmed => Ok(()),
            ReviewOutcome::Refused => Err(TokenError::ReviewRefused),
            ReviewOutcome::Unavailable | ReviewOutcome::TurnedAway => Err(TokenError::ReviewUnavailable),
        }
    }
}

impl ReviewState {
    async fn verdict(&self, token: &BearerToken, claims: &Claims, was_confirmed: bool) -> Verdict {
        let reviewed = self.review(token, claims).await;
        let now = Instant::now();
        let (outcome, until) = match reviewed {
            ReviewOutcome::Confirmed => (ReviewOutcome::Confirmed, now + spread(REVIEW_EVERY)),
            ReviewOutcome::Refused => (ReviewOutcome::Refused, now + REFUSED_FOR),
            ReviewOutcome::Unavailable if was_confirmed => (ReviewOutcome::Confirmed, now + spread(AFTER_FAILURE)),
            ReviewOutcome::Unavailable | ReviewOutcome::TurnedAway => (reviewed, now),
        };
        let is_confirmed = outcome == ReviewOutcome::Confirmed || was_confirmed && outcome != ReviewOutcome::Refused;
        Verdict { outcome, is_confirmed, until }
    }

    /// Asks the API once.
    async fn review(&self, token: &BearerToken, claims: &Claims) -> ReviewOutcome {
        if self.is_paused() {
            self.metrics.token_reviewed("skipped");
            return ReviewOutcome::Unavailable;
        }
        let Some(place) = self.gate.enter(claims) else {
            self.metrics.token_reviewed("turned-away");
            return ReviewOutcome::TurnedAway;
        };
        let answer = tokio::select! {
            answer = timeout(PATIENCE, self.reviewer.review(token, &self.audience)) => answer.unwrap_or(Err(ReviewError::Slow)),
            () = place.lost() => {
                self.metrics.token_reviewed("turned-away");
                return ReviewOutcome::TurnedAway;
            }
        };
        match answer {
            Ok(reviewed) => {
                if self.failing.ends() {
                    info!(event = "token-reviews-work-again", "the Kubernetes API reviews service account tokens again");
                }
                let is_confirmed = reviewed.is_some_and(|reviewed| reviewed.confirms(claims, &self.audience));
                self.metrics.token_reviewed(if is_confirmed { "confirmed" } else { "refused" });
                if is_confirmed { ReviewOutcome::Confirmed } else { ReviewOutcome::Refused }
            }
            Err(error) => {
                self.metrics.token_reviewed("failed");
                *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + spread(PAUSE));
                if self.failing.begins() {
                    warn!(
                        event = "token-reviews-failed",
                        error = chain(&error),
                        advice = error.advice().as_deref(),
                        "the Kubernetes API does not review service account tokens; retrying, serving pods whose tokens it confirmed before, \
                         and refusing new tokens"
                    );
                }
                ReviewOutcome::Unavailable
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.paused_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests;

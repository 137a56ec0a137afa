//! Sessions by everything that STS is told: one request under way for a key, expiry honoured, failures remembered.
//!
//! An entry is a *flight*: a request to STS, under way or landed. It runs in a task of its own, so that a caller who gives
//! up does not end it for the others. A flight that landed well is served until its credentials come close to their end;
//! the next caller then starts another, and the old one is kept for the case that STS fails. A flight that failed is the
//! answer for `error_ttl`, so that one broken role costs one call in that time, however many ask.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use moka::future::Cache;
use moka::ops::compute::Op;
use prometheus::IntCounter;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{AssumeRole, AssumeRoleError, Clock, Credentials};
use crate::metrics::Metrics;
use crate::policy::RoleRequest;

/// Nothing with less left is served while STS works: the SDKs with the longest margin (botocore) refresh, and refresh
/// again and again, below it.
pub const LEAST_REMAINING: Duration = Duration::from_secs(25 * 60);
/// Credentials that end in less are not served at all: they would be refused on arrival.
pub const LEAST_USABLE: Duration = Duration::from_secs(5);
/// How long a caller waits for a renewal while earlier credentials are still good: SDKs give up after a second, some after
/// half of one.
pub const PATIENCE_WITH_EARLIER: Duration = Duration::from_millis(400);
/// Sessions held at most: far more than a node has pods.
const MAX_SESSIONS: u64 = 10_000;
/// A session that nobody asked for in this time is forgotten.
const IDLE: Duration = Duration::from_secs(2 * 3600);

/// The sessions of this node's pods; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions<A> {
    sts: Arc<A>,
    flights: Cache<RoleRequest, Arc<Flight>>,
    error_ttl: Duration,
    clock: Clock,
    metrics: Metrics,
    hits: IntCounter,
}

/// What a flight brought.
type Landing = Result<Arc<Credentials>, AssumeRoleError>;

/// A request to STS, under way or landed.
#[derive(Debug)]
struct Flight {
    landed: watch::Receiver<Option<(Instant, Landing)>>,
    /// What the flight before brought, for the case that this one fails.
    earlier: Option<Arc<Credentials>>,
}

/// How a flight that exists serves a caller now.
enum Serves {
    /// These credentials.
    Credentials(Arc<Credentials>),
    /// It is under way: wait for it.
    Wait,
    /// It failed lately.
    Failure(AssumeRoleError),
    /// Not at all: another one is needed; what it brought may still serve if that one fails.
    Nothing(Option<Arc<Credentials>>),
}

impl Flight {
    fn serves(&self, now: Timestamp, error_ttl: Duration) -> Serves {
        let landed = self.landed.borrow();
        match &*landed {
            None if self.landed.has_changed().is_err() => Serves::Nothing(self.earlier.clone()),
            None => Serves::Wait,
            Some((_, Ok(credentials))) if is_fresh(credentials, now) => Serves::Credentials(credentials.clone()),
            Some((_, Ok(credentials))) => Serves::Nothing(Some(credentials.clone())),
            Some((at, Err(error))) if error.is_remembered() && at.elapsed() < error_ttl => match &self.earlier {
                Some(earlier) if is_usable(earlier, now) => Serves::Credentials(earlier.clone()),
                _ => Serves::Failure(error.clone()),
            },
            Some((_, Err(_))) => Serves::Nothing(self.earlier.clone()),
        }
    }
}

/// With enough left to be served while STS works. A session shorter than an hour is fresh in its first half.
fn is_fresh(credentials: &Credentials, now: Timestamp) -> bool {
    let length = credentials.expires_at.duration_since(credentials.issued_at);
    let least = LEAST_REMAINING.min(length.unsigned_abs() / 2);
    remaining(credentials, now) > least
}

fn is_usable(credentials: &Credentials, now: Timestamp) -> bool {
    remaining(credentials, now) > LEAST_USABLE
}

fn remaining(credentials: &Credentials, now: Timestamp) -> Duration {
    Duration::try_from(credentials.expires_at.duration_since(now)).unwrap_or(Duration::ZERO)
}

fn ended() -> AssumeRoleError {
    AssumeRoleError::Failed { message: "it gave credentials that have ended; check the node's clock".to_owned() }
}

impl<A: AssumeRole> Sessions<A> {
    /// No sessions yet.
    pub fn new(sts: A, error_ttl: Duration, clock: Clock, metrics: Metrics) -> Self {
        let flights = Cache::builder().max_capacity(MAX_SESSIONS).time_to_idle(IDLE).build();
        let hits = metrics.session_lookups("hit");
        Self { sts: Arc::new(sts), flights, error_ttl, clock, metrics, hits }
    }

    /// The credentials of the session that `request` describes.
    pub async fn get(&self, request: &RoleRequest) -> Landing {
        if let Some(flight) = self.flights.get(request).await {
            match flight.serves(self.clock.now(), self.error_ttl) {
                Serves::Credentials(credentials) => {
                    self.hits.inc();
                    return Ok(credentials);
                }
                Serves::Failure(error) => {
                    self.metrics.session_lookups("remembered").inc();
                    return Err(error);
                }
                Serves::Wait => {
                    self.metrics.session_lookups("shared").inc();
                    return self.landing_of(flight).await;
                }
                Serves::Nothing(_) => {}
            }
        }
        let flight = self.board(request).await;
        self.landing_of(flight).await
    }

    /// The failure that would be the answer now, without asking anybody.
    pub async fn remembered_failure(&self, request: &RoleRequest) -> Option<AssumeRoleError> {
        match self.flights.get(request).await?.serves(self.clock.now(), self.error_ttl) {
            Serves::Failure(error) => Some(error),
            Serves::Credentials(_) | Serves::Wait | Serves::Nothing(_) => None,
        }
    }

    /// The flight to wait for: a new one, unless another caller has started it meanwhile.
    async fn board(&self, request: &RoleRequest) -> Arc<Flight> {
        let compute = |entry: Option<moka::Entry<RoleRequest, Arc<Flight>>>| {
            let earlier = match entry.map(|entry| entry.into_value().serves(self.clock.now(), self.error_ttl)) {
                None => Some(None),
                Some(Serves::Nothing(earlier)) => Some(earlier),
                Some(_) => None,
            };
            let op = match earlier {
                Some(earlier) => Op::Put(Arc::new(self.depart(request.clone(), earlier))),
                None => Op::Nop,
            };
            std::future::ready(op)
        };
        let result = self.flights.entry_by_ref(request).and_compute_with(compute).await;
        let started = matches!(result, moka::ops::compute::CompResult::Inserted(_) | moka::ops::compute::CompResult::ReplacedWith(_));
        self.metrics.session_lookups(if started { "miss" } else { "shared" }).inc();
        match result.into_entry() {
            Some(entry) => entry.into_value(),
            // Only a removal leaves no entry, and nothing here removes.
            None => Arc::new(self.depart(request.clone(), None)),
        }
    }

    /// Starts a request to STS in a task of its own.
    fn depart(&self, request: RoleRequest, earlier: Option<Arc<Credentials>>) -> Flight {
        let (land, landed) = watch::channel(None);
        let (sts, metrics, clock, kept) = (self.sts.clone(), self.metrics.clone(), self.clock.clone(), earlier.clone());
        // Not a background task: it ends with its answer, and a panic in it drops `land`, which its callers see.
        tokio::spawn(async move {
            let (began, _in_flight) = (Instant::now(), metrics.sts_request());
            let landing = match sts.assume_role(&request).await {
                // A failure as others are: remembered, and no reason to let go of what there is.
                Ok(credentials) if !is_usable(&credentials, clock.now()) => Err(ended()),
                answer => answer.map(Arc::new),
            };
            let (role, session) = (request.role().as_str(), request.session_name().as_str());
            match &landing {
                Ok(credentials) => {
                    metrics.sts_answered("ok", began.elapsed());
                    info!(role, session, access_key_id = %credentials.access_key_id, expires_at = %credentials.expires_at, "assumed a role");
                }
                Err(error) => {
                    metrics.sts_answered(error.name(), began.elapsed());
                    // That the daemon does not know itself is told by whoever asks for it.
                    if error.is_remembered() {
                        warn!(role, session, outcome = error.name(), kept_until = ?kept.map(|kept| kept.expires_at), "cannot assume a role: {error}");
                    }
                }
            }
            land.send_replace(Some((Instant::now(), landing)));
        });
        Flight { landed, earlier }
    }

    async fn landing_of(&self, flight: Arc<Flight>) -> Landing {
        let earlier = || flight.earlier.as_ref().filter(|earlier| is_usable(earlier, self.clock.now())).cloned();
        let mut landed = flight.landed.clone();
        if earlier().is_some() && tokio::time::timeout(PATIENCE_WITH_EARLIER, landed.wait_for(Option::is_some)).await.is_err() {
            // Credentials that are still good in the caller's time are better than fresh ones after it.
            if let Some(earlier) = earlier() {
                return Ok(earlier);
            }
        }
        let landing = match landed.wait_for(Option::is_some).await {
            Ok(landing) => landing.as_ref().map(|(_, landing)| landing.clone()),
            Err(_) => None,
        };
        match landing {
            Some(Ok(credentials)) if is_usable(&credentials, self.clock.now()) => Ok(credentials),
            Some(Ok(_)) => Err(ended()),
            Some(Err(error)) => earlier().ok_or(error),
            None => earlier().ok_or_else(|| AssumeRoleError::Failed { message: "the request to it ended without an answer".to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests;

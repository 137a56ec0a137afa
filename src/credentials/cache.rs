//! Sessions by everything that STS is told: one request under way for a key, expiry honoured, failures remembered.
//!
//! An entry is a *flight*: a request to STS, under way or landed. It runs in a task of its own, so that a caller who gives
//! up does not end it for the others, and goes through the [gate](super::gate). A flight that landed well is served until
//! its credentials come close to their end; mostly another took its place long before ([`super::refresh`]). If not, the next
//! caller starts one, and what there was is kept for the case that STS fails. A flight that failed is the answer for
//! `error_ttl`, and for longer if it goes on failing, so that one broken role costs one call in that time, however many ask.
//!
//! A session is here for the pods that need it: who follows the pods forgets it with the last of them. moka lets go of what
//! was removed when its pending tasks are run and no thread looks at it any more, so that they are run at once, and again at
//! every sweep.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use jiff::Timestamp;
use moka::future::Cache;
use moka::ops::compute::{CompResult, Op};
use prometheus::IntCounter;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::gate::{Cause, Gate, Limits, NEARLY_ENDED};
use super::{AssumeRole, AssumeRoleError, Clock, Credentials, jitter};
use crate::metrics::{Holdings, Metrics};
use crate::policy::RoleRequest;

mod flight;

use flight::{Before, Flight, Landed, Serves, State, is_usable, pause, remembered_for};
pub use flight::{Landing, Standing};

/// Nothing with less left is served while STS works: the SDKs with the longest margin (botocore) refresh, and refresh
/// again and again, below it.
pub const LEAST_REMAINING: Duration = Duration::from_secs(25 * 60);
/// Credentials that end in less are not served at all: they would be refused on arrival.
pub const LEAST_USABLE: Duration = Duration::from_secs(5);
/// How long a caller waits for a renewal while earlier credentials are still good: SDKs give up after a second, some after
/// half of one.
pub const PATIENCE_WITH_EARLIER: Duration = Duration::from_millis(400);

/// How often it is looked at again whether a renewal still gives way, less up to a quarter.
const LOOKED_AT_AGAIN: Duration = Duration::from_secs(4 * 60);
/// Sessions held at most: far more than a node has pods.
const MAX_SESSIONS: u64 = 10_000;
/// How often moka is asked to let go of what was removed, before it is left to the next sweep. Mostly twice is enough.
const ROUNDS_OF_CLEANING: u32 = 64;

/// How the cache treats STS.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long the first failure of a session is remembered.
    pub error_ttl: Duration,
    /// The longest wait of a caller.
    pub timeout: Duration,
    /// What the node allows itself.
    pub limits: Limits,
}

/// The sessions of this node's pods.
#[derive(Debug)]
pub struct Sessions<A> {
    sts: Arc<A>,
    flights: Cache<RoleRequest, Arc<Flight>>,
    gate: Gate,
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    hits: IntCounter,
    late: IntCounter,
    /// Who is told which flights have landed.
    follower: OnceLock<mpsc::UnboundedSender<Arc<RoleRequest>>>,
}

fn ended() -> AssumeRoleError {
    AssumeRoleError::Failed { message: "it gave credentials that have ended; check the node's clock".to_owned() }
}

impl<A: AssumeRole> Sessions<A> {
    /// No sessions yet.
    pub fn new(sts: A, settings: Settings, clock: Clock, metrics: Metrics) -> Arc<Self> {
        let (hits, late) = (metrics.session_lookups("hit"), metrics.session_served_late());
        let gate = Gate::new(settings.limits, metrics.clone());
        let (flights, follower) = (Cache::builder().max_capacity(MAX_SESSIONS).build(), OnceLock::new());
        let sessions = Arc::new(Self { sts: Arc::new(sts), flights, gate, settings, clock, metrics, hits, late, follower });
        let weak = Arc::downgrade(&sessions);
        sessions.metrics.sessions_from(move || weak.upgrade().map_or_else(Holdings::default, |sessions| sessions.holdings()));
        sessions
    }

    /// The credentials of the session that `request` describes.
    pub async fn get(&self, request: &RoleRequest) -> Landing {
        let landing = self.find(request).await;
        if let Ok(credentials) = &landing
            && credentials.remaining(self.clock.now()) < LEAST_REMAINING
        {
            self.late.inc();
        }
        landing
    }

    async fn find(&self, request: &RoleRequest) -> Landing {
        if let Some(flight) = self.flights.get(request).await {
            match flight.serves(self.clock.now(), || self.gate.is_slow()) {
                Serves::Credentials(credentials) => {
                    self.raise_if_nearly_ended(&flight, &credentials);
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
        match self.flights.get(request).await?.serves(self.clock.now(), || self.gate.is_slow()) {
            Serves::Failure(error) => Some(error),
            Serves::Credentials(_) | Serves::Wait | Serves::Nothing(_) => None,
        }
    }

    /// The flight to wait for: a new one, unless another caller has started it meanwhile.
    async fn board(&self, request: &RoleRequest) -> Arc<Flight> {
        let (flight, is_new) = self
            .start(request, |flight| {
                let before = match flight.map(|flight| flight.serves(self.clock.now(), || self.gate.is_slow())) {
                    None => Before::default(),
                    Some(Serves::Nothing(before)) => before,
                    Some(_) => return None,
                };
                let cause = if self.waits_for(before.earlier.as_deref(), before.failures) { Cause::Demand } else { Cause::Renewal };
                Some((before, cause))
            })
            .await;
        self.metrics.session_lookups(if is_new { "miss" } else { "shared" }).inc();
        flight
    }

    /// Asks STS ahead of need, unless it failed lately; whether it is being asked now. What is held goes on being served.
    pub(super) async fn ahead(&self, request: &RoleRequest) -> bool {
        let (flight, _) = self
            .start(request, |flight| {
                let before = flight.map_or_else(|| Some(Before::default()), |flight| flight.next(self.clock.now()))?;
                let held = before.earlier.as_ref().is_some_and(|earlier| is_usable(earlier, self.clock.now()));
                Some((before, if held { Cause::Renewal } else { Cause::Prefetch }))
            })
            .await;
        matches!(flight.standing(self.clock.now()), Standing::UnderWay)
    }

    /// Starts a flight where `wanted` says with what, by the one that is here; no other caller does so at the same time. The
    /// flight that is here then, and whether it is the new one.
    async fn start(
        &self,
        request: &RoleRequest,
        wanted: impl Fn(Option<&Flight>) -> Option<(Before, Cause)> + Send,
    ) -> (Arc<Flight>, bool) {
        let depart = |(before, cause)| Arc::new(self.depart(Arc::new(request.clone()), before, cause));
        let compute = |entry: Option<moka::Entry<RoleRequest, Arc<Flight>>>| {
            let op = wanted(entry.as_ref().map(|entry| &**entry.value())).map_or(Op::Nop, |wanted| Op::Put(depart(wanted)));
            std::future::ready(op)
        };
        let result = self.flights.entry_by_ref(request).and_compute_with(compute).await;
        let is_new = matches!(result, CompResult::Inserted(_) | CompResult::ReplacedWith(_));
        match result.into_entry() {
            Some(entry) => (entry.into_value(), is_new),
            // Not met: where there is none, one is started.
            None => (depart((Before::default(), Cause::Demand)), true),
        }
    }

    /// Where a session stands; `None` where STS was never asked for it.
    pub(super) async fn standing(&self, request: &RoleRequest) -> Option<Standing> {
        Some(self.flights.get(request).await?.standing(self.clock.now()))
    }

    /// Lets go of sessions that no pod needs: their secrets are wiped, what waits at the gate is withdrawn, and what STS may
    /// still answer is dropped.
    pub(super) async fn forget(&self, requests: &[Arc<RoleRequest>]) {
        let mut forgotten = Vec::new();
        for request in requests {
            if let Some(flight) = self.flights.remove(&**request).await {
                self.gate.withdraw(flight.ticket);
                forgotten.push(Arc::downgrade(&flight));
            }
        }
        if forgotten.is_empty() {
            return;
        }
        for _ in 0..ROUNDS_OF_CLEANING {
            self.clean().await;
            if forgotten.iter().all(|flight| Weak::strong_count(flight) == 0) {
                return;
            }
            // Another thread looks at the table, or a pod is still being told.
            tokio::task::yield_now().await;
        }
    }

    /// Lets go of the memory of what was removed or replaced, where no thread looks at it any more.
    pub(super) async fn clean(&self) {
        self.flights.run_pending_tasks().await;
    }

    /// The sessions that STS was asked for, but for those that are wanted.
    pub(super) fn others(&self, is_wanted: impl Fn(&RoleRequest) -> bool) -> Vec<Arc<RoleRequest>> {
        self.flights.iter().map(|(request, _)| request).filter(|request| !is_wanted(request)).collect()
    }

    /// After which time it is looked at again whether STS is asked ahead of need: `None` where nothing is against it. While STS
    /// throttles, what has time gives way; when it does not any more, that is seen soon.
    pub(super) async fn gives_way(&self, request: &RoleRequest) -> Option<Duration> {
        let until = self.flights.get(request).await?.gives_way(self.clock.now(), || self.gate.is_slow())?;
        Some(until.saturating_duration_since(Instant::now()).min(jitter::spread(LOOKED_AT_AGAIN)))
    }

    /// A caller has met credentials whose renewal must not wait for its place much longer.
    fn raise_if_nearly_ended(&self, flight: &Flight, served: &Credentials) {
        if served.remaining(self.clock.now()) < NEARLY_ENDED {
            self.gate.raise(flight.ticket);
        }
    }

    /// The keys of all flights that land from now on, whoever asked. For one follower.
    pub(super) fn landings(&self) -> mpsc::UnboundedReceiver<Arc<RoleRequest>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // A second follower would get nothing, and end at once.
        let _ = self.follower.set(sender);
        receiver
    }

    fn holdings(&self) -> Holdings {
        let now = self.clock.now();
        let last = self.flights.iter().filter_map(|(_, flight)| flight.lasts(now)).collect::<Vec<_>>();
        Holdings { sessions: last.iter().filter(|last| !last.is_zero()).count(), earliest_end: last.into_iter().min() }
    }

    /// Starts a request to STS in a task of its own.
    fn depart(&self, request: Arc<RoleRequest>, Before { earlier, failures, lapsed }: Before, cause: Cause) -> Flight {
        let (sts, metrics, clock) = (self.sts.clone(), self.metrics.clone(), self.clock.clone());
        let (settings, follower) = (self.settings, self.follower.get().cloned());
        let (ticket, turn) = self.gate.queue(cause, earlier.as_ref().map(|earlier| earlier.remaining(self.clock.now())));
        let (land, state) = watch::channel(State { earlier, lapsed, landed: None });
        // Not a background task: it ends with its answer, and a panic in it drops `land`, which its callers see.
        tokio::spawn(async move {
            // Told also when it ends by a panic.
            let _told = follower.map(|follower| Told { follower, request: request.clone() });
            // Dropped before that, so that it is known then that nothing comes any more.
            let land = land;
            let Ok(mut permit) = turn.await else {
                return;
            };
            let (first, mut questions) = (Instant::now(), 0);
            let (began, cause, answer) = loop {
                questions += 1;
                let (began, in_flight, cause) = (Instant::now(), metrics.sts_request(), permit.cause().name());
                let answer = sts.assume_role(&request).await;
                drop(in_flight);
                permit.answered(request.role(), &answer);
                let is_needed = failures == 0 && land.borrow().earlier.as_ref().is_none_or(|kept| !is_usable(kept, clock.now()));
                let is_late = first.elapsed() >= settings.timeout;
                match answer {
                    Err(error) if !is_late && permit.is_asked_again(&error, questions, is_needed) => {
                        metrics.sts_answered(error.name(), cause, began.elapsed());
                        info!(role = request.role().as_str(), cause, outcome = error.name(), "STS is asked once more: {error}");
                        let Ok(next) = permit.again().await else {
                            return;
                        };
                        permit = next;
                    }
                    answer => break (began, cause, answer),
                }
            };
            drop(permit);
            let landing = match answer {
                // A failure as others are: remembered, and no reason to let go of what there is.
                Ok(credentials) if !is_usable(&credentials, clock.now()) => Err(ended()),
                answer => answer.map(Arc::new),
            };
            let (role, session) = (request.role().as_str(), request.session_name().as_str());
            match &landing {
                Ok(credentials) => {
                    metrics.sts_answered("ok", cause, began.elapsed());
                    info!(role, session, cause, access_key_id = %credentials.access_key_id, expires_at = %credentials.expires_at, "assumed a role");
                }
                Err(error) => {
                    metrics.sts_answered(error.name(), cause, began.elapsed());
                    // That the daemon does not know itself is told by whoever asks for it.
                    if error.is_remembered() {
                        let kept_until =
                            land.borrow().earlier.as_ref().filter(|kept| is_usable(kept, clock.now())).map(|kept| kept.expires_at);
                        warn!(role, session, cause, outcome = error.name(), ?kept_until, "cannot assume a role: {error}");
                    }
                }
            }
            land.send_modify(|State { earlier, lapsed, landed }| {
                let held = earlier.as_ref().filter(|held| is_usable(held, clock.now()));
                let remembered = match (&landing, held) {
                    (Ok(_), _) => Duration::ZERO,
                    (Err(AssumeRoleError::Throttled), Some(held)) => pause(held, clock.now(), failures, settings.error_ttl),
                    (Err(error), _) => remembered_for(error, failures, settings.error_ttl),
                };
                if landing.is_ok() {
                    (*earlier, *lapsed) = (None, false);
                } else if held.is_none() {
                    *lapsed |= earlier.take().is_some();
                }
                *landed = Some(Landed { landing, until: Instant::now() + remembered });
            });
        });
        Flight { state, failures, ticket, patient_until: OnceLock::new() }
    }

    /// Whether a caller waits for a new session: not where the one before is still good, and STS does not work.
    fn waits_for(&self, earlier: Option<&Credentials>, failures: u32) -> bool {
        let usable = earlier.is_some_and(|earlier| is_usable(earlier, self.clock.now()));
        !usable || (failures == 0 && self.gate.trouble().is_none())
    }

    async fn landing_of(&self, flight: Arc<Flight>) -> Landing {
        let began = Instant::now();
        // Kept for as long as this caller waits: the flight lets go of it when it lands well.
        let earlier = flight.earlier(self.clock.now());
        let is_held = |earlier: &Arc<Credentials>| is_usable(earlier, self.clock.now());
        if !self.waits_for(earlier.as_deref(), flight.failures)
            && let Some(earlier) = earlier
        {
            self.raise_if_nearly_ended(&flight, &earlier);
            return Ok(earlier);
        }
        self.gate.raise(flight.ticket);
        let mut state = flight.state.clone();
        let patience = PATIENCE_WITH_EARLIER.min(self.settings.timeout);
        if let Some(earlier) = &earlier
            && tokio::time::timeout(patience, state.wait_for(|state| state.landed.is_some())).await.is_err()
            && is_held(earlier)
        {
            // Credentials that are still good in the caller's time are better than fresh ones after it.
            return Ok(earlier.clone());
        }
        let landed = state.wait_for(|state| state.landed.is_some());
        let landing = match tokio::time::timeout_at(began + self.settings.timeout, landed).await {
            Ok(Ok(state)) => state.landed.as_ref().map(|landed| landed.landing.clone()),
            Ok(Err(_)) => None,
            // The request goes on: its answer is for those who ask next.
            Err(_) => Some(Err(self
                .gate
                .trouble()
                .unwrap_or_else(|| AssumeRoleError::Unreachable { message: "no session within --sts-timeout".to_owned() }))),
        };
        match landing {
            Some(Ok(credentials)) if is_usable(&credentials, self.clock.now()) => Ok(credentials),
            Some(Ok(_)) => Err(ended()),
            Some(Err(error)) => earlier.filter(is_held).ok_or(error),
            None => earlier
                .filter(is_held)
                .ok_or_else(|| AssumeRoleError::Failed { message: "the request to it ended without an answer".to_owned() }),
        }
    }

    /// The wall clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// Tells the follower when dropped.
struct Told {
    follower: mpsc::UnboundedSender<Arc<RoleRequest>>,
    request: Arc<RoleRequest>,
}

impl Drop for Told {
    fn drop(&mut self) {
        // Gone at the end of the process.
        let _ = self.follower.send(self.request.clone());
    }
}

#[cfg(test)]
mod tests;

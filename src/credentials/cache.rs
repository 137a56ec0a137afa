//! The session cache. Its key is everything that STS receives. It allows one request in flight per key, respects expiry, and
//! remembers failures.
//!
//! An entry is a *flight*: a request to STS, in flight or completed. Each flight runs in its own task, so a caller that gives
//! up does not end it for other callers. All requests pass the [gate](super::gate). The credentials of a successful flight are
//! served until they are close to expiry. Usually [`super::refresh`] has replaced the flight long before. If not, the next caller
//! starts a new flight, and the earlier credentials are kept in case STS fails. A failed flight is served as the result for
//! `error_ttl`, and longer if failures continue, so a broken role costs one request in that time, however many callers there
//! are.
//!
//! A session is kept for the pods that need it, and forgotten when the last of them is gone. moka frees removed or replaced
//! entries with a delay, so each entry holds a [slot](slot::Slot) that is emptied at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use moka::future::Cache;
use moka::ops::compute::Op;
use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::caller::Caller;
use super::gate::{CallCause, Gate, NEARLY_ENDED, StsLimits, TurnedAwayCall};
use super::not_asked::NotAsked;
use super::{AssumeRole, AssumeRoleError, Credentials};
use crate::backoff::spread;
use crate::clock::Clock;
use crate::generation::Generation;
use crate::metrics::{Holdings, Metrics};
use crate::pods::Pod;
use crate::policy::RoleRequest;

mod departure;
mod flight;
pub(crate) mod held;
mod slot;

use flight::{Before, Flight, Serves, is_usable};
pub use flight::{LEAST_REMAINING, LEAST_USABLE, Landing, SessionState, SessionView};
use slot::Slot;

/// How long a caller waits for a renewal while earlier credentials are still valid. SDKs time out after one second, some after
/// half a second.
pub const PATIENCE_WITH_EARLIER: Duration = Duration::from_millis(400);

/// The interval at which a deferred renewal is checked again, minus a jitter of up to a quarter.
const LOOKED_AT_AGAIN: Duration = Duration::from_secs(4 * 60);
/// The maximum number of cached sessions: far more than a node has pods.
const MAX_SESSIONS: u64 = 10_000;

/// Settings of the session cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheSettings {
    /// How long the first failure of a session is remembered.
    pub error_ttl: Duration,
    /// The longest time that a caller waits.
    pub timeout: Duration,
    /// The limits of this node's requests to STS.
    pub limits: StsLimits,
}

/// The sessions of this node's pods.
#[derive(Debug)]
pub struct Sessions<A> {
    sts: Arc<A>,
    flights: Cache<RoleRequest, Arc<Slot>>,
    /// Advances when a flight enters the cache or leaves it.
    generation: Arc<Generation>,
    gate: Gate,
    settings: CacheSettings,
    clock: Clock,
    metrics: Metrics,
    hits: IntCounter,
    late: IntCounter,
    /// Notified of each completed flight.
    follower: OnceLock<mpsc::UnboundedSender<Arc<RoleRequest>>>,
}

/// The outcome of a prefetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// A request to STS is in flight or queued.
    UnderWay,
    /// It failed recently; no request is made.
    NotBegun,
    /// The queue had no place for it; it may be retried after this time.
    Later(Duration),
}

impl<A: AssumeRole> Sessions<A> {
    /// Creates an empty cache.
    pub fn new(sts: A, settings: CacheSettings, clock: Clock, metrics: Metrics) -> Arc<Self> {
        let (hits, late) = (metrics.session_lookups("hit"), metrics.session_served_late());
        let gate = Gate::new(settings.limits, metrics.clone());
        let generation = Arc::new(Generation::default());
        let changed = generation.clone();
        let left = move |_, slot: Arc<Slot>, _| {
            slot.clear();
            changed.advance();
        };
        let flights = Cache::builder().max_capacity(MAX_SESSIONS).eviction_listener(left).build();
        let (sts, follower) = (Arc::new(sts), OnceLock::new());
        let sessions = Arc::new(Self { sts, flights, generation, gate, settings, clock, metrics, hits, late, follower });
        let weak = Arc::downgrade(&sessions);
        sessions.metrics.sessions_from(move || weak.upgrade().map_or_else(Holdings::default, |sessions| sessions.holdings()));
        sessions
    }

    /// Returns the credentials of the session that `request` describes, for a pod that requests them.
    pub async fn get(&self, request: &RoleRequest, pod: &Pod) -> Landing {
        let landing = self.find(request, pod).await;
        if let Ok(credentials) = &landing
            && credentials.remaining(self.clock.now()) < LEAST_REMAINING
        {
            self.late.inc();
        }
        landing
    }

    async fn find(&self, request: &RoleRequest, pod: &Pod) -> Landing {
        if let Some(flight) = self.flight(request).await {
            match flight.serves(self.clock.now(), || self.gate.is_slow()) {
                Serves::Credentials(credentials) => {
                    self.raise_if_nearly_ended(&flight, &credentials, || Caller::of(pod));
                    self.hits.inc();
                    return flight.counted(Ok(credentials));
                }
                Serves::Failure(error) => {
                    self.metrics.session_lookups("remembered").inc();
                    return flight.counted(Err(error));
                }
                Serves::Wait => {
                    self.metrics.session_lookups("shared").inc();
                    return flight.counted(self.landing_of(flight.clone(), &Caller::of(pod)).await);
                }
                Serves::Nothing(_) => {}
            }
        }
        let caller = Caller::of(pod);
        let flight = self.board(request, &caller).await.map_err(|why| {
            // No flight counts it.
            if let Some(meters) = self.metrics.role_meters(request.role().as_str()) {
                meters.answered(false);
            }
            AssumeRoleError::NotAsked(why)
        })?;
        flight.counted(self.landing_of(flight.clone(), &caller).await)
    }

    async fn flight(&self, request: &RoleRequest) -> Option<Arc<Flight>> {
        self.flights.get(request).await?.flight()
    }

    /// Returns the failure that this pod would get now, without making a request.
    pub async fn remembered_failure(&self, request: &RoleRequest, pod: &Pod) -> Option<AssumeRoleError> {
        let Some(flight) = self.flight(request).await else {
            let is_turned_away = self.gate.has_no_more(&Caller::of(pod));
            return is_turned_away.then_some(AssumeRoleError::NotAsked(NotAsked::TooManyChanges));
        };
        match flight.serves(self.clock.now(), || self.gate.is_slow()) {
            Serves::Failure(error) => Some(error),
            Serves::Credentials(_) | Serves::Wait | Serves::Nothing(_) => None,
        }
    }

    /// Returns the flight to wait for: a new one, unless another caller has started one meanwhile.
    async fn board(&self, request: &RoleRequest, caller: &Arc<Caller>) -> Result<Arc<Flight>, NotAsked> {
        let started = self
            .start(request, std::slice::from_ref(caller), |flight| {
                let before = match flight.map(|flight| flight.serves(self.clock.now(), || self.gate.is_slow())) {
                    None => Before::default(),
                    Some(Serves::Nothing(before)) => before,
                    Some(_) => return None,
                };
                let cause = if self.waits_for(before.earlier.as_deref(), before.failures) { CallCause::Demand } else { CallCause::Renewal };
                Some((before, cause))
            })
            .await;
        match started {
            Ok((flight, is_new)) => {
                self.metrics.session_lookups(if is_new { "miss" } else { "shared" }).inc();
                Ok(flight)
            }
            Err(turned_away) => {
                self.metrics.session_lookups("turned-away").inc();
                Err(turned_away.why)
            }
        }
    }

    /// Prefetches the session for the pods that need it, unless it failed recently. Cached credentials are served meanwhile.
    pub(super) async fn ahead(&self, request: &RoleRequest, callers: &[Arc<Caller>]) -> Ahead {
        let started = self
            .start(request, callers, |flight| {
                let before = flight.map_or_else(|| Some(Before::default()), |flight| flight.next(self.clock.now()))?;
                let held = before.earlier.as_ref().is_some_and(|earlier| is_usable(earlier, self.clock.now()));
                Some((before, if held { CallCause::Renewal } else { CallCause::Prefetch }))
            })
            .await;
        match started {
            Ok((flight, _)) if matches!(flight.standing(self.clock.now()), SessionState::UnderWay) => Ahead::UnderWay,
            Ok(_) => Ahead::NotBegun,
            Err(turned_away) => Ahead::Later(turned_away.after),
        }
    }

    /// Starts a flight for these pods if `wanted`, called with the current flight, returns its parameters. Concurrent calls for one key
    /// are serialized. Returns the flight that is then current, and whether it is new.
    async fn start(
        &self,
        request: &RoleRequest,
        callers: &[Arc<Caller>],
        wanted: impl Fn(Option<&Flight>) -> Option<(Before, CallCause)> + Send,
    ) -> Result<(Arc<Flight>, bool), TurnedAwayCall> {
        let depart = |(before, cause), is_new| self.depart(Arc::new(request.clone()), before, cause, callers, is_new).map(Arc::new);
        let mut started = None;
        let compute = |entry: Option<moka::Entry<RoleRequest, Arc<Slot>>>| {
            let held = entry.and_then(|entry| entry.into_value().flight());
            let departed = wanted(held.as_deref()).map(|wanted| depart(wanted, held.is_none()));
            let op = match &departed {
                Some(Ok(flight)) => Op::Put(Slot::of(flight.clone())),
                Some(Err(_)) | None => Op::Nop,
            };
            started = departed.map(|flight| flight.map(|flight| (flight, true))).or(held.map(|flight| Ok((flight, false))));
            std::future::ready(op)
        };
        self.flights.entry_by_ref(request).and_compute_with(compute).await;
        if let Some(Ok((_, true))) = &started {
            self.generation.advance();
        }
        // `started` is always set: `wanted` starts a flight if there is none.
        started.unwrap_or_else(|| Ok((depart((Before::default(), CallCause::Demand), true)?, true)))
    }

    /// Returns the state of a session; `None` if it was never requested from STS.
    pub(super) async fn standing(&self, request: &RoleRequest) -> Option<SessionState> {
        Some(self.flight(request).await?.standing(self.clock.now()))
    }

    /// Returns the public part of a session; `None` if it was never requested from STS.
    pub async fn view(&self, request: &RoleRequest) -> Option<SessionView> {
        Some(self.flight(request).await?.view(self.clock.now()))
    }

    /// Drops sessions that no pod needs: zeroes their secrets, withdraws their queued requests from the gate, and discards responses
    /// that are still to come.
    pub(super) async fn forget(&self, requests: &[Arc<RoleRequest>]) {
        for request in requests {
            if let Some(slot) = self.flights.remove(&**request).await {
                self.gate.withdraw(slot.ticket);
            }
        }
        if !requests.is_empty() {
            self.metrics.keep_roles(|| self.flights.iter().map(|(request, _)| request.role().as_str().to_owned()).collect());
        }
    }

    /// Frees the memory of removed and replaced entries that no thread uses any more.
    pub(super) async fn clean(&self) {
        self.flights.run_pending_tasks().await;
    }

    /// Returns the cached sessions that are not wanted.
    pub(super) fn others(&self, is_wanted: impl Fn(&RoleRequest) -> bool) -> Vec<Arc<RoleRequest>> {
        self.flights.iter().map(|(request, _)| request).filter(|request| !is_wanted(request)).collect()
    }

    /// Returns after which time to check again whether to request the session ahead of need; `None` if it may be requested now. While
    /// STS throttles, sessions with time left give way. The time is bounded, so that the end of throttling is noticed soon.
    pub(super) async fn gives_way(&self, request: &RoleRequest) -> Option<Duration> {
        let until = self.flight(request).await?.gives_way(self.clock.now(), || self.gate.is_slow())?;
        Some(until.saturating_duration_since(Instant::now()).min(spread(LOOKED_AT_AGAIN)))
    }

    /// Raises the priority of the renewal if a caller was served credentials that are close to expiry.
    fn raise_if_nearly_ended(&self, flight: &Flight, served: &Credentials, caller: impl FnOnce() -> Arc<Caller>) {
        if served.remaining(self.clock.now()) < NEARLY_ENDED {
            self.gate.raise(flight.ticket, &caller());
        }
    }

    /// Returns a stream of the keys of all flights that complete from now on. Supports one follower.
    pub(super) fn landings(&self) -> mpsc::UnboundedReceiver<Arc<RoleRequest>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // A second follower would get a closed channel.
        let _ = self.follower.set(sender);
        receiver
    }

    fn holdings(&self) -> Holdings {
        let now = self.clock.now();
        let last = self.flights.iter().filter_map(|(_, slot)| slot.flight()?.lasts(now)).collect::<Vec<_>>();
        Holdings { sessions: last.iter().filter(|last| !last.is_zero()).count(), earliest_end: last.into_iter().min() }
    }

    /// Whether a caller waits for a new session. It does not if the earlier one is still valid and STS is failing.
    fn waits_for(&self, earlier: Option<&Credentials>, failures: u32) -> bool {
        let usable = earlier.is_some_and(|earlier| is_usable(earlier, self.clock.now()));
        !usable || (failures == 0 && self.gate.trouble().is_none())
    }

    async fn landing_of(&self, flight: Arc<Flight>, caller: &Arc<Caller>) -> Landing {
        let began = Instant::now();
        // Keeps the earlier credentials while this caller waits: the flight drops them when it succeeds.
        let earlier = flight.earlier(self.clock.now());
        let is_held = |earlier: &Arc<Credentials>| is_usable(earlier, self.clock.now());
        if !self.waits_for(earlier.as_deref(), flight.failures)
            && let Some(earlier) = earlier
        {
            self.raise_if_nearly_ended(&flight, &earlier, || caller.clone());
            return Ok(earlier);
        }
        self.gate.raise(flight.ticket, caller);
        let mut state = flight.state.clone();
        let patience = PATIENCE_WITH_EARLIER.min(self.settings.timeout);
        if let Some(earlier) = &earlier
            && tokio::time::timeout(patience, state.wait_for(|state| state.landed.is_some())).await.is_err()
            && is_held(earlier)
        {
            // Valid credentials within the caller's timeout are better than fresh ones after it.
            return Ok(earlier.clone());
        }
        let landed = state.wait_for(|state| state.landed.is_some());
        let landing = match tokio::time::timeout_at(began + self.settings.timeout, landed).await {
            Ok(Ok(state)) => state.landed.as_ref().map(|landed| landed.landing.clone()),
            Ok(Err(_)) => None,
            // The request continues: its result serves later callers.
            Err(_) => Some(Err(self.out_of_time(&flight))),
        };
        match landing {
            Some(Ok(credentials)) if is_usable(&credentials, self.clock.now()) => Ok(credentials),
            Some(Ok(credentials)) => Err(AssumeRoleError::Expired { at: credentials.expires_at }),
            Some(Err(error)) => earlier.filter(is_held).ok_or(error),
            None => earlier
                .filter(is_held)
                .ok_or_else(|| AssumeRoleError::Failed { message: "the request to it ended without an answer".to_owned() }),
        }
    }

    /// Returns why a caller that waited for `--sts-timeout` got no credentials.
    fn out_of_time(&self, flight: &Flight) -> AssumeRoleError {
        if let Some(trouble) = self.gate.trouble() {
            return trouble;
        }
        match self.gate.waits_with(flight.ticket) {
            Some(others) => {
                let why = NotAsked::Queued { others };
                self.metrics.sts_turned_away(why.name());
                AssumeRoleError::NotAsked(why)
            }
            None => AssumeRoleError::Unreachable { message: "no response within --sts-timeout".to_owned() },
        }
    }

    /// Returns the wall clock time.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

#[cfg(test)]
mod tests;

//! One request to STS, in flight or completed, and how it serves current callers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backoff::{Backoff, fraction, spread};
use crate::credentials::gate::Ticket;
use crate::credentials::{AssumeRoleError, Credentials};
use crate::metrics::RoleMeters;
use crate::session_limits::LONGEST_SDK_MARGIN;

/// The least remaining lifetime of served credentials while STS works. The SDKs with the longest margin (botocore) refresh on
/// every use below it.
pub const LEAST_REMAINING: Duration = LONGEST_SDK_MARGIN;
/// Credentials with less time left are not served at all: AWS would reject them on arrival.
pub const LEAST_USABLE: Duration = Duration::from_secs(5);
/// The longest time for which a failure is remembered, as a multiple of the first. The time doubles with each consecutive
/// failure.
const MOST_TIMES: u32 = 8;
/// The longest pause of a session that was throttled once while STS works otherwise.
const SOON: Duration = Duration::from_secs(10 * 60);
/// The shortest pause of a session that STS throttles.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

/// The result of a flight.
pub type Landing = Result<Arc<Credentials>, AssumeRoleError>;

/// A request to STS, in flight or completed.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) state: watch::Receiver<FlightState>,
    /// The number of consecutive failures before it.
    pub(super) failures: u32,
    /// Its place at the gate.
    pub(super) ticket: Ticket,
    /// The counters of its role, if there are any.
    pub(super) role_meters: Option<RoleMeters>,
    /// Until when the held credentials are not renewed while STS throttles; set at first use.
    pub(super) patient_until: OnceLock<Instant>,
}

/// The state of a flight.
#[derive(Debug)]
pub(super) struct FlightState {
    /// The credentials of the flight before, in case this one fails. Dropped when it succeeds.
    pub(super) earlier: Option<Arc<Credentials>>,
    /// Whether earlier credentials have expired without a replacement.
    pub(super) lapsed: bool,
    /// The result, once it has arrived.
    pub(super) landed: Option<Landed>,
}

/// The completion of a flight.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) landing: Landing,
    /// Until when a failure is served as the result.
    pub(super) until: Instant,
}

/// How an existing flight serves a caller now.
pub(super) enum Serves {
    /// With these credentials.
    Credentials(Arc<Credentials>),
    /// The caller waits for the request in flight.
    Wait,
    /// With a recent failure.
    Failure(AssumeRoleError),
    /// Not at all: a new flight is needed.
    Nothing(Before),
}

/// The state that a flight inherits from the one before it.
#[derive(Default)]
pub(super) struct Before {
    pub(super) earlier: Option<Arc<Credentials>>,
    pub(super) failures: u32,
    pub(super) lapsed: bool,
}

/// The state of a session, for whoever renews it.
#[derive(Clone, Debug)]
pub enum SessionState {
    /// A request to STS is in flight.
    UnderWay,
    /// Credentials are cached.
    Held(Arc<Credentials>),
    /// STS failed. No request is made before `until`.
    Failed {
        /// When the session may be requested again.
        until: Instant,
        /// Whether STS refused the session and no valid credentials are held.
        hopeless: bool,
    },
}

/// The public part of a session, for status pages. It has neither secrets nor the access key ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionView {
    /// When the credentials that pods get now were issued; `None` if there are none that are still valid.
    pub issued_at: Option<Timestamp>,
    /// When they expire.
    pub expires_at: Option<Timestamp>,
    /// Whether a request to STS is in flight or queued.
    pub is_requested: bool,
    /// The outcome of the last request to STS, if it failed.
    pub failure: Option<&'static str>,
}

impl Flight {
    /// Returns how the flight serves a caller now. `is_slow` returns whether STS throttles this node.
    pub(super) fn serves(&self, now: Timestamp, is_slow: impl Fn() -> bool) -> Serves {
        let state = self.state.borrow();
        let FlightState { earlier, landed, .. } = &*state;
        let fresh = || earlier.as_ref().filter(|earlier| is_fresh(earlier, now)).cloned();
        let usable = || earlier.as_ref().filter(|earlier| is_usable(earlier, now)).cloned();
        match landed {
            None => match fresh() {
                // Callers do not wait for a renewal.
                Some(earlier) => Serves::Credentials(earlier),
                None if self.has_crashed() => Serves::Nothing(self.after_failure(&state, 0, now)),
                // Nor for a retried one: STS is failing.
                None if self.failures > 0 => usable().map_or(Serves::Wait, Serves::Credentials),
                None => Serves::Wait,
            },
            Some(Landed { landing: Ok(credentials), .. }) if is_fresh(credentials, now) => Serves::Credentials(credentials.clone()),
            Some(Landed { landing: Ok(credentials), .. }) => Serves::Nothing(after(credentials, now)),
            Some(Landed { landing: Err(error), until }) => match fresh() {
                Some(earlier) => Serves::Credentials(earlier),
                None if Instant::now() < *until => usable().map_or_else(|| Serves::Failure(error.clone()), Serves::Credentials),
                None => match usable().filter(|held| self.patience(error, held, now, is_slow).is_some()) {
                    Some(earlier) => Serves::Credentials(earlier),
                    None => Serves::Nothing(self.after_failure(&state, u32::from(error.is_remembered()), now)),
                },
            },
        }
    }

    /// Returns the credentials that it brought, if it has completed and succeeded.
    pub(super) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.state.borrow().landed.as_ref()?.landing.as_ref().ok().cloned()
    }

    /// Counts a request that it answered, by its role. Returns the answer.
    pub(super) fn counted(&self, landing: Landing) -> Landing {
        if let Some(meters) = &self.role_meters {
            meters.answered(landing.is_ok());
        }
        landing
    }

    /// Whether the flight's task panicked, so that no result will come.
    fn has_crashed(&self) -> bool {
        self.state.has_changed().is_err()
    }

    fn after_failure(&self, FlightState { earlier, lapsed, .. }: &FlightState, more: u32, now: Timestamp) -> Before {
        let before = earlier.as_ref().map(|earlier| after(earlier, now)).unwrap_or_default();
        Before { failures: self.failures.saturating_add(more), lapsed: *lapsed || before.lapsed, ..before }
    }

    /// Returns what the next flight inherits, if it may start ahead of need.
    pub(super) fn next(&self, now: Timestamp) -> Option<Before> {
        let state = self.state.borrow();
        match &state.landed {
            None => self.has_crashed().then(|| self.after_failure(&state, 0, now)),
            Some(Landed { landing: Ok(credentials), .. }) => Some(after(credentials, now)),
            Some(Landed { landing: Err(error), until }) => {
                (*until <= Instant::now()).then(|| self.after_failure(&state, u32::from(error.is_remembered()), now))
            }
        }
    }

    /// Returns the public part of its state.
    pub(super) fn view(&self, now: Timestamp) -> SessionView {
        let FlightState { earlier, landed, .. } = &*self.state.borrow();
        let (fresh, failure) = match landed.as_ref().map(|landed| &landed.landing) {
            Some(Ok(credentials)) => (Some(credentials), None),
            Some(Err(error)) => (None, Some(error.name())),
            None => (None, None),
        };
        let held = fresh.or(earlier.as_ref()).filter(|held| is_usable(held, now));
        SessionView {
            issued_at: held.map(|held| held.issued_at),
            expires_at: held.map(|held| held.expires_at),
            is_requested: landed.is_none() && !self.has_crashed(),
            failure,
        }
    }

    pub(super) fn standing(&self, now: Timestamp) -> SessionState {
        let FlightState { earlier, landed, .. } = &*self.state.borrow();
        let usable = earlier.as_ref().is_some_and(|earlier| is_usable(earlier, now));
        match landed {
            None if self.has_crashed() => SessionState::Failed { until: Instant::now(), hopeless: !usable },
            None => SessionState::UnderWay,
            Some(Landed { landing: Ok(credentials), .. }) => SessionState::Held(credentials.clone()),
            Some(Landed { landing: Err(error), until }) => SessionState::Failed { until: *until, hopeless: error.is_refusal() && !usable },
        }
    }

    /// Returns the credentials of the flight before, while they are valid.
    pub(super) fn earlier(&self, now: Timestamp) -> Option<Arc<Credentials>> {
        self.state.borrow().earlier.as_ref().filter(|earlier| is_usable(earlier, now)).cloned()
    }

    /// Returns until when a renewal gives way while STS throttles. Sessions with time left give way to those without, which may
    /// be on other nodes.
    pub(super) fn gives_way(&self, now: Timestamp, is_slow: impl Fn() -> bool) -> Option<Instant> {
        let FlightState { earlier, landed, .. } = &*self.state.borrow();
        match landed {
            Some(Landed { landing: Ok(held), .. }) if is_fresh(held, now) => self.patience(&AssumeRoleError::Throttled, held, now, is_slow),
            Some(Landed { landing: Err(error), .. }) => {
                self.patience(error, earlier.as_ref().filter(|held| is_usable(held, now))?, now, is_slow)
            }
            _ => None,
        }
    }

    /// Returns until when a throttled session is left alone. Applies only while STS throttles this node.
    fn patience(&self, error: &AssumeRoleError, held: &Credentials, now: Timestamp, is_slow: impl Fn() -> bool) -> Option<Instant> {
        if !matches!(error, AssumeRoleError::Throttled) || !is_slow() {
            return None;
        }
        let until = *self.patient_until.get_or_init(|| Instant::now() + patience(held, now));
        (Instant::now() < until).then_some(until)
    }

    /// Returns the remaining lifetime of the credentials that would be served if no others arrived: zero if they have expired,
    /// `None` if there never were any.
    pub(super) fn lasts(&self, now: Timestamp) -> Option<Duration> {
        let FlightState { earlier, lapsed, landed } = &*self.state.borrow();
        let credentials = match landed {
            Some(Landed { landing: Ok(credentials), .. }) => Some(credentials),
            _ => earlier.as_ref(),
        };
        let held = credentials.map(|credentials| if is_usable(credentials, now) { credentials.remaining(now) } else { Duration::ZERO });
        held.or_else(|| lapsed.then_some(Duration::ZERO))
    }
}

/// Returns what a flight that follows these credentials inherits: the credentials, if they are still valid.
fn after(credentials: &Arc<Credentials>, now: Timestamp) -> Before {
    let earlier = is_usable(credentials, now).then(|| credentials.clone());
    Before { lapsed: earlier.is_none(), earlier, failures: 0 }
}

/// Returns how long a session that STS throttles is left alone while it is valid. The more time a session has left, the longer
/// the pause, so that STS's responses go to sessions close to expiry, on any node. The pause is half of the remaining lifetime.
/// Below a quarter of the session's life, it shrinks with the square of the remaining fraction.
pub(super) fn patience(held: &Credentials, now: Timestamp) -> Duration {
    let left = held.remaining(now);
    let part = (4.0 * left.as_secs_f64() / held.life().as_secs_f64().max(1.0)).min(1.0);
    spread((left / 2).mul_f64(part * part).max(LEAST_PATIENCE))
}

/// Returns how long a session that STS throttled is left alone while its credentials are still usable. The pause is random, and
/// leaves enough time to retry while they are fresh. If the whole node is throttled, [`patience`] applies as well.
pub(super) fn pause(held: &Credentials, now: Timestamp, failures: u32, error_ttl: Duration) -> Duration {
    let fresh_for = held.remaining(now).saturating_sub(LEAST_REMAINING.min(held.life() / 2));
    if fresh_for.is_zero() {
        return remembered_for(&AssumeRoleError::Throttled, failures, error_ttl).min(patience(held, now));
    }
    fresh_for.min(SOON).mul_f64(0.25 + fraction() / 2.0).max(LEAST_PATIENCE)
}

/// Returns how long a failure is served as the result after `failures` earlier ones: at first `error_ttl`, then longer with
/// each, with jitter so that nodes do not retry in step. For throttled requests the time does not grow, and errors that are not
/// remembered have none.
pub(super) fn remembered_for(error: &AssumeRoleError, failures: u32, error_ttl: Duration) -> Duration {
    match failures {
        _ if !error.is_remembered() => Duration::ZERO,
        0 => error_ttl,
        // The gate's pace limits these requests, so callers without credentials need no growing pause in addition.
        _ if matches!(error, AssumeRoleError::Throttled) => spread(error_ttl),
        more => spread(Backoff::new(error_ttl, error_ttl.saturating_mul(MOST_TIMES)).pause(more)),
    }
}

/// Whether enough time is left to serve the credentials while STS works. A session shorter than an hour is fresh in its first
/// half.
pub(super) fn is_fresh(credentials: &Credentials, now: Timestamp) -> bool {
    credentials.remaining(now) > LEAST_REMAINING.min(credentials.life() / 2)
}

pub(super) fn is_usable(credentials: &Credentials, now: Timestamp) -> bool {
    credentials.remaining(now) > LEAST_USABLE
}

//! One request to STS, under way or landed, and how it serves whoever asks now.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backoff::{Backoff, fraction, spread};
use crate::credentials::gate::Ticket;
use crate::credentials::{AssumeRoleError, Credentials};
use crate::session_limits::LONGEST_SDK_MARGIN;

/// Nothing with less left is served while STS works: the SDKs with the longest margin (botocore) refresh, and refresh
/// again and again, below it.
pub const LEAST_REMAINING: Duration = LONGEST_SDK_MARGIN;
/// Credentials that end in less are not served at all: they would be refused on arrival.
pub const LEAST_USABLE: Duration = Duration::from_secs(5);
/// Failures that follow each other double the time that they are remembered, up to so many times that of the first.
const MOST_TIMES: u32 = 8;
/// The longest pause of a session that was throttled by an STS which works otherwise.
const SOON: Duration = Duration::from_secs(10 * 60);
/// The shortest time that a session which STS throttles is left alone.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

/// What a flight brought.
pub type Landing = Result<Arc<Credentials>, AssumeRoleError>;

/// A request to STS, under way or landed.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) state: watch::Receiver<FlightState>,
    /// How many failed before it, one after the other.
    pub(super) failures: u32,
    /// Its place at the gate.
    pub(super) ticket: Ticket,
    /// Until when what is held does without STS while that throttles; set when it is first wanted to.
    pub(super) patient_until: OnceLock<Instant>,
}

/// Where a flight is.
#[derive(Debug)]
pub(super) struct FlightState {
    /// What the flight before brought, for the case that this one fails: let go when it does not.
    pub(super) earlier: Option<Arc<Credentials>>,
    /// There were credentials, which have ended with nothing after them.
    pub(super) lapsed: bool,
    /// Its end, once it is there.
    pub(super) landed: Option<Landed>,
}

/// The end of a flight.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) landing: Landing,
    /// Until when a failure is the answer.
    pub(super) until: Instant,
}

/// How a flight that exists serves a caller now.
pub(super) enum Serves {
    /// These credentials.
    Credentials(Arc<Credentials>),
    /// It is under way: wait for it.
    Wait,
    /// It failed lately.
    Failure(AssumeRoleError),
    /// Not at all: another one is needed.
    Nothing(Before),
}

/// What a flight takes over from the one before it.
#[derive(Default)]
pub(super) struct Before {
    pub(super) earlier: Option<Arc<Credentials>>,
    pub(super) failures: u32,
    pub(super) lapsed: bool,
}

/// Where a session stands, for whoever renews it.
#[derive(Clone, Debug)]
pub enum SessionState {
    /// STS is being asked.
    UnderWay,
    /// It is here.
    Held(Arc<Credentials>),
    /// STS failed: it is not asked again before this time.
    Failed {
        /// When it may be asked again.
        until: Instant,
        /// Whether it was a refusal, with nothing held that is still good.
        hopeless: bool,
    },
}

impl Flight {
    /// How it serves a caller now; `is_slow` tells whether STS throttles this node.
    pub(super) fn serves(&self, now: Timestamp, is_slow: impl Fn() -> bool) -> Serves {
        let state = self.state.borrow();
        let FlightState { earlier, landed, .. } = &*state;
        let fresh = || earlier.as_ref().filter(|earlier| is_fresh(earlier, now)).cloned();
        let usable = || earlier.as_ref().filter(|earlier| is_usable(earlier, now)).cloned();
        match landed {
            None => match fresh() {
                // A renewal keeps nobody waiting.
                Some(earlier) => Serves::Credentials(earlier),
                None if self.has_crashed() => Serves::Nothing(self.after_failure(&state, 0, now)),
                // Nor does one that is tried again: STS does not work.
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

    /// Whether nothing comes any more, though nothing came: its task ended by a panic.
    fn has_crashed(&self) -> bool {
        self.state.has_changed().is_err()
    }

    fn after_failure(&self, FlightState { earlier, lapsed, .. }: &FlightState, more: u32, now: Timestamp) -> Before {
        let before = earlier.as_ref().map(|earlier| after(earlier, now)).unwrap_or_default();
        Before { failures: self.failures.saturating_add(more), lapsed: *lapsed || before.lapsed, ..before }
    }

    /// What the next flight takes over, if it may begin ahead of need.
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

    /// What the flight before brought, while it is still good.
    pub(super) fn earlier(&self, now: Timestamp) -> Option<Arc<Credentials>> {
        self.state.borrow().earlier.as_ref().filter(|earlier| is_usable(earlier, now)).cloned()
    }

    /// Until when a renewal of what is held gives way, while STS throttles: those that have time, to those that have none,
    /// which may be another node's.
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

    /// Not for longer than STS throttles this node.
    fn patience(&self, error: &AssumeRoleError, held: &Credentials, now: Timestamp, is_slow: impl Fn() -> bool) -> Option<Instant> {
        if !matches!(error, AssumeRoleError::Throttled) || !is_slow() {
            return None;
        }
        let until = *self.patient_until.get_or_init(|| Instant::now() + patience(held, now));
        (Instant::now() < until).then_some(until)
    }

    /// How long the credentials last that would be served if nothing else came: nothing where they have ended, `None` where
    /// there never were any.
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

/// What a flight takes over that follows these credentials: themselves, if they are still good.
fn after(credentials: &Arc<Credentials>, now: Timestamp) -> Before {
    let earlier = is_usable(credentials, now).then(|| credentials.clone());
    Before { lapsed: earlier.is_none(), earlier, failures: 0 }
}

/// How long a session that STS throttles is left alone while it is still good: most of all where it has long to live, so that
/// what STS does answer goes to those that end soon, on whatever node. Half of what is left; below a quarter of its life,
/// less by the square of it.
pub(super) fn patience(held: &Credentials, now: Timestamp) -> Duration {
    let left = held.remaining(now);
    let part = (4.0 * left.as_secs_f64() / held.life().as_secs_f64().max(1.0)).min(1.0);
    spread((left / 2).mul_f64(part * part).max(LEAST_PATIENCE))
}

/// How long a session that STS throttled once is left alone, where STS works otherwise: another time for each, with enough left to
/// try again while it is fresh.
pub(super) fn pause(held: &Credentials, now: Timestamp, failures: u32, error_ttl: Duration) -> Duration {
    let fresh_for = held.remaining(now).saturating_sub(LEAST_REMAINING.min(held.life() / 2));
    if fresh_for.is_zero() {
        return remembered_for(&AssumeRoleError::Throttled, failures, error_ttl).min(patience(held, now));
    }
    fresh_for.min(SOON).mul_f64(0.25 + fraction() / 2.0).max(LEAST_PATIENCE)
}

/// How long a failure is the answer, after so many before it: at first `error_ttl`, then more and more, and not the same on
/// every node.
pub(super) fn remembered_for(error: &AssumeRoleError, failures: u32, error_ttl: Duration) -> Duration {
    match failures {
        _ if !error.is_remembered() => Duration::ZERO,
        0 => error_ttl,
        // The gate's pace is what bounds these: who has nothing left does not wait longer and longer besides.
        _ if matches!(error, AssumeRoleError::Throttled) => spread(error_ttl),
        more => spread(Backoff::new(error_ttl, error_ttl.saturating_mul(MOST_TIMES)).pause(more)),
    }
}

/// With enough left to be served while STS works. A session shorter than an hour is fresh in its first half.
pub(super) fn is_fresh(credentials: &Credentials, now: Timestamp) -> bool {
    credentials.remaining(now) > LEAST_REMAINING.min(credentials.life() / 2)
}

pub(super) fn is_usable(credentials: &Credentials, now: Timestamp) -> bool {
    credentials.remaining(now) > LEAST_USABLE
}

//! The gate in front of STS: how many requests this node makes at one time, how many in a second, and which first.
//!
//! STS's quota is the whole account's. So a node goes through one gate: a request that a pod waits for before one that is
//! made ahead of need, and that before a renewal, which has time: the less of it, the earlier, and at last before what is made
//! ahead, too. What is made ahead leaves room for pods that may come.
//!
//! Throttling and outages are everybody's, and slow the whole gate: the pace is halved with each that was met at the present
//! pace, and grows again by a part with each answer that STS gives, slowly also by itself. Refusals are answers: they slow
//! nothing. Nor do failures of the daemon's own identity, which STS does not work for. Any other failure may be one account's
//! alone, and be in its owner's hands. It counts when roles of two accounts meet one, with no answer between them; where STS
//! was not heard about another account for long, those of two roles are enough.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{AssumeRoleError, jitter};
use crate::metrics::Metrics;
use crate::role::RoleArn;

/// The slowest pace, as a part of the full one: with 20 requests a second, one in 3 seconds.
const SLOWEST: f64 = 1.0 / 64.0;
/// The pace, as a part of the full one, below which what has time gives way.
const SLOW: f64 = 0.25;
/// What one answer gives back of the pace: little, so that a node whose STS throttles goes on leaving it to those that end soon.
const RECOVERY: f64 = 1.0 / 64.0;
/// The time in which all of the pace comes back by itself, and in which an answer about an account is one of lately.
const FORGIVEN: Duration = Duration::from_secs(3600);
/// A session with less left is nearly ended: its renewal goes before what is made ahead.
pub(super) const NEARLY_ENDED: Duration = Duration::from_secs(5 * 60);
/// The part of the requests under way that may be made ahead of need.
const AHEAD: f64 = 0.75;

/// Why STS is asked. The first goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A pod waits.
    Demand,
    /// A pod is here that may ask.
    Prefetch,
    /// A session comes to half of its life.
    Renewal,
}

impl Cause {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Demand, Self::Prefetch, Self::Renewal];

    /// The stable name: a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Prefetch => "prefetch",
            Self::Renewal => "renewal",
        }
    }
}

/// What the node allows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in a second; twice as many at once.
    pub rate: u32,
    /// Requests under way.
    pub concurrency: usize,
}

/// The gate; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    metrics: Metrics,
    state: Mutex<State>,
}

/// A place in the queue: what ends first goes first, and then who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    ends: Option<Instant>,
    number: u64,
}

#[derive(Debug)]
struct State {
    /// Requests that may be made at once; below zero, there is longer to wait.
    tokens: f64,
    counted_at: Instant,
    /// From [`SLOWEST`] to 1.
    pace: f64,
    /// Grows when the pace is lowered: what was begun before says nothing of the new pace.
    epoch: u64,
    /// Whose failure was the last that may be one account's alone; none since an answer.
    suspect: Option<Whose>,
    /// The accounts that STS answered about last, and when: two that differ.
    answered: [Option<(u64, Instant)>; 2],
    /// What lowered the pace, until STS answers.
    trouble: Option<AssumeRoleError>,
    under_way: usize,
    waiting: BTreeMap<(Cause, Ticket), oneshot::Sender<Permit>>,
    next_ticket: u64,
    timer: Option<(Instant, AbortHandle)>,
}

/// Leave to ask STS once, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Gate,
    cause: Cause,
    ticket: Ticket,
    epoch: u64,
}

/// A role and its account, by their hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whose {
    account: u64,
    role: u64,
}

impl Whose {
    fn of(role: &RoleArn) -> Self {
        Self { account: hash(role.account()), role: hash(role) }
    }
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl State {
    /// Tokens that can be saved up.
    fn most(&self, limits: Limits) -> f64 {
        (2.0 * f64::from(limits.rate) * self.pace).max(1.0)
    }

    fn count(&mut self, limits: Limits, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_at).as_secs_f64();
        self.counted_at = now;
        let before = self.pace;
        self.pace = (self.pace + passed / FORGIVEN.as_secs_f64()).min(1.0);
        let on_average = f64::midpoint(before, self.pace);
        self.tokens = (self.tokens + passed * f64::from(limits.rate) * on_average).min(self.most(limits));
    }

    /// Tokens that there must be for this request to be made.
    fn needed(&self, limits: Limits, cause: Cause) -> f64 {
        match cause {
            Cause::Demand => 1.0,
            Cause::Prefetch | Cause::Renewal => (self.most(limits) / 2.0).max(1.0),
        }
    }

    fn has_room(&self, limits: Limits, cause: Cause) -> bool {
        let all = (part(limits.concurrency, self.pace)).max(1);
        let most = if cause == Cause::Demand { all } else { part(all, AHEAD).max(1) };
        self.under_way < most
    }

    /// Who goes next: a pod that waits; then the renewal that ends first, if it is nearly ended; then what is made ahead.
    fn next(&self, now: Instant) -> Option<(Cause, Ticket)> {
        let first = *self.waiting.keys().next()?;
        let renewal = || self.waiting.range((Cause::Renewal, Ticket::FIRST)..).next().map(|(place, _)| *place);
        let ends_soon = |ticket: &Ticket| ticket.ends.is_some_and(|ends| ends.saturating_duration_since(now) < NEARLY_ENDED);
        match first.0 {
            Cause::Prefetch => Some(renewal().filter(|(_, ticket)| ends_soon(ticket)).unwrap_or(first)),
            Cause::Demand | Cause::Renewal => Some(first),
        }
    }

    /// STS answered about a role of this account.
    fn heard_about(&mut self, account: u64, now: Instant) {
        self.suspect = None;
        let [last, before] = self.answered;
        let before = if last.is_some_and(|(other, _)| other != account) { last } else { before };
        self.answered = [Some((account, now)), before];
    }

    /// Whether this failure, after the one before it, is everybody's.
    fn is_outage(&mut self, whose: Whose, now: Instant) -> bool {
        let Some(before) = self.suspect.replace(whose) else {
            return false;
        };
        let lately = |at: Instant| now.saturating_duration_since(at) < FORGIVEN;
        let others = self.answered.iter().flatten().any(|(account, at)| *account != whose.account && lately(*at));
        before.account != whose.account || (before.role != whose.role && !others)
    }
}

impl Ticket {
    /// Before all others.
    const FIRST: Self = Self { ends: None, number: 0 };
}

/// A part of a number, rounded down.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a small number and a part of it")]
fn part(of: usize, part: f64) -> usize {
    (of as f64 * part) as usize
}

impl Gate {
    /// An open gate.
    pub(super) fn new(limits: Limits, metrics: Metrics) -> Self {
        let state = State {
            tokens: 2.0 * f64::from(limits.rate),
            counted_at: Instant::now(),
            pace: 1.0,
            epoch: 0,
            suspect: None,
            answered: [None; 2],
            trouble: None,
            under_way: 0,
            waiting: BTreeMap::new(),
            next_ticket: 0,
            timer: None,
        };
        Self(Arc::new(Inner { limits, metrics, state: Mutex::new(state) }))
    }

    /// Takes a place in the queue, for a session that has so much left without this; `None`: there is none. The turn comes by
    /// the receiver; that ends without one where the place is withdrawn.
    pub(super) fn queue(&self, cause: Cause, left: Option<Duration>) -> (Ticket, oneshot::Receiver<Permit>) {
        let ticket = {
            let mut state = self.lock();
            let ticket = Ticket { ends: left.map(|left| Instant::now() + left), number: state.next_ticket };
            state.next_ticket += 1;
            ticket
        };
        (ticket, self.queue_as(cause, ticket))
    }

    fn queue_as(&self, cause: Cause, ticket: Ticket) -> oneshot::Receiver<Permit> {
        let (sender, turn) = oneshot::channel();
        {
            let mut state = self.lock();
            state.waiting.insert((cause, ticket), sender);
            self.0.metrics.sts_queue(cause.name()).inc();
        }
        self.dispatch();
        turn
    }

    /// A pod waits for it now. Without effect where its turn has come.
    pub(super) fn raise(&self, ticket: Ticket) {
        {
            let mut state = self.lock();
            let Some((cause, sender)) = take(&mut state, ticket) else {
                return;
            };
            self.0.metrics.sts_queue(cause.name()).dec();
            self.0.metrics.sts_queue(Cause::Demand.name()).inc();
            state.waiting.insert((Cause::Demand, ticket), sender);
        }
        self.dispatch();
    }

    /// Nobody needs it any more. A place that a pod waits for is kept: the pod is told what becomes of it.
    pub(super) fn withdraw(&self, ticket: Ticket) {
        let taken = take(&mut self.lock(), ticket);
        if let Some((cause, _)) = taken {
            self.0.metrics.sts_queue(cause.name()).dec();
        }
        // What stood behind it may need fewer tokens, or a timer.
        self.dispatch();
    }

    /// What keeps the gate from its full pace, where STS has not answered since.
    pub(super) fn trouble(&self) -> Option<AssumeRoleError> {
        self.lock().trouble.clone()
    }

    /// Whether so little is let in that it is for those who need it soon.
    pub(super) fn is_slow(&self) -> bool {
        let mut state = self.lock();
        state.count(self.0.limits, Instant::now());
        state.pace < SLOW
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data that every holder leaves whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets in who may go now, and sets the timer for who is next.
    fn dispatch(&self) {
        let mut turns = Vec::new();
        {
            let (limits, now) = (self.0.limits, Instant::now());
            let mut state = self.lock();
            state.count(limits, now);
            while let Some((cause, ticket)) = state.next(now)
                && state.has_room(limits, cause)
            {
                let short = state.needed(limits, cause) - state.tokens;
                // Less than a request in a million seconds is a matter of rounding.
                if short > 1e-6 {
                    let wait = Duration::from_secs_f64(short / (f64::from(limits.rate) * state.pace)) + Duration::from_millis(1);
                    self.wake_at(&mut state, now + wait);
                    break;
                }
                if let Some(sender) = state.waiting.remove(&(cause, ticket)) {
                    state.tokens -= 1.0;
                    state.under_way += 1;
                    turns.push((sender, Permit { gate: self.clone(), cause, ticket, epoch: state.epoch }));
                }
            }
        }
        for (sender, permit) in turns {
            self.0.metrics.sts_queue(permit.cause.name()).dec();
            // Who has gone gives the permit back by dropping it.
            let _ = sender.send(permit);
        }
    }

    fn wake_at(&self, state: &mut State, at: Instant) {
        match &state.timer {
            Some((earlier, _)) if *earlier <= at && *earlier > Instant::now() => return,
            Some((_, timer)) => timer.abort(),
            None => {}
        }
        let gate = Arc::downgrade(&self.0);
        // Not a background task: it ends with its time.
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            if let Some(inner) = gate.upgrade() {
                let gate = Self(inner);
                gate.lock().timer = None;
                gate.dispatch();
            }
        });
        state.timer = Some((at, timer.abort_handle()));
    }
}

fn take(state: &mut State, ticket: Ticket) -> Option<(Cause, oneshot::Sender<Permit>)> {
    [Cause::Prefetch, Cause::Renewal].into_iter().find_map(|cause| Some((cause, state.waiting.remove(&(cause, ticket))?)))
}

impl Permit {
    /// Why STS is asked.
    pub(super) fn cause(&self) -> Cause {
        self.cause
    }

    /// What STS answered about this role.
    pub(super) fn answered<T>(&self, role: &RoleArn, answer: &Result<T, AssumeRoleError>) {
        let (whose, now) = (Whose::of(role), Instant::now());
        let mut state = self.gate.lock();
        match answer {
            Err(error) if !error.is_refusal() => match error {
                // It cost STS nothing: others may be asked for instead.
                AssumeRoleError::IdentityUnknown(_) => state.tokens = (state.tokens + 1.0).min(state.most(self.gate.0.limits)),
                // Whoever renews them has them for all.
                AssumeRoleError::OwnIdentity { .. } => {}
                _ if self.epoch != state.epoch => {}
                AssumeRoleError::Throttled => slow_down(&mut state, error),
                _ => {
                    if state.is_outage(whose, now) {
                        slow_down(&mut state, error);
                    }
                }
            },
            _ => {
                state.heard_about(whose.account, now);
                if self.epoch == state.epoch {
                    state.pace = (state.pace + RECOVERY).min(1.0);
                    state.trouble = None;
                }
            }
        }
    }

    /// Whether the next question may have a better answer than this one, and is worth it now: for a shorter session; or after a lost
    /// connection or a failure, once, where it `is_needed` and it is not known that all meet the same.
    pub(super) fn is_asked_again(&self, error: &AssumeRoleError, questions: u32, is_needed: bool) -> bool {
        match error {
            AssumeRoleError::TooLong { .. } => questions <= 2,
            AssumeRoleError::Unreachable { .. } | AssumeRoleError::Failed { .. } => {
                let trouble = self.gate.trouble();
                let is_outage = matches!(trouble, Some(AssumeRoleError::Unreachable { .. } | AssumeRoleError::Failed { .. }));
                questions == 1 && is_needed && !is_outage
            }
            _ => false,
        }
    }

    /// Leave to ask once more, for the same reason, when its turn comes again.
    pub(super) fn again(self) -> oneshot::Receiver<Permit> {
        self.gate.queue_as(self.cause, self.ticket)
    }
}

fn slow_down(state: &mut State, error: &AssumeRoleError) {
    state.epoch += 1;
    state.pace = (state.pace / 2.0).max(SLOWEST);
    // What was saved up is gone, and up to one more, so that nodes do not come back together.
    state.tokens = state.tokens.min(0.0) - jitter::fraction();
    state.trouble = Some(error.clone());
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.lock().under_way -= 1;
        self.gate.dispatch();
    }
}

#[cfg(test)]
mod tests;

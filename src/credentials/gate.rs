//! The gate in front of STS: concurrency, rate and order of this node's requests.
//!
//! STS's quota is shared by the whole account. All requests of a node therefore pass one gate, whose `pace` follows STS's
//! responses. The `queue` in front of it is fair by namespace and pod, so that no pod can use up the turns of others. Prefetches
//! leave room for pods that may need credentials at once.
//!
//! A pod has an `allowance` of new sessions, and a namespace a number of places in the queue. Requests beyond them are turned
//! away, counted, and logged with the pod.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::warn;

use super::AssumeRoleError;
use super::caller::Caller;
use super::not_asked::NotAsked;
use crate::backoff::spread;
use crate::log_once::{EachDigest, LOG_EVERY};
use crate::metrics::Metrics;
use crate::role::RoleArn;

mod allowance;
mod call;
mod lane;
mod pace;
mod queue;

use allowance::Allowances;
pub use call::{CallCause, StsLimits};
pub(super) use call::{NEARLY_ENDED, Ticket};
use pace::Pace;
use queue::{CallQueue, NextReason, PLACES_OF_NAMESPACE, QueuedCall};

/// The share of the requests in flight that may be prefetches.
const AHEAD: f64 = 0.75;
/// The pause before a prefetch for which the queue had no place is retried, minus a jitter of up to a quarter.
const QUEUE_WAS_FULL: Duration = Duration::from_secs(10);
/// The most pods and namespaces whose lines are remembered.
const MAX_LOGGED: usize = 1024;

/// The gate; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<GateInner>);

#[derive(Debug)]
struct GateInner {
    metrics: Metrics,
    state: Mutex<GateState>,
    /// The pods and namespaces that were logged recently.
    logged: EachDigest,
}

/// The result of a turn: a permit for one request to STS, or why there is none.
pub(super) type TurnResult = Result<StsPermit, NotAsked>;

/// A request at its arrival at the gate.
#[derive(Debug)]
pub(super) struct Application<'a> {
    /// The cause of the request to STS.
    pub(super) cause: CallCause,
    /// When the cached session expires; `None` if there is none.
    pub(super) left: Option<Duration>,
    /// The pods that need the session. At least one if no session is cached.
    pub(super) callers: &'a [Arc<Caller>],
    /// Whether the session was never requested from STS before.
    pub(super) is_new: bool,
}

/// A request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TurnedAwayCall {
    /// Why.
    pub(super) why: NotAsked,
    /// When it may be tried again.
    pub(super) after: Duration,
}

#[derive(Debug)]
struct GateState {
    pace: Pace,
    queue: CallQueue<StsPermit>,
    allowances: Allowances,
    under_way: usize,
    next_ticket: u64,
    timer: Option<(Instant, AbortHandle)>,
}

/// A permit for one request to STS, until dropped.
#[derive(Debug)]
pub(super) struct StsPermit {
    gate: Gate,
    cause: CallCause,
    ticket: Ticket,
    ends: Option<Instant>,
    /// The pods whose turns a retry may use. If no session is cached, one pod, whose place stays taken until then.
    callers: Vec<Arc<Caller>>,
    epoch: u64,
    began: Instant,
}

impl GateState {
    /// Returns how many tokens must be available before this request is made.
    fn needed(&self, why: NextReason) -> f64 {
        match why {
            NextReason::Waits | NextReason::EndsSoon => 1.0,
            NextReason::Ahead | NextReason::Renews => (self.pace.most() / 2.0).max(1.0),
        }
    }

    fn has_room(&self, why: NextReason) -> bool {
        let all = self.pace.concurrency();
        let most = match why {
            NextReason::Waits | NextReason::EndsSoon => all,
            NextReason::Ahead | NextReason::Renews => pace::part(all, AHEAD).max(1),
        };
        self.under_way < most
    }

    /// The pods whose turns a request for a new session may use: the first pod of each namespace that has a place left, in order.
    fn admitted(&self, callers: &[Arc<Caller>], is_new: bool, now: Instant) -> Result<Vec<Arc<Caller>>, TurnedAwayCall> {
        let (mut admitted, mut after): (Vec<Arc<Caller>>, Option<Duration>) = (Vec::new(), None);
        let mut is_full = false;
        for caller in callers {
            if admitted.iter().any(|other| other.namespace == caller.namespace) {
                continue;
            }
            match self.allowances.wait(&caller.uid, is_new, now) {
                Some(wait) => after = Some(after.map_or(wait, |after| after.min(wait))),
                None if self.queue.of_namespace(&caller.namespace) >= PLACES_OF_NAMESPACE => is_full = true,
                None => admitted.push(caller.clone()),
            }
        }
        match after {
            _ if !admitted.is_empty() => Ok(admitted),
            Some(after) if !is_full => Err(TurnedAwayCall { why: NotAsked::TooManyChanges, after }),
            _ => Err(queue_full()),
        }
    }

    /// A pod needs one session at a time. If its places are taken, a queued request that only this pod needs is for an outdated
    /// session, so it makes room.
    fn supersede(&mut self, caller: &Caller, is_new: bool, now: Instant) -> Option<QueuedCall<StsPermit>> {
        if !self.allowances.lacks_place_alone(&caller.uid, is_new, now) {
            return None;
        }
        let ticket = self.queue.waiting_for_alone(caller)?;
        self.withdraw(ticket, now)
    }

    /// Removes a place from the queue, and from the counts of its pods and namespace.
    fn withdraw(&mut self, ticket: Ticket, now: Instant) -> Option<QueuedCall<StsPermit>> {
        let place = self.queue.remove(ticket)?;
        if place.is_counted() {
            for caller in &place.callers {
                self.allowances.leave_place(&caller.uid);
            }
        }
        if let Some(first) = place.callers.first()
            && place.is_charged
        {
            self.allowances.refund(&first.uid, now);
        }
        Some(place)
    }
}

fn queue_full() -> TurnedAwayCall {
    TurnedAwayCall { why: NotAsked::QueueFull, after: spread(QUEUE_WAS_FULL) }
}

impl Gate {
    /// Creates a gate at the full pace, with an empty queue.
    pub(super) fn new(limits: StsLimits, metrics: Metrics) -> Self {
        let state = GateState {
            pace: Pace::new(limits),
            queue: CallQueue::default(),
            allowances: Allowances::default(),
            under_way: 0,
            next_ticket: 0,
            timer: None,
        };
        Self(Arc::new(GateInner { metrics, state: Mutex::new(state), logged: EachDigest::new(LOG_EVERY, MAX_LOGGED) }))
    }

    /// Takes a place in the queue. The receiver gets the turn, or learns that the place was withdrawn.
    pub(super) fn queue(&self, application: &Application<'_>) -> Result<(Ticket, oneshot::Receiver<TurnResult>), TurnedAwayCall> {
        let Application { cause, left, callers, is_new } = *application;
        let now = Instant::now();
        let (mut given_up, mut superseded) = (None, None);
        let taken = {
            let mut state = self.lock();
            if let ([caller], None) = (callers, left) {
                superseded = state.supersede(caller, is_new, now);
            }
            let admitted = if left.is_some() { Ok(callers.to_vec()) } else { state.admitted(callers, is_new, now) };
            let admitted = admitted.and_then(|admitted| {
                let Some(first) = admitted.first().filter(|_| left.is_none()) else {
                    return Ok(admitted);
                };
                let ticket = state.queue.to_give_up(&first.namespace).ok_or_else(queue_full)?;
                given_up = ticket.and_then(|ticket| state.withdraw(ticket, now));
                Ok(admitted)
            });
            admitted.map(|admitted| {
                if left.is_none() {
                    for caller in &admitted {
                        state.allowances.take_place(&caller.uid, now);
                    }
                }
                let is_charged = left.is_none() && is_new;
                if let Some(first) = admitted.first().filter(|_| is_charged) {
                    state.allowances.charge(&first.uid, now);
                }
                let ticket = Ticket(state.next_ticket);
                state.next_ticket += 1;
                let ends = left.map(|left| now + left);
                let (sender, turn) = oneshot::channel();
                state.queue.insert(ticket, QueuedCall { cause, ends, callers: admitted, is_charged, sender });
                (ticket, turn)
            })
        };
        if let Some(place) = superseded {
            self.end(place, NotAsked::Superseded);
        }
        if let Some(place) = given_up {
            self.end(place, NotAsked::QueueFull);
        }
        match &taken {
            Ok(_) => {
                self.0.metrics.sts_queue(cause.name()).inc();
                self.dispatch();
            }
            Err(turned_away) => self.turn_away(turned_away.why, callers.first()),
        }
        taken
    }

    /// Ends a request that was removed from the queue.
    fn end(&self, place: QueuedCall<StsPermit>, why: NotAsked) {
        self.0.metrics.sts_queue(place.cause.name()).dec();
        match why {
            NotAsked::Superseded => self.0.metrics.sts_turned_away(why.name()),
            _ => self.turn_away(why, place.callers.first()),
        }
        // A receiver that is gone is ignored.
        let _ = place.sender.send(Err(why));
    }

    /// Counts and logs that a request was turned away.
    fn turn_away(&self, why: NotAsked, caller: Option<&Arc<Caller>>) {
        self.0.metrics.sts_turned_away(why.name());
        let Some(caller) = caller else { return };
        // A full queue concerns the namespace, which may have many pods.
        let subject = if why == NotAsked::QueueFull { &caller.namespace } else { &caller.uid.0 };
        if self.0.logged.is_due(subject) {
            warn!(
                event = "sts-request-turned-away",
                namespace = &*caller.namespace,
                pod = &*caller.name,
                uid = &*caller.uid.0,
                reason = why.name(),
                error = %why,
                advice = why.advice(),
                "not requesting a session from STS for now; retrying later"
            );
        }
    }

    /// Raises the request, because a pod waits for it now. Has no effect if its turn has come.
    pub(super) fn raise(&self, ticket: Ticket, caller: &Arc<Caller>) {
        {
            let now = Instant::now();
            let mut state = self.lock();
            let Some(place) = state.queue.get(ticket) else { return };
            let is_known = place.callers.iter().any(|other| other.uid == caller.uid);
            let is_counted = place.is_counted();
            // If the pod's places are taken, the request uses the turns of the other pods.
            let joins = !is_known && (!is_counted || state.allowances.wait(&caller.uid, false, now).is_none());
            if place.cause == CallCause::Demand && !joins {
                return;
            }
            let Some(mut place) = state.queue.remove(ticket) else { return };
            if joins {
                if is_counted {
                    state.allowances.take_place(&caller.uid, now);
                }
                place.callers.push(caller.clone());
            }
            self.0.metrics.sts_queue(place.cause.name()).dec();
            self.0.metrics.sts_queue(CallCause::Demand.name()).inc();
            place.cause = CallCause::Demand;
            state.queue.insert(ticket, place);
        }
        self.dispatch();
    }

    /// Withdraws the request, because no pod needs it any more. Has no effect if its turn has come.
    pub(super) fn withdraw(&self, ticket: Ticket) {
        let taken = self.lock().withdraw(ticket, Instant::now());
        if let Some(place) = taken {
            self.end(place, NotAsked::Superseded);
        }
        // The request behind it may need fewer tokens, or a timer.
        self.dispatch();
    }

    /// Whether a new session of this pod would be turned away because of its earlier requests.
    pub(super) fn has_no_more(&self, caller: &Caller) -> bool {
        self.lock().allowances.wait(&caller.uid, true, Instant::now()).is_some()
    }

    /// Returns how many other requests wait for the same cause, if this one is still in the queue.
    pub(super) fn waits_with(&self, ticket: Ticket) -> Option<usize> {
        let state = self.lock();
        let cause = state.queue.get(ticket)?.cause;
        Some(state.queue.of_cause(cause).saturating_sub(1))
    }

    /// Returns the error that lowered the pace, if STS has not answered since.
    pub(super) fn trouble(&self) -> Option<AssumeRoleError> {
        self.lock().pace.trouble()
    }

    /// Whether the pace is so low that it is reserved for requests that cannot wait.
    pub(super) fn is_slow(&self) -> bool {
        let mut state = self.lock();
        state.pace.count(Instant::now());
        state.pace.is_slow()
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // No holder leaves the state inconsistent, so poisoning is harmless.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants permits to the requests that may go now, and sets the timer for the next one.
    fn dispatch(&self) {
        let mut turns = Vec::new();
        {
            let now = Instant::now();
            let mut state = self.lock();
            state.pace.count(now);
            while let Some((ticket, why)) = state.queue.next(now)
                && state.has_room(why)
            {
                if state.queue.get(ticket).is_some_and(|place| place.sender.is_closed()) {
                    // The caller that waited for it is gone.
                    if let Some(place) = state.withdraw(ticket, now) {
                        self.0.metrics.sts_queue(place.cause.name()).dec();
                    }
                    continue;
                }
                if let Some(wait) = state.pace.until(state.needed(why)) {
                    self.wake_at(&mut state, now + wait);
                    break;
                }
                let Some(mut place) = state.queue.take(ticket, why) else { break };
                state.pace.take();
                state.under_way += 1;
                if place.is_counted() {
                    let others = place.callers.drain(1.min(place.callers.len())..);
                    others.for_each(|other| state.allowances.leave_place(&other.uid));
                }
                let QueuedCall { cause, ends, callers, sender, .. } = place;
                turns.push((sender, StsPermit { gate: self.clone(), cause, ticket, ends, callers, epoch: state.pace.epoch(), began: now }));
            }
        }
        for (sender, permit) in turns {
            self.0.metrics.sts_queue(permit.cause.name()).dec();
            // If the receiver is gone, dropping the permit returns it.
            let _ = sender.send(Ok(permit));
        }
    }

    fn wake_at(&self, state: &mut GateState, at: Instant) {
        match &state.timer {
            Some((earlier, _)) if *earlier <= at && *earlier > Instant::now() => return,
            Some((_, timer)) => timer.abort(),
            None => {}
        }
        let gate = Arc::downgrade(&self.0);
        // Not a background task: it ends when the timer fires.
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

impl StsPermit {
    /// The cause of the request to STS.
    pub(super) fn cause(&self) -> CallCause {
        self.cause
    }

    /// Records the response of STS for this role.
    pub(super) fn answered<T>(&self, role: &RoleArn, answer: &Result<T, AssumeRoleError>) {
        let mut state = self.gate.lock();
        match answer {
            Err(error) if !error.is_refusal() => state.pace.failed(role, self.epoch, error),
            _ => {
                let is_waited_for = !state.queue.is_empty();
                state.pace.answered(role, self.epoch, self.began.elapsed(), is_waited_for);
            }
        }
    }

    /// Whether an immediate retry may succeed and is worth it: for a shorter session, or once after a lost connection or a
    /// failure if the session `is_needed` and no outage is known.
    pub(super) fn is_asked_again(&self, error: &AssumeRoleError, questions: u32, is_needed: bool) -> bool {
        match error {
            AssumeRoleError::TooLong { .. } => questions <= 2,
            AssumeRoleError::Unreachable { .. } | AssumeRoleError::Expired { .. } | AssumeRoleError::Failed { .. } => {
                let trouble = self.gate.trouble();
                let is_outage = matches!(
                    trouble,
                    Some(AssumeRoleError::Unreachable { .. } | AssumeRoleError::Expired { .. } | AssumeRoleError::Failed { .. })
                );
                questions == 1 && is_needed && !is_outage
            }
            _ => false,
        }
    }

    /// Waits for a permit for a retry with the same cause. Keeps the pod's place.
    pub(super) fn again(mut self) -> oneshot::Receiver<TurnResult> {
        let (sender, turn) = oneshot::channel();
        let callers = std::mem::take(&mut self.callers);
        {
            let mut state = self.gate.lock();
            state.queue.insert(self.ticket, QueuedCall { cause: self.cause, ends: self.ends, callers, is_charged: false, sender });
            self.gate.0.metrics.sts_queue(self.cause.name()).inc();
        }
        // Dropping the permit frees its slot and admits the next request.
        turn
    }
}

impl Drop for StsPermit {
    fn drop(&mut self) {
        {
            let mut state = self.gate.lock();
            state.under_way -= 1;
            if let Some(caller) = self.callers.first().filter(|_| self.ends.is_none()) {
                state.allowances.leave_place(&caller.uid);
            }
        }
        self.gate.dispatch();
    }
}

#[cfg(test)]
mod tests;

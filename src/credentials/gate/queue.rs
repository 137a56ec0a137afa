//! The queue of requests to STS, and their order.
//!
//! The order is: requests that a pod waits for, fair by namespace and pod; renewals of sessions close to expiry, the earliest
//! expiry first; prefetches, fair as well; other renewals. While renewals of sessions close to expiry wait, every fourth turn is
//! theirs, whatever else waits.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::call::{CallCause, NEARLY_ENDED, Ticket};
use super::lane::Lane;
use crate::credentials::caller::Caller;
use crate::credentials::not_asked::NotAsked;

/// At least one of this many turns goes to the renewal of a session close to expiry.
const RESERVED: u32 = 4;
/// Places of one namespace, for sessions that are not cached: several times the number of pods on a node.
pub(in crate::credentials) const PLACES_OF_NAMESPACE: usize = 1024;
/// Places of all namespaces together. When they are taken, the namespace with the most gives one up for another namespace.
pub(in crate::credentials) const PLACES_IN_ALL: usize = 4096;

/// A request that waits for a permit `P`.
#[derive(Debug)]
pub(super) struct QueuedCall<P> {
    pub(super) cause: CallCause,
    /// When the cached session expires.
    pub(super) ends: Option<Instant>,
    /// The pods whose turns it may use: the first turn of any of them.
    pub(super) callers: Vec<Arc<Caller>>,
    /// Whether the first of them was charged for a new session.
    pub(super) is_charged: bool,
    pub(super) sender: oneshot::Sender<Result<P, NotAsked>>,
}

impl<P> QueuedCall<P> {
    /// Whether it counts against the limits of its pods and namespace. Renewals of cached sessions do not: there is at most one
    /// for each session.
    pub(super) fn is_counted(&self) -> bool {
        self.ends.is_none()
    }
}

/// Why a request is the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextReason {
    /// It renews a session close to expiry.
    EndsSoon,
    /// A pod waits for it.
    Waits,
    /// It is a prefetch.
    Ahead,
    /// It renews a session that is not close to expiry.
    Renews,
}

/// All queued requests.
#[derive(Debug)]
pub(super) struct CallQueue<P> {
    places: HashMap<Ticket, QueuedCall<P>>,
    demand: Lane,
    prefetch: Lane,
    ends: BTreeSet<(Instant, Ticket)>,
    /// Counted places, by the namespace of their first caller.
    counted: HashMap<Arc<str>, usize>,
    total: usize,
    /// Turns of other requests since the last renewal of a session close to expiry.
    others: u32,
}

impl<P> Default for CallQueue<P> {
    fn default() -> Self {
        let (demand, prefetch) = (Lane::default(), Lane::default());
        Self { places: HashMap::new(), demand, prefetch, ends: BTreeSet::new(), counted: HashMap::new(), total: 0, others: 0 }
    }
}

impl<P> CallQueue<P> {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&QueuedCall<P>> {
        self.places.get(&ticket)
    }

    /// Returns how many requests wait for this cause.
    pub(super) fn of_cause(&self, cause: CallCause) -> usize {
        self.places.values().filter(|place| place.cause == cause).count()
    }

    /// Returns the oldest request for a session that is not cached and that only this pod needs.
    pub(super) fn waiting_for_alone(&self, caller: &Caller) -> Option<Ticket> {
        let is_its = |place: &QueuedCall<P>| place.is_counted() && matches!(&place.callers[..], [only] if only.uid == caller.uid);
        self.places.iter().filter(|(_, place)| is_its(place)).map(|(ticket, _)| *ticket).min()
    }

    /// Returns the number of counted places of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> usize {
        self.counted.get(namespace).copied().unwrap_or(0)
    }

    /// Returns the place to give up when all are taken and `namespace` needs one: the last place of the namespace with the most,
    /// preferably a prefetch. `None` if that is the namespace itself.
    pub(super) fn to_give_up(&self, namespace: &str) -> Option<Option<Ticket>> {
        if self.total < PLACES_IN_ALL {
            return Some(None);
        }
        let (most, count) = self.counted.iter().max_by_key(|(_, count)| **count)?;
        if *count <= self.of_namespace(namespace) + 1 {
            return None;
        }
        let of_it = self
            .places
            .iter()
            .filter(|(_, place)| place.is_counted() && place.callers.first().is_some_and(|caller| caller.namespace == *most));
        of_it.max_by_key(|(ticket, place)| (place.cause == CallCause::Prefetch, **ticket)).map(|(ticket, _)| Some(*ticket))
    }

    pub(super) fn insert(&mut self, ticket: Ticket, place: QueuedCall<P>) {
        if let Some(lane) = self.lane(place.cause) {
            for caller in &place.callers {
                lane.push(caller, ticket.0);
            }
        }
        if let Some(ends) = place.ends {
            self.ends.insert((ends, ticket));
        } else if let Some(first) = place.callers.first() {
            *self.counted.entry(first.namespace.clone()).or_default() += 1;
            self.total += 1;
        }
        self.places.insert(ticket, place);
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<QueuedCall<P>> {
        let place = self.places.remove(&ticket)?;
        if let Some(lane) = self.lane(place.cause) {
            for caller in &place.callers {
                lane.remove(caller, ticket.0);
            }
        }
        if let Some(ends) = place.ends {
            self.ends.remove(&(ends, ticket));
        } else if let Some(first) = place.callers.first() {
            self.total -= 1;
            if let Some(count) = self.counted.get_mut(&first.namespace) {
                *count -= 1;
                if *count == 0 {
                    self.counted.remove(&first.namespace);
                }
            }
        }
        Some(place)
    }

    /// Returns the request that is next.
    pub(super) fn next(&self, now: Instant) -> Option<(Ticket, NextReason)> {
        let first_to_end = self.ends.first();
        let ends_soon = first_to_end.filter(|(ends, _)| ends.saturating_duration_since(now) < NEARLY_ENDED);
        let ends_soon = ends_soon.map(|(_, ticket)| (*ticket, NextReason::EndsSoon));
        let of_lane = |lane: &Lane, why| lane.first().map(|number| (Ticket(number), why));
        if self.others + 1 >= RESERVED && ends_soon.is_some() {
            return ends_soon;
        }
        let waits = of_lane(&self.demand, NextReason::Waits);
        let ahead = || of_lane(&self.prefetch, NextReason::Ahead);
        let renews = || first_to_end.map(|(_, ticket)| (*ticket, NextReason::Renews));
        waits.or(ends_soon).or_else(ahead).or_else(renews)
    }

    /// Removes the request that [`CallQueue::next`] returned, for its turn.
    pub(super) fn take(&mut self, ticket: Ticket, why: NextReason) -> Option<QueuedCall<P>> {
        self.others = if why == NextReason::EndsSoon { 0 } else { self.others.saturating_add(1) };
        match why {
            NextReason::Waits => self.demand.turn(),
            NextReason::Ahead => self.prefetch.turn(),
            NextReason::EndsSoon | NextReason::Renews => {}
        }
        self.remove(ticket)
    }

    fn lane(&mut self, cause: CallCause) -> Option<&mut Lane> {
        match cause {
            CallCause::Demand => Some(&mut self.demand),
            CallCause::Prefetch => Some(&mut self.prefetch),
            CallCause::Renewal => None,
        }
    }
}

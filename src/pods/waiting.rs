//! Places for requests that wait until their pod, or data about it, is known.
//!
//! Addresses of known pods and addresses of no known pod use separate places, because unknown addresses can be invented in any
//! number. When all places of a kind are taken, the largest holder gives one up: among known pods, a pod of the namespace with
//! the most places; among unknown addresses, an address of the network, or behind the bridge port, with the most.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::index::Pod;
use crate::shares::{Network, Shares};

mod record;
mod waiter;

pub(crate) use record::TurnedAwayRequests;
use record::WaitingRecord;
use waiter::Member;
pub(super) use waiter::RequestWaiter;

/// The maximum number of waiting requests of known pods.
pub(crate) const MAX_WAITING: usize = 1024;
/// The maximum number of these for one pod. Further requests are answered at once.
pub(crate) const MAX_WAITING_OF_ONE: usize = 64;
/// The maximum number of waiting requests from addresses of no known pod: as many as a node may have pods, because all of them
/// may start at once.
pub(crate) const MAX_UNKNOWN_WAITING: usize = 256;
/// The maximum number of these for one address.
pub(crate) const MAX_UNKNOWN_WAITING_OF_ONE: usize = 64;

/// The places.
#[derive(Debug)]
pub(super) struct Places(Mutex<WaitingInner>);

#[derive(Debug)]
struct WaitingInner {
    known: Shares<String, Member, HeldRequest>,
    unknown: Shares<Network, IpAddr, HeldRequest>,
    next: u64,
    record: WaitingRecord,
}

/// A waiting request.
#[derive(Debug)]
struct HeldRequest {
    waiter: RequestWaiter,
    lost: Arc<Notify>,
}

impl Default for Places {
    fn default() -> Self {
        Self(Mutex::new(WaitingInner {
            known: Shares::new(MAX_WAITING, MAX_WAITING_OF_ONE),
            unknown: Shares::new(MAX_UNKNOWN_WAITING, MAX_UNKNOWN_WAITING_OF_ONE),
            next: 0,
            record: WaitingRecord::default(),
        }))
    }
}

/// A place, held until dropped.
#[derive(Debug)]
pub(super) struct WaitingPlace<'a> {
    places: &'a Places,
    id: u64,
    lost: Arc<Notify>,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, WaitingInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a request. Returns `None` if there is none.
    pub(super) fn take(&self, waiter: &RequestWaiter) -> Option<WaitingPlace<'_>> {
        let mut inner = self.lock();
        let (id, lost) = (inner.next, Arc::new(Notify::new()));
        inner.next += 1;
        let held = HeldRequest { waiter: waiter.clone(), lost: lost.clone() };
        let entered = match waiter.known() {
            Ok((namespace, member)) => {
                inner.known.enter(id, namespace.to_owned(), member, held).map(|displaced| displaced.map(|displaced| displaced.value))
            }
            Err((ip, network)) => inner.unknown.enter(id, network, ip, held).map(|displaced| displaced.map(|displaced| displaced.value)),
        };
        let turned_away = match &entered {
            Ok(displaced) => displaced.as_ref().map(|displaced| &displaced.waiter),
            Err(_) => Some(waiter),
        };
        if let Some(turned_away) = turned_away {
            inner.record.turned_away(turned_away);
        }
        if let Some(displaced) = entered.ok()? {
            displaced.lost.notify_one();
        }
        Some(WaitingPlace { places: self, id, lost })
    }

    /// Returns how many requests did not get a place, or lost it, since the start.
    pub(super) fn turned_away(&self) -> u64 {
        self.lock().record.all()
    }

    /// Returns how many recent requests of a pod, or of its addresses, did not get a place, or lost it.
    pub(super) fn turned_away_of(&self, pod: &Pod) -> Option<TurnedAwayRequests> {
        self.lock().record.of(pod)
    }
}

impl WaitingPlace<'_> {
    /// Completes when the place is given to another request.
    pub(super) async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        let mut inner = self.places.lock();
        // Ids are unique across both kinds.
        if inner.known.leave(self.id).is_none() {
            inner.unknown.leave(self.id);
        }
    }
}

#[cfg(test)]
impl Places {
    pub(super) fn taken(&self) -> usize {
        let inner = self.lock();
        inner.known.len() + inner.unknown.len()
    }
}

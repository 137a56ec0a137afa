//! Places for requests that wait for their pod, or for data about it, to become known.
//!
//! Requests from known pods and from unknown addresses wait in separate places, because unknown addresses can be forged in any
//! number. These share a small number of places; when all are taken, the address or network with the most gives one up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::shares::{Network, Shares};

/// How many requests of known pods may wait at a time. Further requests are answered at once.
pub const MAX_WAITING: usize = 1024;
/// How many of them may be of one address.
pub const MAX_WAITING_OF_ONE: usize = 64;
/// How many requests from addresses of no known pod may wait at a time: as many as a node may have pods, because all of them may
/// start at once.
pub const MAX_UNKNOWN_WAITING: usize = 256;
/// How many of those may be of one address.
pub const MAX_UNKNOWN_WAITING_OF_ONE: usize = 64;
/// Time between two log lines about requests that did not get a place.
const QUIET: Duration = Duration::from_secs(60);

/// The places.
#[derive(Debug)]
pub(super) struct Places(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    known: HashMap<IpAddr, usize>,
    all_known: usize,
    unknown: Shares<Network, IpAddr, Arc<Notify>>,
    next: u64,
    turned_away: u64,
    /// The number of requests turned away, and the last log line about it.
    told: Option<(Instant, u64)>,
}

impl Default for Places {
    fn default() -> Self {
        let unknown = Shares::new(MAX_UNKNOWN_WAITING, MAX_UNKNOWN_WAITING_OF_ONE);
        Self(Mutex::new(Inner { known: HashMap::new(), all_known: 0, unknown, next: 0, turned_away: 0, told: None }))
    }
}

/// A place, until dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    places: &'a Places,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Known(IpAddr),
    Unknown(u64, Arc<Notify>),
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a request from this address; `None` if there is none.
    pub(super) fn take(&self, ip: IpAddr, is_known: bool) -> Option<Waiting<'_>> {
        let mut inner = self.lock();
        let place = if is_known { inner.take_known(ip) } else { inner.take_unknown(ip) };
        if place.is_none() {
            inner.turn_away(ip);
        }
        place.map(|place| Waiting { places: self, place })
    }

    /// Returns how many requests did not get a place, or lost it, since the start.
    pub(super) fn turned_away(&self) -> u64 {
        self.lock().turned_away
    }
}

impl Inner {
    fn take_known(&mut self, ip: IpAddr) -> Option<Place> {
        let of_one = self.known.get(&ip).copied().unwrap_or(0);
        if of_one >= MAX_WAITING_OF_ONE || self.all_known >= MAX_WAITING {
            return None;
        }
        self.known.insert(ip, of_one + 1);
        self.all_known += 1;
        Some(Place::Known(ip))
    }

    fn take_unknown(&mut self, ip: IpAddr) -> Option<Place> {
        let (id, lost) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        let displaced = self.unknown.enter(id, ip.into(), ip, lost.clone()).ok()?;
        if let Some(displaced) = displaced {
            displaced.value.notify_one();
            self.turn_away(displaced.member);
        }
        Some(Place::Unknown(id, lost))
    }

    /// Counts a request without a place, and logs the number at intervals.
    fn turn_away(&mut self, ip: IpAddr) {
        self.turned_away += 1;
        let now = Instant::now();
        let told_until = match self.told {
            Some((at, _)) if now - at < QUIET => return,
            Some((_, count)) => count,
            None => 0,
        };
        self.told = Some((now, self.turned_away));
        warn!(event = "pod-wait-limit", source = %ip, requests = self.turned_away - told_until,
            "too many requests wait for their pods to become known; answered some from what is known now; check whether a pod forges the \
             source address");
    }
}

impl Waiting<'_> {
    /// Completes when the place is given to another request.
    pub(super) async fn lost(&self) {
        match &self.place {
            Place::Known(_) => std::future::pending().await,
            Place::Unknown(_, lost) => lost.notified().await,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.places.lock();
        match self.place {
            Place::Known(ip) => {
                inner.all_known -= 1;
                if let Some(count) = inner.known.get_mut(&ip) {
                    *count -= 1;
                    if *count == 0 {
                        inner.known.remove(&ip);
                    }
                }
            }
            Place::Unknown(id, _) => {
                inner.unknown.leave(id);
            }
        }
    }
}

#[cfg(test)]
impl Places {
    pub(super) fn taken(&self) -> usize {
        let inner = self.lock();
        inner.all_known + inner.unknown.len()
    }
}

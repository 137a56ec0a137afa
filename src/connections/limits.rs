//! Limits of open connections, and how room is made for new ones.
//!
//! A connection beyond a limit waits, unread, for at most one second. To make room, the source's idle connections are closed, the
//! longest idle first. If all places are taken, those of the largest namespace and its largest pod are closed. While a connection
//! waits, responses on connections that could make room for it carry `Connection: close`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::FEW;
use super::record::Limit;
use super::source::{Key, Source};
use crate::shares::{Full, Network, Shares};

/// The longest wait of a connection for a place: SDKs give up after a second.
const WAIT: Duration = Duration::from_secs(1);
/// Time after a response before an idle connection may be closed: its client may be about to use it again.
const IDLE_GRACE: Duration = Duration::from_millis(250);
/// Time after which a connection may be closed if no complete request has arrived on it.
const FRESH_GRACE: Duration = Duration::from_secs(1);

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of all pods together.
    pub all: usize,
    /// Of one pod.
    pub per_source: usize,
    /// Of the node itself, which has places of its own.
    pub node: usize,
    /// Of all addresses together that belong to no known pod. They have a separate budget.
    pub unknown: usize,
    /// Of one such address.
    pub per_unknown: usize,
    /// That wait for a place.
    pub waiting: usize,
}

/// How many connections may be open; cheap to clone.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    began: Instant,
    /// How many connections wait; kept outside the lock so that requests can check it cheaply.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// Open connections of pods.
    all: usize,
    /// The sources with open connections; an account is removed with its last connection.
    accounts: HashMap<Key, Account>,
    unknown: Shares<Network, IpAddr, Arc<Slot>>,
    queue: Shares<String, Key, Waiter>,
}

/// The open connections of a known source.
#[derive(Debug)]
struct Account {
    source: Source,
    open: BTreeMap<u64, Arc<Slot>>,
}

#[derive(Debug)]
struct Waiter {
    source: Source,
    key: Key,
    slot: Arc<Slot>,
    limit: Limit,
    granted: oneshot::Sender<()>,
}

/// The state of a connection that is read without the lock.
#[derive(Debug)]
struct Slot {
    id: u64,
    /// The account that it is counted in, if it is in one.
    key: OnceLock<Key>,
    /// [`BUSY`], or the time in milliseconds since when it is idle; the lowest bit is 1 until its first request has arrived.
    state: AtomicU64,
    closing: AtomicU8,
    closed: Notify,
}

const BUSY: u64 = u64::MAX;
const OPEN: u8 = 0;
const MADE_ROOM: u8 = 1;
const DISPLACED: u8 = 2;

/// Why a connection should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// It was idle, and its place is needed. A request that has arrived meanwhile is still answered.
    MadeRoom,
    /// Its place was given to another connection; it ends at once.
    Displaced,
}

/// The decision about a new connection.
#[derive(Debug)]
pub enum Admitted {
    /// It is open.
    Open(Permit),
    /// It waits for a place.
    Wait(Waiting),
    /// It is closed.
    Refused(Limit),
}

/// The right to be open, or to wait, until dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
}

/// A connection that waits for a place.
#[derive(Debug)]
pub struct Waiting {
    permit: Permit,
    granted: oneshot::Receiver<()>,
    limit: Limit,
}

impl Limits {
    /// Creates limits with these settings. The last quarter of all places is reserved for sources with fewer than four
    /// connections, and the last eighth for namespaces with less than a sixteenth of all places.
    pub fn new(settings: Settings) -> Self {
        let state = State {
            next: 0,
            all: 0,
            accounts: HashMap::new(),
            unknown: Shares::new(settings.unknown, settings.per_unknown),
            queue: Shares::new(settings.waiting, settings.per_source.min(settings.waiting / 2).max(1)),
        };
        Self(Arc::new(Shared { settings, began: Instant::now(), waiting: AtomicUsize::new(0), state: Mutex::new(state) }))
    }

    /// Decides about a new connection. `who` returns the current source of an address: an address that was unknown when it
    /// connected may belong to a known pod by now.
    pub fn admit(&self, source: &Source, who: impl Fn(IpAddr) -> Source) -> Admitted {
        let mut state = self.0.lock();
        let slot = Arc::new(Slot {
            id: state.next,
            key: OnceLock::new(),
            state: AtomicU64::new((self.0.now() << 1) | 1),
            closing: AtomicU8::new(OPEN),
            closed: Notify::new(),
        });
        state.next += 1;
        let permit = || Permit { shared: self.0.clone(), slot: slot.clone() };
        let key = match source.key() {
            Ok(key) => key,
            Err(ip) => {
                if state.unknown.len() >= self.0.settings.unknown {
                    state.make_room_for_unknown(self.0.now());
                }
                return match state.unknown.enter(slot.id, ip.into(), ip, slot.clone()) {
                    Ok(None) => Admitted::Open(permit()),
                    Ok(Some(displaced)) => {
                        let now = who(displaced.member);
                        match now.key() {
                            Ok(key) => state.open(now, key, displaced.value),
                            Err(_) => displaced.value.close(DISPLACED),
                        }
                        Admitted::Open(permit())
                    }
                    Err(Full::Member | Full::All) => Admitted::Refused(Limit::Unknown),
                };
            }
        };
        let Err(limit) = state.fits(&self.0.settings, source, &key) else {
            state.open(source.clone(), key, slot.clone());
            return Admitted::Open(permit());
        };
        if self.0.settings.waiting == 0 || key == Key::Node {
            return Admitted::Refused(limit);
        }
        let (granted, receiver) = oneshot::channel();
        let waiter = Waiter { source: source.clone(), key: key.clone(), slot: slot.clone(), limit, granted };
        // A displaced waiter is notified when its sender is dropped.
        if state.queue.enter(slot.id, source.namespace().to_owned(), key.clone(), waiter).is_err() {
            return Admitted::Refused(limit);
        }
        self.0.waiting.store(state.queue.len(), Ordering::Relaxed);
        state.make_room(source, &key, limit, self.0.now());
        Admitted::Wait(Waiting { permit: permit(), granted: receiver, limit })
    }

    /// How many connections wait for a place.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the limits were made.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(BUSY >> 2)
    }
}

impl Slot {
    fn close(&self, how: u8) {
        self.closing.fetch_max(how, Ordering::AcqRel);
        self.closed.notify_one();
    }

    /// Returns how long it has been idle, if it may be closed for that and is not closing already.
    fn idle_for(&self, now: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        if state == BUSY || self.closing.load(Ordering::Acquire) != OPEN {
            return None;
        }
        let grace = if state & 1 == 1 { FRESH_GRACE } else { IDLE_GRACE };
        let idle = now.saturating_sub(state >> 1);
        (u128::from(idle) >= grace.as_millis()).then_some(idle)
    }
}

impl State {
    fn of(&self, key: &Key) -> usize {
        self.accounts.get(key).map_or(0, |account| account.open.len())
    }

    fn of_namespace(&self, namespace: &str) -> usize {
        self.accounts.values().filter(|account| account.source.namespace() == namespace).map(|account| account.open.len()).sum()
    }

    /// Whether one more connection of a known source fits.
    fn fits(&self, settings: &Settings, source: &Source, key: &Key) -> Result<(), Limit> {
        let (own, all) = (self.of(key), settings.all);
        if *key == Key::Node {
            return if own < settings.node { Ok(()) } else { Err(Limit::Source) };
        }
        // The source's own limit first: it shows which source uses too much.
        if own >= settings.per_source {
            return Err(Limit::Source);
        }
        if self.all >= all {
            return Err(Limit::All);
        }
        if own >= FEW && self.all > all - all.div_ceil(4) {
            return Err(Limit::Room);
        }
        let is_last = self.all >= all - all / 8 && matches!(source, Source::Pod(_));
        if is_last && self.of_namespace(source.namespace()) >= (all / 16).max(FEW) {
            return Err(Limit::Namespace);
        }
        Ok(())
    }

    fn open(&mut self, source: Source, key: Key, slot: Arc<Slot>) {
        self.all += usize::from(key != Key::Node);
        let _ = slot.key.set(key.clone());
        let account = self.accounts.entry(key).or_insert_with(|| Account { source, open: BTreeMap::new() });
        account.open.insert(slot.id, slot);
    }

    /// Closes an idle connection to make room for this source.
    fn make_room(&self, source: &Source, key: &Key, limit: Limit, now: u64) {
        let mut accounts: Vec<&Account> = match limit {
            Limit::All => self.accounts.iter().filter(|(key, _)| **key != Key::Node).map(|(_, account)| account).collect(),
            Limit::Namespace => self.accounts.values().filter(|account| account.source.namespace() == source.namespace()).collect(),
            _ => self.accounts.get(key).into_iter().collect(),
        };
        let mut namespaces: HashMap<&str, usize> = HashMap::new();
        for account in &accounts {
            *namespaces.entry(account.source.namespace()).or_default() += account.open.len();
        }
        let own = self.of(key);
        accounts.retain(|account| account.open.len() >= own);
        accounts.sort_by_key(|account| {
            let of_namespace = namespaces.get(account.source.namespace()).copied().unwrap_or(0);
            std::cmp::Reverse((of_namespace, account.open.len()))
        });
        let longest = |account: &&Account| {
            let idle = account.open.values().filter_map(|slot| Some((slot.idle_for(now)?, slot)));
            idle.max_by_key(|(idle, _)| *idle).map(|(_, slot)| slot.clone())
        };
        if let Some(slot) = accounts.iter().find_map(longest) {
            slot.close(MADE_ROOM);
        }
    }

    /// Closes the unknown source's longest idle connection, if it has one. This comes before a connection with a request in
    /// flight is displaced.
    fn make_room_for_unknown(&mut self, now: u64) {
        let idle = self.unknown.iter().filter_map(|(id, slot)| Some((slot.idle_for(now)?, id)));
        let longest = idle.max_by_key(|(idle, _)| *idle).map(|(_, id)| id);
        if let Some(slot) = longest.and_then(|id| self.unknown.leave(id)) {
            slot.close(MADE_ROOM);
        }
    }

    /// Opens waiting connections, in their order, as far as they fit.
    fn grant(&mut self, settings: &Settings) {
        loop {
            let fits = |waiter: &Waiter| self.fits(settings, &waiter.source, &waiter.key).is_ok();
            let next = self.queue.iter().find(|(_, waiter)| fits(waiter)).map(|(id, _)| id);
            let Some(waiter) = next.and_then(|id| self.queue.leave(id)) else { break };
            self.open(waiter.source, waiter.key, waiter.slot);
            // If the receiver is gone, this drops the permit and its place.
            let _ = waiter.granted.send(());
        }
    }
}

impl Waiting {
    /// Waits for a place, or returns the limit that prevented it.
    pub async fn place(self) -> Result<Permit, Limit> {
        let Self { permit, mut granted, limit } = self;
        // A connection that was not idle for long enough before may be now.
        match tokio::time::timeout(IDLE_GRACE, &mut granted).await {
            Ok(granted) => return granted.map(|()| permit).map_err(|_| limit),
            Err(_) => permit.make_room(),
        }
        match tokio::time::timeout(WAIT - IDLE_GRACE, &mut granted).await {
            Ok(Ok(())) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(limit),
        }
    }
}

impl Permit {
    /// Whether the address belonged to no known pod.
    pub fn is_unknown(&self) -> bool {
        self.slot.key.get().is_none()
    }

    /// Counts the connection for its pod, which has become known. It stays open even if the pod is at its limit.
    pub fn settle(&self, source: &Source) {
        let Ok(key) = source.key() else { return };
        let mut state = self.shared.lock();
        if let Some(slot) = state.unknown.leave(self.slot.id) {
            state.open(source.clone(), key, slot);
        }
    }

    /// A request has arrived.
    pub fn request_begins(&self) {
        self.slot.state.store(BUSY, Ordering::Release);
    }

    /// Records that the request was answered. Returns whether the connection should end with that response, because another one
    /// waits for its place.
    pub fn request_ends(&self) -> bool {
        self.slot.state.store(self.shared.now() << 1, Ordering::Release);
        self.shared.waiting.load(Ordering::Relaxed) > 0 && self.is_waited_for()
    }

    fn is_waited_for(&self) -> bool {
        let Some(own) = self.slot.key.get() else { return false };
        let state = self.shared.lock();
        let Some(account) = state.accounts.get(own) else { return false };
        state.queue.iter().any(|(_, waiter)| match waiter.limit {
            Limit::All => account.open.len() > FEW,
            Limit::Namespace => account.source.namespace() == waiter.source.namespace() && account.open.len() > FEW,
            _ => waiter.key == *own,
        })
    }

    /// Completes when the daemon should end the connection.
    pub async fn closing(&self) -> Closing {
        loop {
            match self.slot.closing.load(Ordering::Acquire) {
                DISPLACED => return Closing::Displaced,
                // Do not wait for a head that is sent slowly.
                MADE_ROOM if self.slot.state.load(Ordering::Acquire) & 1 == 1 && self.slot.state.load(Ordering::Acquire) != BUSY => {
                    return Closing::Displaced;
                }
                MADE_ROOM => return Closing::MadeRoom,
                _ => self.slot.closed.notified().await,
            }
        }
    }

    fn make_room(&self) {
        let (state, now) = (self.shared.lock(), self.shared.now());
        if let Some(waiter) = state.queue.get(self.slot.id) {
            state.make_room(&waiter.source, &waiter.key, waiter.limit, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let id = self.slot.id;
        let left = match self.slot.key.get() {
            Some(key) => {
                state.all -= usize::from(*key != Key::Node);
                let is_last = state.accounts.get_mut(key).is_some_and(|account| {
                    account.open.remove(&id);
                    account.open.is_empty()
                });
                if is_last {
                    state.accounts.remove(key);
                }
                true
            }
            None => {
                state.unknown.leave(id);
                state.queue.leave(id);
                false
            }
        };
        if left && !state.queue.is_empty() {
            state.grant(&self.shared.settings);
        }
        self.shared.waiting.store(state.queue.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

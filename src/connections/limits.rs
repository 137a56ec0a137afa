//! Limits of open connections, and how room is made for new ones.
//!
//! A connection beyond a limit takes the place of an idle connection: of the source's own if the limit is the source's, otherwise of
//! the largest namespace and its largest pod; the longest idle first. An idle connection therefore never keeps another one out. If
//! none is idle, the connection waits, unread, for at most one second. Meanwhile, responses on connections that could make room for
//! it carry `Connection: close`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::record::Limit;
use super::source::{Source, SourceKey};
use crate::shares::{Displaced, Full, Network, Shares};

mod room;
mod slot;

pub(crate) use slot::Closing;
use slot::{BUSY, DISPLACED, IDLE_GRACE, MADE_ROOM, Slot, longest_idle};

/// The number of connections that a source may have even when most places are taken.
const FEW: usize = 4;
/// The longest wait of a connection for a place: SDKs give up after a second.
const WAIT: Duration = Duration::from_secs(1);

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionSettings {
    /// Of all pods together, and one more for each namespace that has none when these are taken.
    pub all: usize,
    /// Of one pod.
    pub per_source: usize,
    /// Of the node itself, which has places of its own.
    pub node: usize,
    /// Of all addresses together that belong to no known pod. They have a separate budget.
    pub unknown: usize,
    /// Of one such address.
    pub per_unknown: usize,
    /// That wait for a place. If none may wait, an idle connection gives its place only to a source that has none at all.
    pub waiting: usize,
}

impl ConnectionSettings {
    /// The places that sources with few connections leave to all others.
    fn for_pods(&self) -> usize {
        self.all - self.all.div_ceil(4)
    }

    /// The places that namespaces with few connections leave to all others.
    fn for_namespaces(&self) -> usize {
        self.all - self.all / 8
    }

    /// The number of connections that a namespace may have even when most places are taken.
    fn namespace_share(&self) -> usize {
        (self.all / 16).max(FEW)
    }
}

/// How many connections may be open; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimits(Arc<SharedLimits>);

#[derive(Debug)]
struct SharedLimits {
    settings: ConnectionSettings,
    began: Instant,
    /// How many connections wait; kept outside the lock so that requests can check it cheaply.
    waiting: AtomicUsize,
    state: Mutex<LimitsState>,
}

#[derive(Debug)]
struct LimitsState {
    next: u64,
    /// Open connections of pods.
    all: usize,
    /// The sources with open connections; an account is removed with its last connection.
    accounts: HashMap<SourceKey, Account>,
    unknown: Shares<Network, IpAddr, Arc<Slot>>,
    /// Connections that gave a place of an unknown address up, by id, while it is looked up whose address it is by now.
    displaced: HashMap<u64, Arc<Slot>>,
    queue: Shares<String, SourceKey, ConnectionWaiter>,
}

/// The open connections of a known source.
#[derive(Debug)]
struct Account {
    source: Source,
    open: BTreeMap<u64, Arc<Slot>>,
}

#[derive(Debug)]
struct ConnectionWaiter {
    source: Source,
    key: SourceKey,
    slot: Arc<Slot>,
    limit: Limit,
    granted: oneshot::Sender<()>,
}

/// The decision about a new connection.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// It is open.
    Open(ConnectionPermit),
    /// It waits for a place.
    Wait(ConnectionWait),
    /// It is closed.
    Refused(Limit),
}

/// The right to be open, or to wait, until dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    shared: Arc<SharedLimits>,
    slot: Arc<Slot>,
}

/// A connection that waits for a place.
#[derive(Debug)]
pub(crate) struct ConnectionWait {
    permit: ConnectionPermit,
    granted: oneshot::Receiver<()>,
    limit: Limit,
}

impl ConnectionLimits {
    /// Creates limits with these settings. The last quarter of all places is reserved for sources with fewer than four
    /// connections, and the last eighth for namespaces with less than a sixteenth of all places. A namespace without any
    /// connection always gets one, beyond the limit if need be.
    pub(crate) fn new(settings: ConnectionSettings) -> Self {
        let state = LimitsState {
            next: 0,
            all: 0,
            accounts: HashMap::new(),
            unknown: Shares::new(settings.unknown, settings.per_unknown),
            displaced: HashMap::new(),
            queue: Shares::new(settings.waiting, settings.per_source.min(settings.waiting / 2).max(1)),
        };
        Self(Arc::new(SharedLimits { settings, began: Instant::now(), waiting: AtomicUsize::new(0), state: Mutex::new(state) }))
    }

    /// Decides about a new connection. `who` returns who has an address by now: one that was unknown when it connected may
    /// have become a pod's. It is called without a lock.
    pub(crate) fn admit(&self, source: &Source, who: impl Fn(IpAddr) -> Source) -> Admitted {
        let mut state = self.0.lock();
        let slot = Arc::new(Slot::new(state.next, self.0.now()));
        state.next += 1;
        let permit = || ConnectionPermit { shared: self.0.clone(), slot: slot.clone() };
        let key = match source.key() {
            Ok(key) => key,
            Err((ip, network)) => {
                let displaced = match state.enter_unknown(ip, network, slot.clone(), &self.0.settings, self.0.now()) {
                    Ok(displaced) => displaced,
                    Err(limit) => return Admitted::Refused(limit),
                };
                drop(state);
                let permit = permit();
                if let Some(displaced) = displaced {
                    self.0.give_way(displaced, who);
                }
                return Admitted::Open(permit);
            }
        };
        let Err(limit) = state.fits(&self.0.settings, source, &key) else {
            if state.all >= self.0.settings.all && key != SourceKey::Node {
                // It is one more than there should be.
                state.make_room(&self.0.settings, source, &key, self.0.now());
            }
            state.open(source.clone(), key, slot.clone());
            return Admitted::Open(permit());
        };
        let may_wait = self.0.settings.waiting > 0;
        if key == SourceKey::Node || (!may_wait && state.of(&key) > 0) {
            return Admitted::Refused(limit);
        }
        if state.replace_idle(&self.0.settings, source, &key, limit, &slot, self.0.now()) {
            return Admitted::Open(permit());
        }
        if !may_wait {
            return Admitted::Refused(limit);
        }
        let (granted, receiver) = oneshot::channel();
        let waiter = ConnectionWaiter { source: source.clone(), key: key.clone(), slot: slot.clone(), limit, granted };
        // A displaced waiter is notified when its sender is dropped.
        if state.queue.enter(slot.id, source.namespace().to_owned(), key.clone(), waiter).is_err() {
            return Admitted::Refused(limit);
        }
        self.0.waiting.store(state.queue.len(), Ordering::Relaxed);
        Admitted::Wait(ConnectionWait { permit: permit(), granted: receiver, limit })
    }

    /// How many connections wait for a place.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }
}

impl SharedLimits {
    fn lock(&self) -> MutexGuard<'_, LimitsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection that has given its place up for its pod, where its address has become one's, and closes it
    /// otherwise. It may have ended, or have been counted, while `who` was asked.
    fn give_way(&self, Displaced { id, member, .. }: Displaced<IpAddr, Arc<Slot>>, who: impl Fn(IpAddr) -> Source) {
        let now = who(member);
        let mut state = self.lock();
        let Some(slot) = state.displaced.remove(&id) else { return };
        match now.key() {
            Ok(key) => state.open(now, key, slot),
            Err(_) => slot.close(DISPLACED),
        }
    }

    /// Milliseconds since the limits were made.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(BUSY >> 2)
    }
}

impl LimitsState {
    fn of(&self, key: &SourceKey) -> usize {
        self.accounts.get(key).map_or(0, |account| account.open.len())
    }

    fn of_namespace(&self, namespace: &str) -> usize {
        self.accounts.values().filter(|account| account.source.namespace() == namespace).map(|account| account.open.len()).sum()
    }

    /// Whether a pod's namespace has any connection, or a disputed address itself.
    fn has_any(&self, source: &Source, key: &SourceKey) -> bool {
        match source {
            Source::Pod(pod) => self.of_namespace(&pod.namespace) > 0,
            Source::Disputed(_) | Source::Node | Source::Unknown(..) | Source::HostNetwork(_) | Source::Cgroup(_) => self.of(key) > 0,
        }
    }

    /// Whether one more connection of a known source fits.
    fn fits(&self, settings: &ConnectionSettings, source: &Source, key: &SourceKey) -> Result<(), Limit> {
        let (own, all) = (self.of(key), settings.all);
        if *key == SourceKey::Node {
            return if own < settings.node { Ok(()) } else { Err(Limit::Source) };
        }
        // The source's own limit first: it shows which source uses too much.
        if own >= settings.per_source {
            return Err(Limit::Source);
        }
        if self.all >= all {
            // One for each namespace is beyond the limit: there are no more of them than pods on the node.
            return if self.has_any(source, key) { Err(Limit::All) } else { Ok(()) };
        }
        if own >= FEW && self.all > settings.for_pods() {
            return Err(Limit::Room);
        }
        let is_last = self.all >= settings.for_namespaces() && matches!(source, Source::Pod(_));
        if is_last && self.of_namespace(source.namespace()) >= settings.namespace_share() {
            return Err(Limit::Namespace);
        }
        Ok(())
    }

    fn open(&mut self, source: Source, key: SourceKey, slot: Arc<Slot>) {
        self.all += usize::from(key != SourceKey::Node);
        let _ = slot.key.set(key.clone());
        let account = self.accounts.entry(key).or_insert_with(|| Account { source: source.clone(), open: BTreeMap::new() });
        // A pod in the node's network may have become known since its first connection.
        account.source = source;
        account.open.insert(slot.id, slot);
    }

    /// Takes a place among those of unknown addresses. Returns the connection that gave its place up, if one had to.
    fn enter_unknown(
        &mut self,
        ip: IpAddr,
        network: Network,
        slot: Arc<Slot>,
        settings: &ConnectionSettings,
        now: u64,
    ) -> Result<Option<Displaced<IpAddr, Arc<Slot>>>, Limit> {
        if self.unknown.held_by(&ip) >= settings.per_unknown {
            let idle = longest_idle(self.unknown.of(&ip), now);
            self.close_unknown(idle);
        } else if self.unknown.len() >= settings.unknown {
            let idle = longest_idle(self.unknown.iter(), now);
            self.close_unknown(idle);
        }
        let displaced = self.unknown.enter(slot.id, network, ip, slot).map_err(|(Full::Member | Full::All)| Limit::Unknown)?;
        if let Some(displaced) = &displaced {
            self.displaced.insert(displaced.id, displaced.value.clone());
        }
        Ok(displaced)
    }

    /// Takes a connection out of its account. Returns whether it was in there.
    fn leave(&mut self, key: &SourceKey, id: u64) -> bool {
        let Some(account) = self.accounts.get_mut(key) else { return false };
        if account.open.remove(&id).is_none() {
            return false;
        }
        if account.open.is_empty() {
            self.accounts.remove(key);
        }
        self.all -= usize::from(*key != SourceKey::Node);
        true
    }

    /// Closes a connection of an unknown address. This comes before a connection with a request in flight is displaced.
    fn close_unknown(&mut self, id: Option<u64>) {
        if let Some(slot) = id.and_then(|id| self.unknown.leave(id)) {
            slot.close(MADE_ROOM);
        }
    }

    /// Opens waiting connections, in their order, as far as they fit.
    fn grant(&mut self, settings: &ConnectionSettings, now: u64) {
        loop {
            let fits = |waiter: &ConnectionWaiter| self.fits(settings, &waiter.source, &waiter.key).is_ok();
            let next = self.queue.iter().find(|(_, waiter)| fits(waiter)).map(|(id, _)| id);
            let Some(waiter) = next.and_then(|id| self.queue.leave(id)) else { break };
            waiter.slot.opened(now);
            self.open(waiter.source, waiter.key, waiter.slot);
            // If the receiver is gone, this drops the permit and its place.
            let _ = waiter.granted.send(());
        }
    }
}

impl ConnectionWait {
    /// Waits for a place, or returns the limit that prevented it.
    pub(crate) async fn place(self) -> Result<ConnectionPermit, Limit> {
        let Self { permit, mut granted, limit } = self;
        let until = Instant::now() + WAIT;
        while Instant::now() < until {
            // A connection that was not idle for long enough before may be now.
            match tokio::time::timeout_at(until.min(Instant::now() + IDLE_GRACE), &mut granted).await {
                Ok(granted) => return granted.map(|()| permit).map_err(|_| limit),
                Err(_) if permit.replaces_idle() => return Ok(permit),
                Err(_) => {}
            }
        }
        Err(limit)
    }
}

impl ConnectionPermit {
    /// Whether the address belonged to no known pod.
    pub(crate) fn is_unknown(&self) -> bool {
        self.slot.key.get().is_none()
    }

    /// Counts the connection for its pod, which has become known. It stays open even if the pod is at its limit.
    pub(crate) fn settle(&self, source: &Source) {
        let Ok(key) = source.key() else { return };
        let mut state = self.shared.lock();
        let id = self.slot.id;
        if let Some(slot) = state.unknown.leave(id).or_else(|| state.displaced.remove(&id)) {
            state.open(source.clone(), key, slot);
        }
    }

    /// A request has arrived.
    pub(crate) fn request_begins(&self) {
        self.slot.begin();
    }

    /// Records that the request was answered. Returns whether the connection should end with that response, because another one
    /// waits for its place.
    pub(crate) fn request_ends(&self) -> bool {
        self.slot.end(self.shared.now());
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
    pub(crate) async fn closing(&self) -> Closing {
        self.slot.closing().await
    }

    /// Takes the place of an idle connection, if this one still waits. Returns whether there was one.
    fn replaces_idle(&self) -> bool {
        let (mut state, now, id) = (self.shared.lock(), self.shared.now(), self.slot.id);
        let Some(ConnectionWaiter { source, key, limit, .. }) = state.queue.get(id) else { return false };
        let (source, key, limit) = (source.clone(), key.clone(), *limit);
        if !state.replace_idle(&self.shared.settings, &source, &key, limit, &self.slot, now) {
            return false;
        }
        self.slot.opened(now);
        state.queue.leave(id);
        self.shared.waiting.store(state.queue.len(), Ordering::Relaxed);
        true
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let id = self.slot.id;
        let left = match self.slot.key.get() {
            Some(key) => state.leave(key, id),
            None => {
                state.unknown.leave(id);
                state.displaced.remove(&id);
                state.queue.leave(id);
                false
            }
        };
        if left && !state.queue.is_empty() {
            state.grant(&self.shared.settings, self.shared.now());
        }
        self.shared.waiting.store(state.queue.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

//! Pins of pods' addresses to links.
//!
//! When the API first gives an address to a pod, the link that leads there is stored under the pod's UID. While the pod has the
//! same network namespace, the link must stay the same: a different link belongs to another pod, or is forged. The pin of an
//! address is replaced when the API reports a later network namespace ([`Sandbox::since`]), and ends with the pod.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::index::{Pod, PodUid, Sandbox};
use crate::digest::Digest;
use crate::links::{Link, LinkKind, Mac};
use crate::sorted::{Keyed, Sorted};

/// How long a link that moved away and came back is not trusted. The pod that caused the move may have a connection from that
/// time; without replies, the connection does not live that long.
const DISTRUST_PERIOD: Duration = Duration::from_secs(120);

/// The pins of all pods.
#[derive(Debug)]
pub(super) struct Pins {
    table: RwLock<PinTable>,
    /// The reference point for times in seconds.
    began: Instant,
}

#[derive(Debug, Default)]
struct PinTable {
    pins: Sorted<Pin>,
    /// The few links that have moved, by the keys of their pins.
    moved: BTreeMap<Key, Moved>,
}

/// The digests of a pod's UID and of an address.
type Key = (Digest, u32);

/// A compact record of the link of one address of a pod.
#[derive(Clone, Copy, Debug)]
struct Pin {
    uid: Digest,
    ip: u32,
    /// The start of the network namespace according to the API, in seconds since 1970; 0 if the API does not report it.
    since: u32,
    interface: u32,
    /// Set only for a link by a bridge.
    port: Option<NonZeroU32>,
    mac: Mac,
    kind: PinKind,
}

/// The state of a link that has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moved {
    /// The `moved` of [`LinkKind::Bridge`].
    generation: u64,
    /// When it is trusted again, in seconds since `began`, rounded up; 0 if it is trusted.
    trusted_at: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PinKind {
    /// There is no link.
    None,
    Own,
    Shared,
    Bridge,
    /// A link by a bridge, with a link-layer address.
    BridgeAndMac,
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// The link is the pinned one, or nothing contradicts that.
    Same,
    /// The link differs from the pinned one.
    Changed,
}

impl Keyed for Pin {
    type Key = Key;

    fn key(&self) -> Key {
        (self.uid, self.ip)
    }
}

impl Pin {
    fn new((uid, ip): Key, sandbox: Sandbox, link: Option<Link>) -> Self {
        let nothing = Self { uid, ip, since: seconds(sandbox), interface: 0, port: None, mac: [0; 6], kind: PinKind::None };
        let Some(Link { interface, kind }) = link else { return nothing };
        match kind {
            LinkKind::Own => Self { interface, kind: PinKind::Own, ..nothing },
            LinkKind::Shared => Self { interface, kind: PinKind::Shared, ..nothing },
            LinkKind::Bridge { mac, port, moved: _ } => {
                let kind = if mac.is_some() { PinKind::BridgeAndMac } else { PinKind::Bridge };
                Self { interface, kind, mac: mac.unwrap_or_default(), port: port.and_then(NonZeroU32::new), ..nothing }
            }
        }
    }

    /// Returns the link, which last moved in this generation.
    fn link(&self, moved: u64) -> Option<Link> {
        let bridge = |mac| LinkKind::Bridge { mac, port: self.port.map(NonZeroU32::get), moved };
        let kind = match self.kind {
            PinKind::None => return None,
            PinKind::Own => LinkKind::Own,
            PinKind::Shared => LinkKind::Shared,
            PinKind::Bridge => bridge(None),
            PinKind::BridgeAndMac => bridge(Some(self.mac)),
        };
        Some(Link { interface: self.interface, kind })
    }
}

impl PinTable {
    fn get(&self, key: &Key) -> (Option<Link>, Moved) {
        let moved = self.moved.get(key).copied().unwrap_or_default();
        (self.pins.get(key).and_then(|pin| pin.link(moved.generation)), moved)
    }

    fn put(&mut self, key: Key, sandbox: Sandbox, link: Option<Link>, trusted_at: u32) {
        let generation = if let Some(Link { kind: LinkKind::Bridge { moved, .. }, .. }) = link { moved } else { 0 };
        let moved = Moved { generation, trusted_at };
        if moved == Moved::default() {
            self.moved.remove(&key);
        } else {
            self.moved.insert(key, moved);
        }
        self.pins.insert(Pin::new(key, sandbox, link));
    }

    fn remove(&mut self, key: &Key) {
        self.pins.remove(key);
        self.moved.remove(key);
    }
}

/// Returns the digest that distinguishes the addresses of one pod. A pod cannot produce two addresses with the same digest: it
/// does not choose its addresses, and does not know the key.
fn short(ip: IpAddr) -> u32 {
    Digest::of_ip(ip).short()
}

/// Returns the start of the network namespace according to the API, in seconds as in [`Pin`]. The API has no finer resolution.
fn seconds(sandbox: Sandbox) -> u32 {
    sandbox.since.map_or(0, |since: Timestamp| u32::try_from(since.as_second().max(1)).unwrap_or(u32::MAX))
}

impl Default for Pins {
    fn default() -> Self {
        Self { table: RwLock::default(), began: Instant::now() }
    }
}

impl Pins {
    /// Compares the link that leads to the pod's address with the pinned one, and pins it if there is no pin yet. `expected` is
    /// the link that a CNI result names for the pod; if it is known, the address is pinned to it. `is_port` says whether an
    /// interface is still a port of a bridge.
    pub(super) fn compare(
        &self,
        pod: &Pod,
        ip: IpAddr,
        now: Option<Link>,
        expected: Option<Link>,
        is_port: impl Fn(u32, u32) -> bool,
    ) -> Comparison {
        let (uid, this) = (pod.uid.digest(), short(ip));
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // A pod that has left an address no longer claims it, and a later network has another link.
        let is_over = |pin: &Pin| match pin.ip == this {
            true => seconds(pod.sandbox) > pin.since,
            false => !pod.ips.iter().any(|ip| short(*ip) == pin.ip),
        };
        let over: Vec<_> = table.pins.all_with(&uid, |pin| pin.uid).iter().filter(|pin| is_over(pin)).map(Keyed::key).collect();
        for key in &over {
            table.remove(key);
        }
        let (pinned, moved) = table.get(&(uid, this));
        let before = expected.or(pinned);
        let link = match before {
            Some(before) => before.followed_by(now, is_port),
            None => now.map(Link::to_pin),
        };
        let has_moved = pinned.zip(now).is_some_and(|(before, now)| before.moved_until(now));
        let trusted_at = match moved.trusted_at {
            _ if has_moved => self.in_seconds(DISTRUST_PERIOD),
            before if self.is_over(before) => 0,
            before => before,
        };
        let changed = trusted_at != 0 || before.is_some() && link.is_none();
        // A link that is not the pod's leaves the pin unchanged: the address is served again when the pinned link comes back.
        table.put((uid, this), pod.sandbox, link.or(before), trusted_at);
        if changed { Comparison::Changed } else { Comparison::Same }
    }

    /// Returns a time from now, in seconds as in [`Pin`], rounded up.
    fn in_seconds(&self, time: Duration) -> u32 {
        let until = self.began.elapsed() + time;
        u32::try_from(until.as_secs()).unwrap_or(u32::MAX).saturating_add(u32::from(until.subsec_nanos() > 0))
    }

    fn is_over(&self, seconds: u32) -> bool {
        self.began.elapsed() >= Duration::from_secs(seconds.into())
    }

    /// Returns whether a link that identifies one pod is pinned for another pod that still exists according to `is_there`.
    pub(super) fn is_of_another(&self, uid: &PodUid, link: Link, is_there: impl Fn(Digest) -> bool) -> bool {
        let own = uid.digest();
        let is_same = |pin: &&Pin| match (pin.kind, link.kind) {
            (PinKind::Own, LinkKind::Own) => pin.interface == link.interface,
            (PinKind::Bridge | PinKind::BridgeAndMac, LinkKind::Bridge { port: Some(port), .. }) => {
                pin.interface == link.interface && pin.port.map(NonZeroU32::get) == Some(port)
            }
            _ => false,
        };
        self.read().pins.iter().filter(is_same).any(|pin| pin.uid != own && is_there(pin.uid))
    }

    /// Returns whether the address of the pod is pinned to a link.
    pub(super) fn has(&self, uid: &PodUid, ip: IpAddr) -> bool {
        self.link_of(uid, ip).is_some()
    }

    /// Returns whether the address is pinned to a link of the pod's own.
    pub(super) fn is_exclusive(&self, uid: &PodUid, ip: IpAddr) -> bool {
        self.link_of(uid, ip).is_some_and(|link| link.is_exclusive())
    }

    /// Returns whether the address of the pod is pinned to this port of a bridge.
    pub(super) fn is_by_port(&self, uid: &PodUid, ip: IpAddr, port: u32) -> bool {
        matches!(self.link_of(uid, ip), Some(Link { kind: LinkKind::Bridge { port: Some(pinned), .. }, .. }) if pinned == port)
    }

    /// Returns the link that the address of the pod is pinned to.
    fn link_of(&self, uid: &PodUid, ip: IpAddr) -> Option<Link> {
        let (link, _) = self.read().get(&(uid.digest(), short(ip)));
        link
    }

    /// Returns whether any address of the pod is behind a bridge.
    pub(super) fn is_behind_bridge(&self, uid: &PodUid) -> bool {
        let table = self.read();
        table.pins.all_with(&uid.digest(), |pin| pin.uid).iter().any(|pin| matches!(pin.kind, PinKind::Bridge | PinKind::BridgeAndMac))
    }

    /// Forgets all pods but these. Returns the digests of the addresses that are still pinned ([`Digest::short`]).
    pub(super) fn keep(&self, pods: &HashSet<Digest>) -> HashSet<u32> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.pins.retain(|pin| pods.contains(&pin.uid));
        table.moved.retain(|(uid, _), _| pods.contains(uid));
        table.pins.iter().map(|pin| pin.ip).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, PinTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

//! The links that pods' addresses are pinned to.
//!
//! When the API first gives an address to a pod, what leads there is remembered by the pod's UID. While the pod has the same
//! network namespace, the link must stay the same: another link is another pod, or a forged one. The pin of an address is
//! replaced when the API tells of a later network namespace ([`Sandbox::is_later_than`]), and ends with the pod.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::index::{Pod, PodUid, Sandbox};
use crate::links::{Link, LinkKind};

/// No generation of a witness: a pin with it has to be compared.
const NEVER: u64 = u64::MAX;
/// How long a link that moved away and came back is not trusted. Whoever caused that may have a connection from that time; it
/// does not live for so long without answers.
const MISTRUST: Duration = Duration::from_secs(120);

/// The pins of all pods.
#[derive(Debug, Default)]
pub(super) struct Pins(RwLock<HashMap<PodUid, Vec<Pin>>>);

/// The link of one address of a pod.
#[derive(Debug)]
struct Pin {
    ip: IpAddr,
    sandbox: Sandbox,
    link: Option<Link>,
    /// When the link last moved away, even if it came back.
    moved_at: Option<Instant>,
    /// The generation of the witness at which the link was last found to be the same.
    agreed_at: u64,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// The link is the pinned one, or nothing speaks against it.
    Same,
    /// It is another link.
    Changed,
}

impl Pins {
    /// Whether the pod's link to this address was found to be the same at this generation of the witness. This is all that a
    /// request costs while nothing changes.
    pub(super) fn agree(&self, pod: &Pod, ip: IpAddr, generation: u64) -> bool {
        let pins = self.read();
        let pin = pins.get(&pod.uid).and_then(|pins| pins.iter().find(|pin| pin.ip == ip));
        pin.is_some_and(|pin| pin.agreed_at == generation && !pod.sandbox.is_later_than(pin.sandbox))
    }

    /// Compares the link that leads to the pod's address with the pinned one, and pins it where there is none yet. `expected`
    /// is the link that a CNI result names for the pod; it is what an address is pinned to where it is known. `is_port` says
    /// whether an interface is still a port of a bridge.
    pub(super) fn compare(
        &self,
        pod: &Pod,
        ip: IpAddr,
        now: Option<Link>,
        expected: Option<Link>,
        generation: u64,
        is_port: impl Fn(u32, u32) -> bool,
    ) -> Comparison {
        let mut pins = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let of_pod = pins.entry(pod.uid.clone()).or_insert_with(|| Vec::with_capacity(1));
        // A pod that has left an address has no claim to it any more, and a later network has another link.
        of_pod.retain(|pin| match pin.ip == ip {
            true => !pod.sandbox.is_later_than(pin.sandbox),
            false => pod.ips.contains(&pin.ip),
        });
        let pinned = of_pod.iter().position(|pin| pin.ip == ip).map(|at| of_pod.swap_remove(at));
        let before = expected.or(pinned.as_ref().and_then(|pin| pin.link));
        let link = match before {
            Some(before) => before.followed_by(now, is_port),
            None => now,
        };
        let moved_before = pinned.as_ref().and_then(|pin| pin.moved_at);
        let has_moved = pinned.and_then(|pin| pin.link).zip(now).is_some_and(|(before, now)| before.moved_until(now));
        let moved_at = if has_moved { Some(Instant::now()) } else { moved_before.filter(|moved| moved.elapsed() < MISTRUST) };
        let changed = moved_at.is_some() || before.is_some() && link.is_none();
        // A link that is not the pod's leaves the pin as it is: the address is served again where the pinned link comes back.
        let (link, agreed_at) = (link.or(before), if changed { NEVER } else { generation });
        of_pod.push(Pin { ip, sandbox: pod.sandbox, link, moved_at, agreed_at });
        if changed { Comparison::Changed } else { Comparison::Same }
    }

    /// Whether the address is pinned to a link of the pod's own.
    pub(super) fn is_exclusive(&self, uid: &PodUid, ip: IpAddr) -> bool {
        let pins = self.read();
        let pin = pins.get(uid).and_then(|pins| pins.iter().find(|pin| pin.ip == ip));
        pin.and_then(|pin| pin.link).is_some_and(|link| link.is_exclusive())
    }

    /// Whether any address of the pod is behind a bridge.
    pub(super) fn is_behind_bridge(&self, uid: &PodUid) -> bool {
        let is_bridge = |link: Link| matches!(link.kind, LinkKind::Bridge { .. });
        self.read().get(uid).is_some_and(|pins| pins.iter().any(|pin| pin.link.is_some_and(is_bridge)))
    }

    /// Forgets the pods that `is_there` does not know. Returns the addresses that are pinned still.
    pub(super) fn keep(&self, is_there: impl Fn(&PodUid) -> bool) -> HashSet<IpAddr> {
        let mut pins = self.0.write().unwrap_or_else(PoisonError::into_inner);
        pins.retain(|uid, _| is_there(uid));
        pins.values().flatten().map(|pin| pin.ip).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<PodUid, Vec<Pin>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

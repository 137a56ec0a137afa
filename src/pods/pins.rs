//! The links that pods' addresses are pinned to.
//!
//! When the API first gives an address to a pod, what leads there is remembered by the pod's UID. While the pod has the same
//! network namespace, the link must stay the same: another link is another pod, or a forged one. The pin of an address is
//! replaced when the API tells of a later network namespace ([`Sandbox::is_later_than`]), and ends with the pod.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::index::{Pod, PodUid, Sandbox};
use crate::links::Link;

/// No generation of a witness: a pin with it has to be compared.
const NEVER: u64 = u64::MAX;

/// The pins of all pods.
#[derive(Debug, Default)]
pub(super) struct Pins(RwLock<HashMap<PodUid, Vec<Pin>>>);

/// The link of one address of a pod.
#[derive(Debug)]
struct Pin {
    ip: IpAddr,
    sandbox: Sandbox,
    link: Option<Link>,
    /// The generation of the witness at which the link was last found to be the same.
    agreed_at: AtomicU64,
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
        pin.is_some_and(|pin| pin.agreed_at.load(Ordering::Relaxed) == generation && !pod.sandbox.is_later_than(pin.sandbox))
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
        // A pod that has left an address has no claim to it any more.
        of_pod.retain(|pin| pin.ip == ip || pod.ips.contains(&pin.ip));
        let pinned = match of_pod.iter().position(|pin| pin.ip == ip) {
            Some(at) if !pod.sandbox.is_later_than(of_pod[at].sandbox) => of_pod[at].link,
            Some(at) => {
                of_pod.swap_remove(at);
                None
            }
            None => None,
        };
        let before = expected.or(pinned);
        let link = match before {
            Some(before) => before.followed_by(now, is_port),
            None => now,
        };
        let changed = before.is_some() && link.is_none();
        // A changed link leaves the pin as it is: the address is served again where the pinned link comes back.
        let (link, agreed_at) = if changed { (before, NEVER) } else { (link, generation) };
        match of_pod.iter_mut().find(|pin| pin.ip == ip) {
            Some(pin) => (pin.link, pin.agreed_at) = (link, AtomicU64::new(agreed_at)),
            None => of_pod.push(Pin { ip, sandbox: pod.sandbox, link, agreed_at: AtomicU64::new(agreed_at) }),
        }
        if changed { Comparison::Changed } else { Comparison::Same }
    }

    /// Whether the address is pinned to a link of the pod's own.
    pub(super) fn is_exclusive(&self, uid: &PodUid, ip: IpAddr) -> bool {
        let pins = self.read();
        let pin = pins.get(uid).and_then(|pins| pins.iter().find(|pin| pin.ip == ip));
        pin.and_then(|pin| pin.link).is_some_and(|link| link.is_exclusive())
    }

    /// Forgets the pods that `is_there` does not know.
    pub(super) fn keep(&self, is_there: impl Fn(&PodUid) -> bool) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| is_there(uid));
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<PodUid, Vec<Pin>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

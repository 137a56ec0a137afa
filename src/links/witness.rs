//! The second witness: what this node itself sees at an address, for comparison with the Kubernetes API.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;

pub use super::cni::RecordedPod;
use super::{Link, LinkKind};

/// What this node sees at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// The link that leads to the address; `None` if there is none, or it is not known.
    pub link: Option<Link>,
    /// When the interface of that link appeared, as the time since the node's last boot. `None` if the time is not known, or
    /// the link identifies no pod.
    pub appeared: Option<Duration>,
    /// The pods to which CNI results assign the address, with links that exist. Usually none or one.
    pub attached: Vec<Attached>,
}

/// A pod that a CNI result places at an address, and the link that the result names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The pod.
    pub pod: RecordedPod,
    /// The link to the pod.
    pub link: Link,
}

/// A view of what the node sees at an address. A trait, so that decisions can be tested without a kernel.
pub trait Witness: fmt::Debug + Send + Sync {
    /// Returns a number that grows whenever the view of any address may have changed. Cheap: it is read for each request.
    fn generation(&self) -> u64;
    /// Returns what the node sees at an address now.
    fn at(&self, ip: IpAddr) -> Sight;
    /// Returns whether a CNI result assigns an address to a pod. Cheap: it is also called for addresses of no pod.
    fn has_record(&self, ip: IpAddr) -> bool;
    /// Returns the pods to which CNI results assign an address, whether or not the kernel confirms it. Never queries the kernel.
    fn recorded(&self, ip: IpAddr) -> Vec<RecordedPod>;
    /// Returns the number of the interface to the one pod that an address is behind, as far as is known. Meant for addresses of
    /// no known pod. Queries the kernel each time, and may wait for it.
    fn behind(&self, ip: IpAddr) -> Option<u32>;
    /// Returns whether an interface is still a port of a bridge.
    fn is_port(&self, bridge: u32, port: u32) -> bool;
    /// Forgets the cached view of all addresses except those for which `is_kept` is true.
    fn keep(&self, is_kept: &dyn Fn(IpAddr) -> bool);
    /// Removes what is left over from pods that are gone, at the addresses and removed ports for which `is_over` is true, if no CNI
    /// result assigns the address to a pod.
    fn remove_leftovers(&self, is_over: &dyn Fn(IpAddr, u32) -> bool);
    /// Returns whether there are CNI results at all.
    fn has_records(&self) -> bool;
    /// Returns whether pods are behind bridges, where they can forge what leads to others' addresses.
    fn has_bridges(&self) -> bool;
    /// Applies every change that the kernel has announced so far.
    fn catch_up(&self);
    /// Returns a receiver of changes, which gets a new value each time that [`Witness::generation`] grows.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// A witness whose view never changes. It knows no CNI results and no bridges.
#[derive(Debug)]
pub struct Fixed {
    link: fn(IpAddr) -> Option<Link>,
    changes: watch::Sender<u64>,
}

impl Fixed {
    /// Creates a witness that sees nothing: every claim of the API stands.
    pub fn blind() -> Self {
        Self::seeing(|_| None)
    }

    /// Creates a witness that sees this link at each address.
    pub fn seeing(link: fn(IpAddr) -> Option<Link>) -> Self {
        Self { link, changes: watch::Sender::new(0) }
    }
}

impl Witness for Fixed {
    fn generation(&self) -> u64 {
        0
    }

    fn at(&self, ip: IpAddr) -> Sight {
        Sight { link: (self.link)(ip), ..Sight::default() }
    }

    fn has_record(&self, _: IpAddr) -> bool {
        false
    }

    fn recorded(&self, _: IpAddr) -> Vec<RecordedPod> {
        Vec::new()
    }

    fn behind(&self, _: IpAddr) -> Option<u32> {
        None
    }

    fn is_port(&self, _: u32, _: u32) -> bool {
        false
    }

    fn keep(&self, _: &dyn Fn(IpAddr) -> bool) {}

    fn remove_leftovers(&self, _: &dyn Fn(IpAddr, u32) -> bool) {}

    fn has_records(&self) -> bool {
        false
    }

    fn has_bridges(&self) -> bool {
        false
    }

    fn catch_up(&self) {}

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Link {
    /// Returns whether this link identifies one pod: while the link is the same, so is the pod behind it.
    pub fn is_exclusive(&self) -> bool {
        match self.kind {
            LinkKind::Own => true,
            LinkKind::Bridge { port, .. } => port.is_some(),
            LinkKind::Shared => false,
        }
    }

    /// Returns the part of this link that may be pinned: a MAC address that no port of the bridge has may be left over from an
    /// earlier pod.
    pub fn to_pin(self) -> Self {
        match self.kind {
            LinkKind::Bridge { port: None, moved, .. } => Self { kind: LinkKind::Bridge { mac: None, port: None, moved }, ..self },
            _ => self,
        }
    }

    /// Returns whether another MAC address or port was announced between `self` and `now`, even if the link is the same again.
    pub fn moved_until(self, now: Self) -> bool {
        match (self.kind, now.kind) {
            (LinkKind::Bridge { moved: before, .. }, LinkKind::Bridge { moved, .. }) => moved > before,
            _ => false,
        }
    }

    /// Merges this link with `now`, a later view of the same pod's link. `None` if they contradict each other. `is_port` says
    /// whether an interface is still a port of this bridge.
    pub fn followed_by(self, now: Option<Self>, is_port: impl Fn(u32, u32) -> bool) -> Option<Self> {
        let same = |before: Option<u32>, now: Option<u32>| before.is_none() || now.is_none() || before == now;
        match (self.kind, now) {
            // A shared interface identifies no pod, so any more specific link replaces it.
            (LinkKind::Shared, now) => Some(now.unwrap_or(self)),
            (LinkKind::Own, Some(now)) => (now == self).then_some(now),
            (
                LinkKind::Bridge { mac: mac_before, port: port_before, .. },
                Some(Self { interface, kind: LinkKind::Bridge { mac, port, moved } }),
            ) => {
                let same_mac = mac_before.is_none() || mac.is_none() || mac_before == mac;
                // A port that the bridge has forgotten for now is still the pod's; one that no longer exists is not.
                let has_port = port_before.is_none_or(|port| is_port(interface, port));
                let agrees = interface == self.interface && same_mac && same(port_before, port) && has_port;
                let kind = LinkKind::Bridge { mac: mac_before.or(mac.filter(|_| port.is_some())), port: port_before.or(port), moved };
                agrees.then_some(Self { interface, kind })
            }
            (LinkKind::Own | LinkKind::Bridge { .. }, _) => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod held;
#[cfg(test)]
mod tests;

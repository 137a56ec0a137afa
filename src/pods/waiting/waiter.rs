//! Who waits, and what its place is counted by.

use std::net::IpAddr;
use std::sync::Arc;

use crate::pods::index::{Pod, PodUid};
use crate::pods::lookup::Lookup;
use crate::shares::Network;

/// Who waits.
#[derive(Clone, Debug)]
pub(in crate::pods) enum RequestWaiter {
    /// A pod. All its addresses count together.
    Pod(Arc<Pod>),
    /// An address that several pods claim, or one whose claim the node itself objects to. Whoever asks may not be the pod: it
    /// takes no place of the pod's namespace.
    Disputed(IpAddr),
    /// An address that no pod is known to have, and what it is counted by.
    Unknown(IpAddr, Network),
}

/// What places of known pods are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Member {
    Pod(PodUid),
    Disputed(IpAddr),
}

impl RequestWaiter {
    /// Returns who waits, where an address is looked up with this result.
    pub(in crate::pods) fn of(ip: IpAddr, found: &Lookup) -> Self {
        match found {
            Lookup::Found(pod, _) | Lookup::Unreadable(pod) => Self::Pod(pod.clone()),
            Lookup::Ambiguous(_) | Lookup::Objected(..) => Self::Disputed(ip),
            Lookup::Unknown => Self::Unknown(ip, ip.into()),
        }
    }

    /// Returns the namespace and the member to count by; the address and its network, where nothing is known of it.
    pub(super) fn known(&self) -> Result<(&str, Member), (IpAddr, Network)> {
        match self {
            Self::Pod(pod) => Ok((&pod.namespace, Member::Pod(pod.uid.clone()))),
            // No namespace has this name. All disputed addresses together count as one.
            Self::Disputed(ip) => Ok(("", Member::Disputed(*ip))),
            Self::Unknown(ip, network) => Err((*ip, *network)),
        }
    }
}

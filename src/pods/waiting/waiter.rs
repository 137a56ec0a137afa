//! The holder of a place, and the groups that the place is counted in.

use std::net::IpAddr;
use std::sync::Arc;

use crate::pods::identifier::Identifier;
use crate::pods::index::{Pod, PodUid};
use crate::pods::lookup::Lookup;
use crate::shares::Network;

/// The holder of a place.
#[derive(Clone, Debug)]
pub(in crate::pods) enum RequestWaiter {
    /// A pod. All its addresses count together.
    Pod(Arc<Pod>),
    /// An address that several pods claim, or whose claim the node's view contradicts. The sender may not be the pod, so it
    /// takes no place of the pod's namespace.
    Disputed(IpAddr),
    /// An address of no known pod, and the network that it is counted in.
    Unknown(IpAddr, Network),
    /// A pod in the node's network that is not known yet, by its UID. The kubelet created its control group, so that it cannot be
    /// invented.
    HostNetwork(PodUid),
}

/// The unit in which places of known pods are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Member {
    Pod(PodUid),
    Disputed(IpAddr),
}

impl RequestWaiter {
    /// Returns the holder for this look-up result.
    pub(in crate::pods) fn of(identifier: &Identifier, found: &Lookup) -> Self {
        match (found, identifier) {
            (Lookup::Found(pod, _) | Lookup::Unreadable(pod), _) => Self::Pod(pod.clone()),
            (_, Identifier::HostNetwork(uid)) => Self::HostNetwork(PodUid(uid.clone())),
            (Lookup::Ambiguous(_) | Lookup::Objected(..), Identifier::Address(ip)) => Self::Disputed(*ip),
            (Lookup::Unknown, Identifier::Address(ip)) => Self::Unknown(*ip, (*ip).into()),
        }
    }

    /// Returns the namespace and the member to count in. For an unknown address, returns the address and its network.
    pub(super) fn known(&self) -> Result<(&str, Member), (IpAddr, Network)> {
        match self {
            Self::Pod(pod) => Ok((&pod.namespace, Member::Pod(pod.uid.clone()))),
            // No namespace has this name. All disputed addresses together count as one.
            Self::Disputed(ip) => Ok(("", Member::Disputed(*ip))),
            // All of them together count as one namespace, too.
            Self::HostNetwork(uid) => Ok(("", Member::Pod(uid.clone()))),
            Self::Unknown(ip, network) => Err((*ip, *network)),
        }
    }
}

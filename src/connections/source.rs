//! The source of a connection, by which limits count.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cgroup::CgroupId;
use crate::pods::{Lookup, Pod, PodUid};
use crate::shares::Network;

/// The source of a connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A pod of this node. All its addresses count together.
    Pod(Arc<Pod>),
    /// An address that several pods of this node claim, or whose claim contradicts what the node sees, or has yet to be compared
    /// with it.
    Disputed(IpAddr),
    /// The node itself.
    Node,
    /// An address that belongs to no known pod of this node, and what it is counted by.
    Unknown(IpAddr, Network),
    /// A pod in the node's network that is not known yet, by the UID in its control group, which cannot be invented.
    HostNetwork(PodUid),
    /// Processes in the node's network that are not known to be a pod's, by their control group.
    Cgroup(CgroupId),
}

/// A known source, as a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum SourceKey {
    Pod(PodUid),
    Disputed(IpAddr),
    Node,
    Cgroup(CgroupId),
}

impl Source {
    /// An address that belongs to no known pod, counted by what it tells itself.
    pub(crate) fn unknown(ip: IpAddr) -> Self {
        Self::Unknown(ip, ip.into())
    }

    /// Returns the source behind an address, from what is known about the address.
    pub(crate) fn of(ip: IpAddr, lookup: Lookup) -> Self {
        match lookup {
            Lookup::Found(pod, _) | Lookup::Unreadable(pod) => Self::Pod(pod),
            // The client may not be the pod, so it must not use up the pod's budget.
            Lookup::Ambiguous(_) | Lookup::Objected(..) => Self::Disputed(ip),
            Lookup::Unknown => Self::unknown(ip),
        }
    }

    /// Returns the source that a pod in the node's network is, by the UID in its control group and what is known about it.
    pub(crate) fn in_host_network(uid: Arc<str>, lookup: Lookup) -> Self {
        match lookup {
            // A process of the pod connected, wherever it did.
            Lookup::Found(pod, _) | Lookup::Unreadable(pod) | Lookup::Objected(pod, _) => Self::Pod(pod),
            Lookup::Ambiguous(_) | Lookup::Unknown => Self::HostNetwork(PodUid(uid)),
        }
    }

    /// Returns the source behind an address, from what [`Pods::at_once`](crate::pods::Pods::at_once) returns. While the kernel has
    /// to be asked whether the address is still its pod's, the address counts for itself.
    pub(crate) fn at_once(ip: IpAddr, lookup: Result<Lookup, Lookup>) -> Self {
        match lookup {
            Ok(lookup) => Self::of(ip, lookup),
            Err(Lookup::Unknown) => Self::unknown(ip),
            Err(_) => Self::Disputed(ip),
        }
    }

    /// The namespace, where the source is a pod; otherwise empty.
    pub(crate) fn namespace(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.namespace,
            Self::Disputed(_) | Self::Node | Self::Unknown(..) | Self::HostNetwork(_) | Self::Cgroup(_) => "",
        }
    }

    /// Whether the source belongs to no known pod, and is behind the port of one pod.
    pub(crate) fn is_behind_port(&self) -> bool {
        matches!(self, Self::Unknown(_, Network::Port(_)))
    }

    /// The key of a known source, or the address of an unknown one and what it is counted by.
    pub(super) fn key(&self) -> Result<SourceKey, (IpAddr, Network)> {
        match self {
            Self::Pod(pod) => Ok(SourceKey::Pod(pod.uid.clone())),
            Self::HostNetwork(uid) => Ok(SourceKey::Pod(uid.clone())),
            Self::Disputed(ip) => Ok(SourceKey::Disputed(*ip)),
            Self::Node => Ok(SourceKey::Node),
            Self::Cgroup(id) => Ok(SourceKey::Cgroup(*id)),
            Self::Unknown(ip, network) => Err((*ip, *network)),
        }
    }
}

#[cfg(test)]
impl Source {
    /// A pod of this name in this namespace.
    pub(crate) fn pod(namespace: &str, name: &str) -> Self {
        Self::Pod(Arc::new(Pod::for_test(namespace, name)))
    }
}

//! Descriptions of what leads to an address.

use crate::netlink::Mac;

/// What leads to an address on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number of the interface of the kernel's route; 0 if the route has several.
    pub interface: u32,
    /// The kind of link.
    pub kind: LinkKind,
}

/// Kinds of links to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The interface leads to one pod: it is one end of a pair (veth, netkit), not a bridge port, and has a route for this
    /// address alone, without a gateway.
    Own,
    /// A bridge of the node.
    Bridge {
        /// The neighbour's link-layer address, if known. It usually is right after a handshake. The kernel forgets it when its
        /// neighbour table is full, which all network namespaces share (`gc_thresh3`), and forgets all neighbours of a bridge
        /// when the bridge's own link-layer address changes.
        mac: Option<Mac>,
        /// The number of the bridge port of that link-layer address, if known. On a VLAN-aware bridge, it is looked up in the
        /// bridge's default VLAN.
        port: Option<u32>,
        /// The generation in which the kernel last announced a change of the link-layer address or port, even if it changed back
        /// since then; 0 if it never did.
        moved: u64,
    },
    /// It is shared by many addresses, such as an uplink, a gateway or Cilium's `cilium_host`, so it does not identify a pod.
    Shared,
}

/// Whether something leads to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Unknown: there is no table, or the kernel did not answer.
    Unknown,
    /// Nothing leads to it: there is no route, the route is prohibited, or it leads to the node itself.
    Nowhere,
    /// This link leads to it.
    By(Link),
}

impl Reach {
    /// Returns the link, if known.
    pub fn link(self) -> Option<Link> {
        match self {
            Self::By(link) => Some(link),
            Self::Unknown | Self::Nowhere => None,
        }
    }
}

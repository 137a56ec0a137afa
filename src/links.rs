//! What the node itself sees of pods: which link leads to an address, and what the CNI plugins recorded about it.

pub mod boot;
pub mod cni;
pub mod witness;

/// The MAC address of an interface.
pub type Mac = [u8; 6];

/// What leads to an address on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface of the kernel's route, by its number, which is never used again in the life of a network namespace.
    pub interface: u32,
    /// What kind of link it is.
    pub kind: LinkKind,
}

/// What kind of link leads to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The interface leads to this one pod.
    Own,
    /// A bridge: the neighbour's MAC address and the port that the bridge has learned it on; `None` where not known.
    Bridge {
        /// The neighbour's MAC address.
        mac: Option<Mac>,
        /// The port of the bridge, by its interface number.
        port: Option<u32>,
    },
    /// An interface that many addresses share.
    Shared,
}

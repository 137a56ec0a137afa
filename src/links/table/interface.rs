//! Records of the node's interfaces.

use std::num::NonZeroU32;

use crate::digest::Digest;
use crate::netlink::Interface;
use crate::sorted::Keyed;

/// A record of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::links) struct KnownInterface {
    /// The digest of the interface's name, which is used only for look-ups.
    pub(super) name: Digest,
    pub(super) index: u32,
    master: Option<NonZeroU32>,
    pub(in crate::links) kind: InterfaceKind,
    /// [`Self::appeared`] in the upper 31 bits, and [`Self::is_up`] in the lowest one. Compact because there is one record for
    /// each pod's interface.
    appeared_and_up: u32,
}

/// The kinds of interfaces that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::links) enum InterfaceKind {
    /// One end of a pair whose other end may be a pod's.
    Pair,
    /// A bridge, with the VLAN of its own packets if it is VLAN-aware.
    Bridge { vlan: Option<u16> },
    /// Any other interface.
    Other,
}

impl Keyed for KnownInterface {
    type Key = u32;

    fn key(&self) -> u32 {
        self.index
    }
}

impl KnownInterface {
    pub(in crate::links) fn of(interface: &Interface) -> Self {
        let kind = match interface.kind.as_deref() {
            Some("veth" | "netkit") => InterfaceKind::Pair,
            Some("bridge") => InterfaceKind::Bridge { vlan: interface.vlan },
            _ => InterfaceKind::Other,
        };
        let name = Digest::of_name(&interface.name);
        Self { name, index: interface.index, kind, master: None, appeared_and_up: u32::from(interface.is_up) }.with_master(interface.master)
    }

    pub(super) fn with_master(self, master: Option<u32>) -> Self {
        Self { master: master.and_then(NonZeroU32::new), ..self }
    }

    pub(super) fn with_appeared(self, appeared: u32) -> Self {
        Self { appeared_and_up: appeared << 1 | u32::from(self.is_up()), ..self }
    }

    /// Returns when the kernel announced the interface, in seconds since the node's last boot; 0 if it existed before the
    /// table, or the time is not known.
    pub(in crate::links) fn appeared(&self) -> u32 {
        self.appeared_and_up >> 1
    }

    pub(super) fn is_up(&self) -> bool {
        self.appeared_and_up & 1 == 1
    }

    /// Returns the interface that this one is a part of.
    pub(in crate::links) fn master(&self) -> Option<u32> {
        self.master.map(NonZeroU32::get)
    }
}

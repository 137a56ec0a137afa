//! A compact record of an address: there is one for each address of a pod.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;

use crate::links::link::{Link, LinkKind, Reach};
use crate::netlink::Mac;
use crate::sorted::Keyed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookupState {
    /// The kernel has announced no change since the query, which had this result.
    Fresh(Knows),
    /// The kernel has to be queried.
    Stale,
    /// A query is in progress. Only one runs at a time.
    Asked,
}

/// Which of the last known values the kernel's answer confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knows {
    Nothing,
    Mac,
    MacAndPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Nowhere,
    Own,
    Shared,
    /// Behind a bridge, with the last known link-layer address on this interface.
    Bridge(Option<Mac>),
}

/// A record of an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressRecord {
    /// The generation in which a change of the link-layer address or port was last announced.
    pub(super) moved: u64,
    /// IPv4 addresses are mapped to IPv6, which takes one byte less than an `IpAddr`.
    ip: Ipv6Addr,
    interface: u32,
    /// The last known port on this interface.
    last_port: Option<NonZeroU32>,
    kept: Kept,
    pub(super) state: LookupState,
}

impl Keyed for AddressRecord {
    type Key = Ipv6Addr;

    fn key(&self) -> Ipv6Addr {
        self.ip
    }
}

/// Returns the key of an address's record.
pub(super) fn key(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

impl AddressRecord {
    pub(super) fn new(ip: IpAddr) -> Self {
        Self { moved: 0, ip: key(ip), interface: 0, last_port: None, kept: Kept::Nowhere, state: LookupState::Stale }
    }

    pub(super) fn ip(&self) -> IpAddr {
        IpAddr::V6(self.ip).to_canonical()
    }

    /// Returns the answer, while it is valid.
    pub(super) fn fresh(&self) -> Option<Reach> {
        if !matches!(self.state, LookupState::Fresh(_)) {
            return None;
        }
        let kind = match self.kept {
            Kept::Nowhere => return Some(Reach::Nowhere),
            Kept::Own => LinkKind::Own,
            Kept::Shared => LinkKind::Shared,
            Kept::Bridge(_) => LinkKind::Bridge { mac: self.mac(), port: self.port().map(NonZeroU32::get), moved: self.moved },
        };
        Some(Reach::By(Link { interface: self.interface, kind }))
    }

    /// Returns the link-layer address of the answer, while it is valid.
    pub(super) fn mac(&self) -> Option<Mac> {
        if matches!(self.state, LookupState::Fresh(Knows::Mac | Knows::MacAndPort)) { self.last_mac() } else { None }
    }

    /// Returns the port of the answer, while it is valid.
    pub(super) fn port(&self) -> Option<NonZeroU32> {
        if self.state == LookupState::Fresh(Knows::MacAndPort) { self.last_port } else { None }
    }

    /// Returns the last known link-layer address on this interface.
    pub(super) fn last_mac(&self) -> Option<Mac> {
        if let Kept::Bridge(last) = self.kept { last } else { None }
    }

    /// Records the interface of the address; what was known about it on another interface is forgotten.
    pub(super) fn at(&mut self, kept: Kept, interface: u32) {
        let is_same_kind = std::mem::discriminant(&self.kept) == std::mem::discriminant(&kept);
        if !is_same_kind || self.interface != interface {
            (self.kept, self.interface, self.last_port) = (kept, interface, None);
        }
    }

    /// Records a link-layer address at a bridge. Returns whether it differs from the previous one.
    pub(super) fn saw_mac(&mut self, mac: Mac) -> bool {
        let is_other = self.last_mac().is_some_and(|last| last != mac);
        if is_other {
            self.last_port = None;
        }
        self.kept = Kept::Bridge(Some(mac));
        is_other
    }

    /// Records a port. Returns whether it differs from the previous one.
    pub(super) fn saw_port(&mut self, port: NonZeroU32) -> bool {
        self.last_port.replace(port).is_some_and(|last| last != port)
    }

    /// Forgets the link-layer address and its port, but not that they have moved.
    pub(super) fn forget_mac(&mut self) {
        (self.kept, self.last_port) = (Kept::Bridge(None), None);
    }

    /// Returns whether a link-layer address and its port are known, be they valid or not.
    pub(super) fn has_port(&self) -> bool {
        self.last_mac().is_some() && self.last_port.is_some()
    }

    /// Returns the last known port on this interface.
    pub(super) fn last_port(&self) -> Option<u32> {
        self.last_port.map(NonZeroU32::get)
    }

    /// Returns the interface.
    pub(super) fn interface(&self) -> u32 {
        self.interface
    }

    pub(super) fn is_behind_bridge(&self) -> bool {
        matches!(self.kept, Kept::Bridge(_))
    }

    pub(super) fn is_on_bridge(&self, bridge: u32) -> bool {
        self.is_behind_bridge() && self.interface == bridge
    }

    /// Returns whether the address is reached by this interface, as far as is known.
    pub(super) fn is_by(&self, interface: u32) -> bool {
        self.interface == interface || self.last_port.is_some_and(|port| port.get() == interface)
    }
}

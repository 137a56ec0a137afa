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

/// Whether packets to the link-layer address of a record reached anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupancy {
    /// The kernel has not answered yet.
    Unknown,
    /// No port has the link-layer address: by the kernel's first answer, or because its port was removed. It is left over from an
    /// earlier pod, because the kernel keeps a neighbour after its pod has gone.
    Vacant,
    /// Somebody may have received packets.
    Taken,
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
    occupancy: Occupancy,
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
        let (kept, occupancy, state) = (Kept::Nowhere, Occupancy::Unknown, LookupState::Stale);
        Self { moved: 0, ip: key(ip), interface: 0, last_port: None, kept, occupancy, state }
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
            (self.kept, self.interface, self.last_port, self.occupancy) = (kept, interface, None, Occupancy::Unknown);
        }
    }

    /// Records a link-layer address at a bridge. Returns whether the address moved: it had another link-layer address before, and
    /// somebody may have received packets there.
    pub(super) fn saw_mac(&mut self, mac: Mac) -> bool {
        let is_other = self.last_mac().is_some_and(|last| last != mac);
        let is_move = is_other && self.occupancy != Occupancy::Vacant;
        if is_other {
            (self.last_port, self.occupancy) = (None, Occupancy::Taken);
        }
        self.kept = Kept::Bridge(Some(mac));
        is_move
    }

    /// Records a port. Returns whether it differs from the previous one.
    pub(super) fn saw_port(&mut self, port: NonZeroU32) -> bool {
        self.occupancy = Occupancy::Taken;
        self.last_port.replace(port).is_some_and(|last| last != port)
    }

    /// Records that the kernel knows no port for the link-layer address.
    pub(super) fn saw_no_port(&mut self) {
        if self.occupancy == Occupancy::Unknown {
            self.occupancy = Occupancy::Vacant;
        }
    }

    /// Records that an interface was removed. If it was the port of the link-layer address, nobody receives packets there now.
    pub(super) fn lost_interface(&mut self, interface: u32) {
        if self.last_port.is_some_and(|port| port.get() == interface) {
            (self.last_port, self.occupancy) = (None, Occupancy::Vacant);
        }
    }

    /// Records that notifications about this address were lost: somebody may have had it meanwhile.
    pub(super) fn distrust(&mut self, generation: u64) {
        (self.moved, self.occupancy) = (generation, Occupancy::Taken);
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

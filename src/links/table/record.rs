//! What is remembered of an address, in as little as it takes: there is one record for each address of a pod.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;

use crate::links::link::{Link, LinkKind, Reach};
use crate::netlink::Mac;
use crate::sorted::Keyed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookupState {
    /// The kernel has announced nothing else since it was asked, and knew so much of the neighbour.
    Fresh(Knows),
    /// It has to be asked.
    Stale,
    /// It is being asked. One question is asked at a time.
    Asked,
}

/// What the kernel knew of the neighbour at a bridge. It is what was last known then.
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
    /// With the last link-layer address that was known on this interface.
    Bridge(Option<Mac>),
}

/// What is remembered of an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressRecord {
    /// The generation in which another link-layer address or port was last announced.
    pub(super) moved: u64,
    /// An IPv4 address is mapped: it takes one byte less than an `IpAddr`.
    ip: Ipv6Addr,
    interface: u32,
    /// The last port that was known, on this interface.
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

/// The key of an address's record.
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

    /// The answer, while it is good.
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

    /// The link-layer address of the answer, while it is good.
    pub(super) fn mac(&self) -> Option<Mac> {
        if matches!(self.state, LookupState::Fresh(Knows::Mac | Knows::MacAndPort)) { self.last_mac() } else { None }
    }

    /// The port of the answer, while it is good.
    pub(super) fn port(&self) -> Option<NonZeroU32> {
        if self.state == LookupState::Fresh(Knows::MacAndPort) { self.last_port } else { None }
    }

    /// The last link-layer address that was known, on this interface.
    pub(super) fn last_mac(&self) -> Option<Mac> {
        if let Kept::Bridge(last) = self.kept { last } else { None }
    }

    /// Takes in on which interface it is; what was known of another is forgotten.
    pub(super) fn at(&mut self, kept: Kept, interface: u32) {
        let is_same_kind = std::mem::discriminant(&self.kept) == std::mem::discriminant(&kept);
        if !is_same_kind || self.interface != interface {
            (self.kept, self.interface, self.last_port) = (kept, interface, None);
        }
    }

    /// Takes in a link-layer address at a bridge; whether it is another one than before.
    pub(super) fn saw_mac(&mut self, mac: Mac) -> bool {
        let is_other = self.last_mac().is_some_and(|last| last != mac);
        if is_other {
            self.last_port = None;
        }
        self.kept = Kept::Bridge(Some(mac));
        is_other
    }

    /// Takes in a port; whether it is another one than before.
    pub(super) fn saw_port(&mut self, port: NonZeroU32) -> bool {
        self.last_port.replace(port).is_some_and(|last| last != port)
    }

    pub(super) fn is_behind_bridge(&self) -> bool {
        matches!(self.kept, Kept::Bridge(_))
    }

    pub(super) fn is_on_bridge(&self, bridge: u32) -> bool {
        self.is_behind_bridge() && self.interface == bridge
    }

    /// Whether it is reached by this interface, as far as is known.
    pub(super) fn is_by(&self, interface: u32) -> bool {
        self.interface == interface || self.last_port.is_some_and(|port| port.get() == interface)
    }
}

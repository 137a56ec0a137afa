//! The destinations that no other program is to redirect, and whether a rule applies to them. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::redirect::rules::Family;

/// A destination that no other program is to redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// The metadata address, for what the node's own processes send there, to any port.
    Metadata(Family),
    /// The daemon's address and port, for TCP from pods and from the node.
    Daemon(SocketAddr),
}

/// Whether a rule applies to packets to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// It does not.
    Excluded,
    /// It may, and does not name the destination.
    Open,
    /// It does, and names the destination, or a network or range with it.
    Named,
}

impl Destination {
    /// Returns its address.
    pub(super) const fn ip(self) -> IpAddr {
        match self {
            Self::Metadata(family) => family.metadata(),
            Self::Daemon(address) => address.ip(),
        }
    }

    /// Returns its port, unless all count.
    pub(super) const fn port(self) -> Option<u16> {
        match self {
            Self::Metadata(_) => None,
            Self::Daemon(address) => Some(address.port()),
        }
    }

    /// Returns its family.
    pub(super) const fn family(self) -> Family {
        if self.ip().is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Returns the hooks at which packets to it can be redirected.
    pub(super) const fn hooks(self) -> &'static [&'static str] {
        match self {
            // Pods' packets meet rolegate's redirect first.
            Self::Metadata(_) => &["output"],
            Self::Daemon(_) => &["prerouting", "output"],
        }
    }

    /// Returns the name of the destination in a sentence.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Metadata(_) => "the metadata address",
            Self::Daemon(_) => "the daemon's address and port",
        }
    }
}

impl Fit {
    /// Returns the fit of a match that names the destination or excludes it.
    pub(super) const fn named_if(is_named: bool) -> Self {
        if is_named { Self::Named } else { Self::Excluded }
    }

    /// Returns the fit of a match on something that other destinations have in common.
    pub(super) const fn open_if(may_match: bool) -> Self {
        if may_match { Self::Open } else { Self::Excluded }
    }

    /// Returns the fit of a rule with both matches.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Excluded, _) | (_, Self::Excluded) => Self::Excluded,
            (one, other) => one.max(other),
        }
    }

    /// Returns the fit of the negated match, which never names the destination.
    pub(super) const fn negated(self) -> Self {
        match self {
            Self::Excluded => Self::Open,
            Self::Open | Self::Named => Self::Excluded,
        }
    }
}

/// Returns whether a network of this prefix length includes an address of the same family.
pub(super) fn is_in_network(address: IpAddr, network: IpAddr, length: u32) -> bool {
    let value = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let bits = if address.is_ipv4() { 32_u32 } else { 128 };
    let shift = bits.saturating_sub(length);
    let prefix = |ip: IpAddr| value(ip).checked_shr(shift).unwrap_or(0);
    network.is_ipv4() == address.is_ipv4() && prefix(network) == prefix(address)
}

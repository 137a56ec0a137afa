//! The destinations that no other program is to redirect, and whether a rule applies to them. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::redirect::iptables::program::Flavour;
use crate::redirect::nftables::{DESTINATION_NAT, OUR_NAT};
use crate::redirect::rules::Family;

/// Where rolegate's own rules are, and so which rules of other programs come after them and have no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    /// In a table of nftables, ahead of all of iptables.
    Nftables,
    /// At the head of the table `nat` of this flavour.
    Iptables(Flavour),
}

/// A destination that no other program is to redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// The metadata address, for what the node's own processes send there, to any port.
    Metadata(Family),
    /// The daemon's address and port, for TCP from pods and from the node.
    Daemon(SocketAddr),
    /// An address of Pod Identity, for TCP from pods and from the node. Host ports of pods apply to every address of the node, so only
    /// redirects that come before rolegate's rules count.
    PodIdentity(SocketAddr, Precedence),
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
            Self::Daemon(address) | Self::PodIdentity(address, _) => address.ip(),
        }
    }

    /// Returns its port, unless all count.
    pub(super) const fn port(self) -> Option<u16> {
        match self {
            Self::Metadata(_) => None,
            Self::Daemon(address) | Self::PodIdentity(address, _) => Some(address.port()),
        }
    }

    /// Returns its family.
    pub(super) const fn family(self) -> Family {
        Family::of(self.ip())
    }

    /// Returns the hooks at which packets to it can be redirected.
    pub(super) const fn hooks(self) -> &'static [&'static str] {
        match self {
            // Pods' packets meet rolegate's redirect first.
            Self::Metadata(_) => &["output"],
            Self::Daemon(_) | Self::PodIdentity(..) => &["prerouting", "output"],
        }
    }

    /// Returns whether redirects in the table `nat` of a flavour of iptables count.
    pub(super) fn is_exposed_to_iptables(self, flavour: Flavour) -> bool {
        match self {
            Self::Metadata(_) | Self::Daemon(_) => true,
            Self::PodIdentity(_, Precedence::Nftables) => false,
            Self::PodIdentity(_, Precedence::Iptables(own)) => own != flavour,
        }
    }

    /// Returns whether redirects in a chain of nftables with this priority count.
    pub(super) fn is_exposed_to(self, priority: Option<i64>) -> bool {
        let ours = match self {
            Self::Metadata(_) | Self::Daemon(_) => return true,
            Self::PodIdentity(_, Precedence::Nftables) => OUR_NAT,
            Self::PodIdentity(_, Precedence::Iptables(_)) => DESTINATION_NAT,
        };
        // Of two chains with one priority, either may come first.
        priority.is_none_or(|priority| priority <= i64::from(ours))
    }

    /// Returns the name of the destination in a sentence.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Metadata(_) => "the metadata address",
            Self::Daemon(_) => "the daemon's address and port",
            Self::PodIdentity(..) => "an address of Pod Identity",
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    /// Host ports of pods apply to every address of the node. Behind rolegate's rules, they take nothing.
    #[test]
    fn only_redirects_ahead_of_our_rules_count_for_pod_identity() {
        let address: SocketAddr = "169.254.170.23:80".parse().unwrap();
        let by_iptables = |destination: Destination| Flavour::ALL.map(|flavour| destination.is_exposed_to_iptables(flavour));
        let by_nftables = |destination: Destination| {
            [Some(-111), Some(-110), Some(-101), Some(-100), Some(-99), None].map(|priority| destination.is_exposed_to(priority))
        };
        let of = |precedence| Destination::PodIdentity(address, precedence);
        assert_eq!(by_iptables(of(Precedence::Nftables)), [false; 2]);
        assert_eq!(by_iptables(of(Precedence::Iptables(Flavour::Nft))), [false, true]);
        assert_eq!(by_iptables(of(Precedence::Iptables(Flavour::Legacy))), [true, false]);
        assert_eq!(by_nftables(of(Precedence::Nftables)), [true, true, false, false, false, true]);
        assert_eq!(by_nftables(of(Precedence::Iptables(Flavour::Nft))), [true, true, true, true, false, true]);
        for always in [Destination::Daemon(address), Destination::Metadata(Family::V4)] {
            assert_eq!((by_iptables(always), by_nftables(always)), ([true; 2], [true; 6]));
        }
    }
}

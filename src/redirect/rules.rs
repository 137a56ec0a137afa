//! The wanted packet rules as data: pure, and the same whatever program puts them into the kernel.
//!
//! Our rules are of four kinds, by what they are there for:
//!
//! - **redirect**, where packets enter the node and their destination may be changed: TCP to port 80 of the metadata address
//!   goes to the daemon, whatever interface it comes in on but the node's own loopback;
//! - **guard**, where packets are passed on from one interface to another: whatever still goes to a metadata address, of
//!   any port and protocol, is rejected;
//! - **backstop**, at the same place and after it: what passed the guard all the same, as somebody's rule ahead of it let it
//!   through, is dropped. A backend that nobody can get ahead of needs none;
//! - **direct**, where packets come in for the node itself: a connection to the app port that was not redirected from the
//!   metadata address is dropped.
//!
//! Packets of the node's own processes pass none of them.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::config::InterfaceMatch;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6, METADATA_PORT};

/// The interface of the node's own loopback, which is no pod's.
pub const LOOPBACK: &str = "lo";

/// What the node is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// Which interfaces the pods' requests come in on: only the named, or all but the negated; empty means every one. The
    /// guard knows no interfaces.
    pub interfaces: Vec<InterfaceMatch>,
    /// Where requests are sent to; `None` is the guard alone: pods' requests are rejected.
    pub targets: Option<Targets>,
}

/// Where requests are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// An address of this node and the app port.
    pub ipv4: SocketAddrV4,
    /// An IPv6 address of this node and the app port. Without it, requests to the metadata service's IPv6 address are rejected.
    pub ipv6: Option<SocketAddrV6>,
    /// Connections straight to the app port are dropped. Not where the daemon is told to serve them.
    pub refuse_direct: bool,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where in a packet's way through the kernel a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing, where destinations may be changed (NAT).
    Redirect,
    /// Between interfaces.
    Guard,
    /// There, too, after everybody's filters.
    Backstop,
    /// To a socket of the node.
    Direct,
}

/// One rule: a packet that every match fits meets the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The packets' family.
    pub family: Family,
    /// What must fit.
    pub matches: Vec<Match>,
    /// What becomes of the packet.
    pub verdict: PacketVerdict,
}

/// A property of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It goes to this address.
    To(IpAddr),
    /// It is TCP.
    Tcp,
    /// It is TCP to this port.
    TcpPort(u16),
    /// It came in on this interface, or on no such interface.
    Interface(InterfaceMatch),
    /// Its connection was opened to some other address than this one.
    NotOpenedTo(IpAddr),
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketVerdict {
    /// Its connection goes to this address.
    Dnat(SocketAddr),
    /// Our rules of this hook have nothing more to say about it.
    Return,
    /// Its sender gets a TCP reset: the connection is refused.
    Reset,
    /// Its sender gets an ICMP error.
    Reject,
    /// It is gone.
    Drop,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The metadata service's address in this family.
    pub const fn metadata(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(METADATA_IPV4),
            Self::V6 => IpAddr::V6(METADATA_IPV6),
        }
    }
}

impl Hook {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Redirect, Self::Guard, Self::Backstop, Self::Direct];
}

impl RuleSet {
    /// What holds before it is known where requests are sent to, and while no daemon is to serve them.
    pub const fn guard_alone() -> Self {
        Self { interfaces: Vec::new(), targets: None }
    }

    /// The rules of a hook for a family, in their order.
    pub fn rules(&self, hook: Hook, family: Family) -> Vec<Rule> {
        match hook {
            Hook::Redirect => self.redirect(family),
            Hook::Guard => guard(family),
            Hook::Backstop => vec![Rule { family, matches: vec![Match::To(family.metadata())], verdict: PacketVerdict::Drop }],
            Hook::Direct => self.direct(family),
        }
    }

    fn target(&self, family: Family) -> Option<SocketAddr> {
        let targets = self.targets?;
        match family {
            Family::V4 => Some(targets.ipv4.into()),
            Family::V6 => targets.ipv6.map(SocketAddr::from),
        }
    }

    fn redirect(&self, family: Family) -> Vec<Rule> {
        let Some(target) = self.target(family) else { return Vec::new() };
        let to_metadata = [Match::To(family.metadata()), Match::TcpPort(METADATA_PORT)];
        let rule = |interface: Option<InterfaceMatch>, verdict| {
            let interface = interface.into_iter().map(Match::Interface);
            Rule { family, matches: interface.chain(to_metadata.iter().cloned()).collect(), verdict }
        };
        let (but, named): (Vec<_>, Vec<_>) = self.interfaces.iter().partition(|interface| interface.negated);
        let loopback = InterfaceMatch { name: LOOPBACK.to_owned(), negated: false };
        let but = but.into_iter().map(|interface| InterfaceMatch { name: interface.name.clone(), negated: false });
        let mut rules: Vec<_> = std::iter::once(loopback).chain(but).map(|name| rule(Some(name), PacketVerdict::Return)).collect();
        if named.is_empty() {
            rules.push(rule(None, PacketVerdict::Dnat(target)));
        }
        rules.extend(named.into_iter().map(|interface| rule(Some(interface.clone()), PacketVerdict::Dnat(target))));
        rules
    }

    fn direct(&self, family: Family) -> Vec<Rule> {
        let Some(targets) = self.targets.filter(|targets| targets.refuse_direct) else { return Vec::new() };
        // The port is one for both families, and open in both, whatever is redirected.
        let not_loopback = InterfaceMatch { name: LOOPBACK.to_owned(), negated: true };
        let matches = vec![Match::Interface(not_loopback), Match::TcpPort(targets.ipv4.port()), Match::NotOpenedTo(family.metadata())];
        vec![Rule { family, matches, verdict: PacketVerdict::Drop }]
    }
}

fn guard(family: Family) -> Vec<Rule> {
    let to = Match::To(family.metadata());
    vec![
        Rule { family, matches: vec![to.clone(), Match::Tcp], verdict: PacketVerdict::Reset },
        Rule { family, matches: vec![to], verdict: PacketVerdict::Reject },
    ]
}

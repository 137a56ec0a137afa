//! The wanted packet rules as data: pure, and independent of the program that loads them.
//!
//! There are seven kinds of rules, by purpose:
//!
//! - **redirect**, where packets enter the node and their destination can be changed: TCP to port 80 of the metadata address
//!   goes to the daemon, from every interface except the node's own loopback;
//! - **guard**, where packets are forwarded from one interface to another: whatever still goes to a metadata address, on any
//!   port and protocol, is rejected;
//! - **backstop**, at the same hook and after the guard: what passed the guard because another program's rule ahead of it
//!   accepted the packet is dropped. A backend whose guard cannot be bypassed needs none;
//! - **direct**, where packets arrive for the node itself: a connection to the app port that was not redirected from the
//!   metadata address is dropped;
//! - **exit**, where packets leave the node: a packet to a metadata address whose source address is not one of the node's own
//!   is dropped. It stops packets that are not forwarded, or have another destination while they are: those that a process of
//!   the node sends from a pod's address (a transparent proxy), and source-routed ones, whose next destination is set after the
//!   guard's hook;
//! - **pin**, where the node's own processes open connections: TCP to a metadata address keeps its destination, whatever another
//!   program's rules say. A Service whose external IP is the metadata address would otherwise redirect the daemon's own
//!   requests to a pod;
//! - **keep**, where packets enter the node and where its own processes open connections: TCP straight to the daemon keeps its
//!   destination, whatever another program's rules say. A Service or a host port with this address and port would otherwise take
//!   pods' requests. That applies to the daemon's address and port if BPF programs send pods' connections there, and to the
//!   addresses of Pod Identity.
//!
//! The addresses of Pod Identity belong to this node. Nothing that is sent to them may leave it, for example while such an address is
//! missing: the guard and the backstop apply to them as to the metadata address, and the exit drops every packet to them that leaves the
//! node, whatever its source. The rule direct closes them to interfaces without pods, as far as these are known.
//!
//! Packets of the node's own processes pass the exit, the pin and the keep rules unchanged, unless they leave the node for an address of
//! Pod Identity, and meet no other of these rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::config::InterfaceMatch;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6, METADATA_PORT};

/// The node's own loopback interface, which no pod uses.
pub const LOOPBACK: &str = "lo";

/// The packet rules that the node is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The interfaces on which pods' requests arrive: only the named ones, or all but the negated ones. Empty means all. The
    /// guard applies to all interfaces.
    pub interfaces: Vec<InterfaceMatch>,
    /// Where requests are sent. `None` means the guard alone: pods' requests are rejected.
    pub targets: Option<Targets>,
    /// The addresses at which the daemon serves Pod Identity. Empty without it: the rules then ignore these addresses, which another
    /// program of the node may serve.
    pub pod_identity: BTreeSet<SocketAddr>,
}

/// The addresses that requests are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// An IPv4 address of this node and the app port. Without it, as on a node that has none, requests to the metadata service's IPv4
    /// address are rejected.
    pub ipv4: Option<SocketAddrV4>,
    /// An IPv6 address of this node and the app port. Without it, requests to the metadata service's IPv6 address are rejected.
    pub ipv6: Option<SocketAddrV6>,
    /// What happens to connections that were opened to these addresses themselves.
    pub direct: DirectConnections,
}

/// What happens to connections straight to the daemon's address and the app port, which no packet rule of rolegate redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectConnections {
    /// They are dropped.
    Dropped,
    /// They reach the daemon, which is configured to serve them, unless rules of other programs redirect them.
    Accepted,
    /// They reach the daemon, and rules of other programs cannot redirect them: BPF programs send pods' connections there.
    Kept,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The point in a packet's path through the kernel at which a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing, where destinations can be changed (NAT).
    Redirect,
    /// Where packets are forwarded between interfaces.
    Guard,
    /// Where packets are forwarded, after the filters of all other programs.
    Backstop,
    /// Where packets are delivered to a socket of the node.
    Direct,
    /// Where packets leave the node, before their source address can be changed (NAT).
    Exit,
    /// Where the node's own processes send packets, and destinations can be changed (NAT).
    Pin,
    /// At the point of `Redirect`, for connections straight to the daemon.
    KeepIncoming,
    /// At the point of `Pin`, for connections straight to the daemon.
    KeepOutgoing,
}

/// One rule: a packet that satisfies every match gets the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The packets' family.
    pub family: Family,
    /// The matches, all of which the packet has to satisfy.
    pub matches: Vec<Match>,
    /// What happens to the packet.
    pub verdict: PacketVerdict,
}

/// A property of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet's destination is this address.
    To(IpAddr),
    /// The packet is TCP.
    Tcp,
    /// The packet is TCP to this port.
    TcpPort(u16),
    /// The packet arrived on this interface or, if negated, on any other.
    Interface(InterfaceMatch),
    /// The packet's connection was opened to an address other than this one.
    NotOpenedTo(IpAddr),
    /// No interface of the node has the packet's source address.
    NotFromNode,
    /// The packet does not leave through the node's own loopback interface.
    NotOverLoopback,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketVerdict {
    /// The connection is redirected to this address.
    Dnat(SocketAddr),
    /// The connection keeps this destination, which it has already. The kernel sets up destination NAT once for each connection,
    /// so later rules cannot redirect it.
    Keep(IpAddr),
    /// The remaining rules of this hook do not apply.
    Return,
    /// The sender gets a TCP reset: the connection is refused.
    Reset,
    /// The sender gets an ICMP error.
    Reject,
    /// The packet is discarded without an answer.
    Drop,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns the metadata service's address in this family.
    pub const fn metadata(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(METADATA_IPV4),
            Self::V6 => IpAddr::V6(METADATA_IPV6),
        }
    }
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 8] =
        [Self::Redirect, Self::Guard, Self::Backstop, Self::Direct, Self::Exit, Self::Pin, Self::KeepIncoming, Self::KeepOutgoing];
}

impl Targets {
    /// Returns the app port, which is one for both families; 0 without any address.
    pub fn port(&self) -> u16 {
        let ipv6 = self.ipv6.map(|ipv6| ipv6.port());
        self.ipv4.map(|ipv4| ipv4.port()).or(ipv6).unwrap_or_default()
    }
}

impl RuleSet {
    /// Returns the rules that apply before the targets are known, and while no daemon is to serve requests.
    pub const fn guard_alone() -> Self {
        Self { interfaces: Vec::new(), targets: None, pod_identity: BTreeSet::new() }
    }

    /// Returns the addresses to which connections must not be redirected by others: those of the daemon, if BPF programs send pods'
    /// connections straight there, and those of Pod Identity.
    pub fn kept_addresses(&self) -> Vec<SocketAddr> {
        Family::ALL.into_iter().filter_map(|family| self.kept_target(family)).chain(self.pod_identity.iter().copied()).collect()
    }

    /// Returns the daemon's address of a family, if BPF programs send pods' connections straight there.
    fn kept_target(&self, family: Family) -> Option<SocketAddr> {
        let is_kept = self.targets.is_some_and(|targets| targets.direct == DirectConnections::Kept);
        self.target(family).filter(|_| is_kept)
    }

    /// Returns the addresses of Pod Identity of a family that the daemon assigns to the node. The kernel itself forwards nothing to
    /// loopback addresses.
    fn assigned(&self, family: Family) -> BTreeSet<IpAddr> {
        let of_family = self.pod_identity.iter().map(SocketAddr::ip).filter(|ip| Family::of(*ip) == family);
        of_family.filter(|ip| !ip.is_loopback()).collect()
    }

    /// Returns the addresses to which a family's packets must not be forwarded: that of the metadata service first.
    pub(super) fn guarded(&self, family: Family) -> Vec<IpAddr> {
        std::iter::once(family.metadata()).chain(self.assigned(family)).collect()
    }

    /// Returns the rules of a hook for a family, in their order.
    pub fn rules(&self, hook: Hook, family: Family) -> Vec<Rule> {
        match hook {
            Hook::Redirect => self.redirect(family),
            Hook::Guard => self.guarded(family).into_iter().flat_map(|ip| guard(family, ip)).collect(),
            Hook::Backstop => {
                let drop = |ip| Rule { family, matches: vec![Match::To(ip)], verdict: PacketVerdict::Drop };
                self.guarded(family).into_iter().map(drop).collect()
            }
            Hook::Direct => self.direct(family),
            Hook::Exit => self.exit(family),
            Hook::Pin => vec![pin(family)],
            Hook::KeepIncoming | Hook::KeepOutgoing => self.keep(family),
        }
    }

    fn target(&self, family: Family) -> Option<SocketAddr> {
        let targets = self.targets?;
        match family {
            Family::V4 => targets.ipv4.map(SocketAddr::from),
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
        let mut rules = Vec::new();
        if let Some(targets) = self.targets.filter(|targets| targets.direct == DirectConnections::Dropped) {
            // The port is the same for both families and open in both, whatever is redirected.
            let matches = vec![not_loopback(), Match::TcpPort(targets.port()), Match::NotOpenedTo(family.metadata())];
            rules.push(Rule { family, matches, verdict: PacketVerdict::Drop });
        }
        let of_family = self.pod_identity.iter().filter(|address| Family::of(address.ip()) == family);
        rules.extend(of_family.flat_map(|address| self.closed_to_others(family, *address)));
        rules
    }

    /// Returns the rules that close an address of Pod Identity to interfaces that have no pods. A loopback address is closed to all of
    /// them: with `route_localnet`, which kube-proxy turns on, the kernel delivers packets from other machines to it.
    fn closed_to_others(&self, family: Family, address: SocketAddr) -> Vec<Rule> {
        let rule = |interface: Match, verdict| Rule {
            family,
            matches: vec![interface, Match::To(address.ip()), Match::TcpPort(address.port())],
            verdict,
        };
        if address.ip().is_loopback() {
            return vec![rule(not_loopback(), PacketVerdict::Drop)];
        }
        let (without, with): (Vec<_>, Vec<_>) = self.interfaces.iter().partition(|interface| interface.negated);
        let plain = |interface: &InterfaceMatch| Match::Interface(InterfaceMatch { name: interface.name.clone(), negated: false });
        let mut rules: Vec<_> = without.into_iter().map(|interface| rule(plain(interface), PacketVerdict::Drop)).collect();
        if !with.is_empty() {
            rules.extend(with.into_iter().map(|interface| rule(plain(interface), PacketVerdict::Return)));
            rules.push(rule(not_loopback(), PacketVerdict::Drop));
        }
        rules
    }

    /// A process of the node that sends a pod's packet onward does so with the pod's address, so the source address says whose packet
    /// it is. That is true only before source NAT, which gives pods' packets an address of the node: backends apply this rule ahead
    /// of it. Applied once more after it, the rule would only judge what another program chose as the source.
    fn exit(&self, family: Family) -> Vec<Rule> {
        let rule = |ip, one| Rule { family, matches: vec![Match::To(ip), one], verdict: PacketVerdict::Drop };
        let metadata = rule(family.metadata(), Match::NotFromNode);
        std::iter::once(metadata).chain(self.assigned(family).into_iter().map(|ip| rule(ip, Match::NotOverLoopback))).collect()
    }

    fn keep(&self, family: Family) -> Vec<Rule> {
        let of_family = self.pod_identity.iter().copied().filter(|address| Family::of(address.ip()) == family);
        let kept = self.kept_target(family).into_iter().chain(of_family);
        let keep = |address: SocketAddr| {
            let matches = vec![Match::To(address.ip()), Match::TcpPort(address.port())];
            Rule { family, matches, verdict: PacketVerdict::Keep(address.ip()) }
        };
        kept.map(keep).collect()
    }
}

fn guard(family: Family, ip: IpAddr) -> [Rule; 2] {
    let to = Match::To(ip);
    [
        Rule { family, matches: vec![to.clone(), Match::Tcp], verdict: PacketVerdict::Reset },
        Rule { family, matches: vec![to], verdict: PacketVerdict::Reject },
    ]
}

/// Returns the match on packets that arrive on another interface than the node's own loopback.
pub(super) fn not_loopback() -> Match {
    Match::Interface(InterfaceMatch { name: LOOPBACK.to_owned(), negated: true })
}

fn pin(family: Family) -> Rule {
    let address = family.metadata();
    Rule { family, matches: vec![Match::To(address), Match::Tcp], verdict: PacketVerdict::Keep(address) }
}

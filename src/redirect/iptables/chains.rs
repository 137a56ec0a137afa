//! Our chains, their rules and the jumps to them, in iptables syntax. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::InterfaceMatch;
use crate::metadata_service::METADATA_PORT;
use crate::redirect::rules::{Family, Hook, LOOPBACK, Match, PacketVerdict, Rule, RuleSet, not_loopback};

/// A table of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelTable {
    /// Whether packets may pass.
    Filter,
    /// Where connections are sent.
    Nat,
    /// What comes after all filters, mostly labels of Linux security modules.
    Security,
    /// What changes packets before all filters.
    Mangle,
}

impl KernelTable {
    /// The tables that can hold rules of rolegate.
    pub(super) const ALL: [Self; 4] = [Self::Filter, Self::Nat, Self::Security, Self::Mangle];

    /// Returns the table's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Security => "security",
            Self::Mangle => "mangle",
        }
    }
}

/// The hooks in the order in which their rules are installed, the guard first.
pub(super) const ORDER: [Hook; 8] =
    [Hook::Guard, Hook::Backstop, Hook::Direct, Hook::Exit, Hook::Pin, Hook::KeepOutgoing, Hook::KeepIncoming, Hook::Redirect];

/// A chain of ours, and the jump to it at the head of a chain of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The table, and the names of both chains.
    pub(super) place: ChainPosition,
    /// What the jump matches, without its target; empty for all packets.
    pub(super) entry: String,
    /// The chain's rules; empty if the chain must not exist.
    pub(super) rules: Vec<String>,
}

/// The position of a hook's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainPosition {
    /// The table.
    pub(super) table: KernelTable,
    /// The kernel's chain, which has the jump.
    pub(super) from: &'static str,
    /// Our chain.
    pub(super) chain: &'static str,
}

impl ChainPosition {
    /// Returns the position of a hook's chain. `backstop` is the table in which this kernel can have the backstop: `security`,
    /// which comes after `filter`, so that a sender whose packet the guard rejects is notified at once; or `mangle`, which
    /// comes before, if the kernel has no `security`.
    pub(super) const fn of(hook: Hook, backstop: KernelTable) -> Self {
        match hook {
            Hook::Backstop => Self { table: backstop, from: "FORWARD", chain: "ROLEGATE-BACKSTOP" },
            Hook::Guard => Self { table: KernelTable::Filter, from: "FORWARD", chain: "ROLEGATE-GUARD" },
            Hook::Direct => Self { table: KernelTable::Filter, from: "INPUT", chain: "ROLEGATE-DIRECT" },
            Hook::Redirect => Self { table: KernelTable::Nat, from: "PREROUTING", chain: "ROLEGATE" },
            // The table `nat` cannot drop, and comes too late: after it, a pod's packet may have an address of the node.
            Hook::Exit => Self { table: KernelTable::Mangle, from: "POSTROUTING", chain: "ROLEGATE-EXIT" },
            Hook::Pin => Self { table: KernelTable::Nat, from: "OUTPUT", chain: "ROLEGATE-PIN" },
            Hook::KeepIncoming => Self { table: KernelTable::Nat, from: "PREROUTING", chain: "ROLEGATE-KEEP-IN" },
            Hook::KeepOutgoing => Self { table: KernelTable::Nat, from: "OUTPUT", chain: "ROLEGATE-KEEP-OUT" },
        }
    }

    /// Returns every position at which rolegate may have rules, in the order of removal: requests stop arriving before the
    /// guard is removed.
    pub(super) fn all() -> [Self; 9] {
        let of = |hook| Self::of(hook, KernelTable::Security);
        let in_mangle = Self::of(Hook::Backstop, KernelTable::Mangle);
        [
            of(Hook::Redirect),
            of(Hook::KeepIncoming),
            of(Hook::KeepOutgoing),
            of(Hook::Pin),
            of(Hook::Direct),
            of(Hook::Guard),
            in_mangle,
            of(Hook::Exit),
            of(Hook::Backstop),
        ]
    }
}

impl Chain {
    /// Returns the chain that one hook is to have for a family.
    pub(super) fn wanted(rules: &RuleSet, hook: Hook, family: Family, backstop: KernelTable) -> Self {
        let wanted = rules.rules(hook, family);
        // Every packet of the node is compared with these matches, and most packets with nothing else.
        let entry = match (hook, &wanted[..]) {
            (Hook::Guard | Hook::Backstop | Hook::Exit, _) => network_of_all(&rules.guarded(family)),
            (Hook::Pin, _) => format!("{} {}", match_words(&Match::To(family.metadata())), match_words(&Match::Tcp)),
            (Hook::Redirect, _) => {
                format!("{} {}", match_words(&Match::To(family.metadata())), match_words(&Match::TcpPort(METADATA_PORT)))
            }
            // Without rules, the chain and the jump must not exist.
            (Hook::KeepIncoming | Hook::KeepOutgoing | Hook::Direct, []) => String::new(),
            (Hook::KeepIncoming | Hook::KeepOutgoing, [only]) => only.matches.iter().map(match_words).collect::<Vec<_>>().join(" "),
            (Hook::KeepIncoming | Hook::KeepOutgoing, _) => match_words(&Match::Tcp),
            (Hook::Direct, wanted) => {
                let mut ports = wanted.iter().flat_map(|rule| &rule.matches).filter(|one| matches!(one, Match::TcpPort(_)));
                let first = ports.next();
                let tcp = first.filter(|first| ports.all(|port| port == *first)).unwrap_or(&Match::Tcp);
                [not_loopback(), tcp.clone()].each_ref().map(match_words).join(" ")
            }
        };
        Self { place: ChainPosition::of(hook, backstop), entry, rules: wanted.iter().map(rule_words).collect() }
    }

    /// Returns the jump, without the chain that it is in.
    pub(super) fn jump(&self) -> String {
        format!("{} -j {}", self.entry, self.place.chain).trim_start().to_owned()
    }
}

fn rule_words(rule: &Rule) -> String {
    let mut words: Vec<_> = rule.matches.iter().map(match_words).collect();
    words.push(match rule.verdict {
        PacketVerdict::Dnat(target) => format!("-j DNAT --to-destination {target}"),
        PacketVerdict::Keep(address) => format!("-j DNAT --to-destination {address}"),
        PacketVerdict::Return => "-j RETURN".to_owned(),
        PacketVerdict::Reset => "-j REJECT --reject-with tcp-reset".to_owned(),
        PacketVerdict::Reject => match rule.family {
            Family::V4 => "-j REJECT --reject-with icmp-port-unreachable".to_owned(),
            Family::V6 => "-j REJECT --reject-with icmp6-port-unreachable".to_owned(),
        },
        PacketVerdict::Drop => "-j DROP".to_owned(),
    });
    words.join(" ")
}

fn match_words(one: &Match) -> String {
    match one {
        Match::To(ip) => format!("-d {}", host(*ip)),
        Match::Tcp => "-p tcp".to_owned(),
        Match::TcpPort(port) => format!("-p tcp -m tcp --dport {port}"),
        Match::Interface(InterfaceMatch { name, negated }) => format!("{}-i {name}", if *negated { "! " } else { "" }),
        Match::NotOpenedTo(ip) => format!("-m conntrack ! --ctorigdst {}", host(*ip)),
        Match::NotFromNode => "-m addrtype ! --src-type LOCAL".to_owned(),
        Match::NotOverLoopback => format!("! -o {LOOPBACK}"),
    }
}

/// Returns the match on the smallest network that has all of these addresses, which are of one family; empty if it is everything.
fn network_of_all(ips: &[IpAddr]) -> String {
    // IPv4 addresses are compared from the same end as IPv6 addresses.
    let bits = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let Some((first, rest)) = ips.split_first() else { return String::new() };
    let longest = if first.is_ipv4() { 32 } else { 128 };
    let length = rest.iter().map(|ip| (bits(ip) ^ bits(first)).leading_zeros()).min().unwrap_or(longest).min(longest);
    if length == 0 {
        return String::new();
    }
    let network = bits(first) & (u128::MAX << (128 - length));
    let network = match first {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits((network >> 96) as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(network)),
    };
    format!("-d {network}/{length}")
}

fn host(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

//! Our chains, their rules and the jumps to them, in the words of `iptables`: pure.

use std::net::IpAddr;

use crate::config::InterfaceMatch;
use crate::metadata_service::METADATA_PORT;
use crate::redirect::rules::{Family, Hook, LOOPBACK, Match, PacketVerdict, Rule, RuleSet};

/// A table of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelTable {
    /// Whether packets may pass.
    Filter,
    /// Where connections go.
    Nat,
    /// What comes after all filters: labels of Linux' security modules, mostly.
    Security,
    /// What is changed about packets, before all filters.
    Mangle,
}

impl KernelTable {
    /// Those that can hold something of ours.
    pub(super) const ALL: [Self; 4] = [Self::Filter, Self::Nat, Self::Security, Self::Mangle];

    /// Its name for the program.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Security => "security",
            Self::Mangle => "mangle",
        }
    }
}

/// The hooks in the order in which they are put in: the guard before all else.
pub(super) const ORDER: [Hook; 4] = [Hook::Guard, Hook::Backstop, Hook::Direct, Hook::Redirect];

/// A chain of ours, and the jump to it at the head of a chain of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// Where both are, and how they are called.
    pub(super) place: ChainPosition,
    /// What the jump matches, without its target.
    pub(super) entry: String,
    /// The chain's rules; none where there is to be no such chain.
    pub(super) rules: Vec<String>,
}

/// Where the chain of a hook is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainPosition {
    /// The table.
    pub(super) table: KernelTable,
    /// The kernel's chain.
    pub(super) from: &'static str,
    /// Ours.
    pub(super) chain: &'static str,
}

impl ChainPosition {
    /// `backstop` is the table that the kernel can have the backstop in. It is `security`, which comes after `filter`, so that
    /// what the guard rejects hears of it at once; without that, `mangle`, which comes before.
    pub(super) const fn of(hook: Hook, backstop: KernelTable) -> Self {
        match hook {
            Hook::Backstop => Self { table: backstop, from: "FORWARD", chain: "ROLEGATE-BACKSTOP" },
            Hook::Guard => Self { table: KernelTable::Filter, from: "FORWARD", chain: "ROLEGATE-GUARD" },
            Hook::Direct => Self { table: KernelTable::Filter, from: "INPUT", chain: "ROLEGATE-DIRECT" },
            Hook::Redirect => Self { table: KernelTable::Nat, from: "PREROUTING", chain: "ROLEGATE" },
        }
    }

    /// Every one that can have something of ours, in the order in which requests stop coming here and the guard goes.
    pub(super) fn all() -> [Self; 5] {
        let of = |hook| Self::of(hook, KernelTable::Security);
        [of(Hook::Redirect), of(Hook::Direct), of(Hook::Guard), of(Hook::Backstop), Self::of(Hook::Backstop, KernelTable::Mangle)]
    }
}

impl Chain {
    /// What one hook is to have for a family.
    pub(super) fn wanted(rules: &RuleSet, hook: Hook, family: Family, backstop: KernelTable) -> Self {
        let to_metadata = match_words(&Match::To(family.metadata()));
        // Every packet of the node meets these, and most of them only these.
        let entry = match hook {
            Hook::Guard | Hook::Backstop => to_metadata,
            Hook::Redirect => format!("{to_metadata} {}", match_words(&Match::TcpPort(METADATA_PORT))),
            Hook::Direct => {
                let port = rules.targets.map_or(0, |targets| targets.ipv4.port());
                let not_loopback = InterfaceMatch { name: LOOPBACK.to_owned(), negated: true };
                [Match::Interface(not_loopback), Match::TcpPort(port)].each_ref().map(match_words).join(" ")
            }
        };
        Self { place: ChainPosition::of(hook, backstop), entry, rules: rules.rules(hook, family).iter().map(rule_words).collect() }
    }

    /// The jump, without the chain that it is in.
    pub(super) fn jump(&self) -> String {
        format!("{} -j {}", self.entry, self.place.chain)
    }
}

fn rule_words(rule: &Rule) -> String {
    let mut words: Vec<_> = rule.matches.iter().map(match_words).collect();
    words.push(match rule.verdict {
        PacketVerdict::Dnat(target) => format!("-j DNAT --to-destination {target}"),
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
    }
}

fn host(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

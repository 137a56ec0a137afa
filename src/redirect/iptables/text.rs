//! The wanted rules in the words of `iptables`: pure.

use std::net::IpAddr;

use super::listing::{IptablesListing, KernelTable};
use crate::config::InterfaceMatch;
use crate::metadata_service::METADATA_PORT;
use crate::redirect::rules::{Family, Hook, LOOPBACK, Match, PacketVerdict, Rule, RuleSet};

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

/// What `iptables-restore --noflush` reads to make these the rules of a family, given what is there.
///
/// Each table is one transaction, and filter is the first: the guard is there before requests are sent anywhere, also where
/// a later table is refused. Naming a
/// chain empties it; jumps that are there are taken out and one is put in at the head within the same transaction, so that
/// there is no moment without.
pub(super) fn install(rules: &RuleSet, family: Family, present: &IptablesListing) -> String {
    let chains = ORDER.map(|hook| Chain::wanted(rules, hook, family, present.backstop));
    tables([KernelTable::Filter, KernelTable::Security, KernelTable::Mangle, KernelTable::Nat], |table| {
        chains.iter().filter(|chain| chain.place.table == table).flat_map(|chain| change(chain, present)).collect()
    })
}

/// What it reads to take away our chains and every jump to them; nothing where there are none. Requests stop
/// coming here before the guard goes.
pub(super) fn remove(present: &IptablesListing) -> String {
    let places = ChainPosition::all();
    tables([KernelTable::Nat, KernelTable::Filter, KernelTable::Mangle, KernelTable::Security], |table| {
        places.iter().filter(|place| place.table == table).flat_map(|place| removal(*place, present)).collect()
    })
}

fn tables(order: [KernelTable; 4], lines: impl Fn(KernelTable) -> Vec<String>) -> String {
    let mut text = String::new();
    for table in order {
        let lines = lines(table);
        if !lines.is_empty() {
            text.push_str(&format!("*{}\n{}\nCOMMIT\n", table.name(), lines.join("\n")));
        }
    }
    text
}

fn change(chain: &Chain, present: &IptablesListing) -> Vec<String> {
    if chain.rules.is_empty() {
        return removal(chain.place, present);
    }
    let ChainPosition { table, from, chain: name } = chain.place;
    let mut lines = vec![format!(":{name} - [0:0]")];
    lines.extend(chain.rules.iter().map(|rule| format!("-A {name} {rule}")));
    lines.extend(present.jumps(table, name).map(|jump| jump.deletion()));
    lines.push(format!("-I {from} 1 {}", chain.jump()));
    lines
}

fn removal(place: ChainPosition, present: &IptablesListing) -> Vec<String> {
    let mut lines: Vec<_> = present.jumps(place.table, place.chain).map(|jump| jump.deletion()).collect();
    if present.has_chain(place.table, place.chain) {
        lines.extend([format!("-F {}", place.chain), format!("-X {}", place.chain)]);
    }
    lines
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

//! Renders the rules for `nft -f`.

use std::net::IpAddr;

use super::chains::{ChainHook, TABLE, pattern, rules_of};
use crate::redirect::rules::{Hook, LOOPBACK, Match, PacketVerdict, Rule, RuleSet};

/// Renders one transaction that replaces our table, whatever it held. Only an existing table can be deleted, so it is added
/// first.
pub(super) fn render(rules: &RuleSet) -> String {
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for hook in Hook::ALL {
        let rules = rules_of(rules, hook);
        let Some(ChainHook { chain, kind, hook, priority }) = ChainHook::of(hook).filter(|_| !rules.is_empty()) else { continue };
        text.push_str(&format!("\tchain {chain} {{\n\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n"));
        for rule in rules {
            text.push_str(&format!("\t\t{}\n", self::rule(&rule)));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

fn rule(rule: &Rule) -> String {
    let mut words: Vec<_> = rule.matches.iter().map(one_match).collect();
    words.push(verdict(rule.verdict));
    words.join(" ")
}

fn one_match(one: &Match) -> String {
    match one {
        Match::To(ip) => format!("{} daddr {ip}", protocol(*ip)),
        Match::Tcp => "meta l4proto tcp".to_owned(),
        Match::TcpPort(port) => format!("tcp dport {port}"),
        Match::Interface(interface) => {
            let operator = if interface.negated { "!= " } else { "" };
            format!("iifname {operator}\"{}\"", pattern(&interface.name))
        }
        Match::NotOpenedTo(ip) => format!("ct original {} daddr != {ip}", protocol(*ip)),
        Match::NotFromNode => "fib saddr type != local".to_owned(),
        Match::NotOverLoopback => format!("oifname != \"{LOOPBACK}\""),
    }
}

fn verdict(verdict: PacketVerdict) -> String {
    match verdict {
        PacketVerdict::Dnat(target) => format!("dnat {} to {target}", protocol(target.ip())),
        PacketVerdict::Keep(address) => format!("dnat {} to {address}", protocol(address)),
        PacketVerdict::Return => "return".to_owned(),
        PacketVerdict::Reset => "reject with tcp reset".to_owned(),
        // "Port unreachable" in the packet's family.
        PacketVerdict::Reject => "reject".to_owned(),
        PacketVerdict::Drop => "drop".to_owned(),
    }
}

/// Returns the name of the family's protocol.
pub(super) const fn protocol(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

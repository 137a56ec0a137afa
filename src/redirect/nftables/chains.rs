//! Maps each hook to the chain of our table that holds its rules.

use crate::config::InterfaceMatch;
use crate::redirect::rules::{Family, Hook, Match, Rule, RuleSet};

/// The name of our table, in the family `inet`.
pub const TABLE: &str = "rolegate";
/// How far ahead of iptables our chains are. The chains of both iptables flavours are at -100 (destination NAT) and at 0
/// (filters).
pub(super) const AHEAD: i32 = -10;
/// The priority `dstnat`, at which iptables has its destination NAT.
pub const DESTINATION_NAT: i32 = -100;
/// The priority of our NAT chains.
pub const OUR_NAT: i32 = DESTINATION_NAT + AHEAD;
/// The priority `srcnat`, at which every program's source NAT takes place, whatever the priorities of their chains are.
const SOURCE_NAT: i32 = 100;

/// A chain of our table, and where it is attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainHook {
    /// The chain's name. `redirect` and `fwd` are keywords of nft's language and cannot be names.
    pub(super) chain: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: &'static str,
    pub(super) priority: i32,
}

impl ChainHook {
    /// Returns `None` for the backstop: an accept in another chain has no effect on ours, so there is nothing for a backstop to
    /// catch.
    pub(super) const fn of(hook: Hook) -> Option<Self> {
        Some(match hook {
            Hook::Redirect => Self { chain: "redirection", kind: "nat", hook: "prerouting", priority: OUR_NAT },
            Hook::Guard => Self { chain: "guard", kind: "filter", hook: "forward", priority: AHEAD },
            Hook::Direct => Self { chain: "direct", kind: "filter", hook: "input", priority: AHEAD },
            // After everything that changes packets, and before source NAT gives pods' packets an address of the node.
            Hook::Exit => Self { chain: "exit", kind: "filter", hook: "postrouting", priority: SOURCE_NAT + AHEAD },
            Hook::Pin => Self { chain: "pin", kind: "nat", hook: "output", priority: OUR_NAT },
            Hook::KeepIncoming => Self { chain: "keep_incoming", kind: "nat", hook: "prerouting", priority: OUR_NAT },
            Hook::KeepOutgoing => Self { chain: "keep_outgoing", kind: "nat", hook: "output", priority: OUR_NAT },
            Hook::Backstop => return None,
        })
    }
}

/// Returns the rules of a hook for both families, without matches on every interface, for which nft's language has no pattern.
pub(super) fn rules_of(rules: &RuleSet, hook: Hook) -> Vec<Rule> {
    let every = |m: &Match, but: bool| matches!(m, Match::Interface(InterfaceMatch { name, negated }) if name == "+" && *negated == but);
    let both = Family::ALL.into_iter().flat_map(|family| rules.rules(hook, family));
    let possible = both.filter(|rule| !rule.matches.iter().any(|m| every(m, true)));
    possible.map(|rule| Rule { matches: rule.matches.into_iter().filter(|m| !every(m, false)).collect(), ..rule }).collect()
}

/// Returns an interface name in nft's syntax. A trailing `+` of iptables becomes a trailing `*`, and a literal trailing `*` is
/// escaped with a backslash. Elsewhere in a name neither is special.
pub(super) fn pattern(name: &str) -> String {
    match (name.strip_suffix('+'), name.strip_suffix('*')) {
        (Some(prefix), _) => format!("{prefix}*"),
        (None, Some(start)) => format!("{start}\\*"),
        (None, None) => name.to_owned(),
    }
}

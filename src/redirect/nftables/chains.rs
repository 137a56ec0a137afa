//! Which chains of our table hold the rules of each hook.

use crate::config::InterfaceMatch;
use crate::redirect::rules::{Family, Hook, Match, Rule, RuleSet};

/// Our table's name, in the family `inet`.
pub const TABLE: &str = "rolegate";
/// Before iptables' own, which are at -100 (NAT of destinations) and at 0 (filters), in either flavour.
pub(super) const AHEAD: i32 = -10;
/// Where destinations are changed: `dstnat`, where those of iptables are.
pub const DESTINATION_NAT: i32 = -100;
/// Where our chain of NAT is.
pub const OUR_NAT: i32 = DESTINATION_NAT + AHEAD;

/// What a chain of ours is.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainHook {
    /// Its name. `redirect` and `fwd` cannot be: they are words of the language.
    pub(super) chain: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: &'static str,
    pub(super) priority: i32,
}

impl ChainHook {
    /// `None` for the backstop: an accept of another chain has no say here, so there is nothing that it would catch.
    pub(super) const fn of(hook: Hook) -> Option<Self> {
        Some(match hook {
            Hook::Redirect => Self { chain: "redirection", kind: "nat", hook: "prerouting", priority: OUR_NAT },
            Hook::Guard => Self { chain: "guard", kind: "filter", hook: "forward", priority: AHEAD },
            Hook::Direct => Self { chain: "direct", kind: "filter", hook: "input", priority: AHEAD },
            Hook::Backstop => return None,
        })
    }
}

/// The rules of a hook, of both families, without what goes without saying: the language has no pattern for every interface.
pub(super) fn rules_of(rules: &RuleSet, hook: Hook) -> Vec<Rule> {
    let every = |m: &Match, but: bool| matches!(m, Match::Interface(InterfaceMatch { name, negated }) if name == "+" && *negated == but);
    let both = Family::ALL.into_iter().flat_map(|family| rules.rules(hook, family));
    let possible = both.filter(|rule| !rule.matches.iter().any(|m| every(m, true)));
    possible.map(|rule| Rule { matches: rule.matches.into_iter().filter(|m| !every(m, false)).collect(), ..rule }).collect()
}

/// An interface's name as the language has it. iptables' closing `+` is a closing `*` there, and a name that ends with that
/// itself has a backslash before it; elsewhere in a name neither means anything.
pub(super) fn pattern(name: &str) -> String {
    match (name.strip_suffix('+'), name.strip_suffix('*')) {
        (Some(prefix), _) => format!("{prefix}*"),
        (None, Some(start)) => format!("{start}\\*"),
        (None, None) => name.to_owned(),
    }
}

//! The routing rules: a second lock behind the packet rules, which no flush of a firewall removes.
//!
//! The kernel looks for a route in an order that routing rules decide (`ip rule`). rolegate adds rules that prohibit the route to a
//! metadata address for every packet that the node itself did not send. A pod's request that the packet rules redirect has another
//! destination by then, so it meets none of them: destinations are changed before the kernel looks for a route.
//!
//! These are the rules of a family, in their order:
//!
//! ```text
//! 0:  from all to 169.254.169.254 iif lo goto 1        the node's own packets: on with the rules of others
//! 0:  from all to 169.254.169.254 iif lo lookup main   the same, if somebody deleted the rule with preference 1
//! 0:  from all to 169.254.169.254 prohibit             all other packets
//! 1:  from all to 169.254.169.254 iif lo nop           where the first one goes on
//! ```
//!
//! - `iif lo` matches packets of the node's own processes, pods in the host's network included: they have no other input interface
//!   (`ip_route_output_key_hash`, `ip6_route_output_flags`).
//! - The first rule goes on instead of looking in the table `main`, because the node's own packets may have to take another table:
//!   that of a rule for a mark, for a source address or for a VRF. Whatever routed them before routes them still.
//! - The preference is 0, because nothing that others add later comes before that: rules of one preference are tried in the order in
//!   which they were added. The only rule there is usually the kernel's own, for addresses of the node itself. `ip rule flush` leaves
//!   rules of preference 0 in place. It deletes the target of the first rule, whose place the second rule takes then.
//!
//! rolegate recognizes its rules by their protocol number, which no other program uses ([`PROTOCOL`]).

use std::fmt;
use std::io;
use std::net::IpAddr;

use super::rules::{Family, LOOPBACK};
use crate::netlink::rule::{ListedRule, PolicyRule, RuleAction};

pub mod keeper;
pub mod node;
#[cfg(test)]
mod tests;

/// The protocol number of rolegate's routing rules. Neither iproute2's list (`/etc/iproute2/rt_protos`) nor a CNI plugin has it.
pub const PROTOCOL: u8 = 169;
/// The preference of the rules that decide about packets.
const PREFERENCE: u32 = 0;
/// The preference at which the node's own packets go on. The kernel only goes forward.
const NEXT: u32 = PREFERENCE + 1;
/// The kernel's table for addresses of the node itself, whose rule has preference 0 as well.
const TABLE_LOCAL: u32 = 255;
/// The kernel's main table.
const TABLE_MAIN: u32 = 254;

/// What one of the rules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Where the node's own packets go on.
    Target,
    /// The node's own packets go on with the rules of others.
    Own,
    /// The node's own packets go on, if the target is missing.
    OwnWithoutTarget,
    /// All other packets are refused.
    Others,
}

impl Part {
    /// All parts, in the order in which they have to be added: the node's own packets always have a way.
    const ALL: [Self; 4] = [Self::Target, Self::Own, Self::OwnWithoutTarget, Self::Others];
    /// The parts whose order among each other matters.
    const ORDERED: [Self; 3] = [Self::Own, Self::OwnWithoutTarget, Self::Others];

    fn rule(self, family: Family) -> PolicyRule {
        let (preference, arrived_on, action) = match self {
            Self::Target => (NEXT, Some(LOOPBACK), RuleAction::Nothing),
            Self::Own => (PREFERENCE, Some(LOOPBACK), RuleAction::GoTo(NEXT)),
            Self::OwnWithoutTarget => (PREFERENCE, Some(LOOPBACK), RuleAction::Table(TABLE_MAIN)),
            Self::Others => (PREFERENCE, None, RuleAction::Prohibit),
        };
        PolicyRule {
            preference,
            to: Some((family.metadata(), prefix_of_one(family))),
            arrived_on: arrived_on.map(str::to_owned),
            action,
            protocol: Some(PROTOCOL),
            has_other_selectors: false,
        }
    }

    /// Returns whether a rule does what this part has to do, whoever made it.
    fn is(self, family: Family, rule: &PolicyRule) -> bool {
        *rule == PolicyRule { protocol: rule.protocol, ..self.rule(family) }
    }
}

/// The routing rules of a family, as the kernel has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingRules {
    family: Family,
    listed: Vec<ListedRule>,
}

/// One change of the kernel's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// Add the rule after all others of its preference. It is new if there is no such rule yet.
    Add { rule: PolicyRule, is_new: bool },
    /// Delete the first rule like this one.
    Delete(ListedRule),
}

impl RoutingRules {
    /// Returns whether packets that the node did not send are refused before a rule of another program sees them.
    pub fn is_closed(&self) -> bool {
        self.first(Part::Others).is_some_and(|others| self.listed.iter().take(others).all(|before| !self.may_route(&before.rule)))
    }

    /// Returns whether the kernel has any rule of rolegate's.
    pub fn has_ours(&self) -> bool {
        self.ours().next().is_some()
    }

    /// Describes what differs from the wanted rules; empty if nothing does.
    pub fn differences(&self) -> Vec<String> {
        let mut differences: Vec<_> = Part::ALL
            .into_iter()
            .filter(|part| self.first(*part).is_none())
            .map(|part| format!("the routing rule '{}' is missing", Line(&part.rule(self.family))))
            .collect();
        if differences.is_empty() && self.in_order() < Part::ORDERED.len() {
            differences.push(format!("the routing rules for {} have another order", self.family.metadata()));
        }
        differences.extend(self.stale().map(|rule| format!("the routing rule '{}' is of another version", Line(&rule.rule))));
        differences
    }

    /// Describes the rules of other programs that come first and may route packets of pods; rolegate cannot come before them.
    pub fn ahead(&self) -> Vec<String> {
        let before = self.first(Part::Others).unwrap_or_default();
        self.listed.iter().take(before).filter(|before| self.may_route(&before.rule)).map(|before| Line(&before.rule).to_string()).collect()
    }

    /// Returns the changes that make the rules as wanted. At no time is there less of a lock than before, and at no time are the
    /// node's own packets refused if they were not before.
    fn repair(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        let add = |part: Part| Change::Add { rule: part.rule(self.family), is_new: self.first(part).is_none() };
        if self.first(Part::Target).is_none() {
            changes.push(add(Part::Target));
        }
        // What comes after a missing rule has to be added after it once more.
        let late = &Part::ORDERED[self.in_order()..];
        changes.extend(late.iter().map(|part| add(*part)));
        let is_late = |listed: &&ListedRule| late.iter().any(|part| part.is(self.family, &listed.rule));
        changes.extend(deletions(self.ours().filter(is_late).chain(self.stale())));
        changes
    }

    /// Returns the changes that remove exactly rolegate's rules. The node's own packets keep their way meanwhile.
    fn removal(&self) -> Vec<Change> {
        deletions(self.ours()).collect()
    }

    fn first(&self, part: Part) -> Option<usize> {
        self.listed.iter().position(|listed| part.is(self.family, &listed.rule))
    }

    /// Returns how many of the parts whose order matters are there, one after the other, from the first on.
    fn in_order(&self) -> usize {
        let at = Part::ORDERED.map(|part| self.first(part));
        let follows = |(number, at): &(usize, Option<usize>), before: &[Option<usize>]| {
            at.is_some_and(|at| before.iter().take(*number).flatten().all(|before| *before < at))
        };
        at.iter().copied().enumerate().take_while(|one| follows(one, &at)).count()
    }

    fn ours(&self) -> impl Iterator<Item = &ListedRule> {
        self.listed.iter().filter(|listed| match listed.rule.protocol {
            Some(protocol) => protocol == PROTOCOL,
            // Linux before 4.17.
            None => self.is_wanted(&listed.rule),
        })
    }

    /// Returns those of rolegate's rules that it does not want any more.
    fn stale(&self) -> impl Iterator<Item = &ListedRule> {
        self.ours().filter(|listed| !self.is_wanted(&listed.rule))
    }

    fn is_wanted(&self, rule: &PolicyRule) -> bool {
        Part::ALL.iter().any(|part| part.is(self.family, rule))
    }

    /// Returns whether a rule may find a route for a pod's packet to the metadata address.
    fn may_route(&self, rule: &PolicyRule) -> bool {
        let leads_on =
            matches!(rule.action, RuleAction::Table(table) if table != TABLE_LOCAL) || matches!(rule.action, RuleAction::GoTo(_));
        let is_for_pods = rule.arrived_on.as_deref() != Some(LOOPBACK) || rule.has_other_selectors;
        leads_on && is_for_pods && rule.to.is_none_or(|prefix| covers(prefix, self.family.metadata()))
    }
}

/// Deletes the prohibitions first: the node's own packets need the other rules while there is one.
fn deletions<'a>(rules: impl Iterator<Item = &'a ListedRule>) -> impl Iterator<Item = Change> {
    let (prohibitions, rest): (Vec<_>, Vec<_>) = rules.cloned().partition(|listed| listed.rule.action == RuleAction::Prohibit);
    prohibitions.into_iter().chain(rest).map(Change::Delete)
}

const fn prefix_of_one(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

/// Returns whether the prefix covers the address.
fn covers((network, length): (IpAddr, u8), ip: IpAddr) -> bool {
    let same = |network: u128, ip: u128, bits: u8| {
        let host = u32::from(bits.saturating_sub(length));
        network.checked_shr(host).unwrap_or_default() == ip.checked_shr(host).unwrap_or_default()
    };
    match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => same(network.to_bits().into(), ip.to_bits().into(), 32),
        (IpAddr::V6(network), IpAddr::V6(ip)) => same(network.to_bits(), ip.to_bits(), 128),
        _ => false,
    }
}

/// A rule as `ip rule` prints it.
struct Line<'a>(&'a PolicyRule);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rule) = self;
        write!(f, "{}: from all", rule.preference)?;
        if let Some((to, length)) = rule.to {
            write!(f, " to {to}")?;
            if length != if to.is_ipv4() { 32 } else { 128 } {
                write!(f, "/{length}")?;
            }
        }
        if let Some(interface) = &rule.arrived_on {
            write!(f, " iif {interface}")?;
        }
        if rule.has_other_selectors {
            f.write_str(" (with further conditions)")?;
        }
        write!(f, " {}", Action(rule.action))
    }
}

struct Action(RuleAction);

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            RuleAction::Table(TABLE_LOCAL) => f.write_str("lookup local"),
            RuleAction::Table(TABLE_MAIN) => f.write_str("lookup main"),
            RuleAction::Table(table) => write!(f, "lookup {table}"),
            RuleAction::GoTo(preference) => write!(f, "goto {preference}"),
            RuleAction::Nothing => f.write_str("nop"),
            RuleAction::Prohibit => f.write_str("prohibit"),
            RuleAction::Other(other) => write!(f, "action {other}"),
        }
    }
}

/// Renders the rules of a family for `ip -4 -batch` or `ip -6 -batch`, in the order in which they have to be added.
pub fn render(family: Family) -> String {
    let line = |part: Part| {
        let PolicyRule { preference, arrived_on, action, .. } = part.rule(family);
        let arrived_on = arrived_on.map(|interface| format!(" iif {interface}")).unwrap_or_default();
        format!("rule add pref {preference} protocol {PROTOCOL} to {}{arrived_on} {}\n", family.metadata(), Action(action))
    };
    Part::ALL.map(line).concat()
}

/// Renders the rules of both families as comments for the files of the other rules.
pub fn render_as_comments() -> String {
    let mut text = String::from("# Routing rules, which are commands of their own:\n");
    for (family, option) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        render(family).lines().for_each(|line| text.push_str(&format!("# ip {option} {line}\n")));
    }
    text
}

/// Why the routing rules of a family cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// The kernel has no routing rules for the family.
    #[error("the kernel has no routing rules for {}", family_name(*.0))]
    Unsupported(Family),
    /// The kernel refuses.
    #[error("cannot read or change the routing rules for {}", family_name(*family))]
    Refused {
        /// The family.
        family: Family,
        /// The error from the kernel.
        source: io::Error,
    },
    /// The rules still differ after every attempt.
    #[error("the routing rules for {} were changed {attempts} times, and they still differ: {differences}", family_name(*family))]
    NotKept {
        /// The family.
        family: Family,
        /// The number of attempts.
        attempts: usize,
        /// What differs.
        differences: String,
    },
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

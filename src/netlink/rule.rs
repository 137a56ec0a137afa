//! Policy routing rules: what `ip rule` shows and changes.
//!
//! Layout and numbers: linux/fib_rules.h. A rule's protocol number (`FRA_PROTOCOL`, Linux 4.17) says which program made it.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use super::Netlink;
use super::message::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkRequest, RTM_DELRULE, RTM_GETRULE, RTM_NEWRULE, address, attributes, family,
    number, octets, text, zero_terminated,
};

const FIB_RULE_HDR: usize = 12;
const FRA_DST: u16 = 1;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;
/// The rule matches what its selectors do not match.
const FIB_RULE_INVERT: u32 = 2;
/// The value that the kernel reports for a rule that suppresses nothing.
const SUPPRESSES_NOTHING: u32 = u32::MAX;

const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_PROHIBIT: u8 = 8;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// The preference. Rules are tried in its order, and rules of one preference in the order in which they were added.
    pub preference: u32,
    /// The destinations that it matches, as an address and the length of its prefix; `None` means all.
    pub to: Option<(IpAddr, u8)>,
    /// The interface on which the packet arrived; `lo` for packets of the node's own processes. `None` means all.
    pub arrived_on: Option<String>,
    /// What it does with the packets that it matches.
    pub action: RuleAction,
    /// The number of the program that made it; `None` if the kernel does not say.
    pub protocol: Option<u8>,
    /// Whether it has selectors besides these, or negates them.
    pub has_other_selectors: bool,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Looks for a route in this table. If there is none, the next rule is tried.
    Table(u32),
    /// Goes on with the first rule of this preference. If there is none, goes on with the next rule.
    GoTo(u32),
    /// Goes on with the next rule.
    Nothing,
    /// Refuses the packet. Its sender gets an error.
    Prohibit,
    /// Any other action.
    Other(u8),
}

/// A rule as the kernel listed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// What is known about it.
    pub rule: PolicyRule,
    /// The kernel's message, which can be sent back to delete exactly such a rule.
    message: Vec<u8>,
}

impl PolicyRule {
    fn read(body: &[u8]) -> Option<Self> {
        let (to_length, from_length, service) = (*body.get(1)?, *body.get(2)?, *body.get(3)?);
        let (mut table, action) = (u32::from(*body.get(4)?), *body.get(7)?);
        let flags = number(body.get(8..12)?)?;
        let (mut preference, mut to, mut arrived_on, mut goto, mut protocol) = (0, None, None, 0, None);
        let mut has_other_selectors = from_length != 0 || service != 0 || flags & FIB_RULE_INVERT != 0;
        for (kind, value) in attributes(body.get(FIB_RULE_HDR..)?) {
            match kind {
                FRA_DST => to = Some((address(value)?, to_length)),
                FRA_IIFNAME => arrived_on = Some(text(value)),
                FRA_GOTO => goto = number(value)?,
                // The kernel omits it if it is 0.
                FRA_PRIORITY => preference = number(value)?,
                FRA_TABLE => table = number(value)?,
                FRA_PROTOCOL => protocol = value.first().copied(),
                FRA_PAD => {}
                FRA_SUPPRESS_PREFIXLEN if number(value) == Some(SUPPRESSES_NOTHING) => {}
                _ => has_other_selectors = true,
            }
        }
        let action = match action {
            FR_ACT_TO_TBL => RuleAction::Table(table),
            FR_ACT_GOTO => RuleAction::GoTo(goto),
            FR_ACT_NOP => RuleAction::Nothing,
            FR_ACT_PROHIBIT => RuleAction::Prohibit,
            other => RuleAction::Other(other),
        };
        Some(Self { preference, to, arrived_on, action, protocol, has_other_selectors })
    }

    /// Starts a request about this rule. It has no other selectors.
    fn request(&self, kind: u16, flags: u16, of: IpAddr) -> NetlinkRequest {
        let mut fixed = [0; FIB_RULE_HDR];
        fixed[0] = family(of);
        fixed[1] = self.to.map(|(_, length)| length).unwrap_or_default();
        fixed[7] = match self.action {
            RuleAction::Table(_) => FR_ACT_TO_TBL,
            RuleAction::GoTo(_) => FR_ACT_GOTO,
            RuleAction::Nothing => FR_ACT_NOP,
            RuleAction::Prohibit => FR_ACT_PROHIBIT,
            RuleAction::Other(other) => other,
        };
        let mut request = NetlinkRequest::new(kind, flags, &fixed).attribute(FRA_PRIORITY, &self.preference.to_ne_bytes());
        if let Some((to, _)) = self.to {
            request = request.attribute(FRA_DST, &octets(to));
        }
        if let Some(interface) = &self.arrived_on {
            request = request.attribute(FRA_IIFNAME, &zero_terminated(interface));
        }
        match self.action {
            RuleAction::Table(table) => request = request.attribute(FRA_TABLE, &table.to_ne_bytes()),
            RuleAction::GoTo(preference) => request = request.attribute(FRA_GOTO, &preference.to_ne_bytes()),
            RuleAction::Nothing | RuleAction::Prohibit | RuleAction::Other(_) => {}
        }
        if let Some(protocol) = self.protocol {
            request = request.attribute(FRA_PROTOCOL, &[protocol]);
        }
        request
    }
}

impl ListedRule {
    fn read(body: &[u8]) -> Option<Self> {
        PolicyRule::read(body).map(|rule| Self { rule, message: body.to_vec() })
    }

    /// Starts a request that deletes the first rule that is exactly like this one.
    fn deletion(&self) -> NetlinkRequest {
        let mut fixed = [0; FIB_RULE_HDR];
        if let Some(listed) = self.message.get(..FIB_RULE_HDR) {
            fixed.copy_from_slice(listed);
        }
        // The other flags describe the state of the rule.
        let flags = number(&fixed[8..12]).unwrap_or_default() & FIB_RULE_INVERT;
        fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
        let mut request = NetlinkRequest::new(RTM_DELRULE, NLM_F_ACK, &fixed);
        let rest = self.message.get(FIB_RULE_HDR..).unwrap_or_default();
        for (kind, value) in attributes(rest).filter(|(kind, _)| !matches!(*kind, FRA_PRIORITY | FRA_PAD)) {
            request = request.attribute(kind, value);
        }
        // Without it, the rule of any preference would match.
        request.attribute(FRA_PRIORITY, &self.rule.preference.to_ne_bytes())
    }

    /// Creates a listed rule without a kernel.
    #[cfg(test)]
    pub(crate) fn for_test(rule: PolicyRule, of: IpAddr) -> Self {
        let message = rule.request(RTM_NEWRULE, 0, of).finish(0).split_off(super::message::HEADER);
        Self { rule, message }
    }
}

impl Netlink {
    /// Returns the rules of the family of this address, in the order in which the kernel tries them.
    ///
    /// # Errors
    /// Of the kind `Unsupported` if the kernel has no rules for the family.
    pub fn rules(&mut self, of: IpAddr) -> io::Result<Vec<ListedRule>> {
        let mut fixed = [0; FIB_RULE_HDR];
        fixed[0] = family(of);
        // Rules of another family are those of a kernel that does not know this one.
        let read = |body: &[u8]| ListedRule::read(body).filter(|_| body.first() == Some(&family(of)));
        self.dump_all(|| NetlinkRequest::new(RTM_GETRULE, NLM_F_DUMP, &fixed), read).map_err(unsupported)
    }

    /// Adds a rule of the family of this address, after all others of its preference. Requires the capability NET_ADMIN.
    ///
    /// # Errors
    /// Of the kind `AlreadyExists` if `is_new` and there is such a rule already.
    pub fn add_rule(&mut self, rule: &PolicyRule, of: IpAddr, is_new: bool) -> io::Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | if is_new { NLM_F_EXCL } else { 0 };
        self.ask(rule.request(RTM_NEWRULE, flags, of)).map(drop).map_err(unsupported)
    }

    /// Deletes the first rule that is exactly like this one. Requires the capability NET_ADMIN.
    ///
    /// # Errors
    /// Of the kind `NotFound` if there is none any more.
    pub fn delete_rule(&mut self, listed: &ListedRule) -> io::Result<()> {
        self.ask(listed.deletion()).map(drop)
    }
}

/// Recognizes a kernel without rules: `CONFIG_IP_MULTIPLE_TABLES`, or IPv6, is missing.
fn unsupported(error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => io::ErrorKind::Unsupported.into(),
        _ => error,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    fn rule() -> PolicyRule {
        PolicyRule {
            preference: 7,
            to: Some(("192.0.2.1".parse().unwrap(), 32)),
            arrived_on: Some("lo".to_owned()),
            action: RuleAction::GoTo(9),
            protocol: Some(169),
            has_other_selectors: false,
        }
    }

    #[test]
    fn rules_round_trip_and_are_never_read_past_the_end() {
        let base = rule();
        let of = "192.0.2.1".parse().unwrap();
        for rule in [
            base.clone(),
            PolicyRule { preference: 0, arrived_on: None, action: RuleAction::Prohibit, ..base.clone() },
            PolicyRule { to: None, action: RuleAction::Nothing, protocol: None, ..base.clone() },
            PolicyRule { action: RuleAction::Table(1000), ..base },
        ] {
            let listed = ListedRule::for_test(rule.clone(), of);
            assert_eq!(PolicyRule::read(&listed.message), Some(rule));
            for length in 0..listed.message.len() {
                let _ = PolicyRule::read(&listed.message[..length]);
            }
        }
    }

    #[test]
    fn a_deletion_names_the_preference_even_if_the_kernel_does_not() {
        let of = "192.0.2.1".parse().unwrap();
        let mut listed = ListedRule::for_test(PolicyRule { preference: 0, ..rule() }, of);
        // As the kernel lists it: without the preference 0, and with a flag for its state.
        let rest: Vec<u8> = {
            let mut bytes = listed.message[..FIB_RULE_HDR].to_vec();
            bytes[8] = 4;
            for (kind, value) in attributes(&listed.message[FIB_RULE_HDR..]).filter(|(kind, _)| *kind != FRA_PRIORITY) {
                super::super::message::append(&mut bytes, kind, value);
            }
            bytes
        };
        listed.message = rest;
        let request = listed.deletion().finish(1).split_off(super::super::message::HEADER);
        assert_eq!(PolicyRule::read(&request), Some(listed.rule.clone()));
        assert_eq!(attributes(&request[FIB_RULE_HDR..]).filter(|(kind, _)| *kind == FRA_PRIORITY).count(), 1);
        assert_eq!(request[8], 0, "the state is no selector");
    }

    #[test]
    fn other_selectors_are_recognized() {
        let of = "192.0.2.1".parse().unwrap();
        let listed = ListedRule::for_test(rule(), of);
        for (at, value) in [(2, 24), (3, 8), (8, 2)] {
            let mut message = listed.message.clone();
            message[at] = value;
            assert!(PolicyRule::read(&message).unwrap().has_other_selectors, "{at}");
        }
        let mut marked = listed.message.clone();
        super::super::message::append(&mut marked, 10, &1_u32.to_ne_bytes());
        assert!(PolicyRule::read(&marked).unwrap().has_other_selectors);
    }

    #[test]
    fn the_kernels_own_rules_are_listed() {
        // None without CONFIG_IP_MULTIPLE_TABLES.
        let Ok(rules) = Netlink::open().unwrap().rules("127.0.0.1".parse().unwrap()) else { return };
        assert!(rules.iter().any(|listed| listed.rule.action == RuleAction::Table(254)), "{rules:?}");
        assert!(rules.is_sorted_by_key(|listed| listed.rule.preference));
    }
}

//! The rule through the `iptables` program, of whichever flavour the image has.
//!
//! A chain of our own holds the rule, so that it is replaced in one transaction (`iptables-restore --noflush`) and never
//! mixed up with others'; one jump at the head of PREROUTING leads to it.

use std::net::IpAddr;
use std::time::Duration;

use super::program::run;
use super::{OneRule, RedirectError};
use crate::proxy::route::{METADATA_IPV4, METADATA_IPV6, METADATA_PORT};

/// Our chain in the table `nat`.
pub const CHAIN: &str = "ROLEGATE";

/// The names of the programs for a family of addresses.
fn programs(ip: IpAddr) -> (&'static str, &'static str) {
    match ip {
        IpAddr::V4(_) => ("iptables", "iptables-restore"),
        IpAddr::V6(_) => ("ip6tables", "ip6tables-restore"),
    }
}

/// What `iptables-restore --noflush` reads: our chain, whole (naming the chain empties it), and the jump to it at the head
/// of PREROUTING. It is one transaction: with `moving`, the jump that is there already is taken out and put in again
/// before anything that was inserted ahead of it, without a moment in which it is missing.
pub fn render(rules: &OneRule, moving: bool) -> String {
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
    let dnat = format!("-p tcp -j DNAT --to-destination {}", rules.target);
    for interface in rules.interfaces.iter().filter(|interface| interface.negated) {
        text.push_str(&format!("-A {CHAIN} -i {} -j RETURN\n", interface.name));
    }
    let named: Vec<_> = rules.interfaces.iter().filter(|interface| !interface.negated).collect();
    for interface in &named {
        text.push_str(&format!("-A {CHAIN} -i {} {dnat}\n", interface.name));
    }
    if named.is_empty() {
        text.push_str(&format!("-A {CHAIN} {dnat}\n"));
    }
    let jump = jump(rules).join(" ");
    if moving {
        text.push_str(&format!("-D PREROUTING {jump}\n"));
    }
    text.push_str(&format!("-I PREROUTING 1 {jump}\nCOMMIT\n"));
    text
}

/// The match of the jump to our chain.
fn jump(rules: &OneRule) -> Vec<String> {
    let metadata = match rules.target.ip() {
        IpAddr::V4(_) => format!("{METADATA_IPV4}/32"),
        IpAddr::V6(_) => format!("{METADATA_IPV6}/128"),
    };
    let port = METADATA_PORT.to_string();
    ["-p", "tcp", "-d", &metadata, "--dport", &port, "-j", CHAIN].map(str::to_owned).to_vec()
}

/// Puts our chain and the jump to it in place, whatever was there of them.
pub async fn install(rules: &OneRule, lock_wait: Duration) -> Result<(), RedirectError> {
    let (iptables, restore) = programs(rules.target.ip());
    let wait = lock_wait.as_secs().to_string();
    let mut check = ["-w", &wait, "-t", "nat", "-C", "PREROUTING"].map(str::to_owned).to_vec();
    check.extend(jump(rules));
    let is_there = match run(iptables, &check, "").await {
        Ok(_) => true,
        Err(RedirectError::Refused { .. }) => false,
        Err(error) => return Err(error),
    };
    run(restore, &["--noflush", "-w", &wait], &render(rules, is_there)).await.map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::config::InterfaceMatch;

    fn rules(interfaces: &[(&str, bool)]) -> OneRule {
        let interfaces = interfaces.iter().map(|(name, negated)| InterfaceMatch { name: (*name).to_owned(), negated: *negated });
        OneRule { interfaces: interfaces.collect(), target: "10.0.0.1:8181".parse().unwrap() }
    }

    fn chain_of(interfaces: &[(&str, bool)]) -> Vec<String> {
        let text = render(&rules(interfaces), false);
        text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
    }

    #[test]
    fn every_interface_is_matched_unless_some_are_named() {
        let dnat = "-p tcp -j DNAT --to-destination 10.0.0.1:8181";
        assert_eq!(chain_of(&[]), [format!("-A ROLEGATE {dnat}")]);
        assert_eq!(
            chain_of(&[("cni0", false), ("eni+", false)]),
            [format!("-A ROLEGATE -i cni0 {dnat}"), format!("-A ROLEGATE -i eni+ {dnat}")]
        );
        assert_eq!(
            chain_of(&[("eth0", true), ("eth1", true)]),
            ["-A ROLEGATE -i eth0 -j RETURN".to_owned(), "-A ROLEGATE -i eth1 -j RETURN".to_owned(), format!("-A ROLEGATE {dnat}"),]
        );
    }

    /// The file that the repository ships is what the daemon makes, with the address of no one's node.
    #[test]
    fn the_shipped_rule_is_the_one_that_is_made() {
        let rules = OneRule { interfaces: Vec::new(), target: "192.0.2.1:8181".parse().unwrap() };
        let made = render(&rules, false);
        let shipped: String = include_str!("../../iptables/redirect.rules")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(shipped, made);
    }
}

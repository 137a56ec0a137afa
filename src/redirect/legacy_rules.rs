//! The rule that kube2iam and kiam leave behind when they are uninstalled.
//!
//! Both append one rule to PREROUTING of the table `nat`, and both make the same one: `-p tcp -d 169.254.169.254 --dport 80 -j
//! DNAT --to-destination HOST:PORT [!] -i INTERFACE` (kube2iam's `iptables/iptables.go`, kiam's `cmd/kiam/iptables.go`). A rule
//! with anything more or less belongs to somebody else and is left alone.

use std::net::SocketAddrV4;
use std::time::Duration;

use tracing::debug;

use super::RedirectError;
use super::iptables::INCOMPATIBLE;
use super::iptables::chains::KernelTable;
use super::iptables::listing::{IptablesListing, canonical, same};
use super::iptables::program::{self, Flavour};
use super::program::{run, search_lines};
use super::rules::Family;
use crate::advice::chain;
use crate::metadata_service::{METADATA_IPV4, METADATA_PORT};

/// A rule that kube2iam or kiam left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOver {
    /// The flavour of iptables whose tables hold the rule.
    pub flavour: Flavour,
    /// The program that removes it.
    pub program: &'static str,
    /// The rule, without the words `-A PREROUTING`.
    pub rule: String,
    /// The address that the rule sends requests to.
    pub target: SocketAddrV4,
}

/// Finds these rules in the tables of both flavours. A flavour whose tables cannot be read, because the program is missing or
/// not permitted, is skipped.
///
/// # Errors
/// If neither flavour's tables can be read, or if those of one are too large to be searched and the other has none of these rules.
pub async fn find() -> Result<Vec<LeftOver>, RedirectError> {
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for flavour in Flavour::ALL {
        let program = program::of(Some(flavour), Family::V4).iptables;
        match prerouting(flavour).await {
            Ok(listing) => found.extend(
                listing
                    .chain(KernelTable::Nat, "PREROUTING")
                    .filter_map(|rule| Some(LeftOver { flavour, program, target: target(&rule.words)?, rule: rule.words.clone() })),
            ),
            Err(error) => {
                debug!(
                    program,
                    error = chain(&error),
                    "cannot read the rules of kube2iam and kiam with one iptables variant (legacy or nf_tables); skipping it"
                );
                failures.push(error);
            }
        }
    }
    let is_doubtful = |error: &RedirectError| matches!(error, RedirectError::TooLarge { .. });
    match failures.iter().position(is_doubtful) {
        Some(at) if found.is_empty() => return Err(failures.swap_remove(at)),
        _ => {}
    }
    match failures.pop() {
        Some(error) if failures.len() + 1 == Flavour::ALL.len() => Err(error),
        _ => Ok(found),
    }
}

/// Lists PREROUTING of the table `nat`. Every other chain may have any number of rules.
async fn prerouting(flavour: Flavour) -> Result<IptablesListing, RedirectError> {
    let programs = program::of(Some(flavour), Family::V4);
    let is_of_chain = |line: &str| line.starts_with("-A PREROUTING ");
    match flavour {
        Flavour::Nft => match search_lines(programs.iptables, &["-t", "nat", "-S", "PREROUTING"], is_of_chain).await {
            Ok(text) => Ok(IptablesListing::of_chain(KernelTable::Nat, &text)),
            // kube2iam and kiam do not make rules that iptables cannot read.
            Err(RedirectError::Failed { message, .. }) if message.contains(INCOMPATIBLE) => Ok(IptablesListing::default()),
            Err(error) => Err(error),
        },
        // Asked for a chain, the legacy flavour creates its table.
        Flavour::Legacy => {
            let is_wanted = |line: &str| line.starts_with('*') || is_of_chain(line);
            Ok(IptablesListing::parse(&search_lines(programs.save, &[] as &[&str], is_wanted).await?))
        }
    }
}

/// Removes these rules, and describes them; empty if there were none.
///
/// # Errors
/// If the tables cannot be read or written. Rules that were removed before the error stay removed.
pub async fn remove(lock_wait: Duration) -> Result<Vec<String>, RedirectError> {
    let mut said = Vec::new();
    let wait = lock_wait.as_millis().div_ceil(1000).max(1).to_string();
    for left in find().await? {
        let restore = program::of(Some(left.flavour), Family::V4).restore;
        let text = format!("*nat\n-D PREROUTING {}\nCOMMIT\n", left.rule);
        run(restore, &["--noflush", "-w", &wait], &text).await.map_err(program::explained)?;
        said.push(format!(
            "{}: a rule of kube2iam or kiam that redirected requests to {}: `-A PREROUTING {}`",
            left.program, left.target, left.rule
        ));
    }
    Ok(said)
}

/// Returns the address that a rule sends requests to, if kube2iam or kiam made it.
fn target(rule: &str) -> Option<SocketAddrV4> {
    let words = canonical(rule);
    let value = |option: &str| words.iter().find_map(|word| word.strip_prefix(option)?.strip_prefix(' '));
    let target: SocketAddrV4 = value("--to-destination")?.parse().ok()?;
    let interface = match (value("-i"), value("! -i")) {
        (Some(name), None) => format!("-i {name}"),
        (None, Some(name)) => format!("! -i {name}"),
        _ => return None,
    };
    let theirs = format!("-d {METADATA_IPV4}/32 {interface} -p tcp -m tcp --dport {METADATA_PORT} -j DNAT --to-destination {target}");
    same(rule, &theirs).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn legacy_rules_are_recognized_by_their_whole_shape() {
        for rule in [
            "-d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "-d 169.254.169.254/32 ! -i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "-i cali+ -p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
        ] {
            assert_eq!(target(rule), "10.0.0.1:8181".parse().ok(), "{rule}");
        }
    }

    #[test]
    fn a_rule_of_another_shape_is_not_a_legacy_rule() {
        for rule in [
            "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "-d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:8181",
            "-d 169.254.169.254/32 -i docker0 -p udp -m udp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "-d 169.254.169.254/31 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "! -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "-d 169.254.169.254/32 -i docker0 -o eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "-s 10.0.0.0/8 -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            "-d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181 --random",
            "-d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1",
            "-d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -m comment --comment mine -j DNAT --to-destination 10.0.0.1:8181",
            "-d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8181",
            "-d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j ROLEGATE",
        ] {
            assert_eq!(target(rule), None, "{rule}");
        }
    }
}

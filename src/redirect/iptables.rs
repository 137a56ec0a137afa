//! The iptables backend, for whichever flavour of `iptables` the image has.
//!
//! The rules live in chains of their own, so that `iptables-restore --noflush` replaces them in one transaction for each table
//! and never mixes them with other rules. One narrow jump at the head of PREROUTING, FORWARD, INPUT, OUTPUT and POSTROUTING leads to
//! each chain, so that a packet that has nothing to do with the metadata service costs one comparison.
//!
//! Another program's rule that accepts packets ahead of the guard opens it until the next comparison. The guard therefore has a
//! backstop, which drops what passed the guard. The backstop is in the table `security`, which has rules on hardly any node and
//! comes after `filter`; a verdict in `filter` does not bypass it. It cannot reject, so the sender of such a packet gets no
//! answer. On a kernel without that table the backstop is in `mangle`, ahead of the guard: nothing gets through, and a pod that
//! tries a port other than the redirected one gets a timeout instead of a refusal.
//!
//! With the nft flavour, a comparison lists only the chains that matter, one by one, so that its cost does not grow with the
//! rules of other programs. The legacy flavour reads a whole table from the kernel for each chain that it lists, so everything
//! is read at once. The legacy flavour announces no changes, and its rules are compared on the interval only.
//!
//! The kernel has two sets of these tables side by side: one for the nft flavour and one for the legacy flavour. The rules are
//! in the set that the program called `iptables` uses. Of two tables `nat` the kernel asks first the one that was filled last, so
//! the pin cannot come before a redirect in the other set. Such a redirect is reported (see `hijack`).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tracing::warn;

use self::chains::{Chain, ChainPosition, KernelTable, ORDER};
use self::listing::{Difference, IptablesListing};
pub(super) use self::read::INCOMPATIBLE;
pub use self::read::Iptables;
use self::read::ReadScope;
use super::observed::ObservedRules;
use super::program::run;
use super::rules::{DirectConnections, Family, Hook, RuleSet};
use super::{Backend, RedirectError};
use crate::advice::{Advise as _, chain};

pub(super) mod chains;
pub(super) mod listing;
pub mod program;
mod read;
#[cfg(test)]
mod tests;
mod text;

/// How often the tables are written if other programs change them meanwhile.
const ATTEMPTS: usize = 5;

/// What rolegate has in the kernel for one family.
struct ObservedFamily {
    /// The hooks whose rules are whole.
    whole: BTreeSet<Hook>,
    /// Where requests are sent.
    targets: BTreeSet<SocketAddr>,
    /// The addresses of Pod Identity that the rules keep and close.
    pod_identity: BTreeSet<SocketAddr>,
}

impl Iptables {
    async fn restore(&self, family: Family, text: &str) -> Result<(), RedirectError> {
        run(program::of(self.flavour, family).restore, &["--noflush", "-w", &self.wait()], text).await.map(drop).map_err(program::explained)
    }

    async fn differences_of(&self, rules: &RuleSet, family: Family, present: &IptablesListing) -> Result<Vec<String>, RedirectError> {
        let differences = ORDER.iter().flat_map(|hook| present.differences(&Chain::wanted(rules, *hook, family, present.backstop)));
        self.ask_about(family, differences.collect()).await
    }

    /// Returns the differences that remain after the program itself has checked the rules, in words.
    async fn ask_about(&self, family: Family, differences: Vec<Difference>) -> Result<Vec<String>, RedirectError> {
        let programs = program::of(self.flavour, family);
        let mut words = Vec::new();
        for difference in differences {
            if let Some((table, rules)) = difference.ask
                && self.has_all(family, table, &rules).await?
            {
                continue;
            }
            words.push(format!("{}, {}", programs.iptables, difference.words));
        }
        Ok(words)
    }

    /// Returns whether the program confirms that it has these rules.
    async fn has_all(&self, family: Family, table: KernelTable, rules: &[String]) -> Result<bool, RedirectError> {
        let (iptables, wait) = (program::of(self.flavour, family).iptables, self.wait());
        for rule in rules {
            let arguments = ["-w", &wait, "-t", table.name(), "-C"].into_iter().chain(rule.split_whitespace()).collect::<Vec<_>>();
            match run(iptables, &arguments, "").await.map_err(program::explained) {
                Ok(_) => {}
                Err(RedirectError::Failed { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Compares and writes until nothing differs, because two daemons may be writing at the same time.
    async fn install_family(&self, rules: &RuleSet, family: Family) -> Result<(), RedirectError> {
        let mut refused = None;
        for attempt in 0..ATTEMPTS {
            // The previous attempt may have failed because a rule elsewhere still refers to one of our chains.
            let present = self.list(family, if attempt == 0 { ReadScope::Ours } else { ReadScope::Everywhere }).await?;
            if self.differences_of(rules, family, &present).await?.is_empty() {
                self.warn_of_backstop(family, present.backstop);
                return Ok(());
            }
            match self.restore(family, &text::install(rules, family, &present)).await {
                Ok(()) => refused = None,
                // The rules that were to be replaced may have been removed meanwhile.
                Err(error @ RedirectError::Failed { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        let differences = self.differences_of(rules, family, &self.list(family, ReadScope::Everywhere).await?).await?;
        match (differences.is_empty(), refused) {
            (true, _) => Ok(()),
            (false, Some(error)) => Err(error),
            (false, None) => Err(RedirectError::NotKept {
                program: program::of(self.flavour, family).restore,
                attempts: ATTEMPTS,
                differences: differences.join("; "),
            }),
        }
    }

    async fn differences_in(&self, rules: &RuleSet, family: Family) -> Result<Vec<String>, RedirectError> {
        let present = self.list(family, ReadScope::Ours).await?;
        self.differences_of(rules, family, &present).await
    }

    /// Returns the rules of a family that are whole, of those that do not depend on the rest of the rule set, and where the family's
    /// requests are sent.
    async fn standing_in(&self, family: Family) -> Result<ObservedFamily, RedirectError> {
        let present = self.list(family, ReadScope::Ours).await?;
        let place = |hook| ChainPosition::of(hook, present.backstop);
        let targets: BTreeSet<_> = present.targets(place(Hook::Redirect)).collect();
        let kept: BTreeSet<_> = present.kept(place(Hook::KeepOutgoing)).collect();
        let alone = RuleSet::guard_alone();
        let with_pod_identity = RuleSet { pod_identity: kept.difference(&targets).copied().collect(), ..RuleSet::guard_alone() };
        // With `--redirect=bpf`, connections to the daemon's own address are kept as well.
        let of_daemon = ObservedRules { targets: kept.intersection(&targets).copied().collect(), ..ObservedRules::default() };
        let with_all = RuleSet { targets: of_daemon.as_targets(DirectConnections::Kept), ..with_pod_identity.clone() };
        let mut found = ObservedFamily { whole: BTreeSet::new(), targets, pod_identity: BTreeSet::new() };
        for hook in [Hook::Guard, Hook::Backstop, Hook::Exit, Hook::Pin] {
            let wanted = [&with_pod_identity, &alone].map(|rules| Chain::wanted(rules, hook, family, present.backstop));
            if self.has_any(family, &present, &wanted).await? {
                found.whole.insert(hook);
            }
        }
        let mut is_closed = true;
        for (hook, rules) in [
            (Hook::Guard, &with_pod_identity),
            (Hook::Backstop, &with_pod_identity),
            (Hook::Exit, &with_pod_identity),
            (Hook::KeepIncoming, &with_all),
            (Hook::KeepOutgoing, &with_all),
        ] {
            is_closed = is_closed && self.has_any(family, &present, &[Chain::wanted(rules, hook, family, present.backstop)]).await?;
        }
        if is_closed {
            found.pod_identity = with_pod_identity.pod_identity;
        }
        Ok(found)
    }

    /// Returns whether one of these chains is as it is wanted.
    async fn has_any(&self, family: Family, present: &IptablesListing, wanted: &[Chain]) -> Result<bool, RedirectError> {
        for chain in wanted {
            if self.ask_about(family, present.differences(chain)).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Logs once what a backstop ahead of the guard means for pods.
    fn warn_of_backstop(&self, family: Family, backstop: KernelTable) {
        if backstop == KernelTable::Mangle && self.without_security.begins() {
            let program = program::of(self.flavour, family).iptables;
            warn!(
                event = "security-table-missing", %program,
                "the kernel has no table 'security'; pods' connections to other ports of the metadata address time out instead of being \
                 refused; load the module iptable_security (and ip6table_security), or use --redirect=nftables"
            );
        }
    }

    /// Removes rolegate's rules of one family, and describes them.
    async fn remove_of(&self, family: Family) -> Result<Vec<String>, RedirectError> {
        let programs = program::of(self.flavour, family);
        let mut said = Vec::new();
        let mut refused = None;
        // Without our chains, nothing jumps to them.
        if !self.has_chains(family).await? {
            return Ok(said);
        }
        for _attempt in 0..ATTEMPTS {
            let present = self.list_all(family).await?;
            let remains: Vec<_> = ChainPosition::all().into_iter().flat_map(|place| present.remains(place)).collect();
            if remains.is_empty() {
                return Ok(said);
            }
            match self.restore(family, &text::remove(&present)).await {
                Ok(()) => said.extend(remains.into_iter().map(|what| format!("{}: {what}", programs.iptables))),
                Err(error @ RedirectError::Failed { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some(error) => Err(error),
            None => Err(RedirectError::CameBack { program: programs.restore, attempts: ATTEMPTS }),
        }
    }
}

/// Wraps an IPv6 error in one that names the consequence.
fn of_family(family: Family, error: RedirectError) -> RedirectError {
    match family {
        Family::V4 => error,
        Family::V6 => RedirectError::Ipv6(Box::new(error)),
    }
}

impl Backend for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn render(&self, rules: &RuleSet) -> String {
        let part = |family| format!("# {} --noflush\n{}", program::of(None, family).restore, render(rules, family));
        Family::ALL.map(part).join("\n")
    }

    async fn install(&self, rules: &RuleSet) -> Result<(), RedirectError> {
        // If one family fails, the other is closed all the same.
        let mut result = Ok(());
        for family in self.families() {
            let installed = self.install_family(rules, *family).await.map_err(|error| of_family(*family, error));
            if let (Err(_), Err(error)) = (&result, &installed) {
                warn!(
                    event = "other-family-failed",
                    error = chain(error),
                    advice = error.advice().as_deref(),
                    "cannot install the IPv6 rules either; see also the error of the IPv4 rules; pods' IPv6 requests may reach the real metadata service"
                );
            }
            result = result.and(installed);
        }
        result
    }

    async fn differences(&self, rules: &RuleSet) -> Result<Vec<String>, RedirectError> {
        let (mut words, mut failure) = (Vec::new(), None);
        for family in self.families() {
            // Known differences in one family are reported, and repaired, even if the other family cannot be read.
            match self.differences_in(rules, *family).await.map_err(|error| of_family(*family, error)) {
                Ok(differences) => words.extend(differences),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            Some(error) if words.is_empty() => Err(error),
            failure => Ok(words.into_iter().chain(failure.map(|error| chain(&error))).collect()),
        }
    }

    async fn observed(&self) -> Result<ObservedRules, RedirectError> {
        // A family that the kernel does not have needs no rules.
        let absent = Family::ALL.into_iter().filter(|family| !self.families().contains(family)).collect();
        let mut observed = ObservedRules { absent, ..ObservedRules::guarding(Family::ALL) };
        let mut failures = Vec::new();
        for family in self.families() {
            match self.standing_in(*family).await.map_err(|error| of_family(*family, error)) {
                Ok(found) => {
                    observed.forget(*family);
                    let has = |hook| found.whole.contains(&hook);
                    // Either of the two closes the family.
                    if has(Hook::Guard) || has(Hook::Backstop) {
                        observed.guards.insert(*family);
                    }
                    if has(Hook::Guard) != has(Hook::Backstop) {
                        observed.weak.insert(*family);
                    }
                    observed.exits.extend(has(Hook::Exit).then_some(*family));
                    observed.pins.extend(has(Hook::Pin).then_some(*family));
                    observed.targets.extend(found.targets);
                    observed.pod_identity.extend(found.pod_identity);
                }
                Err(error) => {
                    observed.forget(*family);
                    failures.push((*family, error));
                }
            }
        }
        let unknown: Vec<_> = failures.iter().map(|(family, _)| *family).collect();
        match failures.into_iter().next() {
            // If another family is known to be open, it can still be repaired.
            Some((_, error)) if observed.is_guarded_but_for(&unknown) => Err(error),
            _ => Ok(observed),
        }
    }

    async fn remove(&self) -> Result<Vec<String>, RedirectError> {
        let mut said = Vec::new();
        for family in self.families() {
            said.extend(self.remove_of(*family).await.map_err(|error| of_family(*family, error))?);
        }
        Ok(said)
    }
}

/// Renders the input of `iptables-restore --noflush`, or of `ip6tables-restore`, for a node without any rules of rolegate.
pub fn render(rules: &RuleSet, family: Family) -> String {
    text::install(rules, family, &IptablesListing::default())
}

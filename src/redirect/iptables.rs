//! The rules through the `iptables` program, of whichever flavour the image has.
//!
//! Chains of our own hold the rules, so that they are replaced in one transaction for each table
//! (`iptables-restore --noflush`) and never mixed up with others'; one narrow jump at the head of PREROUTING, FORWARD and
//! INPUT leads to each, so that a packet that has nothing to do with the metadata service meets one comparison.
//!
//! A rule of somebody else's that accepts packets ahead of the guard opens it, until the next comparison. So the guard has a
//! backstop in the table `security`, which has rules on hardly any node and comes after `filter`, whose verdicts have no say
//! there: it drops what passed. It cannot reject, so such a packet is answered by nothing. A kernel without that table has
//! the backstop in `mangle`, ahead of the guard: nothing gets through, and a pod's try of another port than the redirected
//! one is a timeout instead of a refusal.
//!
//! A comparison asks the nft flavour for the chains that matter, one by one: its cost does not follow how many rules others
//! have. The legacy flavour's program reads a whole table from the kernel for each chain that it is asked for, so all is read
//! at once; nobody says there that rules have changed, and it is compared on the interval alone.
//!
//! The kernel has two sets of such tables side by side: those of the nft flavour and those of the legacy one. The rules are
//! in that of the program called `iptables`.

use std::net::SocketAddr;

use tracing::warn;

use self::chains::{Chain, ChainPosition, KernelTable, ORDER};
use self::listing::{Difference, IptablesListing};
pub use self::read::Iptables;
use self::read::ReadScope;
use super::observed::ObservedRules;
use super::program::run;
use super::rules::{Family, Hook, RuleSet};
use super::{Backend, RedirectError};
use crate::advice::chain;

pub(super) mod chains;
pub(super) mod listing;
pub mod program;
mod read;
#[cfg(test)]
mod tests;
mod text;

/// How often the tables are written if others change them meanwhile.
const ATTEMPTS: usize = 5;

impl Iptables {
    async fn restore(&self, family: Family, text: &str) -> Result<(), RedirectError> {
        run(program::of(self.flavour, family).restore, &["--noflush", "-w", &self.wait()], text).await.map(drop).map_err(program::explained)
    }

    async fn differences_of(&self, rules: &RuleSet, family: Family, present: &IptablesListing) -> Result<Vec<String>, RedirectError> {
        let differences = ORDER.iter().flat_map(|hook| present.differences(&Chain::wanted(rules, *hook, family, present.backstop)));
        self.ask_about(family, differences.collect()).await
    }

    /// Those that are differences also to the program, in words.
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

    /// Whether the program says that it has these rules.
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

    /// Compares and writes, until nothing differs: two daemons may be at it at once.
    async fn install_family(&self, rules: &RuleSet, family: Family) -> Result<(), RedirectError> {
        let mut refused = None;
        for attempt in 0..ATTEMPTS {
            // What was refused may be so as a chain of ours is in use where it was not looked for.
            let present = self.list(family, if attempt == 0 { ReadScope::Ours } else { ReadScope::Everywhere }).await?;
            if self.differences_of(rules, family, &present).await?.is_empty() {
                self.tell_of_backstop(family, present.backstop);
                return Ok(());
            }
            match self.restore(family, &text::install(rules, family, &present)).await {
                Ok(()) => refused = None,
                // What should have been replaced may have gone meanwhile.
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

    /// Whether a family's guard is whole; whether it is closed, as either its guard or its backstop is; and where its requests
    /// are sent to.
    async fn standing_in(&self, family: Family) -> Result<(bool, bool, Vec<SocketAddr>), RedirectError> {
        let present = self.list(family, ReadScope::Ours).await?;
        let mut whole = [false; 2];
        for (whole, hook) in whole.iter_mut().zip([Hook::Guard, Hook::Backstop]) {
            // There is but one guard, whatever else is wanted.
            let wanted = Chain::wanted(&RuleSet::guard_alone(), hook, family, present.backstop);
            *whole = self.ask_about(family, present.differences(&wanted)).await?.is_empty();
        }
        let targets = present.targets(ChainPosition::of(Hook::Redirect, present.backstop)).collect();
        Ok((whole == [true; 2], whole.contains(&true), targets))
    }

    /// Says once what a backstop ahead of the guard means for pods.
    fn tell_of_backstop(&self, family: Family, backstop: KernelTable) {
        if backstop == KernelTable::Mangle && self.without_security.begins() {
            let program = program::of(self.flavour, family).iptables;
            warn!(
                event = "security-table-missing", %program,
                "the kernel has no table 'security'; dropping (not rejecting) pods' packets to other ports of the metadata address in the \
                 table 'mangle'; load the module iptable_security (and ip6table_security), or use --redirect=nftables"
            );
        }
    }

    /// Takes away what is ours of one family, and says what it was.
    async fn remove_of(&self, family: Family) -> Result<Vec<String>, RedirectError> {
        let programs = program::of(self.flavour, family);
        let mut said = Vec::new();
        let mut refused = None;
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

/// An error of IPv6 says what it means.
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
        // One family's failure does not leave the other open.
        let mut result = Ok(());
        for family in self.families() {
            let installed = self.install_family(rules, *family).await.map_err(|error| of_family(*family, error));
            if let (Err(_), Err(error)) = (&result, &installed) {
                warn!(event = "other-family-failed", error = chain(error), "the rules of the other address family are not in place either");
            }
            result = result.and(installed);
        }
        result
    }

    async fn differences(&self, rules: &RuleSet) -> Result<Vec<String>, RedirectError> {
        let (mut words, mut failure) = (Vec::new(), None);
        for family in self.families() {
            // What is wrong with one family is known, and is to be repaired, also while the other cannot be read.
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
        let mut observed = ObservedRules { guards: Family::ALL.into(), ..ObservedRules::default() };
        let mut failures = Vec::new();
        for family in self.families() {
            match self.standing_in(*family).await.map_err(|error| of_family(*family, error)) {
                Ok((whole, closed, targets)) => {
                    if !closed {
                        observed.guards.remove(family);
                    } else if !whole {
                        observed.weak.insert(*family);
                    }
                    observed.targets.extend(targets);
                }
                Err(error) => {
                    observed.guards.remove(family);
                    failures.push((*family, error));
                }
            }
        }
        let unknown: Vec<_> = failures.iter().map(|(family, _)| *family).collect();
        match failures.into_iter().next() {
            // Where another family is known to be open, that can be mended all the same.
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

/// What `iptables-restore --noflush`, or `ip6tables-restore`, reads on a node that has nothing of ours.
pub fn render(rules: &RuleSet, family: Family) -> String {
    text::install(rules, family, &IptablesListing::default())
}

//! The backend, and how it reads the installed rules.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::chains::{ChainPosition, KernelTable, ORDER};
use super::listing::IptablesListing;
use super::program::{self, Flavour};
use crate::log_once::Condition;
use crate::redirect::RedirectError;
use crate::redirect::program::{LOCK_WAIT, run, run_for_lines};
use crate::redirect::rules::Family;

/// The programs' message for a table that the kernel does not have.
const NO_TABLE: &str = "does not exist";
/// The programs' message for a chain that does not exist.
const NO_CHAIN: &str = "No chain/target/match by that name";
/// The programs' message for rules that were made with nft; with the nft flavour, also for a chain that does not exist.
pub(in crate::redirect) const INCOMPATIBLE: &str = "is incompatible";

/// The prefix of the names of our chains.
pub(super) const OURS: &str = "ROLEGATE";

/// A file that exists if the kernel has IPv6, even if no interface has an IPv6 address.
const IPV6_OF_THE_KERNEL: &str = "/proc/net/if_inet6";

/// The iptables backend.
#[derive(Debug)]
pub struct Iptables {
    pub(super) flavour: Option<Flavour>,
    pub(super) found: OnceCell<Flavour>,
    pub(super) lock_wait: Duration,
    pub(super) ipv6: PathBuf,
    /// Whether the kernel has no table `security`.
    pub(super) without_security: Condition,
}

impl Default for Iptables {
    fn default() -> Self {
        Self {
            flavour: None,
            found: OnceCell::new(),
            lock_wait: LOCK_WAIT,
            ipv6: IPV6_OF_THE_KERNEL.into(),
            without_security: Condition::default(),
        }
    }
}

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadScope {
    /// Only the chains that a comparison needs.
    Ours,
    /// All chains, because jumps to ours may be in any of them.
    Everywhere,
}

impl Iptables {
    /// Uses the programs of this flavour by name, instead of those called `iptables`.
    #[must_use]
    pub fn with_flavour(mut self, flavour: Flavour) -> Self {
        self.flavour = Some(flavour);
        self
    }

    /// Waits this long for the lock on the tables (rounded up to seconds).
    #[must_use]
    pub fn with_lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    pub(super) fn wait(&self) -> String {
        self.lock_wait.as_millis().div_ceil(1000).max(1).to_string()
    }

    /// Returns the families that the kernel has.
    pub(super) fn families(&self) -> &'static [Family] {
        if self.ipv6.exists() { &Family::ALL } else { &[Family::V4] }
    }

    /// Returns the flavour of our rules.
    pub(in crate::redirect) async fn own(&self) -> Result<Flavour, RedirectError> {
        match self.flavour {
            Some(flavour) => Ok(flavour),
            None => self.found.get_or_try_init(program::flavour).await.copied(),
        }
    }

    /// Lists the installed rules of our flavour.
    pub(super) async fn list(&self, family: Family, look: ReadScope) -> Result<IptablesListing, RedirectError> {
        if look == ReadScope::Ours && self.own().await? == Flavour::Nft {
            return self.list_chains(family).await;
        }
        let mut listing = self.list_all(family).await?;
        if !listing.has_chain(KernelTable::Security, "FORWARD")
            && self.list_chain(family, KernelTable::Security, "FORWARD").await?.is_none()
        {
            listing.backstop = KernelTable::Mangle;
        }
        Ok(listing)
    }

    /// Lists the chains that a comparison needs: ours, and the kernel's chains that jump to them.
    async fn list_chains(&self, family: Family) -> Result<IptablesListing, RedirectError> {
        let mut listing = IptablesListing::default();
        match self.list_chain(family, KernelTable::Security, "FORWARD").await? {
            Some(text) => listing.add(KernelTable::Security, &text),
            None => listing.backstop = KernelTable::Mangle,
        }
        for hook in ORDER {
            let ChainPosition { table, from, chain } = ChainPosition::of(hook, listing.backstop);
            for name in [from, chain] {
                if listing.has_chain(table, name) {
                    continue;
                }
                let text = self.list_chain(family, table, name).await?;
                listing.add(table, &text.unwrap_or_default());
            }
        }
        Ok(listing)
    }

    /// Lists one chain as `iptables -S` prints it; `None` if the chain or its table does not exist.
    async fn list_chain(&self, family: Family, table: KernelTable, chain: &str) -> Result<Option<String>, RedirectError> {
        let (program, wait) = (program::of(self.flavour, family).iptables, self.wait());
        let listed = run(program, &["-w", &wait, "-t", table.name(), "-S", chain], "").await.map_err(program::explained);
        // The nft flavour reports a missing chain with the same words as a table that it cannot read.
        let is_missing = |message: &str| {
            message.contains(NO_CHAIN) || message.contains(NO_TABLE) || (chain.starts_with(OURS) && message.contains(INCOMPATIBLE))
        };
        match listed {
            Ok(text) => Ok(Some(text)),
            Err(RedirectError::Failed { message, .. }) if is_missing(&message) => Ok(None),
            Err(RedirectError::Failed { program, message }) if message.contains(INCOMPATIBLE) => Err(unreadable(program, table.name())),
            Err(error) => Err(error),
        }
    }

    /// Returns whether our flavour has any chain of ours. Asks for each by its name: a listing of all tables grows with the rules of other
    /// programs.
    pub(super) async fn has_chains(&self, family: Family) -> Result<bool, RedirectError> {
        // The legacy flavour would create the tables that it asks for, and it reads a whole table in any case.
        if self.own().await? == Flavour::Legacy {
            return Ok(true);
        }
        for place in ChainPosition::all() {
            if self.list_chain(family, place.table, place.chain).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lists all tables of our flavour: our chains, those of the kernel, and the jumps to ours.
    pub(super) async fn list_all(&self, family: Family) -> Result<IptablesListing, RedirectError> {
        let programs = program::of(self.flavour, family);
        let listing = IptablesListing::parse(&run_for_lines(programs.save, &[] as &[&str], is_of_interest).await?);
        match listing.unreadable.first() {
            None => Ok(listing),
            Some(table) => Err(unreadable(programs.save, table)),
        }
    }
}

/// Returns whether a line of a listing is about our rules or those of the kernel's chains, which ours come before. The rules of other
/// programs, in chains of theirs, may be many.
fn is_of_interest(line: &str) -> bool {
    let of_chain = line.strip_prefix("-A ").or_else(|| line.strip_prefix(':'));
    let chain = of_chain.and_then(|rest| rest.split(' ').next());
    chain.is_none_or(|chain| ChainPosition::all().iter().any(|place| place.from == chain) || line.contains(OURS))
}

fn unreadable(program: &'static str, table: &str) -> RedirectError {
    RedirectError::MadeWithNft { program, table: table.to_owned() }
}

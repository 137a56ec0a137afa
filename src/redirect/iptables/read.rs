//! The backend, and how it reads what is there, by the programs.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::chains::{ChainPosition, KernelTable, ORDER};
use super::listing::IptablesListing;
use super::program::{self, Flavour};
use crate::log_once::Condition;
use crate::redirect::RedirectError;
use crate::redirect::program::{LOCK_WAIT, run};
use crate::redirect::rules::Family;

/// What the programs say of a table that the kernel does not have.
const NO_TABLE: &str = "does not exist";
/// Of a chain that is not there.
const NO_CHAIN: &str = "No chain/target/match by that name";
/// Of what was made with nft; those of the nft flavour also of a chain that is not there.
const INCOMPATIBLE: &str = "is incompatible";

/// What a kernel with IPv6 has, even where no interface has an address.
const IPV6_OF_THE_KERNEL: &str = "/proc/net/if_inet6";

/// The backend.
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
    /// The chains that a comparison needs.
    Ours,
    /// Everything: jumps to our chains may be anywhere.
    Everywhere,
}

impl Iptables {
    /// With the programs of this flavour by name, and not those that are called `iptables`.
    #[must_use]
    pub fn with_flavour(mut self, flavour: Flavour) -> Self {
        self.flavour = Some(flavour);
        self
    }

    /// Waiting this long for the lock on the tables (rounded up to seconds).
    #[must_use]
    pub fn with_lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    pub(super) fn wait(&self) -> String {
        self.lock_wait.as_millis().div_ceil(1000).max(1).to_string()
    }

    /// The families that the kernel has.
    pub(super) fn families(&self) -> &'static [Family] {
        if self.ipv6.exists() { &Family::ALL } else { &[Family::V4] }
    }

    /// The flavour of our rules.
    pub(super) async fn own(&self) -> Result<Flavour, RedirectError> {
        match self.flavour {
            Some(flavour) => Ok(flavour),
            None => self.found.get_or_try_init(program::flavour).await.copied(),
        }
    }

    /// What is there of our flavour.
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

    /// The chains that a comparison needs: ours, and those of the kernel that lead to them.
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

    /// One chain, as `iptables -S` prints it; `None` where there is no such chain or table.
    async fn list_chain(&self, family: Family, table: KernelTable, chain: &str) -> Result<Option<String>, RedirectError> {
        let (program, wait) = (program::of(self.flavour, family).iptables, self.wait());
        let listed = run(program, &["-w", &wait, "-t", table.name(), "-S", chain], "").await.map_err(program::explained);
        // Those of the nft flavour call an own chain that is not there by the same words as a table that they cannot read.
        let is_missing = |message: &str| {
            message.contains(NO_CHAIN) || message.contains(NO_TABLE) || (chain.starts_with("ROLEGATE") && message.contains(INCOMPATIBLE))
        };
        match listed {
            Ok(text) => Ok(Some(text)),
            Err(RedirectError::Failed { message, .. }) if is_missing(&message) => Ok(None),
            Err(RedirectError::Failed { program, message }) if message.contains(INCOMPATIBLE) => Err(unreadable(program, table.name())),
            Err(error) => Err(error),
        }
    }

    /// All tables of our flavour.
    pub(super) async fn list_all(&self, family: Family) -> Result<IptablesListing, RedirectError> {
        let programs = program::of(self.flavour, family);
        let listing = IptablesListing::parse(&run(programs.save, &[] as &[&str], "").await?);
        match listing.unreadable.first() {
            None => Ok(listing),
            Some(table) => Err(unreadable(programs.save, table)),
        }
    }
}

fn unreadable(program: &'static str, table: &str) -> RedirectError {
    RedirectError::MadeWithNft { program, table: table.to_owned() }
}

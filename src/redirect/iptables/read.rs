//! Reads what is there, by the programs.

use super::listing::{IptablesListing, KernelTable};
use super::program::{self, Flavour};
use super::text::{ChainPosition, ORDER};
use super::{Family, Iptables};
use crate::redirect::RedirectError;
use crate::redirect::program::run;

/// What the programs say of a table that the kernel does not have.
const NO_TABLE: &str = "does not exist";
/// Of a chain that is not there.
const NO_CHAIN: &str = "No chain/target/match by that name";
/// Of what was made with nft; those of the nft flavour also of a chain that is not there.
const INCOMPATIBLE: &str = "is incompatible";

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadScope {
    /// The chains that a comparison needs.
    Ours,
    /// Everything: jumps to our chains may be anywhere.
    Everywhere,
}

impl Iptables {
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

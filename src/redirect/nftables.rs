//! The nftables backend: a table of our own in the family `inet`, ahead of both flavours of iptables.
//!
//! `nft` loads the text that [`Backend::render`] shows in one transaction: the kernel switches from the old table to the new
//! one between two packets. The table is read back as JSON, whose wording hardly differs between versions (see `listing`).
//!
//! Facts: nft(8) and libnftables-json(5).

use std::sync::{Mutex, PoisonError};

pub use self::chains::{DESTINATION_NAT, OUR_NAT, TABLE};
use self::listing::NftListing;
use super::observed::ObservedRules;
use super::program::{run, search};
use super::rules::RuleSet;
use super::{Backend, RedirectError};

mod chains;
mod listing;
#[cfg(test)]
mod tests;
mod text;

const NFT: &str = "nft";
/// The program's message for a table that does not exist, and for a kernel that lacks a chain type.
const NOT_FOUND: &str = "No such file or directory";

/// The nftables backend.
#[derive(Debug, Default)]
pub struct Nftables {
    /// How this node's `nft` lists these rules once they are installed, if that is not word for word what was expected.
    remembered: Mutex<Option<(RuleSet, NftListing)>>,
}

impl Backend for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn render(&self, rules: &RuleSet) -> String {
        text::render(rules)
    }

    async fn install(&self, rules: &RuleSet) -> Result<(), RedirectError> {
        refuse_what_cannot_be_quoted(rules)?;
        run(NFT, &["-f", "-"], &text::render(rules)).await.map_err(of_the_kernel)?;
        // The rules are installed. What follows only learns how `nft` lists them; if it fails, the next comparison reports the
        // difference.
        let wanted = NftListing::of(rules);
        let remembered = list().await.ok().flatten().filter(|found| *found != wanted && found.is_another_wording_of(&wanted));
        *self.remembered.lock().unwrap_or_else(PoisonError::into_inner) = remembered.map(|found| (rules.clone(), found));
        Ok(())
    }

    async fn differences(&self, rules: &RuleSet) -> Result<Vec<String>, RedirectError> {
        let Some(found) = list().await? else { return Ok(vec![format!("the table inet {TABLE} is missing")]) };
        let wanted = NftListing::of(rules);
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let remembered = remembered.filter(|(of, _)| of == rules).map(|(_, listing)| listing);
        Ok(if found == wanted { Vec::new() } else { found.differences(&remembered.unwrap_or(wanted)) })
    }

    async fn observed(&self) -> Result<ObservedRules, RedirectError> {
        Ok(list().await?.map(|found| found.observed()).unwrap_or_default())
    }

    async fn remove(&self) -> Result<Vec<String>, RedirectError> {
        let Some(found) = list().await? else { return Ok(Vec::new()) };
        match run(NFT, &["delete", "table", "inet", TABLE], "").await {
            Ok(_) => Ok(vec![found.to_string()]),
            // Another process has removed the table already.
            Err(RedirectError::Failed { message, .. }) if message.contains(NOT_FOUND) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Checks whether the kernel would accept these rules from `nft`. Changes nothing.
///
/// # Errors
/// If it would not, or the program cannot be run.
pub async fn try_out(rules: &RuleSet) -> Result<(), RedirectError> {
    refuse_what_cannot_be_quoted(rules)?;
    run(NFT, &["-c", "-f", "-"], &text::render(rules)).await.map(drop).map_err(of_the_kernel)
}

/// Describes the chains of other programs that may redirect connections before a packet meets ours; `priority` is that of our
/// chain. They are not reported as differences, because rolegate must not change them; connections that they redirect do not
/// reach the daemon. Empty if the program cannot list them.
pub async fn ahead_of(priority: i32) -> Vec<String> {
    match search(NFT, &["-j", "list", "chains"]).await {
        Ok(json) => listing::nat_ahead_of(&json, priority),
        Err(_) => Vec::new(),
    }
}

/// Lists our table; `None` if it does not exist.
async fn list() -> Result<Option<NftListing>, RedirectError> {
    match run(NFT, &["-j", "list", "table", "inet", TABLE], "").await {
        Ok(json) => NftListing::read(&json).map(Some).map_err(|message| RedirectError::Unreadable { program: NFT, message }),
        Err(RedirectError::Failed { message, .. }) if message.contains(NOT_FOUND) => Ok(None),
        Err(error) => Err(of_the_kernel(error)),
    }
}

/// Distinguishes a kernel that does not support the rules from a process that is not permitted to load them.
fn of_the_kernel(error: RedirectError) -> RedirectError {
    match error {
        // The message refers to our own text, so only the kernel's support can be missing.
        RedirectError::Failed { program, message } if message.contains("not supported") || message.contains(NOT_FOUND) => {
            RedirectError::Kernel { program, message }
        }
        error => error,
    }
}

/// Rejects names with a quote: a string in nft's language ends at the next quote, and there is no escape for it. No name that
/// the configuration accepts has one.
fn refuse_what_cannot_be_quoted(rules: &RuleSet) -> Result<(), RedirectError> {
    let odd = |name: &str| name.is_empty() || name.chars().any(|c| matches!(c, '"' | '\\') || !c.is_ascii_graphic());
    match rules.interfaces.iter().find(|interface| odd(&interface.name)) {
        Some(interface) => Err(RedirectError::InterfaceName { program: NFT, name: interface.name.clone() }),
        None => Ok(()),
    }
}

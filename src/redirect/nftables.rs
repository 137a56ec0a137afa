//! The rules through the program `nft`: a table of our own, of both families, ahead of both flavours of iptables.
//!
//! What is loaded is the text that [`Backend::render`] shows, in one transaction: the kernel goes from the old table to the
//! new one between two packets. What is there is read as JSON, which has the same words in every version but for little
//! (see `listing`).
//!
//! Facts: nft(8) and libnftables-json(5).

use std::sync::{Mutex, PoisonError};

pub use self::chains::{DESTINATION_NAT, OUR_NAT, TABLE};
use self::listing::NftListing;
use super::observed::ObservedRules;
use super::program::run;
use super::rules::RuleSet;
use super::{Backend, RedirectError};

mod chains;
mod listing;
#[cfg(test)]
mod tests;
mod text;

/// The program.
const NFT: &str = "nft";
/// What the program says of a table that is not there, and of a kernel that lacks a kind of chain.
const NOT_THERE: &str = "No such file or directory";

/// The backend.
#[derive(Debug, Default)]
pub struct Nftables {
    /// What the program of this node lists where these rules are in place, if that is not word for word what was expected.
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
        // The rules are in place. What comes now is only how they look; where it fails, the next comparison says so.
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
            // Somebody was faster.
            Err(RedirectError::Failed { message, .. }) if message.contains(NOT_THERE) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the kernel would take these rules from the program. Nothing is changed.
///
/// # Errors
/// If it would not, or the program cannot be run.
pub async fn try_out(rules: &RuleSet) -> Result<(), RedirectError> {
    refuse_what_cannot_be_quoted(rules)?;
    run(NFT, &["-c", "-f", "-"], &text::render(rules)).await.map(drop).map_err(of_the_kernel)
}

/// Chains of others that may send connections elsewhere before a packet meets ours, in words; ours are at this priority. It is
/// no difference, as they are not ours to change: what they send elsewhere does not come to the daemon. Nothing where the
/// program cannot tell.
pub async fn ahead_of(priority: i32) -> Vec<String> {
    match run(NFT, &["-j", "list", "chains"], "").await {
        Ok(json) => listing::nat_ahead_of(&json, priority),
        Err(_) => Vec::new(),
    }
}

/// What our table holds; `None` where there is none.
async fn list() -> Result<Option<NftListing>, RedirectError> {
    match run(NFT, &["-j", "list", "table", "inet", TABLE], "").await {
        Ok(json) => NftListing::read(&json).map(Some).map_err(|message| RedirectError::Unreadable { program: NFT, message }),
        Err(RedirectError::Failed { message, .. }) if message.contains(NOT_THERE) => Ok(None),
        Err(error) => Err(of_the_kernel(error)),
    }
}

/// Tells a kernel that cannot hold the rules from a process that may not load them.
fn of_the_kernel(error: RedirectError) -> RedirectError {
    match error {
        // What it names is in our own text, so that nothing can be missing but the kernel's support.
        RedirectError::Failed { program, message } if message.contains("not supported") || message.contains(NOT_THERE) => {
            RedirectError::Kernel { program, message }
        }
        error => error,
    }
}

/// A string of the language ends at the next quote, and nothing can be put in front of that; no name that a configuration
/// may hold has one.
fn refuse_what_cannot_be_quoted(rules: &RuleSet) -> Result<(), RedirectError> {
    let odd = |name: &str| name.is_empty() || name.chars().any(|c| matches!(c, '"' | '\\') || !c.is_ascii_graphic());
    match rules.interfaces.iter().find(|interface| odd(&interface.name)) {
        Some(interface) => Err(RedirectError::InterfaceName { program: NFT, name: interface.name.clone() }),
        None => Ok(()),
    }
}

//! The programs of each flavour and family.

use crate::redirect::RedirectError;
use crate::redirect::program::run;
use crate::redirect::rules::Family;

/// The flavour of a program, which decides which of the kernel's two sets of tables it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// The tables of nf_tables.
    Nft,
    /// The tables of older kernels.
    Legacy,
}

impl Flavour {
    /// Both flavours.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
}

/// The programs for a family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs {
    /// Checks and lists single rules.
    pub(crate) iptables: &'static str,
    /// Writes tables.
    pub(crate) restore: &'static str,
    /// Reads tables.
    pub(crate) save: &'static str,
}

/// Returns the programs of a flavour, or those with the plain names.
pub(crate) const fn of(flavour: Option<Flavour>, family: Family) -> Programs {
    match (flavour, family) {
        (None, Family::V4) => Programs { iptables: "iptables", restore: "iptables-restore", save: "iptables-save" },
        (None, Family::V6) => Programs { iptables: "ip6tables", restore: "ip6tables-restore", save: "ip6tables-save" },
        (Some(Flavour::Nft), Family::V4) => {
            Programs { iptables: "iptables-nft", restore: "iptables-nft-restore", save: "iptables-nft-save" }
        }
        (Some(Flavour::Nft), Family::V6) => {
            Programs { iptables: "ip6tables-nft", restore: "ip6tables-nft-restore", save: "ip6tables-nft-save" }
        }
        (Some(Flavour::Legacy), Family::V4) => {
            Programs { iptables: "iptables-legacy", restore: "iptables-legacy-restore", save: "iptables-legacy-save" }
        }
        (Some(Flavour::Legacy), Family::V6) => {
            Programs { iptables: "ip6tables-legacy", restore: "ip6tables-legacy-restore", save: "ip6tables-legacy-save" }
        }
    }
}

/// Returns the flavour of the program called `iptables`. Programs from before there were two flavours do not name theirs.
///
/// # Errors
/// If there is no such program.
pub(crate) async fn flavour() -> Result<Flavour, RedirectError> {
    let version = run(of(None, Family::V4).iptables, &["--version"], "").await?;
    Ok(if version.contains("nf_tables") { Flavour::Nft } else { Flavour::Legacy })
}

/// Turns an error about the lock on the tables into [`RedirectError::Locked`].
pub(crate) fn explained(error: RedirectError) -> RedirectError {
    match error {
        RedirectError::Failed { program, message } if message.contains("xtables lock") || message.contains("lock file") => {
            RedirectError::Locked { program, message }
        }
        error => error,
    }
}

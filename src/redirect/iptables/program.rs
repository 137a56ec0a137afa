//! The programs of the flavours and families.

use crate::redirect::RedirectError;
use crate::redirect::program::run;
use crate::redirect::rules::Family;

/// Which of the kernel's two sets of tables a program works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Those of nf_tables.
    Nft,
    /// Those of the older kernels.
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
}

/// The programs for a family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs {
    /// Asks for single rules.
    pub(crate) iptables: &'static str,
    /// Writes.
    pub(crate) restore: &'static str,
    /// Reads.
    pub(crate) save: &'static str,
}

/// Those of a flavour, or those that go by the plain names.
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

/// The flavour of the program called `iptables`. Those from before there were two do not name it.
///
/// # Errors
/// If there is no such program.
pub(crate) async fn flavour() -> Result<Flavour, RedirectError> {
    let version = run(of(None, Family::V4).iptables, &["--version"], "").await?;
    Ok(if version.contains("nf_tables") { Flavour::Nft } else { Flavour::Legacy })
}

/// An error that was about the lock on the tables says so.
pub(crate) fn explained(error: RedirectError) -> RedirectError {
    match error {
        RedirectError::Failed { program, message } if message.contains("xtables lock") || message.contains("lock file") => {
            RedirectError::Locked { program, message }
        }
        error => error,
    }
}

//! The AWS account that the metadata service names, compared with the one that STS names.
//!
//! `--auto-discover-base-arn` and `--auto-discover-default-role` take the account from `iam/info`. That is plain HTTP, so
//! whoever responds there chooses the account. STS names the account of the daemon's own credentials. If the two differ, roles
//! of the account in `iam/info` are refused.
//!
//! Only the daemon's own credentials count, not those of the intermediate role: `iam/info` names the account of the instance
//! profile, from which the daemon's own credentials come, while an intermediate role is often in another account on purpose. If
//! the daemon's credentials belong to another account than its instance, the operator sets the base ARN.

use super::Policy;
use super::denial::Denial;
use super::node::{KnownNode, OWN};
use super::trace::{Trace, What};
use crate::role::{BaseArn, CallerIdentity, Partition, RoleArn};

/// An account that the metadata service named but that is not the daemon's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignAccount {
    /// The partition of the account.
    pub partition: Partition,
    /// The twelve digits of the account.
    pub account: Box<str>,
    /// The identity of the daemon's own credentials according to STS.
    pub identity: CallerIdentity,
}

impl Policy {
    /// Returns the account whose roles are refused because it is not that of the daemon's own identity, once that is known.
    pub fn foreign_account(&self) -> Option<ForeignAccount> {
        let identity = self.node.known().caller.clone()?;
        let base = self.rules.base.as_ref().filter(|_| self.rules.discovered.base).map(|base| (base.partition(), base.account()));
        let default = self.rules.default_role.as_ref().filter(|_| self.rules.discovered.default_role);
        let default = default.map(|role| (role.partition(), role.account()));
        let (partition, account) =
            base.into_iter().chain(default).find(|(partition, account)| !identity.is_of_account(*partition, account))?;
        Some(ForeignAccount { partition, account: account.into(), identity })
    }

    /// Refuses a role of a discovered account that is not the daemon's own. This includes every role under a discovered base ARN,
    /// even if the pod names it in full, because the lists of namespaces and `--allowed-roles` are completed with the same base
    /// ARN.
    pub(super) fn check_account(&self, role: &RoleArn, node: &KnownNode, trace: &mut impl Trace) -> Result<(), Denial> {
        let rules = &self.rules;
        let under = |base: &BaseArn| role.as_str().starts_with(base.as_str());
        let by_base = rules.discovered.base && rules.base.as_ref().is_some_and(under);
        let by_default = rules.discovered.default_role && rules.default_role.as_ref() == Some(role);
        match &node.caller {
            _ if !by_base && !by_default => Ok(()),
            // This decision is made again before credentials are served.
            None => {
                trace.skip(What::Account, || OWN.to_owned(), || "not known yet".to_owned());
                Ok(())
            }
            Some(caller) => {
                let own = if caller.is_of_account(role.partition(), role.account()) { Ok(()) } else { Err(Denial::ForeignAccount) };
                trace.check(What::Account, || OWN.to_owned(), own, |()| format!("in the account of iam/info, {}", role.account()))
            }
        }
    }
}

#[cfg(test)]
mod tests;

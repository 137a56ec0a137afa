//! The rules that rolegate has in the kernel, whether wanted or not. They are found by the names of our table and chains.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::rules::{Family, Targets};

/// The rules that rolegate has in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRules {
    /// The families whose guard keeps packets from the real metadata service.
    pub guards: BTreeSet<Family>,
    /// Those of `guards` whose guard is closed but incomplete and has to be installed again.
    pub weak: BTreeSet<Family>,
    /// The addresses that requests are sent to.
    pub targets: BTreeSet<SocketAddr>,
}

impl ObservedRules {
    /// Returns whether every packet that is forwarded to a metadata address would be stopped, by a complete guard.
    pub fn is_guarded(&self) -> bool {
        self.is_guarded_but_for(&[])
    }

    /// Returns whether the guard is complete for all families but the unknown ones.
    pub fn is_guarded_but_for(&self, unknown: &[Family]) -> bool {
        Family::ALL.iter().all(|family| unknown.contains(family) || (self.guards.contains(family) && !self.weak.contains(family)))
    }

    /// Returns where requests are sent, if those of any family are.
    pub fn as_targets(&self, refuse_direct: bool) -> Option<Targets> {
        let ipv4 = self.targets.iter().find_map(|target| match target {
            SocketAddr::V4(ipv4) => Some(*ipv4),
            SocketAddr::V6(_) => None,
        });
        let ipv6 = self.targets.iter().find_map(|target| match target {
            SocketAddr::V4(_) => None,
            SocketAddr::V6(ipv6) => Some(*ipv6),
        });
        (ipv4.is_some() || ipv6.is_some()).then_some(Targets { ipv4, ipv6, refuse_direct })
    }
}

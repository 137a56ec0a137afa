//! What stands of ours in the kernel, whatever is wanted: found by the names of our table and chains.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::rules::{Family, Targets};

/// What stands of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRules {
    /// The families whose guard is in a packet's way.
    pub guards: BTreeSet<Family>,
    /// Those of them whose guard is closed and not whole: it is to be put in place again.
    pub weak: BTreeSet<Family>,
    /// Where requests are sent to.
    pub targets: BTreeSet<SocketAddr>,
}

impl ObservedRules {
    /// Whether nothing that is forwarded to a metadata address would pass, and the guard is whole.
    pub fn is_guarded(&self) -> bool {
        self.is_guarded_but_for(&[])
    }

    /// Whether the guard of all other families is whole.
    pub fn is_guarded_but_for(&self, unknown: &[Family]) -> bool {
        Family::ALL.iter().all(|family| unknown.contains(family) || (self.guards.contains(family) && !self.weak.contains(family)))
    }

    /// Where requests are sent to, if IPv4's are.
    pub fn as_targets(&self, refuse_direct: bool) -> Option<Targets> {
        let ipv4 = self.targets.iter().find_map(|target| match target {
            SocketAddr::V4(ipv4) => Some(*ipv4),
            SocketAddr::V6(_) => None,
        })?;
        let ipv6 = self.targets.iter().find_map(|target| match target {
            SocketAddr::V4(_) => None,
            SocketAddr::V6(ipv6) => Some(*ipv6),
        });
        Some(Targets { ipv4, ipv6, refuse_direct })
    }
}

//! The rules that rolegate has in the kernel, whether wanted or not. They are found by the names of our table and chains.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::rules::{DirectConnections, Family, Targets};

/// The rules that rolegate has in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRules {
    /// The families whose guard keeps packets from the real metadata service.
    pub guards: BTreeSet<Family>,
    /// Those of `guards` whose guard is closed but incomplete and has to be installed again.
    pub weak: BTreeSet<Family>,
    /// The families whose packets from other addresses than the node's cannot leave to the metadata service.
    pub exits: BTreeSet<Family>,
    /// The families whose metadata address other programs cannot redirect for the node's own processes.
    pub pins: BTreeSet<Family>,
    /// The addresses that requests are sent to.
    pub targets: BTreeSet<SocketAddr>,
    /// The addresses of Pod Identity that other programs cannot redirect, and to which no packet leaves the node.
    pub pod_identity: BTreeSet<SocketAddr>,
    /// The families that the kernel does not have, which need no rules.
    pub absent: BTreeSet<Family>,
}

impl ObservedRules {
    /// Returns rules without targets that are complete for these families.
    pub fn guarding(families: impl IntoIterator<Item = Family>) -> Self {
        let families: BTreeSet<_> = families.into_iter().collect();
        Self { guards: families.clone(), exits: families.clone(), pins: families, ..Self::default() }
    }

    /// Returns whether the guard, the exit and the pin are complete: no pod's packet reaches a metadata address, and the node's
    /// own requests reach it.
    pub fn is_guarded(&self) -> bool {
        self.is_guarded_but_for(&[])
    }

    /// Returns whether the node is guarded, and these addresses of Pod Identity are.
    pub fn is_guarded_with(&self, pod_identity: &BTreeSet<SocketAddr>) -> bool {
        let is_guarded = |address: &SocketAddr| self.pod_identity.contains(address) || self.absent.contains(&Family::of(address.ip()));
        self.is_guarded() && pod_identity.iter().all(is_guarded)
    }

    /// Returns whether the node is guarded, but for the unknown families.
    pub fn is_guarded_but_for(&self, unknown: &[Family]) -> bool {
        let is_guarded = |family: &Family| {
            let has = |families: &BTreeSet<Family>| families.contains(family);
            has(&self.guards) && !has(&self.weak) && has(&self.exits) && has(&self.pins)
        };
        Family::ALL.iter().all(|family| unknown.contains(family) || is_guarded(family))
    }

    /// Removes a family, of which only the targets may be known.
    pub(super) fn forget(&mut self, family: Family) {
        for families in [&mut self.guards, &mut self.weak, &mut self.exits, &mut self.pins] {
            families.remove(&family);
        }
    }

    /// Returns where requests are sent, if those of any family are.
    pub fn as_targets(&self, direct: DirectConnections) -> Option<Targets> {
        let ipv4 = self.targets.iter().find_map(|target| match target {
            SocketAddr::V4(ipv4) => Some(*ipv4),
            SocketAddr::V6(_) => None,
        });
        let ipv6 = self.targets.iter().find_map(|target| match target {
            SocketAddr::V4(_) => None,
            SocketAddr::V6(ipv6) => Some(*ipv6),
        });
        (ipv4.is_some() || ipv6.is_some()).then_some(Targets { ipv4, ipv6, direct })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_kernel_does_not_have_needs_no_rules_for_pod_identity() {
        let [ipv4, ipv6] = ["169.254.170.23:80", "[fd00:ec2::23]:80"].map(|text| text.parse::<SocketAddr>().unwrap());
        let observed = ObservedRules { pod_identity: [ipv4].into(), ..ObservedRules::guarding(Family::ALL) };
        assert!(observed.is_guarded_with(&[ipv4].into()) && !observed.is_guarded_with(&[ipv4, ipv6].into()));
        let without_ipv6 = ObservedRules { absent: [Family::V6].into(), ..observed.clone() };
        assert!(without_ipv6.is_guarded_with(&[ipv4, ipv6].into()));
        let open = ObservedRules { guards: [Family::V6].into(), ..observed };
        assert!(!open.is_guarded_with(&[ipv4].into()));
    }
}

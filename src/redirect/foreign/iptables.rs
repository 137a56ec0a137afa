//! Finds redirects of the node's own metadata requests in the table `nat` of iptables. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::redirect::iptables::chains::KernelTable;
use crate::redirect::iptables::listing::{IptablesListing, Listed, canonical};
use crate::redirect::rules::Family;

/// The targets that change a destination.
const REDIRECTS: [&str; 4] = ["DNAT", "REDIRECT", "NETMAP", "TPROXY"];
/// The prefix of our own chains.
const OURS: &str = "ROLEGATE";

/// Returns the rules that name the metadata address, or a network with it, and redirect what the node's own processes send there,
/// by themselves or through other chains.
pub(super) fn redirects(listing: &IptablesListing, family: Family) -> Vec<String> {
    let reached = closure(listing, "OUTPUT");
    let rules = reached.iter().flat_map(|chain| listing.chain(KernelTable::Nat, chain));
    rules
        .filter(|rule| names(rule, family.metadata()) && leads_to_redirect(listing, rule))
        .map(|rule| format!("-A {} {}", rule.chain, rule.words))
        .collect()
}

/// Returns a chain and the chains that can be reached from it, without ours.
fn closure(listing: &IptablesListing, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from.to_owned()];
    while let Some(chain) = next.pop() {
        if chain.starts_with(OURS) || !reached.insert(chain.clone()) {
            continue;
        }
        let targets = listing.chain(KernelTable::Nat, &chain).filter_map(Listed::target);
        next.extend(targets.filter(|target| listing.has_chain(KernelTable::Nat, target)));
    }
    reached
}

fn leads_to_redirect(listing: &IptablesListing, rule: &Listed) -> bool {
    let Some(target) = rule.target() else { return false };
    let redirects = |target: &str| REDIRECTS.contains(&target);
    let of_chain = |chain: &String| listing.chain(KernelTable::Nat, chain).filter_map(Listed::target).any(|target| redirects(&target));
    redirects(&target) || (listing.has_chain(KernelTable::Nat, &target) && closure(listing, &target).iter().any(of_chain))
}

/// Returns whether the destination that a rule names includes the address.
fn names(rule: &Listed, address: IpAddr) -> bool {
    canonical(&rule.words).iter().find_map(|word| word.strip_prefix("-d ")).is_some_and(|destination| includes(destination, address))
}

/// Returns whether an address or a network, in the notation of iptables, includes an address of the same family.
fn includes(destination: &str, address: IpAddr) -> bool {
    let (network, length) = destination.split_once('/').unwrap_or((destination, ""));
    let (Ok(network), bits) = (network.parse::<IpAddr>(), if address.is_ipv4() { 32 } else { 128 }) else { return false };
    if network.is_ipv4() != address.is_ipv4() {
        return false;
    }
    let length: u32 = if length.is_empty() { bits } else { length.parse().unwrap_or(bits) };
    let value = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let shift = bits.saturating_sub(length);
    value(network).checked_shr(shift).unwrap_or(0) == value(address).checked_shr(shift).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kube-proxy writes for a Service with the metadata address as an external IP and one endpoint.
    const KUBE_PROXY: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-X - [0:0]
:KUBE-SVC-X - [0:0]
:KUBE-SEP-X - [0:0]
:KUBE-MARK-MASQ - [0:0]
:ROLEGATE-PIN - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -d 169.254.169.254/32 -p tcp -j ROLEGATE-PIN
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A ROLEGATE-PIN -d 169.254.169.254/32 -p tcp -j DNAT --to-destination 169.254.169.254
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"default/kubernetes:https cluster IP\" -m tcp --dport 443 -j KUBE-SVC-X
-A KUBE-SERVICES -d 169.254.169.254/32 -p tcp -m comment --comment \"evil/imds:http external IP\" -m tcp --dport 80 -j KUBE-EXT-X
-A KUBE-EXT-X -m comment --comment \"masquerade traffic for evil/imds:http external destinations\" -j KUBE-MARK-MASQ
-A KUBE-EXT-X -j KUBE-SVC-X
-A KUBE-SVC-X -m comment --comment \"evil/imds:http -> 10.42.0.7:8080\" -j KUBE-SEP-X
-A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination 10.42.0.7:8080
COMMIT
";

    fn found(text: &str, family: Family) -> Vec<String> {
        redirects(&IptablesListing::parse(text), family)
    }

    #[test]
    fn a_service_with_the_metadata_address_is_found() {
        let [rule] = &found(KUBE_PROXY, Family::V4)[..] else { panic!("not exactly one") };
        assert!(rule.starts_with("-A KUBE-SERVICES -d 169.254.169.254/32") && rule.contains("evil/imds:http"), "{rule}");
        assert_eq!(found(KUBE_PROXY, Family::V6), [""; 0]);
        // Without endpoints kube-proxy has no redirect.
        let (without, _) = KUBE_PROXY.split_once("-A KUBE-SEP-X").unwrap_or_default();
        assert_eq!(found(without, Family::V4), [""; 0]);
        // Pods' requests meet rolegate's redirect first.
        assert_eq!(found(&KUBE_PROXY.replace("-A OUTPUT -m", "-A POSTROUTING -m"), Family::V4), [""; 0]);
    }

    #[test]
    fn only_redirects_of_the_metadata_address_count() {
        let nat = |rule: &str| format!("*nat\n:OUTPUT ACCEPT [0:0]\n:OTHER - [0:0]\n{rule}\nCOMMIT\n");
        for (rule, family) in [
            ("-A OUTPUT -d 169.254.169.254/32 -j DNAT --to-destination 10.0.0.1", Family::V4),
            ("-A OUTPUT -d 169.254.0.0/16 -p tcp -j REDIRECT --to-ports 8080", Family::V4),
            ("-A OUTPUT -d 0.0.0.0/0 -p tcp -j REDIRECT --to-ports 8080", Family::V4),
            ("-A OUTPUT -d fd00:ec2::254/128 -p tcp -j DNAT --to-destination [fd00::1]:80", Family::V6),
            ("-A OUTPUT -d fd00:ec2::/64 -p tcp -j REDIRECT --to-ports 1", Family::V6),
        ] {
            assert_eq!(found(&nat(rule), family), [rule]);
        }
        for rule in [
            "-A OUTPUT -d 169.254.169.254/32 -j RETURN",
            "-A OUTPUT ! -d 169.254.169.254/32 -j DNAT --to-destination 10.0.0.1",
            "-A OUTPUT -d 169.254.170.2/32 -p tcp -j DNAT --to-destination 10.0.0.1",
            "-A OUTPUT -d 169.254.170.0/24 -p tcp -j DNAT --to-destination 10.0.0.1",
            "-A OUTPUT -d 169.254.169.254/32 -j OTHER",
            "-A PREROUTING -d 169.254.169.254/32 -i cni0 -p tcp -j DNAT --to-destination 10.0.0.1:8181",
            "-A OUTPUT -j OTHER\n-A OTHER -j OTHER",
        ] {
            assert_eq!(found(&nat(rule), Family::V4), [""; 0], "{rule}");
        }
    }
}

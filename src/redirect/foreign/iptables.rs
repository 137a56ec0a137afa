//! Finds redirects by other programs in the table `nat` of iptables. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::destination::{Destination, Fit, is_in_network};
use crate::redirect::iptables::chains::KernelTable;
use crate::redirect::iptables::listing::{IptablesListing, Listed, canonical};

/// The targets that change a destination.
const REDIRECTS: [&str; 4] = ["DNAT", "REDIRECT", "NETMAP", "TPROXY"];
/// The prefix of our own chains.
const OURS: &str = "ROLEGATE";

/// Returns the rules that name the destination, or a network or range with it, and redirect what is sent there, by themselves or
/// through other chains.
pub(super) fn redirects(listing: &IptablesListing, destination: Destination) -> Vec<String> {
    let graph = ChainGraph::of(listing, destination);
    let reached = graph.closure(destination.hooks().iter().map(|hook| hook.to_uppercase()));
    let rules = reached.iter().flat_map(|chain| graph.rules_of(chain));
    rules
        .filter(|rule| rule.fit == Fit::Named && graph.leads_to_redirect(rule))
        .map(|GraphRule { listed, .. }| format!("-A {} {}", listed.chain, listed.words))
        .collect()
}

/// The rules of the table `nat` that may apply to packets to a destination, by chain. A node has a chain for each port of a Service and for
/// each of its endpoints, so each rule is read once.
#[derive(Debug)]
struct ChainGraph<'a>(HashMap<&'a str, Vec<GraphRule<'a>>>);

#[derive(Debug)]
struct GraphRule<'a> {
    listed: &'a Listed,
    fit: Fit,
    target: Option<String>,
}

impl<'a> ChainGraph<'a> {
    /// Leaves out our own chains.
    fn of(listing: &'a IptablesListing, destination: Destination) -> Self {
        let mut chains: HashMap<_, Vec<_>> = HashMap::new();
        for listed in listing.rules_of(KernelTable::Nat).filter(|rule| !rule.chain.starts_with(OURS)) {
            let fit = fit(listed, destination);
            if fit != Fit::Excluded {
                chains.entry(listed.chain.as_str()).or_default().push(GraphRule { listed, fit, target: listed.target() });
            }
        }
        Self(chains)
    }

    fn rules_of(&self, chain: &str) -> &[GraphRule<'a>] {
        self.0.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Returns these chains and those that packets to the destination can reach from them.
    fn closure(&self, from: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let (mut reached, mut next) = (BTreeSet::new(), from.into_iter().collect::<Vec<_>>());
        while let Some(chain) = next.pop() {
            let targets = self.rules_of(&chain).iter().filter_map(|rule| rule.target.as_ref());
            let unseen = targets.filter(|target| self.0.contains_key(target.as_str()) && !reached.contains(*target));
            next.extend(unseen.cloned());
            reached.insert(chain);
        }
        reached
    }

    fn leads_to_redirect(&self, rule: &GraphRule<'_>) -> bool {
        let Some(target) = &rule.target else { return false };
        let redirects = |target: &str| REDIRECTS.contains(&target);
        let of_chain = |chain: &String| self.rules_of(chain).iter().any(|rule| rule.target.as_deref().is_some_and(redirects));
        redirects(target) || self.closure([target.clone()]).iter().any(of_chain)
    }
}

/// Returns whether a rule applies to packets to the destination.
fn fit(rule: &Listed, destination: Destination) -> Fit {
    let options = canonical(&rule.words);
    options.iter().map(|option| of_option(option, destination)).fold(Fit::Open, Fit::and)
}

fn of_option(option: &str, destination: Destination) -> Fit {
    let (option, negated) = option.strip_prefix("! ").map_or((option, false), |option| (option, true));
    let Some((name, value)) = option.split_once(' ') else { return Fit::Open };
    let fit = match (name, destination.port()) {
        ("-d", _) => Fit::named_if(includes(value, destination.ip())),
        ("--dport" | "--dports" | "--destination-ports", Some(port)) => {
            Fit::named_if(value.split(',').any(|ports| is_in_range(ports, port)))
        }
        ("-p", Some(_)) => Fit::open_if(matches!(value, "tcp" | "6" | "all" | "0")),
        ("--dst-type", Some(_)) => Fit::open_if(value == "LOCAL"),
        _ => return Fit::Open,
    };
    if negated { fit.negated() } else { fit }
}

/// Returns whether a port is this one, or is in a range like `80:90`.
fn is_in_range(ports: &str, port: u16) -> bool {
    let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
    let end = |text: &str, default: u16| if text.is_empty() { Some(default) } else { text.parse().ok() };
    matches!((end(first, 0), end(last, u16::MAX)), (Some(first), Some(last)) if (first..=last).contains(&port))
}

/// Returns whether an address or a network, in the notation of iptables, includes an address of the same family.
fn includes(destination: &str, address: IpAddr) -> bool {
    let (network, length) = destination.split_once('/').unwrap_or((destination, ""));
    let Ok(network) = network.parse::<IpAddr>() else { return false };
    is_in_network(address, network, length.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::redirect::rules::Family;

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
        redirects(&IptablesListing::parse(text), Destination::Metadata(family))
    }

    fn found_to(daemon: &str, text: &str) -> Vec<String> {
        redirects(&IptablesListing::parse(text), Destination::Daemon(daemon.parse().unwrap()))
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
    fn a_service_with_the_daemons_address_and_port_is_found() {
        let service = KUBE_PROXY.replace("-d 169.254.169.254/32 -p tcp -m comment", "-d 192.0.2.1/32 -p tcp -m comment");
        let service = service.replace("--dport 80 -j KUBE-EXT-X", "--dport 8181 -j KUBE-EXT-X");
        for hook in ["PREROUTING", "OUTPUT"] {
            let service = service.replace(&format!("-A {hook} -m comment"), "-A POSTROUTING -m comment");
            let [rule] = &found_to("192.0.2.1:8181", &service)[..] else { panic!("not exactly one: {service}") };
            assert!(rule.starts_with("-A KUBE-SERVICES -d 192.0.2.1/32") && rule.contains("evil/imds:http"), "{rule}");
        }
        assert_eq!(found(&service, Family::V4), [""; 0]);
        for other in ["192.0.2.1:8182", "192.0.2.2:8181", "10.42.0.7:8080", "[2001:db8::1]:8181"] {
            assert_eq!(found_to(other, &service), [""; 0], "{other}");
        }
    }

    /// Packets to the metadata address may reach the chain of every node port, as far as these rules say.
    #[test]
    fn thousands_of_services_are_searched_once() {
        let mut text = KUBE_PROXY.replace("COMMIT\n", "");
        text += ":KUBE-NODEPORTS - [0:0]\n-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";
        for number in 0..10_000 {
            text += &format!(":KUBE-SVC-{number} - [0:0]\n-A KUBE-NODEPORTS -p tcp -m tcp --dport {number} -j KUBE-SVC-{number}\n");
            text += &format!("-A KUBE-SVC-{number} -p tcp -m tcp -j DNAT --to-destination 10.42.0.7:8080\n");
        }
        let listing = IptablesListing::parse(&text);
        let began = std::time::Instant::now();
        assert_eq!(redirects(&listing, Destination::Metadata(Family::V4)).len(), 1);
        assert_eq!(redirects(&listing, Destination::Daemon("192.0.2.1:8181".parse().unwrap())).len(), 1);
        // A search of all rules for each chain takes minutes.
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }

    #[test]
    fn only_redirects_of_the_daemons_address_and_port_count() {
        const DAEMON: &str = "192.0.2.1:8181";
        let nat = |rule: &str| {
            format!("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:OTHER - [0:0]\n:ROLEGATE-KEEP-IN - [0:0]\n{rule}\nCOMMIT\n")
        };
        for rule in [
            "-A PREROUTING -d 192.0.2.1/32 -j DNAT --to-destination 10.42.0.7",
            "-A PREROUTING -d 192.0.2.0/24 -p tcp -j REDIRECT --to-ports 15001",
            "-A OUTPUT -d 192.0.2.1/32 -p tcp -m tcp --dport 8181 -j DNAT --to-destination 10.42.0.7:8080",
            // A host port of a pod.
            "-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8181 -j DNAT --to-destination 10.42.0.7:8080",
            "-A PREROUTING ! -i docker0 -p tcp -m multiport --dports 80,8000:9000 -j DNAT --to-destination 10.42.0.7:8080",
        ] {
            assert_eq!(found_to(DAEMON, &nat(rule)), [rule]);
        }
        for rule in [
            "-A PREROUTING -p tcp -j DNAT --to-destination 10.42.0.7",
            "-A PREROUTING -d 192.0.2.1/32 -p tcp -j RETURN",
            "-A PREROUTING -d 192.0.2.1/32 -p udp -m udp --dport 8181 -j DNAT --to-destination 10.42.0.7:8080",
            "-A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 8182 -j DNAT --to-destination 10.42.0.7:8080",
            "-A PREROUTING -d 192.0.2.2/32 -p tcp -m tcp --dport 8181 -j DNAT --to-destination 10.42.0.7:8080",
            "-A PREROUTING ! -d 192.0.2.1/32 -p tcp -m tcp --dport 8181 -j DNAT --to-destination 10.42.0.7:8080",
            "-A PREROUTING -p tcp -m addrtype ! --dst-type LOCAL -m tcp --dport 8181 -j DNAT --to-destination 10.42.0.7:8080",
            "-A PREROUTING -d 169.254.169.254/32 -i cni0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.1:8181",
            "-A POSTROUTING -d 192.0.2.1/32 -j DNAT --to-destination 10.42.0.7",
            // Not of packets to the daemon.
            "-A PREROUTING -d 192.0.2.9/32 -j OTHER\n-A OTHER -p tcp -m tcp --dport 8181 -j DNAT --to-destination 10.42.0.7:8080",
            // Our own.
            "-A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 8181 -j ROLEGATE-KEEP-IN\n\
             -A ROLEGATE-KEEP-IN -d 192.0.2.1/32 -p tcp -m tcp --dport 8181 -j DNAT --to-destination 192.0.2.1",
        ] {
            assert_eq!(found_to(DAEMON, &nat(rule)), [""; 0], "{rule}");
        }
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

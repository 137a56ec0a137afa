//! The report of `rolegate redirect status`: what happens to a pod's packet on this node. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::foreign::ForeignRedirects;
use super::observed::ObservedRules;
use super::rules::{Family, RuleSet};

/// The observed state of the node.
#[derive(Clone, Debug)]
pub struct NodeObservation {
    /// rolegate's rules in the backend that is compared.
    pub observed: ObservedRules,
    /// The name of that backend.
    pub backend: &'static str,
    /// Differences from the wanted rules.
    pub differences: Vec<String>,
    /// The other backend, and rolegate's rules in it, or why they are not known.
    pub elsewhere: Option<(&'static str, Result<ObservedRules, String>)>,
    /// Rules that kube2iam and kiam left behind, or why they are not known.
    pub legacy_rules: Result<Vec<String>, String>,
    /// Redirects by other programs.
    pub foreign: ForeignRedirects,
    /// The routing rules.
    pub routing: RoutingObservation,
    /// The addresses of this node.
    pub addresses: Vec<IpAddr>,
    /// Whether a daemon runs on this node, if that is known.
    pub daemon: Option<bool>,
}

/// The observed routing rules.
#[derive(Clone, Debug, Default)]
pub struct RoutingObservation {
    /// Whether there are to be any.
    pub wanted: bool,
    /// Whether there are any of rolegate's.
    pub has_ours: bool,
    /// The families in which pods' packets have no route to the real metadata service.
    pub closed: BTreeSet<Family>,
    /// Rules of other programs that come first and may route pods' packets there.
    pub ahead: Vec<String>,
    /// Differences from the wanted rules.
    pub differences: Vec<String>,
    /// Why the rules of a family are not known.
    pub unknown: Vec<String>,
}

/// What a command prints, and whether the rules are as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusReport {
    /// The lines that are printed.
    pub lines: Vec<String>,
    /// Whether the node is guarded and no rule differs.
    pub as_wanted: bool,
}

/// Reports the state of the node compared with the `wanted` rules.
pub fn tell(wanted: &RuleSet, seen: &NodeObservation) -> StatusReport {
    let mut lines = Vec::new();
    let mut as_wanted = seen.differences.is_empty();
    for family in Family::ALL {
        let (what, line) = of_family(family, seen);
        // With the guard alone wanted, no redirect is as wanted.
        as_wanted &= !matches!(what, PacketDestination::Service | PacketDestination::NoRoute);
        lines.push(line);
        if let PacketDestination::Daemon(target) = what
            && !seen.addresses.contains(&target.ip())
        {
            as_wanted = false;
            lines.push(format!("this node does not have the address {}: pods' requests leave the node", target.ip()));
        }
        lines.push(of_exit(family, seen));
        lines.push(of_pin(family, seen));
    }
    if wanted.targets.is_none() && seen.observed.targets.is_empty() && seen.observed.is_guarded() {
        lines.push("only the guard is installed: pods' requests are rejected until a daemon installs its redirect rules".to_owned());
    }
    match seen.daemon {
        Some(true) => lines.push("a rolegate daemon runs on this node".to_owned()),
        Some(false) if !seen.observed.targets.is_empty() => {
            lines.push("no rolegate daemon runs on this node: pods' requests are refused until one starts".to_owned());
        }
        _ => {}
    }
    lines.extend(seen.differences.iter().map(|difference| format!("differs ({}): {difference}", seen.backend)));
    if seen.differences.is_empty() {
        lines.extend(wanted.kept_addresses().iter().map(|daemon| format!("{daemon}: connections are pinned to the daemon")));
    }
    as_wanted &= tell_routing(&seen.routing, &mut lines);
    match &seen.elsewhere {
        Some((backend, Ok(observed))) if *observed != ObservedRules::default() => {
            lines.push(format!("rolegate also has rules in {backend}: {}; `rolegate redirect install` removes them", parts(observed)));
        }
        Some((backend, Err(reason))) => lines.push(format!("cannot check {backend} for rules of rolegate: {reason}")),
        _ => {}
    }
    let ForeignRedirects { own_requests, to_daemon, unsearched } = &seen.foreign;
    lines.extend(own_requests.iter().map(|redirect| format!("another program redirects the node's own metadata requests: {redirect}")));
    lines.extend(to_daemon.iter().map(|redirect| format!("another program redirects connections to the daemon: {redirect}")));
    lines.extend(unsearched.iter().map(|one| format!("cannot search {} for redirects by other programs: {}", one.what, one.error)));
    match &seen.legacy_rules {
        Ok(left) => {
            lines.extend(
                left.iter()
                    .map(|rule| format!("kube2iam or kiam left a rule behind: {rule}; `rolegate redirect remove --peers` removes it")),
            );
        }
        Err(reason) => lines.push(format!("cannot check for rules of kube2iam and kiam: {reason}")),
    }
    StatusReport { lines, as_wanted }
}

/// Describes the routing rules, and returns whether they are as wanted. A kernel that has none is guarded by the packet rules.
fn tell_routing(seen: &RoutingObservation, lines: &mut Vec<String>) -> bool {
    if !seen.wanted {
        if seen.has_ours {
            lines.push(
                "rolegate's routing rules are in place, but --redirect-routing-rules=false turns them off; `rolegate redirect install` removes them"
                    .to_owned(),
            );
        }
        return true;
    }
    let closed: Vec<_> = seen.closed.iter().map(|family| family.metadata().to_string()).collect();
    if !closed.is_empty() {
        lines.push(format!("only the node itself has a route to {}, whatever the packet rules are", closed.join(" and ")));
    }
    lines.extend(seen.differences.iter().map(|difference| format!("differs (routing): {difference}")));
    lines.extend(seen.ahead.iter().map(|rule| {
        format!(
            "the routing rule '{rule}' of another program comes before rolegate's; only the packet rules guard the packets that it matches"
        )
    }));
    lines.extend(seen.unknown.iter().map(|reason| format!("cannot check the routing rules: {reason}")));
    seen.differences.is_empty()
}

/// What happens to a pod's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PacketDestination {
    /// A request to port 80 is redirected here.
    Daemon(SocketAddr),
    /// It is rejected.
    Guard,
    /// It has no route to the service, and no packet rule rejects it.
    NoRoute,
    /// It reaches the real metadata service.
    Service,
}

fn of_family(family: Family, seen: &NodeObservation) -> (PacketDestination, String) {
    // The guard of either backend is enough.
    let all = of_all_backends(seen);
    let guarded = all.iter().any(|observed| observed.guards.contains(&family));
    let target = all.iter().flat_map(|observed| &observed.targets).find(|target| target.is_ipv6() == (family == Family::V6));
    let (address, no_route) = (family.metadata(), seen.routing.closed.contains(&family));
    let rest = match (guarded, no_route) {
        (true, _) => "rejected",
        (false, true) => "not guarded by packet rules; only the routing rules keep pods from the real metadata service",
        (false, false) => "not guarded: THE NODE IS OPEN, pods reach the real metadata service",
    };
    let unguarded = if no_route { PacketDestination::NoRoute } else { PacketDestination::Service };
    match (target, guarded) {
        (Some(target), true) => (
            PacketDestination::Daemon(*target),
            format!("{address}: port 80 is redirected to the daemon at {target}; other ports are {rest}"),
        ),
        (Some(target), false) => (unguarded, format!("{address}: port 80 is redirected to the daemon at {target}; other ports are {rest}")),
        (None, true) => (PacketDestination::Guard, format!("{address}: all packets are rejected")),
        (None, false) => (unguarded, format!("{address}: {rest}")),
    }
}

/// What happens to packets that leave the node with a source address that is not the node's.
fn of_exit(family: Family, seen: &NodeObservation) -> String {
    let address = family.metadata();
    if of_all_backends(seen).iter().any(|observed| observed.exits.contains(&family)) {
        format!("{address}: only packets from the node's own addresses leave the node")
    } else {
        format!(
            "{address}: packets leave the node with any source address: a proxy on the node that uses pods' addresses reaches the service"
        )
    }
}

/// What happens to the node's own requests.
fn of_pin(family: Family, seen: &NodeObservation) -> String {
    let address = family.metadata();
    if of_all_backends(seen).iter().any(|observed| observed.pins.contains(&family)) {
        format!("{address}: the node's own requests are pinned to it")
    } else {
        format!("{address}: the node's own requests are not pinned to it: rules of other programs, such as kube-proxy's, can redirect them")
    }
}

fn of_all_backends(seen: &NodeObservation) -> Vec<&ObservedRules> {
    let elsewhere = seen.elsewhere.as_ref().and_then(|(_, observed)| observed.as_ref().ok());
    std::iter::once(&seen.observed).chain(elsewhere).collect()
}

fn parts(observed: &ObservedRules) -> String {
    let of_families = |what: &'static str, families: &BTreeSet<Family>| {
        families.iter().map(|family| format!("the {what} for {}", family.metadata())).collect::<Vec<_>>()
    };
    let parts = [("guard", &observed.guards), ("exit", &observed.exits), ("pin", &observed.pins)];
    let parts = parts.into_iter().flat_map(|(what, families)| of_families(what, families));
    let parts = parts.chain(observed.targets.iter().map(|target| format!("a redirect to {target}")));
    parts.chain(observed.pod_identity.iter().map(|address| format!("the rules for {address}"))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::redirect::foreign::Unsearched;
    use crate::redirect::rules::{DirectConnections, Targets};

    fn full() -> RuleSet {
        let targets = Targets { ipv4: "10.0.0.1:8181".parse().ok(), ipv6: None, direct: DirectConnections::Dropped };
        RuleSet { targets: Some(targets), ..RuleSet::guard_alone() }
    }

    fn seen() -> NodeObservation {
        NodeObservation {
            observed: ObservedRules { targets: ["10.0.0.1:8181".parse().unwrap()].into(), ..ObservedRules::guarding(Family::ALL) },
            backend: "nftables",
            elsewhere: Some(("iptables", Ok(ObservedRules::default()))),
            legacy_rules: Ok(Vec::new()),
            foreign: ForeignRedirects::default(),
            routing: RoutingObservation { wanted: true, has_ours: true, closed: Family::ALL.into(), ..RoutingObservation::default() },
            addresses: vec!["10.0.0.1".parse().unwrap()],
            daemon: Some(true),
            differences: Vec::new(),
        }
    }

    /// The report as the command prints it.
    fn report(wanted: &RuleSet, seen: &NodeObservation) -> String {
        let report = tell(wanted, seen);
        format!("as wanted: {}\n{}", report.as_wanted, report.lines.join("\n"))
    }

    #[test]
    fn a_guarded_node_is_as_wanted() {
        let alone = NodeObservation { observed: ObservedRules::guarding(Family::ALL), ..seen() };
        let nobody = NodeObservation { daemon: Some(false), ..seen() };
        assert!(tell(&full(), &seen()).as_wanted && tell(&RuleSet::guard_alone(), &alone).as_wanted && tell(&full(), &nobody).as_wanted);
        insta::assert_snapshot!("served", report(&full(), &seen()));
        insta::assert_snapshot!("guard_alone", report(&RuleSet::guard_alone(), &alone));
        insta::assert_snapshot!("no_daemon", report(&full(), &nobody));
    }

    #[test]
    fn an_open_node_and_a_different_rule_are_not_as_wanted() {
        let no_rules = || RoutingObservation { wanted: true, differences: vec!["a rule is missing".to_owned()], ..Default::default() };
        let open = NodeObservation { observed: ObservedRules::default(), routing: no_rules(), ..seen() };
        let half = ObservedRules { targets: seen().observed.targets, ..ObservedRules::guarding([Family::V6]) };
        let half = NodeObservation { observed: half, routing: no_rules(), ..seen() };
        let only_routing = NodeObservation { observed: ObservedRules::default(), ..seen() };
        let no_routing = NodeObservation { routing: no_rules(), ..seen() };
        let differs = NodeObservation { differences: vec!["the chain direct is missing".to_owned()], ..seen() };
        let away = NodeObservation { addresses: vec!["10.0.0.2".parse().unwrap()], ..seen() };
        for (name, seen) in [
            ("open", open),
            ("half_open", half),
            ("differs", differs),
            ("another_address", away),
            ("only_routing", only_routing),
            ("no_routing", no_routing),
        ] {
            assert!(!tell(&full(), &seen).as_wanted, "{name}");
            insta::assert_snapshot!(name, report(&full(), &seen));
        }
    }

    #[test]
    fn leftover_rules_are_reported_and_are_no_difference() {
        let elsewhere = NodeObservation { elsewhere: Some(("iptables", Ok(seen().observed))), ..seen() };
        let unknown = NodeObservation {
            elsewhere: Some(("iptables", Err("no program".to_owned()))),
            legacy_rules: Err("no program".to_owned()),
            ..seen()
        };
        let legacy_rules = NodeObservation { legacy_rules: Ok(vec!["iptables-nft: -A PREROUTING x".to_owned()]), ..seen() };
        let redirects = |rule: &str| vec![format!("iptables-nft-save: {rule}")];
        let of_others = ForeignRedirects {
            own_requests: redirects("-A OUTPUT x"),
            to_daemon: redirects("-A PREROUTING y"),
            ..ForeignRedirects::default()
        };
        let unsearched = Unsearched { what: "nft, table ip x".to_owned(), reason: "too-large", error: "it is too large".to_owned() };
        let of_others = ForeignRedirects { unsearched: vec![unsearched], ..of_others };
        let foreign = NodeObservation { foreign: of_others, ..seen() };
        let routing = |routing| NodeObservation { routing, ..seen() };
        let excluded = routing(RoutingObservation { wanted: false, ..seen().routing });
        let unsupported = routing(RoutingObservation { wanted: true, unknown: vec!["no kernel".to_owned()], ..Default::default() });
        let ahead = vec!["0: from all lookup 100".to_owned()];
        let behind = routing(RoutingObservation { closed: [Family::V6].into(), ahead, ..seen().routing });
        for (name, seen) in [
            ("other_backend", elsewhere),
            ("unknown_backend", unknown),
            ("legacy_rule", legacy_rules),
            ("foreign", foreign),
            ("excluded_routing", excluded),
            ("unsupported_routing", unsupported),
            ("routing_rule_ahead", behind),
        ] {
            assert!(tell(&full(), &seen).as_wanted, "{name}");
            insta::assert_snapshot!(name, report(&full(), &seen));
        }
    }
}

//! What a pod's packet would meet, in words: pure.

use std::net::{IpAddr, SocketAddr};

use super::observed::ObservedRules;
use super::rules::{Family, RuleSet};

/// What was seen of the node.
#[derive(Clone, Debug)]
pub struct NodeObservation {
    /// The backend that is looked at, and what stands of ours in it.
    pub observed: ObservedRules,
    /// Its name.
    pub backend: &'static str,
    /// What differs from the wanted rules.
    pub differences: Vec<String>,
    /// What the other backend says: what stands of ours there, or why that is not known.
    pub elsewhere: Option<(&'static str, Result<ObservedRules, String>)>,
    /// Rules that kube2iam and kiam left behind, or why that is not known.
    pub legacy_rules: Result<Vec<String>, String>,
    /// The addresses of this node.
    pub addresses: Vec<IpAddr>,
    /// Whether a daemon runs here, if that is known.
    pub daemon: Option<bool>,
}

/// The answer: lines for a person, and whether all is as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusReport {
    /// What there is to say.
    pub lines: Vec<String>,
    /// Nothing is open or different.
    pub as_wanted: bool,
}

/// Tells what was seen. `wanted` is what it was compared with.
pub fn tell(wanted: &RuleSet, seen: &NodeObservation) -> StatusReport {
    let mut lines = Vec::new();
    let mut as_wanted = seen.differences.is_empty();
    for family in Family::ALL {
        let (what, line) = of_family(family, seen);
        // That nothing is redirected is as wanted where the guard alone is.
        as_wanted &= what != Meets::Service;
        lines.push(line);
        if let Meets::Daemon(target) = what
            && !seen.addresses.contains(&target.ip())
        {
            as_wanted = false;
            lines.push(format!("{} is no address of this node: pods' requests leave it", target.ip()));
        }
    }
    if wanted.targets.is_none() && seen.observed.targets.is_empty() && seen.observed.is_guarded() {
        lines.push("the guard stands alone: no pod is served, as no daemon has put its rules in place".to_owned());
    }
    match seen.daemon {
        Some(true) => lines.push("a daemon runs on this node".to_owned()),
        Some(false) if !seen.observed.targets.is_empty() => {
            lines.push("no daemon runs on this node: pods' connections are refused until one does".to_owned());
        }
        _ => {}
    }
    lines.extend(seen.differences.iter().map(|difference| format!("not as wanted ({}): {difference}", seen.backend)));
    match &seen.elsewhere {
        Some((backend, Ok(observed))) if *observed != ObservedRules::default() => {
            lines.push(format!("rules of ours are left in {backend}, too: {}; an install takes them away", parts(observed)));
        }
        Some((backend, Err(reason))) => lines.push(format!("whether {backend} holds rules of ours is not known: {reason}")),
        _ => {}
    }
    match &seen.legacy_rules {
        Ok(left) => {
            lines.extend(left.iter().map(|rule| format!("left behind by kube2iam or kiam: {rule}; `redirect remove --peers` removes it")))
        }
        Err(reason) => lines.push(format!("whether kube2iam or kiam left rules behind is not known: {reason}")),
    }
    StatusReport { lines, as_wanted }
}

/// What a pod's packet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    /// Port 80 leads here.
    Daemon(SocketAddr),
    /// It is rejected.
    Guard,
    /// Nothing: it is open.
    Service,
}

fn of_family(family: Family, seen: &NodeObservation) -> (Meets, String) {
    // Either backend's guard will do.
    let elsewhere = seen.elsewhere.as_ref().and_then(|(_, observed)| observed.as_ref().ok());
    let all: Vec<&ObservedRules> = std::iter::once(&seen.observed).chain(elsewhere).collect();
    let guarded = all.iter().any(|observed| observed.guards.contains(&family));
    let target = all.iter().flat_map(|observed| &observed.targets).find(|target| target.is_ipv6() == (family == Family::V6));
    let (address, rest) = (family.metadata(), if guarded { "rejected" } else { "passed on: THE NODE IS OPEN on them" });
    match (target, guarded) {
        (Some(target), true) => {
            (Meets::Daemon(*target), format!("{address}: port 80 leads to the daemon at {target}, other ports are {rest}"))
        }
        (Some(target), false) => (Meets::Service, format!("{address}: port 80 leads to the daemon at {target}, other ports are {rest}")),
        (None, true) => (Meets::Guard, format!("{address}: every packet is rejected")),
        (None, false) => {
            (Meets::Service, format!("{address}: nothing is in the way: THE NODE IS OPEN, pods reach the real metadata service"))
        }
    }
}

fn parts(observed: &ObservedRules) -> String {
    let guards = observed.guards.iter().map(|family| format!("a guard of {}", family.metadata()));
    guards.chain(observed.targets.iter().map(|target| format!("a redirect to {target}"))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::redirect::rules::Targets;

    fn full() -> RuleSet {
        let targets = Targets { ipv4: "10.0.0.1:8181".parse().unwrap(), ipv6: None, refuse_direct: true };
        RuleSet { interfaces: Vec::new(), targets: Some(targets) }
    }

    fn seen() -> NodeObservation {
        NodeObservation {
            observed: ObservedRules {
                guards: Family::ALL.into(),
                targets: ["10.0.0.1:8181".parse().unwrap()].into(),
                ..ObservedRules::default()
            },
            backend: "nftables",
            elsewhere: Some(("iptables", Ok(ObservedRules::default()))),
            legacy_rules: Ok(Vec::new()),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            daemon: Some(true),
            differences: Vec::new(),
        }
    }

    #[track_caller]
    fn assert_told(wanted: &RuleSet, seen: &NodeObservation, as_wanted: bool, words: &str) {
        let told = tell(wanted, seen);
        assert_eq!(told.as_wanted, as_wanted, "{told:#?}");
        assert!(told.lines.iter().any(|line| line.contains(words)), "{words:?} is not in {told:#?}");
    }

    #[test]
    fn what_a_packet_meets_is_said() {
        assert_told(&full(), &seen(), true, "169.254.169.254: port 80 leads to the daemon at 10.0.0.1:8181, other ports are rejected");
        assert_told(&full(), &seen(), true, "fd00:ec2::254: every packet is rejected");
        let alone = NodeObservation { observed: ObservedRules { guards: Family::ALL.into(), ..ObservedRules::default() }, ..seen() };
        assert_told(&RuleSet::guard_alone(), &alone, true, "the guard stands alone");
        let nobody = NodeObservation { daemon: Some(false), ..seen() };
        assert_told(&full(), &nobody, true, "no daemon runs");
    }

    #[test]
    fn what_is_open_or_different_is_not_as_wanted() {
        let open = NodeObservation { observed: ObservedRules::default(), ..seen() };
        assert_told(&full(), &open, false, "169.254.169.254: nothing is in the way: THE NODE IS OPEN");
        let half = NodeObservation { observed: ObservedRules { guards: [Family::V6].into(), ..seen().observed }, ..seen() };
        assert_told(&full(), &half, false, "other ports are passed on: THE NODE IS OPEN");
        let differs = NodeObservation { differences: vec!["the chain direct is missing".to_owned()], ..seen() };
        assert_told(&full(), &differs, false, "not as wanted (nftables): the chain direct is missing");
        let away = NodeObservation { addresses: vec!["10.0.0.2".parse().unwrap()], ..seen() };
        assert_told(&full(), &away, false, "10.0.0.1 is no address of this node");
    }

    #[test]
    fn what_is_left_over_is_said() {
        let elsewhere = NodeObservation { elsewhere: Some(("iptables", Ok(seen().observed))), ..seen() };
        assert_told(
            &full(),
            &elsewhere,
            true,
            "left in iptables, too: a guard of 169.254.169.254, a guard of fd00:ec2::254, a redirect to",
        );
        let unknown = NodeObservation { elsewhere: Some(("iptables", Err("no program".to_owned()))), ..seen() };
        assert_told(&full(), &unknown, true, "whether iptables holds rules of ours is not known: no program");
        let legacy_rules = NodeObservation { legacy_rules: Ok(vec!["-A PREROUTING x".to_owned()]), ..seen() };
        assert_told(&full(), &legacy_rules, true, "kube2iam or kiam: -A PREROUTING x");
    }
}

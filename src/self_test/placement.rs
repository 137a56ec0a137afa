//! Where the test's interface is attached to the node, so that its packets arrive as a pod's do, and whether the pods' own
//! packets arrive where the rules look for them. Pure, except for what [`Netlink`] asks the kernel.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use super::bypass::{self, interface_to};
use super::netlink::Netlink;
use crate::config::InterfaceMatch;
use crate::pods::Pods;
use crate::redirect::rules::LOOPBACK;

/// The maximum length of an interface name, in bytes.
const NAME_MAX: usize = 15;
/// The prefixes of the interface's name if no rule demands a name. No CNI plugin manages them.
const OWN_PREFIXES: [&str; 3] = ["rolegate", "selftest", "rg"];
/// Prefixes that belong to programs which drop the packets of interfaces that they did not create, ahead of everything that is
/// tested: Calico's Felix ("Unknown interface", chains cali-from-wl-dispatch) and Cilium.
const FILTERED_PREFIXES: [(&str, &str); 2] = [("cali", "Calico"), ("lxc", "Cilium")];

/// How the test's interface is attached to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// As an interface whose name has this prefix.
    Prefix(String),
    /// As a port of this bridge.
    Bridge(String),
}

/// Why there is no placement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlacement {
    /// There will never be one, for this reason.
    #[error("{0}")]
    Never(String),
    /// There is none yet, and no pod has one either.
    #[error("the interface {0} of --host-interface does not exist yet")]
    NotYet(String),
}

/// Returns whether the rules redirect what arrives on this interface to the daemon.
pub(crate) fn fits(interfaces: &[InterfaceMatch], name: &str) -> bool {
    let is = |interface: &InterfaceMatch| match interface.name.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == interface.name,
    };
    let left_out = interfaces.iter().any(|interface| interface.negated && is(interface));
    let mut named = interfaces.iter().filter(|interface| !interface.negated).peekable();
    name != LOOPBACK && !left_out && (named.peek().is_none() || named.any(is))
}

/// Returns why the pods' interfaces can never be imitated for packet rules with this configuration, on any node.
pub(crate) fn never(interfaces: &[InterfaceMatch]) -> Option<NoPlacement> {
    let first = interfaces.iter().find(|interface| !interface.negated)?;
    let (_, owner) = FILTERED_PREFIXES.iter().find(|(prefix, _)| first.name.starts_with(prefix))?;
    Some(NoPlacement::Never(format!(
        "{owner} drops packets of interfaces like {} that it did not create, so the test cannot pass",
        first.name
    )))
}

/// Returns the placement for BPF programs. These do not look at interfaces, so the interface gets a name that no other program manages:
/// Calico and Cilium would drop packets from an interface with a name like theirs.
pub(crate) fn of_programs() -> Placement {
    Placement::Prefix(OWN_PREFIXES[0].to_owned())
}

/// Chooses the placement for packet rules: like the first usable one of the named interfaces, otherwise on the bridge of the pods, if there
/// is one.
pub(crate) fn place(
    interfaces: &[InterfaceMatch],
    pods: &[IpAddr],
    has_exit_guard: bool,
    netlink: &mut Netlink,
) -> io::Result<Result<Placement, NoPlacement>> {
    if let Some(never) = never(interfaces) {
        return Ok(Err(never));
    }
    if let Some(bypass) = bypass::look(pods, netlink)? {
        return Ok(Err(NoPlacement::Never(bypass.reason(has_exit_guard))));
    }
    let mut missing = None;
    for interface in interfaces.iter().filter(|interface| !interface.negated) {
        if let Some(prefix) = interface.name.strip_suffix('+') {
            return Ok(Ok(Placement::Prefix(prefix.to_owned())));
        }
        match is_bridge(netlink, &interface.name) {
            Ok(true) => return Ok(Ok(Placement::Bridge(interface.name.clone()))),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing = Some(interface.name.clone()),
            Err(error) => return Err(error),
        }
    }
    if let Some(missing) = missing {
        return Ok(Err(NoPlacement::NotYet(missing)));
    }
    if interfaces.iter().any(|interface| !interface.negated) {
        return Ok(Err(NoPlacement::Never(
            "--host-interface names single interfaces and no bridge, so rolegate cannot create one like them. To fix: give a prefix (NAME+)"
                .to_owned(),
        )));
    }
    for ip in pods {
        let Some(name) = interface_to(netlink, *ip)? else { continue };
        if fits(interfaces, &name) && is_bridge(netlink, &name).unwrap_or(false) {
            return Ok(Ok(Placement::Bridge(name)));
        }
    }
    let own = OWN_PREFIXES.iter().find(|name| fits(interfaces, &interface_name(name, 0)));
    Ok(own
        .map(|name| Placement::Prefix((*name).to_owned()))
        .ok_or_else(|| NoPlacement::Never("--host-interface excludes every name that the test interface could have".to_owned())))
}

/// Returns the name with this prefix and number.
pub(crate) fn interface_name(prefix: &str, number: u8) -> String {
    let suffix = format!("rg{number:02x}");
    let room = NAME_MAX.saturating_sub(prefix.len()).min(suffix.len());
    format!("{prefix}{}", &suffix[suffix.len() - room..])
}

fn is_bridge(netlink: &mut Netlink, name: &str) -> io::Result<bool> {
    Ok(netlink.link(name)?.kind.as_deref() == Some("bridge"))
}

/// Returns the addresses of the pods that have a network namespace of their own on this node.
pub(crate) fn addresses(pods: &Pods) -> Vec<IpAddr> {
    let living = pods.all().into_iter().filter(|pod| !pod.finished && !pod.host_network);
    living.flat_map(|pod| pod.ips.clone()).collect()
}

/// Detects pods whose interfaces the rules exclude. The guard would reject their requests.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// What the last look found. A pod's own route may not exist yet, or may be gone already, so a single look does not count.
    suspected: HashSet<(IpAddr, String)>,
}

impl Outside {
    /// Returns the pods' addresses that were outside at both this look and the last one, each with its interface.
    pub(crate) fn look(
        &mut self,
        interfaces: &[InterfaceMatch],
        pods: &[IpAddr],
        netlink: &mut Netlink,
    ) -> io::Result<Vec<(IpAddr, String)>> {
        let mut outside = HashSet::new();
        for ip in pods {
            if let Some(name) = interface_to(netlink, *ip)?.filter(|name| !fits(interfaces, name)) {
                outside.insert((*ip, name));
            }
        }
        let mut confirmed: Vec<_> = outside.intersection(&self.suspected).cloned().collect();
        confirmed.sort();
        self.suspected = outside;
        Ok(confirmed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<InterfaceMatch> {
        let one = |text: &&str| match text.strip_prefix('!') {
            Some(name) => InterfaceMatch { name: name.to_owned(), negated: true },
            None => InterfaceMatch { name: (*text).to_owned(), negated: false },
        };
        names.iter().map(one).collect()
    }

    #[test]
    fn interfaces_match_as_in_the_rules() {
        let cases: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &["eth0", "veth1", "x"], &["lo"]),
            (&["eni+", "cni0"], &["eni1", "eni", "cni0"], &["cni01", "veth1", "en", "lo"]),
            (&["!eth0", "!vlan+"], &["eth1", "eth01", "eni1"], &["eth0", "vlan", "vlan.7", "lo"]),
            (&["+"], &["eth0", "anything"], &["lo"]),
        ];
        for (patterns, good, bad) in cases {
            for (names, wanted) in [(good, true), (bad, false)] {
                names.iter().for_each(|name| assert_eq!(fits(&list(patterns), name), wanted, "{name} in {patterns:?}"));
            }
        }
    }

    #[test]
    fn the_name_follows_the_first_named_interface() {
        let mut netlink = Netlink::open().unwrap();
        let mut of = |patterns: &[&str]| place(&list(patterns), &[], false, &mut netlink).unwrap();
        let prefix = |name: &str| Ok(Placement::Prefix(name.to_owned()));
        assert_eq!(of(&["eni+", "veth+"]), prefix("eni"));
        assert_eq!(of(&["!eni+"]), prefix("rolegate"));
        assert_eq!(of(&["!rolegate+"]), prefix("selftest"));
        assert_eq!(of(&[]), prefix("rolegate"));
        // An existing interface that is not a bridge is skipped if a later one can be imitated.
        assert_eq!(of(&["lo", "veth+"]), prefix("veth"));
        assert!(matches!(of(&["lo"]), Err(NoPlacement::Never(reason)) if reason.contains("(NAME+)")));
        assert_eq!(of(&["no-such-bridge"]), Err(NoPlacement::NotYet("no-such-bridge".to_owned())));
        for (watched, owner) in [("cali+", "Calico"), ("lxc+", "Cilium")] {
            assert!(matches!(of(&[watched]), Err(NoPlacement::Never(reason)) if reason.contains(owner)));
        }
    }

    #[test]
    fn no_other_program_manages_the_interface_where_programs_redirect() {
        let Placement::Prefix(prefix) = of_programs() else { panic!("no interface of its own") };
        for (filtered, owner) in FILTERED_PREFIXES {
            assert!(!prefix.starts_with(filtered), "{owner}");
        }
    }

    #[test]
    fn names_use_the_available_length() {
        assert_eq!(interface_name("eni", 7), "enirg07");
        assert_eq!(interface_name("a-long-prefix", 0x5f), "a-long-prefix5f");
        assert_eq!(interface_name("a-longer-prefi", 0x5f), "a-longer-prefif");
        for prefix in OWN_PREFIXES {
            assert!(fits(&[], &interface_name(prefix, 0)));
        }
    }

    #[test]
    fn a_single_look_proves_nothing() {
        let mut netlink = Netlink::open().unwrap();
        let loopback = "127.0.0.9".parse().unwrap();
        let (mut outside, pods) = (Outside::default(), [loopback]);
        assert_eq!(outside.look(&list(&["eni+"]), &pods, &mut netlink).unwrap(), []);
        assert_eq!(outside.look(&list(&["eni+"]), &pods, &mut netlink).unwrap(), [(loopback, "lo".to_owned())]);
        assert_eq!(outside.look(&list(&["eni+"]), &[], &mut netlink).unwrap(), []);
        assert_eq!(outside.look(&list(&["eni+"]), &pods, &mut netlink).unwrap(), [], "the count starts again");
    }
}

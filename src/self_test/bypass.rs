//! Signs that pods' packets may bypass netfilter, so that no rule sees them. The test's own interface does not bypass it, so
//! the test would pass while pods reach the real metadata service.
//!
//! The checks need no capability: they look at names and kinds of interfaces, and at whether an interface has a hook for
//! programs. Whether the programs there really bypass netfilter cannot be seen from outside, and is not guessed.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;

use super::netlink::Netlink;
use crate::advice::{Advise, join};
use crate::redirect::rules::LOOPBACK;

/// Interfaces that only one data plane creates, and creates on every node that it manages.
const DATA_PLANE_INTERFACES: [(&str, &str); 2] = [
    // Exists in each of Cilium's modes that gives pods interfaces. Programs on these interfaces may forward packets straight to
    // another interface ("eBPF host routing").
    ("cilium_host", "Cilium"),
    // Calico's eBPF data plane, which uses it for services that the node's own processes reach.
    ("bpfin.cali", "Calico's eBPF data plane"),
];

/// How pods' packets may bypass netfilter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bypass {
    /// Programs of a data plane handle the packets.
    #[error("{owner} handles pods' packets (interface {interface}) and may forward them past the packet rules")]
    Programs {
        /// The owner of the programs.
        owner: &'static str,
        /// The interface that shows it.
        interface: String,
    },
    /// The packets leave the node without passing its network stack.
    #[error("pods' packets leave the node through {interface} (macvlan, ipvlan or a physical interface), past the packet rules")]
    Beside {
        /// The interface that leads to the pods.
        interface: String,
    },
}

impl Bypass {
    /// Returns why the test of packet rules would mean nothing here, and what to do.
    pub(super) fn reason(&self, has_exit_guard: bool) -> String {
        let then = match has_exit_guard {
            true => "the exit guard then drops their metadata requests, which time out",
            false => "they then reach the real metadata service",
        };
        join(&format!("{self}; {then}"), self.advice().as_deref())
    }
}

impl Advise for Bypass {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Programs { .. } => {
                "use --redirect=bpf (docs/bpf.md), or route pods' packets through the host's network stack (docs/boot.md, \"Where packets \
                 bypass the rules\"), and keep hop limit 1 and a network policy for the metadata address"
                    .into()
            }
            Self::Beside { .. } => {
                "use --redirect=bpf (docs/bpf.md), and keep hop limit 1 and a network policy for the metadata address".into()
            }
        })
    }
}

/// An interface that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct InterfacePath {
    name: String,
    kind: Option<String>,
    /// The queueing discipline that incoming packets meet.
    ingress: Option<String>,
}

/// Looks for signs of a bypass on this node, whose pods have these addresses.
pub(crate) fn look(pods: &[IpAddr], netlink: &mut Netlink) -> io::Result<Option<Bypass>> {
    for (name, owner) in DATA_PLANE_INTERFACES {
        match netlink.link(name) {
            Ok(_) => return Ok(Some(Bypass::Programs { owner, interface: name.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let mut ways: Vec<InterfacePath> = Vec::new();
    for ip in pods {
        let Some(name) = interface_to(netlink, *ip)? else { continue };
        if name == LOOPBACK || ways.iter().any(|way| way.name == name) {
            continue;
        }
        let link = match netlink.link(&name) {
            Ok(link) => link,
            // The pod has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        ways.push(InterfacePath { name, kind: link.kind, ingress: netlink.ingress_kind(link.index)? });
    }
    Ok(of(&ways))
}

fn of(ways: &[InterfacePath]) -> Option<Bypass> {
    if let Some((way, owner)) = ways.iter().find_map(|way| Some((way, programs(way)?))) {
        return Some(Bypass::Programs { owner, interface: way.name.clone() });
    }
    // A single one may be a pod whose own interface is gone, so that a wider route matches its address.
    let first = ways.first().filter(|_| ways.iter().all(bypasses_stack))?;
    Some(Bypass::Beside { interface: first.name.clone() })
}

fn programs(way: &InterfacePath) -> Option<&'static str> {
    match way.kind.as_deref() {
        Some("netkit") => Some("a program at the pods' netkit interfaces"),
        Some("openvswitch") => Some("Open vSwitch"),
        _ if way.name.starts_with("lxc") => Some("Cilium"),
        // Calico's iptables and nftables data planes attach nothing there. With other plugins, programs there are mostly
        // network policies, which only accept or drop packets (AWS VPC CNI).
        _ if way.name.starts_with("cali") && way.ingress.as_deref() == Some("clsact") => Some("Calico's eBPF data plane"),
        _ => None,
    }
}

/// Returns whether packets on this interface never enter the node's network stack. A device without a kind is a physical one.
fn bypasses_stack(way: &InterfacePath) -> bool {
    matches!(way.kind.as_deref(), None | Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap"))
}

/// Returns the interface that an address of this node's own network is behind. A route through a gateway does not count: it is
/// that of a pod whose network is gone, or of a CNI plugin's device through which pods' packets do not arrive (Cilium's
/// cilium_host).
pub(super) fn interface_to(netlink: &mut Netlink, ip: IpAddr) -> io::Result<Option<String>> {
    let Some(way) = netlink.way_to(ip)?.filter(|way| !way.by_gateway) else { return Ok(None) };
    match nix::net::if_::if_indextoname(way.interface) {
        Ok(name) => Ok(Some(name.to_string_lossy().into_owned())),
        // The interface has just been deleted.
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_tells_what_happens_to_pods_requests() {
        let bypass = Bypass::Programs { owner: "Cilium", interface: "cilium_host".to_owned() };
        for (has_exit_guard, wanted, unwanted) in [(true, "time out", "the real metadata"), (false, "the real metadata", "time out")] {
            let reason = bypass.reason(has_exit_guard);
            let (cause, advice) = reason.split_once(". To fix: ").unwrap_or_default();
            assert!(cause.contains(wanted) && !cause.contains(unwanted) && advice.contains("--redirect=bpf"), "{reason}");
        }
    }

    fn way(name: &str, kind: &str, ingress: &str) -> InterfacePath {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        InterfacePath { name: name.to_owned(), kind: some(kind), ingress: some(ingress) }
    }

    #[test]
    fn a_bypass_of_netfilter_is_recognized() {
        let (veth, physical) = (way("eni1", "veth", "clsact"), way("eth0", "", ""));
        for good in [
            vec![],
            vec![veth.clone()],
            vec![way("cali1", "veth", "")],
            vec![way("cali1", "veth", "ingress")],
            vec![way("cni0", "bridge", "")],
            vec![physical.clone(), veth.clone()],
        ] {
            assert_eq!(of(&good), None, "{good:?}");
        }
        for bad in [
            way("cali1", "veth", "clsact"),
            way("lxc1", "veth", ""),
            way("lxc1", "netkit", ""),
            way("pod1", "netkit", ""),
            way("antrea-gw0", "openvswitch", ""),
        ] {
            let name = bad.name.clone();
            assert!(
                matches!(of(&[veth.clone(), bad]), Some(Bypass::Programs { interface, .. }) if interface == name),
                "{name}, even beside a good one"
            );
        }
        for beside in [physical, way("shim", "macvlan", ""), way("shim", "ipvlan", "")] {
            assert_eq!(of(std::slice::from_ref(&beside)), Some(Bypass::Beside { interface: beside.name.clone() }));
        }
    }
}

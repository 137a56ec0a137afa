//! Signs that the pods' packets may go another way than the test's: past netfilter, so that no rule sees them. The test's own
//! interface is like none of these, and would pass there while pods reach the real metadata service.
//!
//! What is looked at takes no capability: names and kinds of interfaces, and whether one has a place for programs. Whether
//! the programs there do pass netfilter by cannot be seen from outside, and is not guessed.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;

use super::netlink::Netlink;
use crate::advice::Advise;
use crate::redirect::rules::LOOPBACK;

/// Interfaces that only one data plane makes, on every node where it works.
const OWN: [(&str, &str); 2] = [
    // It stands in each of Cilium's modes with interfaces for pods; programs on these may lead packets straight to another
    // interface ("eBPF host routing").
    ("cilium_host", "Cilium"),
    // Calico's eBPF data plane, for services as the node's own processes reach them.
    ("bpfin.cali", "Calico's eBPF data plane"),
];

/// How pods' packets may pass netfilter by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bypass {
    /// By programs.
    #[error("programs of {owner} handle pods' packets (interface {interface}) and may forward them past the packet rules")]
    Programs {
        /// Whose programs.
        owner: &'static str,
        /// By which that is seen.
        interface: String,
    },
    /// They leave the node beside its stack.
    #[error("pods' packets leave the node through {interface} (macvlan, ipvlan or a physical interface), past the packet rules")]
    Beside {
        /// The way to the pods.
        interface: String,
    },
}

impl Advise for Bypass {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Programs { .. } => {
                "route pods' packets through the host's network stack (docs/boot.md, \"Where packets bypass the rules\"), and keep hop limit \
                 1 and a network policy for the metadata address"
                    .into()
            }
            Self::Beside { .. } => "keep hop limit 1 and a network policy for the metadata address".into(),
        })
    }
}

/// An interface, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct InterfacePath {
    name: String,
    kind: Option<String>,
    /// What its incoming packets meet.
    ingress: Option<String>,
}

/// Whether there is a sign of it on this node, whose pods have these addresses.
pub(crate) fn look(pods: &[IpAddr], netlink: &mut Netlink) -> io::Result<Option<Bypass>> {
    for (name, owner) in OWN {
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
            // Its pod ended just now.
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
    // One alone may be a pod whose own interface is gone, so that a wider route has it.
    let first = ways.first().filter(|_| ways.iter().all(is_beside))?;
    Some(Bypass::Beside { interface: first.name.clone() })
}

fn programs(way: &InterfacePath) -> Option<&'static str> {
    match way.kind.as_deref() {
        Some("netkit") => Some("a program at the pods' netkit interfaces"),
        Some("openvswitch") => Some("Open vSwitch"),
        _ if way.name.starts_with("lxc") => Some("Cilium"),
        // Its iptables and nftables data planes attach nothing there. Of other plugins, programs there are mostly network
        // policies, which let a packet go on or not (AWS VPC CNI).
        _ if way.name.starts_with("cali") && way.ingress.as_deref() == Some("clsact") => Some("Calico's eBPF data plane"),
        _ => None,
    }
}

/// A device without a kind is no virtual one.
fn is_beside(way: &InterfacePath) -> bool {
    matches!(way.kind.as_deref(), None | Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap"))
}

/// The interface that an address of this node's own network is behind. One by way of a gateway leads elsewhere: that of a pod
/// whose network is gone, or a device of a CNI plugin that the pods' packets do not come in by (Cilium's cilium_host).
pub(super) fn interface_to(netlink: &mut Netlink, ip: IpAddr) -> io::Result<Option<String>> {
    let Some(way) = netlink.way_to(ip)?.filter(|way| !way.by_gateway) else { return Ok(None) };
    match nix::net::if_::if_indextoname(way.interface) {
        Ok(name) => Ok(Some(name.to_string_lossy().into_owned())),
        // It was taken away just now.
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(name: &str, kind: &str, ingress: &str) -> InterfacePath {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        InterfacePath { name: name.to_owned(), kind: some(kind), ingress: some(ingress) }
    }

    #[test]
    fn a_way_past_netfilter_is_told_from_others() {
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
                "{name}, also beside a good one"
            );
        }
        for beside in [physical, way("shim", "macvlan", ""), way("shim", "ipvlan", "")] {
            assert_eq!(of(std::slice::from_ref(&beside)), Some(Bypass::Beside { interface: beside.name.clone() }));
        }
    }
}

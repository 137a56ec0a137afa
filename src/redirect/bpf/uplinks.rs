//! The interfaces that need the exit guard: those through which a packet to a metadata address can leave the node.
//!
//! Without `--bpf-interfaces`, these are the interfaces to which a route of any routing table leads that covers a metadata address, and
//! every interface that is not virtual, because a route may be added to it later.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use crate::config::InterfaceMatch;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6};
use crate::netlink::{Interface, Netlink};
use crate::redirect::rules::LOOPBACK;

/// The interfaces of the node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInterfaces {
    /// The numbers of all.
    pub all: BTreeSet<u32>,
    /// Those that need the exit guard, with their names.
    pub uplinks: BTreeMap<u32, String>,
}

impl NodeInterfaces {
    /// Reads the interfaces of this network namespace. `patterns` choose the uplinks, if there are any.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn read(patterns: &[InterfaceMatch]) -> io::Result<Self> {
        let mut netlink = Netlink::open()?;
        let interfaces = netlink.links()?;
        let mut exits = BTreeSet::new();
        if patterns.is_empty() {
            for ip in [IpAddr::V4(METADATA_IPV4), IpAddr::V6(METADATA_IPV6)] {
                exits.extend(netlink.exits_to(ip)?);
            }
        }
        Ok(Self::of(&interfaces, &exits, patterns))
    }

    fn of(interfaces: &[Interface], exits: &BTreeSet<u32>, patterns: &[InterfaceMatch]) -> Self {
        let is_uplink = |interface: &&Interface| {
            let is_virtual = interface.kind.is_some();
            let is_exit = match patterns {
                [] => exits.contains(&interface.index) || !is_virtual,
                patterns => patterns.iter().any(|pattern| fits(pattern, &interface.name)),
            };
            is_exit && interface.name != LOOPBACK
        };
        let uplinks = interfaces.iter().filter(is_uplink).map(|interface| (interface.index, interface.name.clone())).collect();
        Self { all: interfaces.iter().map(|interface| interface.index).collect(), uplinks }
    }
}

fn fits(pattern: &InterfaceMatch, name: &str) -> bool {
    match pattern.name.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, kind: Option<&str>) -> Interface {
        Interface { index, name: name.to_owned(), mac: None, kind: kind.map(str::to_owned), master: None, is_up: true, vlan: None }
    }

    #[test]
    fn uplinks_are_exits_and_interfaces_that_are_not_virtual() {
        let all = [
            interface(1, "lo", None),
            interface(2, "eth0", None),
            interface(3, "eth1", None),
            interface(4, "vxlan", Some("vxlan")),
            interface(5, "bond0", Some("bond")),
            interface(6, "veth1", Some("veth")),
        ];
        let uplinks = |exits: &[u32], patterns: &[&str]| {
            let patterns: Vec<_> = patterns.iter().map(|name| InterfaceMatch { name: (*name).to_owned(), negated: false }).collect();
            let found = NodeInterfaces::of(&all, &exits.iter().copied().collect(), &patterns);
            assert_eq!(found.all.len(), all.len());
            found.uplinks.into_values().collect::<Vec<_>>()
        };
        assert_eq!(uplinks(&[1, 5], &[]), ["eth0", "eth1", "bond0"]);
        assert_eq!(uplinks(&[5], &["eth1", "v+", "lo"]), ["eth1", "vxlan", "veth1"]);
    }
}

//! The parts of a kernel notification that may change what leads to an address. Pure.

use std::net::IpAddr;

use crate::netlink::message::{
    NDA_DST, NDA_LLADDR, NDMSG, RTA_DST, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELNEXTHOP, RTM_DELROUTE, RTM_DELRULE, RTM_NEWLINK,
    RTM_NEWNEIGH, RTM_NEWNEXTHOP, RTM_NEWROUTE, RTM_NEWRULE, RTMSG, address, attribute, bridge_family, number, prefix_of_one,
};
use crate::netlink::{Forwarding, Interface, Mac, Message};

/// A network: the addresses that share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    /// The first address of the network, or any other.
    pub(super) ip: IpAddr,
    /// The length of the prefix in bits.
    pub(super) prefix: u8,
}

impl Prefix {
    /// Returns whether the network contains this address.
    pub(super) fn contains(self, ip: IpAddr) -> bool {
        // A shift by all bits has no result: a prefix of length 0 contains every address.
        match (self.ip, ip) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                let differ = one.to_bits() ^ other.to_bits();
                differ.checked_shr(32_u32.saturating_sub(self.prefix.into())).unwrap_or_default() == 0
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => {
                let differ = one.to_bits() ^ other.to_bits();
                differ.checked_shr(128_u32.saturating_sub(self.prefix.into())).unwrap_or_default() == 0
            }
            _ => false,
        }
    }
}

/// A change that the kernel announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkEvent {
    /// An interface was added or changed.
    Interface(Interface),
    /// An interface was removed.
    Gone(u32),
    /// An interface became, or is no longer, a port of a bridge.
    Port { interface: u32, bridge: Option<u32> },
    /// The routes to these addresses may have changed.
    Routes(Prefix),
    /// Every route may have changed.
    AllRoutes,
    /// The link-layer address of a neighbour; `None` if the kernel has none any more.
    Neighbour { interface: u32, ip: IpAddr, mac: Option<Mac> },
    /// The bridge port of a link-layer address; `None` if the bridge has none any more.
    Forwarding { bridge: u32, mac: Mac, vlan: Option<u16>, port: Option<u32> },
}

impl LinkEvent {
    /// Parses a notification. `None` if it is irrelevant here or malformed.
    pub(super) fn read(message: &Message<'_>) -> Option<Self> {
        let body = message.body;
        let is_of_bridge = *body.first()? == bridge_family();
        match message.kind {
            // The message is about a port's settings, and their removal is not the removal of the interface.
            RTM_NEWLINK if is_of_bridge => Interface::read(body).map(|port| Self::Port { interface: port.index, bridge: port.master }),
            RTM_DELLINK if is_of_bridge => Interface::read(body).map(|port| Self::Port { interface: port.index, bridge: None }),
            RTM_NEWLINK => Interface::read(body).map(Self::Interface),
            RTM_DELLINK => Interface::read(body).map(|interface| Self::Gone(interface.index)),
            RTM_NEWNEIGH | RTM_DELNEIGH if is_of_bridge => {
                let entry = Forwarding::read(body)?;
                let port = entry.port.filter(|_| message.kind == RTM_NEWNEIGH);
                Some(Self::Forwarding { bridge: entry.bridge, mac: entry.mac, vlan: entry.vlan, port })
            }
            RTM_NEWNEIGH | RTM_DELNEIGH => neighbour(body, message.kind == RTM_NEWNEIGH),
            RTM_NEWROUTE | RTM_DELROUTE => network(body).map(Self::Routes),
            // Such a change can select routes of other tables, change next hops, or remove routes with this source.
            RTM_NEWRULE | RTM_DELRULE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP | RTM_DELADDR => Some(Self::AllRoutes),
            _ => None,
        }
    }
}

fn neighbour(body: &[u8], is_there: bool) -> Option<LinkEvent> {
    let interface = number(body.get(4..8)?)?;
    let attributes = body.get(NDMSG..)?;
    let ip = address(attribute(attributes, NDA_DST)?)?;
    let mac = attribute(attributes, NDA_LLADDR).filter(|_| is_there).and_then(|mac| mac.try_into().ok());
    Some(LinkEvent::Neighbour { interface, ip, mac })
}

fn network(body: &[u8]) -> Option<Prefix> {
    // linux/socket.h: AF_INET, AF_INET6. Others (MPLS, multicast) lead to no address.
    let any: IpAddr = match body.first()? {
        2 => [0; 4].into(),
        10 => [0; 16].into(),
        _ => return None,
    };
    let ip = match attribute(body.get(RTMSG..)?, RTA_DST) {
        Some(octets) => address(octets)?,
        None => any,
    };
    Some(Prefix { ip, prefix: (*body.get(1)?).min(prefix_of_one(ip)) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::netlink::message::{
        IFF_LOWER_UP, IFF_RUNNING, IFF_UP, IFLA_IFNAME, IFLA_MASTER, NDA_MASTER, NUD_PERMANENT, append, family, interface_message,
        neighbour_message, octets, route_message,
    };

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    fn read(kind: u16, body: &[u8]) -> Option<LinkEvent> {
        // However the input is truncated, nothing is read past its end.
        for length in 0..body.len() {
            let _ = LinkEvent::read(&Message { kind, flags: 0, sequence: 0, body: &body[..length] });
        }
        LinkEvent::read(&Message { kind, flags: 0, sequence: 0, body })
    }

    #[test]
    fn interfaces_and_ports_are_distinguished() {
        let mut body = interface_message(7, IFF_UP | IFF_RUNNING | IFF_LOWER_UP).to_vec();
        append(&mut body, IFLA_IFNAME, b"veth7\0");
        append(&mut body, IFLA_MASTER, &3_u32.to_ne_bytes());
        let interface = Interface { index: 7, name: "veth7".into(), mac: None, kind: None, master: Some(3), is_up: true, vlan: None };
        assert_eq!(read(RTM_NEWLINK, &body), Some(LinkEvent::Interface(interface)));
        assert_eq!(read(RTM_DELLINK, &body), Some(LinkEvent::Gone(7)));
        body[0] = bridge_family();
        assert_eq!(read(RTM_NEWLINK, &body), Some(LinkEvent::Port { interface: 7, bridge: Some(3) }));
        assert_eq!(read(RTM_DELLINK, &body), Some(LinkEvent::Port { interface: 7, bridge: None }), "the interface stays");
    }

    #[test]
    fn neighbours_have_an_address_or_none() {
        for ip in ["10.0.0.7", "fd00::7"] {
            let ip: IpAddr = ip.parse().unwrap();
            let mut body = neighbour_message(family(ip), 3, 2).to_vec();
            append(&mut body, NDA_DST, &octets(ip));
            let neighbour = |mac| Some(LinkEvent::Neighbour { interface: 3, ip, mac });
            assert_eq!(read(RTM_NEWNEIGH, &body), neighbour(None));
            append(&mut body, NDA_LLADDR, &MAC);
            assert_eq!(read(RTM_NEWNEIGH, &body), neighbour(Some(MAC)));
            assert_eq!(read(RTM_DELNEIGH, &body), neighbour(None));
        }
        assert_eq!(read(RTM_NEWNEIGH, &neighbour_message(2, 3, 2)), None, "it has no address");
    }

    #[test]
    fn entries_of_bridges_have_a_port_or_none() {
        let body = |state| {
            let mut body = neighbour_message(bridge_family(), 7, state).to_vec();
            append(&mut body, NDA_LLADDR, &MAC);
            append(&mut body, NDA_MASTER, &3_u32.to_ne_bytes());
            body
        };
        let entry = |port| Some(LinkEvent::Forwarding { bridge: 3, mac: MAC, vlan: None, port });
        assert_eq!(read(RTM_NEWNEIGH, &body(2)), entry(Some(7)));
        assert_eq!(read(RTM_NEWNEIGH, &body(NUD_PERMANENT)), entry(None));
        assert_eq!(read(RTM_DELNEIGH, &body(2)), entry(None));
    }

    #[test]
    fn a_route_concerns_the_addresses_of_its_network() {
        for (ip, prefix, inside, outside) in [
            ("10.0.0.0", 8, "10.255.0.1", "11.0.0.1"),
            ("10.0.0.7", 32, "10.0.0.7", "10.0.0.6"),
            ("10.0.0.0", 0, "255.0.0.1", "fd00::1"),
            ("fd00::", 64, "fd00::ffff:0:0:1", "fd00:0:0:1::1"),
            ("fd00::7", 128, "fd00::7", "fd00::6"),
            ("::", 0, "ffff::1", "10.0.0.1"),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let mut body = route_message(family(ip), prefix, 0, 0).to_vec();
            if prefix > 0 {
                append(&mut body, RTA_DST, &octets(ip));
            }
            for kind in [RTM_NEWROUTE, RTM_DELROUTE] {
                let Some(LinkEvent::Routes(network)) = read(kind, &body) else { panic!("{ip}/{prefix}") };
                assert!(network.contains(inside.parse().unwrap()) && !network.contains(outside.parse().unwrap()), "{ip}/{prefix}");
            }
        }
        assert_eq!(read(RTM_NEWROUTE, &route_message(28, 20, 0, 0)), None, "MPLS");
        for kind in [RTM_NEWRULE, RTM_DELRULE, RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_DELADDR] {
            assert_eq!(read(kind, &[2]), Some(LinkEvent::AllRoutes));
        }
        assert_eq!(read(RTM_NEWROUTE, &[]), None);
    }
}

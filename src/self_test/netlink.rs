//! The rtnetlink(7) requests with which the self-test creates its interface: a veth pair, addresses, routes and neighbours.
//! They work in a user namespace without a mapped user, where no program can be run with capabilities.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::netlink::message::{
    IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER, IFLA_NET_NS_PID, NDA_DST, NDA_LLADDR,
    NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, NUD_PERMANENT, NetlinkRequest, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE,
    RTA_DST, RTA_GATEWAY, RTA_OIF, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_GETQDISC, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE,
    RTNH_F_ONLINK, TC_H_INGRESS, TCA_KIND, TCMSG, VETH_INFO_PEER, append, attribute, family, interface_message, neighbour_message, octets,
    prefix_of_one, route_message, text, zero_terminated,
};
pub(crate) use crate::netlink::{Mac, Netlink};

/// A veth pair to create.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The name of this end, up to 15 bytes.
    pub name: &'a str,
    /// The address of this end.
    pub mac: Mac,
    /// The bridge that this end becomes a port of.
    pub bridge: Option<u32>,
    /// The name of the other end.
    pub peer_name: &'a str,
    /// The address of the other end.
    pub peer_mac: Mac,
    /// The process in whose network namespace the other end is.
    pub peer_of: u32,
}

impl Netlink {
    /// Creates a veth pair, with both ends down.
    pub fn add_veth(&mut self, veth: Veth<'_>) -> io::Result<()> {
        let mut peer = interface_message(0, 0).to_vec();
        append(&mut peer, IFLA_IFNAME, &zero_terminated(veth.peer_name));
        append(&mut peer, IFLA_ADDRESS, &veth.peer_mac);
        append(&mut peer, IFLA_NET_NS_PID, &veth.peer_of.to_ne_bytes());
        let mut data = Vec::new();
        append(&mut data, VETH_INFO_PEER, &peer);
        let mut info = Vec::new();
        append(&mut info, IFLA_INFO_KIND, b"veth");
        append(&mut info, IFLA_INFO_DATA, &data);
        let mut message = NetlinkRequest::new(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &interface_message(0, 0))
            .attribute(IFLA_IFNAME, &zero_terminated(veth.name))
            .attribute(IFLA_ADDRESS, &veth.mac)
            .attribute(IFLA_LINKINFO, &info);
        if let Some(bridge) = veth.bridge {
            message = message.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        }
        self.ask(message).map(drop)
    }

    /// Deletes an interface, together with its other end and its routes.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        self.ask(NetlinkRequest::new(RTM_DELLINK, NLM_F_ACK, &interface_message(index, 0))).map(drop)
    }

    /// Sets an interface up.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.ask(NetlinkRequest::new(RTM_NEWLINK, NLM_F_ACK, &interface_message(index, IFF_UP))).map(drop)
    }

    /// Adds a route to this address through an interface. An error of the kind `AlreadyExists` means that there is a route.
    pub fn add_route(&mut self, ip: IpAddr, index: u32) -> io::Result<()> {
        let fixed = route_message(family(ip), prefix_of_one(ip), RT_SCOPE_LINK, 0);
        let message = NetlinkRequest::new(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
        self.ask(message.attribute(RTA_DST, &octets(ip)).attribute(RTA_OIF, &index.to_ne_bytes())).map(drop)
    }

    /// Deletes what [`Netlink::add_route`] and [`Netlink::add_neighbour`] created on an interface that stays.
    pub fn delete_route(&mut self, ip: IpAddr, index: u32) -> io::Result<()> {
        let fixed = neighbour_message(family(ip), index, 0);
        // If only one of the two is left, this one is already gone.
        let _ = self.ask(NetlinkRequest::new(RTM_DELNEIGH, NLM_F_ACK, &fixed).attribute(NDA_DST, &octets(ip)));
        let fixed = route_message(family(ip), prefix_of_one(ip), RT_SCOPE_LINK, 0);
        let message = NetlinkRequest::new(RTM_DELROUTE, NLM_F_ACK, &fixed);
        self.ask(message.attribute(RTA_DST, &octets(ip)).attribute(RTA_OIF, &index.to_ne_bytes())).map(drop)
    }

    /// Adds a default route through this gateway, which is on the interface's own network.
    pub fn add_default_route(&mut self, gateway: IpAddr, index: u32) -> io::Result<()> {
        let fixed = route_message(family(gateway), 0, RT_SCOPE_UNIVERSE, RTNH_F_ONLINK);
        let message = NetlinkRequest::new(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
        self.ask(message.attribute(RTA_GATEWAY, &octets(gateway)).attribute(RTA_OIF, &index.to_ne_bytes())).map(drop)
    }

    /// Adds a permanent neighbour entry with this link-layer address.
    pub fn add_neighbour(&mut self, ip: IpAddr, mac: Mac, index: u32) -> io::Result<()> {
        let fixed = neighbour_message(family(ip), index, NUD_PERMANENT);
        let message = NetlinkRequest::new(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &fixed);
        self.ask(message.attribute(NDA_DST, &octets(ip)).attribute(NDA_LLADDR, &mac)).map(drop)
    }

    /// Returns the kind of queueing discipline for incoming packets on an interface, such as `clsact`, to which programs are
    /// attached; `None` if there is none, or the kernel does not support any.
    pub fn ingress_kind(&mut self, index: u32) -> io::Result<Option<String>> {
        let mut fixed = [0; TCMSG];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[12..16].copy_from_slice(&TC_H_INGRESS.to_ne_bytes());
        // Older kernels answer only with the first flag, and if there was a discipline before, they send nothing without the
        // second.
        let answer = match self.ask(NetlinkRequest::new(RTM_GETQDISC, NLM_F_ECHO | NLM_F_ACK, &fixed)) {
            Ok(answer) => answer,
            Err(error) => {
                return match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENODEV) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        Ok(attribute(answer.get(TCMSG..).unwrap_or_default(), TCA_KIND).map(text))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_hook_for_programs() {
        let mut netlink = Netlink::open().unwrap();
        let loopback = netlink.link("lo").unwrap();
        assert_eq!(netlink.ingress_kind(loopback.index).unwrap(), None);
    }
}

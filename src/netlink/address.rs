//! The addresses of interfaces.

use std::io;
use std::net::IpAddr;

use super::Netlink;
use super::message::{
    IFA_ADDRESS, IFA_CACHEINFO, IFA_F_NODAD, IFA_LOCAL, IFA_PROTO, IFADDRMSG, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL,
    NetlinkRequest, RT_SCOPE_HOST, RT_SCOPE_UNIVERSE, RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR, address, attribute, attributes, family,
    number, octets, prefix_of_one,
};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    /// The interface's number.
    pub(crate) interface: u32,
    /// The address.
    pub(crate) ip: IpAddr,
    /// Who added it, if that is recorded: a number of `RTPROT_…`.
    pub(crate) protocol: Option<u8>,
}

impl InterfaceAddress {
    fn read(body: &[u8]) -> Option<Self> {
        let interface = number(body.get(4..8)?)?;
        let rest = body.get(IFADDRMSG..)?;
        // A point-to-point address has the peer's in IFA_ADDRESS. IPv6 addresses without a peer have no IFA_LOCAL.
        let ip = address(attribute(rest, IFA_LOCAL).or_else(|| attribute(rest, IFA_ADDRESS))?)?;
        let protocol = attributes(rest).find(|(kind, _)| *kind == IFA_PROTO).and_then(|(_, value)| value.first().copied());
        Some(Self { interface, ip, protocol })
    }
}

impl Netlink {
    /// Returns the addresses of all interfaces.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<InterfaceAddress>> {
        self.dump_all(|| NetlinkRequest::new(RTM_GETADDR, NLM_F_DUMP, &[0; IFADDRMSG]), InterfaceAddress::read)
    }

    /// Adds this single address to an interface, without a subnet. An IPv6 address is usable at once.
    pub(crate) fn add_address(&mut self, interface: u32, ip: IpAddr) -> io::Result<()> {
        self.ask(addition(interface, ip, RT_SCOPE_UNIVERSE)).map(drop)
    }

    /// Adds an address on which the node only listens: its own connections do not get it as their source address. `protocol` records who
    /// added it (a number of `RTPROT_…`).
    pub(crate) fn add_listening_address(&mut self, interface: u32, ip: IpAddr, protocol: u8) -> io::Result<()> {
        let mut message = addition(interface, ip, RT_SCOPE_HOST).attribute(IFA_PROTO, &[protocol]);
        if ip.is_ipv6() {
            // IPv6 has no such scope. A deprecated address is not chosen as a source address either (RFC 6724, section 5, rule 3).
            let (preferred, valid) = (0_u32.to_ne_bytes(), u32::MAX.to_ne_bytes());
            message = message.attribute(IFA_CACHEINFO, &[preferred, valid, [0; 4], [0; 4]].concat());
        }
        self.ask(message).map(drop)
    }

    /// Removes an address from an interface. An error of the kind `AddrNotAvailable` means that it has none.
    pub(crate) fn delete_address(&mut self, interface: u32, ip: IpAddr) -> io::Result<()> {
        let message = NetlinkRequest::new(RTM_DELADDR, NLM_F_ACK, &fixed(interface, ip, 0, 0));
        self.ask(message.attribute(IFA_LOCAL, &octets(ip))).map(drop)
    }
}

fn addition(interface: u32, ip: IpAddr, scope: u8) -> NetlinkRequest {
    let flags = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
    let message = NetlinkRequest::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed(interface, ip, flags, scope));
    message.attribute(IFA_LOCAL, &octets(ip)).attribute(IFA_ADDRESS, &octets(ip))
}

fn fixed(interface: u32, ip: IpAddr, flags: u8, scope: u8) -> Vec<u8> {
    let mut fixed = vec![family(ip), prefix_of_one(ip), flags, scope];
    fixed.extend_from_slice(&interface.to_ne_bytes());
    fixed
}

//! The few requests of rtnetlink(7) that the self-test needs: a veth pair, addresses, routes and neighbours, and the question
//! by which interface an address is reached. No program is needed for them, and they work in a user namespace without a
//! mapped user, where no program can be run with capabilities.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// An address of the link layer.
pub type Mac = [u8; 6];

/// How long the kernel may take: it answers while it is asked, after waiting for others that change interfaces.
const PATIENCE_SECONDS: i64 = 10;
/// The longest message that is received: one of a link, with the statistics of it.
const RECEIVED: usize = 32 * 1024;

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_ECHO: u16 = 8;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const HEADER: usize = 16;
// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETQDISC: u16 = 38;
const TCA_KIND: u16 = 1;
const TCMSG: usize = 20;
/// Where `clsact` and `ingress` are attached (linux/pkt_sched.h, TC_H_CLSACT).
const TC_H_INGRESS: u32 = 0xffff_fff1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const RTMSG: usize = 12;
// linux/if_link.h, linux/veth.h, linux/if.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFINFOMSG: usize = 16;
const IFF_UP: u32 = 1;
// linux/if_addr.h
const IFA_LOCAL: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_F_NODAD: u8 = 2;
// linux/neighbour.h
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
/// The high bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A socket to the network namespace that it was made in.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// What is known of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its address.
    pub mac: Option<Mac>,
    /// What kind of virtual interface it is, such as `bridge`.
    pub kind: Option<String>,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
}

/// Two ends of a cable.
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

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface's number.
    pub interface: u32,
    /// Whether it leads to another router first.
    pub by_gateway: bool,
}

/// A message under construction.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        append(&mut self.bytes, kind, value);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Adds an attribute: its length and kind, its value, and zeros up to the next four bytes.
fn append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    family as i32 as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn prefix_of_one(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn interface_message(index: u32, flags: u32) -> [u8; IFINFOMSG] {
    let mut fixed = [0; IFINFOMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

fn text(zero_terminated: &[u8]) -> String {
    String::from_utf8_lossy(zero_terminated).trim_end_matches('\0').to_owned()
}

fn zero_terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

impl Netlink {
    /// Opens one in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a veth pair, both ends down.
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
        let mut message = Message::new(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &interface_message(0, 0))
            .attribute(IFLA_IFNAME, &zero_terminated(veth.name))
            .attribute(IFLA_ADDRESS, &veth.mac)
            .attribute(IFLA_LINKINFO, &info);
        if let Some(bridge) = veth.bridge {
            message = message.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        }
        self.ask(message).map(drop)
    }

    /// Takes an interface away, with its other end and its routes.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        self.ask(Message::new(RTM_DELLINK, NLM_F_ACK, &interface_message(index, 0))).map(drop)
    }

    /// Switches an interface on.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.ask(Message::new(RTM_NEWLINK, NLM_F_ACK, &interface_message(index, IFF_UP))).map(drop)
    }

    /// The interface of this name; an error of the kind `NotFound` where there is none.
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        let request = Message::new(RTM_GETLINK, 0, &interface_message(0, 0)).attribute(IFLA_IFNAME, &zero_terminated(name));
        self.one_link(request)
    }

    /// The interface of this number.
    pub fn link_at(&mut self, index: u32) -> io::Result<Link> {
        self.one_link(Message::new(RTM_GETLINK, 0, &interface_message(index, 0)))
    }

    fn one_link(&mut self, request: Message) -> io::Result<Link> {
        let answer = self.ask(request).map_err(|error| match error.raw_os_error() {
            Some(code) if code == Errno::ENODEV as i32 => io::ErrorKind::NotFound.into(),
            _ => error,
        })?;
        let index = answer.get(4..8).and_then(number).ok_or(io::ErrorKind::InvalidData)?;
        let mut link = Link { index, mac: None, kind: None, master: None };
        for (kind, value) in attributes(answer.get(IFINFOMSG..).unwrap_or_default()) {
            match kind {
                IFLA_ADDRESS => link.mac = value.try_into().ok(),
                IFLA_MASTER => link.master = number(value),
                IFLA_LINKINFO => {
                    let name = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, name)| name);
                    link.kind = name.map(text);
                }
                _ => {}
            }
        }
        Ok(link)
    }

    /// Gives an interface this address alone, without a network around it. An IPv6 address is good at once.
    pub fn add_address(&mut self, index: u32, ip: IpAddr) -> io::Result<()> {
        let flags = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
        let mut fixed = vec![family(ip), prefix_of_one(ip), flags, RT_SCOPE_UNIVERSE];
        fixed.extend_from_slice(&index.to_ne_bytes());
        let message = Message::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
        self.ask(message.attribute(IFA_LOCAL, &octets(ip)).attribute(IFA_ADDRESS, &octets(ip))).map(drop)
    }

    /// Leads packets for this address to an interface; an error of the kind `AlreadyExists` where they are led somewhere.
    pub fn add_route(&mut self, ip: IpAddr, index: u32) -> io::Result<()> {
        let fixed = route_message(family(ip), prefix_of_one(ip), RT_SCOPE_LINK, 0);
        let message = Message::new(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
        self.ask(message.attribute(RTA_DST, &octets(ip)).attribute(RTA_OIF, &index.to_ne_bytes())).map(drop)
    }

    /// Takes away what [`Netlink::add_route`] and [`Netlink::add_neighbour`] made on an interface that stays.
    pub fn delete_route(&mut self, ip: IpAddr, index: u32) -> io::Result<()> {
        let mut fixed = vec![family(ip), 0, 0, 0];
        fixed.extend_from_slice(&index.to_ne_bytes());
        fixed.extend_from_slice(&[0; 4]);
        // Where only one of the two is left, this one is gone already.
        let _ = self.ask(Message::new(RTM_DELNEIGH, NLM_F_ACK, &fixed).attribute(NDA_DST, &octets(ip)));
        let fixed = route_message(family(ip), prefix_of_one(ip), RT_SCOPE_LINK, 0);
        let message = Message::new(RTM_DELROUTE, NLM_F_ACK, &fixed);
        self.ask(message.attribute(RTA_DST, &octets(ip)).attribute(RTA_OIF, &index.to_ne_bytes())).map(drop)
    }

    /// Leads all packets that have no other way to this gateway, which is on the interface's own network.
    pub fn add_default_route(&mut self, gateway: IpAddr, index: u32) -> io::Result<()> {
        let fixed = route_message(family(gateway), 0, RT_SCOPE_UNIVERSE, RTNH_F_ONLINK);
        let message = Message::new(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
        self.ask(message.attribute(RTA_GATEWAY, &octets(gateway)).attribute(RTA_OIF, &index.to_ne_bytes())).map(drop)
    }

    /// Says once and for all which address of the link layer a neighbour has.
    pub fn add_neighbour(&mut self, ip: IpAddr, mac: Mac, index: u32) -> io::Result<()> {
        let mut fixed = vec![family(ip), 0, 0, 0];
        fixed.extend_from_slice(&index.to_ne_bytes());
        fixed.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
        fixed.extend_from_slice(&[0, 0]);
        let message = Message::new(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &fixed);
        self.ask(message.attribute(NDA_DST, &octets(ip)).attribute(NDA_LLADDR, &mac)).map(drop)
    }

    /// The way that a packet of this node to the address would take; `None` where there is none.
    pub fn way_to(&mut self, ip: IpAddr) -> io::Result<Option<Way>> {
        let fixed = route_message(family(ip), prefix_of_one(ip), RT_SCOPE_UNIVERSE, 0);
        let answer = match self.ask(Message::new(RTM_GETROUTE, 0, &fixed).attribute(RTA_DST, &octets(ip))) {
            Ok(answer) => answer,
            Err(error) if matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mut interface, mut by_gateway) = (None, false);
        for (kind, value) in attributes(answer.get(RTMSG..).unwrap_or_default()) {
            match kind {
                RTA_OIF => interface = number(value),
                RTA_GATEWAY | RTA_VIA => by_gateway = true,
                _ => {}
            }
        }
        Ok(interface.map(|interface| Way { interface, by_gateway }))
    }

    /// What kind of queueing discipline packets that come in on the interface meet, such as `clsact`, where programs are
    /// attached; `None` where there is none, or the kernel has none.
    pub fn ingress_kind(&mut self, index: u32) -> io::Result<Option<String>> {
        let mut fixed = [0; TCMSG];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[12..16].copy_from_slice(&TC_H_INGRESS.to_ne_bytes());
        // Older kernels answer only with the one flag, and where there was one before they say nothing without the other.
        let answer = match self.ask(Message::new(RTM_GETQDISC, NLM_F_ECHO | NLM_F_ACK, &fixed)) {
            Ok(answer) => answer,
            Err(error) => {
                return match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENODEV) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let kind = attributes(answer.get(TCMSG..).unwrap_or_default()).find(|(kind, _)| *kind == TCA_KIND);
        Ok(kind.map(|(_, name)| text(name)))
    }

    /// Sends a request, and returns what its answer holds after the header; nothing where it was only acknowledged.
    fn ask(&mut self, message: Message) -> io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let fd = self.socket.as_raw_fd();
        sendto(fd, &message.finish(self.sequence), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut received = vec![0; RECEIVED];
        loop {
            let length = match recv(fd, &mut received, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            };
            let of_this = received[..length].get(8..12).and_then(number) == Some(self.sequence);
            if !of_this {
                // The late answer to a question that was given up.
                continue;
            }
            let kind = u16::from_ne_bytes([received[4], received[5]]);
            if kind != NLMSG_ERROR {
                return Ok(received[HEADER..length].to_vec());
            }
            let code = received[..length].get(HEADER..HEADER + 4).and_then(number).ok_or(io::ErrorKind::InvalidData)?;
            return match code.cast_signed() {
                0 => Ok(Vec::new()),
                code => Err(io::Error::from_raw_os_error(-code)),
            };
        }
    }
}

fn route_message(family: u8, prefix: u8, scope: u8, flags: u32) -> [u8; RTMSG] {
    let mut fixed = [family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0, 0, 0, 0];
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_and_leads_to_itself() {
        let mut netlink = Netlink::open().unwrap();
        let loopback = netlink.link("lo").unwrap();
        assert_eq!((loopback.mac, loopback.kind.clone(), loopback.master), (Some([0; 6]), None, None));
        assert_eq!(netlink.link_at(loopback.index).unwrap(), loopback);
        let way = netlink.way_to("127.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(way, Some(Way { interface: loopback.index, by_gateway: false }));
        assert_eq!(netlink.ingress_kind(loopback.index).unwrap(), None);
        assert_eq!(netlink.link("no-such-link").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn attributes_are_read_as_they_are_written_and_never_past_the_end() {
        let mut bytes = Vec::new();
        append(&mut bytes, 3, b"abc\0");
        append(&mut bytes, 1, &[1, 2, 3, 4, 5, 6]);
        append(&mut bytes, 0x8000 | 18, &7_u32.to_ne_bytes());
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"abc\0"[..]), (1, &[1, 2, 3, 4, 5, 6]), (18, &7_u32.to_ne_bytes())]);
        for length in 0..bytes.len() {
            assert!(attributes(&bytes[..length]).count() <= 3);
        }
        // A length that is too small ends it.
        assert_eq!(attributes(&[0; 8]).count(), 0);
    }
}

//! Queries to the kernel about interfaces, routes, neighbours and routing rules, and its notifications (rtnetlink(7)); about sockets, see
//! [`sock_diag`]. They need no external program, and the queries need no capability.
//!
//! Queries about interfaces, and about the forwarding database of a bridge (`rtnl_fdb_get`), wait for the kernel's lock of the
//! network configuration (`rtnl_mutex`). Other processes may hold it for tens of milliseconds while they add or remove
//! interfaces. Queries for a route do not wait for it (since kernel 4.14), and neither do those for a neighbour (since kernel
//! 6.18).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};

pub(crate) mod address;
mod exits;
pub(crate) mod message;
pub mod rule;
pub mod sock_diag;

use self::message::{
    IFF_LOWER_UP, IFF_RUNNING, IFF_UP, IFINFOMSG, IFLA_ADDRESS, IFLA_BR_VLAN_DEFAULT_PVID, IFLA_BR_VLAN_FILTERING, IFLA_EXT_MASK,
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER, NDA_DST, NDA_LLADDR, NDA_MASTER, NDA_VLAN, NDMSG, NLM_F_ACK,
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NUD_PERMANENT, NetlinkRequest, RT_SCOPE_UNIVERSE, RTA_DST, RTA_GATEWAY, RTA_OIF,
    RTA_VIA, RTEXT_FILTER_SKIP_STATS, RTM_DELNEIGH, RTM_F_CLONED, RTM_F_FIB_MATCH, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE, RTMSG,
    RTN_UNICAST, attribute, attributes, bridge_family, family, interface_message, messages, neighbour_message, number, octets,
    prefix_of_one, route_message, short, text, zero_terminated,
};
pub use self::message::{Mac, Message};

/// The time limit for an answer of the kernel, which may wait for other processes that change interfaces.
const ANSWER_TIMEOUT_SECONDS: i64 = 10;
/// The longest message that is received, in bytes: one about a link, with its statistics.
const RECEIVED: usize = 32 * 1024;
/// How often a dump that the kernel reports as incomplete is repeated before the incomplete result is used.
const DUMPS: usize = 5;

/// A socket for queries in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// The kernel's description of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The interface's number.
    pub index: u32,
    /// The interface's name.
    pub name: String,
    /// The interface's link-layer address.
    pub mac: Option<Mac>,
    /// The kind of virtual interface, such as `bridge`.
    pub kind: Option<String>,
    /// The interface that it is a part of, such as the bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether it is up and has a carrier.
    pub is_up: bool,
    /// For a VLAN-aware bridge, the VLAN of its own packets and of untagged ones, unless a port has another one configured.
    pub vlan: Option<u16>,
}

impl Interface {
    /// Reads the body of a message about an interface.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        const IS_UP: u32 = IFF_UP | IFF_RUNNING | IFF_LOWER_UP;
        let index = number(body.get(4..8)?)?;
        let is_up = number(body.get(8..12)?)? & IS_UP == IS_UP;
        let mut interface = Self { index, name: String::new(), mac: None, kind: None, master: None, is_up, vlan: None };
        for (kind, value) in attributes(body.get(IFINFOMSG..)?) {
            match kind {
                IFLA_IFNAME => interface.name = text(value),
                IFLA_ADDRESS => interface.mac = value.try_into().ok(),
                IFLA_MASTER => interface.master = number(value),
                IFLA_LINKINFO => {
                    interface.kind = attribute(value, IFLA_INFO_KIND).map(text);
                    if interface.kind.as_deref() == Some("bridge") {
                        interface.vlan = attribute(value, IFLA_INFO_DATA).and_then(vlan_of_bridge);
                    }
                }
                _ => {}
            }
        }
        Some(interface)
    }
}

fn vlan_of_bridge(data: &[u8]) -> Option<u16> {
    let filters = attribute(data, IFLA_BR_VLAN_FILTERING)? != [0];
    attribute(data, IFLA_BR_VLAN_DEFAULT_PVID).and_then(short).filter(|_| filters)
}

/// The path to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface's number.
    pub interface: u32,
    /// Whether it leads through a gateway.
    pub by_gateway: bool,
}

/// The entry of the kernel's tables that leads to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// The number of the interface; 0 if the route has several.
    pub interface: u32,
    /// Whether it leads through a gateway.
    pub by_gateway: bool,
    /// Whether it covers only this address.
    pub for_one: bool,
    /// Whether it is a unicast route that does not lead to the node itself.
    pub is_unicast: bool,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If netlink is unavailable, or no descriptor is left.
    pub fn open() -> io::Result<Self> {
        Self::with(SockProtocol::NetlinkRoute, TimeVal::seconds(ANSWER_TIMEOUT_SECONDS))
    }

    fn with(protocol: SockProtocol, timeout: TimeVal) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &timeout)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns the interface with this name.
    ///
    /// # Errors
    /// Of the kind `NotFound` if there is none.
    pub fn link(&mut self, name: &str) -> io::Result<Interface> {
        self.one_link(NetlinkRequest::new(RTM_GETLINK, 0, &interface_message(0, 0)).attribute(IFLA_IFNAME, &zero_terminated(name)))
    }

    /// Returns the interface with this number.
    ///
    /// # Errors
    /// Of the kind `NotFound` if there is none.
    pub fn link_at(&mut self, index: u32) -> io::Result<Interface> {
        self.one_link(NetlinkRequest::new(RTM_GETLINK, 0, &interface_message(index, 0)))
    }

    fn one_link(&mut self, request: NetlinkRequest) -> io::Result<Interface> {
        let answer = self.ask(request).map_err(|error| match error.raw_os_error() {
            Some(code) if code == Errno::ENODEV as i32 => io::ErrorKind::NotFound.into(),
            _ => error,
        })?;
        Interface::read(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Returns every interface.
    ///
    /// # Errors
    /// If the kernel returns none.
    pub fn links(&mut self) -> io::Result<Vec<Interface>> {
        let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
        let request = || NetlinkRequest::new(RTM_GETLINK, NLM_F_DUMP, &interface_message(0, 0)).attribute(IFLA_EXT_MASK, &mask);
        self.dump_all(request, Interface::read)
    }

    /// Returns the path that a packet from this node to the address would take; `None` if there is none.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn way_to(&mut self, ip: IpAddr) -> io::Result<Option<Way>> {
        let Some(answer) = self.ask_route(ip, 0)? else { return Ok(None) };
        let (interface, by_gateway) = next_hop(&answer);
        Ok(interface.map(|interface| Way { interface, by_gateway }))
    }

    /// Returns the route that a packet from this node to the address would take; `None` if there is none or it is prohibited.
    /// Follows policy routing, as `ip route get fibmatch` does. Requires kernel 4.13 or later.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn route_to(&mut self, ip: IpAddr) -> io::Result<Option<KernelRoute>> {
        let Some(answer) = self.ask_route(ip, RTM_F_FIB_MATCH)? else { return Ok(None) };
        let (interface, by_gateway) = next_hop(&answer);
        let flags = answer.get(8..12).and_then(number).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(KernelRoute {
            interface: interface.unwrap_or_default(),
            by_gateway,
            // An older kernel ignores the flag of the request, and every answer is for one address.
            for_one: answer.get(1) == Some(&prefix_of_one(ip)) && flags & RTM_F_CLONED == 0,
            is_unicast: answer.get(7) == Some(&RTN_UNICAST),
        }))
    }

    fn ask_route(&mut self, ip: IpAddr, flags: u32) -> io::Result<Option<Vec<u8>>> {
        use io::ErrorKind::{HostUnreachable, InvalidInput, NetworkUnreachable, PermissionDenied};
        let fixed = route_message(family(ip), prefix_of_one(ip), RT_SCOPE_UNIVERSE, flags);
        match self.ask(NetlinkRequest::new(RTM_GETROUTE, 0, &fixed).attribute(RTA_DST, &octets(ip))) {
            Ok(answer) => Ok(Some(answer)),
            // No route or one of the kind `unreachable`, `prohibit` or `blackhole`, in this order.
            Err(error) if matches!(error.kind(), NetworkUnreachable | HostUnreachable | PermissionDenied | InvalidInput) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the kernel's link-layer address for a neighbour; `None` if it has none, or not yet. Requires kernel 5.0 or later.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn neighbour(&mut self, interface: u32, ip: IpAddr) -> io::Result<Option<Mac>> {
        let fixed = neighbour_message(family(ip), interface, 0);
        let answer = self.ask_for_entry(NetlinkRequest::new(RTM_GETNEIGH, 0, &fixed).attribute(NDA_DST, &octets(ip)))?;
        // The attribute is present only while the entry is valid (`neigh_fill_info`, `NUD_VALID`).
        Ok(answer.and_then(|answer| attribute(answer.get(NDMSG..)?, NDA_LLADDR)?.try_into().ok()))
    }

    /// Removes a neighbour, if there is one. Needs the capability `NET_ADMIN`.
    ///
    /// # Errors
    /// If the kernel refuses, or does not answer.
    pub fn delete_neighbour(&mut self, interface: u32, ip: IpAddr) -> io::Result<()> {
        let fixed = neighbour_message(family(ip), interface, 0);
        self.ask_for_entry(NetlinkRequest::new(RTM_DELNEIGH, NLM_F_ACK, &fixed).attribute(NDA_DST, &octets(ip))).map(drop)
    }

    /// Returns the number of the bridge port of a link-layer address, learned or configured; `None` if there is none. Requires
    /// kernel 5.0 or later.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn port_of(&mut self, bridge: u32, mac: Mac, vlan: Option<u16>) -> io::Result<Option<u32>> {
        let mut request = NetlinkRequest::new(RTM_GETNEIGH, 0, &neighbour_message(bridge_family(), 0, 0))
            .attribute(NDA_MASTER, &bridge.to_ne_bytes())
            .attribute(NDA_LLADDR, &mac);
        if let Some(vlan) = vlan {
            request = request.attribute(NDA_VLAN, &vlan.to_ne_bytes());
        }
        let answer = self.ask_for_entry(request)?;
        Ok(answer.and_then(|answer| Forwarding::read(&answer)).and_then(|entry| entry.port))
    }

    fn ask_for_entry(&mut self, request: NetlinkRequest) -> io::Result<Option<Vec<u8>>> {
        match self.ask(request) {
            Ok(answer) => Ok(Some(answer)),
            // The interface may have just been removed.
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENODEV) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Sends a request, and returns the body of its answer; empty if it was only acknowledged.
    pub(crate) fn ask(&mut self, request: NetlinkRequest) -> io::Result<Vec<u8>> {
        self.send(request)?;
        let mut received = vec![0; RECEIVED];
        loop {
            let length = self.receive(&mut received)?;
            let first = messages(&received[..length]).next();
            // Other messages are late answers to earlier queries that timed out.
            if let Some(message) = first.filter(|message| message.sequence == self.sequence) {
                return if message.kind == NLMSG_ERROR { outcome(message.body).map(|()| Vec::new()) } else { Ok(message.body.to_vec()) };
            }
        }
    }

    /// Returns every message of the answer, parsed. An incomplete dump is repeated a few times.
    fn dump_all<T>(&mut self, request: impl Fn() -> NetlinkRequest, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 1..DUMPS {
            if let (entries, true) = self.dump(request(), &read)? {
                return Ok(entries);
            }
        }
        // Changes during the retries are announced as well.
        Ok(self.dump(request(), &read)?.0)
    }

    /// Returns every message of the answer, parsed, and whether the answer is complete.
    fn dump<T>(&mut self, request: NetlinkRequest, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<(Vec<T>, bool)> {
        self.send(request)?;
        let (mut received, mut entries, mut is_complete) = (vec![0; RECEIVED], Vec::new(), true);
        loop {
            let length = self.receive(&mut received)?;
            for message in messages(&received[..length]).filter(|message| message.sequence == self.sequence) {
                is_complete &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok((entries, is_complete)),
                    NLMSG_ERROR => outcome(message.body)?,
                    _ => entries.extend(read(message.body)),
                }
            }
        }
    }

    fn send(&mut self, request: NetlinkRequest) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        sendto(self.socket.as_raw_fd(), &request.finish(self.sequence), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self, received: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), received, MsgFlags::empty()) {
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn outcome(body: &[u8]) -> io::Result<()> {
    match body.get(0..4).and_then(number).ok_or(io::ErrorKind::InvalidData)?.cast_signed() {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// Returns the interface of a route, if it has one, and whether the route leads through a gateway.
fn next_hop(route: &[u8]) -> (Option<u32>, bool) {
    let (mut interface, mut by_gateway) = (None, false);
    for (kind, value) in attributes(route.get(RTMSG..).unwrap_or_default()) {
        match kind {
            RTA_OIF => interface = number(value),
            RTA_GATEWAY | RTA_VIA => by_gateway = true,
            _ => {}
        }
    }
    (interface, by_gateway)
}

/// An entry of a bridge's forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    /// The number of the bridge.
    pub(crate) bridge: u32,
    /// The link-layer address of the entry.
    pub(crate) mac: Mac,
    /// The VLAN, if the bridge is VLAN-aware.
    pub(crate) vlan: Option<u16>,
    /// The number of the port; `None` for an address of the bridge itself or of one of its ports.
    pub(crate) port: Option<u32>,
}

impl Forwarding {
    /// Parses the body of a message about such an entry. `None` for other entries of the same family: VXLAN interfaces and
    /// network cards have databases of their own, which no bridge uses.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let (port, state) = (number(body.get(4..8)?)?, short(body.get(8..10)?)?);
        let (mut bridge, mut mac, mut vlan) = (None, None, None);
        for (kind, value) in attributes(body.get(NDMSG..)?) {
            match kind {
                NDA_MASTER => bridge = number(value),
                NDA_LLADDR => mac = value.try_into().ok(),
                NDA_VLAN => vlan = short(value),
                _ => {}
            }
        }
        let bridge = bridge?;
        let is_own = port == bridge || state & NUD_PERMANENT != 0;
        Some(Self { bridge, mac: mac?, vlan, port: Some(port).filter(|_| !is_own) })
    }
}

/// A subscription to notifications of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Notifications {
    socket: OwnedFd,
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Notifications {
    /// Subscribes to groups of notifications: `RTNLGRP_…` of linux/rtnetlink.h, each as a bit, starting with group 1 in the
    /// lowest one. The kernel ignores groups that it does not have. The queue holds this many bytes, or as many as the node
    /// allows (`net.core.rmem_max`).
    ///
    /// # Errors
    /// If netlink is unavailable, or no descriptor is left.
    pub fn open(groups: u32, queue: usize) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        // The second call does not need NET_ADMIN.
        setsockopt(&socket, RcvBufForce, &queue).or_else(|_| setsockopt(&socket, RcvBuf, &queue))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { socket })
    }

    /// Returns the next notification; `None` if there is none. A notification that does not fit is truncated.
    ///
    /// # Errors
    /// `ENOBUFS` once when the queue overflowed; the kernel then announces nothing until the queue has been read to its end
    /// (`netlink_overrun`, `NETLINK_S_CONGESTED`).
    pub fn next<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return Ok(Some(buffer.get(..length).unwrap_or_default())),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests;

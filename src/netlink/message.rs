//! Encoding and decoding of netlink messages. Pure; never reads past the end of the input.
//!
//! Layout and numbers: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h, linux/if_bridge.h.

use std::net::IpAddr;

use nix::sys::socket::AddressFamily;

/// A link-layer address.
pub type Mac = [u8; 6];

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_ECHO: u16 = 8;
/// In an answer to a dump: something changed during the dump, and entries may be missing.
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Requests every entry (`NLM_F_ROOT | NLM_F_MATCH`).
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const HEADER: usize = 16;

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
pub(crate) const RTM_GETNEIGH: u16 = 30;
pub(crate) const RTM_NEWRULE: u16 = 32;
pub(crate) const RTM_DELRULE: u16 = 33;
pub(crate) const RTM_GETRULE: u16 = 34;
pub(crate) const RTM_GETQDISC: u16 = 38;
pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;

// Routes.
pub(crate) const RTMSG: usize = 12;
pub(crate) const RT_TABLE_MAIN: u8 = 254;
pub(crate) const RTPROT_BOOT: u8 = 3;
pub(crate) const RT_SCOPE_UNIVERSE: u8 = 0;
pub(crate) const RT_SCOPE_LINK: u8 = 253;
pub(crate) const RT_SCOPE_HOST: u8 = 254;
pub(crate) const RTN_UNICAST: u8 = 1;
pub(crate) const RTNH_F_ONLINK: u32 = 4;
/// In an answer: the route is the result for one address, not an entry of a table.
pub(crate) const RTM_F_CLONED: u32 = 0x200;
/// Requests the entry of the table that matched.
pub(crate) const RTM_F_FIB_MATCH: u32 = 0x2000;
pub(crate) const RTA_DST: u16 = 1;
pub(crate) const RTA_OIF: u16 = 4;
pub(crate) const RTA_GATEWAY: u16 = 5;
pub(crate) const RTA_VIA: u16 = 18;

// Interfaces.
pub(crate) const IFINFOMSG: usize = 16;
pub(crate) const IFF_UP: u32 = 1;
pub(crate) const IFF_RUNNING: u32 = 0x40;
pub(crate) const IFF_LOWER_UP: u32 = 0x1_0000;
pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MASTER: u16 = 10;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_NET_NS_PID: u16 = 19;
pub(crate) const IFLA_EXT_MASK: u16 = 29;
/// Omits the statistics from an answer.
pub(crate) const RTEXT_FILTER_SKIP_STATS: u32 = 8;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;
pub(crate) const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
pub(crate) const VETH_INFO_PEER: u16 = 1;

// Addresses.
pub(crate) const IFA_ADDRESS: u16 = 1;
pub(crate) const IFA_LOCAL: u16 = 2;
/// The lifetimes of the address: `struct ifa_cacheinfo`.
pub(crate) const IFA_CACHEINFO: u16 = 6;
/// Who added the address, as a number of `RTPROT_…`. Kernels before 5.18 ignore it.
pub(crate) const IFA_PROTO: u16 = 11;
pub(crate) const IFA_F_NODAD: u8 = 2;
/// The fixed part of a message about an address: its length.
pub(crate) const IFADDRMSG: usize = 8;

// Neighbours, and the forwarding databases of bridges.
pub(crate) const NDMSG: usize = 12;
pub(crate) const NDA_DST: u16 = 1;
pub(crate) const NDA_LLADDR: u16 = 2;
pub(crate) const NDA_VLAN: u16 = 5;
pub(crate) const NDA_MASTER: u16 = 9;
pub(crate) const NUD_PERMANENT: u16 = 0x80;

// Queueing disciplines.
pub(crate) const TCMSG: usize = 20;
pub(crate) const TCA_KIND: u16 = 1;
/// Where `clsact` and `ingress` are attached (linux/pkt_sched.h, TC_H_CLSACT).
pub(crate) const TC_H_INGRESS: u32 = 0xffff_fff1;

/// The high bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A request under construction.
#[derive(Debug)]
pub(crate) struct NetlinkRequest {
    bytes: Vec<u8>,
}

impl NetlinkRequest {
    /// Starts a request with the fixed part of messages of its kind.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        append(&mut self.bytes, kind, value);
        self
    }

    /// Fills in the length and the sequence number.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Appends an attribute: its length and kind, its value, and zeros up to a multiple of four bytes.
pub(crate) fn append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The kind of the message, such as `RTM_NEWLINK`.
    pub kind: u16,
    /// `NLM_F_…`
    pub flags: u16,
    /// The sequence number of the request that it answers; 0 for a notification.
    pub sequence: u32,
    /// Everything after the header.
    pub body: &'a [u8],
}

/// Splits received data into messages, up to the first malformed one.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(bytes.get(0..4)?)?).ok()?;
        let (kind, flags) = (short(bytes.get(4..6)?)?, short(bytes.get(6..8)?)?);
        let sequence = number(bytes.get(8..12)?)?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, body })
    })
}

/// Splits data into attributes, without the flags of their types, up to the first malformed one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(bytes.get(0..2)?)?);
        let kind = short(bytes.get(2..4)?)?;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// Returns the value of the first attribute of this kind.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

pub(crate) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

pub(crate) fn short(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.try_into().ok()?))
}

pub(crate) fn text(zero_terminated: &[u8]) -> String {
    String::from_utf8_lossy(zero_terminated).trim_end_matches('\0').to_owned()
}

pub(crate) fn zero_terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Returns the number of the address family.
pub(crate) fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    family as i32 as u8
}

/// Returns the number of the family of messages about bridges.
pub(crate) fn bridge_family() -> u8 {
    // linux/socket.h, AF_BRIDGE; nix has no name for it.
    7
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Parses an address of either family, which its length determines.
pub(crate) fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(ipv4) = <[u8; 4]>::try_from(octets) {
        return Some(ipv4.into());
    }
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

/// Returns the length of a prefix that covers a single address.
pub(crate) fn prefix_of_one(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

pub(crate) fn interface_message(index: u32, flags: u32) -> [u8; IFINFOMSG] {
    let mut fixed = [0; IFINFOMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

pub(crate) fn neighbour_message(family: u8, index: u32, state: u16) -> [u8; NDMSG] {
    let mut fixed = [0; NDMSG];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed
}

/// Returns the fixed part of a message about a route of the main table. `flags` are those of the route, or of its only next
/// hop.
pub(crate) fn route_message(family: u8, prefix: u8, scope: u8, flags: u32) -> [u8; RTMSG] {
    let mut fixed = [family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0, 0, 0, 0];
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_and_are_never_read_past_the_end() {
        let mut bytes = Vec::new();
        append(&mut bytes, 3, b"abc\0");
        append(&mut bytes, 1, &[1, 2, 3, 4, 5, 6]);
        append(&mut bytes, 0x8000 | 18, &7_u32.to_ne_bytes());
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"abc\0"[..]), (1, &[1, 2, 3, 4, 5, 6]), (18, &7_u32.to_ne_bytes())]);
        assert_eq!(attribute(&bytes, 18), Some(&7_u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&bytes, 2), None);
        for length in 0..bytes.len() {
            assert!(attributes(&bytes[..length]).count() <= 3);
        }
        // A length that is too small ends the iteration.
        assert_eq!(attributes(&[0; 8]).count(), 0);
    }

    #[test]
    fn messages_are_split_and_never_read_past_the_end() {
        let first = NetlinkRequest::new(RTM_NEWLINK, NLM_F_ACK, &[1, 2, 3]).finish(5);
        let mut bytes = first.clone();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(NetlinkRequest::new(NLMSG_DONE, 0, &[9; 4]).finish(6));
        let read: Vec<_> = messages(&bytes).collect();
        let wanted = [
            Message { kind: RTM_NEWLINK, flags: NLM_F_ACK | NLM_F_REQUEST, sequence: 5, body: &[1, 2, 3] },
            Message { kind: NLMSG_DONE, flags: NLM_F_REQUEST, sequence: 6, body: &[9; 4] },
        ];
        assert_eq!(read, wanted);
        for length in 0..bytes.len() {
            assert!(messages(&bytes[..length]).count() < 2);
        }
        // A length below that of the header, or beyond the end, ends the iteration.
        for length in [0_u32, 15, u32::MAX] {
            let mut bad = first.clone();
            bad[0..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&bad).count(), 0, "{length}");
        }
    }

    #[test]
    fn the_length_determines_the_address_family() {
        for ip in ["10.0.0.1", "fd00::1"] {
            let ip = ip.parse().ok();
            assert_eq!(ip.and_then(|ip| address(&octets(ip))), ip);
        }
        assert_eq!(address(&[0; 6]), None);
    }
}

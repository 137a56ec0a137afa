//! Packets that no socket of TCP or UDP would send.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
use serde::{Deserialize, Serialize};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The source port of segments and datagrams.
const PORT: u16 = 40_000;
const HOPS: u8 = 64;

/// An Ethernet frame with the first segment of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Frame {
    pub(super) interface: String,
    /// The link-layer address of the next hop.
    pub(super) next_hop: [u8; 6],
    pub(super) from: IpAddr,
    pub(super) to: SocketAddr,
}

impl Frame {
    /// Sends it from a packet socket.
    pub(super) fn send(&self, class: u32) -> io::Result<()> {
        let named = getifaddrs()?.filter(|interface| interface.interface_name == self.interface);
        let own = named.filter_map(|interface| interface.address?.as_link_addr().copied()).next().ok_or(Errno::ENODEV)?;
        let mut frame = self.next_hop.to_vec();
        frame.extend(own.addr().unwrap_or_default());
        let segment = segment(self.from, self.to);
        match (self.from, self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00]);
                frame.extend(ipv4(from, to, TCP, class, &segment));
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd]);
                let class = class.to_be_bytes()[3];
                frame.extend([0x60 | class >> 4, class << 4, 0, 0]);
                frame.extend(u16::try_from(segment.len()).unwrap_or_default().to_be_bytes());
                frame.extend([TCP, HOPS]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(&segment);
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        let packets = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        sendto(packets.as_raw_fd(), &frame, &own, MsgFlags::empty())?;
        Ok(())
    }
}

/// Returns an ICMP echo request. The kernel completes that of IPv6.
pub(super) fn echo_request(is_ipv4: bool) -> Vec<u8> {
    let mut request = vec![if is_ipv4 { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 1];
    if is_ipv4 {
        let sum = checksum(&request);
        request[2..4].copy_from_slice(&sum);
    }
    request
}

/// Returns an IPv4 packet with a UDP datagram.
pub(super) fn forged_datagram(from: Ipv4Addr, to: SocketAddrV4, class: u32) -> Vec<u8> {
    // Without a checksum.
    let datagram: Vec<u8> = [PORT.to_be_bytes(), to.port().to_be_bytes(), 8_u16.to_be_bytes(), [0, 0]].concat();
    ipv4(from, *to.ip(), UDP, class, &datagram)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, class: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or_default().to_be_bytes();
    let mut packet = vec![0x45, class.to_be_bytes()[3], length[0], length[1], 0, 1, 0, 0, HOPS, protocol, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// Returns the first segment of a connection.
fn segment(from: IpAddr, to: SocketAddr) -> Vec<u8> {
    let mut segment = [PORT.to_be_bytes(), to.port().to_be_bytes()].concat();
    // Sequence number, acknowledgement, header length, SYN, window, checksum, urgent pointer.
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let pseudo_header = [octets(from), octets(to.ip()), vec![0, TCP, 0, 20]].concat();
    let sum = checksum(&[pseudo_header, segment.clone()].concat());
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}

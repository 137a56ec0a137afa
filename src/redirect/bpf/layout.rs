//! The maps' keys and values as `programs.c` has them: pure. Numbers are in the machine's byte order, addresses in that of the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::cgroup::{CgroupId, RedirectedSocket};
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6, METADATA_PORT};

/// The size of `struct config`.
pub(super) const CONFIG: usize = 64;
/// The size of `struct connection`.
pub(super) const CONNECTION: usize = 40;
/// The size of `struct record`.
pub(super) const RECORD: usize = 32;

const REDIRECT: u32 = 1;
const PASS_HOST_NETWORK: u32 = 2;

/// What the programs do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramConfig {
    /// The control group of all pods.
    pub pods: u64,
    /// The cookie of the node's network namespace; 0 for the initial one.
    pub host_network: u64,
    /// The control groups of the QoS classes with pods in them, burstable and besteffort; 0 for one that does not exist.
    pub classes: [u64; 2],
    /// The depth of the pods' control group below the root.
    pub level: u32,
    /// Whether pods in the node's network may use the real metadata service.
    pub pass_host_network: bool,
    /// Where connections are redirected; without an address of a family, they are denied.
    pub targets: Option<BpfTargets>,
}

/// Where connections are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BpfTargets {
    /// For 169.254.169.254.
    pub ipv4: Option<Ipv4Addr>,
    /// For fd00:ec2::254.
    pub ipv6: Option<Ipv6Addr>,
    /// The app port.
    pub port: u16,
}

impl ProgramConfig {
    /// Returns the value of the map `config`.
    pub fn encode(&self) -> [u8; CONFIG] {
        let redirect = if self.targets.is_some() { REDIRECT } else { 0 };
        let flags = redirect | if self.pass_host_network { PASS_HOST_NETWORK } else { 0 };
        let (ipv4, ipv6, port) = self.targets.map_or((None, None, 0), |targets| (targets.ipv4, targets.ipv6, targets.port));
        let mut bytes = [0; CONFIG];
        bytes[0..8].copy_from_slice(&self.pods.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.host_network.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.classes[0].to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.classes[1].to_ne_bytes());
        bytes[32..36].copy_from_slice(&self.level.to_ne_bytes());
        bytes[36..40].copy_from_slice(&flags.to_ne_bytes());
        bytes[40..44].copy_from_slice(&ipv4.map_or([0; 4], |ip| ip.octets()));
        bytes[44..60].copy_from_slice(&ipv6.map_or([0; 16], |ip| ip.octets()));
        bytes[60..64].copy_from_slice(&u32::from(port.to_be()).to_ne_bytes());
        bytes
    }

    /// Reads a value of the map `config`.
    pub fn decode(bytes: &[u8; CONFIG]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let flags = word(36);
        let ipv4 = Ipv4Addr::new(bytes[40], bytes[41], bytes[42], bytes[43]);
        let mut ipv6 = [0; 16];
        ipv6.copy_from_slice(&bytes[44..60]);
        let ipv6 = Ipv6Addr::from(ipv6);
        let targets = BpfTargets {
            ipv4: Some(ipv4).filter(|ip| !ip.is_unspecified()),
            ipv6: Some(ipv6).filter(|ip| !ip.is_unspecified()),
            port: u16::from_be(u16::try_from(word(60)).unwrap_or_default()),
        };
        Self {
            pods: long(bytes, 0),
            host_network: long(bytes, 8),
            classes: [long(bytes, 16), long(bytes, 24)],
            level: word(32),
            pass_host_network: flags & PASS_HOST_NETWORK != 0,
            targets: (flags & REDIRECT != 0).then_some(targets),
        }
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(number)
}

/// Returns the key of a connection in the map `connections`.
pub(super) fn connection(client: SocketAddr, daemon: SocketAddr, in_host_network: bool) -> [u8; CONNECTION] {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let mut key = [0; CONNECTION];
    key[0..16].copy_from_slice(&octets(client.ip()));
    key[16..32].copy_from_slice(&octets(daemon.ip()));
    key[32..34].copy_from_slice(&client.port().to_ne_bytes());
    key[34..36].copy_from_slice(&daemon.port().to_ne_bytes());
    key[36..40].copy_from_slice(&u32::from(in_host_network).to_ne_bytes());
    key
}

/// Reads a value of the map `connections`.
pub(super) fn record(bytes: &[u8; RECORD], in_host_network: bool) -> RedirectedSocket {
    let destination = if long(bytes, 24) == 0 {
        SocketAddr::V4(SocketAddrV4::new(METADATA_IPV4, METADATA_PORT))
    } else {
        SocketAddr::V6(SocketAddrV6::new(METADATA_IPV6, METADATA_PORT, 0, 0))
    };
    RedirectedSocket {
        cgroup: CgroupId(long(bytes, 0)),
        process: CgroupId(long(bytes, 8)),
        is_in_host_network: in_host_network,
        destination,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    fn full() -> ProgramConfig {
        let targets = BpfTargets { ipv4: "10.0.0.1".parse().ok(), ipv6: "fd00::1".parse().ok(), port: 8181 };
        ProgramConfig { pods: 7, host_network: 4026, classes: [8, 9], level: 2, pass_host_network: true, targets: Some(targets) }
    }

    #[test]
    fn a_configuration_reads_as_it_was_written() {
        let none = ProgramConfig { targets: None, pass_host_network: false, ..full() };
        let only_v6 = ProgramConfig { targets: full().targets.map(|targets| BpfTargets { ipv4: None, ..targets }), ..full() };
        for config in [full(), none, only_v6, ProgramConfig::default()] {
            assert_eq!(ProgramConfig::decode(&config.encode()), config);
        }
    }

    #[test]
    fn addresses_and_ports_are_in_the_order_that_the_programs_compare() {
        let bytes = full().encode();
        assert_eq!(&bytes[40..44], &[10, 0, 0, 1]);
        assert_eq!((bytes[44], bytes[45], bytes[59]), (0xfd, 0, 1));
        // The kernel's `user_port` is a number of 16 bits in network byte order.
        assert_eq!(&bytes[60..64], &[0x1f, 0xf5, 0, 0]);
        assert_eq!(u32::from_ne_bytes(bytes[36..40].try_into().unwrap()), REDIRECT | PASS_HOST_NETWORK);
    }

    #[test]
    fn a_key_has_mapped_addresses_and_the_network() {
        let key = connection("10.42.0.2:1025".parse().unwrap(), "10.42.0.1:8181".parse().unwrap(), true);
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 42, 0, 2];
        assert_eq!(key[0..16], mapped);
        assert_eq!((&key[32..34], &key[34..36]), (&1025_u16.to_ne_bytes()[..], &8181_u16.to_ne_bytes()[..]));
        let elsewhere = connection("10.42.0.2:1025".parse().unwrap(), "10.42.0.1:8181".parse().unwrap(), false);
        assert_ne!(key, elsewhere);
        // A socket of both families sees the same client.
        let of_v6 = connection("[::ffff:10.42.0.2]:1025".parse().unwrap(), "[::ffff:10.42.0.1]:8181".parse().unwrap(), true);
        assert_eq!(key, of_v6);
    }

    #[test]
    fn a_record_names_the_control_group_and_the_address() {
        let mut bytes = [0; RECORD];
        bytes[0..8].copy_from_slice(&9_u64.to_ne_bytes());
        bytes[8..16].copy_from_slice(&10_u64.to_ne_bytes());
        let found = record(&bytes, true);
        assert_eq!(
            (found.cgroup, found.process, found.is_in_host_network, found.destination.to_string()),
            (CgroupId(9), CgroupId(10), true, "169.254.169.254:80".into())
        );
        bytes[24] = 1;
        assert_eq!(record(&bytes, false).destination.to_string(), "[fd00:ec2::254]:80");
    }
}

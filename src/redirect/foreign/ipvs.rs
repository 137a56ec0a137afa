//! Finds virtual services of IPVS (kube-proxy's mode `ipvs`), which take packets to an address of the node whatever the packet rules
//! say. Pure.
//!
//! Facts: `ip_vs_info_seq_show` of Linux, which writes addresses as hexadecimal numbers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::destination::Destination;

/// Lists the virtual services and their real servers. Missing without the kernel's module.
pub(super) const FILE: &str = "/proc/net/ip_vs";

/// Returns the address of the virtual service that a line of [`FILE`] names, if it is one of TCP.
pub(super) fn service(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("TCP ")?.split_whitespace().next().and_then(address)
}

/// Describes a virtual service that has this destination.
pub(super) fn redirect(service: SocketAddr, destination: Destination) -> Option<String> {
    let is_at = service.ip() == destination.ip() && destination.port().is_none_or(|port| service.port() == port);
    is_at.then(|| format!("IPVS has a virtual service at {service}, which no packet rule can prevent"))
}

fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    let ip = match ip.strip_prefix('[') {
        Some(ipv6) => IpAddr::V6(ipv6.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(Ipv4Addr::from_bits(u32::from_str_radix(ip, 16).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::redirect::rules::Family;

    fn redirects(text: &str, destination: Destination) -> Vec<String> {
        text.lines().filter_map(service).filter_map(|service| redirect(service, destination)).collect()
    }

    const LISTED: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  C0000201:1FF5 rr
  -> 0A2A0007:1F90      Masq    1      0          0
UDP  C0000202:1FF5 rr
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:1FF5 rr
TCP  A9FEA9FE:0050 rr
FWM  00000001 rr
";

    #[test]
    fn services_at_the_destination_are_found() {
        let count = |address: &str| redirects(LISTED, Destination::Daemon(address.parse().unwrap())).len();
        assert_eq!(["192.0.2.1:8181", "[2001:db8::1]:8181"].map(count), [1, 1]);
        // Another port, UDP, and a real server.
        assert_eq!(["192.0.2.1:8182", "192.0.2.2:8181", "10.42.0.7:8080", "[2001:db8::2]:8181"].map(count), [0; 4]);
        let metadata = |family| redirects(LISTED, Destination::Metadata(family));
        assert_eq!(metadata(Family::V4), ["IPVS has a virtual service at 169.254.169.254:80, which no packet rule can prevent"]);
        assert_eq!(metadata(Family::V6), [""; 0]);
        assert_eq!(redirects("", Destination::Metadata(Family::V4)), [""; 0]);
    }
}

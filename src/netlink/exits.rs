//! The interfaces through which packets to an address can leave the node, by all routing tables.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use super::Netlink;
use super::message::{NLM_F_DUMP, NetlinkRequest, RTA_DST, RTA_OIF, RTM_GETROUTE, RTMSG, RTN_UNICAST, attributes, family, number, octets};

/// The hops of a route with several (linux/rtnetlink.h).
const RTA_MULTIPATH: u16 = 9;
/// The size of `struct rtnexthop`: its length, flags, hops, and the number of the interface.
const NEXT_HOP: usize = 8;
/// How often a dump that the kernel reports as incomplete is repeated.
const DUMPS: usize = 5;

impl Netlink {
    /// Returns the numbers of the interfaces to which a route leads that covers this address, in any routing table.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn exits_to(&mut self, ip: IpAddr) -> io::Result<BTreeSet<u32>> {
        let mut exits = BTreeSet::new();
        for _ in 0..DUMPS {
            let request = NetlinkRequest::new(RTM_GETROUTE, NLM_F_DUMP, &every_route(family(ip)));
            let (found, is_complete) = self.dump(request, |body| exits_of(body, ip))?;
            // What a repeated dump misses, an earlier one has.
            exits.extend(found.into_iter().flatten());
            if is_complete {
                break;
            }
        }
        Ok(exits)
    }
}

/// The fixed part of a request for every route of a family.
fn every_route(family: u8) -> [u8; RTMSG] {
    let mut fixed = [0; RTMSG];
    fixed[0] = family;
    fixed
}

/// Reads the interfaces of a route; `None` if it does not cover this address.
fn exits_of(route: &[u8], ip: IpAddr) -> Option<Vec<u32>> {
    let (of_family, prefix, kind) = (*route.first()?, usize::from(*route.get(1)?), *route.get(7)?);
    if of_family != family(ip) || kind != RTN_UNICAST {
        return None;
    }
    let (mut destination, mut exits) = (None, Vec::new());
    for (kind, value) in attributes(route.get(RTMSG..)?) {
        match kind {
            RTA_DST => destination = Some(value),
            RTA_OIF => exits.extend(number(value)),
            RTA_MULTIPATH => exits.extend(hops(value)),
            _ => {}
        }
    }
    covers(destination.unwrap_or_default(), prefix, &octets(ip)).then_some(exits)
}

/// Whether an address is in a network.
fn covers(network: &[u8], prefix: usize, address: &[u8]) -> bool {
    let bit = |bytes: &[u8], at: usize| bytes.get(at / 8).map(|byte| byte >> (7 - at % 8) & 1);
    (0..prefix).all(|at| bit(network, at).is_some() && bit(network, at) == bit(address, at))
}

/// Reads the interfaces of the hops of a route.
fn hops(mut rest: &[u8]) -> Vec<u32> {
    let mut interfaces = Vec::new();
    while let Some(hop) = rest.get(..NEXT_HOP) {
        let length = usize::from(u16::from_ne_bytes([hop[0], hop[1]]));
        interfaces.extend(number(&hop[4..8]));
        match rest.get(length.max(NEXT_HOP).next_multiple_of(4)..) {
            Some(next) => rest = next,
            None => break,
        }
    }
    interfaces
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::netlink::message::append;

    fn route(prefix: u8, kind: u8, destination: Option<[u8; 4]>, interface: Option<u32>) -> Vec<u8> {
        let mut body = vec![2, prefix, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0];
        destination.iter().for_each(|destination| append(&mut body, RTA_DST, destination));
        interface.iter().for_each(|interface| append(&mut body, RTA_OIF, &interface.to_ne_bytes()));
        body
    }

    #[test]
    fn only_routes_that_cover_the_address_count() {
        let ip = "169.254.169.254".parse().unwrap();
        let exits = |route: &[u8]| exits_of(route, ip).unwrap_or_default();
        assert_eq!(exits(&route(0, RTN_UNICAST, None, Some(2))), [2]);
        assert_eq!(exits(&route(16, RTN_UNICAST, Some([169, 254, 0, 0]), Some(3))), [3]);
        assert_eq!(exits(&route(32, RTN_UNICAST, Some([169, 254, 169, 254]), Some(4))), [4]);
        assert!(exits(&route(32, RTN_UNICAST, Some([169, 254, 169, 253]), Some(4))).is_empty());
        assert!(exits(&route(8, RTN_UNICAST, Some([10, 0, 0, 0]), Some(4))).is_empty());
        // A route of the kind `local`, and one of the other family.
        assert!(exits(&route(32, 2, Some([169, 254, 169, 254]), Some(1))).is_empty());
        assert_eq!(exits_of(&route(0, RTN_UNICAST, None, Some(2)), "fd00:ec2::254".parse().unwrap()), None);
        assert_eq!(exits_of(&[2, 0, 0], ip), None);
    }

    #[test]
    fn every_hop_of_a_route_counts() {
        let mut hops = Vec::new();
        for interface in [5_u32, 6] {
            let mut hop = vec![0; NEXT_HOP];
            append(&mut hop, 5, &[10, 0, 0, 1]);
            let length = u16::try_from(hop.len()).unwrap();
            hop[0..2].copy_from_slice(&length.to_ne_bytes());
            hop[4..8].copy_from_slice(&interface.to_ne_bytes());
            hops.extend(hop);
        }
        let mut body = route(0, RTN_UNICAST, None, None);
        append(&mut body, RTA_MULTIPATH, &hops);
        assert_eq!(exits_of(&body, "169.254.169.254".parse().unwrap()), Some(vec![5, 6]));
    }
}

//! Creates and removes the test's interface on the node, and the routes to it.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tracing::debug;

use super::helper::INSIDE;
use super::netlink::{Mac, Netlink, Veth};
use super::placement::{self, Placement};
use crate::redirect::rules::Family;

/// The number of daemons that can test at the same time on one node, as in a rolling update. Each picks a number at random.
pub(super) const NUMBERS: u8 = 96;
/// The first of the IPv4 addresses of the tests, 192.0.0.32 to 192.0.0.127, of which each test takes one. The IETF assigns
/// addresses of 192.0.0.0/24 to protocols (RFC 6890, 2.1), and none of this range is assigned (IANA IPv4 Special-Purpose
/// Address Registry): no host, pod or cloud network has one, and no router has a route to them. Other ranges would not do:
/// 198.18.0.0/15 is in use for pods, and 169.254.0.0/16 for services of nodes.
pub(super) const FIRST_IPV4: u32 = u32::from_be_bytes([192, 0, 0, 32]);
/// The first IPv6 address of the tests. The prefix has 40 random bits (RFC 4193, 3.2.2) and a subnet, so the chance that a
/// network uses it is one in a trillion.
pub(super) const FIRST_IPV6: u128 = 0xfd5e_91c7_3ab4_7e57 << 64;

/// The interface of a test and the routes to it. Dropping it removes them.
#[derive(Debug)]
pub(super) struct TestNetwork {
    pub(super) place: Placement,
    pub(super) number: u8,
    index: u32,
    /// The bridge that has the routes. `None` if the interface itself has them, which are deleted with it.
    bridge: Option<u32>,
    /// Whether IPv6 packets arrive through the interface: false if the node has IPv6 disabled.
    pub(super) has_ipv6: bool,
}

impl Drop for TestNetwork {
    fn drop(&mut self) {
        let taken = Netlink::open().and_then(|mut netlink| {
            if let Some(bridge) = self.bridge {
                // The IPv6 route exists only if the node has IPv6.
                let _ = Family::ALL.map(|family| netlink.delete_route(source(family, self.number), bridge));
            }
            netlink.delete_link(self.index)
        });
        if let Err(error) = taken {
            debug!(%error, "cannot remove the self-test's interface; it may be gone already");
        }
    }
}

/// Returns a locally administered address that is higher than others: a bridge without an address of its own takes the lowest
/// address of its ports, and must not change it for the test.
fn mac(number: u8, is_inside: bool) -> Mac {
    [0xfe, 0x72, 0x6f, 0x6c, u8::from(is_inside), number]
}

/// Creates the interface, and returns the link-layer address that the namespace has to use for its gateway.
pub(super) fn make(place: Placement, pid: u32) -> io::Result<(TestNetwork, Mac)> {
    let mut netlink = Netlink::open()?;
    let first = (RandomState::new().hash_one(pid) % u64::from(NUMBERS)) as u8;
    (0..NUMBERS).for_each(|number| sweep(&mut netlink, number));
    for number in (0..NUMBERS).map(|number| (first + number) % NUMBERS) {
        match make_numbered(&mut netlink, place.clone(), number, pid) {
            // Another daemon or a pod has this number's name or address.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done,
        }
    }
    Err(io::Error::other("every name or address for it is in use"))
}

/// Deletes the route to a test's address that a killed daemon left on a bridge. Its interface is already gone.
fn sweep(netlink: &mut Netlink, number: u8) {
    for family in Family::ALL {
        let Ok(Some(way)) = netlink.way_to(source(family, number)) else { continue };
        let is_bridge = netlink.link_at(way.interface).is_ok_and(|link| link.kind.as_deref() == Some("bridge"));
        let port = netlink.link(&placement::interface_name(PORT, number));
        if is_bridge && !way.by_gateway && port.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // If only an unrelated wider route matches, there is nothing to delete.
            let _ = netlink.delete_route(source(family, number), way.interface);
        }
    }
}

/// The name prefix of a bridge port. No rule matches it.
const PORT: &str = "rolegate";

fn make_numbered(netlink: &mut Netlink, place: Placement, number: u8, pid: u32) -> io::Result<(TestNetwork, Mac)> {
    let (name, bridge) = match &place {
        Placement::Prefix(prefix) => (placement::interface_name(prefix, number), None),
        Placement::Bridge(bridge) => (placement::interface_name(PORT, number), Some(netlink.link(bridge)?)),
    };
    let index_of_bridge = bridge.as_ref().map(|bridge| bridge.index);
    let peer_mac = mac(number, true);
    let veth = Veth { name: &name, mac: mac(number, false), bridge: index_of_bridge, peer_name: INSIDE, peer_mac, peer_of: pid };
    netlink.add_veth(veth)?;
    let index = netlink.link(&name)?.index;
    // From here on, a failure removes the interface.
    let mut network = TestNetwork { place, number, index, bridge: None, has_ipv6: true };
    netlink.set_up(index)?;
    let via = index_of_bridge.unwrap_or(index);
    for family in Family::ALL {
        let ip = source(family, number);
        let led = netlink.add_route(ip, via).and_then(|()| netlink.add_neighbour(ip, peer_mac, via));
        match led {
            Err(error) if family == Family::V4 || error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            Err(error) => {
                network.has_ipv6 = false;
                debug!(%error, "cannot set up IPv6 for the self-test; testing IPv4 only");
            }
            Ok(()) => {}
        }
    }
    // The bridge may have just taken the address of its new port.
    let gateway_mac = netlink.link_at(via)?.mac.unwrap_or(mac(number, false));
    // Set only now: if another test has the routes, they are not ours to delete.
    network.bridge = index_of_bridge;
    Ok((network, gateway_mac))
}

/// Returns the source address of a test.
pub(super) fn source(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(FIRST_IPV4 + u32::from(number)).into(),
        Family::V6 => Ipv6Addr::from_bits(FIRST_IPV6 + u128::from(number)).into(),
    }
}

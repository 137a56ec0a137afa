#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::message::append;
use super::*;

#[test]
fn loopback_is_found_and_routed_to_itself() {
    let mut netlink = Netlink::open().unwrap();
    let loopback = netlink.link("lo").unwrap();
    assert_eq!((loopback.mac, loopback.kind.clone(), loopback.master), (Some([0; 6]), None, None));
    assert_eq!((loopback.name.as_str(), loopback.vlan), ("lo", None));
    assert_eq!(netlink.link_at(loopback.index).unwrap(), loopback);
    assert!(netlink.links().unwrap().contains(&loopback));
    let ip = "127.0.0.1".parse().unwrap();
    let way = netlink.way_to(ip).unwrap();
    assert_eq!(way, Some(Way { interface: loopback.index, by_gateway: false }));
    let route = netlink.route_to(ip).unwrap().unwrap();
    assert_eq!((route.interface, route.by_gateway, route.is_unicast), (loopback.index, false, false));
    assert_eq!(netlink.neighbour(loopback.index, "127.0.0.77".parse().unwrap()).unwrap(), None);
    assert_eq!(netlink.link("no-such-link").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(netlink.link_at(i32::MAX.cast_unsigned()).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_vlan_is_read_only_from_vlan_aware_bridges() {
    for (filtering, pvid, wanted) in [(1_u8, Some(7_u16), Some(7)), (0, Some(7), None), (1, None, None)] {
        let (mut data, mut info) = (Vec::new(), Vec::new());
        append(&mut data, IFLA_BR_VLAN_FILTERING, &[filtering]);
        if let Some(pvid) = pvid {
            append(&mut data, IFLA_BR_VLAN_DEFAULT_PVID, &pvid.to_ne_bytes());
        }
        append(&mut info, IFLA_INFO_KIND, b"bridge\0");
        append(&mut info, IFLA_INFO_DATA, &data);
        let mut body = interface_message(3, IFF_UP | IFF_RUNNING | IFF_LOWER_UP).to_vec();
        append(&mut body, IFLA_IFNAME, b"cni0\0");
        append(&mut body, IFLA_LINKINFO, &info);
        let read = Interface::read(&body).unwrap();
        let kind = Some("bridge".to_owned());
        assert_eq!(read, Interface { index: 3, name: "cni0".into(), mac: None, kind, master: None, is_up: true, vlan: wanted });
        for length in 0..body.len() {
            let _ = Interface::read(&body[..length]);
        }
    }
    assert_eq!(Interface::read(&interface_message(3, IFF_UP)).map(|interface| interface.is_up), Some(false), "it has no carrier");
}

#[test]
fn a_bridges_learned_entries_are_recognized() {
    let body = |port: u32, state: u16, bridge: Option<u32>| {
        let mut body = neighbour_message(bridge_family(), port, state).to_vec();
        append(&mut body, NDA_LLADDR, &[1, 2, 3, 4, 5, 6]);
        append(&mut body, NDA_VLAN, &9_u16.to_ne_bytes());
        if let Some(bridge) = bridge {
            append(&mut body, NDA_MASTER, &bridge.to_ne_bytes());
        }
        body
    };
    let entry = |port| Some(Forwarding { bridge: 4, mac: [1, 2, 3, 4, 5, 6], vlan: Some(9), port });
    assert_eq!(Forwarding::read(&body(5, 2, Some(4))), entry(Some(5)));
    assert_eq!(Forwarding::read(&body(5, NUD_PERMANENT, Some(4))), entry(None), "the port's own address");
    assert_eq!(Forwarding::read(&body(4, 2, Some(4))), entry(None), "the bridge's own address");
    assert_eq!(Forwarding::read(&body(5, 2, None)), None, "of no bridge");
}

#[test]
fn a_kernel_error_is_returned() {
    assert!(outcome(&0_i32.to_ne_bytes()).is_ok());
    assert_eq!(outcome(&(-(Errno::EPERM as i32)).to_ne_bytes()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(outcome(&[1]).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

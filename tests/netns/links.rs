//! Tests of what the node's kernel says about the links to pods, and of its notifications when they change.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
use rolegate::digest::Digest;
use rolegate::links::{Link, LinkKind, Links, Mac, Reach};
use rolegate::netlink::Netlink;
use rolegate_lab::node::{Bridge, Netns, Node, PodNs, PodOptions, available_or_skip};

use crate::bed::PATIENCE;

mod lost;

/// A port on which nothing listens. A refusal is an answer, too.
const PORT: u16 = 9;

/// Returns the links of a node.
fn links(node: &Node) -> Links {
    node.ns().run(Links::open).unwrap().unwrap()
}

/// Returns what a later observation confirms about a link: `None` if it is another link, or was another one in between.
fn confirmed(before: Link, now: Link) -> Option<Link> {
    before.followed_by(Some(now), |_, _| true).filter(|_| !before.moved_until(now))
}

fn node() -> Option<Node> {
    available_or_skip().then(|| Node::new().unwrap())
}

/// Creates a node with a bridge and two pods attached to it.
fn bridged() -> Option<(Node, Bridge, [PodNs; 2])> {
    let node = node()?;
    let bridge = node.add_bridge("cni0").unwrap();
    // A bridge without an address of its own takes the lowest of its ports', and discards its neighbours when that changes.
    // CNI's bridge plugin prevents this, too.
    node.ns().sh("ip link set cni0 address 0a:00:00:00:00:01").unwrap();
    // A silent pod must not be probed during a test.
    node.ns().sh("for f in 4 6; do echo 3600 >/proc/sys/net/ipv$f/neigh/cni0/delay_first_probe_time; done").unwrap();
    let pods = ["victim", "attacker"].map(|name| pod_at(&node, &bridge, name, None));
    Some((node, bridge, pods))
}

fn pod_at(node: &Node, bridge: &Bridge, name: &str, ip: Option<Ipv4Addr>) -> PodNs {
    let pod = node.add_pod_with(PodOptions { name, bridge: Some(bridge), ip, ..PodOptions::default() }).unwrap();
    speak(&pod, bridge);
    pod
}

/// Makes the node learn the addresses of a pod, as from a request of the pod.
fn speak(pod: &PodNs, bridge: &Bridge) {
    for ip in [IpAddr::from(bridge.ip), bridge.ip6.into()] {
        let refused = pod.connect(SocketAddr::new(ip, PORT), PATIENCE).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

/// Keeps a pod from sending anything by itself from here on.
fn silence(pod: &PodNs) {
    pod.sh("ip link set eth0 arp off; echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6").unwrap();
}

fn ips(pod: &PodNs) -> [IpAddr; 2] {
    [pod.ip.into(), pod.ip6.into()]
}

pub(crate) fn number(ns: &Netns, interface: &str) -> u32 {
    ns.sh(&format!("ip -o link show {interface}")).unwrap().split(':').next().unwrap().parse().unwrap()
}

fn own(node: &Node, pod: &PodNs) -> Reach {
    Reach::By(Link { interface: number(node.ns(), pod.host_interface()), kind: LinkKind::Own })
}

pub(crate) fn mac_of(pod: &PodNs) -> Mac {
    let text = pod.sh("ip -o link show eth0").unwrap();
    let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let octets: Vec<u8> = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// Returns a link-layer address as `ip` and CNI results write it.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// Returns what leads to the address, after processing all notifications.
#[track_caller]
fn now(links: &Links, ip: IpAddr) -> Link {
    links.catch_up();
    links.of(ip).link().unwrap_or_else(|| panic!("nothing leads to {ip}"))
}

/// Returns the link-layer address, the port and the generation of the last move.
#[track_caller]
fn parts(link: Link) -> (Option<Mac>, Option<u32>, u64) {
    match link.kind {
        LinkKind::Bridge { mac, port, moved } => (mac, port, moved),
        other => panic!("{other:?}"),
    }
}

/// Checks that the generation changed, because something changed that the kernel reports.
#[track_caller]
fn assert_announced(links: &Links, change: impl FnOnce()) {
    let before = links.generation();
    change();
    links.catch_up();
    assert_ne!(links.generation(), before);
}

/// Returns the neighbour entry of the node's kernel at its bridge, whatever was reported.
fn neighbour(node: &Node, bridge: &Bridge, ip: IpAddr) -> Option<Mac> {
    let bridge = number(node.ns(), &bridge.name);
    node.ns().run(move || Netlink::open()?.neighbour(bridge, ip)).unwrap().unwrap()
}

fn port(node: &Node, bridge: &Bridge, mac: Mac) -> Option<u32> {
    let bridge = number(node.ns(), &bridge.name);
    let vlan = node.ns().run(move || Netlink::open()?.link_at(bridge)).unwrap().unwrap().vlan;
    node.ns().run(move || Netlink::open()?.port_of(bridge, mac, vlan)).unwrap().unwrap()
}

/// Sends forged ARP, and waits until the node accepts it.
pub(crate) fn forge(node: &Node, bridge: &Bridge, by: &PodNs, ip: Ipv4Addr) {
    let mac = mac_of(by);
    until("the neighbour has changed", || {
        send(by, [arp(mac, ip, bridge.ip)]);
        neighbour(node, bridge, ip.into()) == Some(mac)
    });
}

/// Sends a frame from this link-layer address, and waits until the bridge has it behind the port of the sender.
pub(crate) fn steal(node: &Node, bridge: &Bridge, by: &PodNs, mac: Mac) {
    let wanted = Some(number(node.ns(), by.host_interface()));
    until("the port has changed", || {
        send(by, [frame(mac)]);
        port(node, bridge, mac) == wanted
    });
}

/// Sends frames from inside a pod, each from an arbitrary link-layer address.
fn send(pod: &PodNs, frames: impl IntoIterator<Item = Vec<u8>> + Send + 'static) {
    let sent = pod.run(move || {
        let eth0 = getifaddrs()?.filter(|interface| interface.interface_name == "eth0");
        let to = eth0.filter_map(|interface| interface.address?.as_link_addr().copied()).next().ok_or(Errno::ENODEV)?;
        let packets = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        frames.into_iter().try_for_each(|frame| sendto(packets.as_raw_fd(), &frame, &to, MsgFlags::empty()).map(drop))
    });
    sent.unwrap().unwrap();
}

/// Returns a broadcast frame without meaning.
fn frame(from: Mac) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from);
    // A protocol number for local experiments (IEEE 802).
    frame.extend([0x88, 0xb5]);
    frame.resize(60, 0);
    frame
}

/// Returns an ARP request for the link-layer address of the bridge, in the name of this address: the node remembers the sender.
fn arp(from: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(from);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

fn invented(number: u32) -> Mac {
    let [_, a, b, c] = number.to_be_bytes();
    [0x06, 0, 0, a, b, c]
}

/// Waits until a condition is true.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_pod_with_an_interface_of_its_own_has_a_link_of_its_own() {
    let Some(node) = node() else { return };
    let early = node.add_pod("early").unwrap();
    let links = links(&node);
    let late = node.add_pod("late").unwrap();
    assert!(!links.has_bridges());
    for pod in [&early, &late] {
        for ip in ips(pod) {
            // The interface is newer than the list that was read, which changes nothing.
            assert_eq!(links.of(ip), own(&node, pod), "{ip}");
        }
    }
    links.catch_up();
    let interface = number(node.ns(), late.host_interface());
    assert_eq!(links.named(Digest::of_name(late.host_interface())), Some(interface));
    assert_eq!(links.master_of(interface), None);
    for ip in ips(&early) {
        assert_eq!(now(&links, ip), own(&node, &early).link().unwrap());
    }
    let before = links.generation();
    ips(&early).iter().for_each(|ip| assert_eq!(links.of(*ip), own(&node, &early)));
    links.catch_up();
    assert_eq!(links.generation(), before, "nothing happened");

    // The address of a pod that ended leads nowhere, and then to another pod.
    let (ip, gone) = (early.ip, own(&node, &early));
    assert_announced(&links, || drop(early));
    assert_eq!((links.of(ip.into()), links.named(Digest::of_name("veth1"))), (Reach::Nowhere, None));
    let again = node.add_pod_with(PodOptions { name: "again", ip: Some(ip), ..PodOptions::default() }).unwrap();
    assert_announced(&links, || {});
    for ip in ips(&again) {
        assert_eq!(links.of(ip), own(&node, &again));
        assert_ne!(links.of(ip), gone);
    }
}

#[test]
fn a_link_of_its_own_ends_with_its_route() {
    let Some(node) = node() else { return };
    let (pod, other) = (node.add_pod("pod").unwrap(), node.add_pod("other").unwrap());
    let links = links(&node);
    let (own, others) = (own(&node, &pod), own(&node, &other));
    let (veth, beside) = (pod.host_interface(), other.host_interface());
    let [ip, ip6] = ips(&pod);
    let step = |script: String, wanted: [Reach; 2]| {
        assert_eq!([ip, ip6].map(|ip| Reach::By(now(&links, ip))), [own; 2], "before {script}");
        assert_announced(&links, || drop(node.ns().sh(&script).unwrap()));
        assert_eq!([ip, ip6].map(|ip| links.of(ip)), wanted, "{script}");
        node.ns()
            .sh(&format!(
                "ip link set {veth} up; ip route replace {ip}/32 dev {veth}; ip -6 route replace {ip6}/128 dev {veth} metric 1; \
                 ip -6 route flush {ip6}/128 metric 1024; ip rule del pref 100 2>/dev/null || :; ip -6 rule del pref 100 2>/dev/null || :"
            ))
            .unwrap();
        links.catch_up();
    };
    let shared = Reach::By(Link { kind: LinkKind::Shared, ..own.link().unwrap() });
    let nowhere = [Reach::Nowhere; 2];
    // IPv4 routes disappear without a notification of their own.
    step(format!("ip link set {veth} down"), nowhere);
    step(format!("ip route del {ip}; ip -6 route flush {ip6}"), nowhere);
    step(format!("ip route replace blackhole {ip}; ip -6 route replace blackhole {ip6} metric 1"), nowhere);
    step(format!("ip route replace {ip} dev {beside}; ip -6 route replace {ip6} dev {beside} metric 1"), [others; 2]);
    step(
        format!("for f in '' -6; do ip $f route add table 77 default dev {beside}; ip $f rule add pref 100 table 77; done"),
        [Reach::By(Link { kind: LinkKind::Shared, ..others.link().unwrap() }); 2],
    );
    node.ns().sh("ip route flush table 77; ip -6 route flush table 77").unwrap();
    step("for f in '' -6; do ip $f rule add pref 100 blackhole; done".to_owned(), nowhere);
    // A route for more addresses than this one says little about their owner.
    node.ns().sh(&format!("ip route add 10.42.0.0/24 dev {veth}; ip -6 route add fd00:42::/120 dev {veth}")).unwrap();
    step(format!("ip route del {ip}/32; ip -6 route flush {ip6}/128"), [shared; 2]);
}

#[test]
fn a_pod_at_a_bridge_has_an_address_and_a_port() {
    let Some((node, bridge, [pod, other])) = bridged() else { return };
    let links = links(&node);
    assert!(links.has_bridges());
    let cni0 = number(node.ns(), &bridge.name);
    for pod in [&pod, &other] {
        let port = number(node.ns(), pod.host_interface());
        assert_eq!(links.master_of(port), Some(cni0));
        for ip in ips(pod) {
            let link = now(&links, ip);
            assert_eq!((link.interface, parts(link)), (cni0, (Some(mac_of(pod)), Some(port), 0)), "{ip}");
        }
    }
    // No pod has this address.
    assert_eq!(parts(now(&links, IpAddr::from([10, 42, 128, 99]))), (None, None, 0));

    // Repeated confirmations are not changes.
    let before = links.generation();
    let [ip, ip6] = ips(&pod);
    for state in ["stale", "delay", "probe", "reachable", "stale"] {
        let mac = mac_text(mac_of(&pod));
        for ip in [ip, ip6] {
            node.ns().sh(&format!("ip neigh replace {ip} lladdr {mac} dev cni0 nud {state}")).unwrap();
        }
    }
    speak(&pod, &bridge);
    links.catch_up();
    assert_eq!(links.generation(), before);

    // A bridge forgets silent ports, and the node forgets silent neighbours.
    let known = [ip, ip6].map(|ip| now(&links, ip));
    pod.sh("ip link set eth0 arp off").unwrap();
    let port = pod.host_interface();
    node.ns().sh(&format!("ip link set {port} type bridge_slave learning off")).unwrap();
    assert_announced(&links, || drop(node.ns().sh("ip link set cni0 type bridge fdb_flush").unwrap()));
    for (ip, known) in [ip, ip6].into_iter().zip(known) {
        assert_eq!(parts(now(&links, ip)), (Some(mac_of(&pod)), None, 0));
        assert_eq!(confirmed(known, now(&links, ip)), Some(known));
    }
    assert_announced(&links, || drop(node.ns().sh(&format!("ip neigh del {ip} dev cni0; ip neigh del {ip6} dev cni0")).unwrap()));
    [ip, ip6].iter().for_each(|ip| assert_eq!(parts(now(&links, *ip)), (None, None, 0)));
    node.ns().sh(&format!("ip link set {port} type bridge_slave learning on")).unwrap();
    pod.sh("ip link set eth0 arp on").unwrap();
    speak(&pod, &bridge);
    assert_eq!([ip, ip6].map(|ip| now(&links, ip)), known, "the link is unchanged");

    // Another pod with the address of one that ended.
    let (before, free) = (now(&links, ip), pod.ip);
    drop(pod);
    assert_eq!(parts(now(&links, ip)).1, None);
    let again = pod_at(&node, &bridge, "again", Some(free));
    let after = now(&links, ip);
    assert_eq!(confirmed(before, after), None);
    assert_eq!((parts(after).0, parts(after).1), (Some(mac_of(&again)), Some(number(node.ns(), again.host_interface()))));
}

/// After a restart, the bridge may have forgotten the port of a pod that is idle. The kernel keeps its neighbour.
#[test]
fn forged_arp_moves_an_idle_pod_whose_port_is_forgotten() {
    let Some((node, bridge, [victim, attacker])) = bridged() else { return };
    silence(&victim);
    let mac = mac_text(mac_of(&victim));
    node.ns().sh(&format!("bridge fdb del {mac} dev {} master", victim.host_interface())).unwrap();
    let links = links(&node);
    let known = now(&links, victim.ip.into());
    assert_eq!(parts(known), (Some(mac_of(&victim)), None, 0));
    node.ns().sh("echo 0 >/proc/sys/net/ipv4/neigh/cni0/locktime").unwrap();
    forge(&node, &bridge, &attacker, victim.ip);
    assert!(known.moved_until(now(&links, victim.ip.into())));
    // Its neighbour is no leftover, because its port exists.
    links.remove_leftovers(&|_, _| true);
    assert_eq!(neighbour(&node, &bridge, victim.ip.into()), Some(mac_of(&attacker)));
}

#[test]
fn forged_arp_is_another_link_even_if_it_is_reverted() {
    let Some((node, bridge, [victim, attacker])) = bridged() else { return };
    let links = links(&node);
    silence(&victim);
    let ip = victim.ip.into();
    let known = now(&links, ip);
    let attackers = (Some(mac_of(&attacker)), Some(number(node.ns(), attacker.host_interface())));
    // A neighbour that has just been confirmed is protected for a moment (locktime).
    node.ns().sh("echo 0 >/proc/sys/net/ipv4/neigh/cni0/locktime").unwrap();
    assert_announced(&links, || forge(&node, &bridge, &attacker, victim.ip));
    let forged = now(&links, ip);
    assert_eq!((parts(forged).0, parts(forged).1), attackers);
    assert_eq!(confirmed(known, forged), None);
    // It is reverted before anything looks.
    forge(&node, &bridge, &victim, victim.ip);
    let back = now(&links, ip);
    assert_eq!((parts(back).0, parts(back).1), (parts(known).0, parts(known).1));
    assert_eq!(confirmed(known, back), None, "{back:?}");
    // A holder that trusts the new link still notices the next change.
    forge(&node, &bridge, &attacker, victim.ip);
    forge(&node, &bridge, &victim, victim.ip);
    assert_eq!(confirmed(back, now(&links, ip)), None);
    // The other pod's own link is unchanged.
    assert_eq!(parts(now(&links, attacker.ip.into())).2, 0);
}

#[test]
fn forged_neighbour_discovery_is_another_link() {
    let Some((node, bridge, [victim, attacker])) = bridged() else { return };
    let links = links(&node);
    silence(&victim);
    let ip = victim.ip6.into();
    let known = now(&links, ip);
    assert_announced(&links, || {
        // The attacker has the address as well, and solicits the bridge in the victim's name.
        let (theirs, own) = (victim.ip6, attacker.ip6);
        attacker.sh(&format!("ip -6 addr add {theirs}/120 dev eth0 nodad; ip -6 addr del {own}/120 dev eth0")).unwrap();
        until("the neighbour has changed", || {
            attacker.sh("ip -6 neigh flush dev eth0").unwrap();
            let _ = attacker.connect(SocketAddr::new(bridge.ip6.into(), PORT), Duration::from_millis(100));
            neighbour(&node, &bridge, ip) == Some(mac_of(&attacker))
        });
    });
    assert_eq!(parts(now(&links, ip)).0, Some(mac_of(&attacker)));
    assert_eq!(confirmed(known, now(&links, ip)), None);
}

#[test]
fn a_stolen_mac_is_another_port_even_if_it_moves_back() {
    let Some((node, bridge, [victim, attacker])) = bridged() else { return };
    let links = links(&node);
    silence(&victim);
    let [ip, ip6] = ips(&victim);
    let known = [ip, ip6].map(|ip| now(&links, ip));
    let stolen = mac_of(&victim);
    assert_announced(&links, || steal(&node, &bridge, &attacker, stolen));
    let port = number(node.ns(), attacker.host_interface());
    for (ip, known) in [ip, ip6].into_iter().zip(known) {
        let now = now(&links, ip);
        assert_eq!((parts(now).0, parts(now).1), (Some(stolen), Some(port)));
        assert_eq!(confirmed(known, now), None);
    }
    steal(&node, &bridge, &victim, stolen);
    for (ip, known) in [ip, ip6].into_iter().zip(known) {
        let now = now(&links, ip);
        assert_eq!((parts(now).0, parts(now).1), (parts(known).0, parts(known).1));
        assert_eq!(confirmed(known, now), None, "the address was at another port in between");
    }
}

/// A pod may use any address of its bridge's network, but all of them are behind its own port.
#[test]
fn an_invented_address_is_behind_the_port_of_the_pod_that_uses_it() {
    let Some((node, _bridge, [victim, attacker])) = bridged() else { return };
    let links = links(&node);
    let ports = [&victim, &attacker].map(|pod| Some(number(node.ns(), pod.host_interface())));
    let mac = mac_text(mac_of(&attacker));
    let octets = victim.ip.octets();
    let invented = [200, 201].map(|last| IpAddr::from([octets[0], octets[1], octets[2], last]));
    for ip in invented {
        node.ns().sh(&format!("ip neigh replace {ip} lladdr {mac} dev cni0 nud reachable")).unwrap();
    }
    assert_eq!([links.behind(victim.ip.into()), links.behind(invented[0]), links.behind(invented[1])], [ports[0], ports[1], ports[1]]);
    let generation = links.generation();
    // An unused address counts for the bridge, and one elsewhere for itself.
    let unused = IpAddr::from([octets[0], octets[1], octets[2], 202]);
    assert_eq!(links.behind(unused), Some(number(node.ns(), "cni0")));
    assert_eq!(links.behind([203, 0, 113, 1].into()), None);
    assert_eq!(links.generation(), generation, "no record of them is kept");
    let own = node.add_pod("own").unwrap();
    links.catch_up();
    assert_eq!(links.behind(own.ip.into()), Some(number(node.ns(), own.host_interface())));
}

//! Tests of what the rules do to packets, whatever the rules of other programs say.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rolegate::redirect::conntrack::forget_earlier;
use rolegate::redirect::rules::{RuleSet, Targets};
use rolegate_lab::node::{IMDS_IP, IMDS_IP6, NODE_IP, NODE_IP6, Netns, PodNs, PodOptions};

use super::{PORT, inside, install, nft, node, only, whole};
use crate::bed::{METADATA, METADATA6, PATIENCE};

/// How long to wait before concluding that there is no answer.
const SILENCE: Duration = Duration::from_millis(300);
const FLAVOURS: [&str; 4] = ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"];

/// The number of ports that a pod sends to.
const MANY: u16 = 5_000;

/// Accepts one connection, and sets its read timeout.
fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Checks that the pod's connection to `address` arrives at this listener.
#[track_caller]
fn assert_arrives(pod: &Netns, address: SocketAddr, listener: &TcpListener) {
    let stream = pod.connect(address, PATIENCE).unwrap_or_else(|error| panic!("{address}: {error}"));
    listener.set_nonblocking(true).unwrap();
    let (_, peer) = listener.accept().unwrap_or_else(|error| panic!("{address} arrived elsewhere: {error}"));
    listener.set_nonblocking(false).unwrap();
    assert_eq!(peer.port(), stream.local_addr().unwrap().port());
}

#[track_caller]
fn assert_refused(from: &Netns, address: SocketAddr) {
    let error = from.connect(address, PATIENCE).expect_err(&format!("{address} is open"));
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
}

/// Checks that neither an answer nor an error arrives.
#[track_caller]
fn assert_silent(from: &Netns, address: SocketAddr) {
    let error = from.connect(address, SILENCE).expect_err(&format!("{address} is open"));
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{address}");
}

fn udp(ns: &Netns, address: SocketAddr) -> UdpSocket {
    let socket = ns.run(move || UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn udp_to(ns: &Netns, address: SocketAddr) -> UdpSocket {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = udp(ns, SocketAddr::new(any, 0));
    ns.run({
        let socket = socket.try_clone().unwrap();
        move || socket.connect(address)
    })
    .unwrap()
    .unwrap();
    socket
}

/// Returns both addresses of the metadata service, with this port.
fn metadata(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(IMDS_IP.into(), port), SocketAddr::new(IMDS_IP6.into(), port)]
}

#[test]
fn the_guard_lets_no_packet_of_a_pod_through() {
    let Some(node) = node() else { return };
    let imds = node.imds().unwrap();
    let pod = node.add_pod("web").unwrap();
    for program in FLAVOURS {
        let both = format!("{program} -P FORWARD ACCEPT; {program} -I FORWARD 1 -j ACCEPT; {program} -t nat -A POSTROUTING -j ACCEPT");
        node.ns().sh(&both).unwrap();
    }
    let listeners = [80, 443, 9999].into_iter().flat_map(metadata).map(|address| imds.tcp_listener(address).unwrap()).collect::<Vec<_>>();
    let datagrams = metadata(53).map(|address| udp(imds, address));
    // Without the guard, they arrive.
    for listener in &listeners {
        assert_arrives(&pod, listener.local_addr().unwrap(), listener);
    }
    for (address, socket) in metadata(53).into_iter().zip(&datagrams) {
        udp_to(&pod, address).send(b"before").unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 6);
    }
    let opened = listeners.iter().map(|listener| pod.connect(listener.local_addr().unwrap(), PATIENCE).unwrap()).collect::<Vec<_>>();
    let mut accepted = listeners.iter().map(accept).collect::<Vec<_>>();

    install(&node, &RuleSet::guard_alone());
    for listener in &listeners {
        assert_refused(&pod, listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        // The node's own connections are not affected.
        node.ns().connect(listener.local_addr().unwrap(), PATIENCE).unwrap();
    }
    for (address, socket) in metadata(53).into_iter().zip(&datagrams) {
        let from = udp_to(&pod, address);
        from.send(b"after").unwrap();
        assert_eq!(from.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock, "{address}");
    }
    // Earlier connections are closed, and the service receives no further byte on them.
    for (mut client, service) in opened.into_iter().zip(&mut accepted) {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(client.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        service.set_nonblocking(true).unwrap();
        assert_eq!(service.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// Rules are replaced while a pod sends constantly.
#[test]
fn the_guard_is_in_place_at_all_times() {
    const INSTALLS: usize = 60;
    let Some(node) = node() else { return };
    let imds = node.imds().unwrap();
    let pod = node.add_pod("web").unwrap();
    install(&node, &RuleSet::guard_alone());
    let services = metadata(4000).map(|address| udp(imds, address));
    let stop = Arc::new(AtomicBool::new(false));
    let senders = metadata(4000).map(|address| {
        let (socket, stop) = (udp_to(&pod, address), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut sent = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                // An error is the answer to an earlier datagram.
                sent += usize::from(socket.send(b"x").is_ok());
            }
            sent
        })
    });
    for number in 0..INSTALLS {
        install(&node, &if number % 2 == 0 { whole() } else { RuleSet::guard_alone() });
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        let sent = sender.join().unwrap();
        assert!(sent > 100 * INSTALLS, "only {sent} packets");
    }
    for service in services {
        service.set_nonblocking(true).unwrap();
        assert_eq!(service.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock, "a packet got through");
    }
}

#[test]
fn the_redirect_comes_before_others() {
    let Some(node) = node() else { return };
    let pod = node.add_pod("web").unwrap();
    let ours = [NODE_IP.into(), NODE_IP6.into()].map(|ip: IpAddr| node.ns().tcp_listener(SocketAddr::new(ip, PORT)).unwrap());
    let theirs = [NODE_IP.into(), NODE_IP6.into()].map(|ip: IpAddr| node.ns().tcp_listener(SocketAddr::new(ip, 1)).unwrap());
    install(&node, &RuleSet::guard_alone());
    for (program, metadata, target, listeners, address) in [
        ("iptables-nft", IMDS_IP.to_string(), format!("{NODE_IP}:1"), (&ours[0], &theirs[0]), METADATA),
        ("iptables-legacy", IMDS_IP.to_string(), format!("{NODE_IP}:1"), (&ours[0], &theirs[0]), METADATA),
        ("ip6tables-nft", IMDS_IP6.to_string(), format!("[{NODE_IP6}]:1"), (&ours[1], &theirs[1]), METADATA6),
        ("ip6tables-legacy", IMDS_IP6.to_string(), format!("[{NODE_IP6}]:1"), (&ours[1], &theirs[1]), METADATA6),
    ] {
        let rule = format!("PREROUTING -d {metadata} -p tcp --dport 80 -j DNAT --to-destination {target}");
        node.ns().sh(&format!("{program} -t nat -A {rule}")).unwrap();
        assert_arrives(&pod, address, listeners.1);
        install(&node, &whole());
        assert_arrives(&pod, address, listeners.0);
        // Installed again after ours.
        node.ns().sh(&format!("{program} -t nat -F PREROUTING; {program} -t nat -I {rule}")).unwrap();
        assert_arrives(&pod, address, listeners.0);
        node.ns().sh(&format!("{program} -t nat -F PREROUTING")).unwrap();
        install(&node, &RuleSet::guard_alone());
        assert_refused(&pod, address);
    }
}

#[test]
fn direct_connections_are_dropped_except_the_nodes_own() {
    let Some(node) = node() else { return };
    let pod = node.add_pod("web").unwrap();
    let ports = [NODE_IP.into(), NODE_IP6.into()].map(|ip: IpAddr| SocketAddr::new(ip, PORT));
    let listeners = ports.map(|port| node.ns().tcp_listener(port).unwrap());
    let outsiders = [pod.ns(), node.imds().unwrap()];
    for (port, listener) in ports.into_iter().zip(&listeners) {
        outsiders.into_iter().for_each(|from| assert_arrives(from, port, listener));
    }
    install(&node, &whole());
    for ((port, listener), address) in ports.into_iter().zip(&listeners).zip([METADATA, METADATA6]) {
        outsiders.into_iter().for_each(|from| assert_silent(from, port));
        assert_arrives(node.ns(), port, listener);
        assert_arrives(&pod, address, listener);
    }
    // Without an IPv6 target, the port is closed in that family all the same.
    let rules = whole();
    install(&node, &RuleSet { targets: rules.targets.map(|targets| Targets { ipv6: None, ..targets }), ..rules });
    outsiders.into_iter().for_each(|from| assert_silent(from, ports[1]));
    assert_refused(&pod, METADATA6);
    assert_arrives(&pod, METADATA, &listeners[0]);
}

/// An interface's name may end with the character that is a pattern in nft's language.
#[test]
fn an_odd_interface_name_matches_only_itself() {
    let Some(node) = node() else { return };
    let listener = node.ns().tcp_listener((NODE_IP, PORT).into()).unwrap();
    let pod = |name, interface_prefix| node.add_pod_with(PodOptions { name, interface_prefix, ..PodOptions::default() }).unwrap();
    let (odd, alike): (PodNs, PodNs) = (pod("odd", "odd"), pod("alike", "odd*"));
    let rename =
        format!("ip link set {} down; ip link set {0} name 'odd*' up; ip route add {}/32 dev 'odd*'", odd.host_interface(), odd.ip);
    node.ns().sh(&rename).unwrap();

    install(&node, &only(&[("odd*", false)]));
    assert_arrives(&odd, METADATA, &listener);
    assert_refused(&alike, METADATA);
    install(&node, &only(&[("odd*", true)]));
    assert_refused(&odd, METADATA);
    assert_arrives(&alike, METADATA, &listener);
    for every in ["odd+", "+"] {
        install(&node, &only(&[(every, false)]));
        assert_arrives(&odd, METADATA, &listener);
        assert_arrives(&alike, METADATA, &listener);
    }
}

#[test]
fn only_earlier_connections_are_ended() {
    let Some(node) = node() else { return };
    let imds = node.imds().unwrap();
    let pod = node.add_pod("web").unwrap();
    // A NAT rule in each family, so that the kernel keeps entries. There is no guard, which would close the connections by
    // itself.
    nft(
        &node,
        "add table inet others\nadd chain inet others nat { type nat hook prerouting priority -110; }\n\
         add rule inet others nat tcp dport 1 dnat ip to 10.42.0.1:1\nadd rule inet others nat tcp dport 1 dnat ip6 to [fd00:42::1]:1",
    );
    let services = metadata(80).map(|address| imds.tcp_listener(address).unwrap());
    let open = |from: &Netns, address, listener: &TcpListener| (from.connect(address, PATIENCE).unwrap(), accept(listener));
    let old = [METADATA, METADATA6].into_iter().zip(&services).map(|(address, service)| open(&pod, address, service)).collect::<Vec<_>>();
    let own =
        [METADATA, METADATA6].into_iter().zip(&services).map(|(address, service)| open(node.ns(), address, service)).collect::<Vec<_>>();
    let datagrams = udp(imds, metadata(53)[0]);
    udp_to(&pod, metadata(53)[0]).send(b"x").unwrap();
    datagrams.recv(&mut [0; 4]).unwrap();

    nft(
        &node,
        "add rule inet others nat ip daddr 169.254.169.254 tcp dport 80 dnat ip to 10.42.0.1:8181\n\
         add rule inet others nat ip6 daddr fd00:ec2::254 tcp dport 80 dnat ip6 to [fd00:42::1]:8181",
    );
    let daemon = [NODE_IP.into(), NODE_IP6.into()].map(|ip: IpAddr| node.ns().tcp_listener(SocketAddr::new(ip, PORT)).unwrap());
    let served = [METADATA, METADATA6].into_iter().zip(&daemon).map(|(address, daemon)| open(&pod, address, daemon)).collect::<Vec<_>>();
    let echo = |(client, service): &(TcpStream, TcpStream)| {
        (&mut &*client).write_all(b"ping").unwrap();
        (&mut &*service).read_exact(&mut [0; 4]).unwrap();
    };
    // The old connections bypass the new rule.
    old.iter().chain(&own).chain(&served).for_each(echo);

    let forget = || inside(node.ns(), || async { forget_earlier(&whole()).await }).unwrap();
    // A pod chooses how many entries it has. One command for each would take minutes.
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let sent = (1..=MANY).filter(|port| socket.send_to(b"?", (METADATA.ip(), *port)).is_ok()).count();
    assert_eq!(forget(), 3 + sent as u64);
    assert_eq!(forget(), 0);
    own.iter().chain(&served).for_each(echo);
    for (client, service) in old {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        (&client).write_all(b"ping").unwrap();
        assert_eq!((&client).read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        service.set_nonblocking(true).unwrap();
        assert_eq!((&service).read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    own.iter().chain(&served).for_each(echo);
}

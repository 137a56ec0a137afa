//! Tests of packets that reach the metadata service without being forwarded to it: those that a process of the node sends from a
//! pod's address, as transparent proxies do (service meshes, Cilium's L7 policies), and source-routed ones, which have another
//! destination when they meet the guard.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rolegate_lab::node::{Netns, find_program, skip};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, Pod, fetch};
use crate::boot::guard;
use crate::kinds::Kind;

/// The port of the service's datagrams.
const PORT: u16 = 53;
/// How long a connection is attempted whose answers go elsewhere.
const ATTEMPT: Duration = Duration::from_millis(150);

/// A service of datagrams at both metadata addresses.
struct Datagrams([UdpSocket; 2]);

impl Datagrams {
    fn new(bed: &Bed) -> Self {
        let bind = |address: SocketAddr| {
            let socket = bed.node.imds().unwrap().run(move || UdpSocket::bind(SocketAddr::new(address.ip(), PORT))).unwrap().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        Self([METADATA, METADATA6].map(bind))
    }

    /// Runs `send` for each family, and returns how many of its datagrams arrived. The node's own datagrams, which come last, tell
    /// that nothing else will arrive.
    #[track_caller]
    fn arrived(&self, bed: &Bed, send: impl Fn(SocketAddr)) -> [usize; 2] {
        let mut addresses = [METADATA, METADATA6].map(|address| SocketAddr::new(address.ip(), PORT)).into_iter();
        self.0.each_ref().map(|service| {
            let address = addresses.next().unwrap();
            send(address);
            let any: IpAddr = if address.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
            let own = bed.node.ns().run(move || UdpSocket::bind((any, 0))).unwrap().unwrap();
            own.send_to(b"last", address).unwrap();
            let mut count = 0;
            let mut buffer = [0; 16];
            loop {
                let length = service.recv(&mut buffer).expect("the node's own datagram arrives");
                if &buffer[..length] == b"last" {
                    return count;
                }
                count += 1;
            }
        })
    }
}

fn address_of(pod: &Pod, like: SocketAddr) -> SocketAddr {
    let ip: IpAddr = if like.is_ipv4() { pod.ip.into() } else { pod.ip6.into() };
    SocketAddr::new(ip, 0)
}

/// Returns a socket in this network that is bound to an address which the network does not have.
fn transparent(ns: &Netns, from: SocketAddr, kind: Type, protocol: Protocol) -> Socket {
    let make = move || {
        let socket = Socket::new(Domain::for_address(from), kind, Some(protocol))?;
        if from.is_ipv4() {
            socket.set_ip_transparent_v4(true)?
        } else {
            socket.set_ip_transparent_v6(true)?
        }
        socket.bind(&from.into())?;
        std::io::Result::Ok(socket)
    };
    ns.run(make).unwrap().unwrap()
}

/// Sends a datagram from the pod's address, and tries to connect from it, as a process of the node.
fn send_from_pods_address(bed: &Bed, pod: &Pod, to: SocketAddr) {
    let from = address_of(pod, to);
    let socket = transparent(bed.node.ns(), from, Type::DGRAM, Protocol::UDP);
    // A packet that is dropped on its way out is an error for its sender.
    let _ = socket.send_to(b"?", &to.into());
    let stream = transparent(bed.node.ns(), from, Type::STREAM, Protocol::TCP);
    let metadata = SocketAddr::new(to.ip(), METADATA.port());
    assert!(stream.connect_timeout(&metadata.into(), ATTEMPT).is_err(), "answers go to the pod");
}

#[track_caller]
fn assert_node_is_served(bed: &Bed, case: &str) {
    for address in [METADATA, METADATA6] {
        assert!(fetch(bed.node.ns(), address).is_ok(), "{case}: the node's own process, {address}");
    }
}

#[test]
fn a_proxy_that_uses_a_pods_address_reaches_nothing() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (pod, service) = (bed.pod("web", "veth"), Datagrams::new(&bed));
        bed.count_packets_of_pods();
        let send = |to| send_from_pods_address(&bed, &pod, to);
        assert_eq!(service.arrived(&bed, send), [1, 1], "{}: without the rule they arrive", kind.name);
        assert!(bed.packets_of_pods() >= 4, "{}: the connections arrive, too", kind.name);

        let assert_closed = |case: &str| {
            let case = format!("{}, {case}", kind.name);
            // The pod may still have reset what the service answered before.
            let before = bed.packets_of_pods();
            assert_eq!((service.arrived(&bed, send), bed.packets_of_pods()), ([0, 0], before), "{case}");
            assert_node_is_served(&bed, &case);
        };
        let booted = guard(&bed, kind.path());
        assert!(booted.status.success(), "{}: {booted:?}", kind.name);
        assert_closed("the boot guard");
        let _daemon = bed.start(&kind.setup(&bed));
        assert_closed("the daemon");
        bed.assert_served(&pod, METADATA);
        bed.assert_served(&pod, METADATA6);
        // The node's address as the source comes after the rule.
        for program in ["iptables", "ip6tables"] {
            let flavour = if kind.name == "iptables-legacy" { "legacy" } else { "nft" };
            bed.node.ns().sh(&format!("{program}-{flavour} -w 30 -t nat -A POSTROUTING -j MASQUERADE")).unwrap();
        }
        assert_closed("source NAT");
        bed.assert_served(&pod, METADATA);
    }
}

/// A lock that others emptied is repaired, and reported meanwhile.
#[test]
fn an_exit_that_was_opened_is_reported_and_closed_again() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (pod, service) = (bed.pod("web", "veth"), Datagrams::new(&bed));
        let daemon = bed.start(&kind.setup(&bed).argument("--redirect-interval=1s"));
        let (open, missing) = match kind.name {
            "nft" => ("nft flush chain inet rolegate exit", "the chain exit has 0 rules of 2"),
            "iptables-nft" => ("iptables-nft -w 30 -t mangle -F POSTROUTING", "POSTROUTING has no jump to ROLEGATE-EXIT"),
            _ => ("iptables-legacy -w 30 -t mangle -F ROLEGATE-EXIT", "ROLEGATE-EXIT has 0 rules instead of 1"),
        };
        bed.node.ns().sh(open).unwrap();
        daemon.wait_for_log(|line| line["event"] == "rules-repaired" && line["differences"].as_str().unwrap().contains(missing)).unwrap();
        assert_eq!(service.arrived(&bed, |to| send_from_pods_address(&bed, &pod, to)), [0, 0], "{}", kind.name);

        drop(daemon);
        bed.node.ns().sh(open).unwrap();
        let status = kind.status(&bed, &[]);
        let said = String::from_utf8_lossy(&status.stdout);
        assert!(status.status.code() == Some(1) && said.contains(missing), "{}: {said}", kind.name);
        assert!(said.contains("169.254.169.254: packets leave the node with any source address"), "{}: {said}", kind.name);
    }
}

/// The next destination of a source-routed packet is written into it after the guard's hook.
#[test]
fn a_source_routed_packet_reaches_nothing() {
    let Some(python) = find_program("python3") else { return skip("the program `python3` is not installed") };
    // IP_OPTIONS: loose source route (131) over the node, which the kernel completes with the destination.
    let script = "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                  s.setsockopt(0, 4, bytes([131, 7, 4]) + socket.inet_aton('10.42.0.1') + b'\\0')\ns.sendto(b'?', (sys.argv[1], 53))\n";
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (pod, service) = (bed.pod("web", "veth"), Datagrams::new(&bed));
        bed.node.ns().sh("for all in /proc/sys/net/ipv4/conf/*/accept_source_route; do echo 1 >$all; done").unwrap();
        bed.node.imds().unwrap().sh("for all in /proc/sys/net/ipv4/conf/*/accept_source_route; do echo 1 >$all; done").unwrap();
        let send = |to: SocketAddr| {
            if to.is_ipv4() {
                let mut command = pod.command(python.to_str().unwrap());
                let output = command.args(["-c", script, &to.ip().to_string()]).output().unwrap();
                assert!(output.status.success(), "{output:?}");
            }
        };
        // What the pod sent has passed the node before the node's own datagram does.
        if service.arrived(&bed, send)[0] == 0 {
            return skip("this kernel forwards no source-routed packets");
        }
        let booted = guard(&bed, kind.path());
        assert!(booted.status.success(), "{}: {booted:?}", kind.name);
        assert_eq!(service.arrived(&bed, send), [0, 0], "{}", kind.name);
    }
}

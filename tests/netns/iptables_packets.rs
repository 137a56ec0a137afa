//! Tests of what happens to packets of a pod, of the node itself and of a neighbour, with rules of other programs that were
//! there first.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rolegate_lab::daemon::Setup;
use rolegate_lab::node::{IMDS_IP, IMDS_IP6, NODE_IP, NODE_IP6, Netns};
use rolegate_lab::player::request;
use socket2::{Domain, Protocol, Socket, Type};

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, Pod, fetch, image};

/// How long a connection that is dropped is attempted.
const DROP_TIMEOUT: Duration = Duration::from_millis(700);
const FAMILIES: [(&str, SocketAddr); 2] = [("iptables", METADATA), ("ip6tables", METADATA6)];

/// Runs a test on a node of each flavour, with the daemon's set-up for it.
fn each_flavour(test: impl Fn(&Bed, &Setup, &str)) {
    for flavour in ["nft", "legacy"] {
        let (Some(bed), Some(image)) = (Bed::new(), image(flavour)) else { return };
        let setup = bed.setup_with_ip().argument(format!("--host-ip={NODE_IP6}")).env("PATH", image.path().to_str().unwrap());
        test(&bed, &setup, flavour);
    }
}

/// Accepts all forwarding, as container runtimes and network plugins do, and worse.
fn accept_forwarding(bed: &Bed, flavour: &str) {
    for (family, _) in FAMILIES {
        let program = format!("{family}-{flavour} -w 30");
        bed.node
            .ns()
            .sh(&format!("{program} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; {program} -A FORWARD -j ACCEPT"))
            .unwrap();
    }
}

/// Returns the outcome of the first echo request.
fn ping(client: &Netns, to: IpAddr) -> Result<(), ErrorKind> {
    client.sh("echo '0 65535' > /proc/sys/net/ipv4/ping_group_range").unwrap();
    let (domain, protocol, kind) = if to.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4, 8) } else { (Domain::IPV6, Protocol::ICMPV6, 128) };
    let socket = client.run(move || Socket::new(domain, Type::DGRAM, Some(protocol))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&SocketAddr::new(to, 0).into()).unwrap();
    socket.send(&[kind, 0, 0, 0, 0, 1, 0, 1]).unwrap();
    (&socket).read(&mut [0; 64]).map(drop).map_err(|error| error.kind())
}

/// Returns the outcome of one datagram, from an answer or an error.
pub(crate) fn datagram(client: &Netns, server: &UdpSocket) -> Result<(), ErrorKind> {
    let to = server.local_addr().unwrap();
    let any = SocketAddr::new(if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap(), 0);
    let socket = client.run(move || UdpSocket::bind(any)).unwrap().unwrap();
    socket.connect(to).unwrap();
    socket.send(b"?").unwrap();
    let mut heard = [0; 8];
    // The veth delivers a packet before `send` returns, so it has arrived.
    server.set_nonblocking(true).unwrap();
    if let Ok((_, from)) = server.recv_from(&mut heard) {
        server.send_to(b"!", from).unwrap();
    }
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.recv(&mut heard).map(drop).map_err(|error| error.kind())
}

#[test]
fn no_packet_of_a_pod_reaches_the_metadata_address() {
    each_flavour(|bed, setup, flavour| {
        let pod = bed.pod("web", "veth");
        accept_forwarding(bed, flavour);
        let imds = bed.node.imds().unwrap();
        for (program, metadata) in FAMILIES {
            let other = SocketAddr::new(metadata.ip(), 8080);
            let _listener = imds.tcp_listener(other).unwrap();
            let server = imds.run(move || UdpSocket::bind(SocketAddr::new(metadata.ip(), 53))).unwrap().unwrap();
            assert!(pod.connect(other, PATIENCE).is_ok(), "{program}");
            assert_eq!((datagram(&pod, &server), ping(&pod, metadata.ip())), (Ok(()), Ok(())), "{program}");
            let daemon = bed.start(setup);
            let refused = ErrorKind::ConnectionRefused;
            assert_eq!(pod.connect(other, PATIENCE).unwrap_err().kind(), refused, "{flavour} {program}");
            assert_eq!((datagram(&pod, &server), ping(&pod, metadata.ip())), (Err(refused), Err(refused)), "{flavour} {program}");
            assert!(bed.node.ns().connect(other, PATIENCE).is_ok(), "the node itself");
            bed.assert_served(&pod, metadata);
            drop(daemon);
            // Restores the state for the other family.
            for (family, _) in FAMILIES {
                let program = format!("{family}-{flavour} -w 30");
                bed.node.ns().sh(&format!("{program} -D FORWARD 1; {program} -t security -F; {program} -t mangle -F")).unwrap();
            }
        }
    });
}

/// A Kubernetes Service may have the metadata address among its `externalIPs`.
#[test]
fn a_service_with_the_metadata_address_gets_no_requests() {
    each_flavour(|bed, setup, flavour| {
        let pod = bed.pod("web", "veth");
        for ((family, metadata), elsewhere) in FAMILIES.into_iter().zip(["10.42.0.1:1".to_owned(), format!("[{NODE_IP6}]:1")]) {
            let program = format!("{family}-{flavour} -w 30 -t nat");
            bed.node
                .ns()
                .sh(&format!(
                    "{program} -N KUBE-SERVICES; {program} -I PREROUTING 1 -j KUBE-SERVICES
                     {program} -A KUBE-SERVICES -d {} -p tcp --dport 80 -j DNAT --to-destination {elsewhere}",
                    metadata.ip()
                ))
                .unwrap();
            assert_eq!(pod.connect(metadata, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{flavour}");
        }
        let _daemon = bed.start(setup);
        for (_, metadata) in FAMILIES {
            bed.assert_served(&pod, metadata);
        }
    });
}

#[test]
fn only_the_node_itself_connects_straight_to_the_app_port() {
    each_flavour(|bed, setup, flavour| {
        let pod = bed.pod("web", "veth");
        let daemon = bed.start(setup);
        let port = daemon.metadata_address().port();
        for ip in [IpAddr::from(NODE_IP), IpAddr::from(NODE_IP6)] {
            let address = SocketAddr::new(ip, port);
            for client in [pod.ns(), bed.node.imds().unwrap()] {
                assert_eq!(client.connect(address, DROP_TIMEOUT).unwrap_err().kind(), ErrorKind::TimedOut, "{flavour} {ip}");
            }
            let stream = bed.node.ns().connect(address, PATIENCE).unwrap();
            assert_eq!(request(&stream, "GET", "/healthz", &[]).unwrap().status, 200, "{flavour} {ip}");
        }
        let refused = daemon.metric(Some(bed.node.ns()), "rolegate_connections_refused_total{reason=\"not-redirected\"}");
        assert!(refused.unwrap_or_default() < 0.5, "a connection was let in");
    });
}

/// Opens a connection to the real service, with one answer on it.
fn keep_alive(pod: &Pod, metadata: SocketAddr) -> TcpStream {
    let stream = pod.connect(metadata, PATIENCE).unwrap();
    let answer = request(&stream, "GET", "/latest/meta-data/", &[("Host", &metadata.to_string())]).unwrap();
    assert_eq!(answer.status, 200);
    stream
}

#[test]
fn an_old_connection_to_the_real_service_is_cut() {
    each_flavour(|bed, setup, flavour| {
        accept_forwarding(bed, flavour);
        // With connection tracking, as on every node with a network plugin; without it; and without picking up existing
        // connections.
        for (case, script) in [
            ("as it is", ""),
            (
                "tracked",
                "iptables-nft -t nat -A POSTROUTING -d 192.0.2.1 -j MASQUERADE; ip6tables-nft -t nat -A POSTROUTING -d 2001:db8::1 -j MASQUERADE",
            ),
            ("strict", "echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose"),
        ] {
            bed.node.ns().sh(script).unwrap();
            let pod = bed.pod("web", "veth");
            let old = FAMILIES.map(|(_, metadata)| keep_alive(&pod, metadata));
            let before = bed.metadata_requests_of(&pod);
            let daemon = bed.start(setup);
            for mut stream in old {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let sent = stream.write_all(b"GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\n\r\n");
                let error = sent.and_then(|()| stream.read(&mut [0; 64])).unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused), "{flavour} {case}: {error}");
            }
            assert_eq!(bed.metadata_requests_of(&pod), before, "{flavour} {case}");
            FAMILIES.iter().for_each(|(_, metadata)| bed.assert_served(&pod, *metadata));
            drop(daemon);
            for (family, _) in FAMILIES {
                let program = format!("{family}-{flavour} -w 30");
                let reset = ["-D FORWARD 1", "-t security -F", "-t mangle -F", "-t nat -D PREROUTING 1", "-t nat -D OUTPUT 1"];
                bed.node.ns().sh(&reset.map(|change| format!("{program} {change}")).join("; ")).unwrap();
            }
        }
    });
}

/// If the metadata service is on the node's own loopback, as some fakes of it are, the node still reaches it. The kernel
/// decides on such a connection where it leaves, so a redirect there would capture it.
#[test]
fn the_nodes_loopback_is_not_redirected() {
    each_flavour(|bed, setup, _| {
        let _daemon = bed.start(setup);
        for ip in [IpAddr::from(IMDS_IP), IpAddr::from(IMDS_IP6)] {
            bed.node.ns().sh(&format!("ip addr add {ip} dev lo nodad 2>/dev/null || ip addr add {ip} dev lo")).unwrap();
            let here = bed.node.ns().tcp_listener(SocketAddr::new(ip, 80)).unwrap();
            let stream = bed.node.ns().connect(SocketAddr::new(ip, 80), PATIENCE).unwrap();
            // If the connection is here, it is already waiting.
            here.set_nonblocking(true).unwrap();
            let (_, peer) = here.accept().unwrap();
            assert_eq!(stream.local_addr().unwrap(), peer);
        }
    });
}

/// First with only the boot guard, then once the daemon takes it over.
#[test]
fn the_boot_guard_is_taken_over() {
    each_flavour(|bed, setup, flavour| {
        let pod = bed.pod("web", "veth");
        for (family, file) in [("iptables", "guard.rules"), ("ip6tables", "guard6.rules")] {
            let file = format!("{}/iptables/{file}", env!("CARGO_MANIFEST_DIR"));
            bed.node.ns().sh(&format!("{family}-{flavour}-restore --noflush -w 60 {file}")).unwrap();
        }
        for (_, metadata) in FAMILIES {
            assert_eq!(pod.connect(metadata, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{flavour}");
        }
        assert!(fetch(bed.node.ns(), METADATA).is_ok());
        let _daemon = bed.start(setup);
        for (program, metadata) in FAMILIES {
            bed.assert_served(&pod, metadata);
            let forward = bed.node.ns().sh(&format!("{program}-{flavour} -w 30 -S FORWARD")).unwrap();
            assert_eq!(forward.matches("-j ROLEGATE-GUARD").count(), 1, "{forward}");
        }
    });
}

/// Most nodes have no IPv6 address that the daemon knows.
#[test]
fn without_an_ipv6_target_requests_to_the_ipv6_address_are_rejected() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let _daemon = bed.start(&bed.setup_with_ip());
    assert_eq!(pod.connect(METADATA6, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    bed.assert_served(&pod, METADATA);
}

#[test]
fn without_ip6tables_the_daemon_reports_it_and_ends() {
    let (Some(bed), Some(image)) = (Bed::new(), image("nft")) else { return };
    let pod = bed.pod("web", "veth");
    for program in ["ip6tables", "ip6tables-save", "ip6tables-restore"] {
        std::fs::remove_file(image.path().join(program)).unwrap();
    }
    let error = bed.start_in_vain(&bed.setup_with_ip().env("PATH", image.path().to_str().unwrap()));
    assert!(error.contains("the IPv6 rules") && error.contains("cannot run ip6tables"), "{error}");
    // The other family is closed all the same.
    bed.assert_refused(&pod);
}

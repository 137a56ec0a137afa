//! Tests of pods whose interfaces are ports of a bridge, as with the CNI plugin of that name: their packets arrive on the
//! bridge.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use rolegate_lab::node::skip;

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, fetch};
use crate::iptables_packets::datagram;
use crate::kinds::Kind;

const BRIDGE: &str = "cni0";

#[test]
fn pods_of_a_bridge_are_served_and_reach_nothing_else() {
    for kind in Kind::all() {
        // Pods' packets arrive on `cni0`, so that is the name to give. It excludes interfaces that are not its ports.
        for interfaces in ["", "--host-interface=cni0", "--host-interface=cni+"] {
            let Some(bed) = Bed::new() else { return };
            let bridge = bed.node.add_bridge(BRIDGE).unwrap();
            let (pods, beside) = ([bed.pod_at("web", &bridge), bed.pod_at("worker", &bridge)], bed.pod("beside", "veth"));
            let imds = bed.node.imds().unwrap();
            let servers = [METADATA, METADATA6].map(|address| {
                let (tcp, udp) = (SocketAddr::new(address.ip(), 8080), SocketAddr::new(address.ip(), 53));
                (imds.tcp_listener(tcp).unwrap(), imds.run(move || UdpSocket::bind(udp)).unwrap().unwrap())
            });
            bed.count_packets_of_pods();
            for (listener, socket) in &servers {
                pods[0].connect(listener.local_addr().unwrap(), PATIENCE).unwrap();
                assert_eq!(datagram(&pods[0], socket), Ok(()), "nothing blocks the pod yet");
            }
            bed.assert_not_redirected(&pods[0]);
            // A packet of a connection that has just been closed may still arrive. From here on, packets of new connections are
            // counted.
            let setup = kind.setup(&bed);
            let _daemon = bed.start(&if interfaces.is_empty() { setup } else { setup.argument(interfaces) });
            let before = bed.packets_of_pods();
            let case = format!("{} {interfaces}", kind.name);
            for (metadata, (listener, socket)) in [METADATA, METADATA6].into_iter().zip(&servers) {
                for pod in &pods {
                    bed.assert_served(pod, metadata);
                    let other = listener.local_addr().unwrap();
                    assert_eq!(pod.connect(other, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{case} {other}");
                    assert_eq!(datagram(pod, socket), Err(ErrorKind::ConnectionRefused), "{case} {other}");
                }
                if interfaces.is_empty() {
                    bed.assert_served(&beside, metadata);
                } else {
                    assert_eq!(beside.connect(metadata, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{case} {metadata}");
                }
                assert!(fetch(bed.node.ns(), metadata).is_ok(), "{case}: the node's own process, {metadata}");
            }
            assert_eq!(bed.packets_of_pods(), before, "{case}: a packet of a pod got through");
        }
    }
}

/// With the kernel setting that kubeadm requires: iptables sees a bridge's packets before they are routed.
#[test]
fn packets_with_bridge_netfilter_are_served_as_well() {
    const CALL: &str = "/proc/sys/net/bridge/bridge-nf-call-ip";
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let bridge = bed.node.add_bridge(BRIDGE).unwrap();
        if bed.node.ns().sh(&format!("for family in '' 6; do echo 1 > {CALL}${{family}}tables; done")).is_err() {
            return skip("this kernel has no br_netfilter for the namespace");
        }
        let pod = bed.pod_at("web", &bridge);
        bed.count_packets_of_pods();
        let _daemon = bed.start(&kind.setup(&bed).argument("--host-interface=cni0"));
        for metadata in [METADATA, METADATA6] {
            bed.assert_served(&pod, metadata);
            let other = SocketAddr::new(metadata.ip(), 443);
            assert_eq!(pod.connect(other, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{} {other}", kind.name);
        }
        assert_eq!(bed.packets_of_pods(), 0, "{}", kind.name);
    }
}

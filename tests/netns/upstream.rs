//! Tests of the metadata service with EC2's default hop limit: its answers travel one hop.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use rolegate_lab::node::Netns;
use rolegate_lab::player::request;

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE};
use crate::kinds::Kind;

/// How long to wait for an answer that does not arrive.
const DROP_TIMEOUT: Duration = Duration::from_millis(700);

/// Requests a value of the service as an SDK does.
fn value(client: &Netns, address: SocketAddr, path: &str) -> String {
    let stream = client.connect(address, PATIENCE).unwrap();
    let host = if address.is_ipv4() { address.ip().to_string() } else { format!("[{}]", address.ip()) };
    let ask = |method, path, header| {
        let answer = request(&stream, method, path, &[("Host", host.as_str()), header]).unwrap();
        assert_eq!(answer.status, 200, "{method} {path}: {:?}", answer.text());
        answer.text()
    };
    let token = ask("PUT", "/latest/api/token", ("X-aws-ec2-metadata-token-ttl-seconds", "60"));
    ask("GET", path, ("X-aws-ec2-metadata-token", &token))
}

#[test]
fn with_a_hop_limit_of_one_the_daemon_reads_the_service_and_pods_do_not() {
    const PATH: &str = "/latest/meta-data/instance-id";
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let addresses = [METADATA, METADATA6];
        addresses.iter().for_each(|address| drop(pod.connect(*address, PATIENCE).unwrap()));
        bed.node
            .imds()
            .unwrap()
            .sh("ip route change default via 10.42.0.1 dev eth0 onlink hoplimit 1; ip -6 route change default via fe80::1 dev eth0 hoplimit 1")
            .unwrap();
        for address in addresses {
            assert_eq!(pod.connect(address, DROP_TIMEOUT).unwrap_err().kind(), ErrorKind::TimedOut, "{} {address}", kind.name);
        }
        let wanted = value(bed.node.ns(), METADATA, PATH);
        assert_eq!(value(bed.node.ns(), METADATA6, PATH), wanted);
        let own = bed.metadata_requests();

        let _daemon = bed.start(&kind.setup(&bed).argument(format!("--metadata-addr={}", METADATA.ip())));
        bed.count_packets_of_pods();
        for address in addresses {
            bed.assert_served(&pod, address);
            assert_eq!(value(&pod, address, PATH), wanted, "{} {address}", kind.name);
        }
        assert!(bed.metadata_requests() > own, "the daemon itself has sent requests");
        assert_eq!((bed.metadata_requests_of(&pod), bed.packets_of_pods()), (0, 0), "{}", kind.name);
    }
}

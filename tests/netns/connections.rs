//! Tests of which connections are served, and to whom.

use std::net::{IpAddr, SocketAddr};

use rolegate_lab::node::{NODE_IP, NODE_IP6, Netns};
use rolegate_lab::player::{PlayLimits, Transcript, play, request};

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, fetch};

const TOKEN_REQUEST: &[u8] = b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";

fn exchange(client: &Netns, address: SocketAddr, bytes: &[u8]) -> Transcript {
    play(client.connect(address, PATIENCE).unwrap(), bytes, PlayLimits::default()).unwrap()
}

#[test]
fn a_pod_gets_its_role_from_the_metadata_address() {
    let Some(bed) = Bed::new() else { return };
    let pods = [bed.pod("web", "veth"), bed.pod("worker", "veth")];
    let daemon = bed.start(&bed.setup_with_ip());
    for pod in &pods {
        bed.assert_served(pod, METADATA);
    }
    drop(daemon);
}

#[test]
fn a_socket_of_both_families_sees_the_ipv4_address_of_the_pod() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let daemon = bed.start(&bed.setup_with_ip().argument("--log-level=debug"));
    let started = daemon.wait_for_event("starting").unwrap();
    assert!(started["metadata_address"].as_str().unwrap().starts_with("[::]:"), "{started}");
    bed.assert_served(&pod, METADATA);
    let answered = daemon.wait_for_event("request-answered").unwrap();
    assert_eq!(answered["source"], pod.ip.to_string());
}

#[test]
fn a_pod_gets_its_role_over_ipv6() {
    let Some(bed) = Bed::new() else { return };
    let pods = [bed.pod("web", "veth"), bed.pod("worker", "veth")];
    let daemon = bed.start(&bed.setup_with_ip().argument(format!("--host-ip={NODE_IP6}")));
    let rules = bed.rules("ip6tables");
    assert_eq!(rules.targets, [format!("[{NODE_IP6}]:{}", daemon.metadata_address().port())]);
    assert_eq!(rules.prerouting, ["-A PREROUTING -d fd00:ec2::254/128 -p tcp -m tcp --dport 80 -j ROLEGATE"]);
    for pod in &pods {
        bed.assert_served(pod, METADATA6);
        bed.assert_served(pod, METADATA);
    }
}

#[test]
fn the_node_itself_still_reaches_the_metadata_service() {
    let Some(bed) = Bed::new() else { return };
    let _daemon = bed.start(&bed.setup_with_ip());
    assert_eq!(fetch(bed.node.ns(), METADATA).unwrap().role, rolegate_lab::imds::NODE_ROLE_NAME);
}

#[test]
fn a_connection_that_was_not_redirected_is_closed_without_a_byte() {
    let Some(bed) = Bed::new() else { return };
    let pods = [bed.pod("web", "veth"), bed.pod("worker", "veth")];
    let daemon = bed.start(&bed.setup_with_ip());
    // The rule that drops the connection is the first line of defence, and the daemon does not rely on it.
    bed.node.ns().sh("iptables -F ROLEGATE-DIRECT; ip6tables -F ROLEGATE-DIRECT").unwrap();
    let port = daemon.metadata_address().port();
    for client in [pods[0].ns(), pods[1].ns(), bed.node.imds().unwrap()] {
        for ip in [IpAddr::from(NODE_IP), IpAddr::from(NODE_IP6)] {
            for bytes in [TOKEN_REQUEST, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
                let transcript = exchange(client, SocketAddr::new(ip, port), bytes);
                assert!(transcript.raw.is_empty() && transcript.closed, "{ip}: {transcript:?}");
            }
        }
    }
    let refused = daemon.metric(Some(bed.node.ns()), "rolegate_connections_refused_total{reason=\"not-redirected\"}").unwrap();
    assert!((refused - 12.0).abs() < 0.5, "{refused}");
    bed.assert_served(&pods[0], METADATA);
}

#[test]
fn direct_connections_are_served_if_configured() {
    let Some(bed) = Bed::new() else { return };
    let pods = [bed.pod("web", "veth"), bed.pod("worker", "veth")];
    let daemon = bed.start(&bed.setup_with_ip().argument("--accept-direct-connections"));
    for pod in &pods {
        bed.assert_served(pod, SocketAddr::new(NODE_IP.into(), daemon.metadata_address().port()));
        bed.assert_served(pod, METADATA);
    }
}

#[test]
fn the_node_may_use_the_app_port_only_for_health_checks() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.start(&bed.setup_with_ip());
    let port = daemon.metadata_address().port();
    for ip in ["10.42.0.1", "127.0.0.1", "fd00:42::1", "::1"] {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        let ask = |method: &str, path: &str| {
            let headers = [("X-aws-ec2-metadata-token-ttl-seconds", "60")];
            request(bed.node.ns().connect(address, PATIENCE).unwrap(), method, path, &headers).unwrap()
        };
        assert_eq!((ask("GET", "/healthz").status, ask("GET", "/healthz").text().as_str()), (200, "ok\n"), "{ip}");
        for (method, path) in [
            ("PUT", "/latest/api/token"),
            ("GET", "/"),
            ("GET", "/latest/meta-data/"),
            ("GET", "/latest/meta-data/iam/security-credentials/"),
            ("GET", "/latest/meta-data/iam/info"),
            ("GET", "/metrics"),
            ("GET", "/healthz/"),
        ] {
            let answer = ask(method, path);
            assert_eq!((answer.status, answer.body.len()), (404, 0), "{ip}: {method} {path}");
        }
    }
}

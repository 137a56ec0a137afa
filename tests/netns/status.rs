//! Tests of the status page on a node with pods and rules: who reads it over the network, and what it says of the rules.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rolegate_lab::daemon::Daemon;
use rolegate_lab::node::{NODE_IP, NODE_IP6, Netns};
use rolegate_lab::player::request;
use serde_json::Value;

use crate::bed::{Bed, METADATA, PATIENCE};
use crate::keep::wait_until;
use crate::kinds::Kind;

const PATHS: [&str; 2] = ["/status", "/status.json"];

/// Asks from this network at this address of the node, with the name of loopback.
fn ask(from: &Netns, ip: IpAddr, daemon: &Daemon, path: &str) -> (u16, String) {
    let stream = from.connect(SocketAddr::new(ip, daemon.metrics_address().port()), PATIENCE).unwrap();
    let answer = request(stream, "GET", path, &[("Host", "localhost:9543"), ("Connection", "close")]).unwrap();
    (answer.status, answer.text())
}

#[test]
fn over_the_network_nobody_reads_the_status() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let daemon = bed.start(&bed.setup_with_ip().argument("--status-page"));
    for path in PATHS {
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let (status, text) = ask(bed.node.ns(), ip, &daemon, path);
            assert!(status == 200 && text.contains("web"), "{ip} {path}: {status} {text}");
        }
        for ip in [IpAddr::from(NODE_IP), NODE_IP6.into()] {
            // Neither a pod, nor the node at its own address, which other hosts may have as a source.
            for from in [pod.ns(), bed.node.ns()] {
                assert_eq!(ask(from, ip, &daemon, path), (404, String::new()), "{ip} {path}");
            }
        }
    }
}

fn rules(bed: &Bed, daemon: &Daemon) -> Vec<Value> {
    let (_, text) = ask(bed.node.ns(), Ipv4Addr::LOCALHOST.into(), daemon, "/status.json");
    serde_json::from_str::<Value>(&text).unwrap()["rules"].as_array().unwrap().clone()
}

#[test]
fn the_status_has_the_rules_of_each_kind_and_their_repairs() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let setup = kind.setup(&bed).argument("--status-page").argument("--redirect-routing-rules=true").argument("--redirect-interval=1s");
        let daemon = bed.start(&setup);
        bed.assert_served(&pod, METADATA);
        let found = rules(&bed, &daemon);
        let seen: Vec<_> =
            found.iter().map(|rule| ["kind", "backend", "family", "state"].map(|key| rule[key].as_str().unwrap_or_default())).collect();
        assert_eq!(
            seen,
            [
                ["packet-rules", kind.backend, "ipv4", "in-place"],
                ["packet-rules", kind.backend, "ipv6", "in-place"],
                ["routing-rules", "rtnetlink", "ipv4", "in-place"],
                ["routing-rules", "rtnetlink", "ipv6", "in-place"],
            ],
            "{}",
            kind.name
        );
        let to = format!("{NODE_IP}:{}", daemon.metadata_address().port());
        assert_eq!(
            (&found[0]["redirects_to"], &found[0]["repairs"], &found[0]["in_place"]),
            (&to.into(), &0.into(), &true.into()),
            "{}",
            kind.name
        );
        bed.node.ns().sh(kind.flush).unwrap();
        wait_until(|| match rules(&bed, &daemon).remove(0) {
            rule if rule["repairs"].as_u64() >= Some(1) && rule["in_place"] == true && rule["last_repaired_at"].is_string() => Ok(()),
            rule => Err(io::Error::other(format!("{}: {rule}", kind.name))),
        });
    }
}

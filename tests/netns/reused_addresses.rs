//! Tests of pods that get the addresses of earlier pods on a bridge, as short Jobs do. The real daemon serves each from its first
//! request.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rolegate_lab::kube::{PodBuilder, Resource};
use rolegate_lab::node::{Bridge, NODE_IP6, PodOptions};

use crate::bed::{Bed, METADATA, METADATA6, Pod, fetch};
use crate::forgery::{bridge_of, record, until, wait_for_the_watch, with_status};
use crate::links::{mac_of, mac_text};

/// Returns the file of a pod's CNI result.
fn result_of(pod: &Pod, results: &Path) -> PathBuf {
    results.join(format!("pods-{}-eth0", pod.name))
}

/// Returns whether the node has this link-layer address for an address.
fn has_neighbour(bed: &Bed, ip: IpAddr, mac: [u8; 6]) -> bool {
    let mac = mac_text(mac);
    bed.node.ns().sh(&format!("ip neigh show to {ip} dev cni0 | grep -q {mac}")).is_ok()
}

fn pod_at(bed: &Bed, bridge: &Bridge, name: &str, ip: Option<Ipv4Addr>) -> Pod {
    bed.pod_with(PodOptions { name, bridge: Some(bridge), ip, ..PodOptions::default() })
}

#[test]
fn a_pod_at_a_reused_address_is_served_from_its_first_request() {
    // The API may report the end of a pod before the node removes its network, or after that.
    for (with_results, ends_first) in [(false, false), (true, false), (false, true), (true, true)] {
        let Some(bed) = Bed::new() else { return };
        let bridge = bridge_of(&bed);
        let results = tempfile::tempdir().unwrap();
        let setup = bed.setup_with_ip().argument(format!("--host-ip={NODE_IP6}")).argument("--backoff-max-elapsed-time=100ms");
        let setup = if with_results { setup.argument(format!("--cni-results={}", results.path().display())) } else { setup };
        let _stays = pod_at(&bed, &bridge, "stays", None);
        let earlier = pod_at(&bed, &bridge, "earlier", None);
        if with_results {
            record(results.path(), &bed, &earlier);
        }
        let _daemon = bed.start(&setup);
        for metadata in [METADATA, METADATA6] {
            bed.assert_served(&earlier, metadata);
        }
        let (ip, ip6, mac) = (earlier.ip, earlier.ip6, mac_of(&earlier));
        if ends_first {
            let finished = PodBuilder::new("team-a", "earlier").ips([ip.to_string(), ip6.to_string()].each_ref().map(String::as_str));
            bed.api.apply(Resource::Pods, finished.phase("Succeeded").build());
            wait_for_the_watch(&bed, "first-marker");
        }
        if with_results {
            std::fs::remove_file(result_of(&earlier, results.path())).unwrap();
        }
        drop(earlier);
        // The kernel keeps the neighbours of a pod that is gone; the daemon removes them.
        let leftovers = [IpAddr::from(ip), ip6.into()];
        until("the neighbours are gone", || !leftovers.iter().any(|ip| has_neighbour(&bed, *ip, mac)));
        assert!(ends_first || bed.api.delete(Resource::Pods, Some("team-a"), "earlier"));
        // The API reports its address before it sends anything.
        let next = pod_at(&bed, &bridge, "next", Some(ip));
        if with_results {
            record(results.path(), &bed, &next);
        }
        wait_for_the_watch(&bed, "marker");
        for metadata in [METADATA, METADATA6] {
            let fetched =
                fetch(&next, metadata).unwrap_or_else(|error| panic!("with results: {with_results}, ends first: {ends_first}: {error}"));
            assert_eq!(fetched.role, next.role());
        }
    }
}

/// The kubelet reports the address of a pod later than the CNI plugin records it. Meanwhile, links of other pods change all the time.
#[test]
fn a_recorded_pod_is_served_before_the_api_reports_its_address() {
    let Some(bed) = Bed::new() else { return };
    let bridge = bridge_of(&bed);
    let results = tempfile::tempdir().unwrap();
    let other = pod_at(&bed, &bridge, "other", None);
    let pod = pod_at(&bed, &bridge, "web", None);
    bed.api.apply(Resource::Pods, with_status(&pod, &[]));
    for pod in [&other, &pod] {
        record(results.path(), &bed, pod);
    }
    let _daemon = bed.start(&bed.setup_with_ip().argument(format!("--cni-results={}", results.path().display())));
    bed.assert_served(&other, METADATA);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let (ip, mac) = (other.ip, mac_text(mac_of(&other)));
            while !is_over.load(Ordering::Relaxed) {
                let change = format!("ip neigh del {ip} dev cni0; ip neigh replace {ip} lladdr {mac} dev cni0 nud reachable");
                bed.node.ns().sh(&change).unwrap();
            }
        });
        let fetched: Vec<_> = (0..100).map(|_| fetch(&pod, METADATA).map(|fetched| fetched.role)).collect();
        is_over.store(true, Ordering::Relaxed);
        changes.join().unwrap();
        for (number, role) in fetched.into_iter().enumerate() {
            assert_eq!(role.unwrap_or_else(|error| panic!("connection {number}: {error}")), pod.role());
        }
    });
}

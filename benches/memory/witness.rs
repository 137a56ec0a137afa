//! The memory cost of the second witness for each pod: what the daemon keeps of the node's links and of CNI results, and the
//! pins of the pods' addresses.
//!
//! The node is a network namespace with real interfaces, routes and, at a bridge, neighbours. The results are real files. The
//! cost is the memory that is allocated in addition to that for the same pods without a witness, minus that of a witness
//! without pods.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rolegate::links::cni::{MAX_FILES, Results};
use rolegate::links::view::NodeView;
use rolegate::links::{LinkKind, Links};
use rolegate::metrics::Metrics;
use rolegate::pods::index::Index;
use rolegate::pods::{Lookup, pods, pods_with};
use rolegate_lab::node::{Netns, reexec_in_user_namespace_if_needed};
use tempfile::TempDir;

use super::common::pods::{address, known, names, uid};
use super::common::process::Again;
use super::common::verdict;
use super::counted::live;

/// The number of pods, and whether they are attached to a bridge, which has at most 1,024 ports.
const CASES: [(usize, &str); 5] = [(110, "routes"), (1000, "routes"), (10_000, "routes"), (110, "bridge"), (1000, "bridge")];
/// The maximum bytes for each of 1,000 pods.
const GOAL: f64 = 200.0;

/// Prints the bytes of each case, and returns whether the goal is reached.
pub(crate) fn report() -> bool {
    println!();
    println!(
        "{:<20}{:>12}{:>14}{:>18}{:>12}{:>8}",
        "second witness, B/pod", "interfaces", "CNI results", "links and pins", "the index", "all"
    );
    let mut worst: f64 = 0.0;
    for (count, kind) in CASES {
        let (Ok(none), Ok(some)) = (figures(0, kind), figures(count, kind)) else {
            println!("there can be no network namespaces here, so the second witness is not measured");
            return true;
        };
        let mut parts: Vec<f64> = some.iter().zip(none).map(|(some, none)| (some - none) / count as f64).collect();
        // An eight-byte number in each slot of the index's table by address, with and without a witness.
        parts.push((8 * (count * 8).div_ceil(7).next_power_of_two()) as f64 / count as f64);
        let all: f64 = parts.iter().sum();
        let title = format!("{count} pods, {kind}");
        println!("{title:<20}{:>12.0}{:>14.0}{:>18.0}{:>12.0}{all:>8.0}", parts[0], parts[1], parts[2], parts[3]);
        if count == 1000 {
            worst = worst.max(all);
        }
    }
    println!("the goal, less than {GOAL} bytes for each of 1000 pods: {} with {worst:.0} bytes", verdict(worst < GOAL));
    worst < GOAL
}

fn figures(count: usize, kind: &str) -> Result<Vec<f64>, ()> {
    let child = Again::start(&format!("witness {count} {kind}"));
    child.line.split(' ').map(|figure| figure.parse().map_err(drop)).collect()
}

/// Prints the bytes of the interfaces, the results, and the links and pins together.
pub(crate) fn measure(count: usize, kind: &str) {
    if let Err(error) = reexec_in_user_namespace_if_needed() {
        println!("no namespaces: {error}");
        return;
    }
    let (Ok(node), Ok(pods)) = (Netns::new("witness"), Netns::new("pods")) else {
        println!("no namespaces");
        return;
    };
    let (directory, at_bridge) = (TempDir::new().unwrap(), kind == "bridge");
    make(&node, &pods, directory.path(), count, at_bridge);
    let path = directory.path().to_owned();
    let figures = node.run(move || of_node(&path, count, at_bridge)).unwrap();
    println!("{}", figures.map(|figure| figure.to_string()).join(" "));
}

/// Creates the links to the pods, and their results.
fn make(node: &Netns, pods: &Netns, directory: &Path, count: usize, at_bridge: bool) {
    let (mut links, mut forwarding) = (String::new(), String::new());
    if at_bridge {
        links += "link add cni0 type bridge\nlink set cni0 address 0a:00:00:00:00:01 up\naddr add 10.0.0.1/8 dev cni0\n";
    }
    for number in 0..count {
        let (ip, mac, (namespace, name)) = (address(number), mac(number), names(number));
        if at_bridge {
            writeln!(links, "link add pod{number} type veth peer name end{number} netns {}", pods.path()).unwrap();
            writeln!(links, "link set pod{number} master cni0 up").unwrap();
            writeln!(links, "neigh add {ip} lladdr {mac} dev cni0 nud permanent").unwrap();
            writeln!(forwarding, "fdb add {mac} dev pod{number} master static").unwrap();
        } else {
            // Both ends of a pair are interfaces of the node here.
            if number % 2 == 0 {
                writeln!(links, "link add pod{number} type veth peer name pod{}", number + 1).unwrap();
                writeln!(links, "link set pod{number} up\nlink set pod{} up", number + 1).unwrap();
            }
            writeln!(links, "route add {ip}/32 dev pod{number}").unwrap();
        }
        let bridge = if at_bridge { r#"{"name":"cni0"},"# } else { "" };
        let result = format!(
            r#"{{"cniVersion":"1.0.0","interfaces":[{bridge}{{"name":"pod{number}"}},{{"name":"eth0","mac":"{mac}","sandbox":"/run/netns/{number}"}}],"ips":[{{"address":"{ip}/32"}}]}}"#
        );
        let arguments = format!(r#"[["K8S_POD_NAMESPACE","{namespace}"],["K8S_POD_NAME","{name}"],["K8S_POD_UID","{}"]]"#, uid(number));
        let file = format!(
            r#"{{"kind":"cniCacheV1","containerId":"c{number}","config":"","ifName":"eth0","networkName":"pods","cniArgs":{arguments},"result":{result}}}"#
        );
        fs::write(directory.join(format!("pods-c{number}-eth0")), file).unwrap();
    }
    let batches = TempDir::new().unwrap();
    let [links_file, forwarding_file] = ["links", "forwarding"].map(|name| batches.path().join(name));
    fs::write(&links_file, links).unwrap();
    fs::write(&forwarding_file, forwarding).unwrap();
    node.sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6").unwrap();
    node.sh(&format!("ip -batch {}", links_file.display())).unwrap();
    node.sh(&format!("bridge -batch {}", forwarding_file.display())).unwrap();
}

fn mac(number: usize) -> String {
    format!("0a:58:0a:01:{:02x}:{:02x}", number >> 8, number & 255)
}

/// Measures inside the node's network namespace.
fn of_node(directory: &Path, count: usize, at_bridge: bool) -> [isize; 3] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let metrics = Metrics::new();
    // Its series are created when they are first set.
    metrics.cni_results(0, 0);
    let began = live();
    let _without = {
        let (writer, pods) = pods();
        writer.write(|index| fill(index, count));
        (writer, pods)
    };
    let index = grown(began);
    let began = live();
    let links = Links::open().unwrap();
    let interfaces = grown(began);
    let began = live();
    let results = Results::none();
    runtime.block_on(async {
        let mut changes = results.changes();
        let keeper = tokio::spawn(results.clone().keep(directory.to_owned(), metrics.clone()));
        while results.count() < count.min(MAX_FILES) {
            changes.changed().await.unwrap();
        }
        keeper.abort();
        assert!(keeper.await.is_err_and(|error| error.is_cancelled()));
    });
    let files = grown(began);
    let began = live();
    let (writer, pods) = pods_with(Arc::new(NodeView::new(links.clone(), results.clone(), None)), None);
    writer.write(|index| fill(index, count));
    runtime.block_on(pods.pin());
    let pins = grown(began) - index;
    for number in 0..count {
        let ip = IpAddr::from(address(number));
        assert!(matches!(pods.by_ip(ip), Lookup::Found(..)));
        let kind = links.of(ip).link().unwrap().kind;
        let is_known = if at_bridge { matches!(kind, LinkKind::Bridge { mac: Some(_), port: Some(_), .. }) } else { kind == LinkKind::Own };
        assert!(is_known, "{kind:?}");
    }
    [interfaces, files, pins]
}

fn grown(since: usize) -> isize {
    live().cast_signed() - since.cast_signed()
}

fn fill(index: &mut Index, count: usize) {
    (0..count).for_each(|number| index.apply(known(number)));
}

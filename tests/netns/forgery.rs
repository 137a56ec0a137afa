//! Tests of attacks on identity: pods that use another pod's address, and pod objects that claim one. In each, the real daemon
//! serves every pod its own role or nothing.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::Daemon;
use rolegate_lab::kube::{PodBuilder, Resource};
use rolegate_lab::node::{Bridge, PodNs, PodOptions};
use serde_json::json;
use tempfile::TempDir;

use crate::bed::{Bed, METADATA, PATIENCE, Pod, fetch};
use crate::links::{forge, mac_of, mac_text, steal};

/// A node with pods attached to a bridge, and the daemon.
struct Bridged {
    daemon: Daemon,
    victim: Pod,
    attacker: Pod,
    other: Pod,
    bridge: Bridge,
    bed: Bed,
}

fn bridged() -> Option<Bridged> {
    let bed = Bed::new()?;
    let bridge = bridge_of(&bed);
    // A neighbour that has just answered is protected for a moment (locktime). An attacker would only have to wait.
    bed.node.ns().sh("echo 0 >/proc/sys/net/ipv4/neigh/cni0/locktime").unwrap();
    let [victim, attacker, other] = ["victim", "attacker", "other"].map(|name| bed.pod_at(name, &bridge));
    let daemon = bed.start(&bed.setup_with_ip().argument("--backoff-max-elapsed-time=100ms"));
    for pod in [&victim, &attacker, &other] {
        bed.assert_served(pod, METADATA);
    }
    Some(Bridged { daemon, victim, attacker, other, bridge, bed })
}

/// Adds a bridge that keeps its neighbours. Without a link-layer address of its own, it takes the lowest of its ports', and discards
/// its neighbours when that changes.
pub(crate) fn bridge_of(bed: &Bed) -> Bridge {
    let bridge = bed.node.add_bridge("cni0").unwrap();
    bed.node.ns().sh("ip link set cni0 address 0a:00:00:00:00:01").unwrap();
    bridge
}

/// Gives the pod the other pod's address instead of its own.
fn take_address(attacker: &Pod, victim: &Pod, bridge: &Bridge) {
    let (own, theirs, gateway) = (attacker.ip, victim.ip, bridge.ip);
    attacker.sh(&format!("ip addr del {own}/24 dev eth0; ip addr add {theirs}/24 dev eth0; ip route add default via {gateway}")).unwrap();
}

/// Keeps the pod from sending anything by itself.
fn silence(pod: &PodNs) {
    pod.sh("ip link set eth0 arp off; echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6").unwrap();
}

/// Sends requests repeatedly after `attack`: the daemon answers, and serves nothing.
#[track_caller]
fn assert_gets_nothing(pod: &PodNs, attack: impl Fn()) {
    for _ in 0..10 {
        attack();
        match fetch(pod, METADATA) {
            Ok(fetched) => panic!("the attacker got the role {:?}", fetched.role),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Other, "no answer with a status: {error}"),
        }
    }
}

/// The API is late: it first announces a pod that is gone, when the next pod already has its address and an interface of its
/// own.
#[test]
fn a_late_event_of_a_deleted_pod_gives_no_pod_its_role() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.start(&bed.setup_with_ip().argument("--backoff-max-elapsed-time=100ms"));
    let next = bed.node.add_pod_with(PodOptions { name: "next", interface_prefix: "veth", ..PodOptions::default() }).unwrap();
    // Its network was created well before the interface that leads to its address now.
    #[expect(clippy::disallowed_methods, reason = "the API's times are compared with the age of an interface of this machine")]
    let long_ago = (jiff::Timestamp::now() - Duration::from_secs(60)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let gone = PodBuilder::new("team-a", "gone").ip(&next.ip.to_string()).started_at(&long_ago);
    bed.api.apply(Resource::Pods, gone.annotation("iam.amazonaws.com/role", "arn:aws:iam::123456789012:role/role-of-gone").build());
    daemon
        .wait_for_log(|line| {
            assert_gets_nothing(&next, || {});
            line["reason"] == "link-changed" && line["pod"] == "gone"
        })
        .unwrap();
}

#[test]
fn forged_arp_on_a_bridge_gets_no_other_pods_role() {
    let Some(Bridged { daemon, victim, attacker, other, bridge, bed }) = bridged() else { return };
    silence(&victim);
    take_address(&attacker, &victim, &bridge);
    assert_gets_nothing(&attacker, || forge(&bed.node, &bridge, &attacker, victim.ip));
    let refused = daemon.wait_for_log(|line| line["reason"] == "link-changed").unwrap();
    assert_eq!((&refused["pod"], &refused["event"]), (&"victim".into(), &"identity-objection".into()));
    assert!(daemon.metric(Some(bed.node.ns()), r#"rolegate_denials_total{reason="link-changed"}"#).unwrap() >= 1.0);
    let may_forge = || daemon.metric(Some(bed.node.ns()), "rolegate_pods_with_net_raw_on_bridges").unwrap();
    until("the three pods with NET_RAW are counted", || may_forge() == 3.0);
    daemon.wait_for_event("net-raw-on-bridge").unwrap();
    let reported = || bed.api.events().iter().any(|event| event["reason"] == "AddressContested" && event["regarding"]["name"] == "victim");
    until("the victim's owner gets an Event", reported);
    bed.assert_served(&other, METADATA);
}

#[test]
fn a_stolen_mac_address_gets_no_other_pods_role() {
    let Some(Bridged { daemon, victim, attacker, other, bridge, bed }) = bridged() else { return };
    silence(&victim);
    let stolen = mac_of(&victim);
    let mac = mac_text(stolen);
    attacker.sh(&format!("ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up")).unwrap();
    take_address(&attacker, &victim, &bridge);
    assert_gets_nothing(&attacker, || steal(&bed.node, &bridge, &attacker, stolen));
    daemon.wait_for_log(|line| line["reason"] == "link-changed" && line["pod"] == "victim").unwrap();
    bed.assert_served(&other, METADATA);
}

#[test]
fn in_an_outage_the_next_pod_never_gets_the_previous_role() {
    let Some(bed) = Bed::new() else { return };
    let before = bed.pod("before", "veth");
    let daemon = bed.start(&bed.setup_with_ip().argument("--backoff-max-elapsed-time=100ms"));
    bed.assert_served(&before, METADATA);
    bed.api.refuse_connections(true);
    bed.api.cut_connections();
    let ip = before.ip;
    drop(before);
    // The API would announce it if it could be reached.
    let after = bed.pod_with(PodOptions { name: "after", interface_prefix: "veth", ip: Some(ip), ..PodOptions::default() });
    assert_gets_nothing(&after, || {});
    daemon.wait_for_log(|line| line["reason"] == "link-changed" && line["pod"] == "before").unwrap();
    assert!(bed.api.delete(Resource::Pods, Some("team-a"), "before"));
    bed.api.refuse_connections(false);
    until("the new pod is served", || fetch(&after, METADATA).is_ok());
    bed.assert_served(&after, METADATA);
}

#[test]
fn an_address_without_a_route_is_not_served() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let daemon = bed.start(&bed.setup_with_ip().argument("--backoff-max-elapsed-time=100ms"));
    bed.assert_served(&pod, METADATA);
    // Another interface takes over the route. The pod is the same.
    let other = bed.pod("other", "veth");
    let (ip, own, another) = (pod.ip, pod.host_interface(), other.host_interface());
    bed.node.ns().sh(&format!("ip route replace {ip}/32 dev {another}")).unwrap();
    other.sh(&format!("ip addr add {ip}/32 dev eth0; ip route replace default via 10.42.0.1 src {ip}")).unwrap();
    assert_gets_nothing(&other, || {});
    daemon.wait_for_log(|line| line["reason"] == "link-changed" && line["pod"] == "web").unwrap();
    bed.node.ns().sh(&format!("ip route replace {ip}/32 dev {own}")).unwrap();
    bed.assert_served(&pod, METADATA);
}

/// Adds a pod and waits until the daemon knows it, and thus everything that the API announced earlier.
pub(crate) fn wait_for_the_watch(bed: &Bed, name: &str) {
    let marker = bed.pod(name, "veth");
    until("the watch has caught up", || fetch(&marker, METADATA).is_ok());
}

/// Records a pod's attachment as libcni does.
pub(crate) fn record(results: &Path, bed: &Bed, pod: &Pod) {
    let object = bed.api.get(Resource::Pods, Some("team-a"), &pod.name).unwrap();
    let mac = mac_text(mac_of(pod));
    let result = json!({
        "kind": "cniCacheV1", "containerId": pod.name, "config": "", "ifName": "eth0", "networkName": "pods",
        "cniArgs": [
            ["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "team-a"], ["K8S_POD_NAME", pod.name],
            ["K8S_POD_INFRA_CONTAINER_ID", pod.name], ["K8S_POD_UID", object["metadata"]["uid"]],
        ],
        "result": {
            "cniVersion": "1.0.0",
            // As with a chain of plugins, some of which add interfaces of their own.
            "interfaces": [
                { "name": "ifb7" }, { "name": "bwp7" }, { "name": pod.host_interface() },
                { "name": "eth0", "mac": mac, "sandbox": "/run/netns/pod" },
            ],
            "ips": [{ "interface": 3, "address": format!("{}/32", pod.ip) }, { "interface": 3, "address": format!("{}/128", pod.ip6) }],
        },
    });
    std::fs::write(results.join(format!("pods-{}-eth0", pod.name)), result.to_string()).unwrap();
}

/// Returns a pod's object with these addresses in its status.
pub(crate) fn with_status(pod: &Pod, ips: &[IpAddr]) -> serde_json::Value {
    let texts: Vec<_> = ips.iter().map(ToString::to_string).collect();
    let arn = format!("arn:aws:iam::123456789012:role/{}", pod.role());
    let builder = PodBuilder::new("team-a", &pod.name).ips(texts.iter().map(String::as_str));
    builder.annotation("iam.amazonaws.com/role", &arn).build()
}

#[test]
fn a_forged_status_gains_nothing_if_cni_results_are_read() {
    let Some(bed) = Bed::new() else { return };
    let results = TempDir::new().unwrap();
    let (victim, liar) = (bed.pod("victim", "veth"), bed.pod("liar", "veth"));
    [&victim, &liar].iter().for_each(|pod| record(results.path(), &bed, pod));
    let setup = bed.setup_with_ip().argument("--backoff-max-elapsed-time=100ms");
    let daemon = bed.start(&setup.argument(format!("--cni-results={}", results.path().display())));
    let files = |daemon: &Daemon| daemon.metric(Some(bed.node.ns()), r#"rolegate_cni_result_files{state="used"}"#).unwrap();
    until("both files are read", || files(&daemon) == 2.0);
    // The liar claims the victim's address besides its own, then alone. Then the victim's status loses its address.
    bed.api.apply(Resource::Pods, with_status(&liar, &[liar.ip.into(), victim.ip.into()]));
    wait_for_the_watch(&bed, "first");
    bed.assert_served(&victim, METADATA);
    bed.assert_served(&liar, METADATA);
    bed.api.apply(Resource::Pods, with_status(&victim, &[]));
    wait_for_the_watch(&bed, "second");
    bed.assert_served(&victim, METADATA);
    bed.api.apply(Resource::Pods, with_status(&liar, &[victim.ip.into()]));
    wait_for_the_watch(&bed, "third");
    bed.assert_served(&victim, METADATA);
    // According to its status, the victim has another address: the owner is uncertain, and no pod is served.
    bed.api.apply(Resource::Pods, with_status(&victim, &[IpAddr::from([10, 42, 99, 99])]));
    wait_for_the_watch(&bed, "fourth");
    assert_gets_nothing(&victim, || {});
    daemon.wait_for_log(|line| line["reason"] == "cni-result-conflict").unwrap();
}

/// Without CNI results: the victim's object says that it is terminating, and the liar's object claims the victim's address.
#[test]
fn a_pinned_pod_never_gets_the_role_of_a_liar() {
    let Some(bed) = Bed::new() else { return };
    let (victim, liar) = (bed.pod("victim", "veth"), bed.pod("liar", "veth"));
    let daemon = bed.start(&bed.setup_with_ip().argument("--backoff-max-elapsed-time=100ms"));
    bed.assert_served(&victim, METADATA);
    let builder = |pod: &Pod, ip: IpAddr| {
        let arn = format!("arn:aws:iam::123456789012:role/{}", pod.role());
        PodBuilder::new("team-a", &pod.name).ip(&ip.to_string()).annotation("iam.amazonaws.com/role", &arn)
    };
    bed.api.apply(Resource::Pods, builder(&victim, victim.ip.into()).terminating().build());
    bed.api.apply(Resource::Pods, builder(&liar, victim.ip.into()).build());
    wait_for_the_watch(&bed, "marker");
    assert_gets_nothing(&victim, || {});
    daemon.wait_for_log(|line| line["reason"] == "link-changed" && line["pod"] == "liar").unwrap();
}

/// A request that arrives while the daemon starts, before it knows any link.
#[test]
fn an_early_connection_on_a_bridge_waits_for_the_links() {
    let Some(bed) = Bed::new() else { return };
    let bridge = bed.node.add_bridge("cni0").unwrap();
    let pod = bed.pod_at("web", &bridge);
    bed.api.stall(true);
    let daemon = bed.setup_with_ip().start().unwrap();
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            // Until the rules are in place, connections are refused.
            loop {
                match fetch(&pod, METADATA) {
                    Err(error) if refused(&error) => std::thread::sleep(Duration::from_millis(5)),
                    other => return other,
                }
            }
        });
        let waiting = || daemon.metric(Some(bed.node.ns()), "rolegate_pod_waits_in_flight").unwrap();
        until("a request waits for its pod", || waiting() == 1.0 || asked.is_finished());
        bed.api.stall(false);
        bed.api.cut_connections();
        asked.join().unwrap()
    });
    assert_eq!(asked.map(|fetched| fetched.role).unwrap_err().kind(), io::ErrorKind::Other, "no answer with a status");
    daemon.wait_ready(Some(bed.node.ns())).unwrap();
    until("the pod is served", || fetch(&pod, METADATA).is_ok());
    bed.assert_served(&pod, METADATA);
}

pub(crate) fn until(what: &str, reached: impl Fn() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

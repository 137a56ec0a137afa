//! Tests of other hosts on the node's network, and of other programs that manage rules on the node.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rolegate_lab::node::{NODE_IP, NODE_IP6, PodNs, PodOptions};
use rolegate_lab::player::request;

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, fetch};
use crate::kinds::Kind;

/// How long a connection that is dropped is attempted.
const DROP_TIMEOUT: Duration = Duration::from_millis(700);

/// Adds another node behind an uplink of this one, which is not a pod of this node in the Kubernetes API.
pub(crate) fn neighbour(bed: &Bed) -> PodNs {
    bed.node.add_pod_with(PodOptions { name: "neighbour", interface_prefix: "uplink", ..PodOptions::default() }).unwrap()
}

/// Neither by connecting straight to the app port, nor by using this node as its gateway.
#[test]
fn a_neighbour_gets_nothing_from_daemon_or_service() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (pod, neighbour) = (bed.pod("web", "veth"), neighbour(&bed));
        bed.count_packets_of_pods();
        let daemon = bed.start(&kind.setup(&bed));
        let (app, metrics) = (daemon.metadata_address().port(), daemon.metrics_address().port());
        for (metadata, node) in [(METADATA, IpAddr::from(NODE_IP)), (METADATA6, NODE_IP6.into())] {
            let (app, metrics) = (SocketAddr::new(node, app), SocketAddr::new(node, metrics));
            for from in [&neighbour, &*pod] {
                assert_eq!(
                    from.connect(app, DROP_TIMEOUT).unwrap_err().kind(),
                    ErrorKind::TimedOut,
                    "{} {app} from {}",
                    kind.name,
                    from.name
                );
            }
            // Only the port is closed, not the node.
            assert_eq!(request(neighbour.connect(metrics, PATIENCE).unwrap(), "GET", "/healthz", &[]).unwrap().status, 200);
            assert_eq!(request(bed.node.ns().connect(app, PATIENCE).unwrap(), "GET", "/healthz", &[]).unwrap().status, 200);
            assert!(fetch(&neighbour, metadata).is_err(), "{} {metadata}", kind.name);
            let other = SocketAddr::new(metadata.ip(), 443);
            assert_eq!(neighbour.connect(other, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{} {other}", kind.name);
            bed.assert_served(&pod, metadata);
        }
        assert_eq!(bed.packets_of_pods(), 0, "{}", kind.name);
    }
}

/// Returns rules that redirect the metadata address elsewhere, for the programs of each kube-proxy mode.
fn claims() -> [(&'static str, String); 3] {
    let iptables = |flavour: &str| {
        let family = |program: &str, metadata: IpAddr, to: String| {
            let program = format!("{program}-{flavour} -w 30 -t nat");
            format!(
                "{program} -N KUBE-SERVICES; {program} -I PREROUTING 1 -j KUBE-SERVICES; \
                 {program} -A KUBE-SERVICES -d {metadata} -p tcp --dport 80 -j DNAT --to-destination {to}\n"
            )
        };
        family("iptables", METADATA.ip(), format!("{NODE_IP}:1")) + &family("ip6tables", METADATA6.ip(), format!("[{NODE_IP6}]:1"))
    };
    [("iptables-nft", iptables("nft")), ("iptables-legacy", iptables("legacy")), ("nft", nft_claim("dstnat"))]
}

fn nft_claim(priority: &str) -> String {
    format!(
        "nft -f - <<'END'\ntable inet kube-proxy {{\nchain nat-prerouting {{\ntype nat hook prerouting priority {priority};\n\
         ip daddr {} tcp dport 80 dnat ip to {NODE_IP}:1\nip6 daddr {} tcp dport 80 dnat ip6 to [{NODE_IP6}]:1\n}}\n}}\nEND",
        METADATA.ip(),
        METADATA6.ip()
    )
}

/// A Service may have the metadata address among its `externalIPs`, from before or after the daemon's start.
#[test]
fn a_service_with_the_metadata_address_gets_no_requests() {
    for kind in Kind::all() {
        for (theirs, claim) in claims() {
            // iptables has one hook for NAT, where the later of two tables comes first. Rules of iptables itself are moved
            // behind ours; --redirect=nftables is for tables of their own.
            if kind.backend == "iptables" && theirs == "nft" {
                continue;
            }
            let Some(bed) = Bed::new() else { return };
            let pod = bed.pod("web", "veth");
            let case = format!("{}, theirs by {theirs}", kind.name);
            bed.node.ns().sh(&claim).unwrap();
            for address in [METADATA, METADATA6] {
                assert_eq!(pod.connect(address, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{case} {address}");
            }
            bed.count_packets_of_pods();
            let _daemon = bed.start(&kind.setup(&bed));
            for address in [METADATA, METADATA6] {
                bed.assert_served(&pod, address);
            }
            assert_eq!(bed.packets_of_pods(), 0, "{case}");
        }
    }
}

/// Ahead of every rule of ours: no pod can be served then, and the daemon is not ready.
#[test]
fn rules_ahead_of_all_of_ours_are_noticed_and_open_nothing() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        bed.count_packets_of_pods();
        let daemon = bed.start(&kind.setup(&bed).argument("--self-test=on").argument("--self-test-interval=1s"));
        bed.assert_served(&pod, METADATA);
        bed.node.ns().sh(&nft_claim("dstnat - 50")).unwrap();
        for address in [METADATA, METADATA6] {
            assert_eq!(pod.connect(address, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{} {address}", kind.name);
        }
        let deadline = Instant::now() + PATIENCE;
        while daemon.get(Some(bed.node.ns()), "/readyz").unwrap().status == 200 {
            assert!(Instant::now() < deadline, "{}: the daemon is ready\n{}", kind.name, daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(daemon.get(Some(bed.node.ns()), "/readyz").unwrap().text().contains("the self-test"));
        bed.node.ns().sh("nft delete table inet kube-proxy").unwrap();
        daemon.wait_ready(Some(bed.node.ns())).unwrap();
        bed.assert_served(&pod, METADATA);
        assert_eq!(bed.packets_of_pods(), 0, "{}", kind.name);
    }
}

/// A tenant's Service whose endpoint is the metadata service: the packet gets that address only afterwards.
#[test]
fn a_service_whose_endpoint_is_the_service_is_rejected() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        let services: [SocketAddr; 2] = ["10.43.0.1:8000".parse().unwrap(), "[fd00:43::1]:8000".parse().unwrap()];
        bed.node
            .ns()
            .sh(&format!(
                "nft -f - <<'END'\ntable inet kube-proxy {{\nchain nat-prerouting {{\ntype nat hook prerouting priority dstnat - 50;\n\
                 ip daddr 10.43.0.1 tcp dport 8000 dnat ip to {METADATA}\nip6 daddr fd00:43::1 tcp dport 8000 dnat ip6 to {METADATA6}\n\
                 }}\n}}\nEND"
            ))
            .unwrap();
        bed.count_packets_of_pods();
        services.iter().for_each(|service| drop(pod.connect(*service, PATIENCE).unwrap()));
        let _daemon = bed.start(&kind.setup(&bed));
        let before = bed.packets_of_pods();
        for service in services {
            assert_eq!(pod.connect(service, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{} {service}", kind.name);
        }
        assert_eq!(bed.packets_of_pods(), before, "{}", kind.name);
    }
}

/// Network plugins and kube-proxy change rules while the node starts, each holding the lock for a while.
#[test]
fn a_daemon_starts_while_twenty_others_change_rules() {
    const OTHERS: usize = 20;
    const RULES: usize = 10;
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        // The other rules are of the same flavour, if there is one.
        let program = if kind.name == "iptables-legacy" { "iptables-legacy" } else { "iptables-nft" };
        let (setup, namespace) = (kind.setup(&bed), bed.node.ns().path());
        // With a lock file of their own, the machine's lock is not held.
        let (daemon, mut others) = bed
            .node
            .ns()
            .run_with_own_locks(move || {
                let other = |number: usize| -> Child {
                    let rule = format!("{program} -w 60 -t nat -A POSTROUTING -d 198.51.100.{number} -j RETURN");
                    let script = format!("for rule in $(seq {RULES}); do {rule}; done");
                    let mut command = std::process::Command::new("nsenter");
                    command.arg(format!("--net={namespace}")).args(["--", "sh", "-ec", &script]);
                    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
                    command.stdin(Stdio::null()).spawn().unwrap()
                };
                let others: Vec<_> = (1..=OTHERS).map(other).collect();
                (setup.start().unwrap(), others)
            })
            .unwrap();
        daemon.wait_ready(Some(bed.node.ns())).unwrap();
        bed.assert_served(&pod, METADATA);
        assert!(others.iter_mut().all(|other| other.wait().unwrap().success()), "{}", kind.name);
        bed.assert_served(&pod, METADATA);
        bed.assert_served(&pod, METADATA6);
        let set = bed.node.ns().sh(&format!("{program} -w 30 -t nat -S POSTROUTING")).unwrap();
        assert_eq!(set.matches("-A POSTROUTING -d 198.51.100.").count(), OTHERS * RULES, "{}: {set}", kind.name);
    }
}

//! Tests of rules that redirect the node's own metadata requests, as kube-proxy's do for a Service whose external IP is the metadata
//! address: the pin comes before them, and they are reported.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;

use rolegate_lab::node::programs_or_skip;

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, Pod, fetch};
use crate::boot::guard;
use crate::keep::by_hand;
use crate::kinds::{Kind, on_node};

/// The port on which the tenant's pod poses as the metadata service.
const PORT: u16 = 8080;
const PROGRAMS: [&str; 5] = ["nft", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];

/// A way to redirect the node's own requests to a pod, for both families.
struct Redirect {
    name: &'static str,
    /// The flavour of iptables, if it is one of iptables.
    flavour: Option<&'static str>,
    add: String,
    remove: &'static str,
}

/// What kube-proxy does in each of its modes for such a Service, and what others might.
fn redirects(pod: &Pod) -> [Redirect; 4] {
    let (ip, ip6) = (pod.ip, pod.ip6);
    let by_iptables = |flavour: &str| {
        let service = |program: &str, address: &str, target: &str| {
            format!(
                "{program}-{flavour}-restore --noflush -w 30 <<'END'\n*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-EXT-X - [0:0]\n:KUBE-SEP-X - [0:0]\n\
                 -I OUTPUT 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
                 -A KUBE-SERVICES -d {address} -p tcp -m comment --comment \"evil/imds:http external IP\" -m tcp --dport 80 -j KUBE-EXT-X\n\
                 -A KUBE-EXT-X -j KUBE-SEP-X\n-A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination {target}\nCOMMIT\nEND\n"
            )
        };
        let v4 = service("iptables", "169.254.169.254/32", &format!("{ip}:{PORT}"));
        v4 + &service("ip6tables", "fd00:ec2::254/128", &format!("[{ip6}]:{PORT}"))
    };
    let by_nft = |family: &str, kind: &str, address: &str, target: &str| {
        format!(
            "table {family} kube-proxy {{\nmap service-ips {{\ntype {kind} . inet_proto . inet_service : verdict\n}}\n\
             chain endpoint-x {{\nmeta l4proto tcp dnat to {target}\n}}\nchain external-x {{\ngoto endpoint-x\n}}\n\
             chain services {{\n{family} daddr . meta l4proto . th dport vmap @service-ips\n}}\n\
             chain nat-output {{\ntype nat hook output priority -100;\njump services\n}}\n}}\n\
             add element {family} kube-proxy service-ips {{ {address} . tcp . 80 : goto external-x }}\n"
        )
    };
    let of_nft = by_nft("ip", "ipv4_addr", "169.254.169.254", &format!("{ip}:{PORT}"))
        + &by_nft("ip6", "ipv6_addr", "fd00:ec2::254", &format!("[{ip6}]:{PORT}"));
    let redirect = "for family in iptables ip6tables; do
        if [ $family = iptables ]; then to=169.254.169.254; else to=fd00:ec2::254; fi
        $family-nft -w 30 -t nat -I OUTPUT 1 -d $to -p tcp --dport 80 -j REDIRECT --to-ports 8080; done";
    let clean = |flavour: &str| match flavour {
        "nft" => {
            "for family in iptables-nft ip6tables-nft; do $family -w 30 -t nat -D OUTPUT -m comment --comment 'kubernetes service portals' \
             -j KUBE-SERVICES; for chain in KUBE-SERVICES KUBE-EXT-X KUBE-SEP-X; do $family -w 30 -t nat -F $chain; done; done"
        }
        _ => {
            "for family in iptables-legacy ip6tables-legacy; do $family -w 30 -t nat -D OUTPUT -m comment --comment 'kubernetes service \
             portals' -j KUBE-SERVICES; for chain in KUBE-SERVICES KUBE-EXT-X KUBE-SEP-X; do $family -w 30 -t nat -F $chain; done; done"
        }
    };
    [
        Redirect { name: "iptables-nft", flavour: Some("nft"), add: by_iptables("nft"), remove: clean("nft") },
        Redirect { name: "iptables-legacy", flavour: Some("legacy"), add: by_iptables("legacy"), remove: clean("legacy") },
        Redirect {
            name: "nftables",
            flavour: None,
            add: format!("nft -f - <<'END'\n{of_nft}END\n"),
            remove: "nft delete table ip kube-proxy; nft delete table ip6 kube-proxy",
        },
        Redirect {
            name: "REDIRECT",
            flavour: Some("nft"),
            add: redirect.to_owned(),
            remove: "iptables-nft -w 30 -t nat -D OUTPUT -d 169.254.169.254 -p tcp --dport 80 -j REDIRECT --to-ports 8080
                ip6tables-nft -w 30 -t nat -D OUTPUT -d fd00:ec2::254 -p tcp --dport 80 -j REDIRECT --to-ports 8080",
        },
    ]
}

/// Listeners of a tenant: in its pod, and (for REDIRECT) on the node.
struct Tenant([TcpListener; 4]);

impl Tenant {
    fn new(bed: &Bed, pod: &Pod) -> Self {
        let listen = |ns: &rolegate_lab::node::Netns, ip: IpAddr| {
            let listener = ns.tcp_listener(SocketAddr::new(ip, PORT)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let loopback: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        let (node, [v4, v6]) = (bed.node.ns(), loopback);
        Self([listen(pod, pod.ip.into()), listen(pod, pod.ip6.into()), listen(node, v4), listen(node, v6)])
    }

    /// The number of connections that arrived here.
    fn connections(&self) -> usize {
        self.0.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).sum()
    }
}

/// Connects to both metadata addresses as the node's own process, and returns how many connections the tenant got.
fn stolen(bed: &Bed, tenant: &Tenant) -> usize {
    for address in [METADATA, METADATA6] {
        drop(bed.node.ns().connect(address, PATIENCE).unwrap());
    }
    tenant.connections()
}

#[track_caller]
fn assert_own_way(bed: &Bed, tenant: &Tenant, case: &str) {
    assert_eq!(stolen(bed, tenant), 0, "{case}");
    for address in [METADATA, METADATA6] {
        assert_eq!(fetch(bed.node.ns(), address).unwrap().role, rolegate_lab::imds::NODE_ROLE_NAME, "{case}, {address}");
    }
}

/// Whether the pin of this kind comes before such a rule: nftables' before all of them, that of iptables before those in its own
/// set of tables.
fn comes_before(kind: &Kind, redirect: &Redirect) -> bool {
    match kind.name {
        "nft" => true,
        name => redirect.flavour.is_some_and(|flavour| name == format!("iptables-{flavour}")),
    }
}

#[test]
fn no_rule_redirects_the_nodes_own_requests() {
    if !programs_or_skip(&PROGRAMS) {
        return;
    }
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("evil", "veth");
        let tenant = Tenant::new(&bed, &pod);
        for redirect in redirects(&pod) {
            let case = format!("{} before {}", redirect.name, kind.name);
            bed.node.ns().sh(&redirect.add).unwrap();
            assert_eq!(stolen(&bed, &tenant), 2, "{case}: without the pin");
            let booted = guard(&bed, kind.path());
            assert!(booted.status.success(), "{case}: {booted:?}");
            if comes_before(&kind, &redirect) {
                assert_own_way(&bed, &tenant, &case);
            }
            bed.node.ns().sh(redirect.remove).unwrap();
            assert_own_way(&bed, &tenant, &case);
            bed.node.ns().sh(&redirect.add).unwrap();
            // A rule that comes first among those of iptables stays ahead until the guard runs again.
            if kind.name != "nft" {
                assert!(guard(&bed, kind.path()).status.success(), "{case}");
            }
            if comes_before(&kind, &redirect) {
                assert_own_way(&bed, &tenant, &format!("{case}, again"));
            }
            bed.node.ns().sh(redirect.remove).unwrap();
            unguard(&bed, &kind);
        }
    }
}

/// Removes what this kind of backend installed.
fn unguard(bed: &Bed, kind: &Kind) {
    let mut remove = on_node(bed, kind.path(), Path::new(env!("CARGO_BIN_EXE_rolegate")));
    let output = remove.args(["redirect", "remove", &format!("--redirect={}", kind.backend)]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn redirects_of_the_nodes_own_requests_are_reported() {
    if !programs_or_skip(&PROGRAMS) {
        return;
    }
    for kind in Kind::all().into_iter().filter(|kind| kind.name != "iptables-legacy") {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("evil", "veth");
        for redirect in redirects(&pod) {
            let case = format!("{} and {}", redirect.name, kind.name);
            bed.node.ns().sh(&redirect.add).unwrap();
            // With every program of the node.
            let daemon = bed.start(&bed.setup_with_ip().argument(format!("--redirect={}", kind.backend)));
            let line = daemon.wait_for_event("own-requests-redirected").unwrap();
            let found = line["redirects"].as_str().unwrap();
            let names = if redirect.flavour.is_some() {
                ["169.254.169.254", "fd00:ec2::254"]
            } else {
                ["table ip kube-proxy", "table ip6 kube-proxy"]
            };
            assert!(names.iter().all(|name| found.contains(name)), "{case}: {found}");
            assert_eq!(daemon.metric(Some(bed.node.ns()), "rolegate_foreign_redirects").unwrap(), 2.0, "{case}");
            drop(daemon);
            let status = || {
                let output = by_hand(&bed, &["status", &format!("--redirect={}", kind.backend)]);
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let said = status();
            assert!(said.contains("another program redirects the node's own metadata requests"), "{case}: {said}");
            bed.node.ns().sh(redirect.remove).unwrap();
            let said = status();
            assert!(!said.contains("another program redirects"), "{case}: {said}");
            unguard(&bed, &kind);
        }
    }
}

/// What IPVS does for such a Service: the address is one of the node's own.
#[test]
fn an_interface_with_the_metadata_address_is_reported() {
    let Some(bed) = Bed::new() else { return };
    bed.node.ns().sh("ip link add kube-ipvs0 type bridge; ip addr add 169.254.169.254/32 dev kube-ipvs0").unwrap();
    // Pods' packets to the address are for the node itself now, so the self-test fails.
    let daemon = bed.setup_with_ip().argument("--self-test=off").start().unwrap();
    let line = daemon.wait_for_event("own-requests-redirected").unwrap();
    assert!(line["redirects"].as_str().unwrap().contains("kube-ipvs0 of this node has the address 169.254.169.254"), "{line}");
    drop(daemon);
    bed.node.ns().sh("ip link del kube-ipvs0; ip route replace 169.254.169.254/32 dev imds src 10.42.0.1").unwrap();
    let output = by_hand(&bed, &["status"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("pinned to it") && !said.contains("another program redirects"), "{said}");
}

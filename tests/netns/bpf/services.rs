//! Tests of Services with the node's address and the app port, as an external IP: kube-proxy sends connections to the daemon's address
//! to a tenant's pod, unless rolegate's rules come first.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use rolegate_lab::node::{NODE_IP, NODE_IP6, programs_or_skip};

use super::agent::{Answer, By, Connecting, Order};
use super::attacks::DROP_TIMEOUT;
use super::bed::{BpfBed, Client};
use crate::bed::{METADATA, METADATA6, PATIENCE, Pod};
use crate::keep::by_hand;
use crate::kinds::Kind;
use crate::redirects::{PROGRAMS, Redirect, TENANT_PORT, Tenant, without_keep_rules};

/// The daemon's port, which is known before it starts.
const APP_PORT: u16 = 8181;

/// A Service of each mode of kube-proxy.
fn services(pod: &Pod) -> [Redirect; 3] {
    let targets = [("ip", "iptables", NODE_IP.into(), pod.ip.into()), ("ip6", "ip6tables", NODE_IP6.into(), pod.ip6.into())];
    let by_iptables = |flavour: &str| {
        let service = |program: &str, address: IpAddr, target: SocketAddr| {
            let jump = |hook: &str| format!("-I {hook} 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n");
            format!(
                "{program}-{flavour}-restore --noflush -w 30 <<'END'\n*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-EXT-X - [0:0]\n:KUBE-SEP-X - [0:0]\n{}{}\
                 -A KUBE-SERVICES -d {address} -p tcp -m comment --comment \"evil/imds:http external IP\" -m tcp --dport {APP_PORT} -j KUBE-EXT-X\n\
                 -A KUBE-EXT-X -j KUBE-SEP-X\n-A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination {target}\nCOMMIT\nEND\n",
                jump("PREROUTING"),
                jump("OUTPUT"),
            )
        };
        targets
            .map(|(_, program, address, ip): (_, _, IpAddr, IpAddr)| service(program, address, SocketAddr::new(ip, TENANT_PORT)))
            .concat()
    };
    let by_nft = |family: &str, address: IpAddr, target: SocketAddr| {
        let kind = if address.is_ipv4() { "ipv4_addr" } else { "ipv6_addr" };
        format!(
            "table {family} kube-proxy {{\nmap service-ips {{\ntype {kind} . inet_proto . inet_service : verdict\n}}\n\
             chain endpoint-x {{\nmeta l4proto tcp dnat to {target}\n}}\nchain external-x {{\ngoto endpoint-x\n}}\n\
             chain services {{\n{family} daddr . meta l4proto . th dport vmap @service-ips\n}}\n\
             chain nat-prerouting {{\ntype nat hook prerouting priority -100;\njump services\n}}\n\
             chain nat-output {{\ntype nat hook output priority -100;\njump services\n}}\n}}\n\
             add element {family} kube-proxy service-ips {{ {address} . tcp . {APP_PORT} : goto external-x }}\n"
        )
    };
    let of_nft = targets.map(|(family, _, address, ip)| by_nft(family, address, SocketAddr::new(ip, TENANT_PORT))).concat();
    [
        Redirect { name: "iptables-nft", flavour: Some("nft"), add: by_iptables("nft") },
        Redirect { name: "iptables-legacy", flavour: Some("legacy"), add: by_iptables("legacy") },
        Redirect { name: "nftables", flavour: None, add: format!("nft -f - <<'END'\n{of_nft}END\n") },
    ]
}

#[track_caller]
fn assert_served(bed: &BpfBed, clients: &[Client], case: &str) {
    for client in clients {
        for (to, by) in [(METADATA, By::Connect), (METADATA, By::Mapped), (METADATA6, By::Connect)] {
            let case = format!("{case}: {}, {to}, {by:?}", client.role);
            bed.assert_own_role(client, &client.fetch(to, by), &case);
        }
    }
}

#[test]
fn a_service_at_the_daemons_address_takes_no_connection() {
    if !programs_or_skip(&PROGRAMS) {
        return;
    }
    for kind in Kind::all() {
        kind.add_program("conntrack");
        for at in 0..3 {
            let Some(bed) = BpfBed::new() else { return };
            let (evil, clients) = (bed.pod("evil", "veth"), [bed.client("web"), bed.host_network_client("agent")]);
            let tenant = Tenant::new(&evil);
            let service = &services(&evil)[at];
            if !service.comes_after(&kind) {
                continue;
            }
            let case = format!("{} before {}", kind.name, service.name);
            bed.node.ns().sh(&service.add).unwrap();
            // Without the rules, and before the programs, the Service takes a connection.
            let web = clients[0].pod.as_ref().unwrap();
            let mut earlier = web.connect(SocketAddr::new(NODE_IP.into(), APP_PORT), PATIENCE).unwrap();
            let _held = tenant.accept(&case);
            let daemon = bed.start(&bed.setup_bpf().argument(format!("--app-port={APP_PORT}")).env("PATH", kind.path()));
            assert_served(&bed, &clients, &case);
            assert_eq!(tenant.connections(), 0, "{case}");
            // That connection has ended.
            earlier.set_read_timeout(Some(PATIENCE)).unwrap();
            earlier.write_all(b"x").unwrap();
            assert_eq!(earlier.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{case}");
            drop(daemon);

            // Without a daemon, connections are refused, and without the rules, the tenant gets those of pods with a network of their own.
            for to in [METADATA, METADATA6] {
                let open = || clients[0].ask(Order::Open(Connecting { patience: DROP_TIMEOUT, ..Connecting::new(to, By::Connect) }));
                assert!(matches!(&open(), Err(failure) if failure.kind == "ConnectionRefused"), "{case}");
            }
            bed.node.ns().sh(&without_keep_rules(&kind)).unwrap();
            for to in [METADATA, METADATA6] {
                let answer = clients[0].ask(Order::Open(Connecting::new(to, By::Connect)));
                assert!(matches!(answer, Ok(Answer::Open { .. })), "{case}: {answer:?}");
            }
            assert_eq!(tenant.connections(), 2, "{case}: without the rules");
        }
    }
}

#[test]
fn services_at_the_daemons_address_are_reported() {
    if !programs_or_skip(&PROGRAMS) {
        return;
    }
    let Some(bed) = BpfBed::new() else { return };
    let evil = bed.pod("evil", "veth");
    for service in services(&evil) {
        bed.node.ns().sh(&service.add).unwrap();
    }
    // With every program of the node.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let daemon = bed.start(&bed.setup_bpf().argument(format!("--app-port={APP_PORT}")).env("PATH", path));
    let line = daemon.wait_for_event("daemon-connections-redirected").unwrap();
    let found = line["redirects"].as_str().unwrap();
    let programs = ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
    for name in programs.into_iter().chain(["table ip kube-proxy", "table ip6 kube-proxy"]) {
        assert!(found.contains(name), "{name}: {found}");
    }
    assert_eq!(daemon.metric(Some(bed.node.ns()), "rolegate_foreign_redirects").unwrap(), 6.0);
    assert!(daemon.events("own-requests-redirected").is_empty());

    let addresses = [format!("--host-ip={NODE_IP}"), format!("--host-ip={NODE_IP6}")];
    let status = |backend: &str| {
        let output = by_hand(&bed, &["status", &format!("--redirect={backend}"), &addresses[0], &addresses[1], "--app-port=8181"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = status("bpf");
    assert!(said.contains("another program redirects connections to the daemon"), "{said}");
    assert!(said.contains(&format!("{NODE_IP}:{APP_PORT}: connections are pinned")) && !said.contains("differs (nftables)"), "{said}");
    // Only where pods' connections go straight to the daemon.
    let said = status("nftables");
    assert!(!said.contains("another program redirects") && said.contains("differs (nftables)"), "{said}");
}

#[test]
fn the_rules_that_keep_connections_are_repaired() {
    for kind in Kind::all().into_iter().filter(|kind| kind.name != "iptables-legacy") {
        let Some(bed) = BpfBed::new() else { return };
        let client = [bed.client("web")];
        let setup = bed.setup_bpf().argument(format!("--app-port={APP_PORT}")).env("PATH", kind.path());
        let daemon = bed.start(&setup);
        bed.node.ns().sh(&without_keep_rules(&kind)).unwrap();
        let line = daemon.wait_for_event("rules-repaired").unwrap();
        let differences = line["differences"].as_str().unwrap();
        assert!(differences.to_lowercase().replace('-', "_").contains("keep_in"), "{}: {differences}", kind.name);
        assert_served(&bed, &client, kind.name);
    }
}

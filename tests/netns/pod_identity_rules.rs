//! Tests of the packet rules for the addresses of Pod Identity: other programs' rules take no request with a token, none leaves the node,
//! and other machines cannot connect.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use rolegate_lab::daemon::Setup;
use rolegate_lab::node::{NODE_IP, NODE_IP6, Netns, programs_or_skip};

use crate::bed::{Bed, METADATA, PATIENCE, Pod};
use crate::boot::{guard, shipped};
use crate::keep::{by_hand, by_hand_ends};
use crate::kinds::Kind;
use crate::neighbours::neighbour;
use crate::pod_identity::{ADDRESSES, OF_NODE, add_host_network_pod, assert_served, send, token};
use crate::redirects::{PROGRAMS, Redirect, TENANT_PORT, Tenant, without_keep_rules};

/// How long a connection that is dropped is attempted.
const DROP_TIMEOUT: Duration = Duration::from_millis(700);

/// What the CNI plugin portmap does for a pod with the host ports 80 and 8182, by each program.
fn host_ports(pod: &Pod) -> [Redirect; 3] {
    let ips: [IpAddr; 2] = [pod.ip.into(), pod.ip6.into()];
    let by_iptables = |flavour: &str| {
        let family = |(program, ip): (&str, IpAddr)| {
            let to = SocketAddr::new(ip, TENANT_PORT);
            let jump = |hook: &str| format!("-A {hook} -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n");
            let dnat = |port: u16| format!("-A CNI-DN-x -p tcp -m tcp --dport {port} -j DNAT --to-destination {to}\n");
            // The plugin also replaces loopback addresses as the source.
            let masquerade = if ip.is_ipv4() { format!("-A POSTROUTING -s 127.0.0.1/32 -d {ip} -j MASQUERADE\n") } else { String::new() };
            format!(
                "{program}-{flavour}-restore --noflush -w 30 <<'END'\n*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-DN-x - [0:0]\n{}{}\
                 -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: x id: y\" -m multiport --dports 80,8182 -j CNI-DN-x\n\
                 {}{}{masquerade}COMMIT\nEND\n",
                jump("PREROUTING"),
                jump("OUTPUT"),
                dnat(80),
                dnat(8182),
            )
        };
        ["iptables", "ip6tables"].into_iter().zip(ips).map(family).collect::<String>()
    };
    let [ip, ip6] = ips.map(|ip| SocketAddr::new(ip, TENANT_PORT));
    let by_nft = format!(
        "nft -f - <<'END'\ntable inet cni_hostport {{\nchain hostports {{\n\
         meta nfproto ipv4 tcp dport {{ 80, 8182 }} dnat ip to {ip}\nmeta nfproto ipv6 tcp dport {{ 80, 8182 }} dnat ip6 to {ip6}\n}}\n\
         chain prerouting {{\ntype nat hook prerouting priority -100;\nfib daddr type local jump hostports\n}}\n\
         chain output {{\ntype nat hook output priority -100;\nfib daddr type local jump hostports\n}}\n\
         chain masquerading {{\ntype nat hook postrouting priority 100;\nip saddr 127.0.0.1 ip daddr {} masquerade\n}}\n}}\nEND\n",
        pod.ip
    );
    [
        Redirect { name: "iptables-nft", flavour: Some("nft"), add: by_iptables("nft") },
        Redirect { name: "iptables-legacy", flavour: Some("legacy"), add: by_iptables("legacy") },
        Redirect { name: "nftables", flavour: None, add: by_nft },
    ]
}

fn setup(bed: &Bed, kind: &Kind) -> Setup {
    kind.setup(bed).argument("--pod-identity")
}

/// A pod in the node's network, which has a token.
struct HostNetworkPod {
    name: &'static str,
    role: String,
}

impl HostNetworkPod {
    fn new(bed: &Bed) -> Self {
        let name = "agent";
        Self { name, role: add_host_network_pod(bed, name) }
    }
}

/// Every way in which a pod and a pod in the node's network connect.
fn ways<'a>(bed: &'a Bed, pod: &'a Pod) -> [(&'a Netns, &'static str); 5] {
    let ([ipv4, ipv6], node) = (ADDRESSES, bed.node.ns());
    [(pod, ipv4), (pod, ipv6), (node, ipv4), (node, ipv6), (node, OF_NODE)]
}

#[track_caller]
fn assert_all_served(bed: &Bed, pod: &Pod, agent: &HostNetworkPod) {
    for (number, (from, address)) in ways(bed, pod).into_iter().enumerate() {
        match number {
            0 | 1 => assert_served(bed, from, address, &token(bed, &pod.name), pod.role()),
            _ => assert_served(bed, from, address, &token(bed, agent.name), &agent.role),
        }
    }
}

#[track_caller]
fn assert_all_refused(bed: &Bed, pod: &Pod, case: &str) {
    for (from, address) in ways(bed, pod) {
        let error = send(from, address, "a.b.c").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{case}: {address} from {}", from.path());
    }
}

/// Makes the node have the addresses of an earlier daemon, and deliver packets to loopback addresses as kube-proxy and portmap do.
fn prepare(bed: &Bed) {
    let script = "ip address add 169.254.170.23/32 dev lo && ip address add fd00:ec2::23/128 dev lo nodad && \
                  echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet";
    bed.node.ns().sh(script).unwrap();
}

#[test]
fn a_host_port_takes_no_request() {
    if !programs_or_skip(&PROGRAMS) {
        return;
    }
    for kind in Kind::all() {
        kind.add_program("conntrack");
        for at in 0..3 {
            let Some(bed) = Bed::new() else { return };
            let (evil, web, agent) = (bed.pod("evil", "veth"), bed.pod("web", "veth"), HostNetworkPod::new(&bed));
            let (tenant, host_port) = (Tenant::new(&evil), &host_ports(&evil)[at]);
            if !host_port.comes_after(&kind) {
                continue;
            }
            let case = format!("{} before {}", kind.name, host_port.name);
            prepare(&bed);
            bed.node.ns().sh(&host_port.add).unwrap();
            // Without the rules, the host port takes a connection.
            let mut earlier = web.connect(ADDRESSES[0].parse().unwrap(), PATIENCE).unwrap();
            let _held = tenant.accept(&case);
            let daemon = bed.start(&setup(&bed, &kind));
            assert_all_served(&bed, &web, &agent);
            // That connection has ended.
            earlier.set_read_timeout(Some(PATIENCE)).unwrap();
            earlier.write_all(b"x").unwrap();
            assert_eq!(earlier.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{case}");
            // The host port works at other addresses.
            assert!(web.connect((NODE_IP, 80).into(), PATIENCE).is_ok(), "{case}");
            assert_eq!(tenant.connections(), 1, "{case}");

            // The rules outlive the daemon.
            drop(daemon);
            assert_all_refused(&bed, &web, &case);
            assert_eq!(tenant.connections(), 0, "{case}");
            bed.node.ns().sh(&without_keep_rules(&kind)).unwrap();
            for (from, address) in ways(&bed, &web) {
                assert!(from.connect(address.parse().unwrap(), PATIENCE).is_ok(), "{case}: {address}");
            }
            assert_eq!(tenant.connections(), 5, "{case}: without the rules");
        }
    }
}

/// The daemon assigns the addresses before it knows where metadata requests are to be sent.
#[test]
fn the_rules_are_placed_before_the_api_answers() {
    if !programs_or_skip(&PROGRAMS) {
        return;
    }
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (evil, web) = (bed.pod("evil", "veth"), bed.pod("web", "veth"));
        let tenant = Tenant::new(&evil);
        let host_port = host_ports(&evil).into_iter().find(|host_port| host_port.comes_after(&kind)).unwrap();
        bed.node.ns().sh(&host_port.add).unwrap();
        // The node's address is in the API, which does not answer.
        let silent = bed.node.ns().tcp_listener((NODE_IP, 0).into()).unwrap();
        let api = format!("--api-server=http://{}", silent.local_addr().unwrap());
        let setup = bed.setup().argument(format!("--redirect={}", kind.backend)).argument(api).argument("--pod-identity");
        let daemon = setup.argument("--redirect-interval=1s").env("PATH", kind.path()).start().unwrap();
        // The port is open, and nobody accepts yet.
        let connect = || ways(&bed, &web).map(|(from, address)| from.connect(address.parse().unwrap(), PATIENCE).is_ok());
        assert_eq!((connect(), tenant.connections()), ([true; 5], 0), "{}\n{}", kind.name, daemon.log());
        bed.node.ns().sh(&without_keep_rules(&kind)).unwrap();
        daemon.wait_for_event("rules-repaired").unwrap();
        tenant.connections();
        assert_eq!((connect(), tenant.connections()), ([true; 5], 0), "{}\n{}", kind.name, daemon.log());
        assert!(daemon.events("rules-in-place").is_empty(), "{}", daemon.log());
    }
}

/// Another machine behind the node that answers at the addresses, on ports 80 and 443.
struct Impostor(Vec<TcpListener>);

impl Impostor {
    fn new(bed: &Bed) -> Self {
        let imds = bed.node.imds().unwrap();
        imds.sh("ip address add 169.254.170.23/32 dev eth0 && ip address add fd00:ec2::23/128 dev eth0 nodad").unwrap();
        let routes = format!("ip route add 169.254.170.23 dev imds src {NODE_IP} && ip route add fd00:ec2::23 dev imds src {NODE_IP6}");
        bed.node.ns().sh(&routes).unwrap();
        let listeners = targets().map(|address| {
            let listener = imds.tcp_listener(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        Self(listeners.into())
    }

    /// The number of connections that arrived here since the last call.
    fn connections(&self) -> usize {
        self.0.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).sum()
    }
}

fn targets() -> [SocketAddr; 4] {
    let [ipv4, ipv6] = ADDRESSES.map(|address| address.parse::<SocketAddr>().unwrap());
    [ipv4, ipv6, (ipv4.ip(), 443).into(), (ipv6.ip(), 443).into()]
}

#[test]
fn nothing_leaves_the_node_for_a_missing_address() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (web, impostor) = (bed.pod("web", "veth"), Impostor::new(&bed));
        let connect = |from: &Netns| targets().map(|to| from.connect(to, DROP_TIMEOUT).map(drop).map_err(|error| error.kind()));
        assert_eq!((connect(&web), connect(bed.node.ns())), ([Ok(()); 4], [Ok(()); 4]), "{}", kind.name);
        assert_eq!(impostor.connections(), 8, "{}", kind.name);
        // Without Pod Identity, another program may serve these addresses.
        drop(bed.start(&kind.setup(&bed)));
        assert_eq!((connect(&web), connect(bed.node.ns())), ([Ok(()); 4], [Ok(()); 4]), "{}", kind.name);
        assert_eq!(impostor.connections(), 8, "{}", kind.name);

        drop(bed.start(&setup(&bed, &kind)));
        bed.node.ns().sh("ip address del 169.254.170.23/32 dev lo && ip address del fd00:ec2::23/128 dev lo").unwrap();
        let refused = [Err(ErrorKind::ConnectionRefused); 4];
        assert_eq!(connect(&web), refused, "{}", kind.name);
        assert!(connect(bed.node.ns()).iter().all(Result::is_err), "{}", kind.name);
        assert_eq!(impostor.connections(), 0, "{}", kind.name);
        // Each rule is necessary.
        let flush = |chains: &[(&str, &str)]| match kind.name {
            "nft" => chains
                .iter()
                .filter_map(|(_, chain)| Some(format!("nft flush chain inet rolegate {}\n", chain.strip_prefix("nft:")?)))
                .collect(),
            name => {
                let of_iptables = chains.iter().filter(|(_, chain)| !chain.starts_with("nft:"));
                let flush = |(table, chain): &(&str, &str)| {
                    ["iptables", "ip6tables"]
                        .map(|program| format!("{} -w 30 -t {table} -F {chain}\n", name.replacen("iptables", program, 1)))
                        .concat()
                };
                of_iptables.map(flush).collect::<String>()
            }
        };
        bed.node.ns().sh(&flush(&[("", "nft:exit"), ("mangle", "ROLEGATE-EXIT")])).unwrap();
        assert_eq!((connect(&web), connect(bed.node.ns())), (refused, [Ok(()); 4]), "{}", kind.name);
        assert_eq!(impostor.connections(), 4, "{}", kind.name);
        bed.node.ns().sh(&flush(&[("", "nft:guard"), ("filter", "ROLEGATE-GUARD")])).unwrap();
        if kind.backend == "iptables" {
            assert_eq!(connect(&web), [Err(ErrorKind::TimedOut); 4], "{}: the backstop", kind.name);
            bed.node.ns().sh(&flush(&[("security", "ROLEGATE-BACKSTOP")])).unwrap();
        }
        assert_eq!(connect(&web), [Ok(()); 4], "{}", kind.name);
    }
}

/// At boot, the node does not have the addresses yet.
#[test]
fn the_boot_guard_keeps_requests_on_the_node() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (web, impostor) = (bed.pod("web", "veth"), Impostor::new(&bed));
        let connect = |from: &Netns| targets().map(|to| from.connect(to, DROP_TIMEOUT).map(drop).map_err(|error| error.kind()));
        assert!(guard(&bed, kind.path()).status.success(), "{}", kind.name);
        assert_eq!((connect(&web), connect(bed.node.ns())), ([Ok(()); 4], [Ok(()); 4]), "{}", kind.name);
        assert_eq!(impostor.connections(), 8, "{}", kind.name);
        let file = |name: &str| shipped(name).display().to_string();
        let load = match kind.name {
            "nft" => format!("nft -f {}", file("guard-pod-identity.nft")),
            name => {
                let restore = |program: &str, rules: &str| {
                    format!("{}-restore --noflush -w 60 {}", name.replacen("iptables", program, 1), file(rules))
                };
                [restore("iptables", "guard-pod-identity.rules"), restore("ip6tables", "guard-pod-identity6.rules")].join(" && ")
            }
        };
        for _time in 0..2 {
            bed.node.ns().sh(&load).unwrap();
            assert_eq!(connect(&web), [Err(ErrorKind::ConnectionRefused); 4], "{}", kind.name);
            assert!(connect(bed.node.ns()).iter().all(Result::is_err), "{}", kind.name);
            assert_eq!(impostor.connections(), 0, "{}", kind.name);
        }
        let _daemon = bed.start(&setup(&bed, &kind));
        assert_served(&bed, &web, ADDRESSES[0], &token(&bed, "web"), web.role());
        assert_eq!(impostor.connections(), 0, "{}", kind.name);
    }
}

/// The script runs again when nftables or firewalld is reloaded, and on a node whose rules something else left alone.
#[test]
fn the_boot_guard_keeps_the_rules_of_pod_identity() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (web, impostor) = (bed.pod("web", "veth"), Impostor::new(&bed));
        let connect = |from: &Netns| targets().map(|to| from.connect(to, DROP_TIMEOUT).map(drop).map_err(|error| error.kind()));
        let file = |name: &str| shipped(name).display().to_string();
        let load = |name: &str, rules: &str| match kind.name {
            "nft" => format!("nft -f {}", file(&format!("{name}.nft"))),
            flavour => ["iptables", "ip6tables"]
                .map(|program| {
                    let (program, rules) = (
                        flavour.replacen("iptables", program, 1),
                        format!("{name}{}.rules", if program == "iptables" { "" } else { rules }),
                    );
                    format!("{program}-restore --noflush -w 60 {}", file(&rules))
                })
                .join(" && "),
        };
        for name in ["guard-pod-identity", "rolegate-pod-identity"] {
            bed.node.ns().sh(kind.flush).unwrap();
            bed.node.ns().sh(&load(name, "6")).unwrap();
            let mut listed = Vec::new();
            for time in 0..3 {
                if time > 0 {
                    let output = guard(&bed, kind.path());
                    assert!(output.status.success() && output.stderr.is_empty(), "{} {name}: {output:?}", kind.name);
                    listed.push(rules_without_counters(&bed, &kind));
                }
                assert_eq!(connect(&web), [Err(ErrorKind::ConnectionRefused); 4], "{} {name} {time}", kind.name);
                assert!(connect(bed.node.ns()).iter().all(Result::is_err), "{} {name} {time}", kind.name);
                assert_eq!(impostor.connections(), 0, "{} {name} {time}", kind.name);
            }
            assert_eq!(listed[0], listed[1], "{} {name}: nothing is doubled", kind.name);
        }
        // It keeps only what rejects or drops.
        if kind.name == "nft" {
            bed.node.ns().sh("nft insert rule inet rolegate guard ip daddr 169.254.0.0/16 accept").unwrap();
            assert!(guard(&bed, kind.path()).status.success());
            let rules = bed.node.ns().sh("nft list chain inet rolegate guard").unwrap();
            assert!(!rules.contains("169.254.0.0/16") && rules.contains("169.254.170.23"), "{rules}");
        }
        let _daemon = bed.start(&setup(&bed, &kind));
        assert_served(&bed, &web, ADDRESSES[0], &token(&bed, "web"), web.role());
        assert_eq!(impostor.connections(), 0, "{}", kind.name);
    }
}

fn rules_without_counters(bed: &Bed, kind: &Kind) -> String {
    let rules = bed.node.ns().sh(kind.list).unwrap();
    let words = rules.split_whitespace().filter(|word| word.parse::<u64>().is_err());
    words.collect::<Vec<_>>().join(" ")
}

/// Makes this host send packets for the node's loopback address to the node, as an attacker on its network can.
fn route_loopback(from: &Netns) {
    let script = format!(
        "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip address del 127.0.0.1/8 dev lo; \
         ip route add 127.0.0.1/32 via {NODE_IP} dev eth0 onlink"
    );
    from.sh(&script).unwrap();
}

#[test]
fn other_machines_get_nothing() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (web, neighbour, agent) = (bed.pod("web", "veth"), neighbour(&bed), HostNetworkPod::new(&bed));
        prepare(&bed);
        route_loopback(&neighbour);
        let of_node: SocketAddr = OF_NODE.parse().unwrap();
        let listener = bed.node.ns().tcp_listener(of_node).unwrap();
        assert!(neighbour.connect(of_node, PATIENCE).is_ok(), "{}: another machine reaches a loopback address", kind.name);
        drop(listener);
        // Without the names of pods' interfaces, the daemon refuses the token of a pod with another address.
        let daemon = bed.start(&setup(&bed, &kind));
        assert_all_served(&bed, &web, &agent);
        for address in ADDRESSES {
            for name in ["web", agent.name] {
                assert_eq!(send(&neighbour, address, &token(&bed, name)).unwrap().status, 403, "{} {name}", kind.name);
            }
        }
        assert_eq!(neighbour.connect(of_node, DROP_TIMEOUT).unwrap_err().kind(), ErrorKind::TimedOut, "{}", kind.name);
        drop(daemon);
        for interfaces in ["veth+", "!uplink+"] {
            let daemon = bed.start(&setup(&bed, &kind).argument(format!("--host-interface={interfaces}")));
            for address in [ADDRESSES[0], ADDRESSES[1], OF_NODE] {
                let error = neighbour.connect(address.parse().unwrap(), DROP_TIMEOUT).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{} {interfaces} {address}", kind.name);
            }
            assert_all_served(&bed, &web, &agent);
            drop(daemon);
        }
    }
}

#[test]
fn the_rules_are_repaired_and_reported() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (web, agent) = (bed.pod("web", "veth"), HostNetworkPod::new(&bed));
        let interval = if kind.name == "iptables-legacy" { "--redirect-interval=1s" } else { "--redirect-interval=1h" };
        let daemon = bed.start(&setup(&bed, &kind).argument(interval).argument("--app-port=8181"));
        let status = |arguments: &[&str]| {
            let given = ["--app-port=8181", &format!("--host-ip={NODE_IP},{NODE_IP6}")];
            let output = kind.status(&bed, &[&given[..], arguments].concat());
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (code, said) = status(&["--pod-identity"]);
        assert_eq!(code, Some(0), "{}: {said}", kind.name);
        for address in [ADDRESSES[0], ADDRESSES[1], OF_NODE] {
            assert!(said.contains(&format!("{address}: connections are pinned to the daemon")), "{}: {said}", kind.name);
        }
        assert_eq!(status(&[]).0, Some(1), "{}: the rules are not wanted without Pod Identity", kind.name);
        bed.node.ns().sh(&without_keep_rules(&kind)).unwrap();
        let line = daemon.wait_for_event("rules-repaired").unwrap();
        let differences = line["differences"].as_str().unwrap();
        assert!(differences.to_lowercase().replace('-', "_").contains("keep_"), "{}: {differences}", kind.name);
        assert_all_served(&bed, &web, &agent);
    }
}

/// A host port that rolegate's rules defeat is a host port like any other.
#[test]
fn only_redirects_that_come_first_are_reported() {
    if !programs_or_skip(&PROGRAMS) {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let evil = bed.pod("evil", "veth");
    for host_port in host_ports(&evil) {
        bed.node.ns().sh(&host_port.add).unwrap();
    }
    let addresses = [format!("--host-ip={NODE_IP}"), format!("--host-ip={NODE_IP6}")];
    let status = |backend: &str| {
        let arguments = ["status", &format!("--redirect={backend}"), &addresses[0], &addresses[1], "--app-port=8181", "--pod-identity"];
        let output = by_hand(&bed, &arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.lines()
            .filter(|line| line.starts_with("another program redirects connections to the daemon"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(status("nftables"), [""; 0]);
    // The plain programs are of one flavour.
    let ours = if bed.node.ns().sh("iptables --version").unwrap().contains("nf_tables") { "-nft-save" } else { "-legacy-save" };
    let found = status("iptables");
    assert!(found.iter().all(|line| !line.contains(ours)), "{found:?}");
    let other = if ours == "-nft-save" { "tables-legacy-save: -A CNI-" } else { "tables-nft-save: -A CNI-" };
    for theirs in [other, "table inet cni_hostport"] {
        assert!(found.iter().any(|line| line.contains(theirs)), "{theirs}: {found:?}");
    }

    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let setup = bed.setup_with_ip().argument("--pod-identity").argument("--redirect=iptables").env("PATH", path);
    let daemon = bed.start(&setup);
    let line = daemon.wait_for_event("daemon-connections-redirected").unwrap();
    assert!(line["redirects"].as_str().unwrap().contains("cni_hostport"), "{line}");
    drop(daemon);

    let ahead = format!(
        "nft -f - <<'END'\ntable inet ahead {{\nchain first {{\ntype nat hook prerouting priority -120;\n\
         ip daddr 169.254.170.23 tcp dport 80 dnat ip to {}:{TENANT_PORT}\n}}\n}}\nEND",
        evil.ip
    );
    bed.node.ns().sh(&ahead).unwrap();
    let found = status("nftables");
    assert!(found.len() == 1 && found[0].contains("table inet ahead"), "{found:?}");
}

#[test]
fn rules_are_installed_and_removed_by_hand() {
    for kind in Kind::all().into_iter().filter(|kind| kind.name != "iptables-legacy") {
        let Some(bed) = Bed::new() else { return };
        let (web, evil) = (bed.pod("web", "veth"), bed.pod("evil", "veth"));
        let tenant = Tenant::new(&evil);
        prepare(&bed);
        let host_port = host_ports(&evil).into_iter().find(|host_port| host_port.comes_after(&kind)).unwrap();
        bed.node.ns().sh(&host_port.add).unwrap();
        let (redirect, ip) = (format!("--redirect={}", kind.backend), format!("--host-ip={NODE_IP},{NODE_IP6}"));
        for arguments in [&["--guard", "--pod-identity"][..], &["--pod-identity", &ip, "--app-port=8181"]] {
            let arguments = [&["install", redirect.as_str()], arguments].concat();
            assert!(by_hand_ends(&bed, &arguments, 0).contains("the rules are installed\n"));
            assert!(by_hand_ends(&bed, &arguments, 0).contains("the rules are already installed"));
            assert_all_refused(&bed, &web, kind.name);
            assert_eq!(tenant.connections(), 0, "{}", kind.name);
        }
        by_hand_ends(&bed, &["remove", &redirect], 0);
        let rules = bed.node.ns().sh(kind.list).unwrap();
        assert!(!rules.to_lowercase().contains("rolegate"), "{rules}");
    }
}

#[test]
fn without_packet_rules_the_daemon_warns() {
    let Some(bed) = Bed::new() else { return };
    let web = bed.pod("web", "veth");
    let daemon = bed.start(&bed.setup().argument("--redirect=none").argument("--pod-identity"));
    let line = daemon.wait_for_event("pod-identity-not-kept").unwrap();
    for address in [ADDRESSES[0], ADDRESSES[1], OF_NODE] {
        assert!(line["addresses"].as_str().unwrap().contains(address), "{line}");
    }
    assert_served(&bed, &web, ADDRESSES[0], &token(&bed, "web"), web.role());
    bed.assert_not_redirected(&web);
    drop(daemon);
    let daemon = bed.start(&bed.setup_with_ip().argument("--pod-identity"));
    bed.assert_served(&web, METADATA);
    assert!(daemon.events("pod-identity-not-kept").is_empty());
}

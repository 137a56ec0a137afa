#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const LIMIT: Duration = Duration::from_secs(5);
const PORT: u16 = 8181;

/// Returns the peer and local addresses that a listener sees when `client` connects to `target`.
fn seen_by(listener: TcpListener, client: &Netns, target: SocketAddr) -> io::Result<(IpAddr, SocketAddr)> {
    let _client = client.connect(target, LIMIT)?;
    let (accepted, peer) = listener.accept()?;
    Ok((peer.ip(), accepted.local_addr()?))
}

fn interfaces(ns: &Netns) -> String {
    ns.sh("ip -o link | cut -d: -f2").unwrap()
}

/// Returns the namespaces that this process holds open.
fn open_namespaces() -> HashSet<String> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).filter(|link| link.starts_with("net:")).collect()
}

fn identity(ns: &Netns) -> String {
    ns.sh("readlink /proc/self/ns/net").unwrap().trim().to_owned()
}

/// Waits for a condition, and returns whether it became true in time.
fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn a_pod_reaches_the_node_with_its_own_address() {
    if !available_or_skip() {
        return;
    }
    let node = Node::new().unwrap();
    let pods = [node.add_pod("a").unwrap(), node.add_pod("b").unwrap()];
    assert_eq!(pods[0].ip.to_string(), "10.42.0.2");
    assert_eq!(pods[1].ip6.to_string(), "fd00:42::3");
    for pod in &pods {
        for (target, own) in [(IpAddr::from(node.ip()), IpAddr::from(pod.ip)), (node.ip6().into(), pod.ip6.into())] {
            let target = SocketAddr::new(target, PORT);
            let listener = node.ns().tcp_listener(target).unwrap();
            assert_eq!(seen_by(listener, pod, target).unwrap(), (own, target));
        }
    }
}

#[test]
fn pods_of_a_bridge_reach_the_node_the_others_and_the_metadata_service() {
    if !available_or_skip() {
        return;
    }
    let node = Node::with_imds().unwrap();
    let bridge = node.add_bridge("cni0").unwrap();
    assert!(matches!(node.add_bridge("cni1"), Err(NodeError::Address { .. })));
    let pod = |name| node.add_pod_with(PodOptions { name, bridge: Some(&bridge), ..PodOptions::default() }).unwrap();
    let (a, b, beside) = (pod("a"), pod("b"), node.add_pod("beside").unwrap());
    assert_eq!(
        (a.ip.to_string(), b.ip6.to_string(), beside.ip.to_string()),
        ("10.42.128.2".into(), "fd00:42::8003".into(), "10.42.0.2".into())
    );
    let imds = node.imds().unwrap();
    for (server, ips) in [
        (node.ns(), [IpAddr::from(node.ip()), node.ip6().into()]),
        (node.ns(), [bridge.ip.into(), bridge.ip6.into()]),
        (b.ns(), [b.ip.into(), b.ip6.into()]),
        (beside.ns(), [beside.ip.into(), beside.ip6.into()]),
        (imds, [IMDS_IP.into(), IMDS_IP6.into()]),
    ] {
        for (ip, own) in ips.into_iter().zip([IpAddr::from(a.ip), a.ip6.into()]) {
            let target = SocketAddr::new(ip, PORT);
            assert_eq!(seen_by(server.tcp_listener(target).unwrap(), &a, target).unwrap(), (own, target));
        }
    }
    assert!(node.ns().sh("ip -o link show master cni0").unwrap().contains(a.host_interface()));
    drop((a, b));
    assert_eq!(node.ns().sh("ip -o link show master cni0").unwrap(), "");
}

#[test]
fn pods_reach_each_other_through_the_node() {
    if !available_or_skip() {
        return;
    }
    let node = Node::new().unwrap();
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    for (target, own) in [(IpAddr::from(b.ip), IpAddr::from(a.ip)), (b.ip6.into(), a.ip6.into())] {
        let target = SocketAddr::new(target, PORT);
        assert_eq!(seen_by(b.tcp_listener(target).unwrap(), &a, target).unwrap(), (own, target));
    }
}

#[test]
fn without_rules_node_and_pods_reach_the_metadata_service() {
    if !available_or_skip() {
        return;
    }
    let node = Node::with_imds().unwrap();
    let imds = node.imds().unwrap();
    let pod = node.add_pod("a").unwrap();
    for (target, node_ip, pod_ip) in
        [(IpAddr::from(IMDS_IP), IpAddr::from(node.ip()), IpAddr::from(pod.ip)), (IMDS_IP6.into(), node.ip6().into(), pod.ip6.into())]
    {
        let target = SocketAddr::new(target, 80);
        assert_eq!(seen_by(imds.tcp_listener(target).unwrap(), node.ns(), target).unwrap(), (node_ip, target));
        assert_eq!(seen_by(imds.tcp_listener(target).unwrap(), &pod, target).unwrap(), (pod_ip, target));
    }
}

#[test]
fn a_hop_limit_of_one_stops_pods_and_not_the_node() {
    if !available_or_skip() {
        return;
    }
    let node = Node::with_imds().unwrap();
    let imds = node.imds().unwrap();
    let pod = node.add_pod("a").unwrap();
    imds.sh("ip route change default via 10.42.0.1 dev eth0 onlink hoplimit 1").unwrap();
    let target = SocketAddr::new(IMDS_IP.into(), 80);
    let _listener = imds.tcp_listener(target).unwrap();
    assert!(node.ns().connect(target, LIMIT).is_ok());
    assert!(pod.connect(target, Duration::from_millis(300)).is_err());
}

#[test]
fn a_dnat_rule_brings_metadata_traffic_to_the_node() {
    if !available_or_skip() {
        return;
    }
    if find_program("iptables").is_none() {
        return skip("the program `iptables` is not installed");
    }
    let node = Node::with_imds().unwrap();
    let pod = node.add_pod_with(PodOptions { name: "a", interface_prefix: "eni", ..PodOptions::default() }).unwrap();
    assert_eq!(pod.host_interface(), "eni1");
    node.ns()
        .sh("iptables -w 5 -t nat -A PREROUTING -i eni+ -d 169.254.169.254/32 -p tcp --dport 80 \
             -j DNAT --to-destination 10.42.0.1:8181")
        .unwrap();
    let ours = SocketAddr::new(node.ip().into(), PORT);
    let listener = node.ns().tcp_listener(ours).unwrap();
    let imds = SocketAddr::new(IMDS_IP.into(), 80);
    assert_eq!(seen_by(listener, &pod, imds).unwrap(), (pod.ip.into(), ours));
}

#[test]
fn a_dropped_pod_is_gone_and_its_address_is_free() {
    if !available_or_skip() {
        return;
    }
    let node = Node::new().unwrap();
    let target = SocketAddr::new(node.ip().into(), PORT);
    let pod = node.add_pod("first").unwrap();
    let (ip, namespace) = (pod.ip, identity(&pod));
    assert!(interfaces(node.ns()).contains("veth1"));
    assert!(open_namespaces().contains(&namespace));
    let taken = PodOptions { ip: Some(ip), ..PodOptions::default() };
    assert!(matches!(node.add_pod_with(taken), Err(NodeError::Address { .. })));
    assert!(matches!(node.add_pod_with(PodOptions { ip: Some(node.ip()), ..taken }), Err(NodeError::Address { .. })));

    // A socket that was opened inside keeps the namespace alive, but not the pod.
    let listener = node.ns().tcp_listener(target).unwrap();
    let _still_open = pod.connect(target, LIMIT).unwrap();
    drop(pod);
    assert!(!interfaces(node.ns()).contains("veth1"));
    assert!(!open_namespaces().contains(&namespace));

    let second = node.add_pod_with(PodOptions { name: "second", ..taken }).unwrap();
    assert_eq!(second.ip, ip);
    drop(listener.accept().unwrap());
    assert_eq!(seen_by(listener, &second, target).unwrap().0, IpAddr::from(ip));
    let third = node.add_pod("third").unwrap();
    assert_ne!(third.ip, ip);

    let members = [node.ns(), second.ns(), third.ns()];
    let namespaces = members.map(identity);
    // While something runs in them, no other test's namespace can get their numbers.
    let _alive = members.map(|ns| ns.tcp_listener(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap());
    assert!(namespaces.iter().all(|namespace| open_namespaces().contains(namespace)));
    drop((second, third, node));
    let open = open_namespaces();
    assert!(namespaces.iter().all(|namespace| !open.contains(namespace)));
}

#[test]
fn nodes_with_the_same_addresses_live_side_by_side() {
    if !available_or_skip() {
        return;
    }
    let node = || {
        let node = Node::with_imds().unwrap();
        let pods = [node.add_pod("a").unwrap(), node.add_pod("b").unwrap()];
        (node, pods)
    };
    let nodes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(node)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let target = SocketAddr::new(NODE_IP.into(), PORT);
    let listeners = nodes.iter().map(|(node, _)| node.ns().tcp_listener(target).unwrap()).collect::<Vec<_>>();
    for ((_, pods), listener) in nodes.iter().zip(listeners) {
        assert_eq!(seen_by(listener, &pods[1], target).unwrap().0, IpAddr::from(pods[1].ip));
    }
}

#[test]
fn a_script_error_names_the_command_and_the_reason() {
    if !available_or_skip() {
        return;
    }
    let ns = Netns::new("broken").unwrap();
    let error = ns.sh("echo before; ip link show nothing").unwrap_err().to_string();
    assert!(error.contains("broken") && error.contains("ip link show nothing"), "{error}");
    assert!(error.contains("does not exist"), "{error}");
    assert!(ns.enter_hint().contains(&ns.path()));
}

/// Runs one of this test program's ignored tests alone, in a process of its own.
fn helper(program: &str, leading: &[&str], test: &str) -> Command {
    let mut words = leading.iter().copied().chain([program, "--ignored", "--exact", "--nocapture", test]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

#[test]
fn a_killed_process_leaves_nothing() {
    if !available_or_skip() {
        return;
    }
    // The other process connects its namespace to ours by a veth. When its namespace disappears, so does our end.
    let witness = Netns::new("witness").unwrap();
    let program = std::env::current_exe().unwrap();
    let mut child = helper(program.to_str().unwrap(), &[], "node::tests::helper_that_waits_to_be_killed")
        .env("WITNESS", witness.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let tied = eventually(|| interfaces(&witness).contains("tied"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(tied, "the helper did not create the veth");
    assert!(eventually(|| !interfaces(&witness).contains("tied")), "the namespace outlived its process");
}

#[test]
#[ignore = "a helper of another test"]
fn helper_that_waits_to_be_killed() {
    let witness = std::env::var("WITNESS").unwrap();
    let node = Node::with_imds().unwrap();
    let _pod = node.add_pod("a").unwrap();
    node.ns().sh(&format!("ip link add mine type veth peer name tied netns {witness}")).unwrap();
    // Ends by itself if the other test has ended.
    let _ = io::stdin().read(&mut [0]);
}

#[test]
fn a_user_namespace_replaces_root() {
    if !available_or_skip() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become somebody who is not root");
    }
    let Some(setpriv) = find_program("setpriv") else {
        return skip("the program `setpriv` is not installed");
    };
    let nobody = [setpriv.to_str().unwrap(), "--reuid=65534", "--regid=65534", "--clear-groups"];
    let allowed = Command::new(nobody[0]).args(&nobody[1..]).args(["unshare", "--user", "--net", "true"]).output().unwrap();
    if !allowed.status.success() {
        return skip(format!("no user namespaces: {}", String::from_utf8_lossy(&allowed.stderr)));
    }
    // The program may be in a directory that only root can read. Another program copies it: a child that another test starts during
    // the copy would inherit the open file, and a program that is open for writing cannot run (ETXTBSY).
    let copy = std::env::temp_dir().join(format!("rolegate-lab-node-test-{}", std::process::id()));
    assert!(Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status().unwrap().success());
    let output = helper(copy.to_str().unwrap(), &nobody, "node::tests::helper_without_root").output();
    std::fs::remove_file(&copy).unwrap();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "a helper of another test"]
fn helper_without_root() {
    let uid_before = nix::unistd::geteuid();
    if uid_before.is_root() {
        // The second run, in the user namespace.
        assert!(std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("65534"));
    }
    reexec_in_user_namespace_if_needed().unwrap();
    assert!(uid_before.is_root(), "a process without root could create namespaces");
    // `lo` is up.
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    std::net::TcpStream::connect(own.local_addr().unwrap()).unwrap();
    available().unwrap();
    a_pod_reaches_the_node_with_its_own_address();
    without_rules_node_and_pods_reach_the_metadata_service();
    a_dnat_rule_brings_metadata_traffic_to_the_node();
    a_dropped_pod_is_gone_and_its_address_is_free();
}

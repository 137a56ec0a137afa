//! Tests of Pod Identity in real network namespaces: pods reach its addresses, and the addresses come, stay and go with the daemon.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Instant;

use rolegate_lab::daemon::Setup;
use rolegate_lab::kube::{PodBuilder, PodToken, Resource};
use rolegate_lab::node::{Cgroup, Cgroups, NODE_IP, NODE_IP6, Netns, skip};
use rolegate_lab::player::{self, Response};
use serde_json::{Value, json};

use crate::bed::{Bed, METADATA, PATIENCE, Pod, arn};

/// Where pods connect.
pub(crate) const ADDRESSES: [&str; 2] = ["169.254.170.23:80", "[fd00:ec2::23]:80"];
/// Where pods in the node's network connect.
pub(crate) const OF_NODE: &str = "127.0.0.1:8182";

fn setup(bed: &Bed) -> Setup {
    bed.setup_with_ip()
        .argument(format!("--host-ip={NODE_IP6}"))
        .argument("--redirect=nftables")
        .argument("--pod-identity")
        .argument("--backoff-max-elapsed-time=200ms")
}

/// Issues a token for a pod of the API.
pub(crate) fn token(bed: &Bed, name: &str) -> String {
    let stored = bed.api.get(Resource::Pods, Some("team-a"), name).unwrap();
    bed.api.token_issuer().issue(&PodToken::new("team-a", name, stored["metadata"]["uid"].as_str().unwrap()))
}

/// Sends a token as an SDK does, from this network namespace.
pub(crate) fn send(from: &Netns, address: &str, token: &str) -> io::Result<Response> {
    let to: SocketAddr = address.parse().unwrap();
    let host = address.strip_suffix(":80").unwrap_or(address);
    player::request(from.connect(to, PATIENCE)?, "GET", "/v1/credentials", &[("Host", host), ("Authorization", token)])
}

#[track_caller]
pub(crate) fn assert_served(bed: &Bed, from: &Netns, address: &str, token: &str, role: &str) {
    let response = send(from, address, token).unwrap();
    assert_eq!(response.status, 200, "{address}: {}", response.text());
    let document: Value = serde_json::from_slice(&response.body).unwrap();
    bed.assert_issued(document["AccessKeyId"].as_str().unwrap(), role);
}

/// Adds a pod in the node's network, which has a token.
pub(crate) fn add_host_network_pod(bed: &Bed, name: &str) -> String {
    let role = format!("role-of-{name}");
    bed.add_role(&role);
    let mut object = PodBuilder::new("team-a", name).annotation("iam.amazonaws.com/role", &arn(&role)).host_network(true).build();
    let source = json!({ "serviceAccountToken": { "audience": "pods.eks.amazonaws.com", "path": "token" } });
    object["spec"]["volumes"] = json!([{ "name": "token", "projected": { "sources": [source] } }]);
    bed.api.apply(Resource::Pods, object);
    role
}

/// Returns which of the addresses of Pod Identity the node's loopback interface has.
fn addresses(bed: &Bed) -> Vec<IpAddr> {
    let listed: Value = serde_json::from_str(&bed.node.ns().sh("ip -json address show dev lo").unwrap()).unwrap();
    let all = listed[0]["addr_info"].as_array().unwrap().iter();
    let mut found: Vec<IpAddr> = all.filter_map(|info| info["local"].as_str()?.parse().ok()).filter(|ip| expected().contains(ip)).collect();
    found.sort();
    found
}

fn expected() -> Vec<IpAddr> {
    let mut ips: Vec<_> = ADDRESSES.iter().map(|address| address.parse::<SocketAddr>().unwrap().ip()).collect();
    ips.sort();
    ips
}

#[test]
fn pods_of_both_kinds_get_their_roles_and_stolen_tokens_are_refused() {
    let Some(bed) = Bed::new() else { return };
    let pods: [Pod; 2] = [bed.pod("web", "eni"), bed.pod("db", "eni")];
    let roles = ["agent", "exporter"].map(|name| (name, add_host_network_pod(&bed, name)));
    let daemon = bed.start(&setup(&bed));
    for pod in &pods {
        for address in ADDRESSES {
            assert_served(&bed, pod, address, &token(&bed, &pod.name), pod.role());
        }
    }
    for (name, role) in &roles {
        for address in [OF_NODE].iter().chain(&ADDRESSES) {
            assert_served(&bed, bed.node.ns(), address, &token(&bed, name), role);
        }
    }
    // From another pod, from the node, and from a pod with the token of one in the node's network.
    for (from, name) in [(pods[1].ns(), "web"), (bed.node.ns(), "web"), (pods[1].ns(), "agent")] {
        for address in ADDRESSES {
            assert_eq!(send(from, address, &token(&bed, name)).unwrap().status, 403, "{name}\n{}", daemon.log());
        }
    }
    // The port for pods in the node's network is closed to others.
    assert!(pods[0].connect(SocketAddr::new(NODE_IP.into(), 8182), PATIENCE).is_err());
    // The metadata service is served as before, with the same sessions.
    bed.assert_served(&pods[0], METADATA);
}

/// The control groups of pods, as the kubelet creates them.
struct KubePods(Cgroups);

impl KubePods {
    fn new() -> Option<Self> {
        let cgroups = Cgroups::new().inspect_err(|error| skip(format!("no control groups: {error}"))).ok()?;
        Some(Self(cgroups))
    }

    fn argument(&self) -> String {
        format!("--bpf-cgroup={}", self.0.group("kubepods").unwrap().path().display())
    }

    /// The control group of a container of this pod.
    fn of(&self, bed: &Bed, name: &str) -> Cgroup {
        let stored = bed.api.get(Resource::Pods, Some("team-a"), name).unwrap();
        let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
        self.0.group(format!("kubepods/burstable/pod{uid}/{:064x}", 7)).unwrap()
    }

    /// Starts a shell in a control group and the node's network. `REQUEST TOKEN` prints the status line of the response.
    fn shell(bed: &Bed, group: &Cgroup, script: &str) -> Child {
        const REQUEST: &str = r#"REQUEST() {
            exec 3<>/dev/tcp/127.0.0.1/8182 || return
            printf 'GET /v1/credentials HTTP/1.1\r\nHost: 127.0.0.1:8182\r\nAuthorization: %s\r\nConnection: close\r\n\r\n' "$1" >&3
            head -n 1 <&3; exec 3>&-
        }"#;
        let mut command = group.command(bed.node.ns(), "/bin/bash");
        command.arg("-c").arg(format!("{REQUEST}\n{script}")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Sends a token from a control group. Returns the status of the response.
    fn status(bed: &Bed, group: &Cgroup, token: &str) -> String {
        let output = Self::shell(bed, group, &format!("REQUEST {token}")).wait_with_output().unwrap();
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        line.split(' ').nth(1).unwrap_or("none").to_owned()
    }
}

#[test]
fn a_token_of_another_pod_in_the_nodes_network_is_refused() {
    let Some(bed) = Bed::new() else { return };
    let Some(groups) = KubePods::new() else { return };
    for name in ["agent", "exporter"] {
        add_host_network_pod(&bed, name);
    }
    let [agent, exporter] = ["agent", "exporter"].map(|name| groups.of(&bed, name));
    let daemon = bed.start(&setup(&bed).argument(groups.argument()));
    let [of_agent, of_exporter] = ["agent", "exporter"].map(|name| token(&bed, name));
    let status = |group: &Cgroup, token: &str| KubePods::status(&bed, group, token);
    // The daemon may have found the control groups only after its start.
    let deadline = Instant::now() + PATIENCE;
    while status(&exporter, &of_agent) != "403" {
        assert!(Instant::now() < deadline, "{}", daemon.log());
    }
    assert_eq!([status(&agent, &of_agent), status(&exporter, &of_exporter)], ["200", "200"], "{}", daemon.log());
    assert_eq!([status(&exporter, &of_agent), status(&agent, &of_exporter)], ["403", "403"], "{}", daemon.log());
    let refused = daemon.wait_for_log(|line| line["event"] == "service-account-token-refused" && line["pod"] == "exporter").unwrap();
    assert_eq!(refused["reason"], "token-other-pod", "{refused}");
    // A process of a control group within the container's, and one of the node, which may have the token for good reasons.
    let path = exporter.path().strip_prefix(groups.0.root().path()).unwrap().join("nested");
    let nested = groups.0.group(path).unwrap();
    assert_eq!([status(&nested, &of_agent), status(&nested, &of_exporter)], ["403", "200"], "{}", daemon.log());
    let service = groups.0.group("system.slice/kubelet.service").unwrap();
    assert_eq!(status(&service, &of_agent), "200", "{}", daemon.log());
    assert_eq!(send(bed.node.ns(), OF_NODE, &of_agent).unwrap().status, 200, "{}", daemon.log());
}

#[test]
fn a_pod_in_the_nodes_network_uses_up_only_its_own_rate() {
    let Some(bed) = Bed::new() else { return };
    let Some(groups) = KubePods::new() else { return };
    for name in ["agent", "exporter"] {
        add_host_network_pod(&bed, name);
    }
    let [agent, exporter] = ["agent", "exporter"].map(|name| groups.of(&bed, name));
    // With the control groups of pods, and where the daemon does not see them.
    for argument in [Some(groups.argument()), None] {
        let setup = argument.into_iter().fold(setup(&bed).argument("--limits-connection-rate=4"), Setup::argument);
        let daemon = bed.start(&setup);
        let mut flood = KubePods::shell(&bed, &exporter, "while :; do exec 3<>/dev/tcp/127.0.0.1/8182; exec 3>&-; done");
        // The control group of a client that is gone by the time it is accepted is not known.
        let limited = || {
            ["source-rate", "unknown-rate"].map(|reason| {
                let metric = format!(r#"rolegate_connections_refused_total{{reason="{reason}"}}"#);
                daemon.metric(Some(bed.node.ns()), &metric).unwrap_or_default()
            })
        };
        let deadline = Instant::now() + PATIENCE;
        while limited().iter().sum::<f64>() < 20.0 {
            assert!(Instant::now() < deadline, "{}", daemon.log());
        }
        let token = token(&bed, "agent");
        for _ in 0..4 {
            assert_eq!(KubePods::status(&bed, &agent, &token), "200", "{}", daemon.log());
        }
        flood.kill().unwrap();
        flood.wait().unwrap();
    }
}

/// The address of the relative URI.
const RELATIVE: &str = "169.254.170.2:80";

/// Sends a request without a token, with these headers besides the host.
fn ask_without_token(from: &Netns, headers: &[(&str, &str)]) -> Response {
    let host = if headers.iter().any(|(name, _)| *name == "Host") { None } else { Some(("Host", "169.254.170.2")) };
    let headers: Vec<_> = host.into_iter().chain(headers.iter().copied()).collect();
    player::request(from.connect(RELATIVE.parse().unwrap(), PATIENCE).unwrap(), "GET", "/v1/credentials", &headers).unwrap()
}

#[test]
fn pods_get_their_own_roles_at_the_relative_uri_without_a_token() {
    let Some(bed) = Bed::new() else { return };
    let pods: [Pod; 2] = [bed.pod("web", "eni"), bed.pod("db", "eni")];
    add_host_network_pod(&bed, "agent");
    let daemon = bed.start(&setup(&bed).argument("--pod-identity-relative-uri"));
    // The token of another pod changes nothing.
    let stolen = token(&bed, "web");
    for pod in &pods {
        for headers in [&[][..], &[("Authorization", stolen.as_str())]] {
            let response = ask_without_token(pod, headers);
            assert_eq!(response.status, 200, "{}\n{}", response.text(), daemon.log());
            let document: Value = serde_json::from_slice(&response.body).unwrap();
            bed.assert_issued(document["AccessKeyId"].as_str().unwrap(), pod.role());
        }
    }
    let metric = |name: &str| daemon.metric(Some(bed.node.ns()), name).unwrap();
    assert_eq!(metric(r#"rolegate_http_requests_total{code="200",route="relative-uri"}"#), 4.0);
    let report = daemon.get(Some(bed.node.ns()), "/report?format=json").unwrap();
    let report: Value = serde_json::from_slice(&report.body).unwrap();
    let used = |one: &Value| (one["protocol"].as_str().unwrap().to_owned(), one["requests"].as_u64(), one["credentials"].as_u64());
    let used: Vec<_> = report["protocols"].as_array().unwrap().iter().map(used).collect();
    assert_eq!(used, [(); 2].map(|()| ("relative-uri".to_owned(), Some(2), Some(2))));
    // In the node's network, nothing says which pod it is, with or without a token.
    let of_agent = token(&bed, "agent");
    for headers in [&[][..], &[("Authorization", of_agent.as_str())]] {
        assert_eq!(ask_without_token(bed.node.ns(), headers).status, 403);
    }
    assert_eq!(metric(r#"rolegate_denials_total{reason="node-without-token"}"#), 2.0);
    for (header, status) in [
        (("Host", "attacker.example"), 403),
        (("Host", "169.254.170.23"), 403),
        (("X-Forwarded-For", "10.0.0.1"), 403),
        (("Origin", "http://169.254.170.2"), 400),
    ] {
        assert_eq!(ask_without_token(&pods[0], &[header]).status, status, "{header:?}");
    }
    // The other addresses still need a token, and a daemon without the flag removes this one.
    assert_eq!(send(&pods[0], ADDRESSES[0], "").unwrap().status, 400);
    let of_node = || bed.node.ns().sh("ip address show dev lo").unwrap();
    assert!(of_node().contains("169.254.170.2/32"));
    drop(daemon);
    let _daemon = bed.start(&setup(&bed));
    assert!(!of_node().contains("169.254.170.2/32") && of_node().contains("169.254.170.23/32"));
}

#[test]
fn the_addresses_are_kept_and_removed() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "eni");
    assert_eq!(addresses(&bed), Vec::<IpAddr>::new());
    let daemon = bed.start(&setup(&bed));
    assert_eq!(addresses(&bed), expected());
    bed.node.ns().sh("ip address del 169.254.170.23/32 dev lo").unwrap();
    daemon.wait_for_event("pod-identity-addresses-repaired").unwrap();
    assert_eq!(addresses(&bed), expected());
    // Without a daemon, connections are refused at once.
    drop(daemon);
    assert_eq!(addresses(&bed), expected());
    let began = Instant::now();
    assert_eq!(send(&pod, ADDRESSES[0], "a.b.c").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(began.elapsed() < PATIENCE);
    // A daemon without the flag removes them.
    let daemon = bed.start(&bed.setup_with_ip());
    daemon.wait_for_event("pod-identity-addresses-removed").unwrap();
    assert_eq!(addresses(&bed), Vec::<IpAddr>::new());
}

#[test]
fn an_address_that_another_program_has_is_left_alone() {
    let Some(bed) = Bed::new() else { return };
    let script = "ip link add pod-id-link0 type veth peer name pod-id-peer && ip link set pod-id-link0 up && \
                  ip address add 169.254.170.23/32 dev pod-id-link0";
    bed.node.ns().sh(script).unwrap();
    let listener = bed.node.ns().tcp_listener(ADDRESSES[0].parse().unwrap());
    assert!(listener.is_ok(), "{listener:?}");
    let pod = bed.pod("web", "eni");
    let daemon = bed.start(&setup(&bed));
    let line = daemon.wait_for_event("pod-identity-address-in-use").unwrap();
    assert_eq!(line["address"], ADDRESSES[0]);
    // Everything else is served.
    bed.assert_served(&pod, METADATA);
    assert_served(&bed, &pod, ADDRESSES[1], &token(&bed, "web"), pod.role());
    drop(listener);
    daemon.wait_for_log(|line| line["event"] == "pod-identity-listening" && line["address"] == ADDRESSES[0]).unwrap();
    assert_served(&bed, &pod, ADDRESSES[0], &token(&bed, "web"), pod.role());
    assert_eq!(addresses(&bed), expected().into_iter().filter(IpAddr::is_ipv6).collect::<Vec<_>>());
    drop(daemon);
}

//! A node whose pods have control groups, and whose network plugin sends their packets past netfilter.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::NODE_ROLE_NAME;
use rolegate_lab::kube::{PodBuilder, Resource};
use rolegate_lab::node::bpf::{BpfMount, bpf_or_skip};
use rolegate_lab::node::{Cgroup, Cgroups, NODE_IP, NODE_IP6, Netns, PodOptions, find_program, programs_or_skip};
use tempfile::TempDir;

use super::agent::{Agent, Answer, By, Connecting, Failure, Order};
use crate::bed::{Bed, METADATA, PATIENCE, Pod, arn};

/// The traffic class of packets of pods: EF.
const CLASS_OF_PODS: u8 = 46 << 2;
/// The traffic class of packets of the node's own processes: AF11.
const CLASS_OF_NODE: u8 = 10 << 2;
/// Programs of these tests.
const PROGRAMS: [&str; 1] = ["nft"];

/// The node. Fields are dropped in this order: processes before their control groups.
#[derive(Debug)]
pub(super) struct BpfBed {
    cgroups: Cgroups,
    mount: BpfMount,
    /// A directory with the programs that the daemon may run.
    programs: TempDir,
    files: TempDir,
    bed: Bed,
    driver: Driver,
    count: std::cell::Cell<u32>,
}

/// A pod, or a process of the node, that carries out orders.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// The name of its role; for a process of the node, that of the node.
    pub(super) role: String,
    /// The control group of its container.
    pub(super) group: Cgroup,
    /// The pod with a network of its own.
    pub(super) pod: Option<Pod>,
    name: String,
    group_of_pod: Cgroup,
    /// What its frames need.
    next_hop: ([u8; 6], &'static str),
}

/// The number of packets that arrived at the metadata service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packets {
    pub(super) of_pods: u64,
    pub(super) of_node_processes: u64,
}

/// The kubelet's driver, on which the names of control groups depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    Cgroupfs,
    Systemd,
}

impl Deref for BpfBed {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

impl BpfBed {
    /// Creates a bed. Returns `None` and reports why if this machine cannot have one.
    pub(super) fn new() -> Option<BpfBed> {
        BpfBed::with_driver(Driver::Cgroupfs)
    }

    /// Creates a bed with control groups as this driver creates them.
    pub(super) fn with_driver(driver: Driver) -> Option<BpfBed> {
        if !programs_or_skip(&PROGRAMS) || !bpf_or_skip() {
            return None;
        }
        let bed = Bed::new()?;
        let cgroups = Cgroups::new().unwrap();
        let programs = tempfile::tempdir().unwrap();
        symlink(find_program("nft").unwrap(), programs.path().join("nft")).unwrap();
        // Clients send their first bytes in the first segment, and the metadata service accepts them.
        for ns in [bed.node.ns(), bed.node.imds().unwrap()] {
            ns.sh("echo 0x607 >/proc/sys/net/ipv4/tcp_fastopen").unwrap();
        }
        let bed = BpfBed {
            cgroups,
            mount: BpfMount::new().unwrap(),
            programs,
            files: tempfile::tempdir().unwrap(),
            bed,
            driver,
            count: 0.into(),
        };
        bed.count_packets();
        Some(bed)
    }

    /// Returns the root of the control groups.
    pub(super) fn root(&self) -> Cgroup {
        self.cgroups.root()
    }

    /// Returns the control group of all pods.
    pub(super) fn kubepods(&self) -> Cgroup {
        let name = match self.driver {
            Driver::Cgroupfs => "kubepods",
            Driver::Systemd => "kubepods.slice",
        };
        self.cgroups.group(name).unwrap()
    }

    /// Returns the set-up of a daemon in a pod of its own in the node's network.
    pub(super) fn setup_bpf(&self) -> Setup {
        let (_, group) = self.groups("d1e1c0de-0000-4000-8000-000000000001");
        self.setup_bpf_in(&group)
    }

    /// Returns the set-up of a daemon that is a service of the node.
    pub(super) fn setup_bpf_outside(&self) -> Setup {
        self.setup_bpf_in(&self.cgroups.group("system.slice/rolegate.service").unwrap())
    }

    fn setup_bpf_in(&self, group: &Cgroup) -> Setup {
        let words = self.mount.words().into_iter().chain(group.words());
        self.setup_nftables()
            .argument("--redirect=bpf")
            .argument(format!("--bpf-cgroup={}", self.kubepods().path().display()))
            .argument(format!("--bpf-pins={}/rolegate", BpfMount::PATH))
            .argument("--bpf-interfaces=imds")
            .argument("--host-network-pods=serve")
            .by_way_of(words)
    }

    /// Returns the set-up of a daemon without eBPF programs.
    pub(super) fn setup_nftables(&self) -> Setup {
        let setup = self.bed.setup_with_ip().argument(format!("--host-ip={NODE_IP6}")).argument("--redirect=nftables");
        // A pod that is not known is refused soon.
        setup.argument("--backoff-max-elapsed-time=200ms").env("PATH", self.programs.path().to_str().unwrap())
    }

    /// Detaches a program of the daemon, and leaves its pin. `detach` is the compiled program of this name.
    pub(super) fn detach(&self, detach: &str, program: &str) {
        let output = self.mount.command(detach).arg(pin(program)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Removes the pin of a program of the daemon.
    pub(super) fn remove_pin(&self, program: &str) {
        assert!(self.mount.command("rm").arg(pin(program)).status().unwrap().success());
    }

    /// Returns whether a program of the daemon is pinned.
    pub(super) fn has_pin(&self, program: &str) -> bool {
        self.mount.command("test").arg("-e").arg(pin(program)).status().unwrap().success()
    }

    /// Returns the number of an interface of the node.
    pub(super) fn index_of(&self, interface: &str) -> u32 {
        let text = self.bed.node.ns().sh(&format!("ip -o link show {interface}")).unwrap();
        text.split(':').next().unwrap().parse().unwrap()
    }

    /// Starts the daemon, waits until it is ready, and removes all netfilter rules for good.
    pub(super) fn start_bpf(&self) -> Daemon {
        self.start_with(&self.setup_bpf())
    }

    /// Starts this daemon, waits until it is ready, and removes all netfilter rules for good.
    pub(super) fn start_with(&self, setup: &Setup) -> Daemon {
        let daemon = self.bed.start(setup);
        self.remove_netfilter_rules();
        daemon
    }

    /// Removes all netfilter rules, and the program with which the daemon would install them again.
    pub(super) fn remove_netfilter_rules(&self) {
        let _ = std::fs::remove_file(self.programs.path().join("nft"));
        let deadline = Instant::now() + PATIENCE;
        // A repair that is in progress may install them once more.
        loop {
            self.bed.node.ns().sh("nft flush ruleset").unwrap();
            std::thread::sleep(Duration::from_millis(50));
            if self.netfilter_rules().is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{}", self.netfilter_rules());
        }
    }

    /// Lets the daemon run `nft` again, for one that starts.
    pub(super) fn allow_netfilter_rules(&self) {
        let path = self.programs.path().join("nft");
        if !path.exists() {
            symlink(find_program("nft").unwrap(), path).unwrap();
        }
    }

    /// Returns the netfilter rules of the node, of every flavour.
    pub(super) fn netfilter_rules(&self) -> String {
        let legacy = "for program in iptables-legacy-save ip6tables-legacy-save; do\n\
                      ! command -v $program >/dev/null || $program | grep -e '^-A' || :\ndone";
        self.bed.node.ns().sh(&format!("nft list ruleset\n{legacy}")).unwrap()
    }

    /// Adds a pod with a network of its own and a role.
    pub(super) fn client(&self, name: &str) -> Client {
        self.client_with(name, PodOptions::default())
    }

    /// Adds a pod with these options.
    pub(super) fn client_with(&self, name: &str, options: PodOptions<'_>) -> Client {
        let pod = self.bed.pod_with(PodOptions { name, ..options });
        pod.sh("echo 0x5 >/proc/sys/net/ipv4/tcp_fastopen").unwrap();
        self.bed.node.bypass_netfilter(&pod).unwrap();
        let next_hop = (mac(self.bed.node.ns(), pod.host_interface()), "eth0");
        let (group_of_pod, group) = self.groups_of(name);
        let agent = Agent::start(&group, &pod, CLASS_OF_PODS, &self.socket());
        Client { agent, role: pod.role().to_owned(), group, pod: Some(pod), name: name.to_owned(), group_of_pod, next_hop }
    }

    /// Adds a pod in the node's network with a role.
    pub(super) fn host_network_client(&self, name: &str) -> Client {
        let role = format!("role-of-{name}");
        let object = self.host_network_object(name).annotation("iam.amazonaws.com/role", &arn(&role));
        self.bed.add_role(&role);
        self.bed.api.apply(Resource::Pods, object.build());
        self.start_on_node(name, role)
    }

    /// Adds a static pod in the node's network with a role. Its control group has another UID than its object in the API.
    pub(super) fn static_client(&self, name: &str) -> Client {
        const HASH: &str = "6a1f0c5e7b2d4938a0c1e2f3d4b5a697";
        let role = format!("role-of-{name}");
        let object = self.host_network_object(name).owner("Node", "node-a").annotation("iam.amazonaws.com/role", &arn(&role));
        let object = object.annotation("kubernetes.io/config.hash", HASH).annotation("kubernetes.io/config.mirror", HASH);
        self.bed.add_role(&role);
        self.bed.api.apply(Resource::Pods, object.annotation("kubernetes.io/config.source", "file").build());
        self.start_in(name, role, self.groups(HASH))
    }

    /// Adds a pod in the node's network without a role.
    pub(super) fn host_network_client_without_role(&self, name: &str, service_account: &str) -> Client {
        let object = self.host_network_object(name).service_account(service_account);
        self.bed.api.apply(Resource::Pods, object.build());
        self.start_on_node(name, NODE_ROLE_NAME.to_owned())
    }

    fn host_network_object(&self, name: &str) -> PodBuilder {
        PodBuilder::new("team-a", name).host_network(true).host_ip(&NODE_IP.to_string())
    }

    /// Starts a process in the control group of a pod that the API does not know, in the node's network.
    pub(super) fn unknown_host_network_client(&self) -> Client {
        let client = self.host_network_client("ghost");
        self.forget(&client);
        client
    }

    /// Removes the client's pod from the API. Its processes run on.
    pub(super) fn forget(&self, client: &Client) {
        assert!(self.bed.api.delete(Resource::Pods, Some("team-a"), &client.name));
    }

    /// Returns the control group at this path below that of the client's container.
    pub(super) fn below(&self, client: &Client, path: &str) -> Cgroup {
        let own = client.group.path().strip_prefix(self.root().path()).unwrap().join(path);
        self.cgroups.group(own).unwrap()
    }

    fn start_on_node(&self, name: &str, role: String) -> Client {
        self.start_in(name, role, self.groups_of(name))
    }

    fn start_in(&self, name: &str, role: String, (group_of_pod, group): (Cgroup, Cgroup)) -> Client {
        let agent = Agent::start(&group, self.bed.node.ns(), CLASS_OF_PODS, &self.socket());
        Client { agent, role, group, pod: None, name: name.to_owned(), group_of_pod, next_hop: self.next_hop_of_node() }
    }

    /// Starts a process of the node, which is in no pod.
    pub(super) fn node_process(&self) -> Client {
        let group = self.cgroups.group("system.slice/kubelet.service").unwrap();
        let agent = Agent::start(&group, self.bed.node.ns(), CLASS_OF_NODE, &self.socket());
        let next_hop = self.next_hop_of_node();
        Client {
            agent,
            role: NODE_ROLE_NAME.to_owned(),
            group_of_pod: group.clone(),
            group,
            pod: None,
            name: "kubelet".to_owned(),
            next_hop,
        }
    }

    /// Starts a process in the client's control group and another network.
    pub(super) fn process_elsewhere(&self, client: &Client, ns: &Netns) -> Agent {
        Agent::start(&client.group, ns, CLASS_OF_PODS, &self.socket())
    }

    fn next_hop_of_node(&self) -> ([u8; 6], &'static str) {
        (mac(self.bed.node.imds().unwrap(), "eth0"), "imds")
    }

    /// Ends the client's processes, and removes its pod.
    pub(super) fn delete(&self, client: Client) {
        let Client { agent, group_of_pod, pod, name, .. } = client;
        drop(agent);
        group_of_pod.remove().unwrap();
        drop(pod);
        assert!(self.bed.api.delete(Resource::Pods, Some("team-a"), &name));
    }

    /// Creates the control groups of a pod and its container.
    fn groups_of(&self, name: &str) -> (Cgroup, Cgroup) {
        let object = self.bed.api.get(Resource::Pods, Some("team-a"), name).unwrap();
        self.groups(object["metadata"]["uid"].as_str().unwrap())
    }

    fn groups(&self, uid: &str) -> (Cgroup, Cgroup) {
        let number = self.count.replace(self.count.get() + 1);
        let (pod, container) = match self.driver {
            Driver::Cgroupfs => (format!("burstable/pod{uid}"), format!("{number:064x}")),
            Driver::Systemd => (
                format!("kubepods-burstable.slice/kubepods-burstable-pod{}.slice", uid.replace('-', "_")),
                format!("cri-containerd-{number:064x}.scope"),
            ),
        };
        let pod = self.kubepods().path().join(pod);
        (self.cgroups.group(&pod).unwrap(), self.cgroups.group(pod.join(container)).unwrap())
    }

    fn socket(&self) -> PathBuf {
        let number = self.count.replace(self.count.get() + 1);
        self.files.path().join(format!("agent-{number}"))
    }

    /// Returns the path of a file for this test.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Compiles a program of this directory. Returns `None` and reports why if there is no compiler.
    pub(super) fn compile(&self, name: &str) -> Option<String> {
        if !programs_or_skip(&["cc"]) {
            return None;
        }
        let program = self.file(name);
        let source = format!("{}/tests/netns/bpf/{name}.c", env!("CARGO_MANIFEST_DIR"));
        let output = Command::new("cc").args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(program.to_str().unwrap().to_owned())
    }

    /// Makes the metadata service's kernel count packets by who sent them: a pod's address or the class of pods, and the class of
    /// the node's processes. Pods in the node's network have its address.
    fn count_packets(&self) {
        let (pods, node) = (CLASS_OF_PODS >> 2, CLASS_OF_NODE >> 2);
        let rules = format!(
            "nft -f - <<'END'\n\
             table inet senders {{\n\
             chain pods {{\n\
             ip saddr 10.42.0.0/16 ip saddr != {NODE_IP} counter return\n\
             ip6 saddr fd00:42::/64 ip6 saddr != {NODE_IP6} counter return\n\
             ip dscp {pods} counter return\n\
             ip6 dscp {pods} counter return\n\
             }}\n\
             chain node {{\n\
             ip dscp {node} counter\n\
             ip6 dscp {node} counter\n\
             }}\n\
             chain arriving {{\n\
             type filter hook prerouting priority -300\n\
             jump pods\n\
             jump node\n\
             }}\n\
             }}\nEND"
        );
        self.bed.node.imds().unwrap().sh(&rules).unwrap();
    }

    /// Returns the number of packets that have arrived so far.
    pub(super) fn packets(&self) -> Packets {
        let count = |chain: &str, rules: usize| {
            let listed = self.bed.node.imds().unwrap().sh(&format!("nft list chain inet senders {chain}")).unwrap();
            let counts = listed.split("counter packets ").skip(1).map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap());
            let counts: Vec<u64> = counts.collect();
            assert_eq!(counts.len(), rules, "{listed}");
            counts.iter().sum()
        };
        Packets { of_pods: count("pods", 4), of_node_processes: count("node", 2) }
    }

    /// Checks that no packet of a pod has reached the metadata service since `before`, and that netfilter had no part in it.
    #[track_caller]
    pub(super) fn assert_closed_since(&self, before: Packets, case: &str) {
        assert_eq!(self.packets().of_pods - before.of_pods, 0, "{case}: packets of pods reached the metadata service");
        assert_eq!(self.netfilter_rules(), "", "{case}: netfilter rules are back");
    }

    /// Checks that the client gets its own role at the address, with credentials that STS issued for it, and that none of its
    /// packets reaches the metadata service.
    #[track_caller]
    pub(super) fn assert_served_past_netfilter(&self, client: &Client, connecting: Connecting) {
        let before = self.packets();
        let case = format!("{}: {connecting:?}", client.role);
        let answer = client.ask(Order::Fetch(connecting));
        self.assert_own_role(client, &answer, &case);
        self.assert_closed_since(before, &case);
    }

    /// Checks that the answer has credentials of the client's own role.
    #[track_caller]
    pub(super) fn assert_own_role(&self, client: &Client, answer: &Result<Answer, Failure>, case: &str) {
        let Ok(Answer::Fetched { role, access_key_id }) = answer else { panic!("{case}: {answer:?}") };
        assert_eq!(role, &client.role, "{case}");
        self.bed.assert_issued(access_key_id, &client.role);
    }
}

impl Client {
    /// Gives an order, and waits for the answer.
    pub(super) fn ask(&self, order: Order) -> Result<Answer, Failure> {
        self.agent.ask(&order)
    }

    /// Gets credentials over a new connection.
    pub(super) fn fetch(&self, to: SocketAddr, by: By) -> Result<Answer, Failure> {
        self.ask(Order::Fetch(Connecting::new(to, by)))
    }

    /// Gets credentials from the metadata address over a new connection from this port.
    pub(super) fn fetch_from_port(&self, to: SocketAddr, port: u16) -> Result<Answer, Failure> {
        self.ask(Order::Fetch(Connecting { from_port: Some(port), ..Connecting::new(to, By::Connect) }))
    }

    /// Opens a connection to the metadata address, and keeps it.
    pub(super) fn open(&self) -> Result<Answer, Failure> {
        self.ask(Order::Open(Connecting::new(METADATA, By::Connect)))
    }

    /// The process ID of its agent.
    pub(super) fn pid(&self) -> u32 {
        self.agent.pid()
    }

    /// Its own address of this family.
    pub(super) fn address(&self, is_ipv4: bool) -> IpAddr {
        match (&self.pod, is_ipv4) {
            (Some(pod), true) => pod.ip.into(),
            (Some(pod), false) => pod.ip6.into(),
            (None, true) => NODE_IP.into(),
            (None, false) => NODE_IP6.into(),
        }
    }

    /// Where its frames go: the link-layer address of the next hop, and the interface.
    pub(super) fn next_hop(&self) -> ([u8; 6], &'static str) {
        self.next_hop
    }
}

/// Returns the path of the pin that keeps a program attached.
fn pin(program: &str) -> String {
    format!("{}/rolegate/v1/link-{program}", BpfMount::PATH)
}

/// Returns the link-layer address of an interface.
fn mac(ns: &Netns, interface: &str) -> [u8; 6] {
    let listed = ns.sh(&format!("ip -o link show {interface}")).unwrap();
    let text = listed.split_once("link/ether ").unwrap().1.split(' ').next().unwrap();
    let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

//! The CPU time of a connection on each way to the daemon: redirected by netfilter rules, and by eBPF programs.
//!
//! Two nodes, made of otherwise empty network namespaces, have a daemon and a pod each. On one, packets pass netfilter and its rules
//! (`--redirect=nftables`). On the other, the daemon loads the programs (`--redirect=bpf`), and all netfilter rules are removed. The
//! pods take turns: each opens a number of connections, gets its credentials over each, and closes it. The kernel counts the CPU time
//! of the pod's and of the daemon's control group, which includes what the kernel does for their packets. It prints the times, and the
//! ratio of the two ways.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, Resource};
use rolegate_lab::node::bpf::{BpfMount, bpf_or_skip};
use rolegate_lab::node::{Cgroup, Cgroups, IMDS_IP, NODE_IP, Node, PodNs, available_or_skip, find_program, programs_or_skip};
use rolegate_lab::player;
use rolegate_lab::sts::{Role, Sts};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use common::pods::with_role;
use common::world::arn;
use common::{NODE, median};

/// The number of rounds of each way.
const ROUNDS: usize = 11;
/// The number of connections of a round.
const CONNECTIONS: u32 = 1000;
/// The argument with which this program runs as the client in a pod.
const CLIENT: &str = "client-in-a-pod";
const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(IMDS_IP), 80);
const ROLE: &str = "web-role";
/// The parts of a connection's CPU time: of the pod, of the daemon, and of both.
const PARTS: [fn(&[f64; 2]) -> f64; 3] = [|[pod, _]| *pod, |[_, daemon]| *daemon, |[pod, daemon]| pod + daemon];
const UID: &str = "b41d9c3e-3f0e-4b7e-9d58-2f1a7c6e0001";

fn main() {
    if std::env::args().nth(1).as_deref() == Some(CLIENT) {
        return client();
    }
    if !available_or_skip() || !programs_or_skip(&["nft"]) || !bpf_or_skip() {
        println!("the ways to the daemon are not measured");
        return;
    }
    let mut ways = [Way::new("netfilter rules", "nftables"), Way::new("eBPF programs", "bpf")];
    let mut times = [const { Vec::new() }; 2];
    // The first round of each is not counted.
    for round in 0..=ROUNDS {
        for (way, times) in ways.iter_mut().zip(&mut times) {
            let took = way.round();
            if round > 0 {
                times.push(took);
            }
        }
    }
    println!("CPU time for each connection, median of {ROUNDS} rounds of {CONNECTIONS} connections:");
    println!("| | the pod | the daemon | both |\n|---|---|---|---|");
    for (way, times) in ways.iter().zip(&times) {
        let [pod, daemon, both] = PARTS.map(|part| format!("{:.1} µs", median(&times.iter().map(part).collect::<Vec<f64>>())));
        println!("| {} | {pod} | {daemon} | {both} |", way.name);
    }
    // Two rounds that follow each other had about the same load of the machine.
    let [rules, programs] = &times;
    let [pod, daemon, both] = PARTS.map(|part| {
        let mut ratios: Vec<f64> = rules.iter().zip(programs).map(|(rules, programs)| part(programs) / part(rules)).collect();
        ratios.sort_by(f64::total_cmp);
        format!("{:.2} ({:.2} to {:.2})", median(&ratios), ratios[ROUNDS / 4], ratios[ROUNDS - 1 - ROUNDS / 4])
    });
    println!("| eBPF programs / netfilter rules, median (middle half) of the rounds' ratios | {pod} | {daemon} | {both} |");
}

/// Opens connections whenever it is told to, and reports when it is done.
fn client() {
    const PATH: &str = "/latest/meta-data/iam/security-credentials/web-role";
    let ask = |method: &str, path: &str, header: (&str, &str)| {
        let answer = player::request(TcpStream::connect(METADATA).unwrap(), method, path, &[header]).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    };
    let token = ask("PUT", "/latest/api/token", ("X-aws-ec2-metadata-token-ttl-seconds", "21600"));
    println!("ready");
    for _line in std::io::stdin().lines() {
        for _ in 0..CONNECTIONS {
            ask("GET", PATH, ("X-aws-ec2-metadata-token", &token));
        }
        println!("done");
    }
}

/// A node with a daemon and a client in a pod. Fields are dropped in this order.
struct Way {
    name: &'static str,
    client: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
    _daemon: Daemon,
    groups: [Cgroup; 2],
    _pod: PodNs,
    _node: Node,
    _cgroups: Cgroups,
    _mount: BpfMount,
    _programs: TempDir,
    _imds: Imds,
    _runtime: Runtime,
    _api: KubeApi,
    _sts: Sts,
}

impl Way {
    fn new(name: &'static str, backend: &str) -> Way {
        let node = Node::with_imds().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let on_node = || node.ns().tcp_listener((NODE_IP, 0).into()).unwrap();
        let (api, sts) = (KubeApi::start(on_node()).unwrap(), Sts::start(on_node()).unwrap());
        let imds = Imds::start(node.imds().unwrap().tcp_listener(METADATA).unwrap()).unwrap();
        drop(inside);
        let (cgroups, mount, programs) = (Cgroups::new().unwrap(), BpfMount::new().unwrap(), tempfile::tempdir().unwrap());
        symlink(find_program("nft").unwrap(), programs.path().join("nft")).unwrap();
        let group = |path: &str| cgroups.group(path).unwrap();
        let kubepods = group("kubepods");
        let groups = [
            group(&format!("kubepods/burstable/pod{UID}/main")),
            group("kubepods/besteffort/podd1e1c0de-0000-4000-8000-000000000001/rolegate"),
        ];
        let pod = node.add_pod("web").unwrap();
        sts.add_role(Role::new(arn(ROLE)));
        api.apply(Resource::Pods, with_role("shop", "web", pod.ip.into(), &arn(ROLE)).uid(UID).build());
        let setup = Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .inside(node.ns())
            .by_way_of(mount.words().into_iter().chain(groups[1].words()))
            .env("AWS_ENDPOINT_URL_STS", sts.url())
            .env("PATH", programs.path().to_str().unwrap())
            .argument(format!("--node={NODE}"))
            .argument(format!("--api-server={}", api.url()))
            .argument(format!("--host-ip={NODE_IP}"))
            .argument(format!("--redirect={backend}"));
        let is_bpf = backend == "bpf";
        let bpf = [
            format!("--bpf-cgroup={}", kubepods.path().display()),
            format!("--bpf-pins={}/rolegate", BpfMount::PATH),
            "--bpf-interfaces=imds".to_owned(),
        ];
        let setup = if is_bpf { bpf.into_iter().fold(setup, Setup::argument) } else { setup };
        let daemon = setup.start().unwrap();
        daemon.wait_ready(Some(node.ns())).unwrap();
        if is_bpf {
            std::fs::remove_file(programs.path().join("nft")).unwrap();
            node.ns().sh("nft flush ruleset").unwrap();
        }
        let mut command = groups[0].command(&pod, std::env::current_exe().unwrap());
        let mut client = command.arg(CLIENT).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, reports) = (client.stdin.take().unwrap(), BufReader::new(client.stdout.take().unwrap()));
        let mut way = Way {
            name,
            client,
            orders,
            reports,
            _daemon: daemon,
            groups,
            _pod: pod,
            _node: node,
            _cgroups: cgroups,
            _mount: mount,
            _programs: programs,
            _imds: imds,
            _runtime: runtime,
            _api: api,
            _sts: sts,
        };
        way.wait_for("ready");
        way
    }

    fn wait_for(&mut self, report: &str) {
        let mut line = String::new();
        self.reports.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), report, "{:?}", self.client.try_wait());
    }

    /// Opens the connections of one round. Returns the CPU time of each by pod and daemon, in microseconds.
    fn round(&mut self) -> [f64; 2] {
        let before = self.groups.each_ref().map(cpu_time);
        writeln!(self.orders).unwrap();
        self.wait_for("done");
        let after = self.groups.each_ref().map(cpu_time);
        [0, 1].map(|part| (after[part] - before[part]).as_secs_f64() * 1e6 / f64::from(CONNECTIONS))
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn cpu_time(group: &Cgroup) -> Duration {
    let stat = std::fs::read_to_string(group.path().join("cpu.stat")).unwrap();
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
    Duration::from_micros(usage.parse().unwrap())
}

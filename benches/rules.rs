//! How long pods wait for the packet rules: at a start, after the rules were flushed, and after the daemon was killed.
//!
//! Each run has a daemon of its own on a node of its own, made of otherwise empty network namespaces. The times are:
//!
//! - *start to guard*: from the start of the process until it reports that the guard is in place;
//! - *start to ready*: until it is ready: the rules are in place, the self-test has passed, and the pods are known;
//! - *flush to repaired*: from just before all rules are flushed until the daemon reports the repair and a pod is served. The
//!   daemon has run for a while by then, so that it does not pause after an earlier comparison;
//! - *kill to served*: from SIGKILL until a pod gets its credentials from the daemon that is started at once. The time that a
//!   kubelet takes to start a container is not included.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod common;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, Resource};
use rolegate_lab::node::reexec_in_user_namespace_if_needed;
use rolegate_lab::node::{IMDS_IP, IMDS_IP6, NODE_IP, NODE_IP6, Netns, Node, PodNs, available, find_program};
use rolegate_lab::player;
use rolegate_lab::sts::{Role, Sts};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use common::pods::with_role;
use common::world::arn;
use common::{NODE, median, quantile};

/// The number of daemons of each kind. Each run has one more, after its kill.
const RUNS: u32 = 10;
/// The time limit of every step.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The interval at which a condition is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How long a daemon runs undisturbed before its rules are flushed. Each run adds a tenth of a second, so that the flush falls
/// into another part of the interval.
const QUIET: Duration = Duration::from_millis(1500);
const APP_PORT: u16 = 8181;
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9543);
const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(IMDS_IP), 80);
const ROLE: &str = "web-role";

/// How the rules are managed.
struct Kind {
    name: &'static str,
    backend: &'static str,
    /// The flavour of `iptables`.
    flavour: Option<&'static str>,
    interval: &'static str,
    flush: &'static str,
}

const KINDS: [Kind; 3] = [
    Kind { name: "nftables", backend: "nftables", flavour: None, interval: "30s", flush: "nft flush ruleset" },
    Kind { name: "iptables, nft", backend: "iptables", flavour: Some("nft"), interval: "30s", flush: "nft flush ruleset" },
    Kind {
        name: "iptables, legacy, --redirect-interval=1s",
        backend: "iptables",
        flavour: Some("legacy"),
        interval: "1s",
        // One table at a time: if the daemon repairs meanwhile, a chain that is in use could not be deleted.
        flush: r"for program in iptables-legacy-restore ip6tables-legacy-restore; do
               printf '*filter\nCOMMIT\n*security\nCOMMIT\n*nat\nCOMMIT\n' | $program -w 30; done",
    },
];

/// The names of the times, in order.
const TIMES: [&str; 4] = ["start to guard", "start to ready", "flush to repaired", "kill to served"];

fn main() {
    let possible = reexec_in_user_namespace_if_needed().map_err(|error| error.to_string());
    if let Err(why) = possible.and_then(|()| available().map_err(|error| error.to_string())) {
        println!("the packet rules are not measured: there can be no network namespaces here: {why}");
        return;
    }
    println!("median / worst of {RUNS} runs:");
    println!("| | {} |\n|---|---|---|---|---|", TIMES.join(" | "));
    for kind in &KINDS {
        let programs = match kind.programs() {
            Ok(programs) => programs,
            Err(missing) => {
                println!("| {} | not measured: the program `{missing}` is not installed | | | |", kind.name);
                continue;
            }
        };
        let mut times = [const { Vec::new() }; TIMES.len()];
        for run in 0..RUNS {
            let took = World::new().run(kind, &programs, run);
            times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
        }
        println!("| {} | {} |", kind.name, times.map(median_and_worst).join(" | "));
    }
}

fn median_and_worst(times: Vec<Duration>) -> String {
    let text = |time: Duration| {
        if time < Duration::from_secs(1) { format!("{} ms", time.as_millis()) } else { format!("{:.1} s", time.as_secs_f64()) }
    };
    format!("{} / {}", text(median(&times)), text(quantile(&times, 1.0)))
}

impl Kind {
    /// Creates a directory with the programs that the daemon may run, under their plain names; or returns the missing one.
    fn programs(&self) -> Result<TempDir, String> {
        let directory = tempfile::tempdir().unwrap();
        let link = |name: &str, of: String| {
            let program = find_program(&of).ok_or(of)?;
            symlink(program, directory.path().join(name)).unwrap();
            Ok::<(), String>(())
        };
        match self.flavour {
            None => link("nft", "nft".to_owned())?,
            Some(flavour) => {
                for family in ["iptables", "ip6tables"] {
                    for part in ["", "-restore", "-save"] {
                        link(&format!("{family}{part}"), format!("{family}-{flavour}{part}"))?;
                    }
                }
                // The program that flushes the rules.
                find_program("nft").ok_or("nft")?;
            }
        }
        // Without it, a start logs a warning and takes less time than on a node.
        link("conntrack", "conntrack".to_owned())?;
        Ok(directory)
    }
}

/// A node, the services that the daemon on it talks to, and one pod.
struct World {
    node: Node,
    pod: PodNs,
    api: KubeApi,
    sts: Sts,
    _imds: [Imds; 2],
    _runtime: Runtime,
}

impl World {
    fn new() -> World {
        let node = Node::with_imds().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let on_node = || node.ns().tcp_listener((NODE_IP, 0).into()).unwrap();
        let (api, sts) = (KubeApi::start(on_node()).unwrap(), Sts::start(on_node()).unwrap());
        let behind = node.imds().unwrap();
        let imds = [IpAddr::from(IMDS_IP), IMDS_IP6.into()].map(|ip| Imds::start(behind.tcp_listener((ip, 80).into()).unwrap()).unwrap());
        drop(inside);
        let pod = node.add_pod("web").unwrap();
        let arn = arn(ROLE);
        sts.add_role(Role::new(&arn));
        api.apply(Resource::Pods, with_role("shop", "web", pod.ip.into(), &arn).build());
        World { node, pod, api, sts, _imds: imds, _runtime: runtime }
    }

    fn setup(&self, kind: &Kind, programs: &TempDir) -> Setup {
        Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .inside(self.node.ns())
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
            .env("PATH", programs.path().to_str().unwrap())
            .argument(format!("--node={NODE}"))
            .argument(format!("--api-server={}", self.api.url()))
            .argument(format!("--host-ip={NODE_IP},{NODE_IP6}"))
            .argument(format!("--redirect={}", kind.backend))
            .argument(format!("--redirect-interval={}", kind.interval))
            // Instead of free ports as in tests, because a restarted daemon has the same ports.
            .argument(format!("--app-port={APP_PORT}"))
            .argument(format!("--metrics-port={}", METRICS.port()))
    }

    /// Runs one daemon, and the next one after it. Returns the times in the order of [`TIMES`].
    fn run(&self, kind: &Kind, programs: &TempDir, run: u32) -> [Duration; TIMES.len()] {
        let setup = self.setup(kind, programs);
        let began = Instant::now();
        let daemon = setup.spawn().unwrap();
        daemon.wait_for_event("guard-in-place").unwrap();
        let guarded = began.elapsed();
        wait_for(&daemon, || is_ready(self.node.ns()));
        let ready = began.elapsed();
        assert_eq!(role_of(&self.pod).unwrap(), ROLE);

        std::thread::sleep(QUIET + run * Duration::from_millis(100));
        let began = Instant::now();
        self.node.ns().sh(kind.flush).unwrap();
        daemon.wait_for_event("rules-repaired").unwrap();
        // The flush may have been half done when it was noticed.
        wait_for(&daemon, || role_of(&self.pod).is_ok_and(|role| role == ROLE));
        let repaired = began.elapsed();

        let began = Instant::now();
        // Sends SIGKILL, and waits for the end of the process.
        drop(daemon);
        let daemon = setup.spawn().unwrap();
        wait_for(&daemon, || role_of(&self.pod).is_ok_and(|role| role == ROLE));
        [guarded, ready, repaired, began.elapsed()]
    }
}

fn wait_for(daemon: &Daemon, is: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is() {
        assert!(Instant::now() < deadline, "the condition never became true\n{}", daemon.log());
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn is_ready(node: &Netns) -> bool {
    let answer = node.connect(METRICS, TIMEOUT).and_then(|stream| player::request(stream, "GET", "/readyz", &[("Host", "localhost")]));
    answer.is_ok_and(|answer| answer.status == 200)
}

/// Returns the role whose credentials the pod gets, requested as by an SDK.
fn role_of(pod: &Netns) -> io::Result<String> {
    const LIST: &str = "/latest/meta-data/iam/security-credentials/";
    let stream = pod.connect(METADATA, TIMEOUT)?;
    let ask = |method: &str, path: &str, header: (&str, &str)| {
        let answer = player::request(&stream, method, path, &[("Host", "169.254.169.254"), header])?;
        if answer.status == 200 { Ok(answer.text()) } else { Err(io::Error::other(format!("{method} {path}: {}", answer.status))) }
    };
    let token = ask("PUT", "/latest/api/token", ("X-aws-ec2-metadata-token-ttl-seconds", "60"))?;
    let with_token = ("X-aws-ec2-metadata-token", token.as_str());
    let role = ask("GET", LIST, with_token)?;
    ask("GET", &format!("{LIST}{role}"), with_token)?;
    Ok(role)
}

//! What this node's pods cost in memory: the daemon, its watch alone, and kube's reflector of whole pods, in the same run.
//!
//! Every case is a process of its own, and so is the API that they all read from, so that a figure is of one thing alone.
//! `resident` is what the process has when the list is in, `peak` the most that it ever had. Nothing is compared with an
//! earlier run; the goal that is printed at the end is that of the daemon with 10,000 pods. Before that stands what the second
//! witness costs for each pod, counted by the allocator; where that is too much, the program ends with status 1. With `witness` as
//! the only argument, nothing else is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use rolegate::config::{AnnotationKeys, ApiConfig};
use rolegate::metrics::Metrics;
use rolegate::pods::watch::{PodWatch, client};
use rolegate::pods::{Needs, NodeAddresses, pods};
use rolegate::readiness::Readiness;
use rolegate_lab::daemon::Setup;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::sts::Sts;
use tokio::runtime::Runtime;

#[path = "memory/counted.rs"]
mod counted;
#[path = "memory/witness.rs"]
mod witness;

/// Set in a child, to what it is.
const CASE: &str = "ROLEGATE_BENCH_MEMORY_CASE";
const NODE: &str = "node-a";
const PODS: [usize; 3] = [110, 1000, 10_000];
/// Bytes of one pod as JSON.
const POD_SIZE: usize = 12 * 1024;
/// What the daemon may have with the most pods, in MiB.
const GOAL: f64 = 24.0;
const WORKERS: usize = 2;

fn main() -> ExitCode {
    if let Ok(case) = std::env::var(CASE) {
        let words: Vec<&str> = case.split(' ').collect();
        match words.as_slice() {
            ["lab", count, lists] => lab(count.parse().unwrap(), *lists == "pages"),
            ["bare"] => say_memory(&runtime()),
            ["watch", url] => watch(url),
            ["reflector", url, lists] => whole_pods(url, *lists == "pages"),
            ["witness", count, kind] => witness::measure(count.parse().unwrap(), kind),
            _ => panic!("no such case: {case}"),
        }
        return ExitCode::SUCCESS;
    }
    let is_witness_small = witness::report();
    let end = if is_witness_small { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).eq(["witness"]) {
        return end;
    }
    let runtime = runtime();
    let sts = {
        let _inside = runtime.enter();
        Sts::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap()
    };
    println!("MiB, resident / peak{:>14}{:>20}{:>20}", "daemon", "its watch alone", "kube's reflector");
    let bare = Process::start("bare");
    let (empty_lab, none) = start_lab(0, "streamed");
    println!("{:<20}{:>14}{:>20}{:>20}", "no pods", daemon(&none, &sts), watch_case(&none), reflector_case(&none, "streamed"));
    drop(empty_lab);
    let mut worst: f64 = 0.0;
    for count in PODS {
        for lists in ["streamed", "pages"] {
            let (_lab, url) = start_lab(count, lists);
            let daemon = daemon(&url, &sts);
            println!("{:<20}{daemon:>14}{:>20}{:>20}", format!("{count} pods, {lists}"), watch_case(&url), reflector_case(&url, lists));
            if count == PODS[PODS.len() - 1] {
                worst = worst.max(daemon.peak);
            }
        }
    }
    println!("{:<20}{:>14}   (this program with a runtime that does nothing)", "a bare process", bare.memory());
    let verdict = if worst <= GOAL { "met" } else { "MISSED" };
    println!("the goal, {GOAL} MiB at most for the daemon with {} pods: {verdict} with {worst:.1} MiB at its peak", PODS[PODS.len() - 1]);
    end
}

/// Resident memory in MiB: now, and the most that it was.
#[derive(Clone, Copy)]
struct Memory {
    resident: f64,
    peak: f64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{:.1} / {:.1}", self.resident, self.peak))
    }
}

fn memory_of(process: &str) -> Memory {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    Memory { resident: mib("VmRSS:"), peak: mib("VmHWM:") }
}

/// This program again, as a case. It says one line, and ends with its input.
struct Process {
    child: Child,
    line: String,
}

impl Process {
    fn start(case: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.env(CASE, case).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, line: line.trim().to_owned() }
    }

    fn memory(&self) -> Memory {
        let (resident, peak) = self.line.split_once(' ').unwrap();
        Memory { resident: resident.parse().unwrap(), peak: peak.parse().unwrap() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_lab(count: usize, lists: &str) -> (Process, String) {
    let lab = Process::start(&format!("lab {count} {lists}"));
    let url = lab.line.clone();
    (lab, url)
}

fn watch_case(url: &str) -> Memory {
    Process::start(&format!("watch {url}")).memory()
}

fn reflector_case(url: &str, lists: &str) -> Memory {
    Process::start(&format!("reflector {url} {lists}")).memory()
}

/// The real daemon, once it is ready.
fn daemon(url: &str, sts: &Sts) -> Memory {
    let daemon = Setup::new(env!("CARGO_BIN_EXE_rolegate"))
        .argument(format!("--node={NODE}"))
        .argument(format!("--api-server={url}"))
        .argument("--base-role-arn=arn:aws:iam::111122223333:role/")
        .argument("--accept-direct-connections")
        .argument("--metadata-bind-address=127.0.0.1")
        .argument("--metrics-bind-address=127.0.0.1")
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .env("TOKIO_WORKER_THREADS", WORKERS.to_string())
        // As the images set them.
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_TRIM_THRESHOLD_", "131072")
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .start()
        .unwrap();
    daemon.wait_ready(None).unwrap();
    memory_of(&daemon.pid().to_string())
}

fn runtime() -> Runtime {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap()
}

/// Says what this process has, and lives until it is ended.
fn say_memory(_runtime: &Runtime) {
    let Memory { resident, peak } = memory_of("self");
    println!("{resident} {peak}");
    wait_for_end();
}

fn wait_for_end() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// The API with so many pods on the node.
fn lab(count: usize, pages: bool) {
    let runtime = runtime();
    let api = {
        let _inside = runtime.enter();
        KubeApi::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap()
    };
    api.without_streaming_lists(pages);
    for number in 0..count {
        api.apply(Resource::Pods, pod(number));
    }
    println!("{}", api.url());
    wait_for_end();
}

/// A pod of [`POD_SIZE`] bytes: an annotation that kubectl leaves, and environment variables for the rest.
fn pod(number: usize) -> serde_json::Value {
    let ip = format!("10.{}.{}.{}", 1 + (number >> 16), number >> 8 & 255, number & 255);
    let applied = format!("{{\"kind\":\"Pod\",\"spec\":\"{}\"}}", "x".repeat(2000));
    let builder = PodBuilder::new(&format!("team-{}", number % 40), &format!("web-7f9c8d6b5-{number:05}"))
        .node(NODE)
        .ip(&ip)
        .annotation("iam.amazonaws.com/role", &format!("web-role-{}", number % 100))
        .annotation("kubectl.kubernetes.io/last-applied-configuration", &applied);
    let mut pod = builder.build();
    let variable = |number: usize| serde_json::json!({ "name": format!("SETTING_{number:04}"), "value": "y".repeat(100) });
    let mut number = 0;
    while pod.to_string().len() < POD_SIZE {
        pod["spec"]["containers"][0]["env"].as_array_mut().unwrap().push(variable(number));
        number += 1;
    }
    pod
}

/// What the daemon does to know its pods, and nothing else of it.
fn watch(url: &str) {
    let runtime = runtime();
    let _pods = runtime.block_on(async {
        let (writer, pods) = pods();
        let client = client::connect(&ApiConfig { server: Some(url.to_owned()), ..ApiConfig::default() }).await.unwrap();
        let annotation = |name: &str| format!("iam.amazonaws.com/{name}");
        let watch = PodWatch {
            client,
            node: NODE.to_owned(),
            node_addresses: Box::new(NodeAddresses::default),
            now: Box::new(|| rolegate::credentials::Clock::system().now()),
            annotations: AnnotationKeys {
                role: annotation("role"),
                external_id: annotation("external-id"),
                allowed_roles: annotation("allowed-roles"),
            },
            writer,
            pods: pods.clone(),
            needs: Needs::default(),
            metrics: Metrics::new(),
        };
        let readiness = Readiness::default();
        tokio::spawn(watch.run(readiness.step("the list")));
        while !readiness.pending().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pods
    });
    say_memory(&runtime);
}

/// The watch by kube's own means: a store of whole pods.
fn whole_pods(url: &str, pages: bool) {
    let runtime = runtime();
    let _store = runtime.block_on(async {
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let api: kube::Api<Pod> = kube::Api::all(client);
        let fields = format!("spec.nodeName={NODE}");
        let config = watcher::Config::default().fields(&fields).page_size(50);
        let config = if pages { config } else { config.streaming_lists() };
        let (store, writer) = reflector::store();
        let mut events = Box::pin(watcher(api, config).reflect(writer).applied_objects());
        tokio::spawn(async move { while events.next().await.is_some() {} });
        store.wait_until_ready().await.unwrap();
        store
    });
    say_memory(&runtime);
}

//! The memory cost of this node's pods: for the daemon, its watch alone, and kube's reflector of complete pods, in the same
//! run.
//!
//! Every case is a process of its own, and so is the API that they all read from, so that each figure is about one thing.
//! `resident` is the memory of the process once the list is complete, `peak` the most that it ever had. Nothing is compared
//! with an earlier run. The goal that is printed at the end is that of the daemon with 10,000 pods. Before it, the program
//! prints the cost of the second witness for each pod, counted by the allocator; if that is too high, it exits with status 1.
//! With `witness` as the only argument, nothing else is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod common;
#[path = "memory/counted.rs"]
mod counted;
#[path = "memory/witness.rs"]
mod witness;

use std::process::ExitCode;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use rolegate_lab::kube::Resource;
use rolegate_lab::sts::Sts;
use tokio::runtime::Runtime;

use common::process::{self, Again, Memory, wait_for_end};
use common::world::{setup, start_api, start_sts};
use common::{NODE, exit_code, is_witness_only, pods, verdict};

const PODS: [usize; 3] = [110, 1000, 10_000];
/// The memory limit of the daemon with the most pods, in MiB.
const GOAL: f64 = 24.0;
const WORKERS: usize = 2;

fn main() -> ExitCode {
    if let Some(case) = process::case() {
        let words: Vec<&str> = case.split(' ').collect();
        match words.as_slice() {
            ["lab", count, lists] => lab(count.parse().unwrap(), *lists == "pages"),
            ["bare"] => print_memory(&runtime()),
            ["watch", url] => watch(url),
            ["reflector", url, lists] => whole_pods(url, *lists == "pages"),
            ["witness", count, kind] => witness::measure(count.parse().unwrap(), kind),
            _ => panic!("no such case: {case}"),
        }
        return ExitCode::SUCCESS;
    }
    let end = exit_code(witness::report());
    if is_witness_only() {
        return end;
    }
    let runtime = runtime();
    let sts = start_sts(&runtime);
    println!("MiB, resident / peak{:>14}{:>20}{:>20}", "daemon", "its watch alone", "kube's reflector");
    let bare = Again::start("bare");
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
                worst = worst.max(daemon.peak_mib());
            }
        }
    }
    println!("{:<20}{:>14}   (this program with a runtime that does nothing)", "a bare process", printed_memory(&bare));
    let (most, verdict) = (PODS[PODS.len() - 1], verdict(worst <= GOAL));
    println!("the goal, {GOAL} MiB at most for the daemon with {most} pods: {verdict} with {worst:.1} MiB at its peak");
    end
}

/// Returns the memory that a process printed in its first line.
fn printed_memory(process: &Again) -> Memory {
    let (resident, peak) = process.line.split_once(' ').unwrap();
    Memory { resident: resident.parse().unwrap(), peak: peak.parse().unwrap() }
}

fn start_lab(count: usize, lists: &str) -> (Again, String) {
    let lab = Again::start(&format!("lab {count} {lists}"));
    let url = lab.line.clone();
    (lab, url)
}

fn watch_case(url: &str) -> Memory {
    printed_memory(&Again::start(&format!("watch {url}")))
}

fn reflector_case(url: &str, lists: &str) -> Memory {
    printed_memory(&Again::start(&format!("reflector {url} {lists}")))
}

/// Measures the real daemon, once it is ready.
fn daemon(url: &str, sts: &Sts) -> Memory {
    let daemon = setup(url, sts)
        .env("TOKIO_WORKER_THREADS", WORKERS.to_string())
        // As the images set it.
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_TRIM_THRESHOLD_", "131072")
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .start()
        .unwrap();
    daemon.wait_ready(None).unwrap();
    Memory::of(&daemon.pid().to_string())
}

fn runtime() -> Runtime {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap()
}

/// Prints the memory of this process, which runs until it is ended.
fn print_memory(_runtime: &Runtime) {
    let Memory { resident, peak } = Memory::of("self");
    println!("{resident} {peak}");
    wait_for_end();
}

/// Runs the API with this many pods on the node.
fn lab(count: usize, pages: bool) {
    let runtime = runtime();
    let api = start_api(&runtime);
    api.without_streaming_lists(pages);
    for number in 0..count {
        api.apply(Resource::Pods, pods::large(number));
    }
    println!("{}", api.url());
    wait_for_end();
}

/// Runs only the part of the daemon that learns its pods.
fn watch(url: &str) {
    let runtime = runtime();
    let _watched = runtime.block_on(pods::watch(url));
    print_memory(&runtime);
}

/// Runs the watch with kube's own tools: a store of complete pods.
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
    print_memory(&runtime);
}

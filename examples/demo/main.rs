//! All of rolegate on one machine, without a cluster and without AWS: `make demo`.
//!
//! The demonstration starts the lab (a fake Kubernetes API, STS and EC2 metadata service, and pods made of network namespaces)
//! and the real daemon. It shows what the daemon is for step by step, checks every statement, and then keeps running for you to
//! try until Ctrl-C.
//!
//! `DEMO_EXIT=1` ends it after the story, with the exit code 0 if all checks passed. `DEMO_LOOPBACK=1` runs it without network
//! namespaces, which is also the default if they are not possible.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demonstration talks to the person in front of it")]

mod ask;
mod stage;
mod steps;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use stage::{Cast, Failure, Ground, Stage};
use story::Story;

/// The exit code that a shell reports for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    // Before there are threads, because it may replace the process.
    let ground = Ground::choose();
    let outcome = tokio::runtime::Runtime::new().map_err(Failure::from).and_then(|runtime| runtime.block_on(run(ground)));
    outcome.unwrap_or_else(|failure| {
        eprintln!("demo: {failure}");
        ExitCode::FAILURE
    })
}

async fn run(ground: Ground) -> Result<ExitCode, Failure> {
    let daemon = daemon_program()?;
    let stop = stop_token()?;
    let mut story = Story::new();
    introduce(&mut story, &ground);
    let (mut stage, cast) = Stage::set(ground, &daemon)?;
    for step in steps::of(&stage) {
        if stop.is_cancelled() {
            println!("\nInterrupted; everything is removed.");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        if let Err(failure) = step(&mut story, &mut stage, &cast) {
            story.check(false, &format!("the step runs: {failure}"));
            if stage.daemon().is_err() {
                break;
            }
        }
    }
    story.end();
    if std::env::var_os("DEMO_EXIT").is_none_or(|value| value != "1") {
        invite(&story, &stage, &cast);
        stop.cancelled().await;
        println!("\nEverything is removed.");
    }
    Ok(if story.went_as_told() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the path of the daemon, which is built into the parent of the examples' directory.
fn daemon_program() -> Result<PathBuf, Failure> {
    let here = std::env::current_exe()?;
    let program = here.parent().and_then(|examples| examples.parent()).map(|target| target.join("rolegate"));
    program.filter(|program| program.is_file()).ok_or_else(|| {
        format!("there is no rolegate program beside {}: run `cargo build --bins` first, or `make demo`", here.display()).into()
    })
}

/// Returns a token that is cancelled by Ctrl-C and other termination signals.
fn stop_token() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let (mut signal, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            signal.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

fn introduce(story: &mut Story, ground: &Ground) {
    story.heading(
        "rolegate: each pod gets its own IAM role, never the node's",
        "On EC2, AWS SDKs request credentials from the metadata address 169.254.169.254, and get those of the instance: here, of the \
         Kubernetes node, for every pod that runs on it. rolegate intercepts these requests, identifies the pod, and serves \
         credentials of the role that the pod's annotation names.",
    );
    println!();
    match ground {
        Ground::Namespaces(_) => story.text(
            "The daemon is the real program. The node and its pods are network namespaces on this machine, with the packet rules \
             (iptables) that the daemon installs. The Kubernetes API, STS and the metadata service are fakes. The namespaces have no \
             route to the outside: nothing reaches AWS or your network.",
        ),
        Ground::Loopback(why) => {
            story.text(&format!("Without network namespaces ({why})."));
            story.text(
                "The daemon is the real program; the Kubernetes API, STS and the metadata service are fakes on 127.0.0.1. The pods \
                 are the addresses 127.0.0.2, 127.0.0.3, ..., and they connect to the daemon's port themselves \
                 (--accept-direct-connections). There are no packet rules, so this shows what the daemon answers, but not that pods \
                 cannot reach the real metadata service.",
            );
        }
    }
    println!("\nYou can repeat the lines that begin with $ in another terminal. Only the first characters of secrets are shown.");
}

/// Prints commands to try.
fn invite(story: &Story, stage: &Stage, cast: &Cast) {
    println!("\nEverything is still running; try it. To run a command in each place:\n");
    let Cast { web, db, plain, typo, stranger } = cast;
    for pod in [web, db, plain, typo, stranger] {
        println!("  {:<12} {:<10} {} ...", pod.name, pod.ip, pod.curl());
    }
    if stage.has_namespaces() {
        println!("  {:<12} {:<10} {} ...", "the node", rolegate_lab::node::NODE_IP, stage.enter_node());
    }
    let on_the_node = if stage.has_namespaces() { ", on the node" } else { "" };
    println!("\n  metadata     http://{}/latest/", ask::authority(stage.metadata));
    println!("  metrics      {}{on_the_node}", stage.metrics_url());
    println!("  log          {}\n", stage.log.display());
    story.text("Press Ctrl-C to stop and to remove everything.");
}

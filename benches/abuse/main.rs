//! What one pod can do to another: the daemon is attacked, and the credential requests of an uninvolved pod are checked and
//! timed.
//!
//! Each attack runs for ten seconds against the real daemon with its default limits. Attacks that need many sockets or many
//! requests run in a process of their own. Meanwhile the victim does what an SDK does, 50 times a second, whether or not the
//! previous sequences have finished: token, role list, credentials. Absolute figures depend on the machine, which also runs the
//! attack; compare them with the row without an attack. The exit status is 1 if the victim got a wrong answer or none, if an
//! attacker got the credentials of another role, or if the 99th percentile of the victim's requests is 50 ms or more.
//!
//! Words after `--` select attacks by their names: `cargo bench --bench abuse -- fat-pod burst`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod attacker;
#[path = "../common/mod.rs"]
mod common;
mod floods;
mod http;
mod moves;
mod victim;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use world::{Outcome, World};

/// The upper limit of the 99th percentile of the victim's requests.
const GOAL: Duration = Duration::from_millis(50);

/// Names and titles of the attacks.
const ATTACKS: [(&str, &str); 12] = [
    ("idle", "1,000 idle sockets"),
    ("slow", "1,000 slow heads, a byte a second"),
    ("connect", "10,000 new connections a second"),
    ("pipeline", "200 pipelined requests at a time, 128 connections"),
    ("addresses", "connections from 1,100 addresses that no pod has"),
    ("metrics", "8 connections that ask for the metrics"),
    ("annotations", "its session name changed 45 times a second, asking all the time"),
    ("fat-pod", "itself a pod of 8.7 MB, changed twice a second"),
    ("api-outage", "asking from the address of a deleted pod while the API is down"),
    ("other-role", "asking while STS answers for the victim's role instead of its own"),
    ("burst", "200 connections at once, every second, each asking for credentials"),
    ("crowd", "220 pods of one role start at once, STS takes 150 ms"),
];

fn main() -> ExitCode {
    if let Some(words) = common::process::case() {
        attacker::run(&words);
        return ExitCode::SUCCESS;
    }
    let selected = common::selected();
    let is_selected = |name: &str| selected.is_empty() || selected.iter().any(|word| word == name);
    let world = World::start();
    println!("{}\n", world.time_of_metrics());
    println!(
        "| attack | requests | p50 | p99 | longest | whole sequence, p99 | p99, times quiet | wrong | memory before, peak, after | attacker |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let quiet = world.measure(None);
    print_row("none", &quiet, &quiet);
    let (mut worst, mut wrong) = (quiet.requests.quantile(0.99), quiet.wrong.clone());
    for (name, title) in ATTACKS.into_iter().filter(|(name, _)| is_selected(name)) {
        let outcome = world.measure(Some(name));
        print_row(title, &outcome, &quiet);
        worst = worst.max(outcome.requests.quantile(0.99));
        wrong.extend(outcome.wrong);
    }
    for what in wrong.iter().take(20) {
        println!("wrong: {what}");
    }
    let verdict = common::verdict(worst < GOAL);
    println!("\n{} wrong answers; worst p99 {}; the goal, below {}: {verdict}", wrong.len(), millis(worst), millis(GOAL));
    common::exit_code(wrong.is_empty() && worst < GOAL)
}

fn print_row(title: &str, outcome: &Outcome, quiet: &Outcome) {
    let p99 = outcome.requests.quantile(0.99);
    let [before, peak, after] = outcome.memory.map(|kib| kib / 1024);
    println!(
        "| {title} | {} | {} | {} | {} | {} | {:.1} | {} | {before}, {peak}, {after} MiB | {} |",
        outcome.requests.count(),
        millis(outcome.requests.quantile(0.5)),
        millis(p99),
        millis(outcome.requests.quantile(1.0)),
        millis(outcome.sequences.quantile(0.99)),
        p99.as_secs_f64() / quiet.requests.quantile(0.99).as_secs_f64(),
        outcome.wrong.len(),
        outcome.attacker,
    );
}

fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

//! A fleet of nodes in virtual time: the daemon's own cache, gate and refresh on each of them, before one STS with the quota of
//! an account, through a cold start, calm, churn, a rolling restart, and an hour in which STS throttles.
//!
//!     cargo run -p rolegate-lab --release --example fleet            the whole fleet
//!     cargo run -p rolegate-lab --release --example fleet -- 500     a part of it, with its part of the quota
//!
//! What it does not have: the network, HTTP, and the Kubernetes API. It ends with status 1 where a goal is missed.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a report")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "numbers of pods and of seconds")]

use std::process::ExitCode;
use std::time::Duration;

mod chance;
mod fleet;
mod others;
mod sts;

use fleet::{Fleet, NODES, PODS, Phase, QUOTA, ROLES, window};
use others::{COLD, HOUR, Way};

/// The calls of the throttled hour, at most, as a multiple of the calm hour's.
const MOST_OFFERED: f64 = 1.5;

/// All phases, in their order.
struct Report {
    phases: Vec<Phase>,
    quota: f64,
    window: usize,
    need: f64,
}

fn main() -> ExitCode {
    let nodes = std::env::args().nth(1).and_then(|nodes| nodes.parse().ok()).unwrap_or(NODES);
    let quota = QUOTA * nodes as f64 / NODES as f64;
    println!("{nodes} nodes with {PODS} pods each, of {ROLES} roles; a session for each pod; a quota of {quota:.1} calls a second");
    if nodes != NODES {
        println!(
            "(a part of {NODES} nodes, with its part of the {QUOTA:.0} calls a second of an account and region; the peak is over {} seconds, in which it does what the whole does in one)",
            window(nodes)
        );
    }
    let report = run(nodes, quota);
    let missed = report.missed();
    compare(nodes, &report);
    for goal in &missed {
        println!("MISSED: {goal}");
    }
    if missed.is_empty() {
        println!(
            "The goals are met: no phase goes over the quota, no pod is ever without credentials, and in the throttled hour there are at most {MOST_OFFERED} times the calls of a calm one."
        );
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the fleet through all of it.
fn run(nodes: usize, quota: f64) -> Report {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    #[expect(clippy::expect_used, reason = "nothing runs without it")]
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let (mut fleet, window) = (Fleet::new(nodes, quota), window(nodes));
        heads();
        fleet.boot();
        let mut phases = vec![shown(fleet.phase("cold start", COLD).await, window)];
        phases.push(shown(fleet.phase("settling", HOUR).await, window));
        phases.push(shown(fleet.phase("calm", HOUR).await, window));
        let need = phases[2].mean();
        phases.push(shown(fleet.churn("churn of 10% an hour", HOUR).await, window));
        phases.push(shown(fleet.restart("rolling restart in 20 min", HOUR / 3, HOUR / 2).await, window));
        phases.push(shown(fleet.phase("settling", HOUR).await, window));
        fleet.set_quota(need / 2.0);
        phases.push(shown(fleet.phase("throttled to half of the need", HOUR).await, window));
        fleet.set_quota(quota);
        phases.push(shown(fleet.phase("after it", HOUR / 4).await, window));
        Report { phases, quota, window, need }
    })
}

fn heads() {
    println!(
        "\n{:<30} {:>6} {:>8} {:>7} {:>7} {:>10} {:>9} {:>12} {:>9}",
        "", "min", "quota/s", "peak/s", "mean/s", "throttled", "requests", "waited > 1 s", "without"
    );
}

fn shown(phase: Phase, window: usize) -> Phase {
    println!(
        "{:<30} {:>6} {:>8.1} {:>7.1} {:>7.1} {:>10} {:>9} {:>12} {:>9}",
        phase.name,
        phase.lasted.as_secs() / 60,
        phase.quota,
        phase.calls.peak(window),
        phase.mean(),
        phase.calls.throttled(),
        phase.met.asks,
        phase.met.waited.len(),
        phase.met.without.len(),
    );
    phase
}

impl Report {
    fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name.starts_with(name))
    }

    /// The goals that were not reached.
    fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut goal = |is_met: bool, text: String| {
            if !is_met {
                missed.push(text);
            }
        };
        for phase in &self.phases {
            let (name, peak) = (phase.name, phase.calls.peak(self.window));
            goal(peak < self.quota, format!("{name}: {peak:.1} calls in a second, the quota of the account is {:.1}", self.quota));
        }
        let offered = self.phase("throttled").map_or(f64::MAX, Phase::mean) / self.need;
        goal(offered <= MOST_OFFERED, format!("throttled: {offered:.2} times the calls of a calm hour, {MOST_OFFERED} are the most"));
        for phase in &self.phases {
            let without = phase.met.without.len();
            goal(without == 0, format!("{}: {without} pods were without credentials", phase.name));
        }
        let waited = self.phase("throttled").map_or(usize::MAX, |phase| phase.met.waited.len());
        goal(waited == 0, format!("throttled: {waited} pods waited for more than a second"));
        missed
    }
}

/// The pods with kube2iam, and with one call for each request.
fn compare(nodes: usize, report: &Report) {
    println!("\nbeside others, with the same pods, quota and throttled hour ({:.1} calls a second):", report.need / 2.0);
    println!(
        "{:<30} {:>12} {:>12} {:>14} {:>14} {:>14}",
        "", "cold peak/s", "calm mean/s", "cold: without", "hour: calls/s", "hour: without"
    );
    let row = |name: &str, cold: f64, calm: f64, cold_without: usize, hour: f64, without: usize| {
        println!("{name:<30} {cold:>12.1} {calm:>12.1} {cold_without:>14} {hour:>14.1} {without:>14}");
    };
    if let (Some(cold), Some(hour)) = (report.phase("cold start"), report.phase("throttled")) {
        row("rolegate", cold.calls.peak(report.window), report.need, cold.met.without.len(), hour.mean(), hour.met.without.len());
    }
    for (name, way) in [("kube2iam's way", Way::Kube2iam), ("one call per request", Way::CallPerRequest)] {
        let seen = others::simulate(way, nodes, report.quota, report.need / 2.0);
        let an_hour = |calls: &sts::Calls| calls.total() as f64 / Duration::as_secs_f64(&HOUR);
        row(
            name,
            seen.cold.peak(report.window),
            an_hour(&seen.steady),
            seen.cold_without,
            an_hour(&seen.throttled),
            seen.throttled_without,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundredth_of_the_fleet_reaches_its_goals() {
        let report = run(50, 6.0);
        assert_eq!(report.missed(), Vec::<String>::new());
    }
}

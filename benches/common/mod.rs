//! Code that the benchmarks share: arguments and verdicts, statistics, processes, and a node with its pods.

#![allow(dead_code, reason = "each benchmark is a program of its own and uses a part of this")]

pub(crate) mod pods;
pub(crate) mod process;
pub(crate) mod serve;
pub(crate) mod world;

use std::process::ExitCode;

pub(crate) const NODE: &str = "node-a";
/// The ARN of the node's own session.
pub(crate) const CALLER: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c";
/// The prefix of every role's ARN (`--base-role-arn`).
pub(crate) const BASE: &str = "arn:aws:iam::111122223333:role/";

/// Returns the program's arguments that are not flags, which select what is measured.
pub(crate) fn selected() -> Vec<String> {
    std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect()
}

/// Returns whether only the second witness is measured.
pub(crate) fn is_witness_only() -> bool {
    selected() == ["witness"]
}

/// Returns the word that says whether a goal was reached.
pub(crate) fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

/// Returns status 1 if a goal was missed.
pub(crate) fn exit_code(is_met: bool) -> ExitCode {
    if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the quantile of the samples at `part`, from 0 to 1.
pub(crate) fn quantile<T: PartialOrd + Copy>(samples: &[T], part: f64) -> T {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|one, other| one.partial_cmp(other).unwrap());
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// Returns the median of the samples.
pub(crate) fn median<T: PartialOrd + Copy>(samples: &[T]) -> T {
    quantile(samples, 0.5)
}

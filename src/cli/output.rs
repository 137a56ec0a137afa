//! Exit codes, and what commands write besides their result.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use crate::progress::Progress;

/// Wrong arguments.
pub(super) const USAGE: u8 = 2;
/// `redirect status`: a rule is missing or differs.
pub(super) const DIFFERENT: u8 = 1;
/// `check`: a check failed.
pub(super) const FAILED: u8 = 1;
/// `explain`: the pod may not use its role.
pub(super) const DENIED: u8 = 1;
/// `report`: something would be refused.
pub(super) const FOUND: u8 = 1;
/// `explain`, `report`, `redirect status` and `iam-policy`: the answer is not known.
pub(super) const UNKNOWN: u8 = 3;
/// `migrate`: the input has no DaemonSet of that project, or no role annotation.
pub(super) const NOTHING_TO_MIGRATE: u8 = 1;
/// `iam-policy`: there is no such policy, or it exceeds a limit of AWS.
pub(super) const NO_POLICY: u8 = 1;

/// Says what is wrong with the arguments of a command.
pub(super) fn misused(command: &str, error: &dyn Display) -> ExitCode {
    say(&format!("rolegate: {error}\nSee {command} --help"));
    ExitCode::from(USAGE)
}

/// Prints a text to standard output. `what` names it in the message of an error.
pub(super) fn print_text(text: &[u8], what: &str) -> ExitCode {
    match std::io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("rolegate: cannot write {what}: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns the line of progress of a command: on standard error, if that is a terminal that can rewrite a line. `NO_COLOR` does not
/// matter, because the line has no colors.
pub(super) fn progress(env: &dyn Fn(&str) -> Option<String>) -> Progress {
    let stderr = std::io::stderr();
    let can_rewrite = env("TERM").is_some_and(|term| !term.is_empty() && term != "dumb") && stderr.is_terminal();
    Progress::new(if can_rewrite { Some(Box::new(stderr)) } else { None })
}

/// A line for a person, before there is a log.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

//! Subcommands, and exit codes: 0 after an orderly end, 2 for wrong arguments, 1 for everything else. `explain` ends with 0
//! for a pod that may have its role, 1 for one that does not, 2 for wrong arguments, and 3 where that could not be found out;
//! `report` does so for a report without findings, and one with some;
//! `redirect status` does so for rules that are as wanted and for others. `probe` ends with 0 where the daemon is as asked, and
//! with 1 where it is not or does not answer. `check` ends with 0 where nothing failed, with 1 where something did, and with 2 for
//! wrong usage. `migrate` ends with 0 where it printed manifests, with 1 where there was nothing to migrate, and with 2 for input
//! that it cannot read and arguments that the daemon would refuse. `pod-identity render` ends with 0, or with 2 for wrong arguments.
//! `iam-policy` ends with 0 where it printed policies, with 1 where one that was asked for cannot be had, with 2 for wrong arguments,
//! and with 3 where it cannot read the cluster. The texts of the help are in `texts`.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::config::arguments::RUN;
use crate::config::kiam::{TranslatedArguments, translate};
use crate::self_test::helper;

mod answers;
mod color;
mod commands;
mod completions;
mod daemon;
mod iam_policy;
mod man;
mod output;
mod texts;

pub use commands::command;
use commands::{HELP, HELP_ALL, IAM_POLICY, POD_IDENTITY, TOPIC, WAIT, short};
use output::{USAGE, say};

/// Runs the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let command = short();
    let is_other = |word: &str| command.get_subcommands().any(|other| other.get_name() == word && word != RUN);
    let given: Vec<OsString> = arguments.into_iter().collect();
    let TranslatedArguments { arguments, warnings, of_daemon } = match translate(given.iter().cloned(), is_other) {
        Ok(translated) => translated,
        Err(error) => {
            say(&format!("rolegate: {error}"));
            daemon::guard_before_exit(&given, env);
            return ExitCode::from(USAGE);
        }
    };
    let wants_all = arguments.iter().any(|word| word.to_str().is_some_and(|word| word.strip_prefix("--") == Some(HELP_ALL)));
    let command = if wants_all { commands::command() } else { command };
    let matches = match command.try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // --help and --version come here too, with the code 0. Nobody is left to tell if the output is closed.
            let _ = error.print();
            if of_daemon && error.use_stderr() {
                daemon::guard_before_exit(&arguments, env);
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match matches.subcommand() {
        Some((RUN, matches)) => daemon::run(matches, env, &arguments, warnings),
        Some(("explain", matches)) => answers::explained(matches, env),
        Some(("report", matches)) => answers::reported(matches, env),
        Some(("check", matches)) => answers::checked(matches, env),
        Some((IAM_POLICY, matches)) => iam_policy::printed(matches, env),
        Some(("redirect", matches)) => answers::redirected(matches, env),
        Some((helper::SUBCOMMAND, _)) => match helper::child(std::io::stdin().lock(), std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Some(("probe", matches)) => answers::probed(matches, env),
        Some(("migrate", matches)) => answers::migrated(matches, env),
        Some((POD_IDENTITY, matches)) => answers::rendered(matches, env),
        Some((WAIT, _)) => daemon::waited(),
        Some(("completions", matches)) => completions::print(matches),
        Some(("man", matches)) => man::write(matches),
        Some((HELP, matches)) => {
            let topic = matches.get_many::<String>(TOPIC).into_iter().flatten().cloned();
            help_of(topic)
        }
        _ => daemon::run(&matches, env, &arguments, warnings),
    }
}

/// Prints the help of a command, as its own `--help` does.
fn help_of(topic: impl Iterator<Item = String>) -> ExitCode {
    let words = std::iter::once("rolegate".to_owned()).chain(topic).chain(["--help".to_owned()]);
    match short().try_get_matches_from(words) {
        Ok(_) => ExitCode::from(USAGE),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE))
        }
    }
}

#[cfg(test)]
mod tests;

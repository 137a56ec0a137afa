//! The other commands: each reads its arguments, prints its result, and chooses the exit code.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use clap::ArgMatches;

use super::color;
use super::commands::{PROJECT, RENDER};
use super::daemon::{ability, failed, prepare, run_to_end};
use super::output::{DENIED, DIFFERENT, FAILED, FOUND, NOTHING_TO_MIGRATE, UNKNOWN, USAGE, misused, print_text, progress, say};
use crate::advice::Advise as _;
use crate::app::check_command::check;
use crate::app::explain_command::explain;
use crate::app::redirect_command::redirect;
use crate::app::report_command::report;
use crate::check::{CheckStatus, render as check_render};
use crate::config::check_command::CheckCommand;
use crate::config::explain_command::{ExplainConfig, Output};
use crate::config::metrics_port::FIRST_PROCESS;
use crate::config::migrate_command::role_key;
use crate::config::pod_identity_render::PodIdentityRender;
use crate::config::probe::ProbeConfig;
use crate::config::redirect::{Action, RedirectCommand};
use crate::config::report_command::{ReportConfig, ReportOutput};
use crate::explain::{Report, ReportedDecision, render};
use crate::migrate::{self, MigrateError, Project};
use crate::pod_identity::render as pod_identity_render;
use crate::probe;
use crate::report::MigrationReport;
use crate::report::render::{report_csv, report_text};
use crate::self_test::Ability;
use crate::text::printable;

/// Returns the command line of the first process, or nothing if it cannot be read.
fn first_process() -> Vec<u8> {
    std::fs::read(FIRST_PROCESS).unwrap_or_default()
}

/// Runs `rolegate explain`.
pub(super) fn explained(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let asked = match ExplainConfig::from_source(matches, env, &first_process()) {
        Ok(asked) => asked,
        Err(error) => return misused("rolegate explain", &error),
    };
    let output = asked.output;
    let report = prepare().and_then(|()| run_to_end(explain(asked))?);
    match report.and_then(|report| show(&report, output, color::is_wanted(env)).map(|()| report)) {
        Ok(Report { decision: ReportedDecision::Allowed, .. }) => ExitCode::SUCCESS,
        Ok(Report { decision: ReportedDecision::Denied, .. }) => ExitCode::from(DENIED),
        Ok(Report { decision: ReportedDecision::Unknown, .. }) => ExitCode::from(UNKNOWN),
        Err(failure) => failed(&failure, ExitCode::from(UNKNOWN)),
    }
}

/// Runs `rolegate check`.
pub(super) fn checked(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let command = match CheckCommand::from_source(matches, env) {
        Ok(command) => command,
        Err(error) => return misused("rolegate check", &error),
    };
    let output = command.output;
    let done = || {
        prepare()?;
        // Before there are threads.
        let self_test = match &command.config {
            Ok(config) if !command.only_arguments => ability(config).unwrap_or_else(Ability::Unable),
            _ => Ability::Off,
        };
        let report = run_to_end(check(command, self_test))?;
        let text = match output {
            Output::Text => color::verdicts(&check_render::text(&report), color::is_wanted(env)).into_owned(),
            Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        std::io::stdout().write_all(text.as_bytes())?;
        anyhow::Ok(report.result)
    };
    match done() {
        Ok(CheckStatus::Failed) => ExitCode::from(FAILED),
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure, ExitCode::from(FAILED)),
    }
}

/// Runs `rolegate report`.
pub(super) fn reported(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let ReportConfig { target, output } = match ReportConfig::from_source(matches, env, &first_process()) {
        Ok(asked) => asked,
        Err(error) => return misused("rolegate report", &error),
    };
    let report = prepare().and_then(|()| run_to_end(report(target, progress(env)))?);
    match report.and_then(|report| show_report(&report, output).map(|()| report)) {
        Ok(report) if !report.is_complete() => ExitCode::from(UNKNOWN),
        Ok(report) if report.without_findings().next().is_some() => {
            let nodes = report.without_findings().collect::<Vec<_>>().join(", ");
            say(&format!("rolegate: the daemons of these nodes run without --migrate, so they record no findings: {}", printable(&nodes)));
            ExitCode::from(UNKNOWN)
        }
        Ok(report) if report.workloads.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FOUND),
        Err(failure) => failed(&failure, ExitCode::from(UNKNOWN)),
    }
}

fn show_report(report: &MigrationReport, output: ReportOutput) -> anyhow::Result<()> {
    let text = match output {
        ReportOutput::Text => report_text(report),
        ReportOutput::Json => serde_json::to_string_pretty(report)? + "\n",
        ReportOutput::Csv => report_csv(report),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Runs `rolegate redirect`.
pub(super) fn redirected(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let named = matches.subcommand().and_then(|(name, matches)| {
        let action = Action::ALL.into_iter().find(|(action, _)| *action == name)?.1;
        Some((action, matches))
    });
    let Some((action, matches)) = named else { return ExitCode::from(USAGE) };
    let command = match RedirectCommand::from_source(action, matches, env) {
        Ok(command) => command,
        Err(error) => return misused("rolegate redirect", &error),
    };
    let done = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let told = runtime.block_on(redirect(command))?;
        let text: String = told.lines.iter().map(|line| format!("{line}\n")).collect();
        std::io::stdout().write_all(text.as_bytes())?;
        anyhow::Ok(told)
    };
    match done() {
        Ok(told) if told.as_wanted => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(DIFFERENT),
        Err(failure) => failed(&failure, if action == Action::Status { ExitCode::from(UNKNOWN) } else { ExitCode::FAILURE }),
    }
}

/// Runs `rolegate probe`.
pub(super) fn probed(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let asked = match ProbeConfig::from_source(matches, env) {
        Ok(asked) => asked,
        Err(error) => return misused("rolegate probe", &error),
    };
    match probe::ask(&asked.socket, asked.question) {
        Ok(answer) => {
            // Nobody is left to tell if the output is closed.
            let _ = writeln!(std::io::stdout(), "{}", answer.text);
            if answer.good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            say(&format!("rolegate: {}", error.with_advice()));
            ExitCode::FAILURE
        }
    }
}

/// Runs `rolegate migrate`.
pub(super) fn migrated(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let word = matches.get_one::<String>(PROJECT).map_or("", String::as_str);
    let project = Project::NAMES.into_iter().find(|(name, _)| *name == word).map(|(_, project)| project);
    let role_key = match role_key(matches, env, project.is_none()) {
        Ok(key) => key,
        Err(error) => return misused("rolegate migrate", &error),
    };
    let most = if project.is_some() { migrate::MAX_INPUT } else { migrate::MAX_WORKLOADS_INPUT };
    let mut input = Vec::new();
    // One byte more than is taken, so that more is seen.
    if let Err(error) = std::io::stdin().lock().take(most as u64 + 1).read_to_end(&mut input) {
        say(&format!("rolegate: cannot read standard input: {error}"));
        return ExitCode::from(USAGE);
    }
    let migrated =
        match project.map_or_else(|| migrate::migrate_annotations(&input, &role_key), |project| migrate::migrate(project, &input)) {
            Ok(migrated) => migrated,
            Err(error) => {
                say(&format!("rolegate: {}", printable(&error.with_advice())));
                let is_empty = matches!(error, MigrateError::NothingToMigrate(_) | MigrateError::NoRoles(_));
                return ExitCode::from(if is_empty { NOTHING_TO_MIGRATE } else { USAGE });
            }
        };
    for warning in &migrated.warnings {
        say(&format!("rolegate: warning: {warning}"));
    }
    match std::io::stdout().write_all(migrated.yaml.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("rolegate: cannot write the manifests: {error}"));
            ExitCode::from(USAGE)
        }
    }
}

/// Runs `rolegate pod-identity render`.
pub(super) fn rendered(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let Some(matches) = matches.subcommand_matches(RENDER) else { return ExitCode::from(USAGE) };
    let wanted = match PodIdentityRender::from_source(matches, env) {
        Ok(wanted) => wanted,
        Err(error) => return misused("rolegate pod-identity render", &error),
    };
    print_text(pod_identity_render::render(&wanted).as_bytes(), "the patch")
}

fn show(report: &Report, output: Output, has_colors: bool) -> anyhow::Result<()> {
    let text = match output {
        Output::Text => color::verdicts(&render::text(report), has_colors).into_owned(),
        Output::Json => serde_json::to_string_pretty(report)? + "\n",
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

//! Subcommands, and exit codes: 0 after an orderly end, 2 for wrong arguments, 1 for everything else. `explain` ends with 0
//! for a pod that may have its role, 1 for one that does not, 2 for wrong arguments, and 3 where that could not be found out;
//! `report` does so for a report without findings, and one with some;
//! `redirect status` does so for rules that are as wanted and for others. `probe` ends with 0 where the daemon is as asked, and
//! with 1 where it is not or does not answer. `check` ends with 0 where nothing failed, with 1 where something did, and with 2 for
//! wrong usage. `migrate` ends with 0 where it printed manifests, with 1 where there was nothing to migrate, and with 2 for input
//! that it cannot read and arguments that the daemon would refuse. `pod-identity render` ends with 0, or with 2 for wrong arguments.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use tokio::runtime::Runtime;
use tracing::{error, info, warn};

use crate::advice::Advise as _;
use crate::app::App;
use crate::app::check_command::check;
use crate::app::explain_command::explain;
use crate::app::failure;
use crate::app::redirect_command::{place_guard, redirect};
use crate::app::report_command::report;
use crate::capabilities::{self, Need};
use crate::check::{CheckStatus, render as check_render};
use crate::config::arguments::RUN;
use crate::config::check_command::{CheckCommand, LIST};
use crate::config::explain_command::{ExplainConfig, Output, POD};
use crate::config::kiam::{TranslatedArguments, translate};
use crate::config::metrics_port::FIRST_PROCESS;
use crate::config::migrate_command::role_key;
use crate::config::pod_identity_render::{PodIdentityRender, WORKLOAD};
use crate::config::probe::{ProbeConfig, QUESTION};
use crate::config::redirect::{Action, RedirectCommand};
use crate::config::refused::RefusedArguments;
use crate::config::report_command::{ReportConfig, ReportOutput};
use crate::config::{Config, ConfigWarning, RedirectBackend, flags};
use crate::explain::{Report, ReportedDecision, render};
use crate::migrate::{self, MigrateError, Project};
use crate::pod_identity::render as pod_identity_render;
use crate::probe;
use crate::report::MigrationReport;
use crate::report::render::{report_csv, report_text};
use crate::self_test::{self, Ability, helper};
use crate::telemetry;
use crate::text::printable;

/// Wrong arguments.
const USAGE: u8 = 2;
/// `redirect status`: a rule is missing or differs.
const DIFFERENT: u8 = 1;
/// `check`: a check failed.
const FAILED: u8 = 1;
/// `explain`: the pod may not use its role.
const DENIED: u8 = 1;
/// `report`: something would be refused.
const FOUND: u8 = 1;
/// `explain`, `report` and `redirect status`: the answer is not known.
const UNKNOWN: u8 = 3;
/// `migrate`: the input has no DaemonSet of that project, or no role annotation.
const NOTHING_TO_MIGRATE: u8 = 1;

/// The name of the argument that says whose manifests are read.
const PROJECT: &str = "PROJECT";

/// `rolegate pod-identity`, and its only subcommand.
const POD_IDENTITY: &str = "pod-identity";
const RENDER: &str = "render";
const WAIT: &str = "wait";

/// What `migrate` reads besides the manifests of other projects.
const ANNOTATIONS: &str = "annotations";
const PROJECTS: [&str; 3] = [Project::NAMES[0].0, Project::NAMES[1].0, ANNOTATIONS];

/// The command line: the flags, for the subcommand `run` and for the program without a subcommand alike.
pub fn command() -> Command {
    let run = Command::new(RUN).about("Serve this node's pods (the default)");
    let program = Command::new("rolegate")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Gives each pod of this node its own IAM role through the EC2 metadata address, never the node's role")
        .after_help("Each flag can also be set by the environment variable beside it; the flag takes precedence.")
        .max_term_width(120)
        .args_conflicts_with_subcommands(true)
        .subcommand(flags::add_to(run))
        .subcommand(explain_command())
        .subcommand(report_command())
        .subcommand(check_command())
        .subcommand(redirect_command())
        .subcommand(probe_command())
        .subcommand(migrate_command())
        .subcommand(pod_identity_command())
        .subcommand(Command::new(WAIT).about("Do nothing until the process is ended (for the DaemonSet that removes the rules)"))
        // The daemon starts it, nobody else.
        .subcommand(Command::new(helper::SUBCOMMAND).hide(true));
    flags::add_to(program)
}

fn explain_command() -> Command {
    let command = Command::new("explain")
        .about("Show step by step which role a pod gets, and why")
        .long_about(
            "Shows step by step which role a pod gets, and why, or why it gets none.\n\n\
             By default, it asks the daemon on this machine, which decides with its own settings: run it in the daemon's pod on the \
             pod's node (kubectl exec), or use kubectl port-forward and --admin-url. With --kubeconfig or --api-server, it reads the \
             Kubernetes API and decides with the flags given here: give the daemon's flags.\n\n\
             With --assume, it also calls AssumeRole once: with the AWS identity of the daemon or, with --kubeconfig or --api-server, \
             with that of this command.",
        )
        .after_help(
            "Exit codes: 0 the pod may use its role (with --assume, STS also allows it), 1 it may not, 2 wrong arguments, 3 unknown.",
        )
        .max_term_width(120)
        .arg(Arg::new(POD).required(true).help("The pod, such as shop/web-0"));
    flags::add_to_explain(command)
}

fn check_command() -> Command {
    let command = Command::new("check")
        .about("Check what the daemon needs: arguments, Kubernetes API, AWS, metadata service and node")
        .long_about(
            "Checks what the daemon needs, and says how to fix what is missing: its arguments, the Kubernetes API and the permissions \
             that the flags need there, its own AWS identity, the connection to STS, the metadata service, and the node's packet rules \
             and ports.\n\n\
             Give it the daemon's flags. It runs on a node, in a pod or on any other machine, and skips what cannot be checked there. \
             With --role, it also assumes one role. It changes nothing; the self-test, which runs beside a daemon only, removes its \
             interface again.\n\n\
             With --args, or behind --, it verifies an argument list and nothing else.",
        )
        .after_help("Exit codes: 0 nothing failed, 1 at least one check failed, 2 wrong usage.")
        .max_term_width(120)
        .arg(Arg::new(LIST).last(true).num_args(1..).allow_hyphen_values(true).help("The argument list, as for --args"));
    flags::add_to_check(command)
}

fn report_command() -> Command {
    let command = Command::new("report")
        .about("Show which protocols workloads use and, for daemons with --migrate, what the strict settings would refuse")
        .long_about(
            "Shows which protocols each workload uses to get credentials and, for daemons with --migrate, what the strict settings would \
             refuse, by namespace and workload, and what would make it pass.\n\n\
             By default, it asks the daemon on this machine: run it in the daemon's pod (kubectl exec), or use kubectl port-forward and \
             --admin-url. With --all-nodes, it reads the reports of all daemons through the Kubernetes API, and merges them.",
        )
        .after_help(
            "Exit codes: 0 no findings, 1 findings, 2 wrong arguments, 3 the report, or that of a node, cannot be read, \
                     or its daemon runs without --migrate.",
        )
        .max_term_width(120);
    flags::add_to_report(command)
}

fn redirect_command() -> Command {
    let about = |action| match action {
        Action::Install => "Install the rules, or with --guard only the guard; changes nothing if they are installed",
        Action::Remove => "Remove rolegate's rules; pods then reach the real metadata service",
        Action::Status => "Show what happens to pods' packets on this node, and how the rules differ from the flags",
        Action::Render => "Print the rules in the format of the backend (nftables, unless --redirect=iptables)",
    };
    let actions = Action::ALL.map(|(name, action)| flags::add_to_redirect(Command::new(name).about(about(action)).max_term_width(120)));
    Command::new("redirect")
        .about("Install, remove, check or print the packet rules of this node")
        .long_about(
            "Installs, removes, checks or prints the packet rules of this node, without Kubernetes and AWS. Give it the daemon's \
             flags. The default of --redirect is auto here.",
        )
        .after_help("Exit codes: 0 success; 1 failure, or (status) a rule is missing or differs; 2 wrong arguments; 3 (status) unknown.")
        .max_term_width(120)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(actions)
}

fn probe_command() -> Command {
    let command = Command::new("probe")
        .about("Ask the daemon of this pod whether it is ready or alive (for the kubelet's exec probes)")
        .after_help("Exit codes: 0 yes, 1 no or no answer, 2 wrong arguments.")
        .max_term_width(120)
        .arg(Arg::new(QUESTION).help("ready (default): the daemon can serve this node's pods; live: the process answers"));
    flags::add_to_probe(command)
}

fn pod_identity_command() -> Command {
    let render = Command::new(RENDER)
        .about("Print a patch that lets containers of a workload use --pod-identity")
        .long_about(
            "Prints a patch that lets containers of a workload request credentials from a daemon with --pod-identity: it adds two \
             environment variables, and a volume with a service account token. Use it with kubectl patch --patch-file or as a patch of \
             kustomize, if the cluster does not add these itself (the component daemonset/pod-identity-injection does). Nothing is read \
             from a cluster or changed in one.",
        )
        .after_help("Exit codes: 0 patch printed, 2 wrong arguments.")
        .max_term_width(120)
        .arg(Arg::new(WORKLOAD).required(true).help("The workload as KIND/NAME, such as deployment/web"));
    Command::new(POD_IDENTITY)
        .about("Prepare workloads for --pod-identity")
        .max_term_width(120)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(flags::add_to_pod_identity_render(render))
}

fn migrate_command() -> Command {
    let command = Command::new("migrate")
        .about("Convert manifests of kube2iam or kiam to rolegate's, or move role annotations from pods to service accounts")
        .long_about(
            "Reads the manifests of kube2iam or kiam as YAML from standard input, and prints rolegate's: DaemonSet, ServiceAccount, \
             ClusterRole and ClusterRoleBinding, with a comment beside everything that differs. What you must know before the swap is \
             also on standard error. Arguments that the daemon would refuse are not printed. Nothing is read from a cluster or changed \
             in one.\n\n\
             For kiam, give the manifests of agent and server together.\n\n\
             With annotations, it reads the workloads and service accounts of a cluster (kubectl get deploy,rs,sts,ds,job,cronjob,pods,sa \
             --all-namespaces --output json), and prints service accounts that give each workload the role of its pods' annotation, with \
             the label for the component daemonset/pod-identity-injection. If workloads of one service account have different roles, or \
             some have none, each role gets its own service account, and comments contain the commands that change the workloads.",
        )
        .after_help(
            "Exit codes: 0 manifests printed, 1 nothing to migrate, 2 input that cannot be read or arguments that rolegate refuses.",
        )
        .max_term_width(120)
        .arg(Arg::new(PROJECT).required(true).value_parser(PROJECTS).help("What to convert"));
    flags::add_to_migrate(command)
}

/// Runs the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let command = command();
    let is_other = |word: &str| word == "help" || command.get_subcommands().any(|other| other.get_name() == word && word != RUN);
    let given: Vec<OsString> = arguments.into_iter().collect();
    let TranslatedArguments { arguments, warnings, of_daemon } = match translate(given.iter().cloned(), is_other) {
        Ok(translated) => translated,
        Err(error) => {
            say(&format!("rolegate: {error}"));
            guard_before_exit(&given, env);
            return ExitCode::from(USAGE);
        }
    };
    let matches = match command.try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // --help and --version come here too, with the code 0. Nobody is left to tell if the output is closed.
            let _ = error.print();
            if of_daemon && error.use_stderr() {
                guard_before_exit(&arguments, env);
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match matches.subcommand() {
        Some((RUN, matches)) => run(matches, env, &arguments, warnings),
        Some(("explain", matches)) => explained(matches, env),
        Some(("report", matches)) => reported(matches, env),
        Some(("check", matches)) => checked(matches, env),
        Some(("redirect", matches)) => redirected(matches, env),
        Some((helper::SUBCOMMAND, _)) => match helper::child(std::io::stdin().lock(), std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Some(("probe", matches)) => probed(matches, env),
        Some(("migrate", matches)) => migrated(matches, env),
        Some((POD_IDENTITY, matches)) => rendered(matches, env),
        Some((WAIT, _)) => waited(),
        _ => run(&matches, env, &arguments, warnings),
    }
}

/// Waits for a signal. The image has no other program that could do this.
fn waited() -> ExitCode {
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            stop_signal()?.await;
            anyhow::Ok(())
        })
    };
    match wait() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("rolegate: {}", failure::text(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>, arguments: &[OsString], translated: Vec<ConfigWarning>) -> ExitCode {
    let config = match Config::from_translated(matches, env, translated) {
        Ok(config) => config,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate --help"));
            guard_before_exit(arguments, env);
            return ExitCode::from(USAGE);
        }
    };
    if let Err(error) = telemetry::init(&config.log) {
        say(&format!("rolegate: cannot set up the log: {error}"));
        return ExitCode::FAILURE;
    }
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(event = "fatal", error = failure::text(&failure), "rolegate cannot continue; exiting");
            ExitCode::FAILURE
        }
    }
}

/// Places the guard where the arguments, which are refused, say that there are to be packet rules: the daemon is started again and
/// again, and the node must not be open meanwhile.
fn guard_before_exit(arguments: &[OsString], env: &dyn Fn(&str) -> Option<String>) {
    let RefusedArguments { backend: Some(backend), routing_rules, log } = RefusedArguments::read(arguments, env) else { return };
    if let Err(error) = telemetry::init(&log) {
        say(&format!("rolegate: cannot set up the log: {error}"));
    }
    let placed = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(place_guard(backend, routing_rules))
    };
    match placed() {
        Ok(()) => warn!(
            event = "arguments-refused",
            "the arguments are wrong; exiting, with the guard in place: pods get no credentials; correct the arguments"
        ),
        Err(failure) => error!(
            event = "arguments-refused",
            error = failure::text(&failure),
            "the arguments are wrong, and the guard cannot be placed; exiting; pods may reach the real metadata service; correct the arguments"
        ),
    }
}

/// Returns the command line of the first process, or nothing if it cannot be read.
fn first_process() -> Vec<u8> {
    std::fs::read(FIRST_PROCESS).unwrap_or_default()
}

fn explained(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let asked = match ExplainConfig::from_source(matches, env, &first_process()) {
        Ok(asked) => asked,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate explain --help"));
            return ExitCode::from(USAGE);
        }
    };
    let output = asked.output;
    let report = prepare().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(explain(asked));
        end(runtime);
        report
    });
    match report.and_then(|report| show(&report, output).map(|()| report)) {
        Ok(Report { decision: ReportedDecision::Allowed, .. }) => ExitCode::SUCCESS,
        Ok(Report { decision: ReportedDecision::Denied, .. }) => ExitCode::from(DENIED),
        Ok(Report { decision: ReportedDecision::Unknown, .. }) => ExitCode::from(UNKNOWN),
        Err(failure) => {
            say(&format!("rolegate: {}", failure::text(&failure)));
            ExitCode::from(UNKNOWN)
        }
    }
}

fn checked(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let command = match CheckCommand::from_source(matches, env) {
        Ok(command) => command,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate check --help"));
            return ExitCode::from(USAGE);
        }
    };
    let output = command.output;
    let done = || {
        prepare()?;
        // Before there are threads.
        let self_test = match &command.config {
            Ok(config) if !command.only_arguments => ability(config).unwrap_or_else(Ability::Unable),
            _ => Ability::Off,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(check(command, self_test));
        end(runtime);
        let text = match output {
            Output::Text => check_render::text(&report),
            Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        std::io::stdout().write_all(text.as_bytes())?;
        anyhow::Ok(report.result)
    };
    match done() {
        Ok(CheckStatus::Failed) => ExitCode::from(FAILED),
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("rolegate: {}", failure::text(&failure)));
            ExitCode::from(FAILED)
        }
    }
}

fn reported(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let ReportConfig { target, output } = match ReportConfig::from_source(matches, env, &first_process()) {
        Ok(asked) => asked,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate report --help"));
            return ExitCode::from(USAGE);
        }
    };
    let report = prepare().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(report(target));
        end(runtime);
        report
    });
    match report.and_then(|report| show_report(&report, output).map(|()| report)) {
        Ok(report) if !report.is_complete() => ExitCode::from(UNKNOWN),
        Ok(report) if report.without_findings().next().is_some() => {
            let nodes = report.without_findings().collect::<Vec<_>>().join(", ");
            say(&format!("rolegate: the daemons of these nodes run without --migrate, so they record no findings: {}", printable(&nodes)));
            ExitCode::from(UNKNOWN)
        }
        Ok(report) if report.workloads.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FOUND),
        Err(failure) => {
            say(&format!("rolegate: {}", failure::text(&failure)));
            ExitCode::from(UNKNOWN)
        }
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

fn redirected(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let named = matches.subcommand().and_then(|(name, matches)| {
        let action = Action::ALL.into_iter().find(|(action, _)| *action == name)?.1;
        Some((action, matches))
    });
    let Some((action, matches)) = named else { return ExitCode::from(USAGE) };
    let command = match RedirectCommand::from_source(action, matches, env) {
        Ok(command) => command,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate redirect --help"));
            return ExitCode::from(USAGE);
        }
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
        Err(failure) => {
            say(&format!("rolegate: {}", failure::text(&failure)));
            if action == Action::Status { ExitCode::from(UNKNOWN) } else { ExitCode::FAILURE }
        }
    }
}

fn probed(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let asked = match ProbeConfig::from_source(matches, env) {
        Ok(asked) => asked,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate probe --help"));
            return ExitCode::from(USAGE);
        }
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

fn migrated(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let word = matches.get_one::<String>(PROJECT).map_or("", String::as_str);
    let project = Project::NAMES.into_iter().find(|(name, _)| *name == word).map(|(_, project)| project);
    let role_key = match role_key(matches, env, project.is_none()) {
        Ok(key) => key,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate migrate --help"));
            return ExitCode::from(USAGE);
        }
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

fn rendered(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let Some(matches) = matches.subcommand_matches(RENDER) else { return ExitCode::from(USAGE) };
    let wanted = match PodIdentityRender::from_source(matches, env) {
        Ok(wanted) => wanted,
        Err(error) => {
            say(&format!("rolegate: {error}\nSee rolegate pod-identity render --help"));
            return ExitCode::from(USAGE);
        }
    };
    match std::io::stdout().write_all(pod_identity_render::render(&wanted).as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("rolegate: cannot write the patch: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn show(report: &Report, output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Text => render::text(report),
        Output::Json => serde_json::to_string_pretty(report)? + "\n",
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn prepare() -> anyhow::Result<()> {
    // One TLS provider for Kubernetes and AWS alike, installed before either asks for one.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is already installed");
    }
    keep_out_of_core_dumps();
    Ok(())
}

fn serve(mut config: Config) -> anyhow::Result<()> {
    prepare()?;
    fit_into_open_files(&mut config);
    let self_test = match restrict(&config) {
        Ok(self_test) => self_test,
        Err(error) => {
            // The daemon would place it next, and is started again and again until then.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return Err(match runtime.block_on(place_guard(config.redirect.backend, config.redirect.routing_rules)) {
                Ok(()) => error,
                Err(failure) => failure.context(error.to_string()),
            });
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let app = App::bind(config).await?.with_self_test(self_test);
        app.serve(stop_signal()?).await
    });
    end(runtime);
    served
}

/// Does not wait for threads that wait for other programs: an exec plugin that hangs must not keep the process.
fn end(runtime: Runtime) {
    runtime.shutdown_background();
}

/// The process holds credentials: it leaves no core dump, and nobody but root reads its memory.
fn keep_out_of_core_dumps() {
    use nix::sys::{prctl, resource};
    let no_core = resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0);
    if let Err(error) = no_core.and_then(|()| prctl::set_dumpable(false)) {
        warn!(
            event = "core-dumps-on", %error,
            "cannot turn off core dumps; a crash could write credentials to disk; limit the size of core files to 0 in the container \
             runtime"
        );
    }
}

/// Starts what takes more rights than the daemon is to have, and drops these. It holds for the threads that come after.
fn restrict(config: &Config) -> anyhow::Result<Ability> {
    let has_rules = config.redirect.backend != RedirectBackend::None;
    let self_test = ability(config)
        .map_err(|reason| anyhow::anyhow!("--self-test=on, but the self-test cannot run: {reason}; or give --self-test=auto"))?;
    let mut needs = vec![Need::Port(config.server.port), Need::Port(config.admin.port)];
    if has_rules {
        needs.push(Need::Rules);
    }
    if let Some(pod_identity) = &config.pod_identity {
        needs.push(Need::Interfaces);
        needs.extend(pod_identity.listen_addresses().map(|(address, _)| Need::Port(address.port())));
    }
    if matches!(config.redirect.backend, RedirectBackend::Auto | RedirectBackend::Bpf) {
        needs.push(Need::Bpf);
    }
    if matches!(self_test, Ability::Able(_)) {
        needs.push(Need::Interfaces);
    }
    capabilities::keep(&needs);
    Ok(self_test)
}

/// Whether the self-test can run, with its helper.
fn ability(config: &Config) -> Result<Ability, String> {
    self_test::ability(&config.self_test, &config.redirect)
}

/// Takes all the file descriptors that there are to have, and plans for no more connections than fit in.
fn fit_into_open_files(config: &mut Config) {
    let most = match most_open_files() {
        Ok(most) => most,
        Err(error) => {
            return config.warnings.push(ConfigWarning::new(
                "open-files-unknown",
                format!("cannot read the limit of open files: {error}; it may be too low"),
            ));
        }
    };
    let asked = config.server.limits;
    config.server.limits = asked.within(most);
    if config.server.limits != asked {
        config.warnings.push(ConfigWarning::new(
            "connections-lowered",
            format!(
                "the limit of open files is {most}, too low for --limits-connections={}: using {}; raise the limit (LimitNOFILE of the \
             container runtime), or lower --limits-connections",
                asked.connections, config.server.limits.connections
            ),
        ));
    }
}

/// The limit of open files, raised as far as it may be.
fn most_open_files() -> nix::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Some kernels have no use for the hard one where it says "without limit"; the soft one is good then.
    let most = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    Ok(most)
}

/// Returns at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(event = "stopping", signal = name, "received a stop signal; accepting no new connections, finishing open requests");
    })
}

/// A line for a person, before there is a log.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests;

//! Subcommands, and exit codes: 0 after an orderly end, 2 for wrong arguments, 1 for everything else. `explain` ends with 0
//! for a pod that may have its role, 1 for one that does not, 2 for wrong arguments, and 3 where that could not be found out;
//! `redirect status` does so for rules that are as wanted and for others. `probe` ends with 0 where the daemon is as asked, and
//! with 1 where it is not or does not answer.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use tokio::runtime::Runtime;
use tracing::{error, info, warn};

use crate::app::App;
use crate::app::explain_command::explain;
use crate::app::redirect_command::redirect;
use crate::capabilities::{self, Need};
use crate::config::explain_command::{ExplainConfig, Output, POD};
use crate::config::probe::{ProbeConfig, QUESTION};
use crate::config::redirect::{Action, RedirectCommand};
use crate::config::{Config, RedirectBackend, flags};
use crate::explain::{Report, ReportedDecision, render};
use crate::probe;
use crate::self_test::{self, Ability, helper};
use crate::telemetry;

/// Wrong arguments.
const USAGE: u8 = 2;
/// `redirect status`: the rules are not as wanted.
const DIFFERENT: u8 = 1;
/// `explain`: the pod may have nothing.
const DENIED: u8 = 1;
/// `explain` and `redirect status`: that could not be found out.
const UNKNOWN: u8 = 3;

/// The command line: the flags, for the subcommand `run` and for the program without a subcommand alike.
pub fn command() -> Command {
    let run = Command::new("run").about("Serve this node's pods (the default)");
    let program = Command::new("rolegate")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Gives every pod of this node its own IAM role from the EC2 metadata address, and never the node's")
        .after_help("Every flag is also the environment variable named beside it; the flag wins.")
        .max_term_width(120)
        .args_conflicts_with_subcommands(true)
        .subcommand(flags::add_to(run))
        .subcommand(explain_command())
        .subcommand(redirect_command())
        .subcommand(probe_command())
        // The daemon starts it, nobody else.
        .subcommand(Command::new(helper::SUBCOMMAND).hide(true));
    flags::add_to(program)
}

fn explain_command() -> Command {
    let command = Command::new("explain")
        .about("Say step by step which role a pod may have, and why, or why none")
        .long_about(
            "Says step by step which role a pod may have, and why, or why none.\n\n\
             Without more it asks the daemon on this machine, whose settings and knowledge count: run it in the daemon's pod on \
             the pod's node (kubectl exec), or give --admin-url the end of a kubectl port-forward to it. With --kubeconfig or \
             --api-server it asks the Kubernetes API, and decides by the flags given here: give those of the daemon.\n\n\
             With --assume STS is asked for the role once, by whom the daemon is to AWS, or by whom this command is where it asks \
             the Kubernetes API.",
        )
        .after_help(
            "Exit codes: 0 the pod may have its role (with --assume: STS gives it), 1 it may not, 2 wrong arguments, 3 it could not be \
             found out.",
        )
        .max_term_width(120)
        .arg(Arg::new(POD).required(true).help("The pod, such as shop/web-0"));
    flags::add_to_explain(command)
}

fn redirect_command() -> Command {
    let about = |action| match action {
        Action::Install => "Put the rules in place, or the guard alone; again, it changes nothing",
        Action::Remove => "Remove exactly what is rolegate's; pods then reach the real metadata service",
        Action::Status => "Tell what a pod's packet would meet, and what is not as wanted",
        Action::Render => "Print the rules as the program of the backend reads them (nftables, unless --redirect=iptables)",
    };
    let actions = Action::ALL.map(|(name, action)| flags::add_to_redirect(Command::new(name).about(about(action)).max_term_width(120)));
    Command::new("redirect")
        .about("Install, remove, look at or print the packet rules of this node")
        .long_about(
            "Installs, removes, looks at or prints the packet rules of this node, for its boot, for hooks and for people. It asks \
             neither Kubernetes nor AWS; give it the daemon's flags. Without --redirect it takes what works here, as auto does.",
        )
        .after_help(
            "Exit codes: 0 done, or the rules are as wanted; 1 it failed, or (status) the rules are not as wanted; 2 wrong arguments; \
             3 (status) it could not be found out.",
        )
        .max_term_width(120)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(actions)
}

fn probe_command() -> Command {
    let command = Command::new("probe")
        .about("Ask the daemon of this pod whether it is ready, for the kubelet's exec probes")
        .after_help("Exit codes: 0 it is, 1 it is not or does not answer, 2 wrong arguments.")
        .max_term_width(120)
        .arg(Arg::new(QUESTION).help("ready (the default): this node's pods can be served; live: the process answers"));
    flags::add_to_probe(command)
}

/// Runs the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // --help and --version come here too, with the code 0. Nobody is left to tell if the output is closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match matches.subcommand() {
        Some(("run", matches)) => run(matches, env),
        Some(("explain", matches)) => explained(matches, env),
        Some(("redirect", matches)) => redirected(matches, env),
        Some((helper::SUBCOMMAND, _)) => match helper::child(std::io::stdin().lock(), std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Some(("probe", matches)) => probed(matches, env),
        _ => run(&matches, env),
    }
}

fn run(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let config = match Config::from_source(matches, env) {
        Ok(config) => config,
        Err(error) => {
            say(&format!("rolegate: {error}\nrolegate --help lists every flag"));
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
            error!(event = "fatal", error = %format_args!("{failure:#}"), "rolegate cannot continue; exiting");
            ExitCode::FAILURE
        }
    }
}

fn explained(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let asked = match ExplainConfig::from_source(matches, env) {
        Ok(asked) => asked,
        Err(error) => {
            say(&format!("rolegate: {error}\nrolegate explain --help says how to ask"));
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
            say(&format!("rolegate: not found out: {failure:#}"));
            ExitCode::from(UNKNOWN)
        }
    }
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
            say(&format!("rolegate: {error}\nrolegate redirect --help says how to ask"));
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
            say(&format!("rolegate: {failure:#}"));
            if action == Action::Status { ExitCode::from(UNKNOWN) } else { ExitCode::FAILURE }
        }
    }
}

fn probed(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let asked = match ProbeConfig::from_source(matches, env) {
        Ok(asked) => asked,
        Err(error) => {
            say(&format!("rolegate: {error}\nrolegate probe --help says how to ask"));
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
            say(&format!("rolegate: {error}"));
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
        anyhow::bail!("another TLS provider is installed already");
    }
    keep_out_of_core_dumps();
    Ok(())
}

fn serve(mut config: Config) -> anyhow::Result<()> {
    prepare()?;
    fit_into_open_files(&mut config);
    let self_test = restrict(&config)?;
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
    let self_test = self_test::ability(&config.self_test, &config.redirect.interfaces, has_rules);
    let self_test = self_test.map_err(|reason| anyhow::anyhow!("--self-test=on, and it cannot be done: {reason}; or leave it at auto"))?;
    let mut needs = vec![Need::Port(config.server.port), Need::Port(config.admin.port)];
    if has_rules {
        needs.push(Need::Rules);
    }
    if matches!(self_test, Ability::Able(_)) {
        needs.push(Need::Interfaces);
    }
    capabilities::keep(&needs);
    Ok(self_test)
}

/// Takes all the file descriptors that there are to have, and plans for no more connections than fit in.
fn fit_into_open_files(config: &mut Config) {
    let most = match most_open_files() {
        Ok(most) => most,
        Err(error) => {
            return config.warnings.push(format!("the limit of open files is not known ({error}); it may be below what is needed"));
        }
    };
    let asked = config.server.limits;
    config.server.limits = asked.within(most);
    if config.server.limits != asked {
        config.warnings.push(format!(
            "the limit of open files is {most}, too low for --limits-connections={}: {} are taken; raise the limit (LimitNOFILE of the \
             container runtime), or give a lower one",
            asked.connections, config.server.limits.connections
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

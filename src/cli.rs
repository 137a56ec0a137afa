//! Subcommands, and exit codes: 0 after an orderly end, 2 for wrong arguments, 1 for everything else.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use tracing::{error, info, warn};

use crate::app::App;
use crate::config::{Config, flags};
use crate::telemetry;

/// Wrong arguments.
const USAGE: u8 = 2;

/// The command line: the flags, for the subcommand `run` and for the program without a subcommand alike.
pub fn command() -> Command {
    let run = Command::new("run").about("Serve this node's pods (the default)");
    let program = Command::new("rolegate")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Gives every pod of this node its own IAM role from the EC2 metadata address, and never the node's")
        .after_help("Every flag is also the environment variable named beside it; the flag wins.")
        .max_term_width(120)
        .args_conflicts_with_subcommands(true)
        .subcommand(flags::add_to(run));
    flags::add_to(program)
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
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    // One TLS provider for Kubernetes and AWS alike, installed before either asks for one.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed already");
    }
    keep_out_of_core_dumps();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = App::bind(config).await?;
        app.serve(stop_signal()?).await
    })
}

/// The process holds credentials: it leaves no core dump, and nobody but root reads its memory.
fn keep_out_of_core_dumps() {
    use nix::sys::{prctl, resource};
    let no_core = resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0);
    if let Err(error) = no_core.and_then(|()| prctl::set_dumpable(false)) {
        warn!(%error, "core dumps could not be switched off; a crash might write credentials to disk");
    }
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
        info!(signal = name, "stopping: no new connections, open ones are finished");
    })
}

/// A line for a person, before there is a log.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

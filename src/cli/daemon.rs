//! The daemon's process: what it prepares before it serves, and how it ends.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::ArgMatches;
use tokio::runtime::Runtime;
use tracing::{error, info, warn};

use super::output::{misused, say};
use crate::app::App;
use crate::app::failure;
use crate::app::redirect_command::place_guard;
use crate::capabilities::{self, Need};
use crate::config::refused::RefusedArguments;
use crate::config::{Config, ConfigWarning, RedirectBackend};
use crate::self_test::{self, Ability};
use crate::telemetry;

/// Serves the pods of this node until a stop signal.
pub(super) fn run(
    matches: &ArgMatches,
    env: &dyn Fn(&str) -> Option<String>,
    arguments: &[OsString],
    translated: Vec<ConfigWarning>,
) -> ExitCode {
    let config = match Config::from_translated(matches, env, translated) {
        Ok(config) => config,
        Err(error) => {
            let code = misused("rolegate", &error);
            guard_before_exit(arguments, env);
            return code;
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
pub(super) fn guard_before_exit(arguments: &[OsString], env: &dyn Fn(&str) -> Option<String>) {
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

/// Prepares what every command needs that talks to Kubernetes or AWS.
pub(super) fn prepare() -> anyhow::Result<()> {
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

/// Says why a command failed, and returns its exit code.
pub(super) fn failed(failure: &anyhow::Error, code: ExitCode) -> ExitCode {
    say(&format!("rolegate: {}", failure::text(failure)));
    code
}

/// Runs the task of a command on this thread.
pub(super) fn run_to_end<T>(task: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(task);
    end(runtime);
    Ok(done)
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
pub(super) fn ability(config: &Config) -> Result<Ability, String> {
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

/// Waits for a signal. The image has no other program that could do this.
pub(super) fn waited() -> ExitCode {
    let wait = async {
        stop_signal()?.await;
        anyhow::Ok(())
    };
    match run_to_end(wait).flatten() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure, ExitCode::FAILURE),
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
        info!(event = "stopping", signal = name, "received a stop signal; accepting no new connections, finishing open requests");
    })
}

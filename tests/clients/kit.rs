//! The programs that install.sh installed, and how they are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rolegate_lab::node::{Cgroup, Netns};
use serde_json::Value;

/// The directory of install.sh, run.sh and the programs' sources.
pub(crate) const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
/// The directory of the programs, unless ROLEGATE_CLIENTS_DIR is set.
const DEFAULT_DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients");
/// The region for which every request is signed.
pub(crate) const REGION: &str = "eu-central-1";
/// A time limit in case a client does not end by itself within 30 s.
pub(crate) const TIME_LIMIT: [&str; 3] = ["-k", "2", "60"];

/// Returns the path of run.sh.
pub(crate) fn run_script() -> String {
    format!("{SOURCES}/run.sh")
}

/// Returns the directory of the programs.
pub(crate) fn directory() -> PathBuf {
    std::env::var_os("ROLEGATE_CLIENTS_DIR").map_or_else(|| DEFAULT_DIRECTORY.into(), PathBuf::from)
}

/// Returns why a kit cannot be used, if it cannot.
pub(crate) fn missing(kit: &str) -> Option<String> {
    let stamp = directory().join(kit).join("stamp");
    (!stamp.exists()).then(|| format!("the {kit} clients are not installed in {}: run tests/clients/install.sh", directory().display()))
}

/// Returns a command inside the namespace, with only those environment variables that the programs need.
pub(crate) fn command(ns: &Netns, program: &str) -> Command {
    with_environment(ns.command(program))
}

/// Returns a command like [`command`], which runs in this control group.
pub(crate) fn command_in(group: &Cgroup, ns: &Netns, program: &str) -> Command {
    with_environment(group.command(ns, program))
}

fn with_environment(mut command: Command) -> Command {
    command
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
        .env("ROLEGATE_CLIENTS_DIR", directory())
        .env("AWS_REGION", REGION)
        .stdin(Stdio::null());
    command
}

/// Runs a program inside the namespace until it ends.
pub(crate) fn run(ns: &Netns, home: &Path, sts: &str, program: &str, arguments: &[&str]) -> Output {
    let mut command = command(ns, "timeout");
    command.args(TIME_LIMIT).arg(program).args(arguments).env("HOME", home).env("TMPDIR", home).env("STS_ENDPOINT", sts);
    command.output().unwrap()
}

/// Returns the line of JSON of a client that has credentials. Fails, with the context, if it has none.
#[track_caller]
pub(crate) fn answer(output: &Output, context: impl FnOnce() -> String) -> Value {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}\n{}", context());
    let line = out.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"))
}

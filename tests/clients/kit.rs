//! The programs that install.sh installed, and how they are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rolegate_lab::node::Netns;

/// The directory of install.sh, run.sh and the programs' sources.
pub(crate) const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
/// Where the programs are, unless ROLEGATE_CLIENTS_DIR says otherwise.
const DEFAULT_DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients");
/// What every request is signed for.
pub(crate) const REGION: &str = "eu-central-1";
/// A client ends within 30 s by itself.
const TIME_LIMIT: [&str; 3] = ["-k", "2", "60"];

/// Where the programs are.
pub(crate) fn directory() -> PathBuf {
    std::env::var_os("ROLEGATE_CLIENTS_DIR").map_or_else(|| DEFAULT_DIRECTORY.into(), PathBuf::from)
}

/// Why a kit cannot be used.
pub(crate) fn missing(kit: &str) -> Option<String> {
    let stamp = directory().join(kit).join("stamp");
    (!stamp.exists()).then(|| format!("the {kit} clients are not installed in {}: run tests/clients/install.sh", directory().display()))
}

/// A command inside, with nothing of our environment but what the programs need.
pub(crate) fn command(ns: &Netns, program: &str) -> Command {
    let mut command = ns.command(program);
    command
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
        .env("ROLEGATE_CLIENTS_DIR", directory())
        .env("AWS_REGION", REGION)
        .stdin(Stdio::null());
    command
}

/// Runs a program inside, to its end.
pub(crate) fn run(ns: &Netns, home: &Path, sts: &str, program: &str, arguments: &[&str]) -> Output {
    let mut command = command(ns, "timeout");
    command.args(TIME_LIMIT).arg(program).args(arguments).env("HOME", home).env("TMPDIR", home).env("STS_ENDPOINT", sts);
    command.output().unwrap()
}

//! Whether namespaces can be made here, and the user namespace that makes them possible without root.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Set in a process that was started again, so that it is never started a third time.
const REEXEC_VARIABLE: &str = "ROLEGATE_LAB_IN_USER_NAMESPACE";
/// Where this is `1`, a test that would be skipped fails.
const NO_SKIPS_VARIABLE: &str = "ROLEGATE_NO_SKIPS";
/// Where `ip` and `iptables` are, though users often do not have these directories in their `PATH`.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Options of unshare(1). The mount namespace is for [`INIT_SCRIPT`].
const UNSHARE_OPTIONS: [&str; 4] = ["--user", "--map-root-user", "--net", "--mount"];
/// Runs as the first thing in the new namespaces. iptables-legacy wants to write its lock file to `/run`, which belongs
/// to the real root.
const INIT_SCRIPT: &str = r#"ip link set lo up && { mount -t tmpfs tmpfs /run 2>/dev/null || :; } && exec "$0" "$@""#;

/// Says on standard error that a test is skipped and why.
///
/// # Panics
/// Where the environment has `ROLEGATE_NO_SKIPS=1`.
#[track_caller]
#[allow(clippy::print_stderr, reason = "a test's message to the person who runs it")]
pub fn skip(why: impl Display) {
    assert!(env::var_os(NO_SKIPS_VARIABLE).is_none_or(|value| value != "1"), "skipping is forbidden: {why}");
    eprintln!("SKIP: {why}");
}

/// Where a program is, in `PATH` or in the system's directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&path_variable()).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// If this process may not make network namespaces, replaces it by one with the same program and arguments that may: as
/// root of a new user namespace, in a new network namespace with `lo` up and nothing else. Returns where nothing of
/// this is needed, and in the process so started.
///
/// The process keeps its id. It loses its other threads, so call this before anything else is under way; a test may
/// call it too, as the whole test program then begins anew.
///
/// # Errors
/// If the machine does not allow user namespaces, or `unshare` is missing.
pub fn reexec_in_user_namespace_if_needed() -> io::Result<()> {
    if may_make_namespaces() {
        return Ok(());
    }
    if in_user_namespace() {
        return Err(io::Error::other("no network namespaces, not even in a user namespace"));
    }
    // Replacing the process is for keeps: see first whether it would work.
    let probe = unshared(Path::new("true")).stdin(Stdio::null()).output()?;
    if !probe.status.success() {
        let stderr = String::from_utf8_lossy(&probe.stderr);
        return Err(io::Error::other(format!("no user namespace: {}", stderr.trim_end())));
    }
    let error = unshared(&env::current_exe()?).args(env::args_os().skip(1)).env(REEXEC_VARIABLE, "1").exec();
    Err(error)
}

/// `PATH` with the system's directories, which is what commands inside a namespace get.
pub(super) fn path_variable() -> OsString {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    for directory in SYSTEM_DIRECTORIES.map(PathBuf::from) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    env::join_paths(directories).unwrap_or(path)
}

/// Whether [`reexec_in_user_namespace_if_needed`] put this process into namespaces of its own, so that others of the same
/// user must enter them first.
pub fn in_user_namespace() -> bool {
    env::var_os(REEXEC_VARIABLE).is_some()
}

fn may_make_namespaces() -> bool {
    let namespace = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET));
    namespace.join().is_ok_and(|outcome| outcome.is_ok())
}

fn unshared(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.env("PATH", path_variable()).args(UNSHARE_OPTIONS).args(["--", "sh", "-c", INIT_SCRIPT]).arg(program);
    command
}

//! Checks whether namespaces can be created here, and creates the user namespace that makes it possible without root.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Set in a process that was re-executed, so that it is not re-executed again.
const REEXEC_VARIABLE: &str = "ROLEGATE_LAB_IN_USER_NAMESPACE";
/// If this variable is `1`, a test that would be skipped fails.
const NO_SKIPS_VARIABLE: &str = "ROLEGATE_NO_SKIPS";
/// The directories of `ip` and `iptables`, which are often missing from a user's `PATH`.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Options of unshare(1). The mount namespace is for [`INIT_SCRIPT`].
const UNSHARE_OPTIONS: [&str; 4] = ["--user", "--map-root-user", "--net", "--mount"];
/// The first command in the new namespaces. iptables-legacy writes its lock file to `/run`, which belongs to the real root.
const INIT_SCRIPT: &str = r#"ip link set lo up && { mount -t tmpfs tmpfs /run 2>/dev/null || :; } && exec "$0" "$@""#;

/// Reports on standard error that a test is skipped, and why.
///
/// # Panics
/// If the environment has `ROLEGATE_NO_SKIPS=1`.
#[track_caller]
#[allow(clippy::print_stderr, reason = "a test's message to the person who runs it")]
pub fn skip(why: impl Display) {
    assert!(env::var_os(NO_SKIPS_VARIABLE).is_none_or(|value| value != "1"), "skipping is forbidden: {why}");
    eprintln!("SKIP: {why}");
}

/// Finds a program in `PATH` or in the system's directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&path_variable()).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Returns `true` if all programs are installed. Otherwise calls [`skip`] for the first that is not and returns `false`.
pub fn programs_or_skip<'a>(programs: impl IntoIterator<Item = &'a &'a str>) -> bool {
    let missing = programs.into_iter().find(|program| find_program(program).is_none());
    missing.map(|missing| skip(format!("the program `{missing}` is not installed"))).is_none()
}

/// Makes sure that this process can create network namespaces. If it cannot, replaces it by the same program with the same
/// arguments, as root of a new user namespace, in a new network namespace where only `lo` is up. Returns if nothing has to be
/// done, and in the new process.
///
/// The process keeps its ID. It loses its other threads, so call this before anything else is under way. A test may call it,
/// too, because the whole test program then starts again.
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
    // Replacing the process cannot be undone, so this checks first whether it would work.
    let probe = unshared(Path::new("true")).stdin(Stdio::null()).output()?;
    if !probe.status.success() {
        let stderr = String::from_utf8_lossy(&probe.stderr);
        return Err(io::Error::other(format!("no user namespace: {}", stderr.trim_end())));
    }
    let error = unshared(&env::current_exe()?).args(env::args_os().skip(1)).env(REEXEC_VARIABLE, "1").exec();
    Err(error)
}

/// Returns `PATH` with the system's directories, for commands inside a namespace.
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

/// Returns whether [`reexec_in_user_namespace_if_needed`] moved this process into namespaces of its own, so that other
/// processes of the user have to enter them first.
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

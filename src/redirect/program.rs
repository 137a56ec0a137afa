//! Runs the programs that read and write the kernel's rules.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::RedirectError;

/// How long an iptables program waits for the lock on the tables, by default.
pub const LOCK_WAIT: Duration = Duration::from_secs(30);
/// How long a program may take, including the wait for the lock. A program that hangs must not stop the reconciler.
const PATIENCE: Duration = LOCK_WAIT.saturating_add(Duration::from_secs(30));

/// Runs a program with this input, and returns its output. The program is killed if it takes more than a minute, or if this
/// future is dropped.
pub async fn run(program: &'static str, arguments: &[impl AsRef<std::ffi::OsStr>], input: &str) -> Result<String, RedirectError> {
    let failed = |source: std::io::Error| RedirectError::Program { program, source };
    let mut command = Command::new(program);
    clean(&mut command);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let ended = tokio::time::timeout(PATIENCE, async {
        if let Some(mut stdin) = stdin {
            // A program that ended early reports why on its standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    });
    let output = ended.await.map_err(|_elapsed| RedirectError::Hung { program, patience: PATIENCE })?.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(RedirectError::Failed { program, message: if message.is_empty() { output.status.to_string() } else { message } })
}

/// Clears the environment except for `PATH`, because the daemon's environment may hold AWS keys. Sets the locale to C, because
/// the messages are matched in English.
fn clean(command: &mut Command) {
    command.env_clear().env("LC_ALL", "C");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    /// Returns whether a process runs that was started with this argument.
    fn runs(argument: &str) -> bool {
        let lines = std::fs::read_dir("/proc").unwrap().filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
        lines.into_iter().any(|line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
    }

    /// Runs in a process of its own, with keys in its environment: the environment of a shared process cannot be changed
    /// safely.
    #[tokio::test]
    async fn programs_get_no_aws_keys_and_the_c_locale() {
        const NAME: &str = "redirect::program::tests::programs_get_no_aws_keys_and_the_c_locale";
        const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
        if KEYS.iter().any(|key| std::env::var_os(key).is_none_or(|value| value != "a key")) {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let ran = again.args([NAME, "--exact"]).envs(KEYS.map(|key| (key, "a key"))).env("LC_ALL", "de_DE.UTF-8").output().unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(ran.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        let environment = run("env", &[] as &[&str], "").await.unwrap();
        let environment: std::collections::BTreeSet<_> = environment.lines().collect();
        assert_eq!(environment, ["LC_ALL=C", &path].into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_hangs_is_killed() {
        let argument = format!("3600.{}", std::process::id());
        let began = tokio::time::Instant::now();
        // The input is larger than a pipe holds, and the program reads none of it.
        let error = run("sleep", &[&argument], &"x".repeat(1 << 20)).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 60);
        assert!(matches!(error, RedirectError::Hung { program: "sleep", .. }), "{error}");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while runs(&argument) {
            assert!(std::time::Instant::now() < deadline, "the program still runs");
            tokio::task::yield_now().await;
        }
    }
}

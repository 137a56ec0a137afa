//! Runs the programs that read and write the kernel's rules.
//!
//! Other programs, and the tenants whose Services they serve, decide how many rules and connections a node has. What a program prints is
//! therefore read up to a limit, or line by line. A program that lists rules of others first collects all of them in its own memory, which
//! counts against the memory of the daemon's container: `nft -j` takes 50 KiB for each port of a Service. Such a program gets a limit of its
//! address space ([`search`]), and what it cannot list is reported as unknown.
//!
//! The limit is set with prlimit(2) as soon as the program runs. [`std::process::Command`] has no safe way to run code between fork and exec,
//! and a subcommand of rolegate that limits itself and then executes the program would load rolegate once more for each call. What the
//! program allocates until then counts as well: it gets no more memory once it has exceeded the limit.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::RedirectError;

/// How long an iptables program waits for the lock on the tables, by default.
pub const LOCK_WAIT: Duration = Duration::from_secs(30);
/// How long a program may take, including the wait for the lock. A program that hangs must not stop the reconciler.
const PATIENCE: Duration = LOCK_WAIT.saturating_add(Duration::from_secs(30));
/// The most that is kept of what a program prints, in bytes.
pub const LONGEST_OUTPUT: usize = 8 << 20;
/// The longest line, in bytes, where lines are read one by one.
const LONGEST_LINE: usize = 64 << 10;
/// The most that is kept of an error message, in bytes.
const LONGEST_MESSAGE: usize = 4 << 10;
/// The address space of a program that lists rules of others, in bytes. With the daemon's own memory and [`LONGEST_OUTPUT`], it fits into the
/// limit of 128 MiB that the manifests set.
pub const SEARCH_SPACE: u64 = 64 << 20;
/// What the programs print when they get no memory: of their own ("Memory allocation failure"), or for a shared library.
const OUT_OF_MEMORY: [&str; 2] = ["emory", "shared object"];

/// How much memory a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// As much as it needs: rolegate depends on its result.
    Any,
    /// [`SEARCH_SPACE`].
    Limited,
}

/// Why a program is stopped.
enum Stop {
    Failed(std::io::Error),
    TooLarge(String),
}

/// Runs a program with this input, and returns its output. The program is killed if it takes more than a minute, if it prints more than
/// [`LONGEST_OUTPUT`], or if this future is dropped.
///
/// # Errors
/// If the program cannot be run, fails, hangs, or prints more.
pub async fn run(program: &'static str, arguments: &[impl AsRef<OsStr>], input: &str) -> Result<String, RedirectError> {
    let mut text = Vec::new();
    execute(program, arguments, input, Memory::Any, |bytes| keep(&mut text, bytes)).await?;
    Ok(into_text(text))
}

/// Runs a program that lists rules of other programs, in an address space of [`SEARCH_SPACE`], and returns its output.
///
/// # Errors
/// Those of [`run`]. If the program needs more memory, [`RedirectError::TooLarge`].
pub async fn search(program: &'static str, arguments: &[impl AsRef<OsStr>]) -> Result<String, RedirectError> {
    let mut text = Vec::new();
    execute(program, arguments, "", Memory::Limited, |bytes| keep(&mut text, bytes)).await?;
    Ok(into_text(text))
}

/// Runs a program as [`search`] does, and returns only the lines that are wanted, however many others there are.
///
/// # Errors
/// Those of [`search`].
pub async fn search_lines(
    program: &'static str,
    arguments: &[impl AsRef<OsStr>],
    is_wanted: impl Fn(&str) -> bool + Send + Sync,
) -> Result<String, RedirectError> {
    lines_of(program, arguments, Memory::Limited, is_wanted).await
}

/// Runs a program, and returns only the lines that are wanted, however many others there are.
///
/// # Errors
/// Those of [`run`].
pub async fn run_for_lines(
    program: &'static str,
    arguments: &[impl AsRef<OsStr>],
    is_wanted: impl Fn(&str) -> bool + Send + Sync,
) -> Result<String, RedirectError> {
    lines_of(program, arguments, Memory::Any, is_wanted).await
}

/// Runs a program, and calls a function with each line of its output. No line is kept.
///
/// # Errors
/// If the program cannot be run, fails, or hangs, or a line is too long.
pub async fn each_line(
    program: &'static str,
    arguments: &[impl AsRef<OsStr>],
    mut see: impl FnMut(&str) + Send,
) -> Result<(), RedirectError> {
    let mut lines = Lines::default();
    let seen = |line: &str| {
        see(line);
        Ok(())
    };
    lines.read(program, arguments, Memory::Any, seen).await
}

async fn lines_of(
    program: &'static str,
    arguments: &[impl AsRef<OsStr>],
    memory: Memory,
    is_wanted: impl Fn(&str) -> bool + Send + Sync,
) -> Result<String, RedirectError> {
    let mut text = Vec::new();
    let see = |line: &str| {
        if !is_wanted(line) {
            return Ok(());
        }
        keep(&mut text, line.as_bytes())?;
        keep(&mut text, b"\n")
    };
    Lines::default().read(program, arguments, memory, see).await?;
    Ok(into_text(text))
}

/// Splits what a program prints into lines.
#[derive(Default)]
struct Lines {
    /// The beginning of a line whose end has not been read.
    begun: Vec<u8>,
}

impl Lines {
    async fn read(
        &mut self,
        program: &'static str,
        arguments: &[impl AsRef<OsStr>],
        memory: Memory,
        mut see: impl FnMut(&str) -> Result<(), String> + Send,
    ) -> Result<(), RedirectError> {
        execute(program, arguments, "", memory, |bytes| self.split(bytes, &mut see)).await?;
        let last = std::mem::take(&mut self.begun);
        if last.is_empty() {
            Ok(())
        } else {
            see(&String::from_utf8_lossy(&last)).map_err(|message| RedirectError::TooLarge { program, message })
        }
    }

    fn split(&mut self, bytes: &[u8], see: &mut impl FnMut(&str) -> Result<(), String>) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = &after[1..];
            if self.begun.is_empty() {
                see(&String::from_utf8_lossy(line))?;
            } else {
                self.begun.extend(line);
                see(&String::from_utf8_lossy(&self.begun))?;
                self.begun.clear();
            }
        }
        if self.begun.len() + rest.len() > LONGEST_LINE {
            return Err(format!("a line is longer than {} KiB", LONGEST_LINE >> 10));
        }
        self.begun.extend(rest);
        Ok(())
    }
}

fn keep(text: &mut Vec<u8>, bytes: &[u8]) -> Result<(), String> {
    if text.len() + bytes.len() > LONGEST_OUTPUT {
        return Err(format!("it prints more than {} MiB", LONGEST_OUTPUT >> 20));
    }
    text.extend(bytes);
    Ok(())
}

fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Runs a program, and calls a function with each part of its output. An error of that function stops the program.
async fn execute(
    program: &'static str,
    arguments: &[impl AsRef<OsStr>],
    input: &str,
    memory: Memory,
    take: impl FnMut(&[u8]) -> Result<(), String> + Send,
) -> Result<(), RedirectError> {
    let failed = |source: std::io::Error| RedirectError::Program { program, source };
    let mut command = Command::new(program);
    clean(&mut command);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    if memory == Memory::Limited {
        limit(&child).map_err(failed)?;
    }
    let ended = tokio::time::timeout(PATIENCE, follow(&mut child, input, take)).await;
    let (status, message) = match ended.map_err(|_elapsed| RedirectError::Hung { program, patience: PATIENCE })? {
        Ok(ended) => ended,
        Err(Stop::Failed(source)) => return Err(failed(source)),
        Err(Stop::TooLarge(message)) => {
            // It is reaped here, so that no process of the last search is left when the next one begins.
            child.kill().await.map_err(failed)?;
            return Err(RedirectError::TooLarge { program, message });
        }
    };
    if status.success() {
        return Ok(());
    }
    let message = message.trim().replace('\n', "; ");
    if memory == Memory::Limited && (status.signal().is_some() || OUT_OF_MEMORY.iter().any(|words| message.contains(words))) {
        return Err(RedirectError::TooLarge { program, message: format!("it needs more than {} MiB of memory", SEARCH_SPACE >> 20) });
    }
    Err(RedirectError::Failed { program, message: if message.is_empty() { status.to_string() } else { message } })
}

/// Limits the address space of a program that runs.
fn limit(child: &Child) -> std::io::Result<()> {
    let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) else { return Ok(()) };
    let space = Rlimit { current: Some(SEARCH_SPACE), maximum: Some(SEARCH_SPACE) };
    prlimit(Some(pid), Resource::As, space)?;
    Ok(())
}

/// Writes the input and reads the output at the same time, and returns how the program ended, with the beginning of its error message.
async fn follow(
    child: &mut Child,
    input: &str,
    mut take: impl FnMut(&[u8]) -> Result<(), String> + Send,
) -> Result<(ExitStatus, String), Stop> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that ended early reports why on its standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        Ok(())
    };
    let read = async { each_part(stdout, |bytes| take(bytes).map_err(Stop::TooLarge)).await };
    let mut message = Vec::new();
    let read_message = async {
        each_part(stderr, |bytes| {
            let room = LONGEST_MESSAGE.saturating_sub(message.len());
            message.extend(&bytes[..bytes.len().min(room)]);
            Ok(())
        })
        .await
    };
    tokio::try_join!(write, read, read_message)?;
    let status = child.wait().await.map_err(Stop::Failed)?;
    Ok((status, into_text(message)))
}

async fn each_part(from: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&[u8]) -> Result<(), Stop>) -> Result<(), Stop> {
    let Some(mut from) = from else { return Ok(()) };
    let mut part = vec![0; LONGEST_LINE];
    loop {
        match from.read(&mut part).await.map_err(Stop::Failed)? {
            0 => return Ok(()),
            read => take(&part[..read])?,
        }
    }
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

    /// The peak of the memory of this process, in KiB.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Runs in a process of its own, whose memory is that of this test alone.
    #[tokio::test]
    async fn a_program_that_prints_100_mb_is_read_with_bounded_memory() {
        const NAME: &str = "redirect::program::tests::a_program_that_prints_100_mb_is_read_with_bounded_memory";
        if std::env::var_os("ROLEGATE_TEST_ALONE").is_none() {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let ran = again.args([NAME, "--exact"]).env("ROLEGATE_TEST_ALONE", "1").output().unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(ran.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        const BYTES: &str = "100000000";
        // Twice as much, with a line in between that is wanted.
        let lines = format!("yes $(printf %0999d 7) | head -c {BYTES}; echo wanted; yes $(printf %0999d 7) | head -c {BYTES}");
        let (before, mut count) = (peak(), 0);
        for result in [run("head", &["-c", BYTES, "/dev/zero"], "").await, search("head", &["-c", BYTES, "/dev/zero"]).await] {
            assert!(matches!(&result, Err(RedirectError::TooLarge { message, .. }) if message.contains("8 MiB")), "{result:?}");
        }
        let line = search_lines("head", &["-c", BYTES, "/dev/zero"], |_| false).await;
        assert!(matches!(&line, Err(RedirectError::TooLarge { message, .. }) if message.contains("64 KiB")), "{line:?}");
        each_line("sh", &["-c", &lines], |_| count += 1).await.unwrap();
        assert_eq!(count, 200_001);
        assert_eq!(search_lines("sh", &["-c", &lines], |line| line == "wanted").await.unwrap(), "wanted\n");
        assert_eq!(run_for_lines("sh", &["-c", &lines], |line| line == "wanted").await.unwrap(), "wanted\n");
        let all = search_lines("sh", &["-c", &lines], |_| true).await;
        assert!(matches!(&all, Err(RedirectError::TooLarge { message, .. }) if message.contains("8 MiB")), "{all:?}");
        let errors = run("sh", &["-c", &format!("head -c {BYTES} /dev/zero >&2; exit 1")], "").await.unwrap_err();
        assert!(matches!(&errors, RedirectError::Failed { message, .. } if message.len() <= LONGEST_MESSAGE), "{errors}");
        assert!(peak() - before < 32 << 10, "{before} KiB before, {} KiB after", peak());
        assert!(!runs(&lines) && !runs(BYTES), "the programs have ended");
    }

    #[tokio::test]
    async fn a_program_that_lists_rules_of_others_gets_limited_memory() {
        // It may ask before the limit is set.
        let limited = |script: &str| format!("until [ \"$(ulimit -v)\" != unlimited ]; do :; done; {script}");
        let limit = (SEARCH_SPACE >> 10).to_string();
        assert_eq!(
            search("sh", &["-c", &limited("ulimit -v; ulimit -Hv")]).await.unwrap().lines().collect::<Vec<_>>(),
            [limit.as_str(); 2]
        );
        // A line without an end.
        let error = search("sh", &["-c", &limited("tr '\\0' x </dev/zero | grep y")]).await.unwrap_err();
        assert!(matches!(&error, RedirectError::TooLarge { message, .. } if message.contains("64 MiB of memory")), "{error}");
        let crashed = search("sh", &["-c", "kill -SEGV $$"]).await.unwrap_err();
        assert!(matches!(crashed, RedirectError::TooLarge { .. }), "{crashed}");
        let failed = search("sh", &["-c", "echo no such table >&2; exit 1"]).await.unwrap_err();
        assert!(matches!(&failed, RedirectError::Failed { message, .. } if message == "no such table"), "{failed}");
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

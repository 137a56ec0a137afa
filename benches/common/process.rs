//! Runs this program as several processes, and reads the memory of processes.

use std::ffi::OsString;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

/// An environment variable that tells a child process its case.
const CASE: &str = "ROLEGATE_BENCH_CASE";

/// Returns this process's case, if a benchmark started it as [`Again`].
pub(crate) fn case() -> Option<String> {
    std::env::var(CASE).ok()
}

/// Waits until the parent drops its [`Again`], or closes the child's input.
pub(crate) fn wait_for_end() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A process that runs this program again. It is killed when dropped.
pub(crate) struct Again {
    child: Child,
    output: BufReader<ChildStdout>,
    /// The first line that it printed.
    pub(crate) line: String,
}

impl Again {
    /// Starts the process with this case, and waits for its first line.
    pub(crate) fn start(case: &str) -> Self {
        Self::start_by(&[], case)
    }

    /// Starts the process through another program, whose own arguments precede the process's path.
    pub(crate) fn start_by(wrapper: &[String], case: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut words = wrapper.iter().map(OsString::from).chain([program.into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let mut child = command.env(CASE, case).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        Self { child, output, line: line.trim().to_owned() }
    }

    /// Returns the process's ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Closes the input of the process, and returns all lines that it prints after the first.
    pub(crate) fn end(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        self.output.by_ref().lines().map(|line| line.unwrap()).collect()
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory in KiB: now, and at its peak.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) peak: u64,
}

impl Memory {
    /// Returns the memory of a process, given by its ID or `self`.
    pub(crate) fn of(process: &str) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Self { resident: kib("VmRSS:"), peak: kib("VmHWM:") }
    }

    pub(crate) fn peak_mib(self) -> f64 {
        self.peak as f64 / 1024.0
    }
}

/// Shows the memory in MiB.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.1} / {:.1}", self.resident as f64 / 1024.0, self.peak_mib()))
    }
}

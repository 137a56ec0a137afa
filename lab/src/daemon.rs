//! The daemon as a process under test, started as an operator would start it. The ports that it bound are read from its log.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::node::{Netns, find_program};
use crate::player;
use crate::sts;

/// The time that any step may take before it counts as failed.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A directory of the pins of BPF programs that is in no BPF file system, so that nothing is attached with `--redirect=auto`, and no test
/// meets the pins of another one. Tests of BPF programs have a file system of their own.
pub const NO_PINS: &str = "/nonexistent/rolegate";
/// The interval at which a condition is checked again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How the daemon is started.
#[derive(Clone, Debug)]
pub struct Setup {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    namespace: Option<String>,
    wrapper: Vec<String>,
    log_file: Option<PathBuf>,
}

impl Setup {
    /// Returns a set-up that runs `program` on free ports, with the log in JSON, no limit on pods' connection rate (tests
    /// connect as often as they can), the node's identity as static keys, and nothing of this process's environment but PATH.
    pub fn new(program: impl AsRef<Path>) -> Setup {
        Setup::without_arguments(program)
            .argument("--app-port=0")
            .argument("--metrics-port=0")
            .argument("--log-format=json")
            .argument("--limits-connection-rate=1000000")
    }

    /// The daemon at `program` with the environment of [`Setup::new`], the log in JSON by a variable, and no arguments: for those
    /// of a whole manifest.
    pub fn without_arguments(program: impl AsRef<Path>) -> Setup {
        let setup = Setup {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            namespace: None,
            wrapper: Vec::new(),
            log_file: None,
        };
        setup
            .env("ROLEGATE_LOG_FORMAT", "json")
            .env("ROLEGATE_BPF_PINS", NO_PINS)
            .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", sts::NODE_ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", sts::NODE_SECRET_ACCESS_KEY)
            .env("AWS_SESSION_TOKEN", sts::NODE_SESSION_TOKEN)
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Setup {
        self.arguments.push(argument.into());
        self
    }

    /// Sets an environment variable. A later value replaces an earlier one.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Setup {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Removes an environment variable that was set before.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Setup {
        self.environment.retain(|(set, _)| set != name);
        self
    }

    /// Runs the daemon in this network namespace.
    #[must_use]
    pub fn inside(mut self, namespace: &Netns) -> Setup {
        self.namespace = Some(namespace.path());
        self
    }

    /// Runs the daemon through another program (`setpriv`), whose own arguments precede the daemon's command line.
    #[must_use]
    pub fn by_way_of(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Setup {
        self.wrapper = words.into_iter().map(Into::into).collect();
        self
    }

    /// Also appends the log to this file, line by line.
    #[must_use]
    pub fn log_file(mut self, path: impl Into<PathBuf>) -> Setup {
        self.log_file = Some(path.into());
        self
    }

    /// Returns the command that will be run.
    pub fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(path) = &self.namespace {
            words.extend(["nsenter".into(), format!("--net={path}").into(), "--".into()]);
        }
        words.extend(self.wrapper.iter().map(OsString::from));
        words.push(self.program.clone().into());
        // Resolved now, because the daemon may have a different PATH.
        let first = words.remove(0);
        let program = first.to_str().and_then(find_program).map_or(first, PathBuf::into_os_string);
        let mut command = Command::new(program);
        command.args(words).args(&self.arguments).env_clear().envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Starts the daemon, and returns once it has logged the ports that it bound.
    pub fn start(&self) -> io::Result<Daemon> {
        let mut daemon = self.spawn()?;
        let started = daemon.wait_for_event("starting")?;
        let address = |name: &str| started[name].as_str().and_then(|text| text.parse().ok());
        daemon.metadata = address("metadata_address");
        daemon.metrics = address("metrics_address");
        Ok(daemon)
    }

    /// Starts the daemon without waiting for anything, for a run that is to end before it binds a port. Its ports are not
    /// known.
    pub fn spawn(&self) -> io::Result<Daemon> {
        let append = |path| OpenOptions::new().create(true).append(true).open(path);
        let mut copy = self.log_file.as_ref().map(append).transpose()?;
        let mut child = self.command().stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let log = Arc::new(Log::default());
        if let Some(output) = child.stdout.take() {
            let log = log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some(file) = &mut copy {
                        // If the disk is full, only the copy is lost.
                        let _ = writeln!(file, "{line}");
                    }
                    log.push(line);
                }
                log.end();
            });
        }
        Ok(Daemon { child, log, metadata: None, metrics: None })
    }
}

/// The running daemon. It is killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Arc<Log>,
    metadata: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Log {
    fn push(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).0.push(line);
        self.grown.notify_all();
    }

    fn end(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.grown.notify_all();
    }

    fn has_ended(&self) -> bool {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn wait_for_end(&self, deadline: Instant) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        drop(self.grown.wait_timeout_while(lines, left, |lines| !lines.1));
    }
}

impl Daemon {
    /// The address of the pods' port, on 127.0.0.1 if it is bound to every address.
    pub fn metadata_address(&self) -> SocketAddr {
        reachable(self.metadata)
    }

    /// The address of the operators' port, on 127.0.0.1 if it is bound to every address.
    pub fn metrics_address(&self) -> SocketAddr {
        reachable(self.metrics)
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that the daemon has logged so far.
    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).0.join("\n")
    }

    /// Waits for a log line. If it does not arrive in time, or the process ends first, the error contains the log.
    pub fn wait_for_log(&self, wanted: impl Fn(&Value) -> bool) -> io::Result<Value> {
        let deadline = Instant::now() + TIMEOUT;
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = 0;
        loop {
            for line in &lines.0[seen..] {
                if let Some(line) = serde_json::from_str(line).ok().filter(&wanted) {
                    return Ok(line);
                }
            }
            seen = lines.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                return Err(io::Error::other(format!("the log line did not come; the log is:\n{}", lines.0.join("\n"))));
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a log line with this event; see [`Self::wait_for_log`].
    pub fn wait_for_event(&self, event: &str) -> io::Result<Value> {
        self.wait_for_log(|line| line["event"] == event)
    }

    /// Returns the lines with this event that have been logged so far.
    pub fn events(&self, event: &str) -> Vec<Value> {
        let lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.0.iter().filter_map(|line| serde_json::from_str(line).ok()).filter(|line: &Value| line["event"] == event).collect()
    }

    /// Sends a GET to the operators' port, from the given namespace or from the current one.
    pub fn get(&self, namespace: Option<&Netns>, path: &str) -> io::Result<player::Response> {
        let address = self.metrics_address();
        let stream = match namespace {
            Some(namespace) => namespace.connect(address, TIMEOUT)?,
            None => TcpStream::connect_timeout(&address, TIMEOUT)?,
        };
        player::request(stream, "GET", path, &[("Host", "localhost"), ("Connection", "close")])
    }

    /// Waits until the daemon reports that it is ready.
    pub fn wait_ready(&self, namespace: Option<&Netns>) -> io::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let answer = self.get(namespace, "/readyz");
            match answer {
                Ok(answer) if answer.status == 200 => return Ok(()),
                _ if self.log.has_ended() => return Err(io::Error::other(format!("it ended:\n{}", self.log()))),
                _ if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                Ok(answer) => return Err(io::Error::other(format!("not ready: {}\n{}", answer.text(), self.log()))),
                Err(error) => return Err(io::Error::other(format!("not ready: {error}\n{}", self.log()))),
            }
        }
    }

    /// Returns the value of a metric with these labels, spelled as in the output; 0 if it is missing.
    pub fn metric(&self, namespace: Option<&Netns>, name_and_labels: &str) -> io::Result<f64> {
        let metrics = self.get(namespace, "/metrics")?.text();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0.0))
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(io::Error::from)
    }

    /// Waits until the process and its log have ended.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.log.wait_for_end(deadline);
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("the daemon did not end; the log is:\n{}", self.log())));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reachable(address: Option<SocketAddr>) -> SocketAddr {
    let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address }
}

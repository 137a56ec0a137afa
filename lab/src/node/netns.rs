//! One network namespace without a name.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::error::NodeError;
use super::privilege::{in_user_namespace, path_variable};

/// A network namespace, kept alive by a file descriptor. Its `lo` is up, and IPv6 addresses are usable at once.
#[derive(Debug)]
pub struct Netns {
    label: String,
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Makes one. The label is for messages only.
    ///
    /// # Errors
    /// If this process may not, or `ip` is missing.
    pub fn new(label: &str) -> Result<Self, NodeError> {
        // Only the calling thread moves, and this one ends here.
        let fd = on_a_thread(label, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
        })?
        .map_err(failed(label, "make it"))?;
        let ns = Self { label: label.to_owned(), fd: Arc::new(fd) };
        // The kernel may have handed down what the machine has set.
        for (sysctl, value) in [
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            ns.write_sysctl(sysctl, value)?;
        }
        ns.ip_batch("link set lo up\n")?;
        Ok(ns)
    }

    /// A path to the namespace for `nsenter --net=` and `ip link set … netns`; valid for other processes too, as long
    /// as this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// What a human writes in front of a command to run it inside, from any terminal of this user.
    pub fn enter(&self) -> String {
        if in_user_namespace() {
            format!("nsenter --user --preserve-credentials -t {} --net={}", std::process::id(), self.path())
        } else {
            format!("nsenter --net={}", self.path())
        }
    }

    /// What a human types to get a shell inside.
    pub fn enter_hint(&self) -> String {
        format!("{} -- bash    # {}", self.enter(), self.label)
    }

    /// Runs a closure on a fresh thread inside and waits for it. Sockets that it makes stay in the namespace wherever
    /// they are used later, and threads that it starts are inside too. A panic of the closure is passed on.
    ///
    /// # Errors
    /// If the namespace cannot be entered; the closure does not run then.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T, NodeError> {
        let fd = Arc::clone(&self.fd);
        on_a_thread(&self.label, move || {
            setns(&*fd, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })?
        .map_err(failed(&self.label, "enter it"))
    }

    /// As [`Netns::run`], with an empty `/run` besides: what programs that it starts lock there, like the `xtables.lock` of
    /// iptables, is not the machine's.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or no mount namespace can be made; the closure does not run then.
    pub fn run_with_own_locks<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T, NodeError> {
        let fd = Arc::clone(&self.fd);
        on_a_thread(&self.label, move || {
            setns(&*fd, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
            Ok(f())
        })?
        .map_err(failed(&self.label, "enter it with a /run of its own"))
    }

    /// A listener inside, in blocking mode; for tokio, `set_nonblocking(true)` and `from_std`.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn tcp_listener(&self, addr: SocketAddr) -> Result<TcpListener, NodeError> {
        self.run(move || TcpListener::bind(addr))?.map_err(failed(&self.label, &format!("listen on {addr}")))
    }

    /// A connection from inside, in blocking mode.
    ///
    /// # Errors
    /// As `TcpStream::connect_timeout`, or if the namespace cannot be entered.
    pub fn connect(&self, addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(move || TcpStream::connect_timeout(&addr, timeout)).map_err(io::Error::other)?
    }

    /// A command that will run inside. It is the program's own process that is started, so `kill` reaches it. End it
    /// before the test ends: a process that stays keeps its namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.env("PATH", path_variable()).arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// As [`Netns::command`], for tokio.
    pub fn tokio_command(&self, program: &str) -> tokio::process::Command {
        self.command(program).into()
    }

    /// Runs a shell script inside (`sh -e`) and returns what it wrote to its standard output.
    ///
    /// # Errors
    /// If it ends with an error; the error carries its standard error.
    pub fn sh(&self, script: &str) -> Result<String, NodeError> {
        let mut command = self.command("sh");
        let output =
            command.args(["-ec", script]).stdin(Stdio::null()).output().map_err(failed(&self.label, &format!("run `{script}`")))?;
        self.stdout_of(script, &output)
    }

    /// Runs `ip` inside with one command on each line, all in one process: it is most of what making a node costs.
    pub(super) fn ip_batch(&self, commands: &str) -> Result<(), NodeError> {
        let action = "run `ip -batch -`";
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed(&self.label, action))?;
        // Dropped when it is written: that is the end of the batch.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(commands.as_bytes()));
        let output = child.wait_with_output().map_err(failed(&self.label, action))?;
        // Where `ip` could not even start, its own words say more than our broken pipe.
        self.stdout_of(commands.trim_end(), &output)?;
        written.map_err(failed(&self.label, action))
    }

    /// Writes a sysctl of the namespace, named by its path under `/proc/sys`.
    pub(super) fn write_sysctl(&self, sysctl: &str, value: &'static str) -> Result<(), NodeError> {
        let path = format!("/proc/sys/{sysctl}");
        // `/proc/sys/net` shows the namespace of the thread that opens it.
        self.run(move || std::fs::write(path, value))?.map_err(failed(&self.label, &format!("write {value} to /proc/sys/{sysctl}")))
    }

    fn stdout_of(&self, command: &str, output: &Output) -> Result<String, NodeError> {
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(NodeError::Command {
            label: self.label.clone(),
            command: command.to_owned(),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        })
    }
}

/// Runs a closure on a thread that ends with it, so that no pool ever gets a thread back that is elsewhere. The outer
/// error: no thread could be made.
fn on_a_thread<T: Send + 'static>(label: &str, f: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<io::Result<T>, NodeError> {
    let thread = std::thread::Builder::new().name(format!("netns-{label}")).spawn(f).map_err(failed(label, "start a thread"))?;
    Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn failed(label: &str, action: &str) -> impl FnOnce(io::Error) -> NodeError {
    let (label, action) = (label.to_owned(), action.to_owned());
    move |source| NodeError::Namespace { label, action, source }
}

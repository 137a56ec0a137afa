//! An unnamed network namespace.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::mount::{MsFlags, mount};
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns, unshare};

use super::error::NodeError;
use super::privilege::{in_user_namespace, path_variable};

/// The longest wait for an interface, on a machine under load.
const LINK_DEADLINE: Duration = Duration::from_secs(30);
/// The time between two looks at an interface.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// A network namespace, kept alive by a file descriptor. Its `lo` is up, and IPv6 addresses are usable at once.
#[derive(Debug)]
pub struct Netns {
    label: String,
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Creates a namespace. The label is for messages only.
    ///
    /// # Errors
    /// If this process is not permitted to, or `ip` is missing.
    pub fn new(label: &str) -> Result<Self, NodeError> {
        // Only the calling thread changes its namespace, and it ends here.
        let fd = on_a_thread(label, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
        })?
        .map_err(failed(label, "make it"))?;
        let ns = Self { label: label.to_owned(), fd: Arc::new(fd) };
        // The kernel may have copied the machine's settings.
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

    /// Returns a path to the namespace for `nsenter --net=` and `ip link set … netns`. It is valid for other processes, too, as
    /// long as this one runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Returns the command prefix with which a person runs a command inside, from any terminal of this user.
    pub fn enter(&self) -> String {
        if in_user_namespace() {
            format!("nsenter --user --preserve-credentials -t {} --net={}", std::process::id(), self.path())
        } else {
            format!("nsenter --net={}", self.path())
        }
    }

    /// Returns the command with which a person gets a shell inside.
    pub fn enter_hint(&self) -> String {
        format!("{} -- bash    # {}", self.enter(), self.label)
    }

    /// Runs a closure on a new thread inside the namespace, and waits for it. Sockets that it creates stay in the namespace
    /// wherever they are used later, and threads that it starts are inside, too. A panic of the closure is propagated.
    ///
    /// # Errors
    /// If the namespace cannot be entered; then the closure does not run.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T, NodeError> {
        let fd = Arc::clone(&self.fd);
        on_a_thread(&self.label, move || {
            setns(&*fd, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })?
        .map_err(failed(&self.label, "enter it"))
    }

    /// Runs a closure like [`Netns::run`], but with an empty `/run`, so that lock files of the programs that it starts, such as
    /// the `xtables.lock` of iptables, are not the machine's.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or no mount namespace can be created; then the closure does not run.
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

    /// Returns a listener inside the namespace, in blocking mode. For tokio, use `set_nonblocking(true)` and `from_std`.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn tcp_listener(&self, addr: SocketAddr) -> Result<TcpListener, NodeError> {
        self.run(move || TcpListener::bind(addr))?.map_err(failed(&self.label, &format!("listen on {addr}")))
    }

    /// Returns a connection from inside the namespace, in blocking mode.
    ///
    /// # Errors
    /// As for `TcpStream::connect_timeout`, or if the namespace cannot be entered.
    pub fn connect(&self, addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(move || TcpStream::connect_timeout(&addr, timeout)).map_err(io::Error::other)?
    }

    /// Returns a command that will run inside the namespace. It starts the program's own process, so that `kill` reaches it.
    /// End it before the test ends, because a process that stays keeps its namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.env("PATH", path_variable()).arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Returns a command like [`Netns::command`], for tokio.
    pub fn tokio_command(&self, program: &str) -> tokio::process::Command {
        self.command(program).into()
    }

    /// Runs a shell script inside the namespace (`sh -e`), and returns its standard output.
    ///
    /// # Errors
    /// If the script fails; the error contains its standard error.
    pub fn sh(&self, script: &str) -> Result<String, NodeError> {
        let mut command = self.command("sh");
        let output =
            command.args(["-ec", script]).stdin(Stdio::null()).output().map_err(failed(&self.label, &format!("run `{script}`")))?;
        self.stdout_of(script, &output)
    }

    /// Runs `ip` inside the namespace with one command per line, all in one process, because starting processes is most of the
    /// cost of creating a node.
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
        // Dropping the pipe after the write ends the batch.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(commands.as_bytes()));
        let output = child.wait_with_output().map_err(failed(&self.label, action))?;
        // If `ip` could not start, its own message says more than our broken pipe.
        self.stdout_of(commands.trim_end(), &output)?;
        written.map_err(failed(&self.label, action))
    }

    /// Waits until this interface is operational. Both ends of a veth are, a moment after both are up: until then, the kernel
    /// answers some packets over IPv6 with "network is unreachable".
    pub(super) fn wait_for_link(&self, name: &str) -> Result<(), NodeError> {
        let wanted = name.to_owned();
        let wait = move || {
            let deadline = Instant::now() + LINK_DEADLINE;
            let is_wanted = |one: &InterfaceAddress| one.interface_name == wanted && one.flags.contains(InterfaceFlags::IFF_RUNNING);
            while !getifaddrs()?.any(|one| is_wanted(&one)) {
                if Instant::now() > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
            Ok(())
        };
        self.run(wait)?.map_err(failed(&self.label, &format!("wait for {name}")))
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

/// Runs a closure on a thread that ends with it, so that no thread in another namespace returns to a pool. The outer error
/// means that no thread could be created.
fn on_a_thread<T: Send + 'static>(label: &str, f: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<io::Result<T>, NodeError> {
    let thread = std::thread::Builder::new().name(format!("netns-{label}")).spawn(f).map_err(failed(label, "start a thread"))?;
    Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn failed(label: &str, action: &str) -> impl FnOnce(io::Error) -> NodeError {
    let (label, action) = (label.to_owned(), action.to_owned());
    move |source| NodeError::Namespace { label, action, source }
}

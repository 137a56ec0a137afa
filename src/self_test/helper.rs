//! The helper process that owns the namespace: how it is started, how the daemon talks to it, and what it does.
//!
//! A process with threads cannot safely enter another network namespace and come back, and it should not have the right to. The
//! daemon therefore starts its own program again before it has threads, while it still has the capability. The child enters a
//! network namespace of its own, drops the privileges that it does not need, and executes the orders on its standard input, one
//! JSON line each. It ends when that input ends, so nothing of the test is left, however the daemon ends. The namespace
//! disappears with the child, and the veth pair with the namespace.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

use super::datagram;
use super::netlink::{Mac, Netlink};
use super::reply::HelperReply;
use crate::advice::Advise;
use crate::capabilities::{self, Need};

/// The hidden subcommand that the child runs.
pub(crate) const SUBCOMMAND: &str = "self-test-namespace";
/// The name of the interface inside the namespace, as in a pod.
pub(crate) const INSIDE: &str = "eth0";
/// The time that the child may take in addition to a connection's timeout.
const REPLY_TIME: Duration = Duration::from_secs(10);

/// Why the helper is not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unavailable {
    /// The process cannot create the veth pair.
    #[error("the capability NET_ADMIN is missing")]
    NetAdmin,
    /// The child cannot create its namespace.
    #[error("cannot create a network namespace: {0}")]
    Namespace(String),
    /// The child cannot be started.
    #[error("cannot start the helper process")]
    Start(#[source] io::Error),
}

impl Advise for Unavailable {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NetAdmin => Some("add the capability NET_ADMIN to the container's securityContext".into()),
            Self::Namespace(_) => Some(
                "add the capability SYS_ADMIN, which rolegate drops once the namespace exists, or use a kernel and a seccomp profile that \
                 allow user namespaces"
                    .into(),
            ),
            Self::Start(_) => None,
        }
    }
}

/// An order to the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Configure the interface inside as a pod's: its addresses and its default routes.
    SetUp { addresses: Vec<IpAddr>, gateways: Vec<IpAddr>, gateway_mac: Mac },
    /// Open a connection, send nothing, and report whether the other side closes it.
    Connect { to: SocketAddr, timeout: Duration },
    /// Send an empty datagram, and report the answer or ICMP error.
    Datagram { to: SocketAddr, timeout: Duration },
    /// Send an empty datagram from a socket that is not connected, and report whether the kernel allowed it.
    SendTo { to: SocketAddr },
}

/// A line of the child's output: a reply, or why there is none.
type ReplyLine = Result<HelperReply, String>;

/// The child process, before the runtime starts.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
}

/// The child process, with its pipes in the runtime.
#[derive(Debug)]
pub(super) struct Spoken {
    // Kills the child and waits for it when dropped.
    helper: Helper,
    orders: pipe::Sender,
    answers: tokio::io::Lines<tokio::io::BufReader<pipe::Receiver>>,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The child may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Helper {
    /// Starts the child, and waits until it has its namespace.
    ///
    /// # Errors
    /// If the child cannot be started, or cannot create its namespace.
    pub(crate) fn start() -> Result<Self, Unavailable> {
        if !capabilities::has_net_admin() {
            return Err(Unavailable::NetAdmin);
        }
        let mut command = Command::new("/proc/self/exe");
        // The child needs no credentials from the environment, and must not get the terminal's signals.
        command.arg0("rolegate").arg(SUBCOMMAND).env_clear().process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(Unavailable::Start)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        let mut helper = Self { child, stdin, stdout };
        let mut line = String::new();
        if let Some(stdout) = &mut helper.stdout {
            stdout.read_line(&mut line).map_err(Unavailable::Start)?;
        }
        match serde_json::from_str::<ReplyLine>(&line) {
            Ok(Ok(_)) => Ok(helper),
            Ok(Err(reason)) => Err(Unavailable::Namespace(reason)),
            Err(_) => Err(Unavailable::Start(io::Error::other("it exited without an answer"))),
        }
    }

    /// Registers the child's pipes with the current runtime.
    pub(super) fn speak(mut self) -> io::Result<Spoken> {
        let (Some(stdin), Some(stdout)) = (self.stdin.take(), self.stdout.take()) else { return Err(io::ErrorKind::BrokenPipe.into()) };
        // The child only writes replies, so the buffer is empty.
        let (stdin, stdout) = (OwnedFd::from(stdin), OwnedFd::from(stdout.into_inner()));
        let orders = pipe::Sender::from_owned_fd(stdin)?;
        let answers = tokio::io::BufReader::new(pipe::Receiver::from_owned_fd(stdout)?).lines();
        Ok(Spoken { helper: self, orders, answers })
    }
}

impl Spoken {
    /// Returns the child's process ID.
    pub(super) fn pid(&self) -> u32 {
        self.helper.child.id()
    }

    /// Sends an order, and returns the reply. An error of the kind `BrokenPipe` means that the child has ended.
    pub(super) async fn order(&mut self, order: &Order) -> io::Result<HelperReply> {
        let may_take = REPLY_TIME
            + match order {
                Order::Connect { timeout, .. } | Order::Datagram { timeout, .. } => *timeout * 2,
                Order::SetUp { .. } | Order::SendTo { .. } => Duration::ZERO,
            };
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let exchange = async {
            self.orders.write_all(line.as_bytes()).await?;
            self.answers.next_line().await?.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))
        };
        // After a timeout the child cannot be used again: its late reply would be taken for the next one.
        let answer = tokio::time::timeout(may_take, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        serde_json::from_str::<ReplyLine>(&answer)?.map_err(io::Error::other)
    }
}

/// Runs the child, from its start to the end of its input.
pub(crate) fn child(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut say = |line: &ReplyLine| -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        output.write_all(text.as_bytes())?;
        output.flush()
    };
    if let Err(error) = enter_namespace() {
        return say(&Err(error.to_string()));
    }
    capabilities::keep(&[Need::Interfaces]);
    say(&Ok(HelperReply::Done))?;
    for line in input.lines() {
        let answer = match serde_json::from_str(&line?)? {
            Order::SetUp { addresses, gateways, gateway_mac } => {
                set_up(&addresses, &gateways, gateway_mac).map(|()| HelperReply::Done).map_err(|error| error.to_string())
            }
            Order::Connect { to, timeout } => connect(to, timeout).map_err(|error| error.to_string()),
            Order::Datagram { to, timeout } => datagram::send(to, timeout).map_err(|error| error.to_string()),
            Order::SendTo { to } => datagram::send_unconnected(to).map_err(|error| error.to_string()),
        };
        say(&answer)?;
    }
    Ok(())
}

/// Enters a new network namespace, directly or in a user namespace. In either case the loopback interface is set up, which
/// proves that interfaces can be changed there: some systems grant user namespaces without that right.
fn enter_namespace() -> io::Result<()> {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
            .map_err(|in_user_namespace| io::Error::other(format!("{error}; in a user namespace: {in_user_namespace}")))?;
    }
    let mut netlink = Netlink::open()?;
    let loopback = netlink.link("lo")?;
    netlink.set_up(loopback.index)
}

fn set_up(addresses: &[IpAddr], gateways: &[IpAddr], gateway_mac: Mac) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(INSIDE)?;
    netlink.set_up(link.index)?;
    addresses.iter().try_for_each(|ip| netlink.add_address(link.index, *ip))?;
    for gateway in gateways {
        netlink.add_neighbour(*gateway, gateway_mac, link.index)?;
        netlink.add_default_route(*gateway, link.index)?;
    }
    Ok(())
}

fn connect(to: SocketAddr, timeout: Duration) -> io::Result<HelperReply> {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut, WouldBlock};
    let mut stream = match TcpStream::connect_timeout(&to, timeout) {
        Ok(stream) => stream,
        Err(error) => {
            if let Some(reply) = datagram::refused_locally(&error) {
                return Ok(reply);
            }
            return match error.kind() {
                ConnectionRefused => Ok(HelperReply::Refused),
                TimedOut => Ok(HelperReply::TimedOut),
                HostUnreachable | NetworkUnreachable | PermissionDenied => Ok(HelperReply::Unreachable),
                _ => Err(error),
            };
        }
    };
    let port = stream.local_addr()?.port();
    stream.set_read_timeout(Some(timeout))?;
    // Nothing is sent. A peer that sends something, or that waits, is not this node's daemon.
    Ok(match stream.read(&mut [0]) {
        Ok(1..) => HelperReply::Open { port },
        Ok(0) => HelperReply::Closed { port },
        Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => HelperReply::Open { port },
        Err(_) => HelperReply::Closed { port },
    })
}

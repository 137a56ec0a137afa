//! Processes in the control group and in the network of a pod. They do what a test orders.
//!
//! Each is this test program, started again with one of its ignored tests. Orders and answers are lines of JSON.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};
use rolegate_lab::load::{Connections, Load, Tally};
use rolegate_lab::node::{Cgroup, Netns};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::packets::{Frame, echo_request, forged_datagram};
use crate::bed::{METADATA, PATIENCE, fetch_on};

/// The environment variable with the path of the socket.
const SOCKET_VARIABLE: &str = "ROLEGATE_TEST_AGENT";
/// The environment variable with the traffic class of its packets.
const CLASS_VARIABLE: &str = "ROLEGATE_TEST_CLASS";
/// The name of the ignored test.
const TEST: &str = "bpf::agent::a_process_of_a_pod";
/// `MSG_FASTOPEN` of Linux, which nix does not have.
const MSG_FASTOPEN: i32 = 0x2000_0000;
/// `IPPROTO_RAW`.
const RAW: i32 = 255;

/// What an agent is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Gets credentials over a new connection, as an SDK does.
    Fetch(Connecting),
    /// Opens a connection, and keeps it.
    Open(Connecting),
    /// Gets credentials over the connection that it keeps.
    FetchOnOpen,
    /// Closes the connection that it keeps with a reset.
    Close,
    /// Sends a UDP datagram, from a socket of both families if `mapped`.
    Datagram { to: SocketAddr, mapped: bool },
    /// Sends an ICMP echo request from a raw socket.
    Echo { to: SocketAddr },
    /// Sends a datagram with a source address of its choice from a raw socket.
    Forged { from: Ipv4Addr, to: SocketAddr },
    /// Sends an Ethernet frame with the first segment of a connection.
    Frame(Frame),
    /// Starts clients that request the credentials of this role until the load is finished.
    StartLoad { role: String, new: usize, kept: usize },
    /// Reports the number of requests answered so far.
    CountLoad,
    /// Ends the clients.
    FinishLoad,
}

/// How a connection is opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Connecting {
    pub(super) to: SocketAddr,
    pub(super) by: By,
    /// The source port. Its connections are closed with a reset, so that the port is free at once.
    pub(super) from_port: Option<u16>,
    /// The source address, which need not be one of this network (`IP_FREEBIND`, `IP_TRANSPARENT`).
    pub(super) from_ip: Option<Ipv4Addr>,
    pub(super) patience: Duration,
}

/// What opens a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum By {
    /// connect(2).
    Connect,
    /// connect(2) that does not wait for the connection.
    Start,
    /// connect(2) with the IPv4-mapped address on a socket of both families.
    Mapped,
    /// The first write to a socket with `TCP_FASTOPEN_CONNECT`.
    FastOpen,
    /// sendto(2) with `MSG_FASTOPEN`.
    FastOpenSend,
    /// The program `uring` at this path, with this mode.
    Uring { program: String, mode: String },
}

/// What an agent did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Fetched { role: String, access_key_id: String },
    Open { local: SocketAddr },
    Answered(usize),
    Load { answered: usize, failed: usize, failures: Vec<String>, keys: BTreeSet<(String, String)> },
}

/// Why an agent failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// `ConnectionRefused` and so on.
    pub(super) kind: String,
    pub(super) message: String,
}

/// A running agent. It is killed when dropped.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    stream: Mutex<BufReader<UnixStream>>,
}

impl Connecting {
    pub(super) fn new(to: SocketAddr, by: By) -> Connecting {
        Connecting { to, by, from_port: None, from_ip: None, patience: PATIENCE }
    }
}

impl Agent {
    /// Starts an agent in this group and namespace, whose packets have this traffic class. `socket` is a path for its socket.
    pub(super) fn start(group: &Cgroup, ns: &Netns, class: u8, socket: &Path) -> Agent {
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut command = group.command(ns, std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", TEST]).env(SOCKET_VARIABLE, socket).env(CLASS_VARIABLE, class.to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "the agent did not start: {error}"),
            }
            assert!(child.try_wait().unwrap().is_none(), "the agent ended");
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_nonblocking(false).unwrap();
        Agent { child, stream: Mutex::new(BufReader::new(stream)) }
    }

    /// The process ID.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order, and waits for the answer.
    pub(super) fn ask(&self, order: &Order) -> Result<Answer, Failure> {
        let mut stream = self.stream.lock().unwrap();
        writeln!(stream.get_mut(), "{}", serde_json::to_string(order).unwrap()).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("the agent died: {order:?}: {error}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "a process that other tests start"]
fn a_process_of_a_pod() {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else { return };
    let class = std::env::var(CLASS_VARIABLE).unwrap().parse().unwrap();
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut worker = Worker { class, open: None, load: None };
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let answer = worker.carry_out(serde_json::from_str(&line.unwrap()).unwrap());
        let answer = answer.map_err(|error| Failure { kind: format!("{:?}", error.kind()), message: error.to_string() });
        writeln!(stream, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
    }
}

/// The state of an agent's own process.
struct Worker {
    class: u32,
    open: Option<(TcpStream, SocketAddr)>,
    load: Option<Load>,
}

impl Worker {
    fn carry_out(&mut self, order: Order) -> io::Result<Answer> {
        match order {
            Order::Fetch(connecting) => {
                let stream = connect(&connecting, self.class)?;
                fetched(&stream, connecting.to)
            }
            Order::Open(connecting) => {
                let stream = connect(&connecting, self.class)?;
                let local = stream.local_addr()?;
                self.open = Some((stream, connecting.to));
                Ok(Answer::Open { local })
            }
            Order::FetchOnOpen => {
                let (stream, to) = self.open.as_ref().ok_or(io::ErrorKind::NotConnected)?;
                fetched(stream, *to)
            }
            Order::Close => {
                if let Some((stream, _)) = self.open.take() {
                    Socket::from(stream).set_linger(Some(Duration::ZERO))?;
                }
                Ok(Answer::Done)
            }
            Order::Datagram { to, mapped } => {
                let socket = marked(if mapped { Domain::IPV6 } else { Domain::for_address(to) }, Type::DGRAM, None, self.class)?;
                socket.send_to(b"datagram", &if mapped { mapped_address(to) } else { to }.into()).map(|_| Answer::Done)
            }
            Order::Echo { to } => {
                let protocol = if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
                let socket = marked(Domain::for_address(to), Type::RAW, Some(protocol), self.class)?;
                socket.send_to(&echo_request(to.is_ipv4()), &SocketAddr::new(to.ip(), 0).into()).map(|_| Answer::Done)
            }
            Order::Forged { from, to } => {
                let SocketAddr::V4(to) = to else { return Err(io::ErrorKind::Unsupported.into()) };
                let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?;
                let packet = forged_datagram(from, to, self.class);
                socket.send_to(&packet, &SocketAddr::from((*to.ip(), 0)).into()).map(|_| Answer::Done)
            }
            Order::Frame(frame) => frame.send(self.class).map(|()| Answer::Done),
            Order::StartLoad { role, new, kept } => {
                let load = self.load.insert(Load::default());
                let kinds = std::iter::repeat_n(Connections::New, new).chain(std::iter::repeat_n(Connections::Kept, kept));
                for kind in kinds {
                    let class = self.class;
                    load.start(&role, kind, move || {
                        let stream = connect(&Connecting::new(METADATA, By::Connect), class)?;
                        // Thousands of closed connections would use up the ports, so they end with a reset.
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                        Ok(stream)
                    });
                }
                Ok(Answer::Done)
            }
            Order::CountLoad => Ok(Answer::Answered(self.load.as_ref().map(Load::answered).unwrap_or_default())),
            Order::FinishLoad => {
                let Tally { answered, failed, failures, keys, .. } = self.load.take().map(Load::finish).unwrap_or_default();
                Ok(Answer::Load { answered, failed, failures, keys })
            }
        }
    }
}

fn fetched(stream: &TcpStream, to: SocketAddr) -> io::Result<Answer> {
    fetch_on(stream, to).map(|fetched| Answer::Fetched { role: fetched.role, access_key_id: fetched.access_key_id })
}

fn mapped_address(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(address) => SocketAddr::new(address.ip().to_ipv6_mapped().into(), address.port()),
        SocketAddr::V6(_) => address,
    }
}

/// Returns a socket whose packets have this traffic class.
fn marked(domain: Domain, kind: Type, protocol: Option<Protocol>, class: u32) -> io::Result<Socket> {
    let socket = Socket::new(domain, kind, protocol)?;
    if domain == Domain::IPV6 {
        socket.set_tclass_v6(class)?;
    }
    // IPv4-mapped destinations have the class of IPv4. A raw socket of IPv6 has none.
    if domain == Domain::IPV4 || kind != Type::RAW {
        socket.set_tos_v4(class)?;
    }
    Ok(socket)
}

fn connect(connecting: &Connecting, class: u32) -> io::Result<TcpStream> {
    let Connecting { to, by, from_port, from_ip, patience } = connecting;
    let to = if matches!(by, By::Mapped) { mapped_address(*to) } else { *to };
    let socket = marked(Domain::for_address(to), Type::STREAM, None, class)?;
    if let Some(port) = from_port {
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        let any: SocketAddr = if to.is_ipv4() { ([0; 4], *port).into() } else { ([0_u16; 8], *port).into() };
        if from_ip.is_some() {
            socket.set_freebind_v4(true)?;
            socket.set_ip_transparent_v4(true)?;
        }
        socket.bind(&from_ip.map_or(any, |ip| (ip, *port).into()).into())?;
    }
    // Also limits connect(2).
    socket.set_write_timeout(Some(*patience))?;
    match by {
        By::Connect | By::Mapped => socket.connect(&to.into())?,
        By::Start => {
            socket.set_nonblocking(true)?;
            let in_progress = |error: &io::Error| error.raw_os_error() == Some(Errno::EINPROGRESS as i32);
            socket.connect(&to.into()).or_else(|error| if in_progress(&error) { Ok(()) } else { Err(error) })?;
        }
        By::FastOpen => {
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
        }
        By::FastOpenSend => {
            // A server ignores an empty line ahead of a request.
            let flags = MsgFlags::from_bits_retain(MSG_FASTOPEN);
            sendto(socket.as_raw_fd(), b"\r\n", &SockaddrStorage::from(to), flags)?;
        }
        By::Uring { program, mode } => {
            let (ip, port) = (to.ip().to_string(), to.port().to_string());
            let descriptor: OwnedFd = socket.try_clone()?.into();
            let mut child = Command::new(program).args([mode, &ip, &port]).stdin(descriptor).stderr(Stdio::piped()).spawn()?;
            let deadline = Instant::now() + *patience;
            while child.try_wait()?.is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = child.kill();
            let output = child.wait_with_output()?;
            if let Some(errno) = output.status.code().filter(|code| *code != 0) {
                let raw = io::Error::from_raw_os_error(errno);
                return Err(io::Error::new(raw.kind(), format!("{raw}: {}", String::from_utf8_lossy(&output.stderr))));
            }
            if !output.status.success() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

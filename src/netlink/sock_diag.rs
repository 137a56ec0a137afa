//! Queries to the kernel about sockets (sock_diag(7)): which control group a socket belongs to. They need no capability.
//!
//! Layout and numbers: linux/sock_diag.h, linux/inet_diag.h. Linux reports the control group since 5.8 (`INET_DIAG_CGROUP_ID`).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use nix::sys::time::TimeVal;

use super::Netlink;
use super::message::{NetlinkRequest, address, attribute, family, octets};
use crate::cgroup::{CgroupId, SocketCgroups};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP: u8 = 6;
/// The length of `struct inet_diag_msg`, after which attributes follow.
const INET_DIAG_MSG: usize = 72;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Any socket, whatever its cookie (`INET_DIAG_NOCOOKIE`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// The number of the loopback interface in every network namespace. Sockets that are bound to it are found as well as unbound ones.
const LOOPBACK: u32 = 1;
/// Bits of the states of a socket that a client can have after it connected: established, both FIN_WAIT, CLOSE_WAIT.
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8;
/// The time limit for an answer. The kernel gives it before the request returns.
const ANSWER_TIMEOUT: TimeVal = TimeVal::new(0, 100_000);

/// Finds the control groups of sockets in the network namespace in which it was opened.
#[derive(Debug)]
pub struct KernelSockets(Mutex<Netlink>);

impl KernelSockets {
    /// Opens a socket for queries in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If netlink is unavailable, or no descriptor is left.
    pub fn open() -> io::Result<Self> {
        Ok(Self(Mutex::new(Netlink::with(SockProtocol::NetlinkSockDiag, ANSWER_TIMEOUT)?)))
    }
}

impl SocketCgroups for KernelSockets {
    fn of(&self, client: SocketAddr, server: SocketAddr) -> io::Result<Option<CgroupId>> {
        let request = NetlinkRequest::new(SOCK_DIAG_BY_FAMILY, 0, &socket_request(client, server));
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).ask(request);
        match answer {
            Ok(body) => Ok(cgroup_of(&body, client, server)),
            // There is no such socket: the client has closed it, or is in another network.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns `struct inet_diag_req_v2` for the socket with these addresses.
fn socket_request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let mut request = vec![family(local.ip()), TCP, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        let mut octets = octets(ip);
        octets.resize(16, 0);
        request.extend(octets);
    }
    request.extend(LOOPBACK.to_ne_bytes());
    request.extend(ANY_COOKIE);
    request
}

/// Returns the control group in an answer, if the answer is about a connected socket with these addresses: where there is none, the kernel
/// answers with a listener. `None` if the kernel does not report it.
fn cgroup_of(body: &[u8], local: SocketAddr, remote: SocketAddr) -> Option<CgroupId> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    if 1_u32.checked_shl(state.into()).unwrap_or(0) & CONNECTED == 0 {
        return None;
    }
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    // A socket of IPv6 with an IPv4 connection has mapped addresses.
    let length = if family == super::message::family(Ipv4Addr::UNSPECIFIED.into()) { 4 } else { 16 };
    let ip = |at: usize| body.get(at..at + length).and_then(address).map(|ip| ip.to_canonical());
    let end = |port_at, ip_at| Some(SocketAddr::new(ip(ip_at)?, port(port_at)?));
    let is = |found: Option<SocketAddr>, wanted: SocketAddr| found == Some(SocketAddr::new(wanted.ip().to_canonical(), wanted.port()));
    if !is(end(4, 8), local) || !is(end(6, 24), remote) {
        return None;
    }
    let id = attribute(body.get(INET_DIAG_MSG..)?, INET_DIAG_CGROUP_ID)?;
    Some(CgroupId(u64::from_ne_bytes(id.try_into().ok()?)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// The control group of this process, by its path in the cgroup2 file system; `None` if the test cannot see it.
    fn own() -> Option<CgroupId> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let mount = mount.split(' ').nth(4)?;
        std::fs::metadata(format!("{mount}{path}")).ok().map(|metadata| CgroupId(metadata.ino()))
    }

    #[test]
    fn the_control_group_of_a_client_is_that_of_its_process() {
        let sockets = KernelSockets::open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let server = listener.local_addr().unwrap();
            let client = TcpStream::connect(server).unwrap();
            let ends = [client.local_addr().unwrap(), server].map(|end| SocketAddr::new(end.ip().to_canonical(), end.port()));
            let found = sockets.of(ends[0], ends[1]).unwrap();
            assert!(found.is_some(), "{address}");
            if let Some(own) = own() {
                assert_eq!(found, Some(own), "{address}");
            }
            // Not the listener, and not the accepted socket's peer with another port.
            let nobody = SocketAddr::new(ends[0].ip(), 1);
            assert_eq!(sockets.of(nobody, ends[1]).unwrap(), None, "{address}");
            assert_eq!(sockets.of(ends[1], nobody).unwrap(), None, "{address}: the listener");
        }
    }

    #[test]
    fn answers_are_never_read_past_the_end() {
        let ends: [SocketAddr; 2] = ["127.0.0.1:1000", "127.0.0.1:8182"].map(|end| end.parse().unwrap());
        let mut body = vec![family(ends[0].ip()), 1, 0, 0];
        body.extend(&socket_request(ends[0], ends[1])[8..]);
        body.resize(INET_DIAG_MSG, 0);
        super::super::message::append(&mut body, INET_DIAG_CGROUP_ID, &7_u64.to_ne_bytes());
        assert_eq!(cgroup_of(&body, ends[0], ends[1]), Some(CgroupId(7)));
        for length in 0..body.len() {
            assert_eq!(cgroup_of(&body[..length], ends[0], ends[1]), None, "{length}");
        }
        for state in [2, 3, 6, 7, 10, 12, 255] {
            body[1] = state;
            assert_eq!(cgroup_of(&body, ends[0], ends[1]), None, "state {state}");
        }
    }
}

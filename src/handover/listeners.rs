//! The listening sockets of this network namespace, as the kernel lists them (proc(5), `/proc/net/tcp`).
//!
//! A port that is bound with `SO_REUSEPORT` can be bound again by every process of the same effective user, and the kernel
//! distributes connections among the sockets. This process can see that there is another socket, but not which program has it,
//! because that may be in another PID namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::log_once::Changes;

const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// The state of a listening socket.
const LISTEN: &str = "0A";
/// Interval of the check for other listening sockets.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ListeningSocket {
    address: SocketAddr,
    inode: u64,
}

/// Returns whether the socket with this inode listens in this network namespace.
pub(super) fn has(inode: u64) -> bool {
    listeners().iter().any(|listener| listener.inode == inode)
}

/// Reports, until dropped, when other sockets receive some of this socket's connections.
pub(super) async fn watch(socket: Arc<OwnedFd>) {
    // No other sockets have been found yet.
    let mut logged = Changes::default();
    logged.is_new(Vec::new());
    loop {
        let asked = socket.clone();
        let found = tokio::task::spawn_blocking(move || others(&asked)).await;
        if let Ok(Ok((address, found))) = found
            && logged.is_new(found.clone())
        {
            if found.is_empty() {
                info!(event = "app-port-alone", %address, "no other socket listens on the app port any more");
            } else {
                warn!(
                    event = "app-port-shared", %address, sockets = found.len(),
                    "other sockets listen on the app port and receive some of the pods' connections; this is expected for a short time \
                     after a failed handover; otherwise, find the process with 'ss --listening --tcp --processes' on the node and stop it"
                );
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Returns the socket's address, and the inodes of other sockets that receive some of its connections.
fn others(socket: &OwnedFd) -> std::io::Result<(SocketAddr, Vec<u64>)> {
    let own = std::fs::File::from(socket.try_clone()?).metadata()?.ino();
    let address = socket2::SockRef::from(socket).local_addr()?.as_socket();
    let address = address.ok_or_else(|| std::io::Error::other("no address of IP"))?;
    let mut inodes: Vec<_> =
        listeners().into_iter().filter(|other| other.inode != own && takes_from(other.address, address)).map(|other| other.inode).collect();
    inodes.sort_unstable();
    inodes.dedup();
    Ok((address, inodes))
}

/// Returns whether a socket at `other` receives connections that a socket at `own` would receive otherwise. The socket with the
/// more specific address receives them; sockets with the same address share them.
fn takes_from(other: SocketAddr, own: SocketAddr) -> bool {
    let (ip, own_ip) = (other.ip().to_canonical(), own.ip().to_canonical());
    other.port() == own.port() && (own_ip.is_unspecified() || ip == own_ip)
}

fn listeners() -> Vec<ListeningSocket> {
    TABLES.iter().filter_map(|table| std::fs::read_to_string(table).ok()).flat_map(|table| parse(&table)).collect()
}

/// The columns are: number, local address, remote address, state, queues, timer, retransmits, user, timeout, inode.
fn parse(table: &str) -> Vec<ListeningSocket> {
    let listener = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (address, state) = (words.nth(1)?, words.nth(1)?);
        let inode = words.nth(5)?.parse().ok()?;
        (state == LISTEN).then_some(ListeningSocket { address: parse_address(address)?, inode })
    };
    table.lines().filter_map(listener).collect()
}

/// `ADDRESS:PORT` in hexadecimal digits; the address in words of 32 bits, each in the byte order of the machine.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (number, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(number * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests;

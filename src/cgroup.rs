//! Control groups (version 2): which one opened a connection, and which ones may reach the real metadata service.
//!
//! The kernel's programs (`redirect::bpf`) record and enforce both. The server, and the task that follows this node's pods, use
//! only the traits in this module.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

mod directory;
mod id;
mod path;

pub(crate) use directory::in_background;
pub use directory::{CgroupOwner, PodCgroups};
pub use id::CgroupId;
pub(crate) use path::is_uid;
pub use path::{Layout, PodDirectory, SELF_TEST, is_static_uid};

/// The kernel's record of a connection that it redirected when the client's socket connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectedSocket {
    /// The control group of the pod whose process connected.
    pub cgroup: CgroupId,
    /// The control group of the process: that of its container, or one that the container made. It identifies nobody.
    pub process: CgroupId,
    /// Whether the socket is in the node's own network namespace, as that of a pod with `hostNetwork: true` is.
    pub is_in_host_network: bool,
    /// The metadata address that the client connected to.
    pub destination: SocketAddr,
}

/// Returns whether a connection from this address to one of the node can be that of a socket in the node's own network: connections within
/// a network have the same address at both ends, or a loopback address.
pub fn is_of_node(peer: IpAddr, local: IpAddr) -> bool {
    let peer = peer.to_canonical();
    peer == local.to_canonical() || peer.is_loopback()
}

/// Identifies the clients of connections that the kernel redirected when they connected.
pub trait RedirectedSockets: Send + Sync + fmt::Debug {
    /// Returns the kernel's record of the accepted connection with these addresses, or `None` if the client did not connect to the
    /// metadata address in this way. IPv4 addresses are plain ones, not mapped to IPv6.
    ///
    /// The record is that of this very connection, never that of an earlier one with the same addresses and ports: in the node's
    /// network, the next client with them may be another pod.
    ///
    /// # Errors
    ///
    /// The record cannot be read. The connection must then be refused.
    fn find(&self, peer: SocketAddr, local: SocketAddr) -> io::Result<Option<RedirectedSocket>>;
}

/// Finds the control groups of sockets in the node's network.
pub trait SocketCgroups: Send + Sync + fmt::Debug {
    /// Returns the control group of the process that created the client's socket of a connection within this network. `None` if the
    /// socket no longer exists, it is in another network, or the kernel does not report a control group. IPv4 addresses are not mapped to
    /// IPv6.
    ///
    /// # Errors
    ///
    /// The query to the kernel fails.
    fn of(&self, client: SocketAddr, server: SocketAddr) -> io::Result<Option<CgroupId>>;
}

/// Lets pods in the node's network reach the real metadata service.
pub trait HostNetworkExemptions: Send + Sync + fmt::Debug {
    /// Replaces the control groups of pods (not of containers) that may reach the real metadata service.
    ///
    /// # Errors
    ///
    /// The kernel does not take them. The former ones stay in effect.
    fn exempt(&self, pods: &BTreeSet<CgroupId>) -> io::Result<()>;
}

/// Tells which pods in the node's network use the real metadata service.
pub trait PassedConnections: Send + Sync + fmt::Debug {
    /// Returns how often each pod connected to the real metadata service from the node's network, by the control group of the pod. The
    /// counts outlive the daemon; pods that have been idle for long may be missing.
    ///
    /// # Errors
    ///
    /// The counts cannot be read.
    fn passed(&self) -> io::Result<HashMap<CgroupId, u64>>;
}

/// The kernel's programs that redirect connections of pods when they connect.
#[derive(Clone, Debug)]
pub struct RedirectPrograms {
    /// Their records of connections.
    pub sockets: Arc<dyn RedirectedSockets>,
    /// The pods that they leave alone.
    pub exemptions: Arc<dyn HostNetworkExemptions>,
    /// Their counts of connections to the real metadata service.
    pub passed: Arc<dyn PassedConnections>,
    /// The directory of the pods' control group, in which the kubelet creates those of the pods.
    pub pods_cgroup: PathBuf,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_addresses_are_of_its_network() {
        let cases = [
            ("10.0.0.1", "10.0.0.1", true),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("127.0.0.5", "10.0.0.1", true),
            ("::1", "fd00::1", true),
            ("fd00::1", "fd00::1", true),
            ("10.0.0.2", "10.0.0.1", false),
            ("::ffff:10.0.0.2", "10.0.0.1", false),
            ("fd00::2", "fd00::1", false),
        ];
        for (peer, local, expected) in cases {
            assert_eq!(is_of_node(peer.parse().unwrap(), local.parse().unwrap()), expected, "{peer} {local}");
        }
    }
}

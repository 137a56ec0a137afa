//! Connections that the kernel's programs redirected when their clients connected.
//!
//! The kernel recorded the control group of the pod whose process connected. In the node's network, it alone identifies the pod. In a pod's
//! own network, the pod is identified by its address, and the control group must be of the same pod.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{error, info};

use crate::cgroup::{CgroupOwner, PodCgroups, RedirectedSocket, RedirectedSockets, is_of_node};
use crate::connections::Source;
use crate::log_once::Condition;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6, METADATA_PORT};
use crate::pods::{Lookup, Pods};
use crate::proxy::{ConnectedProcess, Origin};

/// The most connections from the node's network that wait until their control group is found: as many as a node may have pods, because
/// all of them may start at once.
const MAX_RESOLVING: usize = 256;

/// Identifies the clients of connections that the kernel's programs redirected.
#[derive(Debug)]
pub(crate) struct Redirected {
    sockets: Arc<dyn RedirectedSockets>,
    cgroups: PodCgroups,
    resolving: Arc<Semaphore>,
    unreadable: Condition,
    unreadable_cgroups: Condition,
}

impl Redirected {
    /// Creates a source of identities from the kernel's records and the control groups of pods.
    pub(crate) fn new(sockets: Arc<dyn RedirectedSockets>, cgroups: PodCgroups) -> Self {
        let resolving = Arc::new(Semaphore::new(MAX_RESOLVING));
        Self { sockets, cgroups, resolving, unreadable: Condition::default(), unreadable_cgroups: Condition::default() }
    }

    /// Returns the process of a record, if its control group is known already.
    pub(super) fn known(&self, record: RedirectedSocket) -> Option<ConnectedProcess> {
        self.cgroups.known(record.cgroup).map(|owner| self.process(record, Some(owner)))
    }

    /// Returns the kernel's record of a connection, if its client connected to the metadata address. The connection must be closed if
    /// the record cannot be read.
    pub(super) fn record_of(&self, stream: &TcpStream, peer: SocketAddr) -> io::Result<Option<RedirectedSocket>> {
        let local = stream.local_addr()?;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        match self.sockets.find(peer, local) {
            Ok(record) => {
                if self.unreadable.ends() {
                    info!(event = "redirect-records-readable", "the kernel's records of redirected connections can be read again");
                }
                // In the node's network, the record alone identifies the pod, so it must not be that of another pod's address.
                let may_be = |record: &RedirectedSocket| !record.is_in_host_network || is_of_node(peer.ip(), local.ip());
                Ok(record.filter(|record| is_metadata(record.destination) && may_be(record)))
            }
            Err(error) => {
                if self.unreadable.begins() {
                    error!(
                        event = "redirect-records-unreadable", %error,
                        "cannot read the kernel's records of redirected connections; closing all connections of pods until it works; check \
                         the daemon's capabilities, and whether another program removed the pinned maps"
                    );
                }
                Err(error)
            }
        }
    }

    /// Takes a place for a connection from the node's network whose control group has to be found. Returns `None` if there is none.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.resolving.clone().try_acquire_owned().ok()
    }

    /// Finds the process of a record. May wait for a fraction of a second.
    pub(super) async fn find(&self, record: RedirectedSocket) -> io::Result<ConnectedProcess> {
        match self.cgroups.find(record.cgroup).await {
            Ok(owner) => {
                if self.unreadable_cgroups.ends() {
                    info!(event = "cgroups-readable", "the control groups of pods can be read again");
                }
                Ok(self.process(record, owner))
            }
            Err(error) => {
                if self.unreadable_cgroups.begins() {
                    error!(
                        event = "cgroups-unreadable", %error,
                        "cannot read the control groups of pods; closing connections from containers that are not known yet; check that \
                         the cgroup2 file system of the node is mounted in the daemon's container"
                    );
                }
                Err(error)
            }
        }
    }

    /// Returns the process of a record, whose pod is that of this owner. Its container is told in messages if it is known.
    fn process(&self, record: RedirectedSocket, owner: Option<CgroupOwner>) -> ConnectedProcess {
        let container = |owner: CgroupOwner| match self.cgroups.known(record.process) {
            Some(process) if process.pod == owner.pod => process,
            _ => owner,
        };
        ConnectedProcess { owner: owner.map(container), is_in_host_network: record.is_in_host_network }
    }
}

/// Returns the source that limits count a connection for, where the control group decides that.
pub(super) fn source(origin: &Origin, pods: &Pods) -> Option<Source> {
    let process = origin.process.as_ref()?;
    let Some(owner) = &process.owner else {
        // It is refused, and the node's address is not a pod's.
        return process.is_in_host_network.then(|| Source::unknown(origin.ip));
    };
    if process.is_in_host_network {
        return Some(Source::in_host_network(owner.pod.clone(), pods.by_uid(&owner.pod)));
    }
    // It must not use up the budget of the pod whose address it has.
    match pods.at_once(origin.ip) {
        Ok(Lookup::Found(pod, _)) if *owner.pod != *pod.uid_of_kubelet() => Some(Source::Disputed(origin.ip)),
        _ => None,
    }
}

/// Returns whether an address is that of the metadata service.
pub(super) fn is_metadata(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    address.port() == METADATA_PORT && [IpAddr::V4(METADATA_IPV4), IpAddr::V6(METADATA_IPV6)].contains(&ip)
}

//! The maps that the rest of the daemon uses: records of connections, and pods that may use the real metadata service.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{HashMap, MapData, MapError};

use super::error::BpfError;
use super::layout::{CONNECTION, RECORD, connection, record};
use crate::cgroup::{CgroupId, HostNetworkExemptions, RedirectedSocket, RedirectedSockets, is_of_node};

/// The value of an exempt pod. It means nothing.
const EXEMPT: u32 = 1;

/// The kernel's records of connections that it redirected; cheap to clone.
#[derive(Clone, Debug)]
pub struct Records(Arc<HashMap<MapData, [u8; CONNECTION], [u8; RECORD]>>);

impl Records {
    pub(super) fn new(map: HashMap<MapData, [u8; CONNECTION], [u8; RECORD]>) -> Self {
        Self(Arc::new(map))
    }

    fn get(&self, peer: SocketAddr, local: SocketAddr, in_host_network: bool) -> io::Result<Option<RedirectedSocket>> {
        match self.0.get(&connection(peer, local, in_host_network), 0) {
            Ok(found) => Ok(Some(record(&found, in_host_network))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl RedirectedSockets for Records {
    fn find(&self, peer: SocketAddr, local: SocketAddr) -> io::Result<Option<RedirectedSocket>> {
        // A pod may give any address to a network of its own, also the node's, and a process in the node's network may bind its socket
        // to the address of a pod (IP_TRANSPARENT). Neither has a connection here with these addresses.
        self.get(peer, local, is_of_node(peer.ip(), local.ip()))
    }
}

/// The pods that may use the real metadata service; cheap to clone.
#[derive(Clone, Debug)]
pub struct Exemptions(Arc<Mutex<ExemptPods>>);

#[derive(Debug)]
struct ExemptPods {
    map: HashMap<MapData, u64, u32>,
    /// The daemon's own pod, which is always exempt.
    own: Option<CgroupId>,
}

impl Exemptions {
    pub(super) fn new(map: HashMap<MapData, u64, u32>) -> Self {
        Self(Arc::new(Mutex::new(ExemptPods { map, own: None })))
    }

    /// Exempts the daemon's own pod, and keeps it exempt.
    pub(super) fn exempt_own(&self, own: CgroupId) -> Result<(), BpfError> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.own = Some(own);
        pods.map.insert(own.0, EXEMPT, 0).map_err(|error| BpfError::kernel("exempt the daemon's own pod", error))
    }
}

impl HostNetworkExemptions for Exemptions {
    fn exempt(&self, pods: &BTreeSet<CgroupId>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: BTreeSet<u64> = pods.iter().chain(&state.own).map(|pod| pod.0).collect();
        let former: BTreeSet<u64> = state.map.keys().collect::<Result<_, _>>().map_err(io::Error::other)?;
        for (done, pod) in wanted.difference(&former).enumerate() {
            if let Err(error) = state.map.insert(pod, EXEMPT, 0) {
                // All or none.
                for pod in wanted.difference(&former).take(done) {
                    let _ = state.map.remove(pod);
                }
                return Err(io::Error::other(error));
            }
        }
        for pod in former.difference(&wanted) {
            match state.map.remove(pod) {
                // Another daemon has removed it.
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(())
    }
}

//! The maps that the rest of the daemon uses: records of connections, and pods that may use the real metadata service.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{HashMap, MapData, MapError};

use super::error::BpfError;
use super::layout::{CONNECTION, RECORD, connection, record};
use super::turn::ProgramTurn;
use crate::cgroup::{CgroupId, HostNetworkExemptions, RedirectedSocket, RedirectedSockets, is_of_node};
use crate::redirect::ownership::OtherDaemons;

/// The value of an exempt pod. The programs do not read it.
const EXEMPT: u32 = 1;
/// The value of a daemon's own pod.
const OWN: u32 = 2;

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
    /// Which daemon decides; `None` until the programs are loaded.
    turn: Option<ProgramTurn>,
}

impl Exemptions {
    pub(super) fn new(map: HashMap<MapData, u64, u32>) -> Self {
        Self(Arc::new(Mutex::new(ExemptPods { map, own: None, turn: None })))
    }

    /// Lets a later daemon decide.
    pub(super) fn take_turns(&self, turn: ProgramTurn) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).turn = Some(turn);
    }

    /// Exempts no pod but those of daemons.
    pub(super) fn clear(&self) -> Result<(), BpfError> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error| BpfError::kernel("clear the exemptions of an earlier daemon", error);
        let former = pods.former().map_err(failed)?;
        pods.remove(stale(&former, &BTreeSet::new(), OtherDaemons { is_any: true, is_later: false })).map_err(failed)
    }

    /// Exempts the daemon's own pod, and keeps it exempt.
    pub(super) fn exempt_own(&self, own: CgroupId) -> Result<(), BpfError> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.own = Some(own);
        pods.map.insert(own.0, OWN, 0).map_err(|error| BpfError::kernel("exempt the daemon's own pod", error))
    }
}

impl ExemptPods {
    /// Returns what is exempt, with the values.
    fn former(&self) -> Result<BTreeMap<u64, u32>, MapError> {
        let mut former = BTreeMap::new();
        for pod in self.map.keys() {
            let pod = pod?;
            match self.map.get(&pod, 0) {
                Ok(value) => drop(former.insert(pod, value)),
                // Another daemon has removed it.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(former)
    }

    fn remove(&mut self, pods: Vec<u64>) -> Result<(), MapError> {
        for pod in pods {
            match self.map.remove(&pod) {
                // Another daemon has removed it.
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Returns the pods that are no longer exempt. A daemon that was started later knows better, and each daemon that runs needs its own pod.
fn stale(former: &BTreeMap<u64, u32>, wanted: &BTreeSet<u64>, others: OtherDaemons) -> Vec<u64> {
    let is_stale = |(pod, value): &(&u64, &u32)| !(others.is_later || wanted.contains(pod) || others.is_any && **value == OWN);
    former.iter().filter(is_stale).map(|(pod, _)| *pod).collect()
}

impl HostNetworkExemptions for Exemptions {
    fn exempt(&self, pods: &BTreeSet<CgroupId>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.turn.as_ref().is_some_and(ProgramTurn::is_succeeded) {
            return Ok(());
        }
        let wanted: BTreeSet<u64> = pods.iter().chain(&state.own).map(|pod| pod.0).collect();
        let former = state.former().map_err(io::Error::other)?;
        let missing: Vec<u64> = wanted.iter().filter(|pod| !former.contains_key(pod)).copied().collect();
        for (done, pod) in missing.iter().enumerate() {
            if let Err(error) = state.map.insert(pod, EXEMPT, 0) {
                // All or none.
                for pod in missing.iter().take(done) {
                    let _ = state.map.remove(pod);
                }
                return Err(io::Error::other(error));
            }
        }
        let unknown = OtherDaemons { is_any: true, is_later: false };
        let others = state.turn.as_ref().map_or(unknown, ProgramTurn::others);
        state.remove(stale(&former, &wanted, others)).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_daemon_removes_exemptions_and_never_a_living_daemons_own() {
        let former = BTreeMap::from([(1, EXEMPT), (2, EXEMPT), (3, OWN)]);
        let wanted = BTreeSet::from([1]);
        let stale = |is_any, is_later| stale(&former, &wanted, OtherDaemons { is_any, is_later });
        assert_eq!(stale(false, false), [2, 3]);
        assert_eq!(stale(true, false), [2]);
        assert_eq!(stale(true, true), [0; 0]);
    }
}

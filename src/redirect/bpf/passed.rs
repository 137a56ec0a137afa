//! The programs' counts of connections to the real metadata service, by pod.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use aya::maps::{self, MapData, MapError};

use crate::cgroup::{CgroupId, PassedConnections};

/// How often each pod in the node's network connected to the real metadata service; cheap to clone.
#[derive(Clone, Debug)]
pub struct Passed(Arc<maps::HashMap<MapData, u64, u64>>);

impl Passed {
    pub(super) fn new(map: maps::HashMap<MapData, u64, u64>) -> Self {
        Self(Arc::new(map))
    }
}

impl PassedConnections for Passed {
    fn passed(&self) -> io::Result<HashMap<CgroupId, u64>> {
        let mut found = HashMap::new();
        for pod in self.0.keys() {
            let pod = pod.map_err(io::Error::other)?;
            match self.0.get(&pod, 0) {
                Ok(count) => drop(found.insert(CgroupId(pod), count)),
                // The kernel forgot it for another pod.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(found)
    }
}

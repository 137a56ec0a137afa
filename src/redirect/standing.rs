//! What stands of ours in the kernel, whatever is wanted: found by the names of our table and chains.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::rules::Family;

/// What stands of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The families whose guard is in a packet's way.
    pub guards: BTreeSet<Family>,
    /// Where requests are sent to.
    pub targets: BTreeSet<SocketAddr>,
}

impl Standing {
    /// Whether nothing that is forwarded to a metadata address would pass.
    pub fn is_guarded(&self) -> bool {
        Family::ALL.iter().all(|family| self.guards.contains(family))
    }
}

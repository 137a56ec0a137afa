//! Limits what the process may do to the node: once the needed capabilities are known, every other one is dropped, for good and
//! for every program that the process starts.
//!
//! Capabilities belong to threads (capabilities(7)), so this must run while the process has only one thread. The bounding set
//! is narrowed as well, because a program started by root gets everything in it, and `no_new_privs` keeps every program from
//! gaining more than the process has.

use std::io;

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use tracing::{debug, info, warn};

/// The first port that needs no NET_BIND_SERVICE. A node may set a lower limit (`net.ipv4.ip_unprivileged_port_start`).
const FIRST_FREE_PORT: u16 = 1024;
/// The kernel stores capabilities in 64 bits; about forty are defined.
const BITS: u32 = u64::BITS;

/// An operation of the daemon that requires a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Packet rules: NET_ADMIN, and NET_RAW because legacy iptables opens a raw socket.
    Rules,
    /// BPF programs, which are attached again when something removes them: BPF and NET_ADMIN.
    Bpf,
    /// The daemon's own interfaces and routes: NET_ADMIN.
    Interfaces,
    /// Listening on this port: NET_BIND_SERVICE if the port is a low one.
    Port(u16),
}

impl Need {
    fn capabilities(self) -> CapabilitySet {
        match self {
            Self::Rules => CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
            Self::Bpf => CapabilitySet::BPF | CapabilitySet::NET_ADMIN,
            Self::Interfaces => CapabilitySet::NET_ADMIN,
            Self::Port(1..FIRST_FREE_PORT) => CapabilitySet::NET_BIND_SERVICE,
            Self::Port(_) => CapabilitySet::empty(),
        }
    }
}

/// Drops every capability that none of these needs. A capability that cannot be dropped is logged and is not an error: a
/// process without SETPCAP cannot narrow its bounding set, and was usually given a narrow one.
pub(crate) fn keep(needs: &[Need]) {
    let kept = needs.iter().fold(CapabilitySet::empty(), |kept, need| kept | need.capabilities());
    // The bounding set comes first: narrowing it needs a capability that is dropped next.
    let left = narrow_bounding_set(kept);
    if let Err(error) = set_no_new_privs(true) {
        warn!(
            event = "no-new-privileges-failed", %error,
            "cannot set no_new_privs; programs that rolegate runs can gain privileges that it does not have; set allowPrivilegeEscalation: \
             false"
        );
    }
    match drop_all_but(kept) {
        Ok(has) => debug!(capabilities = %names(has), "dropped all capabilities but these"),
        Err(error) => warn!(
            event = "capabilities-kept", %error,
            "cannot drop capabilities; keeping all of the container's capabilities; grant the container only those that rolegate needs"
        ),
    }
    if !left.is_empty() {
        // `no_new_privs` keeps these from having any effect.
        info!(
            event = "capabilities-bounded", capabilities = %names(left),
            "cannot remove these capabilities from the bounding set without SETPCAP; they have no effect; drop them in the container's \
             securityContext"
        );
    }
}

/// Returns the names of the capabilities that these need and the process does not have. NET_RAW is not counted: only legacy
/// iptables needs it, and says so.
pub(crate) fn missing(needs: &[Need]) -> Vec<&'static str> {
    let has = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let needed = needs.iter().fold(CapabilitySet::empty(), |all, need| all | need.capabilities()) - CapabilitySet::NET_RAW;
    let names =
        [("NET_ADMIN", CapabilitySet::NET_ADMIN), ("BPF", CapabilitySet::BPF), ("NET_BIND_SERVICE", CapabilitySet::NET_BIND_SERVICE)];
    names.into_iter().filter(|(_, one)| (needed - has).contains(*one)).map(|(name, _)| name).collect()
}

/// Returns whether the process may create and change interfaces and rules.
pub(crate) fn has_net_admin() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// Narrows the bounding set. Returns the capabilities that could not be removed from it.
fn narrow_bounding_set(kept: CapabilitySet) -> CapabilitySet {
    let mut left = CapabilitySet::empty();
    for one in (0..BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        // The kernel returns an error for numbers above the last capability it knows.
        let Ok(is_in) = capability_is_in_bounding_set(one) else { break };
        if is_in && !kept.contains(one) && remove_capability_from_bounding_set(one).is_err() {
            left |= one;
        }
    }
    left
}

/// Drops all capabilities but these. The kernel narrows the ambient set as well, which contains only capabilities that are both
/// permitted and inheritable.
fn drop_all_but(kept: CapabilitySet) -> io::Result<CapabilitySet> {
    let mut sets = capabilities(None)?;
    sets.permitted &= kept;
    sets.effective = sets.permitted;
    sets.inheritable &= kept;
    set_capabilities(None, sets)?;
    Ok(sets.permitted)
}

/// Formats capabilities as capabilities(7) does, without `CAP_`.
fn names(set: CapabilitySet) -> String {
    if set.is_empty() {
        return "none".to_owned();
    }
    let named = set.iter_names().map(|(name, _)| name.to_owned());
    let unnamed = set.difference(CapabilitySet::all()).iter().map(|one| format!("number {}", one.bits().trailing_zeros()));
    named.chain(unnamed).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_maps_to_its_capabilities() {
        assert_eq!(Need::Rules.capabilities(), CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
        assert_eq!(Need::Bpf.capabilities(), CapabilitySet::NET_ADMIN | CapabilitySet::BPF);
        assert_eq!(Need::Interfaces.capabilities(), CapabilitySet::NET_ADMIN);
        for (port, wanted) in [(0, CapabilitySet::empty()), (1, CapabilitySet::NET_BIND_SERVICE), (1023, CapabilitySet::NET_BIND_SERVICE)] {
            assert_eq!(Need::Port(port).capabilities(), wanted, "{port}");
        }
        assert_eq!(Need::Port(1024).capabilities(), CapabilitySet::empty());
    }

    #[test]
    fn capabilities_have_names() {
        assert_eq!(names(CapabilitySet::empty()), "none");
        assert_eq!(names(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW), "NET_ADMIN, NET_RAW");
    }

    /// Runs on its own thread: dropping capabilities affects only the calling thread.
    #[test]
    fn unneeded_capabilities_are_dropped() {
        let dropped = std::thread::spawn(|| {
            keep(&[Need::Port(80)]);
            (capabilities(None).map_err(io::Error::from), rustix::thread::no_new_privs().ok())
        });
        let Ok((Ok(sets), no_new_privs)) = dropped.join() else { panic!("a thread can ask for its capabilities") };
        assert!(CapabilitySet::NET_BIND_SERVICE.contains(sets.permitted), "{sets:?}");
        assert_eq!((sets.effective, no_new_privs), (sets.permitted, Some(true)));
        assert!(CapabilitySet::NET_BIND_SERVICE.contains(sets.inheritable), "{sets:?}");
    }
}

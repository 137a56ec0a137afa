//! What the process may do to the node: once it is known what is needed, everything else that it was given is dropped, for
//! good and for every program that it starts.
//!
//! Capabilities belong to threads (capabilities(7)): this is for the time when there is one alone. The bounding set is
//! narrowed, too, since a program started by root has all that is in it, and `no_new_privs` keeps every program from having
//! more than the process.

use std::io;

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use tracing::{debug, info, warn};

/// Below it, ports are for NET_BIND_SERVICE alone. A node may have this lower (`net.ipv4.ip_unprivileged_port_start`).
const FIRST_FREE_PORT: u16 = 1024;
/// The kernel counts in 64 bits; it has some forty.
const BITS: u32 = u64::BITS;

/// Something that the daemon does by right of a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Packet rules: NET_ADMIN; the legacy flavour of iptables opens a raw socket, for which it takes NET_RAW.
    Rules,
    /// Interfaces and routes of one's own: NET_ADMIN.
    Interfaces,
    /// To listen on this port: NET_BIND_SERVICE, where it is a low one.
    Port(u16),
}

impl Need {
    fn capabilities(self) -> CapabilitySet {
        match self {
            Self::Rules => CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
            Self::Interfaces => CapabilitySet::NET_ADMIN,
            Self::Port(1..FIRST_FREE_PORT) => CapabilitySet::NET_BIND_SERVICE,
            Self::Port(_) => CapabilitySet::empty(),
        }
    }
}

/// Drops what none of these needs. What cannot be dropped is told and is not an error: a process without SETPCAP cannot narrow
/// its bounding set, and has mostly been given a narrow one.
pub(crate) fn keep(needs: &[Need]) {
    let kept = needs.iter().fold(CapabilitySet::empty(), |kept, need| kept | need.capabilities());
    // Before the last of it is gone by which it can be done.
    let left = narrow_bounding_set(kept);
    if let Err(error) = set_no_new_privs(true) {
        warn!(
            event = "no-new-privileges-failed", %error,
            "cannot set no_new_privs; programs that rolegate runs can gain privileges that it does not have; set allowPrivilegeEscalation: \
             false"
        );
    }
    match drop_all_but(kept) {
        Ok(has) => debug!(capabilities = %names(has), "capabilities that are not needed are dropped"),
        Err(error) => warn!(
            event = "capabilities-kept", %error,
            "cannot drop capabilities; keeping all that the process was given; give the container only those that rolegate needs"
        ),
    }
    if !left.is_empty() {
        // By no_new_privs nothing comes of them.
        info!(
            event = "capabilities-bounded", capabilities = %names(left),
            "cannot remove these capabilities from the bounding set without SETPCAP; they have no effect; drop them in the container's \
             securityContext"
        );
    }
}

/// Whether the process may make and change interfaces and rules.
pub(crate) fn has_net_admin() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// What is in the bounding set against our will.
fn narrow_bounding_set(kept: CapabilitySet) -> CapabilitySet {
    let mut left = CapabilitySet::empty();
    for one in (0..BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        // Past the last that the kernel knows it is an error.
        let Ok(is_in) = capability_is_in_bounding_set(one) else { break };
        if is_in && !kept.contains(one) && remove_capability_from_bounding_set(one).is_err() {
            left |= one;
        }
    }
    left
}

/// The ambient set holds nothing that is not permitted and inheritable: the kernel narrows it with these.
fn drop_all_but(kept: CapabilitySet) -> io::Result<CapabilitySet> {
    let mut sets = capabilities(None)?;
    sets.permitted &= kept;
    sets.effective = sets.permitted;
    sets.inheritable &= kept;
    set_capabilities(None, sets)?;
    Ok(sets.permitted)
}

/// As capabilities(7) writes them, without `CAP_`.
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
    fn a_need_is_no_more_than_what_it_takes() {
        assert_eq!(Need::Rules.capabilities(), CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
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

    /// On a thread of its own: what is dropped is that thread's alone.
    #[test]
    fn what_is_not_needed_is_gone() {
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

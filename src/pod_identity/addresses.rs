//! The addresses of Pod Identity on this node's loopback interface. Pods reach them there on every data plane, because the kernel delivers
//! packets to its own addresses without any rule.
//!
//! The addresses stay when the daemon ends: pods' connections are then refused at once. `rolegate redirect remove` removes them.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{info, warn};

use crate::advice::{Advise, chain};
use crate::log_once::Changes;
use crate::netlink::Netlink;

/// The loopback interface.
const LOOPBACK: &str = "lo";
/// The number with which the kernel records that rolegate added an address. Routing rules have it as well.
const PROTOCOL: u8 = 169;
/// How often the addresses are checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The addresses could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// The kernel did not list the addresses.
    #[error("cannot read the addresses of this node")]
    Read(#[source] io::Error),
    /// The kernel did not add this address.
    #[error("cannot add {0} to the node's loopback interface")]
    Add(IpAddr, #[source] io::Error),
    /// The kernel did not remove this address.
    #[error("cannot remove {0} from the node's loopback interface")]
    Remove(IpAddr, #[source] io::Error),
}

impl Advise for AddressError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Add(_, error) | Self::Remove(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("add the capability NET_ADMIN to the container's securityContext".into())
            }
            Self::Read(_) | Self::Add(..) | Self::Remove(..) => None,
        }
    }
}

/// What [`place`] changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressChanges {
    /// The addresses that were added.
    pub(crate) added: Vec<IpAddr>,
    /// The addresses that were removed.
    pub(crate) removed: Vec<IpAddr>,
}

/// Adds each wanted address that no interface has, and removes those that an earlier daemon added and that are no longer wanted.
pub(crate) fn place(wanted: &[IpAddr]) -> Result<AddressChanges, AddressError> {
    let mut netlink = Netlink::open().map_err(AddressError::Read)?;
    let loopback = netlink.link(LOOPBACK).map_err(AddressError::Read)?.index;
    let present = netlink.addresses().map_err(AddressError::Read)?;
    let mut changes = AddressChanges::default();
    for address in present.iter().filter(|address| address.interface == loopback && address.protocol == Some(PROTOCOL)) {
        if !wanted.contains(&address.ip) {
            match netlink.delete_address(loopback, address.ip) {
                Err(error) if error.kind() != io::ErrorKind::AddrNotAvailable => return Err(AddressError::Remove(address.ip, error)),
                _ => changes.removed.push(address.ip),
            }
        }
    }
    for ip in wanted.iter().filter(|ip| !present.iter().any(|address| address.ip == **ip)) {
        match netlink.add_listening_address(loopback, *ip, PROTOCOL) {
            Ok(()) => changes.added.push(*ip),
            // Another daemon of this node did the same at the same time.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // A node without IPv6 has no pods that could use the address.
            Err(_) if ip.is_ipv6() && !std::path::Path::new("/proc/net/if_inet6").exists() => {}
            Err(error) => return Err(AddressError::Add(*ip, error)),
        }
    }
    Ok(changes)
}

/// Keeps the addresses until the process ends.
pub(crate) async fn keep(wanted: Vec<IpAddr>) {
    let mut failing = Changes::default();
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let ips = wanted.clone();
        let placed = tokio::task::spawn_blocking(move || place(&ips)).await;
        match placed {
            Ok(Ok(AddressChanges { added, .. })) => {
                failing.forget();
                if !added.is_empty() {
                    warn!(
                        event = "pod-identity-addresses-repaired",
                        addresses = joined(&added),
                        "something removed addresses of Pod Identity from the node's loopback interface; added them again"
                    );
                }
            }
            Ok(Err(error)) => {
                if failing.is_new(chain(&error)) {
                    warn!(
                        event = "pod-identity-addresses-failed",
                        error = chain(&error),
                        advice = error.advice().as_deref(),
                        "cannot check or restore the addresses of Pod Identity on this node; retrying; pods cannot reach missing addresses"
                    );
                }
            }
            // The runtime is about to end.
            Err(_) => return std::future::pending().await,
        }
    }
}

/// Removes the addresses that an earlier daemon with `--pod-identity` added, if this process may do so.
pub(crate) fn withdraw() {
    match place(&[]) {
        Ok(AddressChanges { removed, .. }) if removed.is_empty() => {}
        Ok(AddressChanges { removed, .. }) => info!(
            event = "pod-identity-addresses-removed",
            addresses = joined(&removed),
            "removed addresses of an earlier daemon with --pod-identity from the node's loopback interface"
        ),
        Err(AddressError::Remove(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => warn!(
            event = "pod-identity-addresses-failed",
            error = chain(&error),
            advice = error.advice().as_deref(),
            "cannot remove the addresses of an earlier daemon with --pod-identity; leaving them in place"
        ),
    }
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

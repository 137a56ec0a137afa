//! Checks the exit guard without sending a packet: a packet that it lets pass would reach the real metadata service.
//!
//! The check asks the kernel which interfaces the guard is attached to, and lets the kernel run the guard's program on frames that exist
//! only in memory (`BPF_PROG_TEST_RUN`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use aya::{TestRun as _, TestRunOptions};

use super::error::BpfError;
use super::fdinfo;
use super::pins::guard_pin;
use super::uplinks::NodeInterfaces;
use crate::config::InterfaceMatch;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6};

/// The result with which a program on an interface drops a packet (`TC_ACT_SHOT`).
const DROP: u32 = 2;
/// The EtherTypes of IPv4 and IPv6.
const ETHERTYPES: [[u8; 2]; 2] = [[0x08, 0x00], [0x86, 0xdd]];
/// The protocol number of UDP.
const UDP: u8 = 17;
/// The length of a UDP header without data, in bytes.
const UDP_LENGTH: u8 = 8;
/// The position of `ingress_ifindex` in `struct __sk_buff`, in bytes. The check passes the structure up to its end.
const INGRESS: std::ops::Range<usize> = 36..40;
/// The number of the interface through which the packets seem to have arrived, so that they count as forwarded.
const FROM: u32 = 1;
/// Addresses that no host has: addresses for documentation (RFC 5737, RFC 3849).
const ELSEWHERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// What the check of the exit guard found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitGuardState {
    /// It is attached to every interface that needs it, and drops the right packets.
    InPlace,
    /// It is not attached to these interfaces.
    Missing(Vec<String>),
    /// It decides wrongly about packets to this address: it lets them pass to a metadata address, or drops them to another one.
    Wrong(IpAddr),
}

/// Checks the exit guard of this daemon; cheap to clone.
#[derive(Clone, Debug)]
pub struct ExitGuardCheck {
    directory: PathBuf,
    interfaces: Vec<InterfaceMatch>,
    guard: Arc<SchedClassifier>,
}

impl ExitGuardCheck {
    /// Creates a check of the program that is pinned at `program`. Afterwards, the pin is no longer needed. `directory` contains the pins
    /// of the links. `interfaces` chooses the uplinks, unless it is empty.
    pub(super) fn open(program: &Path, directory: PathBuf, interfaces: Vec<InterfaceMatch>) -> Result<Self, BpfError> {
        let guard = SchedClassifier::from_pin(program).map_err(|error| BpfError::kernel("open the exit guard", error))?;
        Ok(Self { directory, interfaces, guard: Arc::new(guard) })
    }

    /// Checks whether the exit guard is attached to every interface that needs it, and drops packets to the metadata addresses.
    ///
    /// # Errors
    /// If the interfaces or links cannot be read, or the program cannot be run.
    pub fn check(&self) -> Result<ExitGuardState, BpfError> {
        let found = NodeInterfaces::read(&self.interfaces).map_err(|error| BpfError::kernel("read the interfaces of this node", error))?;
        let missing = self.unguarded(&found.uplinks).map_err(|source| BpfError::Pins { path: self.directory.clone(), source })?;
        if !missing.is_empty() {
            return Ok(ExitGuardState::Missing(missing));
        }
        for to in [IpAddr::V4(METADATA_IPV4), IpAddr::V6(METADATA_IPV6)] {
            if self.result_for(to)? != DROP {
                return Ok(ExitGuardState::Wrong(to));
            }
        }
        for to in ELSEWHERE {
            if self.result_for(to)? == DROP {
                return Ok(ExitGuardState::Wrong(to));
            }
        }
        Ok(ExitGuardState::InPlace)
    }

    /// Returns the names of the interfaces that the guard is not attached to.
    fn unguarded(&self, uplinks: &BTreeMap<u32, String>) -> io::Result<Vec<String>> {
        // The links stay open until the kernel has described them.
        let open: Vec<_> = uplinks
            .iter()
            .map(|(index, name)| {
                let link = PinnedLink::from_pin(self.directory.join(guard_pin(*index))).ok().map(FdLink::from);
                (index, name, link)
            })
            .collect();
        let described = fdinfo::links()?;
        let is_attached = |index: &u32, link: &FdLink| {
            let number = link.info().ok().map(|info| info.id());
            number.and_then(|number| described.get(&number)).is_some_and(|link| link.target == Some(u64::from(*index)))
        };
        let missing = open.iter().filter(|(index, _, link)| !link.as_ref().is_some_and(|link| is_attached(index, link)));
        Ok(missing.map(|(_, name, _)| (*name).clone()).collect())
    }

    /// Runs the program on a forwarded packet to this address, and returns its result.
    fn result_for(&self, to: IpAddr) -> Result<u32, BpfError> {
        let (frame, context) = (frame(to), context());
        let options = TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        let result = self.guard.test_run(options).map_err(|error| BpfError::kernel("run the exit guard on a packet in memory", error))?;
        Ok(result.return_value)
    }
}

/// Returns the beginning of the `struct __sk_buff` of a packet that arrived through an interface.
fn context() -> [u8; INGRESS.end] {
    let mut context = [0; INGRESS.end];
    context[INGRESS].copy_from_slice(&FROM.to_ne_bytes());
    context
}

/// Returns an Ethernet frame with an empty datagram to this address.
fn frame(to: IpAddr) -> Vec<u8> {
    let mut frame = vec![0; 12];
    match to {
        IpAddr::V4(to) => {
            frame.extend(ETHERTYPES[0]);
            frame.extend([0x45, 0, 0, 20 + UDP_LENGTH, 0, 0, 0, 0, 64, UDP, 0, 0]);
            frame.extend(Ipv4Addr::new(192, 0, 2, 2).octets());
            frame.extend(to.octets());
        }
        IpAddr::V6(to) => {
            frame.extend(ETHERTYPES[1]);
            frame.extend([0x60, 0, 0, 0, 0, UDP_LENGTH, UDP, 64]);
            frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).octets());
            frame.extend(to.octets());
        }
    }
    frame.extend([0, 0, 0, 0, 0, UDP_LENGTH, 0, 0]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_address_where_the_program_reads_it() {
        let ipv4 = frame(METADATA_IPV4.into());
        assert_eq!((ipv4.len(), &ipv4[12..15], &ipv4[14 + 16..14 + 20]), (42, &[8, 0, 0x45][..], &METADATA_IPV4.octets()[..]));
        let ipv6 = frame(METADATA_IPV6.into());
        assert_eq!((ipv6.len(), &ipv6[12..15], &ipv6[14 + 24..14 + 40]), (62, &[0x86, 0xdd, 0x60][..], &METADATA_IPV6.octets()[..]));
        assert_eq!(context().len() % 4, 0);
    }
}

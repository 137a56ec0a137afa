//! The link of a program for socket options, in a form that can be pinned.
//!
//! The loader has no conversion of this kind of link, unlike of the others. The kernel pins every object of BPF in the same way, so the
//! link's descriptor is found in `/proc/self/fdinfo`, duplicated, and pinned as if it were that of a map.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use aya::maps::MapData;
use aya::programs::links::{FdLink, PinnedLink};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::fdinfo;

/// Returns the newest link of this program that this process has open. `scratch` is the path of a pin while it is made.
pub(super) fn link(program: u32, scratch: &Path) -> io::Result<FdLink> {
    let number = fdinfo::descriptor(program)?.ok_or(io::ErrorKind::NotFound)?;
    let object = MapData::from_fd(duplicate(number)?).map_err(io::Error::other)?;
    object.pin(scratch).map_err(io::Error::other)?;
    PinnedLink::from_pin(scratch).map_err(io::Error::other)?.unpin()
}

/// Duplicates a descriptor by its number, by sending it to this process: that works in every sandbox.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let (from, to) = UnixStream::pair()?;
    sendmsg::<()>(from.as_raw_fd(), &[IoSlice::new(&[0])], &[ControlMessage::ScmRights(&[number])], MsgFlags::empty(), None)?;
    let (mut byte, mut space) = ([0; 1], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(&to, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut given = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(given) => Some(given),
        _ => None,
    });
    given.find_map(|mut given| given.next()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

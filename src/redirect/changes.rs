//! Notifications of changes to the kernel's packet rules, whichever nf_tables program makes them: `nft`, or `iptables` of the
//! nft flavour. Changes by legacy iptables are not announced.
//!
//! Facts: `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h; a full buffer loses messages and reports it with `ENOBUFS`
//! (netlink(7)).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::unix::AsyncFd;

/// The multicast group of all nf_tables changes, as the bit that `bind` takes. Groups count from one.
const NFTABLES: u32 = 1 << (7 - 1);
/// The most messages read in one turn, so that a process that changes rules constantly cannot block the caller.
const MAX_MESSAGES: usize = 1024;

/// A subscription to rule changes in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Subscribes. Requires the capability NET_ADMIN and a runtime with I/O.
    ///
    /// # Errors
    /// If the process lacks the capability, or the kernel has no such group.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES))?;
        // The replacement is unsafe because some types close their descriptor too early. `OwnedFd` does not.
        #[allow(deprecated, reason = "an OwnedFd stays what it is until it is dropped, which is after its registration ends")]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket })
    }

    /// Returns when something has changed since the last return. Changes that arrive together count as one, and rolegate's own
    /// changes are included. The content of a change is not reported; the caller compares the rules. Cancel safe.
    ///
    /// # Errors
    /// If the socket cannot be read.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            // The content of a message is ignored, so it may be truncated.
            let mut rest = [0; 64];
            let mut changed = false;
            for _message in 0..MAX_MESSAGES {
                match ready.try_io(|socket| recv(socket.as_raw_fd(), &mut rest, MsgFlags::empty()).map_err(io::Error::from)) {
                    // The queue is empty.
                    Err(_would_block) => break,
                    Ok(Ok(_)) => changed = true,
                    // There were more changes than the buffer holds.
                    Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => changed = true,
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                }
            }
            if changed {
                return Ok(());
            }
        }
    }
}

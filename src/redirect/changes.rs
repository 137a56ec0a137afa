//! Hears when somebody changes the kernel's packet rules, whoever that is and with whatever program of nf_tables: `nft`,
//! and `iptables` of the nft flavour. Legacy iptables tells nobody.
//!
//! Facts: `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h; a full buffer loses messages and says so with `ENOBUFS`
//! (netlink(7)).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::unix::AsyncFd;

/// The group of all changes of nf_tables, as the bit that `bind` takes: groups count from one.
const NFTABLES: u32 = 1 << (7 - 1);
/// The most messages that are read in one turn, so that a process that changes rules constantly cannot block a caller.
const AT_ONE_GO: usize = 1024;

/// A subscription to the changes of the rules in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Subscribes. Needs the capability NET_ADMIN, and a runtime with I/O.
    ///
    /// # Errors
    /// If the process may not, or the kernel has no such group.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES))?;
        // What replaces it is unsafe, for the sake of types that let go of their descriptor too early; this one owns it.
        #[allow(deprecated, reason = "an OwnedFd stays what it is until it is dropped, which is after its registration ends")]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket })
    }

    /// Returns when something has changed since it last returned. Changes that came together are one; one's own are among
    /// them, and what they were is not said: who wants to know compares. Dropped before it is done, it loses nothing.
    ///
    /// # Errors
    /// If the socket cannot be read.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            // Nothing of a message is looked at, so it may be cut off.
            let mut rest = [0; 64];
            let mut heard = false;
            for _message in 0..AT_ONE_GO {
                match ready.try_io(|socket| recv(socket.as_raw_fd(), &mut rest, MsgFlags::empty()).map_err(io::Error::from)) {
                    // There is no more.
                    Err(_would_block) => break,
                    Ok(Ok(_)) => heard = true,
                    // More changed than the buffer holds.
                    Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => heard = true,
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                }
            }
            if heard {
                return Ok(());
            }
        }
    }
}

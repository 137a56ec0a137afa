//! The two queues of notifications. They are separate so that notifications that pods can cause do not displace those about the
//! node's network.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::event::LinkEvent;
use super::table::NotificationQueue;
use crate::netlink::Notifications;
use crate::netlink::message::messages;

/// Groups of linux/rtnetlink.h, `RTNLGRP_…`, as bits.
const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

const LINK: u32 = group(1);
const NEIGH: u32 = group(3);
const IPV4_IFADDR: u32 = group(5);
const IPV4_ROUTE: u32 = group(7);
const IPV4_RULE: u32 = group(8);
const IPV6_ROUTE: u32 = group(11);
const IPV6_RULE: u32 = group(19);
const NEXTHOP: u32 = group(32);

/// Room for the notifications of several thousand interfaces that come and go at once.
const TOPOLOGY_QUEUE: usize = 4 << 20;
/// Room for more than a thousand neighbours. A larger queue would only take longer to read when a pod fills it.
const NEIGHBOURS_QUEUE: usize = 1 << 20;
/// The longest notification, in bytes: one about an interface, with its statistics.
const LONGEST: usize = 32 * 1024;

/// How a turn of reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadTurn {
    /// Everything was read; `lost` says whether notifications were lost since the last turn.
    Empty { lost: bool },
    /// There is more to read.
    More,
}

/// The queues.
#[derive(Debug)]
pub(super) struct Feed {
    topology: Side,
    neighbours: Side,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Side {
    notifications: Arc<Notifications>,
    lost: bool,
}

/// Keeps the descriptor open for as long as it is registered with the runtime.
#[derive(Debug)]
pub(super) struct Registered(Arc<Notifications>);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Side {
    fn open(groups: u32, queue: usize) -> io::Result<Self> {
        Ok(Self { notifications: Arc::new(Notifications::open(groups, queue)?), lost: false })
    }

    fn register(&self) -> io::Result<AsyncFd<Registered>> {
        // The replacement is unsafe because some types close their descriptor too early; this one keeps it open.
        #[allow(deprecated, reason = "the descriptor stays open until it is dropped, which is after its registration ends")]
        AsyncFd::with_interest(Registered(Arc::clone(&self.notifications)), Interest::READABLE)
    }
}

impl Feed {
    /// Subscribes in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let topology = LINK | IPV4_IFADDR | IPV4_ROUTE | IPV4_RULE | IPV6_ROUTE | IPV6_RULE | NEXTHOP;
        Ok(Self {
            topology: Side::open(topology, TOPOLOGY_QUEUE)?,
            neighbours: Side::open(NEIGH, NEIGHBOURS_QUEUE)?,
            buffer: vec![0; LONGEST],
        })
    }

    /// Registers both queues with the runtime. Returns first that of the topology, then that of the neighbours.
    pub(super) fn register(&self) -> io::Result<(AsyncFd<Registered>, AsyncFd<Registered>)> {
        Ok((self.topology.register()?, self.neighbours.register()?))
    }

    /// Records that notifications of this queue were lost.
    pub(super) fn lose(&mut self, queue: NotificationQueue) {
        self.side(queue).lost = true;
    }

    /// Records that the lost notifications have been compensated for.
    pub(super) fn is_complete(&mut self, queue: NotificationQueue) {
        self.side(queue).lost = false;
    }

    /// Returns whether notifications of this queue were lost and the loss has not been compensated for.
    pub(super) fn is_lost(&self, queue: NotificationQueue) -> bool {
        match queue {
            NotificationQueue::Topology => self.topology.lost,
            NotificationQueue::Neighbours => self.neighbours.lost,
        }
    }

    fn side(&mut self, queue: NotificationQueue) -> &mut Side {
        match queue {
            NotificationQueue::Topology => &mut self.topology,
            NotificationQueue::Neighbours => &mut self.neighbours,
        }
    }

    /// Reads at most `most` notifications, and passes their events to `take_in`.
    pub(super) fn read(&mut self, queue: NotificationQueue, most: usize, mut take_in: impl FnMut(LinkEvent)) -> io::Result<ReadTurn> {
        let side = match queue {
            NotificationQueue::Topology => &mut self.topology,
            NotificationQueue::Neighbours => &mut self.neighbours,
        };
        for _ in 0..most {
            match side.notifications.next(&mut self.buffer) {
                Ok(Some(bytes)) => messages(bytes).filter_map(|message| LinkEvent::read(&message)).for_each(&mut take_in),
                Ok(None) => return Ok(ReadTurn::Empty { lost: side.lost }),
                // The notifications still in the queue are older than that.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => side.lost = true,
                Err(error) => return Err(error),
            }
        }
        Ok(ReadTurn::More)
    }
}

//! Reads the kernel's notifications. A caller that needs the current table reads pending notifications without waiting for the
//! kernel; the keeper follows all of them, and reads the interfaces again if notifications were lost.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::event::LinkEvent;
use super::feed::{Feed, ReadTurn};
use super::table::NotificationQueue;
use super::{SharedLinks, blocking, boot};

/// The maximum number of notifications read from a queue at once. The rest is left to the next turn.
const AT_ONE_GO: usize = 1024;
/// The pause after a turn that read the maximum: it bounds the processor time that a pod can consume with a flood.
const PAUSE_AFTER_FULL_TURN: Duration = Duration::from_millis(5);
/// The minimum interval between two of the keeper's turns at the neighbours, for the same reason. Requests do not depend on it,
/// because they read pending notifications themselves.
const NEIGHBOURS_INTERVAL: Duration = Duration::from_millis(5);

/// How far a queue has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Everything that was announced is in the table.
    CaughtUp,
    /// There is more to be read.
    More,
    /// Everything was read, but notifications about interfaces were lost: the interfaces have to be read again.
    Lost,
}

impl SharedLinks {
    /// Reads notifications, up to a limit, and applies them, without waiting for the kernel. If interfaces have to be read
    /// again, that is left to the keeper, and the queue counts as behind until then.
    pub(super) fn take_in(&self, queue: NotificationQueue) -> io::Result<()> {
        self.announcing(|| {
            let mut feed = self.feed();
            // The interfaces that the keeper reads must not be older than those in the table.
            if queue == NotificationQueue::Topology && feed.is_lost(queue) {
                return Ok(());
            }
            if self.read(&mut feed, queue)? == Progress::Lost {
                self.resync.notify_one();
            }
            Ok(())
        })
    }

    /// Follows the notifications for as long as they can be read.
    pub(super) async fn follow(&self) -> Result<Infallible, io::Error> {
        let (topology, neighbours) = self.feed().register()?;
        for queue in [NotificationQueue::Topology, NotificationQueue::Neighbours] {
            // Changes before a new subscription are not announced in it.
            if self.table().is_behind(queue) {
                self.feed().lose(queue);
            }
            if self.keep_up(queue)? != Progress::CaughtUp {
                self.resync.notify_one();
            }
        }
        let mut next_neighbours = Instant::now();
        loop {
            let (queue, ready) = tokio::select! {
                // Changes of the topology are rare, and matter most.
                biased;
                ready = topology.readable() => (NotificationQueue::Topology, Some(ready?)),
                () = self.resync.notified() => (NotificationQueue::Topology, None),
                ready = async {
                    tokio::time::sleep_until(next_neighbours).await;
                    neighbours.readable().await
                } => (NotificationQueue::Neighbours, Some(ready?)),
            };
            let progress = self.keep_up(queue)?;
            if queue == NotificationQueue::Neighbours {
                next_neighbours = Instant::now() + NEIGHBOURS_INTERVAL;
            }
            if progress == Progress::CaughtUp {
                ready.into_iter().for_each(|mut ready| ready.clear_ready());
                continue;
            }
            if queue == NotificationQueue::Topology {
                // The queue itself may be empty.
                self.resync.notify_one();
            }
            tokio::time::sleep(PAUSE_AFTER_FULL_TURN).await;
        }
    }

    /// Takes a turn of the keeper's. It may wait for the kernel.
    fn keep_up(&self, queue: NotificationQueue) -> io::Result<Progress> {
        self.announcing(|| {
            let progress = self.read(&mut self.feed(), queue)?;
            if progress == Progress::Lost {
                // Everything from before has been read, so the kernel announces changes from here on. No other task reads them
                // until the interfaces are in the table.
                let interfaces = blocking(|| self.netlink().links())?;
                let mut feed = self.feed();
                self.change(|table| {
                    // A query in progress may have been answered before the loss.
                    table.fall_behind(queue);
                    table.set_links(&interfaces);
                });
                feed.is_complete(queue);
            }
            Ok(progress)
        })
    }

    /// Reads notifications, up to a limit, and applies them.
    fn read(&self, feed: &mut Feed, queue: NotificationQueue) -> io::Result<Progress> {
        let was_behind = self.table().is_behind(queue);
        let turn = feed.read(queue, AT_ONE_GO, |event| {
            self.change(|table| {
                // Only new information about an interface needs the time: connections read an empty queue, and floods concern
                // neighbours.
                if matches!(event, LinkEvent::Interface(_)) {
                    table.set_uptime(boot::uptime().map_or(0, |uptime| u32::try_from(uptime.as_secs()).unwrap_or(u32::MAX)));
                }
                table.apply(&event);
            });
        })?;
        if turn != (ReadTurn::Empty { lost: false }) {
            // From here on, the content of the queue is not needed.
            self.change(|table| table.fall_behind(queue));
            if !was_behind {
                self.overflows.fetch_add(1, Ordering::Relaxed);
                debug!(queue = queue.name(), "many network notifications; reading the rest in the next turn");
            }
        }
        match turn {
            ReadTurn::More => Ok(Progress::More),
            ReadTurn::Empty { lost: true } if queue == NotificationQueue::Topology => Ok(Progress::Lost),
            ReadTurn::Empty { lost } => {
                // The kernel queued nothing after the loss, so everything that was read is from before it.
                if lost || was_behind {
                    self.change(|table| {
                        // A query in progress may have been answered before the loss.
                        table.fall_behind(queue);
                        table.catch_up(queue);
                        if lost {
                            table.distrust_bridges();
                        }
                    });
                }
                feed.is_complete(queue);
                Ok(Progress::CaughtUp)
            }
        }
    }

    /// Notifies tasks that wait for changes if this call makes one.
    fn announcing<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let before = self.generation.load(Ordering::Acquire);
        let changed = change();
        let after = self.generation.load(Ordering::Acquire);
        if after != before {
            self.changes.send_replace(after);
        }
        changed
    }
}

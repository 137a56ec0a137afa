//! Reads the kernel's notifications. Whoever needs the table as of now reads what there is, without waiting for the kernel; the
//! keeper follows all of them, and reads the interfaces again where notifications were lost.

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

/// The most notifications that are read at one go, of each queue. The rest is left to the next turn.
const AT_ONE_GO: usize = 1024;
/// The pause after a turn that read so many: it bounds what a pod that never stops can take of a processor.
const BREATHER: Duration = Duration::from_millis(5);
/// The least time between two of the keeper's turns at the neighbours, for the same reason. Requests do not depend on it: they read
/// what there is.
const NEIGHBOURS_APART: Duration = Duration::from_millis(5);

/// How far reading a queue has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Everything that was announced is in the table.
    CaughtUp,
    /// There is more to be read.
    More,
    /// Everything is read, and notifications of interfaces were lost: they have to be read again.
    Lost,
}

impl SharedLinks {
    /// Reads notifications, up to a bound, and takes them in, without waiting for the kernel. Where interfaces have to be read
    /// again, that is left to the keeper, and the queue stays behind until then.
    pub(super) fn take_in(&self, queue: NotificationQueue) -> io::Result<()> {
        self.announcing(|| {
            let mut feed = self.feed();
            // The keeper's answer about interfaces must not be older than what is in the table.
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
            // What changed before a new subscription is not announced in it.
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
                next_neighbours = Instant::now() + NEIGHBOURS_APART;
            }
            if progress == Progress::CaughtUp {
                ready.into_iter().for_each(|mut ready| ready.clear_ready());
                continue;
            }
            if queue == NotificationQueue::Topology {
                // The queue itself may be empty.
                self.resync.notify_one();
            }
            tokio::time::sleep(BREATHER).await;
        }
    }

    /// Takes a turn of the keeper's. It may wait for the kernel.
    fn keep_up(&self, queue: NotificationQueue) -> io::Result<Progress> {
        self.announcing(|| {
            let progress = self.read(&mut self.feed(), queue)?;
            if progress == Progress::Lost {
                // Everything from before is read, so the kernel announces again what changes from here on. Nobody else reads it
                // until the interfaces are in the table.
                let interfaces = blocking(|| self.netlink().links())?;
                let mut feed = self.feed();
                self.change(|table| {
                    // A question that is under way may have been answered from before.
                    table.fall_behind(queue);
                    table.set_links(&interfaces);
                });
                feed.is_complete(queue);
            }
            Ok(progress)
        })
    }

    /// Reads notifications, up to a bound, and takes them in.
    fn read(&self, feed: &mut Feed, queue: NotificationQueue) -> io::Result<Progress> {
        let was_behind = self.table().is_behind(queue);
        let turn = feed.read(queue, AT_ONE_GO, |event| {
            self.change(|table| {
                // Only what becomes known of an interface needs the time: connections read an empty queue, and floods are of neighbours.
                if matches!(event, LinkEvent::Interface(_)) {
                    table.set_uptime(boot::uptime().map_or(0, |uptime| u32::try_from(uptime.as_secs()).unwrap_or(u32::MAX)));
                }
                table.apply(&event);
            });
        })?;
        if turn != (ReadTurn::Empty { lost: false }) {
            // From here on nobody needs what is in the queue.
            self.change(|table| table.fall_behind(queue));
            if !was_behind {
                self.overflows.fetch_add(1, Ordering::Relaxed);
                debug!(?queue, "more notifications about the node's network than can be read at once");
            }
        }
        match turn {
            ReadTurn::More => Ok(Progress::More),
            ReadTurn::Empty { lost: true } if queue == NotificationQueue::Topology => Ok(Progress::Lost),
            ReadTurn::Empty { lost } => {
                // The kernel queued nothing after what was lost, so that all that was read is from before.
                if lost || was_behind {
                    self.change(|table| {
                        // A question that is under way may have been answered from before.
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

    /// Tells who waits for changes, where this makes one.
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

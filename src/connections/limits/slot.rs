//! The state of one connection that is read and changed without the lock of all of them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use crate::connections::source::SourceKey;

/// A connection that was answered may be closed when it is idle for so long: its client may be about to use it again.
pub(super) const IDLE_GRACE: Duration = Duration::from_millis(250);
/// A connection may be closed on which no complete request has arrived for so long.
pub(super) const FRESH_GRACE: Duration = Duration::from_secs(1);

/// The state of a connection with a request under way. It is later than every time.
pub(super) const BUSY: u64 = u64::MAX;

const OPEN: u8 = 0;
pub(super) const MADE_ROOM: u8 = 1;
pub(super) const DISPLACED: u8 = 2;

/// Why a connection should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It was idle, and its place is needed. A request that has arrived meanwhile is still answered.
    MadeRoom,
    /// Its place was given to another connection; it ends at once.
    Displaced,
}

impl Closing {
    /// The stable name: a metric's label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MadeRoom => "made-room",
            Self::Displaced => "displaced",
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u64,
    /// The account that it is counted in, if it is in one.
    pub(super) key: OnceLock<SourceKey>,
    /// [`BUSY`], or the milliseconds since which it is idle; the lowest bit is 1 while no request has arrived at all.
    state: AtomicU64,
    closing: AtomicU8,
    closed: Notify,
}

impl Slot {
    /// A connection that was accepted at this time, in milliseconds.
    pub(super) fn new(id: u64, now: u64) -> Self {
        let state = AtomicU64::new(unused_since(now));
        Self { id, key: OnceLock::new(), state, closing: AtomicU8::new(OPEN), closed: Notify::new() }
    }

    /// It was read for the first time at this time: while it waited for a place, no request of it could arrive.
    pub(super) fn opened(&self, now: u64) {
        self.state.store(unused_since(now), Ordering::Release);
    }

    /// A request has arrived.
    pub(super) fn begin(&self) {
        self.state.store(BUSY, Ordering::Release);
    }

    /// It is answered.
    pub(super) fn end(&self, now: u64) {
        self.state.store(now << 1, Ordering::Release);
    }

    pub(super) fn close(&self, how: u8) {
        self.closing.fetch_max(how, Ordering::AcqRel);
        self.closed.notify_one();
    }

    /// How long it has been idle, if that is long enough for it to be closed, and it is not closed already.
    pub(super) fn idle_for(&self, now: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        if state == BUSY || self.closing.load(Ordering::Acquire) != OPEN {
            return None;
        }
        let grace = if state & 1 == 1 { FRESH_GRACE } else { IDLE_GRACE };
        let idle = now.saturating_sub(state >> 1);
        (u128::from(idle) >= grace.as_millis()).then_some(idle)
    }

    /// Returns when the connection should end before its client ends it.
    pub(super) async fn closing(&self) -> Closing {
        loop {
            match self.closing.load(Ordering::Acquire) {
                DISPLACED => return Closing::Displaced,
                // A head that is sent slowly is not waited for.
                MADE_ROOM if self.state.load(Ordering::Acquire) & 1 == 1 && self.state.load(Ordering::Acquire) != BUSY => {
                    return Closing::Displaced;
                }
                MADE_ROOM => return Closing::MadeRoom,
                _ => self.closed.notified().await,
            }
        }
    }
}

/// Returns the state of a connection on which no request has arrived since this time.
fn unused_since(now: u64) -> u64 {
    (now << 1) | 1
}

/// Returns the id of the connection that has been idle for the longest time, if one has been for long enough to be closed. Of several,
/// it is the oldest.
pub(super) fn longest_idle<'a>(slots: impl Iterator<Item = (u64, &'a Arc<Slot>)>, now: u64) -> Option<u64> {
    let idle = slots.filter_map(|(id, slot)| Some((slot.idle_for(now)?, std::cmp::Reverse(id))));
    idle.max().map(|(_, std::cmp::Reverse(id))| id)
}

//! Limits of connections: how many are open in total and from one source, how often a source may connect, how long a connection
//! may wait, and how long a response may stay unread. A pod that uses all that it can get must not affect other pods.
//!
//! Limits apply to a [`Source`]: a pod, by its UID, whichever of its addresses it connects from; the node itself; or an address
//! that belongs to no known pod. Addresses of the last kind can be forged in any number, so all of them together share one small
//! budget. When it is used up, the address, network or bridge port with the most connections gives one up for a new one.

use std::time::Duration;

mod limits;
mod progress;
mod rates;
mod record;
mod seldom;
mod source;
mod timely;

pub(crate) use limits::{Admitted, Closing, ConnectionLimits, ConnectionPermit, ConnectionSettings};
pub(crate) use progress::{Overdue, Progress, ProgressTimer, Timeouts};
pub(crate) use rates::Rates;
pub(crate) use record::{ConnectionRecord, Limit, Port};
pub(crate) use seldom::Seldom;
pub(crate) use source::Source;
pub(crate) use timely::Timely;

/// The pause after a failed accept: it fails for lack of descriptors or memory, which a moment may bring back.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

//! What connections may take: how many are open, how many of them one source has and how often it makes one, and how long
//! an answer may stay unread. A pod that takes all it can get must leave the others theirs.
//!
//! A [`Source`] is what limits count by: a pod, by its UID, whichever of its addresses it connects from; the node itself;
//! or an address that no pod is known to have. Addresses of the last kind can be invented in any number, so all of them
//! together have one small budget. Within it, the address or network with most connections gives one up to a newcomer.

mod limits;
mod rates;
mod record;
mod source;
mod timely;

pub use limits::{Admitted, Closing, Limits, Permit, Settings, Waiting};
pub use rates::Rates;
pub use record::{Bite, Limit, Port, Record};
pub use source::Source;
pub use timely::Timely;

/// Connections that a source may have also when most places are taken.
const FEW: usize = 4;

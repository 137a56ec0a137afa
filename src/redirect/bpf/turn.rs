//! Which daemon decides about the programs.
//!
//! The daemon that was started last does, as about the packet rules. A name says that there is one, and without a directory for proofs, any
//! process of the daemon's user in the node's network can take such a name (see [`ownership`](crate::redirect::ownership)). The programs
//! themselves say more: a later daemon attaches its own as soon as it starts, and nobody can do that without capabilities. While the
//! programs are this daemon's, it keeps them, whatever the names say.

use std::path::PathBuf;
use std::sync::Arc;

use aya::programs::links::{FdLink, PinnedLink};

use crate::redirect::ownership::{OtherDaemons, Ownership};

/// Which daemon decides about the programs; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ProgramTurn {
    /// Which daemon was started last, if that can be told.
    ownership: Option<Arc<Ownership>>,
    /// The pin of a program that every daemon attaches.
    pin: PathBuf,
    /// The kernel's number of this daemon's program.
    number: u32,
}

impl ProgramTurn {
    /// `pin` is the pin of a program that every daemon attaches, and `number` that of this daemon's.
    pub(super) const fn new(ownership: Option<Arc<Ownership>>, pin: PathBuf, number: u32) -> Self {
        Self { ownership, pin, number }
    }

    /// Returns whether a later daemon decides.
    pub(super) fn is_succeeded(&self) -> bool {
        let Some(ownership) = &self.ownership else { return false };
        ownership.is_succeeded().unwrap_or(false) && self.agrees(ownership)
    }

    /// Returns the other daemons that have to do with the programs. What cannot be told may be one.
    pub(super) fn others(&self) -> OtherDaemons {
        let unknown = OtherDaemons { is_any: true, is_later: false };
        let Some(ownership) = &self.ownership else { return unknown };
        let is_later = ownership.is_followed().is_ok_and(|is_followed| is_followed && self.agrees(ownership));
        ownership.others().map_or(unknown, |others| OtherDaemons { is_later, ..others })
    }

    /// Returns whether what is attached agrees with a name that may be anybody's.
    fn agrees(&self, ownership: &Ownership) -> bool {
        ownership.verifies() || self.attached() != Some(self.number)
    }

    /// Returns whether a daemon keeps programs here: one that wants none has removed the pins.
    pub(super) fn is_kept(&self) -> bool {
        self.attached().is_some()
    }

    /// Returns the number of the program that is pinned; `None` if there is none.
    fn attached(&self) -> Option<u32> {
        let link = FdLink::from(PinnedLink::from_pin(&self.pin).ok()?);
        Some(link.info().ok()?.program_id())
    }
}

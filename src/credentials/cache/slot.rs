//! What moka holds of a flight.

use std::sync::{Arc, Mutex, PoisonError};

use super::flight::Flight;
use crate::credentials::gate::Ticket;

/// A flight, until the cache has no use for it. moka frees what was removed or replaced when no thread looks at its table any
/// more, which may be late: by then the slot is empty, and the secrets are wiped.
#[derive(Debug)]
pub(super) struct Slot {
    /// The flight's place at the gate.
    pub(super) ticket: Ticket,
    flight: Mutex<Option<Arc<Flight>>>,
}

impl Slot {
    /// A slot that holds a flight.
    pub(super) fn of(flight: Arc<Flight>) -> Arc<Self> {
        Arc::new(Self { ticket: flight.ticket, flight: Mutex::new(Some(flight)) })
    }

    /// Returns the flight, while the cache has it.
    pub(super) fn flight(&self) -> Option<Arc<Flight>> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of the flight.
    pub(super) fn clear(&self) {
        *self.flight.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

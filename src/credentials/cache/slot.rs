//! The cache entry that holds a flight.

use std::sync::{Arc, Mutex, PoisonError};

use super::flight::Flight;
use crate::credentials::gate::Ticket;

/// A flight, until the cache removes it. moka frees a removed or replaced entry only when no thread reads its table any more,
/// which may be late. The slot is emptied before that, so that the secrets are zeroed at once.
#[derive(Debug)]
pub(super) struct Slot {
    /// The flight's place at the gate.
    pub(super) ticket: Ticket,
    flight: Mutex<Option<Arc<Flight>>>,
}

impl Slot {
    /// Creates a slot that holds a flight.
    pub(super) fn of(flight: Arc<Flight>) -> Arc<Self> {
        Arc::new(Self { ticket: flight.ticket, flight: Mutex::new(Some(flight)) })
    }

    /// Returns the flight, while it is in the cache.
    pub(super) fn flight(&self) -> Option<Arc<Flight>> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Drops the flight.
    pub(super) fn clear(&self) {
        *self.flight.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

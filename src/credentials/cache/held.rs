//! A session whose credentials a caller gets again and again, without a lookup in the cache.

use std::sync::{Arc, Weak};

use jiff::Timestamp;
use tokio::time::Instant;

use super::Sessions;
use super::flight::LEAST_REMAINING;
use crate::credentials::{AssumeRole, Credentials};
use crate::metrics::RoleMeters;
use crate::policy::RoleRequest;

/// A session with credentials that are far from expiry, as long as [`Sessions::generation`] is the same. It does not keep the
/// credentials: they are wiped when the session is forgotten.
#[derive(Debug)]
pub(crate) struct HeldSession {
    credentials: Weak<Credentials>,
    role_meters: Option<RoleMeters>,
    /// Until when the credentials have at least [`LEAST_REMAINING`] left, by either clock: see [`Credentials::remaining`].
    until: Instant,
    until_by_wall: Timestamp,
}

impl<A: AssumeRole> Sessions<A> {
    /// Returns a number that changes whenever a session is added, replaced or forgotten. Cheap: it is read for each request.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.now()
    }

    /// Returns the session that `request` describes, if its credentials are cached and far from expiry.
    pub(crate) async fn held(&self, request: &RoleRequest) -> Option<HeldSession> {
        let flight = self.flight(request).await?;
        let credentials = flight.credentials()?;
        let until = credentials.ends.checked_sub(LEAST_REMAINING)?;
        let until_by_wall = credentials.expires_at.checked_sub(LEAST_REMAINING).ok()?;
        let role_meters = flight.role_meters.clone();
        Some(HeldSession { credentials: Arc::downgrade(&credentials), role_meters, until, until_by_wall })
    }

    /// Counts that a held session was served, as a hit.
    pub(crate) fn served_held(&self, held: &HeldSession) {
        self.hits.inc();
        if let Some(meters) = &held.role_meters {
            meters.answered(true);
        }
    }
}

impl HeldSession {
    /// Returns the credentials, if they are still far from expiry at this time.
    pub(crate) fn credentials(&self, now: Instant, by_wall: Timestamp) -> Option<Arc<Credentials>> {
        if now < self.until && by_wall < self.until_by_wall { self.credentials.upgrade() } else { None }
    }
}

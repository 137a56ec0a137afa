//! The daemon's own AWS identity. It is requested once for all who need it, and again every hour, because keys may be rotated
//! to those of another role. With an intermediate role there are two identities: the daemon's own, and the session of the
//! intermediate role. Pods get neither, so both must be known.
//!
//! No credentials are served before the identity is known, so every session waits for this one response. While STS does not
//! return it, requests back off. Callers then get the cached failure at once, so pods cannot cause additional requests to STS.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::AssumeRoleError;
use crate::backoff::{Backoff, fraction, spread};
use crate::policy::node::{KnownNode, NodeIdentity};
use crate::role::CallerIdentity;

/// The pause after the first failure. It doubles with each further failure. A random amount of up to the same length is added,
/// so that the retries of a fleet that starts at once are spread out from the beginning.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How long a known identity is used before it is requested again.
const KNOWN: Duration = Duration::from_secs(3600);

/// A source of the identity: STS, or a fake in tests.
pub(super) trait AskIdentity: Send + Sync + 'static {
    /// Makes one request. Nothing is remembered.
    fn ask(&self) -> impl Future<Output = Result<CallerIdentity, AssumeRoleError>> + Send;
}

/// The identity lookup, shared by all callers.
#[derive(Debug)]
pub(super) struct Inquiry<A> {
    own: A,
    intermediate: Option<A>,
    node: NodeIdentity,
    /// Locked during a request, so that concurrent callers wait for the same response.
    failure: Mutex<Option<FailedAttempt>>,
}

/// The last failure, and until when no request is made.
#[derive(Debug)]
struct FailedAttempt {
    error: AssumeRoleError,
    until: Instant,
    /// The number of consecutive failures.
    count: u32,
}

impl<A: AskIdentity> Inquiry<A> {
    /// Creates an inquiry with the daemon's own credentials, and with those of an intermediate role if there is one. Results
    /// are stored in `node`.
    pub(super) fn new(own: A, intermediate: Option<A>, node: NodeIdentity) -> Self {
        if intermediate.is_some() {
            node.expect_intermediate();
        }
        Self { own, intermediate, node, failure: Mutex::default() }
    }

    /// Returns where the results are stored.
    pub(super) fn node(&self) -> &NodeIdentity {
        &self.node
    }

    /// Returns once the identity is known; returns the failure while it is unavailable.
    pub(super) async fn known(&self) -> Result<(), AssumeRoleError> {
        if self.node.known().has_all_callers() {
            return Ok(());
        }
        let mut failure = self.failure.lock().await;
        match &*failure {
            _ if self.node.known().has_all_callers() => Ok(()),
            Some(failure) if Instant::now() < failure.until => Err(failure.error.clone()),
            _ => self.ask(&mut failure).await.map(drop),
        }
    }

    /// Requests the identity even if it is known, unless a request failed recently. Returns the result and the time after which
    /// to try again. A known identity is kept when the request fails.
    pub(super) async fn renew(&self) -> (Result<Arc<KnownNode>, AssumeRoleError>, Duration) {
        let mut failure = self.failure.lock().await;
        let asked = match &*failure {
            Some(failure) if Instant::now() < failure.until => Err(failure.error.clone()),
            _ => self.ask(&mut failure).await,
        };
        let pause = failure.as_ref().map_or_else(|| spread(KNOWN), |failure| failure.until.saturating_duration_since(Instant::now()));
        (asked, pause)
    }

    async fn ask(&self, failure: &mut Option<FailedAttempt>) -> Result<Arc<KnownNode>, AssumeRoleError> {
        match self.ask_all().await {
            Ok(()) => {
                *failure = None;
                Ok(self.node.known())
            }
            Err(error) => {
                let count = failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
                let until = Instant::now() + pause_after(count);
                *failure = Some(FailedAttempt { error: error.clone(), until, count });
                Err(error)
            }
        }
    }

    /// Stores each result at once, even if the next request fails: pods are refused every role that is known to be the
    /// daemon's.
    async fn ask_all(&self) -> Result<(), AssumeRoleError> {
        self.node.set_caller(self.own.ask().await?);
        if let Some(intermediate) = &self.intermediate {
            self.node.set_intermediate(intermediate.ask().await?);
        }
        Ok(())
    }
}

fn pause_after(failures: u32) -> Duration {
    let pause = Backoff::new(FIRST_PAUSE, LAST_PAUSE).pause(failures - 1).mul_f64(1.0 + fraction());
    if pause < LAST_PAUSE { pause } else { spread(LAST_PAUSE) }
}

#[cfg(test)]
mod tests;

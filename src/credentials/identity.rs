//! Who the daemon itself is at AWS: asked once for all who need to know it, and anew each hour, because keys may be rotated
//! to those of another role. With a role between, it is two: its own identity, and that role's session. Pods get neither, so
//! both must be known.
//!
//! Nothing is handed out before it is known, so every session waits for this one answer. While STS does not give it, it is
//! asked by pauses that grow; whoever needs it meanwhile has the failure at once, and no pod can make STS be asked more.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::AssumeRoleError;
use crate::backoff::{Backoff, fraction, spread};
use crate::policy::node::{KnownNode, NodeIdentity};
use crate::role::CallerIdentity;

/// The shortest pause after the first failure; it doubles with each more. Up to as much is added by chance: what a fleet that
/// was started at once asks again is spread from the first time on.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How long what is known is not asked for again.
const KNOWN: Duration = Duration::from_secs(3600);

/// Where the answer comes from: STS, or a test's idea of it.
pub(super) trait AskIdentity: Send + Sync + 'static {
    /// Asks. One call is one question; nothing is remembered.
    fn ask(&self) -> impl Future<Output = Result<CallerIdentity, AssumeRoleError>> + Send;
}

/// The question, shared by all who ask it.
#[derive(Debug)]
pub(super) struct Inquiry<A> {
    own: A,
    intermediate: Option<A>,
    node: NodeIdentity,
    /// Held while the question is under way: who comes meanwhile waits for the same answer.
    failure: Mutex<Option<FailedAttempt>>,
}

/// That it did not work, and until when it is not tried again.
#[derive(Debug)]
struct FailedAttempt {
    error: AssumeRoleError,
    until: Instant,
    /// How many followed each other.
    count: u32,
}

impl<A: AskIdentity> Inquiry<A> {
    /// An inquiry by the daemon's own credentials, and by those of a role between where there is one. Its answers are told to
    /// `node`.
    pub(super) fn new(own: A, intermediate: Option<A>, node: NodeIdentity) -> Self {
        if intermediate.is_some() {
            node.expect_intermediate();
        }
        Self { own, intermediate, node, failure: Mutex::default() }
    }

    /// Where its answers are told.
    pub(super) fn node(&self) -> &NodeIdentity {
        &self.node
    }

    /// Returns once it is known; the failure, while it cannot be had.
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

    /// Asks whatever is known, unless that failed just now; with the time after which to ask again. What is known stays
    /// when it fails.
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

    /// Each answer counts by itself, also where the next fails: what is known is refused to pods.
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

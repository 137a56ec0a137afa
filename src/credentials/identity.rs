//! Who the daemon itself is at AWS: asked once for all who need to know it, and anew each hour, because keys may be rotated
//! to those of another role.
//!
//! Nothing is handed out before it is known, so every session waits for this one answer. While STS does not give it, it is
//! asked by pauses that grow; whoever needs it meanwhile has the failure at once, and no pod can make STS be asked more.

use std::future::Future;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::AssumeRoleError;
use super::jitter::spread;
use crate::policy::node::NodeIdentity;
use crate::role::CallerIdentity;

/// The pause after the first failure; it doubles with each more.
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
    asker: A,
    node: NodeIdentity,
    /// Held while the question is under way: who comes meanwhile waits for the same answer.
    failure: Mutex<Option<Failure>>,
}

/// That it did not work, and until when it is not tried again.
#[derive(Debug)]
struct Failure {
    error: AssumeRoleError,
    until: Instant,
    /// How many followed each other.
    count: u32,
}

impl<A: AskIdentity> Inquiry<A> {
    /// An inquiry whose answers are told to `node`.
    pub(super) fn new(asker: A, node: NodeIdentity) -> Self {
        Self { asker, node, failure: Mutex::default() }
    }

    /// Where its answers are told.
    pub(super) fn node(&self) -> &NodeIdentity {
        &self.node
    }

    /// Returns once it is known; the failure, while it cannot be had.
    pub(super) async fn known(&self) -> Result<(), AssumeRoleError> {
        if self.node.known().caller.is_some() {
            return Ok(());
        }
        let mut failure = self.failure.lock().await;
        match &*failure {
            _ if self.node.known().caller.is_some() => Ok(()),
            Some(failure) if Instant::now() < failure.until => Err(failure.error.clone()),
            _ => self.ask(&mut failure).await.map(drop),
        }
    }

    /// Asks whatever is known, unless that failed just now; with the time after which to ask again. What is known stays
    /// when it fails.
    pub(super) async fn renew(&self) -> (Result<CallerIdentity, AssumeRoleError>, Duration) {
        let mut failure = self.failure.lock().await;
        let asked = match &*failure {
            Some(failure) if Instant::now() < failure.until => Err(failure.error.clone()),
            _ => self.ask(&mut failure).await,
        };
        let pause = failure.as_ref().map_or_else(|| spread(KNOWN), |failure| failure.until.saturating_duration_since(Instant::now()));
        (asked, pause)
    }

    async fn ask(&self, failure: &mut Option<Failure>) -> Result<CallerIdentity, AssumeRoleError> {
        match self.asker.ask().await {
            Ok(caller) => {
                self.node.set_caller(caller.clone());
                *failure = None;
                Ok(caller)
            }
            Err(error) => {
                let count = failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
                let doubled = FIRST_PAUSE.saturating_mul(1 << (count - 1).min(6)).min(LAST_PAUSE);
                let until = Instant::now() + spread(doubled).max(FIRST_PAUSE);
                *failure = Some(Failure { error: error.clone(), until, count });
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;

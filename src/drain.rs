//! Graceful shutdown in four steps: stop accepting connections; answer the requests on open connections with `Connection:
//! close`; close idle connections; drop the rest.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Time in which open connections may still send requests: a client that is about to send on an idle connection gets its
/// answer.
const LAST_REQUESTS: Duration = Duration::from_secs(1);
/// Time after that for requests in progress to finish. An STS call takes less.
const DEADLINE: Duration = Duration::from_secs(9);

/// The connections of a server, and how far its shutdown has progressed; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    /// The same, for each request to read: a token is locked when it is read.
    has_begun: Arc<AtomicBool>,
    closing: CancellationToken,
    forced: CancellationToken,
    connections: TaskTracker,
}

impl Drain {
    /// Runs a connection, and makes the drain wait for it.
    pub(crate) fn track(&self, connection: impl Future<Output = ()> + Send + 'static) {
        self.connections.spawn(connection);
    }

    /// Returns whether the drain has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    /// Returns when the server must stop accepting connections.
    pub(crate) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Returns when idle connections must be closed.
    pub(crate) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Returns when every connection must be dropped.
    pub(crate) async fn forced(&self) {
        self.forced.cancelled().await;
    }

    /// Begins the drain: no further connection is accepted.
    pub(crate) fn begin(&self) {
        self.has_begun.store(true, Ordering::Release);
        self.begun.cancel();
    }

    /// Ends every connection, at the latest after the deadline. The caller has already called `begin` and waited for the
    /// acceptor.
    pub(crate) async fn finish(&self) {
        self.connections.close();
        if timeout(LAST_REQUESTS, self.connections.wait()).await.is_err() {
            self.closing.cancel();
            if timeout(DEADLINE, self.connections.wait()).await.is_err() {
                warn!(
                    event = "drain-deadline",
                    connections = self.connections.len(),
                    "requests did not finish before the deadline of the shutdown; closing their connections; clients must retry"
                );
                self.forced.cancel();
                self.connections.wait().await;
            }
        }
        info!(event = "drained", "all connections are closed");
    }
}

#[cfg(test)]
mod tests;

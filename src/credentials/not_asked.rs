//! Reasons why a session was not requested from STS: those of this node's own queue.

/// The reason why no request to STS was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAsked {
    /// The pod has caused as many new sessions as one pod may cause.
    #[error("the pod's role, session name or external ID changed too often; no request to STS was made")]
    TooManyChanges,
    /// The queue has no place for more requests of the pod's namespace.
    #[error("the pod's namespace has too many requests in this node's queue for STS; no request to STS was made")]
    QueueFull,
    /// The caller timed out while the request waited for its turn.
    #[error("the request is still waiting in this node's queue for STS, with {others} others")]
    Queued {
        /// The number of other requests that wait.
        others: usize,
    },
    /// No pod needs the session any more.
    #[error("no pod needs the session any more; the pod changed while the request was in the queue for STS")]
    Superseded,
}

impl NotAsked {
    /// Returns the stable name of the reason, used as a metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooManyChanges => "too-many-changes",
            Self::QueueFull => "queue-full",
            Self::Queued { .. } => "queued",
            Self::Superseded => "superseded",
        }
    }

    /// Returns what to change.
    pub fn advice(self) -> &'static str {
        match self {
            Self::TooManyChanges => {
                "find what keeps changing the annotations of the pod or of its service account; a pod may cause 5 new sessions in a \
                 burst, and one more every 10 seconds"
            }
            Self::QueueFull => {
                "start fewer pods of the namespace on the node at once, or let pods of a role share a session with --session-scope=role"
            }
            Self::Queued { .. } => {
                "raise --sts-rate, --sts-max-rate or --sts-concurrency, or let pods of a role share a session with --session-scope=role"
            }
            Self::Superseded => "nothing to do: the pod's next request uses its current settings",
        }
    }

    /// Returns the message for the owner of the pod; `None` if the owner cannot change anything.
    pub(super) fn for_owner(self) -> Option<&'static str> {
        match self {
            Self::TooManyChanges => Some(
                "the pod's role, session name or external ID changes too often, so its session is delayed. To fix: find what keeps \
                 changing the annotations of the pod or of its service account",
            ),
            Self::QueueFull => Some(
                "too many pods of this namespace are waiting for credentials on the node. To fix: start fewer of them at once, or ask \
                 the cluster's operators to let pods of a role share a session",
            ),
            Self::Queued { .. } | Self::Superseded => None,
        }
    }
}

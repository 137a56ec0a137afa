//! Why a pod got no session though STS was not asked: reasons of this node's own queue.

/// Why STS was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAsked {
    /// The pod has caused as many new sessions as one pod may.
    #[error("the pod's role, session name or external ID changed too often; STS was not asked for the new session")]
    TooManyChanges,
    /// The queue has no place for more requests of the pod's namespace.
    #[error("the queue for STS on this node has no place for more requests of the pod's namespace; STS was not asked")]
    QueueFull,
    /// The caller's time ended while the request waited for its turn.
    #[error("the request waits for its turn in this node's queue for STS, with {others} others; STS was not asked yet")]
    Queued {
        /// Requests that wait with it.
        others: usize,
    },
    /// No pod needs the session any more.
    #[error("no pod needs the session any more: what it was requested by changed while the request waited for its turn")]
    Superseded,
}

impl NotAsked {
    /// The stable name: a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooManyChanges => "too-many-changes",
            Self::QueueFull => "queue-full",
            Self::Queued { .. } => "queued",
            Self::Superseded => "superseded",
        }
    }

    /// What to change.
    pub fn advice(self) -> &'static str {
        match self {
            Self::TooManyChanges => {
                "find what keeps changing the annotations of the pod or of its service account; a pod may cause 5 new sessions at once, \
                 and one more every 10 seconds"
            }
            Self::QueueFull => {
                "start fewer pods of the namespace on the node at one time, or let pods of a role share a session with --session-scope=role"
            }
            Self::Queued { .. } => {
                "raise --sts-rate, --sts-max-rate or --sts-concurrency, or let pods of a role share a session with --session-scope=role"
            }
            Self::Superseded => "none is needed: the pod's next request is decided by what it is now",
        }
    }

    /// What the owner of the pod may know; `None` where there is nothing that the owner could change.
    pub(super) fn for_owner(self) -> Option<&'static str> {
        match self {
            Self::TooManyChanges => Some(
                "the pod's role, session name or external ID changes too often, and the node requests no session for the latest change \
                 yet; find what keeps changing the annotations of the pod or of its service account",
            ),
            Self::QueueFull => Some(
                "too many pods of this namespace wait for credentials on the node at one time; start fewer of them at once, or ask the \
                 operators of the node to let pods of a role share a session",
            ),
            Self::Queued { .. } | Self::Superseded => None,
        }
    }
}

//! What a connection remembers of its last answer, so that the same request again costs little.
//!
//! Clients that poll send the same bytes again and again. Such a request is answered from memory while nothing has changed that the last
//! answer depended on, which a comparison of a few numbers shows: the pods and the node's view of their links, what is known of the
//! node's identity, the keys of tokens, and the sessions. The token's expiry and that of the credentials are compared with the clock.
//!
//! Only credentials are remembered, for a pod with an address of its own that sent a valid token. Every other request, and every other
//! answer, is decided anew. What is remembered ends with the connection, and does not keep the credentials.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::credentials::cache::held::HeldSession;
use crate::pods::Pod;
use crate::policy::RoleRequest;
use crate::report::recorder::UseMeter;

/// The memory of one connection.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Option<RememberedAnswer>>);

/// The generations of everything that an answer depends on. If one changes, the decision is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DecisionBasis {
    /// Of the pods, and of what the node sees of them.
    pub(super) pods: u64,
    /// Of what is known of the node's own identity.
    pub(super) node: u64,
    /// Of the keys of session tokens.
    pub(super) tokens: u64,
    /// Of the sessions.
    pub(super) sessions: u64,
}

/// An answer with credentials, and what it depends on.
#[derive(Debug)]
pub(super) struct RememberedAnswer {
    pub(super) basis: DecisionBasis,
    pub(super) token_expires_at: Timestamp,
    pub(super) session: HeldSession,
    /// Counts the requests of the pod's workload, if they are recorded.
    pub(super) meter: Option<UseMeter>,
}

/// A request that was decided and answered with credentials.
pub(super) struct Decided<'a> {
    /// What the decision depended on, read before it.
    pub(super) basis: DecisionBasis,
    pub(super) pod: &'a Pod,
    pub(super) request: &'a RoleRequest,
    /// When the token of the request expires; `None` if it had none.
    pub(super) token_expires_at: Option<Timestamp>,
}

impl Memory {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<RememberedAnswer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the answer.
    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }
}

//! What a connection remembers of its last answer, so that the same request again costs little.
//!
//! Clients that poll send the same bytes again and again. Such a request is answered from memory while nothing has changed that the last
//! answer depended on, which a comparison of a few numbers shows: the pods and the node's view of their links, what is known of the
//! node's identity, the keys of tokens, and the sessions. The token's expiry and that of the credentials are compared with the clock.
//!
//! Only credentials are remembered, for a pod with an address of its own that sent a valid token. Every other request, and every other
//! answer, is decided anew. What is remembered ends with the connection, and does not keep the credentials.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::Full;
use jiff::Timestamp;
use tokio::time::Instant;

use super::respond::{self, Outcome};
use super::{DecisionBasis, Origin, Proxy, answered, documents};
use crate::credentials::AssumeRole;
use crate::credentials::cache::HeldSession;
use crate::pods::{Identifier, Pod};
use crate::policy::RoleRequest;
use crate::report::recorder::{CredentialProtocol, UseMeter};

/// The memory of one connection.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Option<RememberedAnswer>>);

/// An answer with credentials, and what it depends on.
#[derive(Debug)]
struct RememberedAnswer {
    basis: DecisionBasis,
    token_expires_at: Timestamp,
    session: HeldSession,
    /// Counts the requests of the pod's workload, if they are recorded.
    meter: Option<UseMeter>,
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
    fn lock(&self) -> MutexGuard<'_, Option<RememberedAnswer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the answer.
    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }
}

impl<A: AssumeRole> Proxy<A> {
    /// Answers a request that has the same bytes as the last one on its connection, if that answer still holds.
    pub(crate) fn answer_again(&self, origin: &Origin, memory: &Memory, method: &Method, path: &str) -> Option<Response<Full<Bytes>>> {
        let now = Instant::now();
        let mut remembered = memory.lock();
        let document = remembered.as_ref().and_then(|remembered| self.document_again(origin, remembered, now));
        let Some(document) = document else {
            *remembered = None;
            return None;
        };
        let response = respond::respond(Outcome::Text(document), method);
        answered(origin, method, path, &response, &self.meters.credentials, now.into_std());
        Some(response)
    }

    fn document_again(&self, origin: &Origin, remembered: &RememberedAnswer, now: Instant) -> Option<Bytes> {
        // On a bridge, another pod may have taken over the address since the last request.
        self.pods.catch_up_on_bridges();
        let by_wall = self.clock.now();
        let holds = self.basis() == remembered.basis && !self.pods.is_stale() && !origin.is_over() && by_wall < remembered.token_expires_at;
        let credentials = if holds { self.sessions.serve_held(&remembered.session, now, by_wall)? } else { return None };
        let document = credentials.document(documents::credentials).ok()?;
        if let Some(meter) = &remembered.meter
            && !self.recorder.answered_by(meter, now)
        {
            return None;
        }
        Some(document)
    }

    /// Remembers an answer with credentials, if the same request may be answered from memory.
    pub(super) async fn remember(&self, origin: &Origin, memory: &Memory, decided: Decided<'_>) {
        let Decided { basis, pod, request, token_expires_at } = decided;
        let is_by_address = matches!(origin.identifier(), Some(Identifier::Address(_))) && !pod.host_network;
        // With --migrate, each request is recorded by what it asks for.
        let (Some(token_expires_at), true, false) = (token_expires_at, is_by_address, self.migration.is_on()) else { return };
        let Some(session) = self.sessions.held(request).await else { return };
        let meter = self.recorder.meter(pod, CredentialProtocol::Imdsv2);
        // Looked at last: if anything has changed meanwhile, the answer may not hold.
        if (meter.is_none() && self.recorder.is_on()) || !self.pods.is_settled(origin.ip, &pod.uid) || self.basis() != basis {
            return;
        }
        *memory.lock() = Some(RememberedAnswer { basis, token_expires_at, session, meter });
    }
}

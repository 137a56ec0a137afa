//! Answers requests that repeat the last one on their connection.

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::Full;
use tokio::time::Instant;

use super::memory::{Decided, Memory, RememberedAnswer};
use super::respond::{self, Outcome};
use super::{Origin, Proxy, answered, documents};
use crate::credentials::AssumeRole;
use crate::pods::Identifier;
use crate::report::recorder::CredentialProtocol;

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
        if !holds {
            return None;
        }
        let document = remembered.session.credentials(now, by_wall)?.document(documents::credentials).ok()?;
        // Nothing is counted before it is certain that the memory answers: otherwise the request is decided, and counted there.
        if let Some(meter) = &remembered.meter
            && !self.recorder.answered_by(meter, now)
        {
            return None;
        }
        self.sessions.served_held(&remembered.session);
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

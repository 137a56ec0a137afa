//! A fake AWS STS over real sockets: AssumeRole and GetCallerIdentity in the AWS Query protocol, over plain HTTP.
//!
//! It is strict where AWS is: it recomputes signatures (Signature Version 4), session tokens belong to their keys and expire,
//! parameters have the bounds of the API's model, only trusted callers can assume a role, and sessions that it issued can call
//! it in turn. It fails on demand, in every way that a client meets in practice.
//!
//! Its clock is the machine's clock plus [`Sts::set_clock_skew`].

mod answer;
mod assume;
mod issue;
mod model;
mod serve;
mod signature;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::SignedDuration;

use crate::http_server::Server;

pub use model::NODE_ROLE_ARN;
pub use model::{Behaviour, Call, Issued, Role};
use model::{Caller, Identity, Token};
use state::State;

/// The account of the node.
pub const NODE_ACCOUNT: &str = "111122223333";
/// The ARN of the node role's session on the instance, which is the identity of the node's keys.
pub const NODE_SESSION_ARN: &str = "arn:aws:sts::111122223333:assumed-role/NODE-ROLE-MUST-NEVER-LEAK/i-0f1e2d3c4b5a69788";
/// The node's access key ID. Every [`Sts`] knows it from the start.
pub const NODE_ACCESS_KEY_ID: &str = "ASIANODEMUSTNOTLEAK0";
/// The node's secret key. No pod may ever see it.
pub const NODE_SECRET_ACCESS_KEY: &str = "NODE-SECRET-MUST-NEVER-LEAK/+0123456789a";
/// The session token that the fake IMDS serves with the node's keys. The keys are accepted without it, too.
pub const NODE_SESSION_TOKEN: &str = "NODE-SESSION-TOKEN-MUST-NEVER-LEAK//0123456789+abcdef==";

/// A handle to a running fake STS. The service stops when the last handle is dropped, or at [`Sts::shutdown`].
#[derive(Clone, Debug)]
pub struct Sts {
    state: Arc<State>,
    server: Arc<Server>,
}

impl Sts {
    /// Serves `listener` on the current tokio runtime. The listener may be from another network namespace.
    ///
    /// # Errors
    /// Outside a tokio runtime, or if the listener cannot be used with it.
    pub fn start(listener: std::net::TcpListener) -> io::Result<Sts> {
        let state = Arc::new(State::default());
        let node = Caller {
            secret: NODE_SECRET_ACCESS_KEY.to_owned(),
            token: Token::Optional(NODE_SESSION_TOKEN.to_owned()),
            identity: Identity::of_caller(NODE_SESSION_ARN.to_owned()),
            expires_at: None,
        };
        state.lock().callers.insert(NODE_ACCESS_KEY_ID.to_owned(), node);
        let served = Arc::clone(&state);
        let server = Server::start(listener, move |stream, _| serve::connection(Arc::clone(&served), stream))?;
        Ok(Sts { state, server: Arc::new(server) })
    }

    /// The URL of the service: `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The address of the listener.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Registers an access key of the identity `arn`, which does not expire. If a session token is given, calls must carry it.
    pub fn add_caller(
        &self,
        access_key_id: impl Into<String>,
        secret_access_key: impl Into<String>,
        session_token: Option<&str>,
        arn: impl Into<String>,
    ) {
        let caller = Caller {
            secret: secret_access_key.into(),
            token: session_token.map_or(Token::None, |token| Token::Required(token.to_owned())),
            identity: Identity::of_caller(arn.into()),
            expires_at: None,
        };
        self.state.lock().callers.insert(access_key_id.into(), caller);
    }

    /// Adds a role, or replaces the one with the same ARN.
    pub fn add_role(&self, role: Role) {
        self.state.lock().roles.insert(role.arn.clone(), role);
    }

    /// Removes a role: AssumeRole returns AccessDenied for it from now on. Its sessions stay valid, as at AWS.
    pub fn remove_role(&self, arn: &str) {
        self.state.lock().roles.remove(arn);
    }

    /// Sets whether a role that was never added counts as a role with default settings. At AWS, and here by default, AssumeRole
    /// returns AccessDenied for it.
    pub fn unknown_roles_allowed(&self, allowed: bool) {
        self.state.lock().unknown_roles_allowed = allowed;
    }

    /// Sets how calls are answered, except those for a role with a behaviour of its own.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.state.lock().behaviour = behaviour;
    }

    /// Sets how calls for one role are answered. [`Behaviour::Normal`] restores the common behaviour.
    pub fn set_role_behaviour(&self, arn: &str, behaviour: Behaviour) {
        self.state.lock().role_behaviours.insert(arn.to_owned(), behaviour);
    }

    /// Sets the service's clock this many seconds ahead of the machine's (behind it if negative). It determines the Date
    /// header, expirations, and which signatures are too old or too new (15 minutes).
    pub fn set_clock_skew(&self, seconds: i64) {
        self.state.lock().skew = SignedDuration::from_secs(seconds);
    }

    /// Ends an issued session at the current time of the service's clock: calls signed with it get ExpiredToken.
    pub fn expire(&self, access_key_id: &str) {
        let mut state = self.state.lock();
        let now = state.now();
        if let Some(caller) = state.callers.get_mut(access_key_id) {
            caller.expires_at = Some(now);
        }
    }

    /// All calls since the start, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// The number of AssumeRole calls that arrived.
    pub fn assume_role_calls(&self) -> usize {
        let state = self.state.lock();
        let assumes = |call: &&Call| call.action == "AssumeRole";
        state.calls.iter().filter(assumes).count()
    }

    /// The number of calls that wait for their answer.
    pub fn in_flight(&self) -> usize {
        self.state.lock().in_flight
    }

    /// The highest number of calls that waited for their answer at the same time.
    pub fn max_in_flight(&self) -> usize {
        self.state.lock().max_in_flight
    }

    /// Returns when `n` calls have arrived since the start. They may not have been answered yet.
    pub async fn wait_for_calls(&self, n: usize) {
        self.wait_until(|calls| calls.len() >= n).await;
    }

    /// Returns when `n` calls have been answered, refused by closing the connection, or abandoned by their client.
    pub async fn wait_for_answers(&self, n: usize) {
        let answered = |call: &&Call| call.outcome != Call::PENDING;
        self.wait_until(|calls| calls.iter().filter(answered).count() >= n).await;
    }

    /// Returns when the calls satisfy a condition, which is checked at every arrival and every answer.
    pub async fn wait_until(&self, mut condition: impl FnMut(&[Call]) -> bool) {
        let mut changes = self.state.changes();
        // The sender is in the state that `self` holds, so the channel cannot be closed.
        let _ = changes.wait_for(|_| condition(&self.state.lock().calls)).await;
    }

    /// All credentials that were issued, in order.
    pub fn issued(&self) -> Vec<Issued> {
        self.state.lock().issued.clone()
    }

    /// Requests that the listener and all connections close, without waiting for it; [`Sts::stopped`] waits.
    pub fn shutdown(&self) {
        self.server.stop();
    }

    /// Returns once the service has stopped after [`Sts::shutdown`].
    pub async fn stopped(&self) {
        self.server.stopped().await;
    }
}

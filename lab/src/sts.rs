//! A fake AWS STS over real sockets: AssumeRole and GetCallerIdentity in the AWS Query protocol, plain HTTP.
//!
//! It is strict where AWS is: signatures (Signature Version 4) are recomputed, session tokens belong to their keys and
//! expire, parameters have the bounds of the API's model, a role is assumed only by whom it trusts, and its own sessions
//! may call it in turn. And it fails on demand, in every way that a client meets in practice.
//!
//! Its clock is the machine's, plus [`Sts::set_clock_skew`].

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
/// The node role's session on the instance: what the node's keys are known as.
pub const NODE_SESSION_ARN: &str = "arn:aws:sts::111122223333:assumed-role/NODE-ROLE-MUST-NEVER-LEAK/i-0f1e2d3c4b5a69788";
/// The node's access key id; known to every [`Sts`] from its start.
pub const NODE_ACCESS_KEY_ID: &str = "ASIANODEMUSTNOTLEAK0";
/// The node's secret key; a pod that ever sees it has found a hole.
pub const NODE_SECRET_ACCESS_KEY: &str = "NODE-SECRET-MUST-NEVER-LEAK/+0123456789a";
/// The session token that the fake IMDS hands out with the node's keys. The keys are accepted without it, too.
pub const NODE_SESSION_TOKEN: &str = "NODE-SESSION-TOKEN-MUST-NEVER-LEAK//0123456789+abcdef==";

/// A handle of a running fake STS; the service stops with its last handle, or at [`Sts::shutdown`].
#[derive(Clone, Debug)]
pub struct Sts {
    state: Arc<State>,
    server: Arc<Server>,
}

impl Sts {
    /// Serves `listener` on the current tokio runtime; the listener may be from another network namespace.
    ///
    /// # Errors
    /// Outside a tokio runtime, and when the listener cannot be used with it.
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

    /// `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Makes an access key known, as the identity `arn`; it does not expire. With a session token, calls must carry it.
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

    /// Forgets a role: it answers AccessDenied from now on. Its sessions live on, as at AWS.
    pub fn remove_role(&self, arn: &str) {
        self.state.lock().roles.remove(arn);
    }

    /// Whether a role that was never added is taken for one with default settings. At AWS, and here by default, it
    /// answers AccessDenied.
    pub fn unknown_roles_allowed(&self, allowed: bool) {
        self.state.lock().unknown_roles_allowed = allowed;
    }

    /// How calls are answered, except those for a role with a behaviour of its own.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.state.lock().behaviour = behaviour;
    }

    /// How calls for one role are answered; [`Behaviour::Normal`] gives it back to the common behaviour.
    pub fn set_role_behaviour(&self, arn: &str, behaviour: Behaviour) {
        self.state.lock().role_behaviours.insert(arn.to_owned(), behaviour);
    }

    /// Puts the service's clock this many seconds ahead of the machine's (behind it when negative): the Date header,
    /// expirations, and which signatures are too old or too new (15 minutes).
    pub fn set_clock_skew(&self, seconds: i64) {
        self.state.lock().skew = SignedDuration::from_secs(seconds);
    }

    /// Ends an issued session now, by the service's clock: calls signed with it answer ExpiredToken.
    pub fn expire(&self, access_key_id: &str) {
        let mut state = self.state.lock();
        let now = state.now();
        if let Some(caller) = state.callers.get_mut(access_key_id) {
            caller.expires_at = Some(now);
        }
    }

    /// Every call since the start, in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// How many AssumeRole calls arrived.
    pub fn assume_role_calls(&self) -> usize {
        let state = self.state.lock();
        let assumes = |call: &&Call| call.action == "AssumeRole";
        state.calls.iter().filter(assumes).count()
    }

    /// How many calls wait for their answer.
    pub fn in_flight(&self) -> usize {
        self.state.lock().in_flight
    }

    /// The most calls that ever waited for their answers at once.
    pub fn max_in_flight(&self) -> usize {
        self.state.lock().max_in_flight
    }

    /// Returns when `n` calls have arrived since the start; they may not be answered yet.
    pub async fn wait_for_calls(&self, n: usize) {
        self.wait_until(|calls| calls.len() >= n).await;
    }

    /// Returns when `n` calls have been answered, refused by closing, or abandoned by their client.
    pub async fn wait_for_answers(&self, n: usize) {
        let answered = |call: &&Call| call.outcome != Call::PENDING;
        self.wait_until(|calls| calls.iter().filter(answered).count() >= n).await;
    }

    /// Returns when the calls fulfil a condition; it is asked again at every arrival and every answer.
    pub async fn wait_until(&self, mut condition: impl FnMut(&[Call]) -> bool) {
        let mut changes = self.state.changes();
        // The sender lives in the state that `self` holds: it cannot be gone.
        let _ = changes.wait_for(|_| condition(&self.state.lock().calls)).await;
    }

    /// All credentials given out, in order.
    pub fn issued(&self) -> Vec<Issued> {
        self.state.lock().issued.clone()
    }

    /// Closes the listener and all connections, soon; [`Sts::stopped`] waits for it.
    pub fn shutdown(&self) {
        self.server.stop();
    }

    /// Returns when, after [`Sts::shutdown`], nothing listens any more.
    pub async fn stopped(&self) {
        self.server.stopped().await;
    }
}

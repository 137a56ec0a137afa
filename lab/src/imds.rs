//! A fake EC2 instance metadata service over a real socket: what a node has behind its metadata address.
//!
//! It answers session tokens (IMDSv2) and the tree below `/latest/`, with one difference from the real one: every secret
//! in it can be recognised, so that a test finds it anywhere (see [`Imds::node_credentials_leaked_in`]). It is as
//! lenient with paths as an upstream could be (`//`, `%2e`, dot segments), and takes the bytes of a request's body for
//! the next request: what a proxy lets through by mistake shows in [`Imds::requests`] and in the answers.
//!
//! The node's credentials in it are known to every [`crate::sts::Sts`].

mod answer;
mod secrets;
mod state;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::http_server::Server;

pub use crate::sts::{NODE_ACCESS_KEY_ID, NODE_ACCOUNT, NODE_ROLE_ARN, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN};
use secrets::SECRETS;
pub use secrets::{
    NODE_IDENTITY_ACCESS_KEY_ID, NODE_IDENTITY_SECRET, NODE_IDENTITY_TOKEN, NODE_IMDS_TOKEN_MARKER, NODE_PUBLIC_KEY, NODE_ROLE_NAME,
    NODE_SIGNED_IDENTITY, NODE_USER_DATA_SECRET,
};
pub use state::{ImdsBehaviour, ImdsRequest};
use state::{Known, State};
use tree::Tree;
pub use tree::VERSIONS;

/// A handle of a running fake IMDS; the service stops with its last handle, or at [`Imds::shutdown`].
#[derive(Clone, Debug)]
pub struct Imds {
    state: Arc<State>,
    server: Arc<Server>,
}

impl Imds {
    /// Serves `listener` on the current tokio runtime; the listener may be from another network namespace.
    ///
    /// # Errors
    /// Outside a tokio runtime, and when the listener cannot be used with it.
    pub fn start(listener: std::net::TcpListener) -> io::Result<Imds> {
        let state = Arc::new(State {
            known: Mutex::new(Known {
                tree: Tree::of_node(),
                tokens: HashMap::new(),
                tokens_issued: 0,
                tokens_required: true,
                behaviour: ImdsBehaviour::Normal,
                clock_advance: Duration::ZERO,
                requests: Vec::new(),
            }),
            changed: watch::Sender::new(()),
        });
        let served = Arc::clone(&state);
        let server = Server::start(listener, move |stream, peer| wire::connection(Arc::clone(&served), stream, peer))?;
        Ok(Imds { state, server: Arc::new(server) })
    }

    /// `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Every request since the start, in the order of arrival.
    pub fn requests(&self) -> Vec<ImdsRequest> {
        self.state.lock().requests.clone()
    }

    /// Returns when `n` requests have arrived since the start; they may not be answered yet.
    pub async fn wait_for_requests(&self, n: usize) {
        let mut changes = self.state.changed.subscribe();
        // The sender lives in the state that `self` holds: it cannot be gone.
        let _ = changes.wait_for(|()| self.state.lock().requests.len() >= n).await;
    }

    /// Whether data is refused without a session token (HttpTokens=required); so from the start.
    pub fn set_tokens_required(&self, required: bool) {
        self.state.lock().tokens_required = required;
    }

    /// Sets one value, `meta-data/instance-id` for example; directories come by themselves.
    pub fn set(&self, path: &str, value: &str) {
        self.state.lock().tree.set(path, value);
    }

    /// Removes one value, or a directory with everything in it.
    pub fn remove(&self, path: &str) {
        self.state.lock().tree.remove(path);
    }

    /// How every request is answered from now on.
    pub fn set_behaviour(&self, behaviour: ImdsBehaviour) {
        self.state.lock().behaviour = behaviour;
    }

    /// Forgets all session tokens, as a restart of the service does.
    pub fn forget_tokens(&self) {
        self.state.lock().tokens.clear();
    }

    /// Moves the service's clock forward: tokens expire, credentials are renewed.
    pub fn advance_clock(&self, by: Duration) {
        self.state.lock().clock_advance += by;
    }

    /// Which of the node's secrets is in these bytes, in whatever case: its role's name, its keys and tokens, user data,
    /// the instance identity role's keys, signed identity, public keys.
    pub fn node_credentials_leaked_in(bytes: &[u8]) -> Option<&'static str> {
        SECRETS.into_iter().find(|secret| bytes.windows(secret.len()).any(|window| window.eq_ignore_ascii_case(secret.as_bytes())))
    }

    /// Closes the listener and all connections, soon; [`Imds::stopped`] waits for it.
    pub fn shutdown(&self) {
        self.server.stop();
    }

    /// Returns when, after [`Imds::shutdown`], nothing listens any more.
    pub async fn stopped(&self) {
        self.server.stopped().await;
    }
}

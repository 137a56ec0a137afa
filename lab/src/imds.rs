//! A fake EC2 instance metadata service over a real socket: what a node has behind its metadata address.
//!
//! It serves session tokens (IMDSv2) and the tree below `/latest/`, with one difference from the real service: every secret is
//! recognizable, so that a test finds it wherever it appears (see [`Imds::node_credentials_leaked_in`]). It parses paths as
//! leniently as an upstream could (`//`, `%2e`, dot segments), and reads a request's body as the next request, so that whatever
//! a proxy forwards by mistake appears in [`Imds::requests`] and in the answers.
//!
//! Every [`crate::sts::Sts`] accepts the node's credentials that it serves.

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

/// A handle to a running fake IMDS. The service stops when the last handle is dropped, or at [`Imds::shutdown`].
#[derive(Clone, Debug)]
pub struct Imds {
    state: Arc<State>,
    server: Arc<Server>,
}

impl Imds {
    /// Serves `listener` on the current tokio runtime. The listener may be from another network namespace.
    ///
    /// # Errors
    /// Outside a tokio runtime, or if the listener cannot be used with it.
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

    /// The URL of the service: `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The address of the listener.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// All requests since the start, in order of arrival.
    pub fn requests(&self) -> Vec<ImdsRequest> {
        self.state.lock().requests.clone()
    }

    /// Returns when `n` requests have arrived since the start. They may not have been answered yet.
    pub async fn wait_for_requests(&self, n: usize) {
        let mut changes = self.state.changed.subscribe();
        // The sender is in the state that `self` holds, so the channel cannot be closed.
        let _ = changes.wait_for(|()| self.state.lock().requests.len() >= n).await;
    }

    /// Sets whether requests without a session token are refused (HttpTokens=required), which is the default.
    pub fn set_tokens_required(&self, required: bool) {
        self.state.lock().tokens_required = required;
    }

    /// Sets one value, for example `meta-data/instance-id`. Directories are created as needed.
    pub fn set(&self, path: &str, value: &str) {
        self.state.lock().tree.set(path, value);
    }

    /// Removes one value, or a directory with everything in it.
    pub fn remove(&self, path: &str) {
        self.state.lock().tree.remove(path);
    }

    /// Sets how every request is answered from now on.
    pub fn set_behaviour(&self, behaviour: ImdsBehaviour) {
        self.state.lock().behaviour = behaviour;
    }

    /// Invalidates all session tokens, as a restart of the service does.
    pub fn forget_tokens(&self) {
        self.state.lock().tokens.clear();
    }

    /// Moves the service's clock forward: tokens expire, and credentials are renewed.
    pub fn advance_clock(&self, by: Duration) {
        self.state.lock().clock_advance += by;
    }

    /// Returns which of the node's secrets is in these bytes, ignoring case: its role's name, its keys and tokens, user data,
    /// the instance identity role's keys, signed identity, public keys.
    pub fn node_credentials_leaked_in(bytes: &[u8]) -> Option<&'static str> {
        SECRETS.into_iter().find(|secret| bytes.windows(secret.len()).any(|window| window.eq_ignore_ascii_case(secret.as_bytes())))
    }

    /// Requests that the listener and all connections close, without waiting for it; [`Imds::stopped`] waits.
    pub fn shutdown(&self) {
        self.server.stop();
    }

    /// Returns once the service has stopped after [`Imds::shutdown`].
    pub async fn stopped(&self) {
        self.server.stopped().await;
    }
}

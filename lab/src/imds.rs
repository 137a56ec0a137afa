//! A fake EC2 instance metadata service over a real socket: what a node has behind its metadata address.
//!
//! It answers session tokens (IMDSv2) and the tree below `/latest/`, with one difference from the real one: every secret
//! in it can be recognised, so that a test finds it anywhere (see [`Imds::node_credentials_leaked_in`]). It is as
//! lenient with paths as an upstream could be (`//`, `%2e`, dot segments), and takes the bytes of a request's body for
//! the next request: what a proxy lets through by mistake shows in [`Imds::requests`] and in the answers.
//!
//! The node's credentials in it are known to every [`crate::sts::Sts`].

mod answer;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::http_server::Server;

pub use crate::sts::{NODE_ACCESS_KEY_ID, NODE_ACCOUNT, NODE_ROLE_ARN, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN};
use tree::Tree;
pub use tree::VERSIONS;

/// The name in [`NODE_ROLE_ARN`], and of the instance profile.
pub const NODE_ROLE_NAME: &str = "NODE-ROLE-MUST-NEVER-LEAK";
/// A line of the user data.
pub const NODE_USER_DATA_SECRET: &str = "NODE-USER-DATA-MUST-NEVER-LEAK";
/// How every IMDSv2 token of this service begins. A pod with one has reached it.
pub const NODE_IMDS_TOKEN_MARKER: &str = "AQAENODEIMDSTOKENMUSTNEVERLEAK";
/// The access key id of the instance identity role.
pub const NODE_IDENTITY_ACCESS_KEY_ID: &str = "ASIAIDENTITYNEVERLEA";
/// The secret key of the instance identity role.
pub const NODE_IDENTITY_SECRET: &str = "NODE-IDENTITY-SECRET-MUST-NEVER-LEAK/+01";
/// The session token of the instance identity role.
pub const NODE_IDENTITY_TOKEN: &str = "NODE-IDENTITY-TOKEN-MUST-NEVER-LEAK//+=";
/// Stands in the signed forms of the instance identity document.
pub const NODE_SIGNED_IDENTITY: &str = "NODE-SIGNED-IDENTITY-MUST-NEVER-LEAK";
/// Stands in the public keys of the instance.
pub const NODE_PUBLIC_KEY: &str = "NODE-PUBLIC-KEY-MUST-NEVER-LEAK";

/// What no pod may ever see. The access key ids are here, too: a pod has no business with them.
const SECRETS: [&str; 11] = [
    NODE_SECRET_ACCESS_KEY,
    NODE_SESSION_TOKEN,
    NODE_ACCESS_KEY_ID,
    NODE_IDENTITY_SECRET,
    NODE_IDENTITY_TOKEN,
    NODE_IDENTITY_ACCESS_KEY_ID,
    NODE_USER_DATA_SECRET,
    NODE_SIGNED_IDENTITY,
    NODE_PUBLIC_KEY,
    NODE_IMDS_TOKEN_MARKER,
    NODE_ROLE_NAME,
];

/// A handle of a running fake IMDS; the service stops with its last handle, or at [`Imds::shutdown`].
#[derive(Clone, Debug)]
pub struct Imds {
    state: Arc<State>,
    server: Arc<Server>,
}

/// One request that reached the service, as it stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImdsRequest {
    /// The method; with an unreadable request line, all of that line.
    pub method: String,
    /// The target, byte for byte (bytes outside of UTF-8 replaced).
    pub target: String,
    /// `HTTP/1.1` or what else was said.
    pub version: String,
    /// Names and values in their order, names in their own case.
    pub headers: Vec<(String, String)>,
    /// Whether it carried a session token of this service that has not expired.
    pub had_valid_token: bool,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The status of the answer; 0 without one (not yet, or never).
    pub status: u16,
}

/// All that a node's daemon may ask for pods' sake where nothing but the base set is given to them, below `latest/`.
const BASE: [&str; 9] = [
    "dynamic/instance-identity/document",
    "meta-data/instance-id",
    "meta-data/instance-life-cycle",
    "meta-data/instance-type",
    "meta-data/placement/availability-zone",
    "meta-data/placement/availability-zone-id",
    "meta-data/placement/region",
    "meta-data/services/domain",
    "meta-data/services/partition",
];

impl ImdsRequest {
    /// Whether this is a request for a token, or for a value of the base set, in the daemon's own words to the byte: no
    /// header, query or body of anybody else.
    pub fn is_for_base(&self) -> bool {
        let path = self.target.strip_prefix("/latest/").unwrap_or_default();
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let header = match self.method.as_str() {
            "PUT" if path == "api/token" => "x-aws-ec2-metadata-token-ttl-seconds",
            "GET" if BASE.contains(&path) => "x-aws-ec2-metadata-token",
            _ => return false,
        };
        names == ["host", "connection", header]
    }

    /// The first value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value)
    }
}

/// How the service answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImdsBehaviour {
    /// As the real one does.
    #[default]
    Normal,
    /// Never.
    Hang,
    /// Normally, after this time.
    Slow(Duration),
    /// With this status and no body, whatever was asked, tokens too.
    Status(u16),
    /// By closing the connection.
    Close,
}

/// The shared state of one service.
#[derive(Debug)]
struct State {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

/// Everything behind the lock.
#[derive(Debug)]
struct Known {
    tree: Tree,
    tokens: HashMap<String, SystemTime>,
    tokens_issued: u64,
    tokens_required: bool,
    behaviour: ImdsBehaviour,
    clock_advance: Duration,
    requests: Vec<ImdsRequest>,
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

impl State {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The service's clock.
    fn now(&self) -> SystemTime {
        SystemTime::now() + self.clock_advance
    }
}

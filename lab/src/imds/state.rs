//! The state of the service, and its record of requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::tree::Tree;

/// One request that reached the service, as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImdsRequest {
    /// The method. If the request line is malformed, the whole line.
    pub method: String,
    /// The target, byte for byte (invalid UTF-8 is replaced).
    pub target: String,
    /// The protocol version as sent, for example `HTTP/1.1`.
    pub version: String,
    /// Header names and values in order, with the names in their original case.
    pub headers: Vec<(String, String)>,
    /// Whether the request carried a session token of this service that has not expired.
    pub had_valid_token: bool,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The status of the answer; 0 if there is none (yet).
    pub status: u16,
}

/// Everything below `latest/` that a node's daemon may request for pods that get only the base set.
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
    /// Returns whether this is a request for a token or for a value of the base set that is byte for byte the daemon's own,
    /// without any header, query or body from elsewhere.
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
    /// As the real service does.
    #[default]
    Normal,
    /// Never answers.
    Hang,
    /// Answers normally after this time.
    Slow(Duration),
    /// Answers every request with this status and no body, including those for tokens.
    Status(u16),
    /// Closes the connection without an answer.
    Close,
}

/// The shared state of one service.
#[derive(Debug)]
pub(super) struct State {
    pub(super) known: Mutex<Known>,
    pub(super) changed: watch::Sender<()>,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) tree: Tree,
    pub(super) tokens: HashMap<String, SystemTime>,
    pub(super) tokens_issued: u64,
    pub(super) tokens_required: bool,
    pub(super) behaviour: ImdsBehaviour,
    pub(super) clock_advance: Duration,
    pub(super) requests: Vec<ImdsRequest>,
}

impl State {
    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The service's clock.
    pub(super) fn now(&self) -> SystemTime {
        SystemTime::now() + self.clock_advance
    }
}

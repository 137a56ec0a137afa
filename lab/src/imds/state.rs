//! What the service knows, and what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::tree::Tree;

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

//! The start-up taint: a node is registered with it, so that no pod is scheduled there before this daemon can serve it, and the
//! daemon removes it when it is ready.
//!
//! A taint is an entry of the list `spec.taints` of the node, which other clients change, too. The daemon therefore reads the
//! list, and writes it back without its own taint in a merge patch that names the `resourceVersion` it read. If the node was
//! changed in between, the API responds with 409 and nothing is written (Kubernetes documentation, "API concepts", resource
//! versions).
//!
//! The taint may return: the node's object is deleted and registered again, or somebody adds the taint again. The daemon
//! therefore checks the node periodically, with a read that the API answers from its cache. Nothing is removed while the daemon
//! is not ready.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::advice::Advise as _;
use crate::backoff::{Backoff, fraction, spread};
use crate::kubernetes::client::{Client, RequestError, encode};
use crate::log_once::Conditions;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// The interval between checks of a node without the taint, give or take a quarter.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LAST_PAUSE: Duration = Duration::from_secs(120);
/// The number of tries without a pause if another client changes the node between a read and a patch.
const TRIES_AT_ONCE: u32 = 5;

/// The API that stores the node's object: the Kubernetes API, or a fake in tests.
pub(crate) trait NodesApi: Send + Sync + 'static {
    /// Reads the object of a node.
    fn read(&self, node: &str, freshness: Freshness) -> impl Future<Output = Result<Vec<u8>, NodeRefusal>> + Send;
    /// Changes the object of a node by a merge patch.
    fn patch(&self, node: &str, patch: Vec<u8>) -> impl Future<Output = Result<(), NodeRefusal>> + Send;
}

/// How recent the data of a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// The current state.
    Now,
    /// The state in the API server's cache, which costs it next to nothing.
    Remembered,
}

/// The reason why a read or write failed.
#[derive(Debug)]
pub(crate) struct NodeRefusal {
    /// The HTTP status, if the API responded.
    pub code: Option<u16>,
    /// How long the API asks clients to wait before retrying.
    pub retry_after: Duration,
    /// A description for the log.
    pub text: String,
}

impl From<RequestError> for NodeRefusal {
    fn from(error: RequestError) -> Self {
        Self { code: error.code(), retry_after: error.retry_after(), text: error.with_advice() }
    }
}

impl NodesApi for Client {
    async fn read(&self, node: &str, freshness: Freshness) -> Result<Vec<u8>, NodeRefusal> {
        let query = match freshness {
            Freshness::Now => "",
            Freshness::Remembered => "?resourceVersion=0",
        };
        Ok(self.get(&format!("{}{query}", target(node))).await?)
    }

    async fn patch(&self, node: &str, patch: Vec<u8>) -> Result<(), NodeRefusal> {
        Ok(self.merge_patch(&target(node), patch).await?)
    }
}

fn target(node: &str) -> String {
    format!("/api/v1/nodes/{}", encode(node))
}

/// Keeps this node free of the start-up taint while the daemon is ready.
#[derive(Debug)]
pub(crate) struct StartupTaint<A> {
    /// The API that stores the node's object.
    pub api: A,
    /// This node's name.
    pub node: String,
    /// The taint's key; its value and effect do not matter.
    pub key: String,
    /// Whether the daemon is ready.
    pub readiness: Readiness,
    /// Metrics that count checks.
    pub metrics: Metrics,
}

/// The result of a check of the node.
enum TaintState {
    /// The node does not have the taint.
    Absent,
    /// The node had these taints, which were removed.
    Removed(Vec<String>),
    /// The node has the taint, and the daemon is no longer ready.
    NotReady,
}

impl<A: NodesApi> StartupTaint<A> {
    /// Checks the node for the lifetime of the process.
    pub(crate) async fn run(self) {
        let (mut freshness, mut failures, mut has_looked) = (Freshness::Now, 0, false);
        // Failures by HTTP status, since the last success.
        let mut failing = Conditions::default();
        loop {
            self.readiness.ready().await;
            let pause = match self.look(freshness).await {
                Ok(TaintState::NotReady) => continue,
                Ok(seen) => {
                    let key = &self.key;
                    match seen {
                        TaintState::Removed(taints) => {
                            self.metrics.startup_taint("removed");
                            info!(
                                event = "startup-taint-removed",
                                taints = taints.join(", "),
                                "removed the start-up taint from this node; pods can be scheduled on it"
                            );
                        }
                        _ => {
                            self.metrics.startup_taint("absent");
                            if has_looked {
                                debug!(key, "this node does not have the start-up taint");
                            } else {
                                info!(event = "startup-taint-absent", key, "this node does not have the start-up taint");
                            }
                        }
                    }
                    (freshness, failures, has_looked) = (Freshness::Remembered, 0, true);
                    failing.end_all();
                    LOOK_EVERY.mul_f64(0.75 + fraction() / 2.0)
                }
                Err(refusal) => {
                    let outcome = if refusal.code == Some(403) { "forbidden" } else { "failed" };
                    self.metrics.startup_taint(outcome);
                    self.log_refusal(&refusal, failing.begins(refusal.code));
                    let doubled = Backoff::new(FIRST_PAUSE, LAST_PAUSE).pause(failures);
                    (freshness, failures) = (Freshness::Now, failures + 1);
                    spread(doubled).max(refusal.retry_after.min(LAST_PAUSE))
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Checks the node once, and removes the taints it finds.
    async fn look(&self, mut freshness: Freshness) -> Result<TaintState, NodeRefusal> {
        let mut tries = 1;
        loop {
            let object = self.api.read(&self.node, freshness).await?;
            let Some(removal) = removal(&object, &self.key).map_err(|error| unreadable(&error))? else {
                return Ok(TaintState::Absent);
            };
            if !self.readiness.is_ready() {
                return Ok(TaintState::NotReady);
            }
            match self.api.patch(&self.node, removal.patch).await {
                Ok(()) => return Ok(TaintState::Removed(removal.taints)),
                // Another client changed the node first. That change is kept, and the removal is retried on top of it.
                Err(refusal) if refusal.code == Some(409) && tries < TRIES_AT_ONCE => {
                    self.metrics.startup_taint("conflict");
                    (freshness, tries) = (Freshness::Now, tries + 1);
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn log_refusal(&self, refusal: &NodeRefusal, is_news: bool) {
        let (key, text) = (&self.key, &refusal.text);
        if !is_news {
            debug!(key, "still cannot remove the start-up taint from this node: {text}");
        } else if refusal.code == Some(403) {
            // The text of the refusal says where to look.
            warn!(
                event = "startup-taint-forbidden",
                key,
                error = text,
                "rolegate may not read or change this node; retrying; if the node has the start-up taint, pods are not scheduled on it; \
                 add the rule 'apiGroups: [\"\"], resources: [nodes], verbs: [get, patch]' (see daemonset/startup-taint)"
            );
        } else {
            warn!(
                event = "startup-taint-failed",
                key,
                error = text,
                "cannot check this node for the start-up taint or remove it; retrying; if the node has the taint, pods are not scheduled \
                 on it; check the connection to the API server"
            );
        }
    }
}

fn unreadable(error: &RemovalError) -> NodeRefusal {
    NodeRefusal { code: None, retry_after: Duration::ZERO, text: error.to_string() }
}

/// The change that removes the start-up taint of a node.
struct Removal {
    /// The removed taints, in kubectl's notation.
    taints: Vec<String>,
    /// The merge patch that keeps the other taints.
    patch: Vec<u8>,
}

/// The reason why no patch can be made.
#[derive(Debug, thiserror::Error)]
enum RemovalError {
    #[error("the node's object cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// Without a version, the patch would be applied to any later state.
    #[error("the node's object has no resourceVersion")]
    NoVersion,
}

/// The used part of a node. Taints are kept verbatim, so that fields unknown to this version are written back.
#[derive(Deserialize)]
struct NodeObject {
    #[serde(default)]
    metadata: NodeMetadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeMetadata {
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    taints: Option<Vec<Value>>,
}

/// Returns the change for a node that has taints with this key; `None` if it has none.
fn removal(object: &[u8], key: &str) -> Result<Option<Removal>, RemovalError> {
    let node: NodeObject = serde_json::from_slice(object).map_err(RemovalError::Unreadable)?;
    let (ours, others): (Vec<_>, Vec<_>) = node.spec.taints.unwrap_or_default().into_iter().partition(|taint| taint["key"] == key);
    if ours.is_empty() {
        return Ok(None);
    }
    if node.metadata.resource_version.is_empty() {
        return Err(RemovalError::NoVersion);
    }
    let patch = json!({ "metadata": { "resourceVersion": node.metadata.resource_version }, "spec": { "taints": others } });
    Ok(Some(Removal { taints: ours.iter().map(|taint| Written(taint).to_string()).collect(), patch: patch.to_string().into_bytes() }))
}

/// A taint in kubectl's notation: `key=value:effect`, or `key:effect`.
struct Written<'a>(&'a Value);

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |field: &str| self.0[field].as_str().unwrap_or_default();
        let equals = if text("value").is_empty() { "" } else { "=" };
        write!(f, "{}{equals}{}:{}", text("key"), text("value"), text("effect"))
    }
}

#[cfg(test)]
mod tests;

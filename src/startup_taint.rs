//! The start-up taint: a node is registered with it, so that no pod is put there before this daemon can serve it, and the
//! daemon takes it away when it is ready.
//!
//! A taint is an entry of the list `spec.taints` of the node, which others change, too. So the list is read, and written
//! without ours by a merge patch that names the `resourceVersion` it was read at: had anybody changed the node since, the API
//! answers 409 and nothing is written (Kubernetes documentation, "API concepts", resource versions).
//!
//! The taint may come back: the node's object is deleted and registered anew, or somebody puts it on again. Therefore the
//! node is looked at from time to time, by a read that the API answers from its memory. Nothing is removed while the daemon
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

/// Between two looks at a node that does not have it; a quarter more or less.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// The pause after the first failure; it doubles with each more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LAST_PAUSE: Duration = Duration::from_secs(120);
/// Tries without a pause, where somebody else changes the node between a look and a patch.
const TRIES_AT_ONCE: u32 = 5;

/// Where the node's object is: the Kubernetes API, or a test's idea of it.
pub(crate) trait NodesApi: Send + Sync + 'static {
    /// Reads the object of a node.
    fn read(&self, node: &str, freshness: Freshness) -> impl Future<Output = Result<Vec<u8>, NodeRefusal>> + Send;
    /// Changes it by a merge patch.
    fn patch(&self, node: &str, patch: Vec<u8>) -> impl Future<Output = Result<(), NodeRefusal>> + Send;
}

/// How new what is read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// As it is now.
    Now,
    /// As the API server remembers it, which costs it next to nothing.
    Remembered,
}

/// Why something was not read or written.
#[derive(Debug)]
pub(crate) struct NodeRefusal {
    /// What the API answered, where it did.
    pub code: Option<u16>,
    /// How long the API asks not to be asked.
    pub retry_after: Duration,
    /// For the log.
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

/// Keeps this node free of the start-up taint, while the daemon is ready.
#[derive(Debug)]
pub(crate) struct StartupTaint<A> {
    /// Where the node's object is.
    pub api: A,
    /// This node's name.
    pub node: String,
    /// The taint's key, of whatever value and effect.
    pub key: String,
    /// Whether the daemon is ready.
    pub readiness: Readiness,
    /// Where looks are counted.
    pub metrics: Metrics,
}

/// What came of a look at the node.
enum TaintState {
    /// It does not have the taint.
    Absent,
    /// It had these.
    Removed(Vec<String>),
    /// It has it, and the daemon has ceased to be ready.
    NotReady,
}

impl<A: NodesApi> StartupTaint<A> {
    /// Looks for as long as the process lives.
    pub(crate) async fn run(self) {
        let (mut freshness, mut failures, mut has_looked) = (Freshness::Now, 0, false);
        // By what the API answered, since it last worked.
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
                    self.complain(&refusal, failing.begins(refusal.code));
                    let doubled = Backoff::new(FIRST_PAUSE, LAST_PAUSE).pause(failures);
                    (freshness, failures) = (Freshness::Now, failures + 1);
                    spread(doubled).max(refusal.retry_after.min(LAST_PAUSE))
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks once, and removes what is there.
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
                // Somebody was faster: their change stays, and ours is made of it.
                Err(refusal) if refusal.code == Some(409) && tries < TRIES_AT_ONCE => {
                    self.metrics.startup_taint("conflict");
                    (freshness, tries) = (Freshness::Now, tries + 1);
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn complain(&self, refusal: &NodeRefusal, is_news: bool) {
        let (key, text) = (&self.key, &refusal.text);
        if !is_news {
            debug!(key, "the start-up taint is still not removed from this node: {text}");
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
                 on it"
            );
        }
    }
}

fn unreadable(error: &RemovalError) -> NodeRefusal {
    NodeRefusal { code: None, retry_after: Duration::ZERO, text: error.to_string() }
}

/// How a node gets rid of its start-up taint.
struct Removal {
    /// What goes, as kubectl writes taints.
    taints: Vec<String>,
    /// The merge patch that leaves the others.
    patch: Vec<u8>,
}

/// Why it cannot be said what to change.
#[derive(Debug, thiserror::Error)]
enum RemovalError {
    #[error("the node's object cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// A patch without it would be made whatever has changed.
    #[error("the node's object has no resourceVersion")]
    NoVersion,
}

/// A node, as far as it is read. Taints are kept as they came: what this version does not know of them is written back.
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

/// What to change in a node that has taints of this key; none where it has not.
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

/// A taint as kubectl writes it: `key=value:effect`, or `key:effect`.
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

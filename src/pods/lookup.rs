//! The result of looking up an address.

use std::sync::Arc;

use super::index::{Pod, PodContext};
use super::witness::Objection;

/// The pod that has an address.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// This pod has it; with what is known about the pod's namespace and service account.
    Found(Arc<Pod>, PodContext),
    /// More than one living pod claims it.
    Ambiguous(Vec<Arc<Pod>>),
    /// A pod whose current state cannot be read claims it, so no pod is served there. This is its last known state.
    Unreadable(Arc<Pod>),
    /// The API assigns the address to this pod, but the node's own view contradicts it: no pod is served from it.
    Objected(Arc<Pod>, Objection),
    /// No pod of this node has it, as far as is known.
    Unknown,
}

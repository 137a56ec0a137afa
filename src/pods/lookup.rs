//! What is known of an address.

use std::sync::Arc;

use super::index::{Pod, PodContext};
use super::witness::Objection;

/// Who has an address.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// This pod, and what is known around it.
    Found(Arc<Pod>, PodContext),
    /// More than one living pod claims it.
    Ambiguous(Vec<Arc<Pod>>),
    /// A pod claims it whose present state cannot be read: nobody is served there. This is what it last was.
    Unreadable(Arc<Pod>),
    /// The API assigns the address to this pod, but the node's own view contradicts it: no pod is served from it.
    Objected(Arc<Pod>, Objection),
    /// No pod of this node, as far as is known.
    Unknown,
}

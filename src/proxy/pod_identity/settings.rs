//! What requests with service account tokens need.

use crate::pod_identity::verifier::Verifier;

/// What requests with service account tokens need.
#[derive(Debug)]
pub(crate) struct PodIdentity {
    /// Verifies tokens.
    pub verifier: Verifier,
    /// This node's name.
    pub node: String,
}

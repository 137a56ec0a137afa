//! What is needed to answer requests with service account tokens.

use crate::pod_identity::review::TokenReviews;
use crate::pod_identity::verifier::Verifier;

/// What is needed to answer requests with service account tokens.
#[derive(Debug)]
pub(crate) struct PodIdentity {
    /// Verifies tokens.
    pub verifier: Verifier,
    /// This node's name.
    pub node: String,
    /// Lets the API server confirm tokens, with `--pod-identity-token-review`.
    pub reviews: Option<TokenReviews>,
}

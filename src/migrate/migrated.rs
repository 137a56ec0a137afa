//! What a migration made.

/// Objects of the input that are named one by one in a comment.
pub(super) const MAX_LISTED: usize = 40;

/// What a migration made.
#[derive(Debug)]
pub(crate) struct Migrated {
    /// The manifests.
    pub yaml: String,
    /// What the operator must know before the swap. The same is in the comments.
    pub warnings: Vec<String>,
}

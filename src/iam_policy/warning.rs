//! What the operator should know about policies.

use std::fmt;

/// A warning, with a stable reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyWarning {
    /// The stable reason.
    pub reason: &'static str,
    text: String,
}

impl PolicyWarning {
    /// Creates a warning.
    pub(crate) fn new(reason: &'static str, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

impl fmt::Display for PolicyWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.reason)
    }
}

//! What the operator should know about settings that are accepted.

use std::fmt;

/// A warning about settings. The daemon starts all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// What it is about, in kebab case. Stable, for programs.
    pub reason: &'static str,
    /// What the settings say, what rolegate does, and what to set instead.
    pub text: String,
}

impl ConfigWarning {
    /// Creates a warning.
    pub(crate) fn new(reason: &'static str, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

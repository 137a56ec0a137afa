//! The steps of a decision, for those who want to know why. The decision itself is the same code; it only notes nothing.

use super::denial::Denial;

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Which role is asked for.
    Role,
    /// Whether an account that the metadata service named is the daemon's own.
    Account,
    /// Whether it is in the node's partition.
    Partition,
    /// Whether it is the node's own.
    NodeRole,
    /// Whether this node's pods may have it.
    AllowedRoles,
    /// The external id.
    ExternalId,
    /// The session's name.
    SessionName,
    /// The session's source identity.
    SourceIdentity,
    /// The session's tags.
    SessionTags,
    /// Whether the namespace allows it.
    Namespace,
}

impl What {
    /// The name for people, and the one that is serialized.
    pub fn name(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::Account => "account",
            Self::Partition => "partition",
            Self::NodeRole => "node-role",
            Self::AllowedRoles => "allowed-roles",
            Self::ExternalId => "external-id",
            Self::SessionName => "session-name",
            Self::SourceIdentity => "source-identity",
            Self::SessionTags => "session-tags",
            Self::Namespace => "namespace",
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepVerdict {
    /// Nothing there, or nothing that it is asked for.
    Skipped,
    /// Nothing against the role.
    Passed,
    /// The role is refused.
    Refused,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TraceStep {
    /// What was looked at.
    pub what: What,
    /// Where: the flag, or the annotation and its object.
    pub source: String,
    /// What was found there.
    pub detail: String,
    /// What came of it.
    pub verdict: StepVerdict,
}

/// Takes the steps of a decision. Texts are made only where somebody wants them.
pub(super) trait Trace {
    fn note(&mut self, step: impl FnOnce() -> TraceStep);

    /// Notes a step that passes or refuses.
    fn check<T>(
        &mut self,
        what: What,
        source: impl FnOnce() -> String,
        result: Result<T, Denial>,
        detail: impl FnOnce(&T) -> String,
    ) -> Result<T, Denial> {
        self.note(|| match &result {
            Ok(value) => TraceStep { what, source: source(), detail: detail(value), verdict: StepVerdict::Passed },
            Err(denial) => TraceStep { what, source: source(), detail: denial.to_string(), verdict: StepVerdict::Refused },
        });
        result
    }

    fn skip(&mut self, what: What, source: impl FnOnce() -> String, detail: impl FnOnce() -> String) {
        self.note(|| TraceStep { what, source: source(), detail: detail(), verdict: StepVerdict::Skipped });
    }
}

/// Takes nothing, and so costs nothing.
pub(super) struct Silent;

impl Trace for Silent {
    fn note(&mut self, _: impl FnOnce() -> TraceStep) {}
}

impl Trace for Vec<TraceStep> {
    fn note(&mut self, step: impl FnOnce() -> TraceStep) {
        self.push(step());
    }
}

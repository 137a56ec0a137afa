//! The steps of a decision, for `rolegate explain`. The same code decides requests, without recording steps.

use super::denial::Denial;

/// The subject of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The role that the pod names.
    Role,
    /// The target role that the pod names.
    TargetRole,
    /// Whether the account that the metadata service named is the daemon's own.
    Account,
    /// Whether the role is in the node's partition.
    Partition,
    /// Whether the role is the node's own.
    NodeRole,
    /// Whether `--allowed-roles` allows the role.
    AllowedRoles,
    /// The external ID.
    ExternalId,
    /// The session's name.
    SessionName,
    /// The session's source identity.
    SourceIdentity,
    /// The session's tags.
    SessionTags,
    /// The session's duration.
    SessionDuration,
    /// Whether the namespace allows the role.
    Namespace,
}

impl What {
    /// Returns the name in text output and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::TargetRole => "target-role",
            Self::Account => "account",
            Self::Partition => "partition",
            Self::NodeRole => "node-role",
            Self::AllowedRoles => "allowed-roles",
            Self::ExternalId => "external-id",
            Self::SessionName => "session-name",
            Self::SourceIdentity => "source-identity",
            Self::SessionTags => "session-tags",
            Self::SessionDuration => "session-duration",
            Self::Namespace => "namespace",
        }
    }
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepVerdict {
    /// The step does not apply.
    Skipped,
    /// The step does not refuse the role.
    Passed,
    /// The step refuses the role.
    Refused,
}

/// A step of a decision.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TraceStep {
    /// The subject.
    pub what: What,
    /// The flag, or the annotation and its object.
    pub source: String,
    /// The value that was found there.
    pub detail: String,
    /// The result.
    pub verdict: StepVerdict,
}

/// Records the steps of a decision. Texts are rendered only if steps are recorded.
pub(super) trait Trace {
    fn note(&mut self, step: impl FnOnce() -> TraceStep);

    /// Records a step that passes or refuses.
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

/// Records the steps that check the target role, and says so in each.
pub(super) struct OfTarget<'a, T>(pub(super) &'a mut T);

impl<T: Trace> Trace for OfTarget<'_, T> {
    fn note(&mut self, step: impl FnOnce() -> TraceStep) {
        self.0.note(|| {
            let step = step();
            TraceStep { source: format!("target role, {}", step.source), ..step }
        });
    }
}

/// Records nothing, at no cost.
pub(super) struct Silent;

impl Trace for Silent {
    fn note(&mut self, _: impl FnOnce() -> TraceStep) {}
}

impl Trace for Vec<TraceStep> {
    fn note(&mut self, step: impl FnOnce() -> TraceStep) {
        self.push(step());
    }
}

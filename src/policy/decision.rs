//! What a pod may have.

use std::time::Duration;

use serde::ser::SerializeStruct as _;

use super::denial::Denial;
use super::session::RequestTag;
use super::trace::TraceStep;
use crate::pods::PodUid;
use crate::role::{ExternalId, RoleArn, SessionName, SourceIdentity};

/// Everything that AssumeRole will be told, and with `--session-scope=pod` whom the session is for. It is the key of the
/// session cache: two pods share a session only where all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleRequest {
    pub(super) role: RoleArn,
    pub(super) session_name: SessionName,
    pub(super) source_identity: Option<SourceIdentity>,
    pub(super) external_id: Option<ExternalId>,
    pub(super) tags: Box<[RequestTag]>,
    pub(super) duration: Duration,
    /// The one pod whose session it is. STS is not told: pods of one name in two namespaces are told apart by it.
    pub(super) holder: Option<PodUid>,
}

impl RoleRequest {
    /// The role.
    pub fn role(&self) -> &RoleArn {
        &self.role
    }

    /// The session's name in CloudTrail.
    pub fn session_name(&self) -> &SessionName {
        &self.session_name
    }

    /// The session's source identity, where the operator gives one.
    pub fn source_identity(&self) -> Option<&SourceIdentity> {
        self.source_identity.as_ref()
    }

    /// The external id, where the pod gives one.
    pub fn external_id(&self) -> Option<&ExternalId> {
        self.external_id.as_ref()
    }

    /// The session's tags; none is transitive.
    pub fn tags(&self) -> &[RequestTag] {
        &self.tags
    }

    /// How long the session is to last.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

impl serde::Serialize for RoleRequest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RoleRequest", 7)?;
        fields.serialize_field("role", &self.role)?;
        fields.serialize_field("session_name", &self.session_name)?;
        fields.serialize_field("source_identity", &self.source_identity)?;
        fields.serialize_field("external_id", &self.external_id.is_some())?;
        fields.serialize_field("tags", &self.tags)?;
        fields.serialize_field("duration_seconds", &self.duration.as_secs())?;
        fields.serialize_field("pod_uid", &self.holder.as_ref().map(|uid| &*uid.0))?;
        fields.end()
    }
}

/// What a pod may have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// This role. `audit` is what enforced restrictions would have said against it.
    Allow {
        /// What to ask STS.
        request: RoleRequest,
        /// Set in audit mode only.
        audit: Option<Denial>,
    },
    /// Nothing.
    Deny(Denial),
}

/// A decision with its steps.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// The steps in their order; none follows a refusal.
    pub steps: Vec<TraceStep>,
    /// The decision.
    pub decision: Decision,
}

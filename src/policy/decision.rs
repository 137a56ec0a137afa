//! Decisions about what a pod may have.

use std::time::Duration;

use serde::ser::SerializeStruct as _;

use super::denial::Denial;
use super::session::RequestTag;
use super::trace::TraceStep;
use crate::pods::PodUid;
use crate::role::{ExternalId, RoleArn, SessionName, SourceIdentity};

/// Everything that is sent with AssumeRole, and with `--session-scope=pod` the pod that the session is for. It is the key of
/// the session cache: two pods share a session only if all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleRequest {
    pub(super) role: RoleArn,
    pub(super) session_name: SessionName,
    pub(super) source_identity: Option<SourceIdentity>,
    pub(super) external_id: Option<ExternalId>,
    pub(super) tags: Box<[RequestTag]>,
    pub(super) duration: Duration,
    /// The only pod that uses the session. It is not sent to STS. It separates pods of the same name in two namespaces.
    pub(super) holder: Option<PodUid>,
}

impl RoleRequest {
    /// Returns the role.
    pub fn role(&self) -> &RoleArn {
        &self.role
    }

    /// Returns the session's name in CloudTrail.
    pub fn session_name(&self) -> &SessionName {
        &self.session_name
    }

    /// Returns the session's source identity, if the operator sets one.
    pub fn source_identity(&self) -> Option<&SourceIdentity> {
        self.source_identity.as_ref()
    }

    /// Returns the external ID, if the pod sets one.
    pub fn external_id(&self) -> Option<&ExternalId> {
        self.external_id.as_ref()
    }

    /// Returns the session's tags. None is transitive.
    pub fn tags(&self) -> &[RequestTag] {
        &self.tags
    }

    /// Returns the requested session duration.
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

/// The decision about what a pod may have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The pod may have this role. `audit` is the denial that enforced restrictions would have caused.
    Allow {
        /// The request to STS.
        request: RoleRequest,
        /// Set only in audit mode.
        audit: Option<Denial>,
    },
    /// The pod may have no role.
    Deny(Denial),
}

/// A decision with its steps.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// The steps in order. No step follows a refusal.
    pub steps: Vec<TraceStep>,
    /// The decision.
    pub decision: Decision,
}

//! Decisions about what a pod may have.

use std::time::Duration;

use serde::ser::SerializeStruct as _;

use super::denial::Denial;
use super::session::RequestTag;
use super::trace::TraceStep;
use crate::pods::PodUid;
use crate::role::{ExternalId, RoleArn, SessionName, SourceIdentity};
use crate::session_limits::LONGEST_CHAINED;

/// All parameters of AssumeRole (of both calls, if the pod has a target role) and, with `--session-scope=pod`, the pod that the session is
/// for. It is the key of the session cache: two pods share a session only if all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleRequest {
    /// The role whose session the pod gets.
    pub(super) role: RoleArn,
    /// The role that is assumed first, and whose session assumes `role`, if the pod has a target role.
    pub(super) source_role: Option<RoleArn>,
    pub(super) session_name: SessionName,
    pub(super) source_identity: Option<SourceIdentity>,
    pub(super) external_id: Option<ExternalId>,
    pub(super) tags: Box<[RequestTag]>,
    pub(super) has_transitive_tags: bool,
    /// `--session-duration`. A session by role chaining may be shorter: see [`RoleRequest::duration`].
    pub(super) duration: Duration,
    /// The only pod that uses the session. It is not sent to STS. It separates pods of the same name in two namespaces.
    pub(super) holder: Option<PodUid>,
}

impl RoleRequest {
    /// Returns the role whose session the pod gets: its target role, if it has one.
    pub fn role(&self) -> &RoleArn {
        &self.role
    }

    /// Returns the role that is assumed first, if the pod has a target role. Its session assumes [`Self::role`], and no pod gets it.
    pub fn source_role(&self) -> Option<&RoleArn> {
        self.source_role.as_ref()
    }

    /// Returns all roles, in the order in which they are assumed.
    pub fn roles(&self) -> impl Iterator<Item = &RoleArn> {
        self.source_role.iter().chain([&self.role])
    }

    /// Returns the role that a denial of this request is about.
    pub fn refused_role(&self, denial: Denial) -> &RoleArn {
        self.source_role.as_ref().filter(|_| !denial.is_about_target()).unwrap_or(&self.role)
    }

    /// Returns the session's name in CloudTrail.
    pub fn session_name(&self) -> &SessionName {
        &self.session_name
    }

    /// Returns the session's source identity, if the operator sets one.
    pub fn source_identity(&self) -> Option<&SourceIdentity> {
        self.source_identity.as_ref()
    }

    /// Returns the external ID for [`Self::role`], if the pod sets one.
    pub fn external_id(&self) -> Option<&ExternalId> {
        self.external_id.as_ref()
    }

    /// Returns the session's tags.
    pub fn tags(&self) -> &[RequestTag] {
        &self.tags
    }

    /// Whether all tags are transitive: sessions that the pod creates with its credentials inherit them.
    pub fn has_transitive_tags(&self) -> bool {
        self.has_transitive_tags
    }

    /// Returns the requested duration of the session of [`Self::role`].
    pub fn duration(&self) -> Duration {
        if self.source_role.is_some() { self.duration.min(LONGEST_CHAINED) } else { self.duration }
    }

    /// Returns the duration that the operator set, which may be longer than AWS allows for a target role.
    pub fn configured_duration(&self) -> Duration {
        self.duration
    }
}

impl serde::Serialize for RoleRequest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RoleRequest", 9)?;
        fields.serialize_field("role", &self.role)?;
        fields.serialize_field("source_role", &self.source_role)?;
        fields.serialize_field("session_name", &self.session_name)?;
        fields.serialize_field("source_identity", &self.source_identity)?;
        fields.serialize_field("external_id", &self.external_id.is_some())?;
        fields.serialize_field("tags", &self.tags)?;
        fields.serialize_field("has_transitive_tags", &self.has_transitive_tags)?;
        fields.serialize_field("duration_seconds", &self.duration().as_secs())?;
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

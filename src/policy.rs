//! Which role a pod may have: a pure function of the pod, its namespace and the operator's settings.
//!
//! The order is: the pod's annotation, then `--default-role`. An annotation that cannot be read denies; it never falls
//! back to the default. Only this module makes a [`RoleRequest`], and only a [`RoleRequest`] opens the credential cache:
//! there is no way to ask for a role that was not allowed.

use std::time::Duration;

use crate::config::{PatternFormat, Restrictions};
use crate::pods::{Namespace, Pod, Surroundings};
use crate::role::{BaseArn, ExternalId, ParseError, RoleArn, SessionName};

pub mod patterns;

/// Everything that AssumeRole will be told. It is the key of the session cache: two pods share a session only where all
/// of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleRequest {
    role: RoleArn,
    session_name: SessionName,
    external_id: Option<ExternalId>,
    duration: Duration,
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

    /// The external id, where the pod gives one.
    pub fn external_id(&self) -> Option<&ExternalId> {
        self.external_id.as_ref()
    }

    /// How long the session is to last.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// What a pod may have.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Why a pod gets no role, with what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No annotation, and no default role.
    #[error("the pod has no role annotation, and there is no --default-role")]
    NoRole,
    /// The role annotation is there and empty.
    #[error("the pod's role annotation is empty; name a role or remove the annotation")]
    EmptyRole,
    /// The role annotation is neither an ARN nor a name.
    #[error("the pod's role annotation cannot be read: {0}")]
    BadRole(ParseError),
    /// A short name without a base to complete it.
    #[error("the pod's role annotation is a short name, and there is no --base-role-arn; write the role's ARN")]
    NoBaseArn,
    /// The external id annotation is malformed.
    #[error("the pod's external id annotation cannot be read: {0}")]
    BadExternalId(ParseError),
    /// The session name annotation is malformed.
    #[error("the pod's session name annotation cannot be read: {0}")]
    BadSessionName(ParseError),
    /// Restrictions apply, and the namespace is not known.
    #[error("the pod's namespace is not known yet, and namespace restrictions need it")]
    NamespaceUnknown,
    /// Restrictions apply, and the namespace has no list.
    #[error("the pod's namespace has no allowed-roles annotation; add one that allows the role")]
    NamespaceHasNoList,
    /// The namespace's list is malformed.
    #[error("the allowed-roles annotation of the pod's namespace cannot be read; it is a JSON list of patterns")]
    BadNamespaceList,
    /// The namespace's list does not have the role.
    #[error("the allowed-roles annotation of the pod's namespace does not allow the role")]
    NotAllowedInNamespace,
}

impl Denial {
    /// The stable name: a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRole => "no-role",
            Self::EmptyRole | Self::BadRole(_) => "bad-role",
            Self::NoBaseArn => "no-base-arn",
            Self::BadExternalId(_) => "bad-external-id",
            Self::BadSessionName(_) => "bad-session-name",
            Self::NamespaceUnknown => "namespace-unknown",
            Self::NamespaceHasNoList | Self::NotAllowedInNamespace => "not-allowed-in-namespace",
            Self::BadNamespaceList => "bad-namespace-list",
        }
    }
}

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What short names are completed with.
    pub base: Option<BaseArn>,
    /// The role of pods that name none.
    pub default_role: Option<RoleArn>,
    /// Whether namespaces limit roles.
    pub restrictions: Restrictions,
    /// How their lists are written.
    pub patterns: PatternFormat,
    /// How long sessions last.
    pub session_duration: Duration,
}

impl Policy {
    /// What `pod` may have, by what is known around it.
    pub fn decide(&self, pod: &Pod, around: &Surroundings) -> Decision {
        let namespace = around.namespace.as_deref();
        match self.request(pod) {
            Err(denial) => Decision::Deny(denial),
            Ok(request) => match (self.restrictions, self.check_namespace(request.role(), namespace)) {
                (Restrictions::Off, _) | (_, Ok(())) => Decision::Allow { request, audit: None },
                (Restrictions::Audit, Err(denial)) => Decision::Allow { request, audit: Some(denial) },
                (Restrictions::Enforce, Err(denial)) => Decision::Deny(denial),
            },
        }
    }

    fn request(&self, pod: &Pod) -> Result<RoleRequest, Denial> {
        let role = match (&pod.role, &self.default_role) {
            (Some(text), _) => self.parse_role(text)?,
            (None, Some(role)) => role.clone(),
            (None, None) => return Err(Denial::NoRole),
        };
        let external_id = pod.external_id.as_deref().map(str::parse).transpose().map_err(Denial::BadExternalId)?;
        let session_name = match &pod.session_name {
            Some(text) => text.parse().map_err(Denial::BadSessionName)?,
            None => SessionName::derived_from(&pod.name),
        };
        Ok(RoleRequest { role, session_name, external_id, duration: self.session_duration })
    }

    fn parse_role(&self, text: &str) -> Result<RoleArn, Denial> {
        match &self.base {
            _ if text.is_empty() => Err(Denial::EmptyRole),
            _ if text.starts_with("arn:") => text.parse().map_err(Denial::BadRole),
            Some(base) => base.complete(text).map_err(Denial::BadRole),
            None => Err(Denial::NoBaseArn),
        }
    }

    /// Whether the namespace's list allows the role. The operator's own default role needs no list (as in kube2iam).
    fn check_namespace(&self, role: &RoleArn, namespace: Option<&Namespace>) -> Result<(), Denial> {
        if self.restrictions == Restrictions::Off || self.default_role.as_ref() == Some(role) {
            return Ok(());
        }
        let namespace = namespace.ok_or(Denial::NamespaceUnknown)?;
        let list = namespace.allowed_roles.as_deref().ok_or(Denial::NamespaceHasNoList)?;
        let patterns: Vec<String> = serde_json::from_str(list).map_err(|_| Denial::BadNamespaceList)?;
        let base = self.base.as_ref().map(BaseArn::as_str);
        let mut allowed = false;
        for pattern in &patterns {
            // One pattern that cannot be read makes the list unreadable: what its author meant is not known.
            allowed |= patterns::matches(self.patterns, pattern, base, role.as_str()).map_err(|_| Denial::BadNamespaceList)?;
        }
        if allowed { Ok(()) } else { Err(Denial::NotAllowedInNamespace) }
    }
}

#[cfg(test)]
mod tests;

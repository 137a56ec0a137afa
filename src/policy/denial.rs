//! Why a pod gets no role. The texts are for operators: they say what to change, and repeat nothing of what a pod's author
//! wrote.

use std::fmt;

use serde::ser::SerializeStruct as _;

use super::patterns::Mistake;
use crate::role::ParseError;

/// Where a role is named. In this order it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleSource {
    /// The annotation of the pod.
    Pod,
    /// The same annotation, of its service account.
    ServiceAccount,
    /// The annotation that EKS reads, of its service account.
    EksServiceAccount,
}

impl fmt::Display for RoleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "the role annotation of the pod",
            Self::ServiceAccount => "the role annotation of the pod's service account",
            Self::EksServiceAccount => "the EKS role annotation of the pod's service account",
        })
    }
}

/// What is wrong with a text that should name a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleMistake {
    /// Nothing is in it.
    #[error("is empty; name a role or remove the annotation")]
    Empty,
    /// White space.
    #[error("has white space in it; remove it")]
    Spaces,
    /// Line ends and the like.
    #[error("has control characters in it, perhaps the end of a line; remove them")]
    ControlCharacters,
    /// A short name without a base to complete it.
    #[error("is a short name, and there is no --base-role-arn; write the role's ARN")]
    NoBaseArn,
    /// Neither an ARN of a role nor a name.
    #[error("cannot be read: {0}")]
    Form(ParseError),
}

/// Which annotation of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceList {
    /// The JSON list of allowed roles.
    Allowed,
    /// The expression of permitted roles.
    Permitted,
}

impl fmt::Display for NamespaceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "the allowed-roles annotation of the pod's namespace",
            Self::Permitted => "the permitted annotation of the pod's namespace",
        })
    }
}

/// Why a pod gets no role, with what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Nothing names a role.
    #[error("neither the pod nor its service account (where --service-account-roles is on) names a role, and there is no --default-role")]
    NoRole,
    /// What names the role is malformed.
    #[error("{0} {1}")]
    BadRole(RoleSource, RoleMistake),
    /// The role may be named by a service account that is not known.
    #[error("the pod names no role, and its service account, which may name one, is not known yet")]
    ServiceAccountUnknown,
    /// The role may be named by a service account that the daemon may not read.
    #[error(
        "the pod names no role, and its service account, which may name one, may not be read; add list and watch of \
         serviceaccounts to the daemon's ClusterRole (see daemonset/rbac.yaml), or leave --service-account-roles out"
    )]
    ServiceAccountsForbidden,
    /// The role is in the account that the metadata service named, but the daemon's own credentials belong to another one.
    #[error(
        "the role is in the AWS account that the metadata service names, but the daemon's own identity is in another account; use \
         --base-role-arn (or --default-role) instead of --auto-discover-..., or check what answers at --metadata-addr"
    )]
    ForeignAccount,
    /// The role is of another part of AWS, whose sessions this node cannot make.
    #[error("the role is in another AWS partition than the node; name a role of the node's partition")]
    OtherPartition,
    /// The role is the daemon's own.
    #[error("the role is the node's own, which is not for pods; make a role for the pod, or give --allow-node-role")]
    NodeRole,
    /// The ceiling of this node does not have the role.
    #[error("no pattern of --allowed-roles allows the role on this node; run the pod on other nodes, or add the role there")]
    NotAllowedOnNode,
    /// The external id annotation is malformed.
    #[error("the pod's external id annotation cannot be read: {0}")]
    BadExternalId(ParseError),
    /// The session name annotation is malformed.
    #[error("the pod's session name annotation cannot be read: {0}")]
    BadSessionName(ParseError),
    /// Restrictions apply, and the namespace is not known.
    #[error("the pod's namespace is not known yet, or gone, and namespace restrictions need it")]
    NamespaceUnknown,
    /// Restrictions apply, and the namespace has neither annotation.
    #[error("the pod's namespace has neither an allowed-roles nor a permitted annotation; add one that allows the role")]
    NamespaceHasNoList,
    /// An annotation of the namespace is malformed.
    #[error("{0} cannot be read: {1}")]
    BadNamespaceList(NamespaceList, Mistake),
    /// No annotation of the namespace allows the role.
    #[error("no annotation of the pod's namespace allows the role; add the role to its allowed-roles or permitted annotation")]
    NotAllowedInNamespace,
}

impl Denial {
    /// The stable name: a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRole => "no-role",
            Self::BadRole(_, RoleMistake::Empty) => "role-empty",
            Self::BadRole(_, RoleMistake::Spaces) => "role-spaces",
            Self::BadRole(_, RoleMistake::ControlCharacters) => "role-control-characters",
            Self::BadRole(_, RoleMistake::NoBaseArn) => "no-base-arn",
            Self::BadRole(_, RoleMistake::Form(form)) => form_name(form),
            Self::ServiceAccountUnknown => "service-account-unknown",
            Self::ServiceAccountsForbidden => "service-accounts-forbidden",
            Self::ForeignAccount => "foreign-account",
            Self::OtherPartition => "other-partition",
            Self::NodeRole => "node-role",
            Self::NotAllowedOnNode => "not-allowed-on-node",
            Self::BadExternalId(_) => "bad-external-id",
            Self::BadSessionName(_) => "bad-session-name",
            Self::NamespaceUnknown => "namespace-unknown",
            Self::NamespaceHasNoList => "no-namespace-list",
            Self::BadNamespaceList(_, Mistake::NotAList) => "bad-namespace-list",
            Self::BadNamespaceList(_, Mistake::TooLarge) => "namespace-list-too-large",
            Self::BadNamespaceList(_, Mistake::BadPattern) => "bad-namespace-pattern",
            Self::NotAllowedInNamespace => "not-allowed-in-namespace",
        }
    }

    /// Whether it is for lack of knowledge, which may come: nothing is decided yet.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::ServiceAccountUnknown | Self::NamespaceUnknown)
    }

    /// Whether it comes from who the daemon is at AWS, which may become known after a decision.
    pub fn is_about_node(self) -> bool {
        matches!(self, Self::ForeignAccount | Self::OtherPartition | Self::NodeRole)
    }
}

fn form_name(form: ParseError) -> &'static str {
    match form {
        ParseError::NotARoleArn | ParseError::NotAnIdentity => "not-a-role-arn",
        ParseError::UnknownPartition => "role-partition",
        ParseError::Account => "role-account",
        ParseError::Path => "role-path",
        ParseError::TooLong => "role-too-long",
        ParseError::RoleName | ParseError::SessionName | ParseError::ExternalId => "role-name",
    }
}

impl serde::Serialize for Denial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Denial", 2)?;
        fields.serialize_field("reason", self.name())?;
        fields.serialize_field("message", &self.to_string())?;
        fields.end()
    }
}

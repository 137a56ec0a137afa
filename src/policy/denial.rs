//! The reasons why a pod gets no role. The messages repeat nothing that a pod's author wrote.

use std::borrow::Cow;
use std::fmt;

use serde::ser::SerializeStruct as _;

use super::patterns::Mistake;
use crate::advice::Advise;
use crate::role::ParseError;

/// The places that may name a role or a target role. Those of roles are in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleSource {
    /// The role annotation of the pod.
    Pod,
    /// The role annotation of its service account.
    ServiceAccount,
    /// The EKS annotation of its service account.
    EksServiceAccount,
    /// The target role annotation of the pod.
    PodTarget,
    /// The target role annotation of its service account.
    ServiceAccountTarget,
}

impl fmt::Display for RoleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "the role annotation of the pod",
            Self::ServiceAccount => "the role annotation of the pod's service account",
            Self::EksServiceAccount => "the EKS role annotation of the pod's service account",
            Self::PodTarget => "the target-role annotation of the pod",
            Self::ServiceAccountTarget => "the target-role annotation of the pod's service account",
        })
    }
}

/// The mistake in a text that should name a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleMistake {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// The text contains white space.
    #[error("contains white space")]
    Spaces,
    /// The text contains line breaks or other control characters.
    #[error("contains control characters, such as a line break")]
    ControlCharacters,
    /// The text is a short name, and no base ARN completes it.
    #[error("is a short name, but there is no --base-role-arn")]
    NoBaseArn,
    /// The text is neither a role ARN nor a role name.
    #[error("is not valid: {0}")]
    Form(ParseError),
}

impl Advise for RoleMistake {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Empty => "name a role, or remove the annotation".into(),
            Self::Spaces => "remove the white space".into(),
            Self::ControlCharacters => "remove the control characters".into(),
            Self::NoBaseArn => "write the full ARN of the role".into(),
            Self::Form(_) => return None,
        })
    }
}

/// An annotation of a namespace that limits roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceList {
    /// The JSON list of allowed roles (as in kube2iam).
    Allowed,
    /// The regular expression of permitted roles (as in kiam).
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

/// The reason why a pod gets no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Nothing names a role.
    #[error("neither the pod nor its service account (if --service-account-roles is on) names a role, and there is no --default-role")]
    NoRole,
    /// The text that names the role is malformed.
    #[error("{0} {1}")]
    BadRole(RoleSource, RoleMistake),
    /// An object names a target role, but no role whose session could assume it.
    #[error("{0} is set, but there is no role annotation beside it")]
    TargetWithoutRole(RoleSource),
    /// A check refuses the target role. Only [`Denial::of_target`] creates it.
    #[error("the target role is refused: {0}")]
    TargetRole(&'static Denial),
    /// A service account that is not known yet may name the role.
    #[error("the pod names no role, and its service account, which may name one, is not known yet")]
    ServiceAccountUnknown,
    /// A service account that the daemon may not read may name the role.
    #[error("the pod names no role, and rolegate may not read its service account, which may name one")]
    ServiceAccountsForbidden,
    /// The role is in the account that the metadata service named, but the daemon's own credentials belong to another one.
    #[error("the role is in the AWS account that the metadata service names, but rolegate's own identity is in another account")]
    ForeignAccount,
    /// What STS and the metadata service say of the daemon's own account contradicts itself, so nothing that either says is used.
    #[error("STS and the metadata service contradict each other, or themselves, about the AWS account of this node")]
    ContradictedAccount,
    /// The role is in another partition, for which this node cannot get sessions.
    #[error("the role is in another AWS partition than the node")]
    OtherPartition,
    /// The role is the daemon's own.
    #[error("the role is the node's own role, which is not for pods")]
    NodeRole,
    /// `--allowed-roles` does not allow the role.
    #[error("no pattern of --allowed-roles allows the role on this node")]
    NotAllowedOnNode,
    /// The external ID annotation is malformed.
    #[error("the external-id annotation of the pod is not valid: {0}")]
    BadExternalId(ParseError),
    /// Restrictions apply, and the namespace is not known.
    #[error("the pod's namespace, whose annotations --namespace-restrictions needs, is not known yet or was deleted")]
    NamespaceUnknown,
    /// Restrictions apply, and the namespace has neither annotation.
    #[error("the pod's namespace has neither an allowed-roles nor a permitted annotation")]
    NamespaceHasNoList,
    /// An annotation of the namespace is malformed.
    #[error("{0} is not valid: {1}")]
    BadNamespaceList(NamespaceList, Mistake),
    /// No annotation of the namespace allows the role.
    #[error("no annotation of the pod's namespace allows the role")]
    NotAllowedInNamespace,
}

impl Advise for Denial {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::NoRole => "name a role in the role annotation of the pod".into(),
            Self::BadRole(_, mistake) => return mistake.advice(),
            Self::TargetWithoutRole(_) => {
                "name the role that assumes the target role in a role annotation of the same object, or remove the target-role annotation"
                    .into()
            }
            Self::TargetRole(denial) => return denial.advice(),
            Self::ServiceAccountsForbidden => {
                "add list and watch of serviceaccounts to the daemon's ClusterRole (see daemonset/rbac.yaml), or remove \
                 --service-account-roles"
                    .into()
            }
            Self::ForeignAccount => {
                "use --base-role-arn (or --default-role) instead of --auto-discover-..., or check what answers at --metadata-addr".into()
            }
            Self::ContradictedAccount => {
                "find out what answers at the metadata address (event account-contradicted in the daemon's log); then restart the daemon"
                    .into()
            }
            Self::OtherPartition => "name a role in the node's partition".into(),
            Self::NodeRole => "create a role for the pod, or give --allow-node-role".into(),
            Self::NotAllowedOnNode => "run the pod on another node, or add the role to --allowed-roles".into(),
            Self::NamespaceHasNoList => "add an annotation that allows the role".into(),
            Self::BadNamespaceList(_, mistake) => return mistake.advice(),
            Self::NotAllowedInNamespace => "add the role to the allowed-roles or permitted annotation of the namespace".into(),
            // The message says what is expected.
            Self::BadExternalId(_) => return None,
            // It becomes known without any action.
            Self::ServiceAccountUnknown | Self::NamespaceUnknown => return None,
        })
    }
}

impl Denial {
    /// Returns the stable name of the reason, used as a metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRole => "no-role",
            Self::BadRole(_, RoleMistake::Empty) => "role-empty",
            Self::BadRole(_, RoleMistake::Spaces) => "role-spaces",
            Self::BadRole(_, RoleMistake::ControlCharacters) => "role-control-characters",
            Self::BadRole(_, RoleMistake::NoBaseArn) => "no-base-arn",
            Self::BadRole(_, RoleMistake::Form(form)) => form_name(form),
            Self::TargetWithoutRole(_) => "target-role-without-role",
            Self::TargetRole(denial) => denial.name(),
            Self::ServiceAccountUnknown => "service-account-unknown",
            Self::ServiceAccountsForbidden => "service-accounts-forbidden",
            Self::ForeignAccount => "foreign-account",
            Self::ContradictedAccount => "contradicted-account",
            Self::OtherPartition => "other-partition",
            Self::NodeRole => "node-role",
            Self::NotAllowedOnNode => "not-allowed-on-node",
            Self::BadExternalId(_) => "bad-external-id",
            Self::NamespaceUnknown => "namespace-unknown",
            Self::NamespaceHasNoList => "no-namespace-list",
            Self::BadNamespaceList(_, Mistake::NotAList) => "bad-namespace-list",
            Self::BadNamespaceList(_, Mistake::TooLarge) => "namespace-list-too-large",
            Self::BadNamespaceList(_, Mistake::EmptyPattern | Mistake::BadPattern | Mistake::Costly) => "bad-namespace-pattern",
            Self::NotAllowedInNamespace => "not-allowed-in-namespace",
        }
    }

    /// Returns this denial as one of the target role, if it is about a role and not about the namespace or the node.
    pub(super) fn of_target(self) -> Self {
        match self {
            Self::ForeignAccount => Self::TargetRole(&Self::ForeignAccount),
            Self::OtherPartition => Self::TargetRole(&Self::OtherPartition),
            Self::NodeRole => Self::TargetRole(&Self::NodeRole),
            Self::NotAllowedOnNode => Self::TargetRole(&Self::NotAllowedOnNode),
            Self::NotAllowedInNamespace => Self::TargetRole(&Self::NotAllowedInNamespace),
            Self::NoRole
            | Self::BadRole(..)
            | Self::TargetWithoutRole(_)
            | Self::TargetRole(_)
            | Self::ServiceAccountUnknown
            | Self::ServiceAccountsForbidden
            | Self::ContradictedAccount
            | Self::BadExternalId(_)
            | Self::NamespaceUnknown
            | Self::NamespaceHasNoList
            | Self::BadNamespaceList(..) => self,
        }
    }

    /// Whether a check refuses the target role, and not the role that assumes it.
    pub fn is_about_target(self) -> bool {
        matches!(self, Self::TargetRole(_))
    }

    /// Whether the reason is that something is not known yet, so that a later decision may differ.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::ServiceAccountUnknown | Self::NamespaceUnknown)
    }

    /// Whether the reason depends on the daemon's own AWS identity, which may become known after a decision.
    pub fn is_about_node(self) -> bool {
        match self {
            Self::TargetRole(denial) => denial.is_about_node(),
            _ => matches!(self, Self::ContradictedAccount | Self::ForeignAccount | Self::OtherPartition | Self::NodeRole),
        }
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
        fields.serialize_field("message", &self.with_advice())?;
        fields.end()
    }
}

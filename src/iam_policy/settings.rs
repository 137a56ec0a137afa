//! What decides about the policies besides the roles in use.

use crate::role::RoleArn;

/// What decides about the policies besides the roles in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct IamPolicySettings {
    /// The role of the nodes, if it is known.
    pub node_role: Option<RoleArn>,
    /// The role of `--assume-role-arn`.
    pub intermediate: Option<RoleArn>,
    /// Whether sessions have tags.
    pub has_tags: bool,
    /// Whether sessions have a source identity.
    pub has_source_identity: bool,
    /// Whether paths of roles are allowed instead of each role.
    pub by_path: bool,
}

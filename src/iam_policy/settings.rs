//! What decides about the policies besides the roles in use.

use crate::policy::node::NodeIdentity;
use crate::role::RoleArn;

/// The name of a session that nobody has. It is not that of an instance.
const SESSION: &str = "rolegate";

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

impl IamPolicySettings {
    /// Returns the identities that the daemons have with these roles, as far as the roles are known. The daemon refuses its own identities
    /// to pods.
    pub(crate) fn identity(&self) -> NodeIdentity {
        let node = NodeIdentity::default();
        if let Some(role) = &self.node_role {
            node.set_instance_role(Some(role.clone()));
            node.set_caller(role.session(SESSION));
        }
        if let Some(role) = &self.intermediate {
            node.set_intermediate(role.session(SESSION));
        }
        node
    }
}

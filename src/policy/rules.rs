//! The operator's settings for the policy.

use std::time::Duration;

use super::session::SessionRules;
use crate::config::{DEFAULT_SESSION_DURATION, PatternFormat, Restrictions, ServiceAccountRoles};
use crate::role::{BaseArn, RoleArn};

/// The operator's settings for the policy.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The ARN prefix that completes short role names.
    pub base: Option<BaseArn>,
    /// The role of pods that do not name one.
    pub default_role: Option<RoleArn>,
    /// The rules that the metadata service named.
    pub discovered: Discovered,
    /// Which annotations of service accounts name roles.
    pub service_accounts: ServiceAccountRoles,
    /// Patterns of the roles that pods on this node may have. `None` allows every role.
    pub allowed_roles: Option<Vec<String>>,
    /// Whether a pod may have the node's own role.
    pub allow_node_role: bool,
    /// Whether namespaces limit roles.
    pub restrictions: Restrictions,
    /// The format of the namespaces' lists.
    pub patterns: PatternFormat,
    /// The names, source identities and tags of sessions.
    pub sessions: SessionRules,
    /// The duration of sessions.
    pub session_duration: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            base: None,
            default_role: None,
            discovered: Discovered::default(),
            service_accounts: ServiceAccountRoles::Off,
            allowed_roles: None,
            allow_node_role: false,
            restrictions: Restrictions::Off,
            patterns: PatternFormat::Glob,
            sessions: SessionRules::default(),
            session_duration: DEFAULT_SESSION_DURATION,
        }
    }
}

/// The rules that the metadata service named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// Whether it named the base ARN.
    pub base: bool,
    /// Whether it named the default role.
    pub default_role: bool,
}

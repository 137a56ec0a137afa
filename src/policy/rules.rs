//! The operator's settings.

use std::time::Duration;

use super::session::SessionRules;
use crate::config::{DEFAULT_SESSION_DURATION, PatternFormat, Restrictions, ServiceAccountRoles};
use crate::role::{BaseArn, RoleArn};

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What short names are completed with.
    pub base: Option<BaseArn>,
    /// The role of pods that name none.
    pub default_role: Option<RoleArn>,
    /// The rules that the metadata service named.
    pub discovered: Discovered,
    /// Which annotations of service accounts name roles.
    pub service_accounts: ServiceAccountRoles,
    /// Patterns of the roles that this node's pods may have at all; `None`: every role.
    pub allowed_roles: Option<Vec<String>>,
    /// Whether a pod may have the node's own role.
    pub allow_node_role: bool,
    /// Whether namespaces limit roles.
    pub restrictions: Restrictions,
    /// How their lists are written.
    pub patterns: PatternFormat,
    /// How sessions are named and tagged.
    pub sessions: SessionRules,
    /// How long they last.
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

/// Which rules the metadata service named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// What short names are completed with.
    pub base: bool,
    /// The role of pods that name none.
    pub default_role: bool,
}

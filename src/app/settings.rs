//! Two log lines at the start that say what the settings refuse, so that nobody has to find out by a refusal.

use tracing::info;

use crate::config::{Config, Restrictions};
use crate::explain::modes::RequestModes;
use crate::policy::Rules;

/// Logs what the settings refuse: requests, and roles.
pub(super) fn log_refusals(config: &Config, modes: &RequestModes, rules: &Rules) {
    info!(event = "request-settings", node_info_namespaces = config.metadata.node_info_namespaces.join(", "), "{}", modes.summary());
    let namespaces = match rules.restrictions {
        Restrictions::Off => "namespaces do not limit roles (--namespace-restrictions is off)",
        Restrictions::Audit => "roles that the pod's namespace does not allow are served and reported (--namespace-restrictions=audit)",
        Restrictions::Enforce => "roles that the pod's namespace does not allow are refused (--namespace-restrictions)",
    };
    let ceiling = match &rules.allowed_roles {
        None => "every role is allowed on this node (no --allowed-roles)",
        Some(_) => "roles that match no pattern of --allowed-roles are refused",
    };
    let unnamed = match &rules.default_role {
        None => "pods that name no role get none (no --default-role)",
        Some(_) => "pods that name no role get the default role",
    };
    info!(event = "role-settings", default_role = rules.default_role.as_ref().map(display), "{namespaces}; {ceiling}; {unnamed}");
}

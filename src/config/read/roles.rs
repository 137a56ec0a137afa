//! Reads which roles pods may use.

use crate::config::source::SettingSource;
use crate::config::{BaseRole, DefaultRole, PatternFormat, Restrictions, RolesConfig, ServiceAccountRoles};
use crate::role::{BaseArn, MAX_ARN_LENGTH, RoleArn};

/// The most patterns of `--allowed-roles`.
const MAX_ALLOWED_ROLES: usize = 256;

pub(in crate::config) fn roles(source: &mut SettingSource<'_>) -> RolesConfig {
    let given = match source.text("base-role-arn") {
        Some(_) => source.parse("base-role-arn", |text| text.parse::<BaseArn>().map_err(|error| error.to_string())),
        None => None,
    };
    let base = match (given, source.switch("auto-discover-base-arn")) {
        (Some(base), discover) => {
            if discover {
                source.mistake("--auto-discover-base-arn and --base-role-arn exclude each other: give one of them");
            }
            BaseRole::Given(base)
        }
        (None, true) => BaseRole::Discover,
        // As kube2iam: the base ARN is then read from the metadata service, too.
        (None, false) if source.switch("auto-discover-default-role") => BaseRole::Discover,
        // A malformed one is already reported; do not also report it as missing.
        (None, false) if source.text("base-role-arn").is_some() => BaseRole::Discover,
        (None, false) => BaseRole::None,
    };
    let node_role = source.switch("auto-discover-default-role");
    let allowed = source.switch("allow-node-role");
    if node_role && !allowed {
        source.warn(
            "node-role-withheld",
            "--auto-discover-default-role without --allow-node-role: rolegate does not give the node's own role to pods, so pods without a \
             role annotation get no credentials; annotate them, or set --default-role to a role for pods",
        );
    }
    let default = match (source.text("default-role"), node_role) {
        (Some(role), also_node_role) => {
            if also_node_role {
                source.mistake("--auto-discover-default-role and --default-role exclude each other: give one of them");
            }
            default_role_mistake(&role, &base, source);
            DefaultRole::Given(role)
        }
        (None, true) if allowed => DefaultRole::NodeRole,
        (None, _) => DefaultRole::None,
    };
    let restrictions = [
        ("true", Restrictions::Enforce),
        ("false", Restrictions::Off),
        ("audit", Restrictions::Audit),
        ("1", Restrictions::Enforce),
        ("0", Restrictions::Off),
    ];
    RolesConfig {
        allowed: allowed_roles(&base, source),
        allow_node_role: allowed,
        service_accounts: service_account_roles(source),
        base,
        default,
        restrictions: source.choice("namespace-restrictions", &restrictions, Restrictions::Off),
        patterns: source.choice(
            "namespace-restriction-format",
            &[("glob", PatternFormat::Glob), ("regexp", PatternFormat::Regexp)],
            PatternFormat::Glob,
        ),
    }
}

/// Reads the roles that pods of this node may use at all. The patterns are completed where the base ARN is known.
fn allowed_roles(base: &BaseRole, source: &mut SettingSource<'_>) -> Option<Vec<String>> {
    if !source.is_given("allowed-roles") {
        return None;
    }
    let patterns = source.list("allowed-roles");
    if patterns.is_empty() {
        // A variable that was left empty by mistake must not lift the limit.
        source.mistake("--allowed-roles is empty: name the roles that pods of this node may use, or remove the flag");
    }
    if patterns.len() > MAX_ALLOWED_ROLES {
        source.mistake(format!("--allowed-roles: expected at most {MAX_ALLOWED_ROLES} patterns"));
    }
    for (place, pattern) in &patterns {
        if !pattern.chars().all(|c| c.is_ascii_graphic()) || pattern.len() > MAX_ARN_LENGTH {
            source.mistake(format!("{place}={pattern:?}: expected the ARN or the name of a role, in which * matches any text"));
        } else if *base == BaseRole::None && !pattern.starts_with("arn:") {
            source.mistake(format!("{place}={pattern:?} is a short name: give an ARN, or add --base-role-arn or --auto-discover-base-arn"));
        }
    }
    Some(patterns.into_iter().map(|(_, pattern)| pattern).collect())
}

fn service_account_roles(source: &mut SettingSource<'_>) -> ServiceAccountRoles {
    match (source.switch("service-account-roles"), source.switch("eks-role-annotation")) {
        (true, true) => ServiceAccountRoles::OwnAndEks,
        (true, false) => ServiceAccountRoles::Own,
        (false, eks) => {
            if eks {
                source.mistake("--eks-role-annotation requires --service-account-roles");
            }
            ServiceAccountRoles::Off
        }
    }
}

fn default_role_mistake(role: &str, base: &BaseRole, source: &mut SettingSource<'_>) {
    let parsed = match base {
        _ if role.starts_with("arn:") => role.parse::<RoleArn>(),
        BaseRole::Given(base) => base.complete(role),
        // The account does not matter for the form of the name.
        BaseRole::Discover => format!("arn:aws:iam::000000000000:role/{}", role.strip_prefix('/').unwrap_or(role)).parse(),
        BaseRole::None => {
            return source.mistake(format!(
                "--default-role={role:?} is a short name: give an ARN, or add --base-role-arn or --auto-discover-base-arn"
            ));
        }
    };
    if let Err(error) = parsed {
        source.mistake(format!("--default-role={role:?}: {error}"));
    }
}

//! The permissions that a configuration needs in the Kubernetes API, each with the rule that grants it.

use std::net::IpAddr;

use super::{CheckItem, CheckSection, CheckStatus};
use crate::config::{Config, RedirectBackend, Restrictions, ServiceAccountRoles};

/// One rule of the daemon's ClusterRole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permission {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resource, in the plural.
    pub resource: &'static str,
    /// The verbs.
    pub verbs: &'static [&'static str],
    /// What the daemon does with it, and what happens without.
    purpose: &'static str,
    /// The result if it is missing.
    missing: CheckStatus,
}

/// Returns what this configuration needs, and nothing else.
pub(crate) fn needed(config: &Config) -> Vec<Permission> {
    let core = |resource, purpose| Permission { group: "", resource, verbs: &["list", "watch"], purpose, missing: CheckStatus::Failed };
    let mut all = vec![core("pods", "the daemon knows no pods without it, and serves none")];
    if config.roles.restrictions != Restrictions::Off {
        all.push(core("namespaces", "--namespace-restrictions refuses every pod without it"));
    }
    if config.roles.service_accounts != ServiceAccountRoles::Off {
        all.push(core("serviceaccounts", "--service-account-roles refuses pods that name no role without it"));
    }
    let (taint, address) = (config.pods.startup_taint.is_some(), reads_node_address(config));
    if taint {
        let purpose = "--startup-taint is never removed from the node without it";
        all.push(Permission { verbs: &["get", "patch"], ..core("nodes", purpose) });
    } else if let Some(missing) = address {
        let purpose = "the daemon reads the address for the packet rules with it, because --host-ip does not set one";
        all.push(Permission { verbs: &["get"], missing, ..core("nodes", purpose) });
    }
    if config.pod_identity.as_ref().is_some_and(|config| config.token_review) {
        all.push(Permission {
            group: "authentication.k8s.io",
            resource: "tokenreviews",
            verbs: &["create"],
            purpose: "without it, --pod-identity-token-review refuses every service account token",
            missing: CheckStatus::Failed,
        });
    }
    if config.pods.events {
        all.push(Permission {
            group: "events.k8s.io",
            resource: "events",
            verbs: &["create", "patch"],
            purpose: "the owners of pods see no Events without it; --events=false does without",
            missing: CheckStatus::Warning,
        });
    }
    all
}

/// Returns the result of a missing permission to read the node, if the daemon reads its address there. It can do without if
/// `--host-interface` names an interface.
fn reads_node_address(config: &Config) -> Option<CheckStatus> {
    let redirect = &config.redirect;
    let is_given = redirect.host_ips.iter().chain(&config.server.address).any(IpAddr::is_ipv4);
    if redirect.backend == RedirectBackend::None || is_given {
        return None;
    }
    let has_interface = redirect.interfaces.iter().any(|interface| !interface.negated && !interface.name.ends_with('+'));
    Some(if has_interface { CheckStatus::Warning } else { CheckStatus::Failed })
}

impl Permission {
    /// Returns the rule, as one line of a ClusterRole.
    pub(crate) fn rule(&self) -> String {
        let group = if self.group.is_empty() { "\"\"" } else { self.group };
        format!("- {{apiGroups: [{group}], resources: [{}], verbs: [{}]}}", self.resource, self.verbs.join(", "))
    }

    /// Returns the check; `denied` are the verbs that the API refuses.
    pub(crate) fn item(&self, denied: &[&str]) -> CheckItem {
        let section = CheckSection::Kubernetes;
        if denied.is_empty() {
            return section.ok(self.resource, format!("{}: allowed", self.verbs.join(", ")));
        }
        section
            .item(self.resource, self.missing, format!("{} of {} is not allowed: {}", denied.join(", "), self.resource, self.purpose))
            .advise(format!("add this rule to the daemon's ClusterRole: {}", self.rule()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    fn needs(arguments: &[&str]) -> Vec<String> {
        let arguments = ["--node=a"].iter().chain(arguments).map(|word| (*word).to_owned());
        let config = Config::from_arguments(arguments, &|_| None).unwrap();
        needed(&config).iter().map(|need| format!("{}: {}", need.resource, need.verbs.join(", "))).collect()
    }

    #[test]
    fn each_flag_adds_what_it_needs() {
        let pods = "pods: list, watch";
        for (arguments, more) in [
            (&["--events=false"][..], &[][..]),
            (&[], &["events: create, patch"]),
            (&["--events=false", "--namespace-restrictions=audit"], &["namespaces: list, watch"]),
            (&["--events=false", "--service-account-roles"], &["serviceaccounts: list, watch"]),
            (&["--events=false", "--pod-identity"], &[]),
            (&["--events=false", "--pod-identity", "--pod-identity-token-review"], &["tokenreviews: create"]),
            (&["--events=false", "--iptables"], &["nodes: get"]),
            (&["--events=false", "--iptables", "--host-ip=10.0.0.1"], &[]),
            (&["--events=false", "--iptables", "--metadata-bind-address=10.0.0.1"], &[]),
            (&["--events=false", "--iptables", "--startup-taint=example.com/a"], &["nodes: get, patch"]),
        ] {
            let wanted: Vec<_> = [pods].iter().chain(more).map(|text| (*text).to_owned()).collect();
            assert_eq!(needs(arguments), wanted, "{arguments:?}");
        }
    }

    #[test]
    fn the_shipped_cluster_roles_grant_every_rule() {
        let text = [
            include_str!("../../daemonset/rbac.yaml"),
            include_str!("../../daemonset/startup-taint/rbac.yaml"),
            include_str!("../../daemonset/pod-identity-token-review/rbac.yaml"),
        ]
        .concat();
        let lines: Vec<_> = text.lines().map(|line| line.trim_start_matches(['#', ' ']).trim_start_matches("- ")).collect();
        let arguments = ["--node=a", "--namespace-restrictions", "--service-account-roles", "--iptables"];
        for more in [&[][..], &["--startup-taint=example.com/a"], &["--pod-identity", "--pod-identity-token-review"]] {
            let config = Config::from_arguments(arguments.iter().chain(more).map(|word| (*word).to_owned()), &|_| None).unwrap();
            for need in needed(&config) {
                let group = if need.group.is_empty() { "\"\"" } else { need.group };
                let rule = [
                    format!("apiGroups: [{group}]"),
                    format!("resources: [{}]", need.resource),
                    format!("verbs: [{}]", need.verbs.join(", ")),
                ];
                assert!(lines.windows(3).any(|lines| lines == rule), "{rule:?}");
            }
        }
    }

    #[test]
    fn a_missing_permission_names_the_whole_rule() {
        let config = Config::from_arguments(["--node=a".to_owned()], &|_| None).unwrap();
        let [pods, events] = &needed(&config)[..] else { panic!("two permissions") };
        assert_eq!(pods.item(&[]).status, CheckStatus::Ok);
        let (failed, warning) = (pods.item(&["watch"]), events.item(&["create", "patch"]));
        assert_eq!((failed.status, warning.status), (CheckStatus::Failed, CheckStatus::Warning));
        assert!(failed.advice.unwrap().ends_with(r#"- {apiGroups: [""], resources: [pods], verbs: [list, watch]}"#));
        assert!(warning.advice.unwrap().ends_with("- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}"));
    }
}

//! The flags of the short help.

/// The flags that most operators need, with a text of one line. `--help` shows them; `--help-all` and the documents have all flags
/// with the whole text.
pub const ESSENTIAL: &[(&str, &str)] = &[
    ("node", "Name of the node (NODE_NAME is read as well)"),
    ("kubeconfig", "Kubeconfig file; default: the service account of rolegate's pod"),
    ("base-role-arn", "Prefix of short role names"),
    ("default-role", "Role of pods without a role annotation"),
    ("allowed-roles", "Roles that pods of this node may use; default: all"),
    ("namespace-restrictions", "Restrict roles by annotations of namespaces: true, false or audit"),
    ("service-account-roles", "Read the role from the service account of pods that name none"),
    ("redirect", "Backend of the packet rules: nftables, iptables, auto, bpf or none"),
    ("metadata-profile", "What pods may read besides credentials: base, node-info or none"),
    ("log-level", "error, warn, info, debug or trace"),
];

/// Those of them that decide about pods' roles. The others are about serving, and of no effect on commands that only decide.
pub const DECIDING: &[&str] =
    &["node", "kubeconfig", "base-role-arn", "default-role", "allowed-roles", "namespace-restrictions", "service-account-roles"];

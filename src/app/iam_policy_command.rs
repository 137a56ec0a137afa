//! The parts of `rolegate iam-policy`, joined: the pods of the cluster, the policy, and the IAM policies.

use anyhow::Context as _;

use super::prepare::{load_aws, needs_aws, rules};
use crate::config::iam_policy_command::IamPolicyCommand;
use crate::config::{Restrictions, ServiceAccountRoles};
use crate::iam_policy::{Counted, IamPolicies, IamPolicySettings, PolicyWarning, RolesInUse};
use crate::kubernetes::client;
use crate::pods::watch::cluster::cluster_snapshot;
use crate::pods::watch::snapshot::SnapshotSettings;
use crate::pods::{HostNetworkRules, Needs, OwnPodName};
use crate::policy::Policy;
use crate::policy::node::NodeIdentity;
use crate::progress::Progress;

/// Returns the policies for the roles in use.
pub(crate) async fn iam_policies(command: &IamPolicyCommand, mut progress: Progress) -> anyhow::Result<IamPolicies> {
    let config = &command.config;
    let needs = Needs {
        namespaces: config.roles.restrictions != Restrictions::Off,
        service_accounts: config.roles.service_accounts != ServiceAccountRoles::Off,
        owners: false,
    };
    // Whether the nodes' daemons have the programs of the kernel is not known here.
    let host_network = HostNetworkRules::new(config.pods.host_network.clone(), OwnPodName::default(), true);
    let settings = SnapshotSettings { annotations: &config.pods.annotations, needs, host_network };
    let kube = client::connect(&config.pods.api).await?;
    let snapshot = cluster_snapshot(&kube, command.node.as_deref(), settings, |read| progress.show(&format!("{read} pods read"))).await?;
    drop(progress);
    let aws = if needs_aws(config) { Some(load_aws(config).await?) } else { None };
    let discovered = NodeIdentity::default();
    let rules = rules(aws.as_ref(), config, &discovered).await?;
    let settings = IamPolicySettings {
        node_role: command.node_role.clone(),
        intermediate: config.sessions.intermediate.clone(),
        has_tags: !config.sessions.tags.is_empty(),
        has_source_identity: config.sessions.source_identity.is_some(),
        by_path: command.by_path,
    };
    let node = settings.identity();
    if settings.node_role.is_none() {
        node.set_instance_role(discovered.known().instance_role.clone());
    }
    let default_role = rules.default_role.clone();
    let policy = Policy::new(rules, node).context("--allowed-roles")?;
    let counted = Counted {
        default_role: default_role.as_ref(),
        is_unrestricted: config.roles.restrictions == Restrictions::Off,
        with_audited: command.with_audited,
    };
    let uses = RolesInUse::of(&snapshot.pods, &policy, counted);
    let mut policies = IamPolicies::new(&uses, &settings);
    if snapshot.left_out > 0 {
        let text = format!("{} objects of the Kubernetes API cannot be read and are left out", snapshot.left_out);
        policies.warnings.push(PolicyWarning::new("objects-left-out", text));
    }
    Ok(policies)
}

//! The parts of `rolegate explain`, joined: a daemon that is asked, or the Kubernetes API and a policy of our own.

use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::failure::Failure;
use super::prepare::{load_aws, needs_aws, rules};
use crate::clock::Clock;
use crate::config::explain_command::{Cluster, ExplainConfig, ExplainTarget, PodReference};
use crate::config::{Restrictions, ServiceAccountRoles};
use crate::explain::explainer::{ExplainRate, Explainer, PacedManifests};
use crate::explain::look::look;
use crate::explain::{By, Report, admin, pod_identity};
use crate::kubernetes::client;
use crate::metrics::Metrics;
use crate::pods::watch::manifest::ApiManifests;
use crate::pods::watch::snapshot::{Snapshot, SnapshotSettings, snapshot};
use crate::pods::{HostNetworkRules, Needs, OwnPodName, PodManifests as _};
use crate::policy::Policy;
use crate::policy::node::NodeIdentity;

/// The report that was asked for.
pub(crate) async fn explain(asked: ExplainConfig) -> anyhow::Result<Report> {
    let ExplainConfig { pod, asked, assume, .. } = asked;
    match asked {
        ExplainTarget::Daemon(daemon) => Ok(admin::ask(&daemon, &pod, assume).await?),
        ExplainTarget::Cluster(cluster) => of_cluster(*cluster, pod, assume).await,
    }
}

async fn of_cluster(cluster: Cluster, pod: PodReference, assume: bool) -> anyhow::Result<Report> {
    let Cluster { mut config, node: node_given } = cluster;
    let needs = Needs {
        namespaces: config.roles.restrictions != Restrictions::Off,
        service_accounts: config.roles.service_accounts != ServiceAccountRoles::Off,
        owners: false,
    };
    let kube = client::connect(&config.pods.api).await?;
    let unknown = |node: &str, message| Report::unknown(&pod, node, By::Cluster, "unknown-pod", message);
    let now = Clock::system().now();
    // Whether the node's daemon has the programs of the kernel is not known here.
    let host_network = HostNetworkRules::new(config.pods.host_network.clone(), OwnPodName::default(), true);
    let settings = SnapshotSettings { annotations: &config.pods.annotations, needs, host_network };
    let (node, pods, left_out) = match snapshot(&kube, &pod, settings, now).await? {
        Snapshot::NoSuchPod => {
            return Ok(unknown("", format!("there is no pod {pod} in this cluster. To fix: check both names, and the kubeconfig context")));
        }
        Snapshot::NotScheduled => {
            let describe = format!("kubectl describe pod --namespace {} {}", pod.namespace(), pod.name());
            return Ok(unknown("", format!("the pod is not scheduled to a node yet. To fix: see {describe}")));
        }
        Snapshot::OnNode { node, pods, left_out } => (node, pods, left_out),
    };
    if let Some(given) = node_given.filter(|given| *given != node) {
        bail!(Failure::new(
            format!("pod {pod} is on node {node}, not on {given}"),
            "remove --node, or give the flags of the daemon on that node"
        ));
    }
    config.pods.node = node.clone();
    let aws = if assume || needs_aws(&config) { Some(load_aws(&config).await?) } else { None };
    let of_node = NodeIdentity::default();
    let rules = rules(aws.as_ref(), &config, &of_node).await?;
    let manifests = ApiManifests::new(kube);
    let mut report = match aws.filter(|_| assume) {
        None => {
            let mut report = look(&pod, &node, By::Cluster, &pods, &Policy::new(rules, of_node).context("--allowed-roles")?).0;
            pod_identity::look(manifests.read(pod.namespace(), pod.name()).await, config.pod_identity.as_ref(), &pods, &mut report);
            report
        }
        Some(aws) => {
            let (metrics, pace) = (Metrics::new(), ExplainRate::default());
            let sts = aws.sts(Clock::system(), of_node.clone(), metrics.clone()).asked_once();
            let policy = Arc::new(Policy::new(rules, of_node).context("--allowed-roles")?);
            let (manifests, pod_identity) = (PacedManifests::new(Arc::new(manifests)), config.pod_identity.clone());
            let explainer = Explainer { node, by: By::Cluster, policy, pods, sts, metrics, pace, manifests, pod_identity, daemon: None };
            let mut report = explainer.assume(&pod).await?;
            if report.assume.is_some() {
                report.notes.push("STS was called with the AWS identity of this command, which may differ from the daemon's".to_owned());
            }
            report
        }
    };
    if left_out > 0 {
        report.notes.push(format!(
            "{left_out} pods of node {} cannot be read and are left out here; the daemon refuses requests from their addresses",
            report.node
        ));
    }
    Ok(report)
}

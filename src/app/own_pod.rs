//! The daemon's own pod: which node it is on, and whether it is in the network of that node.
//!
//! Manifests for kube2iam mostly leave `--node` out. The node is then found, in this order, by the token of the service account,
//! which is bound to the pod; by the pod's name or UID in the environment or as the host's name; and by the pods in the network
//! of the node that have its address.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::failure::Failure;
use crate::config::own_pod::OwnPodHints;
use crate::kubernetes::client::Client;
use crate::kubernetes::failure::RequestFailure;
use crate::kubernetes::own_pod::{PodOnNode, TokenBinding, pods_with};
use crate::kubernetes::setup::SERVICE_ACCOUNT;
use crate::pods::{OwnPodName, Pods};
use crate::readiness::{PODS_KNOWN, Readiness, ReadinessStep};

/// Pause between questions that the API leaves open.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How often the API may know none of the pods that were looked for before that counts as an answer. The kubelet reports a pod's
/// addresses late.
const TRIES: u32 = 12;

/// What is known of the daemon's own pod.
#[derive(Clone, Debug)]
pub(super) struct OwnPod {
    hints: OwnPodHints,
    token: TokenBinding,
    /// The addresses of this machine, or of the network namespace that the daemon is in.
    addresses: fn() -> Vec<IpAddr>,
}

/// Returns what is known about the daemon's own pod without the Kubernetes API.
pub(super) fn name(hints: &OwnPodHints) -> OwnPodName {
    let token = TokenBinding::read(Path::new(SERVICE_ACCOUNT));
    let name = token.pod.or_else(|| hints.name.clone());
    let namespace = token.namespace.or_else(|| hints.namespace.clone());
    OwnPodName { uid: token.uid.or_else(|| hints.uid.clone()), name: namespace.zip(name) }
}

/// How the node was found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FoundNode {
    node: String,
    by: &'static str,
}

impl OwnPod {
    /// Reads what the environment and the service account say.
    pub(super) fn new(hints: &OwnPodHints, addresses: fn() -> Vec<IpAddr>) -> Self {
        Self { hints: hints.clone(), token: TokenBinding::read(Path::new(SERVICE_ACCOUNT)), addresses }
    }

    /// Finds the name of the node that the daemon is on. Waits for an API that does not answer.
    ///
    /// # Errors
    /// If nothing says which pod the daemon's is, or the API knows none of that kind.
    pub(super) async fn find_node(&self, kube: &Client) -> Result<String, Failure> {
        if self.token.node.is_none() && !self.is_known() {
            return Err(Failure::new(
                "the name of this node is not known: --node and NODE_NAME are not set, and nothing says which pod is the daemon's own",
                "set --node from the field spec.nodeName of the pod, or POD_NAME and POD_NAMESPACE from metadata.name and \
                 metadata.namespace",
            ));
        }
        let mut tries = 0;
        loop {
            match self.look(kube).await {
                Ok(Some(FoundNode { node, by })) => {
                    info!(event = "node-found", node, by, "--node is not set; found the name of this node");
                    return Ok(node);
                }
                Ok(None) if tries >= TRIES => {
                    return Err(Failure::new(
                        "the name of this node is not known: --node and NODE_NAME are not set, and the Kubernetes API does not know the \
                         daemon's own pod",
                        "set --node from the field spec.nodeName of the pod",
                    ));
                }
                Ok(None) => tries += 1,
                Err(failure) if is_final(&failure) => {
                    return Err(Failure::new(
                        format!(
                            "the name of this node is not known: --node and NODE_NAME are not set, and the daemon's own pod cannot be read: \
                             {failure}"
                        ),
                        "set --node from the field spec.nodeName of the pod, or allow list of pods",
                    ));
                }
                Err(failure) => warn!(
                    event = "node-unknown", %failure,
                    "--node is not set, and the Kubernetes API does not tell the daemon's own pod; retrying, serving no pods until then; to \
                     do without, set --node from the field spec.nodeName"
                ),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Whether anything says which pod it may be.
    fn is_known(&self) -> bool {
        let OwnPodHints { name, uid, hostname, host_ips, .. } = &self.hints;
        self.token.pod.is_some() || name.is_some() || uid.is_some() || hostname.is_some() || !host_ips.is_empty()
    }

    async fn look(&self, kube: &Client) -> Result<Option<FoundNode>, RequestFailure> {
        if let Some(node) = self.token.node.clone() {
            return Ok(Some(FoundNode { node, by: "token" }));
        }
        if let Some(own) = self.read(kube).await?.filter(|own| !own.node.is_empty()) {
            return Ok(Some(FoundNode { node: own.node, by: "pod" }));
        }
        if let Some(hostname) = &self.hints.hostname {
            let pods = pods_with(kube, &format!("spec.nodeName={hostname}")).await?;
            if pods.iter().any(|pod| self.is_here(pod)) {
                return Ok(Some(FoundNode { node: hostname.clone(), by: "hostname" }));
            }
        }
        for ip in &self.hints.host_ips {
            let pods = pods_with(kube, &format!("status.podIP={ip}")).await?;
            if let Some(node) = one_node(&pods, *ip) {
                return Ok(Some(FoundNode { node, by: "host-ip" }));
            }
        }
        Ok(None)
    }

    /// Whether a pod's node has an address of this machine.
    fn is_here(&self, pod: &PodOnNode) -> bool {
        let addresses = (self.addresses)();
        pod.host_ips.iter().any(|ip| !ip.is_loopback() && addresses.contains(ip))
    }

    /// Reads the daemon's own pod, by its name and its UID; `None` where neither is known, or it is not there.
    async fn read(&self, kube: &Client) -> Result<Option<PodOnNode>, RequestFailure> {
        let OwnPodHints { name, namespace, uid, hostname, .. } = &self.hints;
        let uid = self.token.uid.as_ref().or(uid.as_ref());
        let namespace = self.token.namespace.as_ref().or(namespace.as_ref());
        // In the network of a node, the host's name is that of the node, and may be any pod's as well.
        let candidates = [(&self.token.pod, true), (name, true), (hostname, false)];
        for (name, is_name) in candidates.into_iter().filter_map(|(name, is_name)| Some((name.as_ref()?, is_name))) {
            let is_own = |pod: &PodOnNode| uid.map_or_else(|| is_name || self.is_here(pod), |uid| *uid == pod.uid);
            let of_namespace = namespace.map(|namespace| format!(",metadata.namespace={namespace}")).unwrap_or_default();
            let found = pods_with(kube, &format!("metadata.name={name}{of_namespace}")).await?;
            // Several of one name cannot be told apart without the UID.
            if let [own] = found.into_iter().filter(is_own).collect::<Vec<_>>().as_slice() {
                return Ok(Some(own.clone()));
            }
        }
        Ok(None)
    }

    /// Checks once, where the daemon's own pod is known for certain, that it is in the network of its node, and on the node whose
    /// pods it serves. An API that does not answer leaves it open.
    ///
    /// # Errors
    /// If it is not: rules and connections of pods are then out of reach.
    pub(super) async fn check(&self, kube: &Client, node: &str) -> Result<(), Failure> {
        // A host's name may be any pod's.
        let certain = self.token.pod.is_some() || (self.hints.name.is_some() && self.hints.namespace.is_some());
        if !certain {
            return Ok(());
        }
        let own = match self.read(kube).await {
            Ok(own) => own,
            Err(failure) => {
                debug!(%failure, "the daemon's own pod cannot be read");
                None
            }
        };
        let Some(own) = own else { return Ok(()) };
        if !own.host_network {
            return Err(Failure::new(
                format!(
                    "the daemon's own pod {} is not in the network of its node, where neither packet rules nor pods' connections reach it",
                    own.name
                ),
                "set hostNetwork: true in the DaemonSet",
            ));
        }
        if !own.node.is_empty() && own.node != node {
            return Err(Failure::new(
                format!("the daemon's own pod {} is on node {}, but --node is {node}", own.name, own.node),
                "set --node from the field spec.nodeName of the pod, or remove it",
            ));
        }
        Ok(())
    }
}

/// Waits until the Kubernetes API knows a pod of this node, where it must know the daemon's own: a daemon with the name of no node
/// would serve nobody, and look well.
pub(super) async fn await_pods(mut pods: Pods, readiness: &Readiness, node: &str, step: ReadinessStep) {
    readiness.done(&[PODS_KNOWN]).await;
    if pods.count() == 0 {
        error!(
            event = "no-pods-on-node",
            node,
            "the Kubernetes API has no pods on the node of this name, not even the daemon's own; not ready, serving no pods; check --node, \
             which must be the name in 'kubectl get nodes'"
        );
    }
    while pods.count() == 0 {
        pods.changed().await;
    }
    step.done();
    std::future::pending().await
}

/// The node of the pods that are in its network and have this address; `None` where there are none, or they are not of one node.
fn one_node(pods: &[PodOnNode], ip: IpAddr) -> Option<String> {
    let in_network = pods.iter().filter(|pod| pod.host_network && !pod.finished && !pod.node.is_empty() && pod.host_ips.contains(&ip));
    let mut nodes: Vec<_> = in_network.map(|pod| &pod.node).collect();
    nodes.dedup();
    match nodes.as_slice() {
        [node] => Some((*node).clone()),
        _ => None,
    }
}

/// Whether asking again would bring the same answer.
fn is_final(failure: &RequestFailure) -> bool {
    matches!(failure.code(), Some(403..=405))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;

    fn pod_on(node: &str, ip: &str, host_network: bool) -> PodOnNode {
        let host_ips = vec![ip.parse().unwrap()];
        PodOnNode { name: "n/a".to_owned(), uid: "u".to_owned(), node: node.to_owned(), host_network, finished: false, host_ips }
    }

    #[test]
    fn pods_of_the_nodes_network_name_it_if_they_agree() {
        let ip = "10.0.0.1".parse().unwrap();
        let on = |node: &str| pod_on(node, "10.0.0.1", true);
        assert_eq!(one_node(&[on("a"), on("a")], ip).as_deref(), Some("a"));
        for pods in [
            vec![],
            vec![on("a"), on("b")],
            // An address that was a pod's own.
            vec![pod_on("a", "10.0.0.1", false)],
            vec![pod_on("a", "10.0.0.2", true)],
            vec![PodOnNode { finished: true, ..on("a") }],
            vec![on("")],
        ] {
            assert_eq!(one_node(&pods, ip), None, "{pods:?}");
        }
    }
}

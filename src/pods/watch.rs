//! Watches this node's pods and the objects that decisions about them depend on. This is the only user of the Kubernetes API in
//! the request path.
//!
//! Pods are selected by a field selector on the node, and decoded into the few fields that are used: memory use depends on the
//! pods of this node, never on the size of the cluster. A list is built separately and swapped in when it is complete, so that
//! a relist never exposes a partial index.

use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::{Needs, NodeAddresses, Pod, PodName, PodUid, Pods, PodsWriter};
use crate::cgroup::is_static_uid;
use crate::clock::CLOCK_EVERY;
use crate::config::AnnotationKeys;
use crate::kubernetes::client::Client;
use crate::metrics::Metrics;
use crate::readiness::ReadinessStep;

mod ambiguous;
pub(crate) mod cluster;
mod context;
mod fields;
mod follow;
mod lines;
pub(crate) mod manifest;
mod objects;
mod pauses;
pub(crate) mod second_witness;
pub(crate) mod snapshot;
mod unreadable;

use fields::Annotation;
use follow::{Selection, WatchEvent, follow};
use objects::{ObjectMeta, PodObject};

/// Annotation with the session's name (kiam's name for it).
pub const SESSION_NAME_KEY: &str = "iam.amazonaws.com/session-name";
/// Annotation of the API's mirror of a static pod, which the API lets nobody change: the UID by which the kubelet knows the pod.
const MIRROR_KEY: &str = "kubernetes.io/config.mirror";
/// The length of that UID, in bytes.
const MAX_MIRROR: usize = 32;
/// The longest role, external ID, session name or namespace list that policy accepts, in bytes.
const MAX_ROLE: usize = 2048;
const MAX_EXTERNAL_ID: usize = 1224;
const MAX_SESSION_NAME: usize = 64;
const MAX_LIST: usize = 64 << 10;
/// The interval between reads of the node's own addresses.
const NODE_ADDRESSES_EVERY: Duration = Duration::from_secs(30);

/// The inputs of the watch.
pub struct PodWatch {
    /// The Kubernetes API.
    pub client: Client,
    /// This node's name.
    pub node: String,
    /// Returns the current addresses of this node.
    pub node_addresses: Box<dyn Fn() -> NodeAddresses + Send + Sync>,
    /// Returns the wall-clock time, by which the claims of terminating pods end.
    pub now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// The annotations that are read.
    pub annotations: AnnotationKeys,
    /// Receives the pods.
    pub writer: PodsWriter,
    /// The read handle of these pods, for their namespaces and service accounts.
    pub pods: Pods,
    /// Which objects besides pods are read.
    pub needs: Needs,
    /// The audience of service account tokens with which pods can request credentials; `None` if none can.
    pub token_audience: Option<String>,
    /// Metrics that count errors.
    pub metrics: Metrics,
}

impl fmt::Debug for PodWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("client", &self.client).field("node", &self.node).field("needs", &self.needs).finish_non_exhaustive()
    }
}

impl PodWatch {
    /// Watches forever; `first_list` is done when the first list has arrived. Errors are logged and retried with backoff.
    pub async fn run(self, first_list: ReadinessStep) {
        let namespaces = async {
            if self.needs.namespaces {
                self.watch_namespaces().await;
            }
        };
        let service_accounts = async {
            if self.needs.service_accounts {
                self.watch_service_accounts().await;
            }
        };
        let pods = async { tokio::join!(self.watch_pods(first_list), self.end_claims(), self.settle_ambiguous_addresses()) };
        tokio::join!(self.watch_node_addresses(), pods, namespaces, service_accounts);
    }

    async fn watch_node_addresses(&self) {
        let mut known: Option<NodeAddresses> = None;
        loop {
            let mut now = (self.node_addresses)();
            // A running node always has addresses, so an empty result means that they could not be read.
            if let Some(known) = &known
                && now.ips.is_empty()
            {
                now.ips.clone_from(&known.ips);
            }
            if known.as_ref() != Some(&now) {
                let addresses: Vec<_> = now.ips.iter().map(ToString::to_string).collect();
                debug!(addresses = addresses.join(", "), "read this node's own addresses");
                self.writer.write(|index| index.set_node(now.clone()));
                known = Some(now);
            }
            tokio::time::sleep(NODE_ADDRESSES_EVERY).await;
        }
    }

    /// Ends the claims of terminating pods when their time is over, whether or not further events arrive.
    async fn end_claims(&self) {
        let mut pods = self.pods.clone();
        loop {
            let now = (self.now)();
            let left = match pods.next_claim_end() {
                Some(end) if end <= now => {
                    self.writer.write(|index| index.end_claims(now));
                    continue;
                }
                Some(end) => Duration::try_from(end.duration_since(now)).unwrap_or_default().min(CLOCK_EVERY),
                None => Duration::MAX,
            };
            tokio::select! {
                () = pods.changed() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    async fn watch_pods(&self, first_list: ReadinessStep) {
        let fields = format!("spec.nodeName={}", self.node);
        let annotations = pod_annotations(&self.annotations);
        let selection = Selection { resource: "pods", path: "/api/v1/pods".to_owned(), fields, annotations, owners: self.needs.owners };
        let mut first_list = Some(first_list);
        let take = |event: WatchEvent<'_, PodObject>| {
            self.take(event, &mut first_list);
            ControlFlow::Continue(())
        };
        follow(&self.client, &self.metrics, &selection, take).await;
    }

    fn take(&self, event: WatchEvent<'_, PodObject>, first_list: &mut Option<ReadinessStep>) {
        match event {
            // What is known stays in use.
            WatchEvent::Failed(_) | WatchEvent::Alive => return,
            WatchEvent::UpToDate => {
                self.pods.set_stale(false);
                return self.metrics.watch_alive();
            }
            WatchEvent::Listed { objects, unreadable, version, new_history, incomplete } => {
                let host_ips: Vec<_> = objects.iter().flat_map(|object| object.host_ips.iter().copied()).collect();
                // Convert one object at a time: two complete lists in different forms would be the daemon's peak of memory use.
                let pods = objects.into_iter().filter_map(|object| self.pod(*object));
                let unreadable = unreadable.into_iter().filter_map(pod_name);
                if new_history {
                    warn!(
                        event = "api-restored",
                        "the Kubernetes API's data is older than before, probably because etcd was restored; reloading all pods, \
                         namespaces and service accounts from it"
                    );
                }
                self.writer.write(|index| {
                    index.end_claims((self.now)());
                    index.set_host_ips(host_ips);
                    match new_history {
                        true => index.replace_at(pods, unreadable, version, incomplete),
                        false => index.list_at(pods, unreadable, version, incomplete),
                    }
                });
                self.pods.set_stale(false);
                self.metrics.keep_namespaces(&self.pods.namespaces());
                let count = self.pods.count();
                match first_list.take() {
                    Some(step) => {
                        info!(event = "pods-listed", node = %self.node, pods = count, "listed the pods of this node");
                        step.done();
                    }
                    None => debug!(pods = count, "relisted the pods of this node"),
                }
            }
            WatchEvent::Applied(object) => self.apply(object),
            WatchEvent::Deleted(metadata) => {
                let Some(uid) = metadata.uid.as_deref() else { return };

                let (namespace, name) = (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
                debug!(namespace, pod = name, uid, "a pod was deleted");
                self.writer.write(|index| index.delete_at(&PodUid(uid.into()), namespace, name, metadata.version()));
                if !self.pods.has_namespace(namespace) {
                    self.metrics.keep_namespaces(&self.pods.namespaces());
                }
            }
            WatchEvent::Unreadable(metadata) => self.unreadable(metadata),
        }
        self.metrics.watch_alive();
        self.metrics.pods_known(self.pods.count());
    }

    /// Applies the current state of a pod.
    fn apply(&self, object: PodObject) {
        let host_ips = object.host_ips.clone();
        if let Some((pod, version)) = self.pod(object) {
            debug!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid.0, "a pod was added or changed");
            self.writer.write(|index| {
                index.end_claims((self.now)());
                index.add_host_ips(host_ips);
                index.apply_at(pod, version);
            });
        }
    }

    /// Records a pod of which nothing else can be read.
    fn unreadable(&self, metadata: ObjectMeta) {
        if let Some((pod, version)) = pod_name(metadata) {
            self.writer.write(|index| index.unreadable_at(pod, version));
        }
    }

    /// Converts a pod of this node for the index, with its version; `None` for other pods.
    fn pod(&self, object: PodObject) -> Option<(Pod, Option<u64>)> {
        let has_token = self.token_audience.as_ref().is_some_and(|audience| object.token_audiences.contains(audience));
        let (mut pod, version) = pod_of(object, &self.node, &self.annotations)?;
        pod.has_token_audience = has_token;
        if !self.needs.owners {
            pod.owner = None;
        }
        Some((pod, version))
    }
}

/// Returns the pod annotations that are read.
fn pod_annotations(keys: &AnnotationKeys) -> Vec<Annotation> {
    vec![
        Annotation::new(&keys.role, MAX_ROLE),
        Annotation::new(&keys.target_role, MAX_ROLE),
        Annotation::new(&keys.external_id, MAX_EXTERNAL_ID),
        Annotation::new(SESSION_NAME_KEY, MAX_SESSION_NAME),
        Annotation::new(MIRROR_KEY, MAX_MIRROR),
    ]
}

/// Converts a pod of `node` for the index, with its version; `None` for pods of other nodes. Whether it has a token is left open.
fn pod_of(object: PodObject, node: &str, annotations: &AnnotationKeys) -> Option<(Pod, Option<u64>)> {
    let mut metadata = object.metadata;
    let (version, claims_until) = (metadata.version(), metadata.claims_until);
    let (uid, name) = (metadata.uid.take()?, metadata.name.take()?);
    if object.node_name.as_deref() != Some(node) {
        warn!(
            event = "pod-of-another-node", pod = %name,
            "the Kubernetes API sent a pod of another node; ignoring it; check for a proxy between rolegate and the API server that \
             changes responses"
        );
        return None;
    }
    // Everybody who creates a pod writes its annotations. The kubelet makes its node the owner of the objects of static pods.
    let is_of_node = metadata.owner.as_ref().is_some_and(|owner| owner.is_a_node() && &*owner.name == node);
    let static_uid = metadata.take_annotation(MIRROR_KEY, MAX_MIRROR).filter(|uid| is_of_node && is_static_uid(uid));
    let pod = Pod {
        uid: PodUid(uid.into()),
        namespace: metadata.namespace.take().unwrap_or_default(),
        name,
        service_account: object.service_account.unwrap_or_default(),
        role: metadata.take_annotation(&annotations.role, MAX_ROLE),
        target_role: metadata.take_annotation(&annotations.target_role, MAX_ROLE),
        external_id: metadata.take_annotation(&annotations.external_id, MAX_EXTERNAL_ID),
        session_name: metadata.take_annotation(SESSION_NAME_KEY, MAX_SESSION_NAME),
        ips: object.ips,
        finished: object.finished,
        terminating: claims_until.is_some(),
        claims_until,
        host_network: object.host_network,
        sandbox: object.sandbox,
        may_have_net_raw: object.may_have_net_raw,
        has_token_audience: false,
        static_uid: static_uid.map(Into::into),
        owner: metadata.owner.take(),
    };
    Some((pod, version))
}

fn pod_name(metadata: ObjectMeta) -> Option<(PodName, Option<u64>)> {
    let version = metadata.version();
    let (namespace, name) = (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
    Some((PodName { uid: PodUid(metadata.uid?.into()), namespace, name }, version))
}

#[cfg(test)]
mod tests;

//! The watch of this node's pods: the only importer of `kube` on the way of a request.
//!
//! Pods are asked for with a field selector on the node, in small pages, and decoded into the few fields that are read:
//! what the daemon holds follows the pods of its node, never the size of the cluster. A list is built aside and put in
//! place when it is complete, so that a relist never shows a half-filled index.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tracing::{debug, info, warn};

use super::{Pod, PodUid, Pods, PodsWriter};
use crate::config::AnnotationKeys;
use crate::metrics::Metrics;
use crate::readiness::Step;

pub mod client;
mod namespaces;
mod objects;

use objects::PodObject;

/// Annotation with the session's name (kiam's name for it).
pub const SESSION_NAME_KEY: &str = "iam.amazonaws.com/session-name";
/// Objects in one page of a list: small, because a page is decoded whole.
const PAGE_SIZE: u32 = 50;

/// What the watch needs to run.
pub struct Watch {
    /// The Kubernetes API.
    pub client: Client,
    /// This node's name.
    pub node: String,
    /// The annotations that are read.
    pub annotations: AnnotationKeys,
    /// Where the pods go.
    pub writer: PodsWriter,
    /// The same pods, to see which namespaces they are in.
    pub pods: Pods,
    /// Whether namespaces are read: what decisions do not need is not.
    pub namespaces: bool,
    /// Where errors are counted.
    pub metrics: Metrics,
}

impl Watch {
    /// Watches for ever; `first_list` is done when the first list is in. Errors are logged and tried again with backoff.
    pub async fn run(self, first_list: Step) {
        let writer = &self.writer;
        if self.namespaces {
            tokio::join!(self.watch_pods(writer, first_list), namespaces::watch(&self, writer));
        } else {
            self.watch_pods(writer, first_list).await;
        }
    }

    async fn watch_pods(&self, writer: &PodsWriter, first_list: Step) {
        let selection =
            watcher::Config::default().fields(&format!("spec.nodeName={}", self.node)).page_size(PAGE_SIZE).timeout(client::WATCH_SECONDS);
        let events = watcher::watcher(Api::<PodObject>::all(self.client.clone()), selection).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut first_list = Some(first_list);
        let mut list = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => list.clear(),
                Ok(Event::InitApply(object)) => list.extend(self.pod(object)),
                Ok(Event::InitDone) => {
                    let count = list.len();
                    writer.write(|index| index.reset(list.drain(..)));
                    list.shrink_to_fit();
                    self.metrics.pods_known(self.pods.count());
                    match first_list.take() {
                        Some(step) => {
                            info!(node = %self.node, pods = count, "the pods of this node are known");
                            step.done();
                        }
                        None => debug!(pods = count, "listed the pods of this node again"),
                    }
                }
                Ok(Event::Apply(object)) => {
                    if let Some(pod) = self.pod(object) {
                        debug!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid.0, "pod seen");
                        writer.write(|index| index.apply(pod));
                        self.metrics.pods_known(self.pods.count());
                    }
                }
                Ok(Event::Delete(object)) => {
                    if let Some(uid) = object.metadata.uid {
                        debug!(uid, "pod gone");
                        writer.write(|index| index.delete(&PodUid(uid.into())));
                        self.metrics.pods_known(self.pods.count());
                    }
                }
                Err(error) => {
                    self.metrics.watch_failed("pods");
                    warn!(error = %client::explain(&error), "the watch of this node's pods failed; it is tried again, known pods are served");
                }
            }
        }
    }

    /// The pod in the words of the index; `None` where it is no pod of this node.
    fn pod(&self, object: PodObject) -> Option<Pod> {
        let (uid, name) = (object.metadata.uid?, object.metadata.name?);
        if object.node_name.as_deref() != Some(self.node.as_str()) {
            warn!(pod = %name, "the API sent a pod of another node; it is ignored");
            return None;
        }
        let mut annotations: BTreeMap<String, String> = object.metadata.annotations.unwrap_or_default();
        Some(Pod {
            uid: PodUid(uid.into()),
            namespace: object.metadata.namespace.unwrap_or_default(),
            name,
            role: annotations.remove(&self.annotations.role),
            external_id: annotations.remove(&self.annotations.external_id),
            session_name: annotations.remove(SESSION_NAME_KEY),
            // An address that is not one is left out: the pod is then not found by it.
            ips: object.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()).collect(),
            finished: matches!(object.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: object.metadata.deletion_timestamp.is_some(),
            host_network: object.host_network,
        })
    }
}

//! One look at the Kubernetes API: a pod, the pods of its node, and what they are decided by, as they are now. It is taken in
//! by the same index as what the watch brings, so that what is seen in it is what a daemon would see.

use serde::Deserialize;

use super::around::{EKS_ROLE_KEY, PERMITTED_KEY};
use super::client::{Client, encode};
use super::failure::Failure;
use super::objects::{OnlyMetadata, PodObject};
use super::pod_of;
use crate::config::AnnotationKeys;
use crate::config::explain::PodName;
use crate::pods::{self, Namespace, Needs, Pods, ServiceAccount};

/// What there was to see.
#[derive(Debug)]
pub enum Snapshot {
    /// No pod of that name.
    NoSuchPod,
    /// It is on no node yet.
    NotScheduled,
    /// It is on a node.
    OnNode {
        /// The node's name.
        node: String,
        /// The pods there.
        pods: Pods,
        /// How many more there are, which cannot be read.
        left_out: usize,
    },
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be read: {failure}")]
pub struct SnapshotError {
    what: String,
    failure: String,
}

#[derive(Deserialize)]
struct PodList {
    #[serde(default)]
    items: Vec<Box<serde_json::value::RawValue>>,
}

/// Looks at a pod and what is around it.
pub async fn snapshot(client: &Client, pod: &PodName, annotations: &AnnotationKeys, needs: Needs) -> Result<Snapshot, SnapshotError> {
    let path = format!("/api/v1/namespaces/{}/pods/{}", encode(pod.namespace()), encode(pod.name()));
    let Some(object) = get::<PodObject>(client, &path, || format!("pod {pod}")).await? else {
        return Ok(Snapshot::NoSuchPod);
    };
    let Some(node) = object.node_name.filter(|node| !node.is_empty()) else {
        return Ok(Snapshot::NotScheduled);
    };
    let (writer, pods) = pods::pods();
    let (known, host_ips, left_out) = of_node(client, &node, annotations).await?;
    writer.write(|index| {
        index.set_host_ips(host_ips);
        index.reset(known);
    });
    if needs.namespaces {
        let path = format!("/api/v1/namespaces/{}", encode(pod.namespace()));
        let found = get::<OnlyMetadata>(client, &path, || format!("namespace {}", pod.namespace())).await?;
        if let Some(OnlyMetadata { mut metadata }) = found {
            let allowed_roles = metadata.take_annotation(&annotations.allowed_roles);
            let permitted = metadata.take_annotation(PERMITTED_KEY);
            let namespace = Namespace { name: pod.namespace().to_owned(), allowed_roles, permitted };
            writer.write(|index| index.apply_namespace(namespace));
        }
    }
    let account = object.service_account.unwrap_or_default();
    if needs.service_accounts && !account.is_empty() {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}", encode(pod.namespace()), encode(&account));
        let what = || format!("service account {}/{account}", pod.namespace());
        if let Some(OnlyMetadata { mut metadata }) = get(client, &path, what).await? {
            let role = metadata.take_annotation(&annotations.role);
            let eks_role = metadata.take_annotation(EKS_ROLE_KEY);
            let account = ServiceAccount { namespace: pod.namespace().to_owned(), name: account.clone(), role, eks_role };
            writer.write(|index| index.apply_service_account(account));
        }
    }
    Ok(Snapshot::OnNode { node, pods, left_out })
}

/// The pods of a node, the addresses that they give for it, and how many cannot be read. These are left out: the watch holds
/// the addresses that such a pod had before, and here there is no before.
async fn of_node(
    client: &Client,
    node: &str,
    annotations: &AnnotationKeys,
) -> Result<(Vec<pods::Pod>, Vec<std::net::IpAddr>, usize), SnapshotError> {
    let target = format!("/api/v1/pods?fieldSelector={}", encode(&format!("spec.nodeName={node}")));
    let list = get::<PodList>(client, &target, || format!("the list of the pods of node {node}")).await?;
    let items = list.map(|list| list.items).unwrap_or_default();
    let objects: Vec<PodObject> = items.iter().filter_map(|item| serde_json::from_str(item.get()).ok()).collect();
    let left_out = items.len() - objects.len();
    let host_ips = objects.iter().flat_map(|object| object.host_ips.iter().copied()).collect();
    let known = objects.into_iter().filter_map(|object| pod_of(object, node, annotations)).map(|(pod, _)| pod).collect();
    Ok((known, host_ips, left_out))
}

/// An object; `None` where the API has none.
async fn get<T: for<'a> Deserialize<'a>>(client: &Client, target: &str, what: impl Fn() -> String) -> Result<Option<T>, SnapshotError> {
    let failed = |failure: Failure| SnapshotError { what: what(), failure: failure.to_string() };
    match client.ask_whole(target).await {
        Ok(answer) => serde_json::from_slice(&answer).map(Some).map_err(|_| failed(Failure::Malformed("what is no such object"))),
        Err(failure) if failure.code() == Some(404) => Ok(None),
        Err(failure) => Err(failed(failure)),
    }
}

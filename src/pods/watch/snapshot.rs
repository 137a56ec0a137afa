//! A snapshot of the Kubernetes API: a pod, the pods of its node, and the objects that decisions about them depend on, in their
//! current state. It goes through the same index as the data of the watch, so that it shows what a daemon would see.

use std::borrow::Cow;

use jiff::Timestamp;

use super::context::{PERMITTED_KEY, account_annotations, account_of, namespace_annotations};
use super::fields::Annotation;
use super::follow::PAGE_SIZE;
use super::objects::{self, Object, OnlyMetadata, PodObject};
use super::{MAX_LIST, pod_annotations, pod_of};
use crate::advice::Advise;
use crate::config::AnnotationKeys;
use crate::config::explain_command::PodReference;
use crate::kubernetes::client::{Client, encode};
use crate::kubernetes::failure::RequestFailure;
use crate::kubernetes::filter::Excerpt;
use crate::pods::{self, HostNetworkRules, Namespace, Needs, Pods};

/// The result of a snapshot.
#[derive(Debug)]
pub(crate) enum Snapshot {
    /// There is no pod with that name.
    NoSuchPod,
    /// The pod is not assigned to a node yet.
    NotScheduled,
    /// The pod is on a node.
    OnNode {
        /// The node's name.
        node: String,
        /// The pods on the node.
        pods: Pods,
        /// The number of further pods, which cannot be read.
        left_out: usize,
    },
}

/// The reason why there is no snapshot.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}")]
pub(crate) struct SnapshotError {
    what: String,
    #[source]
    failure: RequestFailure,
}

impl Advise for SnapshotError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        self.failure.advice()
    }
}

/// The settings by which a snapshot is taken.
pub(crate) struct SnapshotSettings<'a> {
    /// The annotations that are read.
    pub(crate) annotations: &'a AnnotationKeys,
    /// What is read besides pods.
    pub(crate) needs: Needs,
    /// What happens to pods in the node's network.
    pub(crate) host_network: HostNetworkRules,
}

/// Takes a snapshot of a pod and its surroundings. Claims of terminating pods that end by `now` have ended.
pub(crate) async fn snapshot(
    client: &Client,
    pod: &PodReference,
    settings: SnapshotSettings<'_>,
    now: Timestamp,
) -> Result<Snapshot, SnapshotError> {
    let SnapshotSettings { annotations, needs, host_network } = settings;
    let path = format!("/api/v1/namespaces/{}/pods/{}", encode(pod.namespace()), encode(pod.name()));
    let Some(object) = get::<PodObject>(client, &path, &[], || format!("pod {pod}")).await? else {
        return Ok(Snapshot::NoSuchPod);
    };
    let Some(node) = object.node_name.filter(|node| !node.is_empty()) else {
        return Ok(Snapshot::NotScheduled);
    };
    let (writer, pods) = pods::pods();
    let (known, host_ips, left_out) = of_node(client, &node, annotations).await?;
    writer.write(|index| {
        index.end_claims(now);
        index.set_host_ips(host_ips);
        index.set_host_network(host_network);
        index.reset(known);
    });
    if needs.namespaces {
        let path = format!("/api/v1/namespaces/{}", encode(pod.namespace()));
        let found =
            get::<OnlyMetadata>(client, &path, &namespace_annotations(annotations), || format!("namespace {}", pod.namespace())).await?;
        if let Some(OnlyMetadata { mut metadata }) = found {
            let allowed_roles = metadata.take_annotation(&annotations.allowed_roles, MAX_LIST);
            let permitted = metadata.take_annotation(PERMITTED_KEY, MAX_LIST);
            let namespace = Namespace { name: pod.namespace().to_owned(), allowed_roles, permitted };
            writer.write(|index| index.apply_namespace(namespace));
        }
    }
    let account = object.service_account.unwrap_or_default();
    if needs.service_accounts && !account.is_empty() {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}", encode(pod.namespace()), encode(&account));
        let what = || format!("service account {}/{account}", pod.namespace());
        if let Some(OnlyMetadata { metadata }) = get(client, &path, &account_annotations(annotations), what).await? {
            let account = account_of(pod.namespace(), &account, metadata, annotations);
            writer.write(|index| index.apply_service_account(account));
        }
    }
    Ok(Snapshot::OnNode { node, pods, left_out })
}

/// Returns the pods of a node, the addresses that they report for it, and how many pods cannot be read. Unreadable pods are
/// omitted: the watch keeps the earlier addresses of such a pod, but a snapshot has no earlier state.
async fn of_node(
    client: &Client,
    node: &str,
    annotations: &AnnotationKeys,
) -> Result<(Vec<pods::Pod>, Vec<std::net::IpAddr>, usize), SnapshotError> {
    let path = format!("/api/v1/pods?limit={PAGE_SIZE}&fieldSelector={}", encode(&format!("spec.nodeName={node}")));
    let (mut known, mut host_ips) = (Vec::new(), Vec::new());
    let what = format!("the list of the pods of node {node}");
    let left_out = list::<PodObject>(client, &path, &pod_annotations(annotations), &what, |object| {
        host_ips.extend(&object.host_ips);
        known.extend(pod_of(object, node, annotations).map(|(pod, _)| pod));
    })
    .await?;
    Ok((known, host_ips, left_out))
}

/// Reads a list page by page. `first` is the request for the first page. Returns how many objects cannot be read.
pub(super) async fn list<T: Object>(
    client: &Client,
    first: &str,
    annotations: &[Annotation],
    what: &str,
    mut each: impl FnMut(T),
) -> Result<usize, SnapshotError> {
    let fields = objects::page::<T>(annotations);
    let failed = |failure| failed(what, failure);
    let (mut target, mut left_out) = (first.to_owned(), 0);
    loop {
        let mut answer = client.ask_filtered(&target, &fields).await.map_err(failed)?;
        while let Some(items) = answer.items().await.map_err(failed)? {
            for item in items {
                match serde_json::from_slice::<T>(&item.json).ok().filter(|_| !item.truncated) {
                    Some(object) => each(object),
                    None => left_out += 1,
                }
            }
        }
        let page = answer.page().map_err(failed)?;
        match page.continue_token() {
            Some(token) => target = format!("{first}&continue={}", encode(token)),
            None => return Ok(left_out),
        }
    }
}

/// Reads an object; `None` if the API has none.
async fn get<T: Object>(
    client: &Client,
    target: &str,
    annotations: &[Annotation],
    what: impl Fn() -> String,
) -> Result<Option<T>, SnapshotError> {
    let fields = objects::object::<T>(annotations);
    let object = async { client.ask_filtered(target, &fields).await?.object().await };
    match object.await {
        Ok(Excerpt { json, truncated }) => match serde_json::from_slice(&json) {
            Ok(object) if !truncated => Ok(Some(object)),
            _ => Err(failed(&what(), RequestFailure::Malformed("something other than the requested object"))),
        },
        Err(failure) if failure.code() == Some(404) => Ok(None),
        Err(failure) => Err(failed(&what(), failure)),
    }
}

fn failed(what: &str, failure: RequestFailure) -> SnapshotError {
    SnapshotError { what: what.to_owned(), failure }
}

//! A snapshot of the pods of all nodes, or of one, with the namespaces and service accounts that decisions about them depend on. It is
//! for commands that people run: a daemon reads the pods of its node alone.

use super::context::{PERMITTED_KEY, account_annotations, account_of, namespace_annotations};
use super::objects::{OnlyMetadata, PodObject};
use super::snapshot::{SnapshotError, SnapshotSettings, list};
use super::{MAX_LIST, pod_annotations, pod_of};
use crate::kubernetes::client::{Client, encode};
use crate::pods::{self, Namespace, Pods};

/// The number of objects of a page. Objects are filtered while they arrive, so that a page takes little memory.
const PAGE_SIZE: u32 = 250;

/// The number of pods after which progress is shown again.
const SHOWN_EVERY: usize = 50;

/// The pods of all nodes, or of one.
#[derive(Debug)]
pub(crate) struct ClusterSnapshot {
    /// The pods, also those that are not on a node yet.
    pub(crate) pods: Pods,
    /// The number of further objects, which cannot be read.
    pub(crate) left_out: usize,
}

/// Takes a snapshot of the pods of a node, or of all pods. Calls `progress` with the number of pods that have been read,
/// now and then.
pub(crate) async fn cluster_snapshot(
    client: &Client,
    node: Option<&str>,
    settings: SnapshotSettings<'_>,
    mut progress: impl FnMut(usize),
) -> Result<ClusterSnapshot, SnapshotError> {
    let SnapshotSettings { annotations, needs, host_network } = settings;
    let selector = node.map(|node| format!("&fieldSelector={}", encode(&format!("spec.nodeName={node}")))).unwrap_or_default();
    let path = format!("/api/v1/pods?limit={PAGE_SIZE}{selector}");
    let (mut known, mut read) = (Vec::new(), 0);
    let mut left_out = list::<PodObject>(client, &path, &pod_annotations(annotations), "the list of pods", |mut object| {
        // A pod that is not on a node yet may be on any.
        let of = node.map_or_else(|| object.node_name.get_or_insert_default().clone(), str::to_owned);
        known.extend(pod_of(object, &of, annotations).map(|(pod, _)| pod));
        read += 1;
        if read % SHOWN_EVERY == 0 {
            progress(read);
        }
    })
    .await?;
    let (writer, pods) = pods::pods();
    writer.write(|index| {
        index.set_host_network(host_network);
        index.reset(known);
    });
    if needs.namespaces {
        let wanted = pods.namespaces_to_follow();
        let read_annotations = namespace_annotations(annotations);
        let path = format!("/api/v1/namespaces?limit={PAGE_SIZE}");
        let read = list::<OnlyMetadata>(client, &path, &read_annotations, "the list of namespaces", |object| {
            let mut metadata = object.metadata;
            if let Some(name) = metadata.name.take().filter(|name| wanted.contains(name)) {
                let allowed_roles = metadata.take_annotation(&annotations.allowed_roles, MAX_LIST);
                let permitted = metadata.take_annotation(PERMITTED_KEY, MAX_LIST);
                writer.write(|index| index.apply_namespace(Namespace { name, allowed_roles, permitted }));
            }
        });
        left_out += read.await?;
    }
    if needs.service_accounts {
        let wanted = pods.service_accounts();
        let read_annotations = account_annotations(annotations);
        let path = format!("/api/v1/serviceaccounts?limit={PAGE_SIZE}");
        let read = list::<OnlyMetadata>(client, &path, &read_annotations, "the list of service accounts", |object| {
            let mut metadata = object.metadata;
            if let (Some(namespace), Some(name)) = (metadata.namespace.take(), metadata.name.take())
                && wanted.contains(&(namespace.clone(), name.clone()))
            {
                let account = account_of(&namespace, &name, metadata, annotations);
                writer.write(|index| index.apply_service_account(account));
            }
        });
        left_out += read.await?;
    }
    Ok(ClusterSnapshot { pods, left_out })
}

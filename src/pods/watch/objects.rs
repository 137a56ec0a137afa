//! Pods and namespaces with the fields that are read and no others. Whatever may be missing or odd in one object is
//! optional here: one object that does not decode would fail the whole page.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::Deserialize;

/// A pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "RawPod")]
pub(super) struct PodObject {
    pub(super) metadata: ObjectMeta,
    pub(super) node_name: Option<String>,
    pub(super) host_network: bool,
    pub(super) phase: Option<String>,
    pub(super) ips: Vec<String>,
}

/// A namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "RawNamespace")]
pub(super) struct NamespaceObject {
    pub(super) metadata: ObjectMeta,
}

/// `metadata` without managed fields, labels and owners, which are most of its weight.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<RawMetadata> for ObjectMeta {
    fn from(raw: RawMetadata) -> Self {
        Self {
            name: raw.name,
            namespace: raw.namespace,
            uid: raw.uid,
            resource_version: raw.resource_version,
            deletion_timestamp: raw.deletion_timestamp,
            annotations: raw.annotations,
            ..Self::default()
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPod {
    metadata: RawMetadata,
    spec: Option<RawPodSpec>,
    status: Option<RawPodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<RawPodIp>>,
}

#[derive(Deserialize)]
struct RawPodIp {
    ip: Option<String>,
}

impl From<RawPod> for PodObject {
    fn from(raw: RawPod) -> Self {
        let spec = raw.spec.unwrap_or_default();
        let status = raw.status.unwrap_or_default();
        let mut ips: Vec<String> = status.pod_ips.unwrap_or_default().into_iter().filter_map(|ip| ip.ip).collect();
        // podIP is the first of podIPs, where there are any.
        if ips.is_empty() {
            ips.extend(status.pod_ip);
        }
        Self {
            metadata: raw.metadata.into(),
            node_name: spec.node_name,
            host_network: spec.host_network.unwrap_or(false),
            phase: status.phase,
            ips,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNamespace {
    metadata: RawMetadata,
}

impl From<RawNamespace> for NamespaceObject {
    fn from(raw: RawNamespace) -> Self {
        Self { metadata: raw.metadata.into() }
    }
}

macro_rules! core_resource {
    ($object:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl Resource for $object {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                "".into()
            }
            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

core_resource!(PodObject, "Pod", "pods", k8s_openapi::NamespaceResourceScope);
core_resource!(NamespaceObject, "Namespace", "namespaces", k8s_openapi::ClusterResourceScope);

#[cfg(test)]
mod tests;

//! The kinds of objects that the server has, and the shapes in which it can send them.

use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Value, json};

use super::info::ResourceInfo;
use super::status::ApiError;

/// A kind of object that can be stored, listed and watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Core `v1` pods.
    Pods,
    /// Core `v1` namespaces.
    Namespaces,
    /// Core `v1` service accounts.
    ServiceAccounts,
    /// Core `v1` nodes.
    Nodes,
}

impl Resource {
    /// All kinds.
    pub const ALL: [Resource; 4] = [Resource::Pods, Resource::Namespaces, Resource::ServiceAccounts, Resource::Nodes];

    /// The name in paths and RBAC rules, such as `serviceaccounts`.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Resource::Pods => "pods",
            Resource::Namespaces => "namespaces",
            Resource::ServiceAccounts => "serviceaccounts",
            Resource::Nodes => "nodes",
        }
    }

    /// The kind, such as `ServiceAccount`.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Resource::Pods => "Pod",
            Resource::Namespaces => "Namespace",
            Resource::ServiceAccounts => "ServiceAccount",
            Resource::Nodes => "Node",
        }
    }

    /// Whether objects of this kind are in namespaces.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        matches!(self, Resource::Pods | Resource::ServiceAccounts)
    }

    pub(super) fn from_plural(plural: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|r| r.plural() == plural)
    }

    pub(super) fn info(self) -> ResourceInfo<'static> {
        ResourceInfo { group: "", plural: self.plural() }
    }

    /// The fields that a real server accepts in a field selector for this kind.
    pub(super) fn selectable_fields(self) -> &'static [&'static str] {
        match self {
            Resource::Pods => &[
                "metadata.name",
                "metadata.namespace",
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "spec.hostNetwork",
                "status.phase",
                "status.podIP",
                "status.nominatedNodeName",
            ],
            Resource::Namespaces => &["metadata.name", "status.phase"],
            Resource::ServiceAccounts => &["metadata.name", "metadata.namespace"],
            Resource::Nodes => &["metadata.name", "spec.unschedulable"],
        }
    }
}

/// The shape in which a client requests objects, from its `Accept` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Whole,
    /// `PartialObjectMetadata`: only `metadata`.
    Metadata,
}

impl Shape {
    /// Returns the first media type in `Accept` that the server can send. `list` says whether the answer is a list: only a list
    /// can be sent as `PartialObjectMetadataList`, and never as a single `PartialObjectMetadata`.
    pub(super) fn negotiate(headers: &HeaderMap, list: bool) -> Result<Shape, ApiError> {
        let accepts = headers.get_all(ACCEPT).iter();
        let accepts: Vec<&str> = accepts.filter_map(|value| value.to_str().ok()).collect();
        if accepts.is_empty() {
            return Ok(Shape::Whole);
        }
        let media_types = accepts.iter().flat_map(|value| value.split(','));
        media_types.filter_map(|media_type| Shape::of_media_type(media_type, list)).next().ok_or_else(ApiError::not_acceptable)
    }

    fn of_media_type(media_type: &str, list: bool) -> Option<Shape> {
        let mut parts = media_type.split(';').map(str::trim);
        if !matches!(parts.next()?, "application/json" | "application/*" | "*/*" | "") {
            return None;
        }
        let (mut kind, mut group, mut version) = (None, None, None);
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key {
                "as" => kind = Some(value),
                "g" => group = Some(value),
                "v" => version = Some(value),
                _ => {}
            }
        }
        let wanted = if list { "PartialObjectMetadataList" } else { "PartialObjectMetadata" };
        match kind {
            None => Some(Shape::Whole),
            Some(kind) if kind == wanted && group == Some("meta.k8s.io") && version == Some("v1") => Some(Shape::Metadata),
            Some(_) => None,
        }
    }

    /// Shapes one object for the answer to a get, or for a watch event.
    pub(super) fn object(self, object: &Value) -> Value {
        match self {
            Shape::Whole => object.clone(),
            Shape::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            }),
        }
    }

    /// Shapes one item of a list. Complete items do not repeat the kind, as on a real server.
    pub(super) fn item(self, object: &Value) -> Value {
        let mut item = self.object(object);
        if let (Shape::Whole, Some(fields)) = (self, item.as_object_mut()) {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        item
    }

    /// Shapes a list of `items` with the given list metadata.
    pub(super) fn list(self, resource: Resource, metadata: Value, items: Vec<Value>) -> Value {
        let (kind, version) = match self {
            Shape::Whole => (format!("{}List", resource.kind()), "v1"),
            Shape::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
        };
        json!({ "kind": kind, "apiVersion": version, "metadata": metadata, "items": items })
    }

    /// Returns the object of a bookmark: a resource version, and the empty remains of a typed object that a real server sends.
    pub(super) fn bookmark(self, resource: Resource, version: u64, initial_end: bool) -> Value {
        let mut metadata = json!({
            "resourceVersion": version.to_string(),
            "creationTimestamp": null,
        });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let mut object = json!({
            "kind": resource.kind(),
            "apiVersion": "v1",
            "metadata": metadata,
        });
        match resource {
            Resource::Pods => {
                object["spec"] = json!({ "containers": null });
                object["status"] = json!({});
            }
            Resource::Namespaces => {
                object["spec"] = json!({});
                object["status"] = json!({});
            }
            Resource::Nodes => {
                object["spec"] = json!({});
                object["status"] = json!({
                    "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } },
                    "nodeInfo": {
                        "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "",
                        "osImage": "", "containerRuntimeVersion": "", "kubeletVersion": "",
                        "kubeProxyVersion": "", "operatingSystem": "", "architecture": "",
                    },
                });
            }
            Resource::ServiceAccounts => {}
        }
        self.object(&object)
    }
}

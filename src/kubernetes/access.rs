//! Questions about the cluster that need no object as a whole: the API's version, what this identity may do, and where a pod is.

use serde::Deserialize;
use serde_json::json;

use super::client::{Client, RequestError, encode};
use super::failure::RequestFailure;
use super::fields::Field;

/// The longest text of `hostNetwork`: `false`.
const BOOLEAN: usize = 8;

/// What is asked for, in the words of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccessAttributes<'a> {
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The resource, in the plural.
    pub resource: &'a str,
    /// The verb.
    pub verb: &'a str,
    /// The field by which objects are selected, and its value.
    pub selector: Option<(&'a str, &'a str)>,
}

/// Where a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodPlace {
    /// The node; `None` if the pod is not scheduled.
    pub node_name: Option<String>,
    /// Whether the pod is in the node's network.
    pub host_network: bool,
}

#[derive(Deserialize)]
struct VersionInfo {
    #[serde(rename = "gitVersion")]
    git_version: String,
}

#[derive(Deserialize)]
struct AccessReview {
    status: ReviewStatus,
}

#[derive(Deserialize)]
struct ReviewStatus {
    allowed: bool,
}

#[derive(Deserialize)]
struct ListedPod {
    #[serde(default)]
    spec: PodPlace,
}

impl Client {
    /// Returns the version of the API server, such as `v1.33.4`.
    pub(crate) async fn version(&self) -> Result<String, RequestError> {
        let answer = self.get("/version").await?;
        let info: VersionInfo = serde_json::from_slice(&answer).map_err(|_| malformed("something other than its version"))?;
        Ok(info.git_version)
    }

    /// Returns whether this identity may do something in all namespaces (`SelfSubjectAccessReview`, which every authenticated
    /// identity may create). Servers before 1.31 do not look at the selector.
    pub(crate) async fn may(&self, access: AccessAttributes<'_>) -> Result<bool, RequestError> {
        let AccessAttributes { group, resource, verb, selector } = access;
        let mut attributes = json!({ "group": group, "resource": resource, "verb": verb });
        if let Some((field, value)) = selector {
            attributes["fieldSelector"] = json!({ "requirements": [{ "key": field, "operator": "In", "values": [value] }] });
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        let answer = self.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review.to_string().into_bytes()).await?;
        let review: AccessReview = serde_json::from_slice(&answer).map_err(|_| malformed("something other than an access review"))?;
        Ok(review.status.allowed)
    }

    /// Returns where the first pod is that a field selector finds, in one namespace or in all; `None` if it finds no pod.
    pub(crate) async fn find_pod(&self, namespace: Option<&str>, selector: &str) -> Result<Option<PodPlace>, RequestError> {
        let within = namespace.map_or_else(String::new, |namespace| format!("/namespaces/{}", encode(namespace)));
        let target = format!("/api/v1{within}/pods?limit=1&fieldSelector={}", encode(selector));
        let spec = Field::object([("nodeName", Field::text()), ("hostNetwork", Field::Scalar(BOOLEAN))]);
        let list = Field::object([
            ("kind", Field::text()),
            ("metadata", Field::object([("resourceVersion", Field::text())])),
            ("items", Field::Items(Box::new(Field::object([("spec", spec)])))),
        ]);
        let mut answer = self.ask_filtered(&target, &list).await?;
        let mut found = None;
        while let Some(items) = answer.items().await? {
            let pods = items.iter().filter_map(|item| serde_json::from_slice::<ListedPod>(&item.json).ok());
            found = found.or(pods.map(|pod| pod.spec).next());
        }
        answer.page()?;
        Ok(found)
    }
}

fn malformed(what: &'static str) -> RequestError {
    RequestFailure::Malformed(what).into()
}

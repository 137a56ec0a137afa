//! What the Kubernetes API and the service account's token say about the daemon's own pod and its node.

use std::net::IpAddr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::client::{Client, encode};
use super::failure::RequestFailure;
use super::fields::{Field, JsonMember, members};

/// The most pods that are looked at of those that a field selects. Pods in the network of one node are few.
const MOST_PODS: usize = 500;

/// The pod that a service account's token is bound to. Kubernetes writes its name and UID there since 1.22, and the node's name
/// since 1.30 (`ServiceAccountTokenPodNodeInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBinding {
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub pod: Option<String>,
    /// Its UID.
    pub uid: Option<String>,
    /// Its node.
    pub node: Option<String>,
}

/// A pod, as far as it tells where the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOnNode {
    /// Its namespace and name, with a slash between.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node; empty where it is not scheduled.
    pub node: String,
    /// Whether it is in the network of its node.
    pub host_network: bool,
    /// Whether all its containers have ended.
    pub finished: bool,
    /// The addresses of its node.
    pub host_ips: Vec<IpAddr>,
}

impl TokenBinding {
    /// Reads the token and the namespace in the directory of a service account. What cannot be read is absent.
    pub fn read(service_account: &Path) -> Self {
        let text = |file| std::fs::read_to_string(service_account.join(file)).ok();
        let token = text("token").unwrap_or_default();
        let namespace = text("namespace").map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        let binding = Self::of_token(&token).unwrap_or_default();
        Self { namespace: binding.namespace.or(namespace), ..binding }
    }

    /// Reads the claims of a token. Nobody checks its signature: the kubelet wrote it to the daemon's own file system, and the API
    /// is asked for whatever is done with it.
    fn of_token(token: &str) -> Option<Self> {
        let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?.trim_end_matches('=')).ok()?;
        let Claims { kubernetes } = serde_json::from_slice(&claims).ok()?;
        let Named { name: node, .. } = kubernetes.node.unwrap_or_default();
        let Named { name: pod, uid } = kubernetes.pod.unwrap_or_default();
        Some(Self { namespace: kubernetes.namespace, pod, uid, node })
    }
}

/// Reads the pods of the cluster that these fields select. This takes the permission to list pods, which the watch needs anyway.
pub(crate) async fn pods_with(client: &Client, selector: &str) -> Result<Vec<PodOnNode>, RequestFailure> {
    let items = Field::Items(Box::new(Field::Object(pod_members())));
    let fields = Field::object([("kind", Field::text()), ("items", items)]);
    let target = format!("/api/v1/pods?limit={MOST_PODS}&fieldSelector={}", encode(selector));
    let mut answer = client.ask_filtered(&target, &fields).await?;
    let mut pods = Vec::new();
    while let Some(items) = answer.items().await? {
        pods.extend(items.iter().filter_map(|item| serde_json::from_slice::<PodDocument>(&item.json).ok()?.read()));
    }
    answer.page()?;
    Ok(pods)
}

fn pod_members() -> Vec<JsonMember> {
    members([
        ("metadata", Field::object(["name", "namespace", "uid"].map(|name| (name, Field::text())))),
        ("spec", Field::object([("nodeName", Field::text()), ("hostNetwork", Field::text())])),
        (
            "status",
            Field::object([
                ("phase", Field::text()),
                ("hostIP", Field::text()),
                ("hostIPs", Field::array(Field::object([("ip", Field::text())]))),
            ]),
        ),
    ])
}

#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: Option<String>,
    pod: Option<Named>,
    node: Option<Named>,
}

#[derive(Default, Deserialize)]
struct Named {
    name: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize)]
struct PodDocument {
    metadata: PodNames,
    #[serde(default)]
    spec: PodPlace,
    #[serde(default)]
    status: PodAddresses,
}

#[derive(Deserialize)]
struct PodNames {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodPlace {
    node_name: String,
    host_network: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodAddresses {
    phase: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
    #[serde(rename = "hostIPs")]
    host_ips: Vec<PodAddress>,
}

#[derive(Deserialize)]
struct PodAddress {
    #[serde(default)]
    ip: String,
}

impl PodDocument {
    fn read(self) -> Option<PodOnNode> {
        let Self { metadata: PodNames { name, namespace, uid }, spec, status } = self;
        let mut host_ips: Vec<IpAddr> = status.host_ips.iter().filter_map(|address| address.ip.parse().ok()).collect();
        if let Ok(first) = status.host_ip.parse()
            && !host_ips.contains(&first)
        {
            host_ips.insert(0, first);
        }
        let named = !name.is_empty() && !uid.is_empty();
        named.then(|| PodOnNode {
            name: format!("{namespace}/{name}"),
            uid,
            node: spec.node_name,
            host_network: spec.host_network,
            finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
            host_ips,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;

    fn token(claims: &str) -> String {
        format!("eyJhbGciOiJub25lIn0.{}.c2lnbmF0dXJl\n", URL_SAFE_NO_PAD.encode(claims))
    }

    fn binding(namespace: &str, pod: &str, uid: &str, node: Option<&str>) -> TokenBinding {
        let text = |text: &str| Some(text.to_owned());
        TokenBinding { namespace: text(namespace), pod: text(pod), uid: text(uid), node: node.map(str::to_owned) }
    }

    #[test]
    fn the_token_names_the_pod_and_its_node() {
        let claims = r#"{"kubernetes.io":{"namespace":"kube-system","node":{"name":"node-a","uid":"n"},
            "pod":{"name":"rolegate-x","uid":"u"},"serviceaccount":{"name":"rolegate","uid":"s"}},"sub":"x"}"#;
        assert_eq!(TokenBinding::of_token(&token(claims)), Some(binding("kube-system", "rolegate-x", "u", Some("node-a"))));
        // Before Kubernetes 1.30.
        let claims = r#"{"kubernetes.io":{"namespace":"kube-system","pod":{"name":"rolegate-x","uid":"u"}}}"#;
        assert_eq!(TokenBinding::of_token(&token(claims)), Some(binding("kube-system", "rolegate-x", "u", None)));
        // A token in a Secret names no pod, and has claims of another form.
        for other in ["", "abc", "a.b.c", &token("[]"), &token(r#"{"kubernetes.io/serviceaccount/namespace":"kube-system"}"#)] {
            assert_eq!(TokenBinding::of_token(other), None, "{other}");
        }
    }

    #[test]
    fn the_namespace_of_a_token_without_one_is_that_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(TokenBinding::read(directory.path()), TokenBinding::default());
        std::fs::write(directory.path().join("namespace"), "kube-system\n").unwrap();
        std::fs::write(directory.path().join("token"), "opaque").unwrap();
        assert_eq!(TokenBinding::read(directory.path()).namespace.as_deref(), Some("kube-system"));
    }

    #[test]
    fn a_pod_tells_its_node_and_addresses() {
        let read = |json: serde_json::Value| serde_json::from_value::<PodDocument>(json).unwrap().read();
        let metadata = serde_json::json!({ "name": "a", "namespace": "n", "uid": "u" });
        let bare = PodOnNode {
            name: "n/a".to_owned(),
            uid: "u".to_owned(),
            node: String::new(),
            host_network: false,
            finished: false,
            host_ips: vec![],
        };
        assert_eq!(read(serde_json::json!({ "metadata": metadata })), Some(bare.clone()));
        let status = serde_json::json!({ "phase": "Failed", "hostIP": "10.0.0.1", "hostIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] });
        let spec = serde_json::json!({ "nodeName": "node-a", "hostNetwork": true });
        let host_ips = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let full = PodOnNode { node: "node-a".to_owned(), host_network: true, finished: true, host_ips, ..bare };
        assert_eq!(read(serde_json::json!({ "metadata": metadata, "spec": spec, "status": status })), Some(full));
    }
}

//! Reads the manifest of one pod, for people. Only fields about credentials are kept.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Deserializer};

use super::fields;
use crate::advice::Advise;
use crate::kubernetes::client::{Client, encode};
use crate::kubernetes::failure::RequestFailure;
use crate::kubernetes::fields::{Field, members};
use crate::pods::{ManifestContainer, ManifestMount, ManifestVariable, PodManifest, PodManifests, VolumeToken};

/// Time limit for reading a manifest.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
enum ManifestError {
    /// The API did not return it.
    #[error("{0}")]
    Request(#[from] RequestFailure),
    /// There is no such pod.
    #[error("the Kubernetes API has no such pod")]
    NoSuchPod,
    /// The pod is too large, or has another form.
    #[error("the pod in the Kubernetes API is too large")]
    TooLarge,
    /// The API took too long.
    #[error("the Kubernetes API did not return the pod in time")]
    Slow,
}

impl Advise for ManifestError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Request(failure) => failure.advice(),
            Self::NoSuchPod | Self::TooLarge | Self::Slow => None,
        }
    }
}

/// Reads manifests from the Kubernetes API. This takes the permission to list pods, which the watch needs anyway.
#[derive(Debug)]
pub(crate) struct ApiManifests(Client);

impl ApiManifests {
    /// Creates a source that uses this client.
    pub(crate) fn new(client: Client) -> Self {
        Self(client)
    }

    async fn manifest(&self, namespace: &str, pod: &str) -> Result<PodManifest, ManifestError> {
        let selector = encode(&format!("metadata.name={pod}"));
        let target = format!("/api/v1/namespaces/{}/pods?fieldSelector={selector}", encode(namespace));
        let fields = fields::page(members([("spec", spec()), ("status", status())]));
        let read = async {
            let (mut answer, mut found) = (self.0.ask_filtered(&target, &fields).await?, None);
            while let Some(items) = answer.items().await? {
                found = found.or(items.into_iter().next());
            }
            answer.page()?;
            Ok::<_, RequestFailure>(found)
        };
        let found = tokio::time::timeout(TIMEOUT, read).await.map_err(|_| ManifestError::Slow)??;
        let item = found.ok_or(ManifestError::NoSuchPod)?;
        match serde_json::from_slice::<RawManifest>(&item.json) {
            Ok(raw) if !item.truncated => Ok(raw.into()),
            _ => Err(ManifestError::TooLarge),
        }
    }
}

impl PodManifests for ApiManifests {
    fn read<'a>(&'a self, namespace: &'a str, pod: &'a str) -> BoxFuture<'a, Result<PodManifest, String>> {
        async move { self.manifest(namespace, pod).await.map_err(|error| error.with_advice()) }.boxed()
    }
}

fn spec() -> Field {
    let any = || Field::object::<0>([]);
    let variable = || Field::object([("name", Field::text()), ("value", Field::text()), ("valueFrom", any())]);
    let mount = || Field::object(["name", "mountPath", "subPath", "subPathExpr"].map(|name| (name, Field::text())));
    let containers = || {
        Field::list(Field::object([
            ("name", Field::text()),
            ("env", Field::list(variable())),
            ("envFrom", Field::list(any())),
            ("volumeMounts", Field::list(mount())),
        ]))
    };
    let token = Field::object([("audience", Field::text()), ("path", Field::text())]);
    let sources = Field::list(Field::object([("serviceAccountToken", token)]));
    let volume = Field::object([("name", Field::text()), ("projected", Field::object([("sources", sources)]))]);
    Field::object([
        ("hostNetwork", Field::text()),
        ("initContainers", containers()),
        ("containers", containers()),
        ("volumes", Field::list(volume)),
    ])
}

fn status() -> Field {
    Field::object([("podIPs", Field::array(Field::object([("ip", Field::text())])))])
}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(default, deserialize_with = "or_default")]
    spec: RawManifestSpec,
    #[serde(default, deserialize_with = "or_default")]
    status: RawManifestStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawManifestSpec {
    #[serde(deserialize_with = "or_default")]
    host_network: bool,
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<RawManifestContainer>,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<RawManifestContainer>,
    #[serde(deserialize_with = "or_default")]
    volumes: Vec<RawVolume>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawManifestStatus {
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<RawManifestAddress>,
}

#[derive(Deserialize)]
struct RawManifestAddress {
    ip: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawManifestContainer {
    name: String,
    #[serde(deserialize_with = "or_default")]
    env: Vec<RawManifestVariable>,
    #[serde(deserialize_with = "or_default")]
    env_from: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    volume_mounts: Vec<RawMount>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawManifestVariable {
    name: String,
    value: Option<String>,
    value_from: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawMount {
    name: String,
    mount_path: String,
    #[serde(deserialize_with = "or_default")]
    sub_path: String,
    #[serde(deserialize_with = "or_default")]
    sub_path_expr: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawVolume {
    name: String,
    #[serde(deserialize_with = "or_default")]
    projected: RawProjected,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawProjected {
    #[serde(deserialize_with = "or_default")]
    sources: Vec<RawProjectedSource>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawProjectedSource {
    service_account_token: Option<RawVolumeToken>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawVolumeToken {
    #[serde(deserialize_with = "or_default")]
    audience: String,
    path: String,
}

/// The API writes `null` for some empty lists.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl From<RawManifest> for PodManifest {
    fn from(RawManifest { spec, status }: RawManifest) -> Self {
        let tokens = |volume: RawVolume| {
            let tokens = volume.projected.sources.into_iter().filter_map(|source| source.service_account_token);
            tokens.map(|token| VolumeToken { volume: volume.name.clone(), audience: token.audience, path: token.path }).collect::<Vec<_>>()
        };
        Self {
            host_network: spec.host_network,
            ips: status.pod_ips.iter().filter_map(|address| address.ip.parse().ok()).collect(),
            containers: spec.init_containers.into_iter().chain(spec.containers).map(ManifestContainer::from).collect(),
            tokens: spec.volumes.into_iter().flat_map(tokens).collect(),
        }
    }
}

impl From<RawManifestContainer> for ManifestContainer {
    fn from(raw: RawManifestContainer) -> Self {
        // An empty value is left out in the API.
        let variable = |RawManifestVariable { name, value, value_from }| ManifestVariable {
            name,
            value: if value_from.is_some() { None } else { Some(value.unwrap_or_default()) },
        };
        let mount = |raw: RawMount| ManifestMount {
            volume: raw.name,
            path: raw.mount_path,
            is_part: !raw.sub_path.is_empty() || !raw.sub_path_expr.is_empty(),
        };
        Self {
            name: raw.name,
            variables: raw.env.into_iter().map(variable).collect(),
            has_other_variables: !raw.env_from.is_empty(),
            mounts: raw.volume_mounts.into_iter().map(mount).collect(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::filter::{Document, Filter};

    fn read(object: &serde_json::Value) -> PodManifest {
        let fields = Field::Object(members([("spec", spec()), ("status", status())]));
        let Document::Complete(kept) = Filter::once(&fields, object.to_string().as_bytes()) else { panic!("{object}") };
        serde_json::from_slice::<RawManifest>(&kept.json).unwrap().into()
    }

    #[test]
    fn variables_mounts_and_tokens_are_read() {
        let variables = json!([
            { "name": "A", "value": "1" }, { "name": "B", "valueFrom": { "fieldRef": {} } }, { "name": "C" }, { "name": "A", "value": "2" }
        ]);
        let mounts = json!([{ "name": "v", "mountPath": "/t", "subPath": "p" }, { "name": "v", "mountPath": "/u" }]);
        let sources = json!([
            { "configMap": {} }, { "serviceAccountToken": { "audience": "a", "path": "t" } }, { "serviceAccountToken": { "path": "api" } }
        ]);
        let manifest = read(&json!({
            "spec": {
                "hostNetwork": true,
                "initContainers": [{ "name": "init", "image": "x" }],
                "containers": [{ "name": "app", "env": variables, "envFrom": [{ "secretRef": {} }], "volumeMounts": mounts }],
                "volumes": [{ "name": "e", "emptyDir": {} }, { "name": "v", "projected": { "sources": sources } }],
            },
            "status": { "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
        }));
        let token = |audience: &str, path: &str| VolumeToken { volume: "v".into(), audience: audience.into(), path: path.into() };
        assert_eq!(manifest.tokens, [token("a", "t"), token("", "api")]);
        assert_eq!((manifest.host_network, manifest.ips.len()), (true, 2));
        let [init, app] = &manifest.containers[..] else { panic!("{manifest:?}") };
        assert_eq!((&*init.name, init.has_other_variables, app.has_other_variables), ("init", false, true));
        let value = |name: &str| app.variable(name).map(|variable| variable.value.as_deref());
        assert_eq!(["A", "B", "C", "D"].map(value), [Some(Some("2")), Some(None), Some(Some("")), None]);
        let mount = |path: &str, is_part| ManifestMount { volume: "v".into(), path: path.into(), is_part };
        assert_eq!(app.mounts, [mount("/t", true), mount("/u", false)]);
    }

    #[test]
    fn a_pod_without_any_of_this_is_read() {
        for object in [json!({}), json!({ "spec": null, "status": null }), json!({ "spec": { "volumes": null, "containers": null } })] {
            assert_eq!(read(&object), PodManifest::default(), "{object}");
        }
    }
}

//! What the manifest of a pod says about credentials. The index does not have it: it is read from the API for one pod at a time.

use std::fmt;
use std::net::IpAddr;

use futures_util::future::BoxFuture;

/// What the manifest of a pod says about credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodManifest {
    /// Whether the pod is in the node's network.
    pub host_network: bool,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// The init containers, and then the others.
    pub containers: Vec<ManifestContainer>,
    /// The service account tokens in its volumes.
    pub tokens: Vec<VolumeToken>,
}

/// A container of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestContainer {
    /// The name.
    pub name: String,
    /// The variables, without those of `envFrom`.
    pub variables: Vec<ManifestVariable>,
    /// Whether more variables come from ConfigMaps or Secrets (`envFrom`).
    pub has_other_variables: bool,
    /// The mounted volumes.
    pub mounts: Vec<ManifestMount>,
}

/// A variable of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestVariable {
    /// The name.
    pub name: String,
    /// The value; `None` if it comes from elsewhere (`valueFrom`).
    pub value: Option<String>,
}

/// A volume that is mounted in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestMount {
    /// The name of the volume.
    pub volume: String,
    /// Where it is mounted.
    pub path: String,
    /// Whether only a part of the volume is mounted. The kubelet does not update such a mount.
    pub is_part: bool,
}

/// A service account token in a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeToken {
    /// The name of the volume.
    pub volume: String,
    /// The audience; empty for that of the API server.
    pub audience: String,
    /// The path of the token in the volume.
    pub path: String,
}

impl ManifestContainer {
    /// Returns the last variable with this name, which is the one that counts.
    pub fn variable(&self, name: &str) -> Option<&ManifestVariable> {
        self.variables.iter().rfind(|variable| variable.name == name)
    }
}

/// A source of manifests.
pub trait PodManifests: Send + Sync + fmt::Debug {
    /// Reads the manifest of a pod. An error is a text for people.
    fn read<'a>(&'a self, namespace: &'a str, pod: &'a str) -> BoxFuture<'a, Result<PodManifest, String>>;
}

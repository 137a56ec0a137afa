//! What happens to the requests of pods in the node's network.

use super::known::Pod;
use crate::config::{ExemptPods, HostNetworkConfig, HostNetworkMode};

/// What happens to the requests of a pod in the node's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostNetworkTreatment {
    /// They reach the real metadata service, because the settings leave all such pods alone, or because nothing on the node could
    /// redirect them.
    Ignored,
    /// They reach the real metadata service, because the pod is exempt.
    Exempt,
    /// They are refused.
    Denied,
    /// The pod is identified by its control group, and gets its own role.
    Served,
}

impl HostNetworkTreatment {
    /// Returns whether the requests reach the real metadata service.
    pub fn is_left_alone(self) -> bool {
        matches!(self, Self::Ignored | Self::Exempt)
    }
}

/// Decides about the pods in the node's network.
#[derive(Clone, Debug, Default)]
pub struct HostNetworkRules {
    config: HostNetworkConfig,
    /// The daemon's own pod, which needs the real metadata service.
    own: OwnPodName,
    is_enforced: bool,
    /// Whether the daemon serves credentials for service account tokens, which identify such pods without BPF programs.
    serves_tokens: bool,
}

/// What is known about the daemon's own pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPodName {
    /// The UID.
    pub uid: Option<String>,
    /// The namespace and the name.
    pub name: Option<(String, String)>,
}

impl OwnPodName {
    fn is(&self, pod: &Pod) -> bool {
        let has_name = || self.name.as_ref().is_some_and(|(namespace, name)| pod.namespace == *namespace && pod.name == *name);
        self.uid.as_ref().map_or_else(has_name, |uid| **uid == *pod.uid.0)
    }
}

impl HostNetworkRules {
    /// Creates the rules of these settings. `is_enforced` says whether programs of the kernel are in effect that redirect such pods;
    /// without them, all are ignored.
    pub fn new(config: HostNetworkConfig, own: OwnPodName, is_enforced: bool) -> Self {
        Self { config, own, is_enforced, serves_tokens: false }
    }

    /// Sets whether the daemon serves credentials for service account tokens.
    #[must_use]
    pub fn with_tokens(self, serves_tokens: bool) -> Self {
        Self { serves_tokens, ..self }
    }

    /// Returns whether this pod in the node's network can get credentials, either as metadata or with a service account token.
    pub fn may_be_served(&self, pod: &Pod) -> bool {
        self.treatment(pod) == HostNetworkTreatment::Served || (self.serves_tokens && pod.has_token_audience && !self.denies(pod))
    }

    /// Returns what happens to the requests of this pod, which is in the node's network.
    pub fn treatment(&self, pod: &Pod) -> HostNetworkTreatment {
        match self.config.pods {
            _ if !self.is_enforced => HostNetworkTreatment::Ignored,
            _ if self.own.is(pod) => HostNetworkTreatment::Exempt,
            HostNetworkMode::Ignore => HostNetworkTreatment::Ignored,
            _ if self.exemption(pod).is_some() => HostNetworkTreatment::Exempt,
            HostNetworkMode::Deny => HostNetworkTreatment::Denied,
            HostNetworkMode::Serve => HostNetworkTreatment::Served,
        }
    }

    /// Returns whether the settings refuse this pod, which is in the node's network, whether or not the kernel redirects it.
    pub fn denies(&self, pod: &Pod) -> bool {
        self.config.pods == HostNetworkMode::Deny && !self.own.is(pod) && self.exemption(pod).is_none()
    }

    /// Returns whether this is the daemon's own pod.
    pub fn is_own(&self, pod: &Pod) -> bool {
        self.own.is(pod)
    }

    /// Returns the item of `--host-network-exempt` that names a pod.
    pub fn exemption(&self, pod: &Pod) -> Option<&ExemptPods> {
        self.config.exempt.iter().find(|item| item.matches(&pod.namespace, &pod.service_account, pod.static_uid.is_some()))
    }

    /// Returns the value of `--host-network-pods`.
    pub fn mode(&self) -> HostNetworkMode {
        self.config.pods
    }

    /// Returns whether the kernel redirects such pods.
    pub fn is_enforced(&self) -> bool {
        self.is_enforced
    }

    /// Returns the UID of the daemon's own pod, if it is known without the Kubernetes API.
    pub fn own_uid(&self) -> Option<&str> {
        self.own.uid.as_deref()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests;

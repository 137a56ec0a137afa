//! The migration report: for each workload, the protocols that it uses, what the strict settings would refuse, and what would make it
//! pass.
//!
//! With `--migrate`, the daemon serves what kube2iam would serve. The [recorder] counts what the strict settings would
//! refuse, and the [reporter] adds what the known pods and namespaces say now. A report has only texts. Those of other
//! people (roles, clients, names of owners) are checked or cleaned before they get here. Reports of several nodes can be
//! [merged](merge).

use serde::{Deserialize, Serialize};

use crate::config::{MetadataProfile, StrictSettings, TokenMode};

mod clean;
pub(crate) mod client;
mod ledger;
pub(crate) mod merge;
pub(crate) mod node_role;
mod places;
pub(crate) mod recorder;
pub(crate) mod render;
pub(crate) mod reporter;
mod uses;
mod workload;

/// The version of the report's form. It grows if a field is removed or changes its meaning.
pub(crate) const REPORT_VERSION: u32 = 1;

/// What the strict settings would refuse, on one node or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MigrationReport {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// The nodes, in the order of their names.
    pub nodes: Vec<ReportedNode>,
    /// The settings that decide what is a finding; of the first node that answered.
    pub strict: Option<ReportedSettings>,
    /// Findings of workloads that were not recorded, because too many workloads had some.
    pub left_out: u64,
    /// The namespaces whose annotation would have to change.
    pub namespaces: Vec<ReportedNamespace>,
    /// The workloads with findings, in the order of namespace, kind and name.
    pub workloads: Vec<ReportedWorkload>,
    /// The protocols in use, in the order of namespace, kind, name and protocol. Earlier versions have none.
    #[serde(default)]
    pub protocols: Vec<ReportedProtocol>,
    /// Requests that are missing in `protocols`, because too many workloads sent some.
    #[serde(default)]
    pub protocols_left_out: u64,
}

/// A node of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedNode {
    /// The name.
    pub node: String,
    /// For how many seconds its daemon has recorded.
    pub recorded_seconds: u64,
    /// Whether its daemon has `--migrate`, and so records findings. Earlier versions made no report without.
    #[serde(default = "always")]
    pub findings_recorded: bool,
    /// Why its report is missing.
    pub error: Option<String>,
}

/// The strict settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedSettings {
    /// `required` or `optional`.
    pub imds_tokens: String,
    /// `none`, `base` or `node-info`.
    pub metadata_profile: String,
    /// The patterns of `--node-info-namespaces`.
    pub node_info_namespaces: Vec<String>,
    /// Whether namespaces limit roles.
    pub namespace_restrictions: bool,
}

/// A namespace whose annotation would have to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedNamespace {
    /// The name.
    pub name: String,
    /// The key of the annotation.
    pub annotation: String,
    /// The patterns of the annotation now; `None` if there is no valid annotation, or it is not known.
    pub existing: Option<Vec<String>>,
    /// The patterns to add.
    pub missing: Vec<String>,
    /// The whole value that would let these roles pass: a JSON list.
    pub value: String,
    /// What else is to be known before the annotation is changed.
    pub note: Option<String>,
}

/// A workload with findings: the pods of one controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedWorkload {
    /// The namespace.
    pub namespace: String,
    /// The kind, such as `Deployment`; `Pod` for a pod without a controller.
    pub kind: String,
    /// The name.
    pub name: String,
    /// The findings, in the order of their kind and subject.
    pub findings: Vec<Finding>,
}

/// One thing that would be refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The kind.
    pub finding: FindingKind,
    /// The client, the metadata path, the role, or the item of `--host-network-exempt` that would name the pod.
    pub subject: String,
    /// A code that says why; for a refusal, that of the metrics and the log.
    pub reason: String,
    /// The number of requests; 0 if the pod was not heard, and only its objects say so.
    pub count: u64,
    /// Seconds since the last of these requests.
    pub last_seen_seconds: Option<u64>,
    /// What to do.
    pub advice: String,
}

/// A protocol that a workload uses to get credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedProtocol {
    /// The namespace.
    pub namespace: String,
    /// The kind, such as `Deployment`; `Pod` for a pod without a controller.
    pub kind: String,
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: CredentialProtocol,
    /// The number of requests, including refused ones and, with the metadata service, requests for other values.
    pub requests: u64,
    /// The number of these requests that were answered with credentials.
    pub credentials: u64,
    /// Seconds since the last request.
    pub last_seen_seconds: u64,
}

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FindingKind {
    /// Requests without a session token, by client.
    Imdsv1,
    /// Metadata that the strict profile does not have, by path.
    Metadata,
    /// A role that enforced namespace restrictions would refuse.
    Role,
    /// A pod in the host's network that names a role and does not get it, or that uses the node's role.
    HostNetwork,
    /// A request that is refused with `--migrate` as well.
    Refused,
}

impl FindingKind {
    /// Every kind, with its name in reports and metrics.
    pub(crate) const ALL: [(Self, &'static str); 5] = [
        (Self::Imdsv1, "imdsv1"),
        (Self::Metadata, "metadata"),
        (Self::Role, "role"),
        (Self::HostNetwork, "host-network"),
        (Self::Refused, "refused"),
    ];

    /// Returns the name in reports and metrics.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// A protocol by which pods get credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CredentialProtocol {
    /// The metadata service without a session token.
    Imdsv1,
    /// The metadata service with a session token.
    Imdsv2,
    /// Pod Identity, with a service account token.
    PodIdentity,
    /// Pod Identity, at the address of the relative URI, without a token.
    RelativeUri,
}

impl CredentialProtocol {
    /// Every protocol, in the order of its variants, with its name in reports.
    pub(crate) const ALL: [(Self, &'static str); 4] =
        [(Self::Imdsv1, "imdsv1"), (Self::Imdsv2, "imdsv2"), (Self::PodIdentity, "pod-identity"), (Self::RelativeUri, "relative-uri")];

    /// Returns the name in reports.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Returns whether this is the metadata service.
    pub(crate) fn is_metadata(self) -> bool {
        matches!(self, Self::Imdsv1 | Self::Imdsv2)
    }
}

impl ReportedSettings {
    fn of(strict: &StrictSettings) -> Self {
        let imds_tokens = match strict.tokens {
            TokenMode::Required => "required",
            TokenMode::Optional => "optional",
        };
        let metadata_profile = match strict.profile {
            MetadataProfile::None => "none",
            MetadataProfile::Base => "base",
            MetadataProfile::NodeInfo => "node-info",
        };
        Self {
            imds_tokens: imds_tokens.to_owned(),
            metadata_profile: metadata_profile.to_owned(),
            node_info_namespaces: strict.node_info_namespaces.clone(),
            namespace_restrictions: strict.restricted,
        }
    }
}

fn always() -> bool {
    true
}

#[cfg(test)]
mod tests;

//! Kubernetes Events on pods: `kubectl describe pod` tells a pod's owner why the pod got no credentials, without access to the
//! node's log.
//!
//! [`Reporter`] is the sending side, used while a request is handled: it puts a small record into a bounded queue and never
//! waits. [`writer`] is the receiving side, a separate task: it consults the `ledger` to decide which Events are worth writing,
//! and writes them. A note is read by people with access to the pod's namespace, so it consists only of rolegate's own
//! sentences and repeats nothing from annotations, other pods or STS messages.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::advice::Advise as _;
use crate::credentials::AssumeRoleError;
use crate::metrics::Metrics;
use crate::pod_identity::token::TokenError;
use crate::pods::{HostNetworkTreatment, Objection, Pod};
use crate::policy::{Denial, RoleRequest};

mod ledger;
mod object;
pub(crate) mod writer;

/// Capacity of the queue of records for the writer. The writer only moves records into memory, so a full queue means that it is
/// stuck.
const QUEUE: usize = 1024;
/// The longest note that the API accepts, in bytes (`NoteLengthLimit`, Kubernetes `pkg/apis/core/validation/events.go`).
pub const MAX_NOTE: usize = 1024;

/// The sentence if STS gives out no credentials for the default role.
const DEFAULT_ROLE_FAILED: &str = "the pod names no role, and AWS gives no credentials of the default role (--default-role). To fix: name a \
                                   role in the role annotation of the pod, or ask the cluster's operators to correct the default role";

/// The cause of an Event on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventCause {
    /// Policy denies the pod a role.
    Denied(Denial),
    /// Policy denies the pod a role because of a property of the node. The Event does not reveal the node's own role, partition
    /// or ceiling; otherwise anyone who can write annotations could discover them by trying one role after another.
    RefusedOnNode {
        /// Whether the role is the default role, because the pod names none.
        by_default: bool,
    },
    /// Audit mode allows a pod that enforced restrictions would deny.
    WouldBeDenied(Denial),
    /// Another pod claims the pod's address.
    AddressAmbiguous,
    /// The pod's current state cannot be read.
    Unreadable,
    /// What the node observes at the pod's address contradicts the pod's claim.
    Objected(Objection),
    /// STS returned no credentials for the pod's role.
    AssumeRoleFailed {
        /// The stable name of the failure.
        name: &'static str,
        /// The part of the failure that the pod's owner may know.
        sentence: &'static str,
    },
    /// The pod uses the host network and gets no role there, because of this treatment of such pods.
    HostNetwork(HostNetworkTreatment),
    /// The pod requests something without a session token, and tokens are required.
    TokenRequired,
    /// The pod requests metadata that a setting could open.
    MetadataClosed {
        /// The flag that opens it.
        setting: &'static str,
    },
    /// The pod's requests come through a proxy.
    Forwarded,
    /// The pod sent a service account token that is not valid.
    ServiceAccountToken(TokenError),
}

impl EventCause {
    /// Returns the cause for a denial by policy. `None` if the owner has nothing to change: a state that is merely not known
    /// yet resolves by itself.
    /// `by_default` says whether the role is the default role, because the pod names none.
    pub fn denied(denial: Denial, by_default: bool) -> Option<Self> {
        match denial {
            Denial::NamespaceUnknown | Denial::ServiceAccountUnknown => None,
            Denial::NodeRole | Denial::ContradictedAccount | Denial::ForeignAccount | Denial::OtherPartition | Denial::NotAllowedOnNode => {
                Some(Self::RefusedOnNode { by_default })
            }
            Denial::TargetRole(of_target) => Self::denied(*of_target, by_default).map(|cause| match cause {
                // Says that the target role is the refused one.
                Self::Denied(_) => Self::Denied(denial),
                other => other,
            }),
            Denial::NoRole
            | Denial::BadRole(..)
            | Denial::TargetWithoutRole(_)
            | Denial::ServiceAccountsForbidden
            | Denial::BadExternalId(_)
            | Denial::NamespaceHasNoList
            | Denial::BadNamespaceList(..)
            | Denial::NotAllowedInNamespace => Some(Self::Denied(denial)),
        }
    }

    /// Returns the cause for a denial that enforced restrictions would make. `None` if the owner has nothing to change.
    pub fn would_be_denied(denial: Denial) -> Option<Self> {
        // A default role needs no list of a namespace.
        Self::denied(denial, false).map(|cause| match cause {
            Self::Denied(denial) => Self::WouldBeDenied(denial),
            other => other,
        })
    }

    /// Returns the cause for an objection by the node. `None` if the owner has nothing to change.
    pub fn objected(objection: Objection) -> Option<Self> {
        match objection {
            Objection::LinkChanged | Objection::OtherPodAttached | Objection::OtherPodConnected | Objection::NotInHostNetwork => {
                Some(Self::Objected(objection))
            }
            // No Event can be written while the API cannot be reached, and the effect of a reboot ends without action by the
            // owner.
            Objection::BeforeBoot | Objection::Stale => None,
        }
    }

    /// Returns the cause for a failed AssumeRole call. `None` if the owner has nothing to change.
    /// `by_default` says whether the role is the default role, which the owner cannot correct.
    pub fn assume_role_failed(error: &AssumeRoleError, request: &RoleRequest, by_default: bool) -> Option<Self> {
        let sentence = error.for_owner(request)?;
        let sentence = if by_default && error.is_refusal() { DEFAULT_ROLE_FAILED } else { sentence };
        Some(Self::AssumeRoleFailed { name: error.name(), sentence })
    }

    /// Returns the Event's `reason`: one stable word for each kind of cause, for selectors and alerts.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Denied(_) | Self::RefusedOnNode { .. } => "RoleDenied",
            Self::WouldBeDenied(_) => "RoleWouldBeDenied",
            Self::AddressAmbiguous => "AddressAmbiguous",
            Self::Unreadable => "PodUnreadable",
            Self::Objected(_) => "AddressContested",
            Self::AssumeRoleFailed { .. } => "AssumeRoleFailed",
            Self::HostNetwork(_) => "HostNetworkNotServed",
            Self::TokenRequired => "SessionTokenRequired",
            Self::MetadataClosed { .. } => "MetadataNotServed",
            Self::Forwarded => "RequestForwarded",
            Self::ServiceAccountToken(_) => "ServiceAccountTokenRefused",
        }
    }

    /// Returns the Event's `action`: what the daemon did.
    fn action(self) -> &'static str {
        match self {
            Self::Denied(_) | Self::RefusedOnNode { .. } | Self::AddressAmbiguous | Self::Unreadable | Self::Objected(_) => {
                "RefuseCredentials"
            }
            Self::WouldBeDenied(_) => "ServeCredentials",
            Self::AssumeRoleFailed { .. } => "AssumeRole",
            Self::HostNetwork(HostNetworkTreatment::Denied) => "RefuseCredentials",
            Self::HostNetwork(_) => "LeaveAlone",
            Self::TokenRequired | Self::MetadataClosed { .. } | Self::Forwarded | Self::ServiceAccountToken(_) => "RefuseRequest",
        }
    }

    /// Returns the cause's stable name within its kind. It equals the name in metrics and the log, except where that would
    /// reveal something about the node.
    fn name(self) -> &'static str {
        match self {
            Self::Denied(denial) | Self::WouldBeDenied(denial) => denial.name(),
            Self::RefusedOnNode { .. } => "refused-on-node",
            Self::AddressAmbiguous => "ambiguous-pod",
            Self::Unreadable => "unreadable-pod",
            Self::Objected(objection) => objection.name(),
            Self::AssumeRoleFailed { name, .. } => name,
            Self::HostNetwork(HostNetworkTreatment::Exempt) => "host-network-exempt",
            Self::HostNetwork(_) => "host-network",
            Self::TokenRequired => "token",
            Self::MetadataClosed { .. } => "path",
            Self::Forwarded => "forwarded",
            Self::ServiceAccountToken(error) => error.name(),
        }
    }

    /// Returns the Event's `note`: the stable name, and what to change.
    fn note(self) -> String {
        let name = self.name();
        match self {
            Self::Denied(denial) => format!("{name}: {}", denial.with_advice()),
            Self::RefusedOnNode { by_default: true } => format!(
                "{name}: the pod names no role, and this node does not serve the default role (--default-role). To fix: name a role that \
                 is made for pods in the role annotation of the pod, or ask the cluster's operators to correct the default role"
            ),
            Self::RefusedOnNode { by_default: false } => format!(
                "{name}: this node does not serve the role. To fix: name a role that is made for pods, or ask the cluster's operators for \
                 the reason in rolegate's log"
            ),
            Self::WouldBeDenied(denial) => {
                format!("{name}: served only because of audit mode; enforced restrictions would refuse: {}", denial.with_advice())
            }
            Self::AddressAmbiguous => {
                format!(
                    "{name}: another pod claims the address of this pod, so neither is served. To fix: delete the pod whose network no \
                     longer exists"
                )
            }
            Self::Unreadable => format!(
                "{name}: rolegate cannot read the object of the pod, and serves no pod from its address. To fix: recreate the pod, or ask \
                 the cluster's operators to check rolegate's log"
            ),
            Self::Objected(Objection::LinkChanged) => format!(
                "{name}: the network interface or MAC address behind this pod's address is not the pod's, so requests from the address \
                 are refused. To fix: unless the pod's network was just recreated, ask the cluster's operators which pod uses the address"
            ),
            Self::Objected(Objection::OtherPodConnected) => format!(
                "{name}: a process of another pod sent requests from this pod's address, and they were refused. To fix: ask the cluster's \
                 operators which pod it is (rolegate's log has its UID)"
            ),
            Self::Objected(Objection::NotInHostNetwork) => format!(
                "{name}: a process of this pod sent requests from the node's network, and they were refused. To fix: send metadata requests \
                 from the pod's own network, or set hostNetwork in the pod's spec"
            ),
            Self::Objected(_) => format!(
                "{name}: the node's CNI results assign this pod's address to another pod, so requests from the address are refused. To \
                 fix: if this persists, recreate the pod, or ask the cluster's operators"
            ),
            Self::AssumeRoleFailed { sentence, .. } => format!("{name}: {sentence}"),
            Self::TokenRequired => format!(
                "{name}: the pod sends requests without a session token (IMDSv1), which are refused. To fix: update its AWS SDK or CLI to a \
                 version with IMDSv2 (2020 or later), or ask the cluster's operators to set --imds-tokens=optional. If the client requests \
                 a token next, nothing is wrong"
            ),
            Self::MetadataClosed { setting } => format!(
                "{name}: the pod requests instance metadata that this cluster does not open to it. To fix: stop requesting it, or ask the \
                 cluster's operators to open it with {setting}"
            ),
            Self::Forwarded => format!(
                "{name}: the pod's metadata requests come through a proxy, and are refused. To fix: set NO_PROXY=169.254.169.254 in the pod"
            ),
            Self::ServiceAccountToken(error) => format!("{name}: {}", error.with_advice()),
            Self::HostNetwork(HostNetworkTreatment::Denied) => format!(
                "{name}: the pod has hostNetwork, and this cluster serves no such pods, so its requests are refused. To fix: remove \
                 hostNetwork, or ask the cluster's operators to set --host-network-pods=serve"
            ),
            Self::HostNetwork(HostNetworkTreatment::Exempt) => format!(
                "{name}: the pod names a role but has hostNetwork and is exempt from redirection, so it reaches the node's own metadata \
                 service, and the role annotation has no effect. To fix: remove the annotation, or ask the cluster's operators to change \
                 --host-network-exempt"
            ),
            Self::HostNetwork(HostNetworkTreatment::Ignored | HostNetworkTreatment::Served) => format!(
                "{name}: the pod names a role but has hostNetwork; rolegate does not serve it, and it reaches the node's own metadata \
                 service. To fix: remove hostNetwork or the role annotation, or ask the cluster's operators to set --redirect=bpf and \
                 --host-network-pods=serve"
            ),
        }
    }
}

/// Hashes consistently with `Eq`: equal causes have equal names.
impl Hash for EventCause {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.reason(), self.name()).hash(state);
    }
}

/// A cause to report to a pod's owner.
#[derive(Debug)]
pub struct EventRecord {
    /// The pod that the Event is about.
    pub pod: Arc<Pod>,
    /// The cause of the Event.
    pub cause: EventCause,
}

/// The sending side of the queue of Events; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    records: Option<mpsc::Sender<EventRecord>>,
    metrics: Metrics,
}

impl Reporter {
    /// Creates a reporter, and the receiver for the writer.
    pub fn new(metrics: Metrics) -> (Self, mpsc::Receiver<EventRecord>) {
        let (records, receiver) = mpsc::channel(QUEUE);
        (Self { records: Some(records), metrics }, receiver)
    }

    /// Creates a reporter that discards everything.
    pub fn off(metrics: Metrics) -> Self {
        Self { records: None, metrics }
    }

    /// Returns whether Events are written.
    pub fn is_on(&self) -> bool {
        self.records.is_some()
    }

    /// Reports a cause to a pod's owner, if there is one. Never waits: if the queue is full, the record is dropped and counted.
    pub fn tell(&self, pod: &Arc<Pod>, cause: impl Into<Option<EventCause>>) {
        if let Some(records) = &self.records
            && let Some(cause) = cause.into()
            && records.try_send(EventRecord { pod: pod.clone(), cause }).is_err()
        {
            self.metrics.event("dropped");
        }
    }
}

#[cfg(test)]
mod tests;

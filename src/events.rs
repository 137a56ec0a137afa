//! Events on pods: `kubectl describe pod` tells a pod's owner why it got no credentials, without the node's log.
//!
//! [`Reporter`] is the narrow end that a request sees: it hands a small record to a bounded queue and never waits.
//! [`writer`] is the other end, a task of its own: it decides by the `ledger` what is worth writing, and writes. What a note
//! says is for people of the pod's namespace: it is made of our own sentences alone, and repeats nothing of annotations, of
//! other pods, or of what STS said.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::credentials::AssumeRoleError;
use crate::metrics::Metrics;
use crate::pods::{Objection, Pod};
use crate::policy::Denial;

mod ledger;
mod object;
pub(crate) mod writer;

/// Records that wait for the writer. It only moves them into memory, so that more are waiting means that it is stuck.
const QUEUE: usize = 1024;
/// The longest note that the API takes, in bytes (`NoteLengthLimit`, Kubernetes `pkg/apis/core/validation/events.go`).
pub const MAX_NOTE: usize = 1024;

/// What a pod is told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventCause {
    /// Policy gives it no role.
    Denied(Denial),
    /// Policy gives it no role, for what the node is: which role the node has itself, in which partition it is and what its
    /// ceiling is are not told, or whoever may write annotations could find it out role by role.
    RefusedOnNode,
    /// Audit mode serves it, and enforced restrictions would not.
    WouldBeDenied(Denial),
    /// Another pod claims its address.
    AddressAmbiguous,
    /// What it is now cannot be read.
    Unreadable,
    /// What the node sees at the pod's address contradicts the pod's claim.
    Objected(Objection),
    /// STS gives no credentials for its role.
    AssumeRoleFailed {
        /// The stable name of the failure.
        name: &'static str,
        /// What the pod's owner may know of it.
        sentence: &'static str,
    },
    /// It names a role, and is in the node's network.
    HostNetwork,
}

impl EventCause {
    /// Policy gives it no role. `None` where the owner has nothing to change: what is only not known yet passes by itself.
    pub fn denied(denial: Denial) -> Option<Self> {
        match denial {
            Denial::NamespaceUnknown | Denial::ServiceAccountUnknown => None,
            Denial::NodeRole | Denial::ForeignAccount | Denial::OtherPartition | Denial::NotAllowedOnNode => Some(Self::RefusedOnNode),
            Denial::NoRole
            | Denial::BadRole(..)
            | Denial::ServiceAccountsForbidden
            | Denial::BadExternalId(_)
            | Denial::BadSessionName(_)
            | Denial::NamespaceHasNoList
            | Denial::BadNamespaceList(..)
            | Denial::NotAllowedInNamespace => Some(Self::Denied(denial)),
        }
    }

    /// Enforced restrictions would give it no role. `None` where the owner has nothing to change.
    pub fn would_be_denied(denial: Denial) -> Option<Self> {
        Self::denied(denial).map(|cause| match cause {
            Self::Denied(denial) => Self::WouldBeDenied(denial),
            other => other,
        })
    }

    /// The node's view contradicts its claim. `None` if the owner cannot change anything.
    pub fn objected(objection: Objection) -> Option<Self> {
        match objection {
            Objection::LinkChanged | Objection::OtherPodAttached => Some(Self::Objected(objection)),
            // No Event can be written while the API cannot be reached, and the effect of a reboot ends without action of the
            // owner.
            Objection::BeforeBoot | Objection::Stale => None,
        }
    }

    /// STS gave no credentials. `None` where the owner has nothing to change.
    pub fn assume_role_failed(error: &AssumeRoleError) -> Option<Self> {
        error.for_owner().map(|sentence| Self::AssumeRoleFailed { name: error.name(), sentence })
    }

    /// The Event's `reason`: one stable word for each kind, to select and to alert by.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Denied(_) | Self::RefusedOnNode => "RoleDenied",
            Self::WouldBeDenied(_) => "RoleWouldBeDenied",
            Self::AddressAmbiguous => "AddressAmbiguous",
            Self::Unreadable => "PodUnreadable",
            Self::Objected(_) => "AddressContested",
            Self::AssumeRoleFailed { .. } => "AssumeRoleFailed",
            Self::HostNetwork => "HostNetworkNotServed",
        }
    }

    /// The Event's `action`: what the daemon did.
    fn action(self) -> &'static str {
        match self {
            Self::Denied(_) | Self::RefusedOnNode | Self::AddressAmbiguous | Self::Unreadable | Self::Objected(_) => "RefuseCredentials",
            Self::WouldBeDenied(_) => "ServeCredentials",
            Self::AssumeRoleFailed { .. } => "AssumeRole",
            Self::HostNetwork => "LeaveAlone",
        }
    }

    /// The stable name within its kind: that of metrics and the log, but where it would tell of the node.
    fn name(self) -> &'static str {
        match self {
            Self::Denied(denial) | Self::WouldBeDenied(denial) => denial.name(),
            Self::RefusedOnNode => "refused-on-node",
            Self::AddressAmbiguous => "ambiguous-pod",
            Self::Unreadable => "unreadable-pod",
            Self::Objected(objection) => objection.name(),
            Self::AssumeRoleFailed { name, .. } => name,
            Self::HostNetwork => "host-network",
        }
    }

    /// The Event's `note`: the stable name, and what to change.
    fn note(self) -> String {
        let name = self.name();
        match self {
            Self::Denied(denial) => format!("{name}: {denial}"),
            Self::RefusedOnNode => format!(
                "{name}: this node does not give out the role; name a role that is made for pods, or ask the operators of the node, whose \
                 log has the reason"
            ),
            Self::WouldBeDenied(denial) => {
                format!("{name}: served, because restrictions are only reported yet; enforced, they refuse: {denial}")
            }
            Self::AddressAmbiguous => {
                format!("{name}: another pod claims this pod's address, and neither is served until one of them is gone")
            }
            Self::Unreadable => format!(
                "{name}: rolegate on the node cannot read the pod's object, and serves no pod from its address; recreate the pod, or ask \
                 the operators of the node to check the log"
            ),
            Self::Objected(Objection::LinkChanged) => format!(
                "{name}: the network interface or MAC address that leads to this pod's address is not the pod's, so requests from the \
                 address are refused; if the pod's network was not recreated just now, ask the operators of the node which pod uses the \
                 address"
            ),
            Self::Objected(_) => format!(
                "{name}: the node's CNI results say that another pod has this pod's address, so requests from the address are refused; \
                 if this persists, recreate the pod, or ask the operators of the node"
            ),
            Self::AssumeRoleFailed { sentence, .. } => format!("{name}: {sentence}"),
            Self::HostNetwork => format!(
                "{name}: the pod names a role and runs in the node's network, where it cannot be told from the node; it is not served, \
                 and reaches the node's own metadata service; take hostNetwork away, or the annotation"
            ),
        }
    }
}

/// Consistent with `Eq`: equal causes have equal names.
impl Hash for EventCause {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.reason(), self.name()).hash(state);
    }
}

/// Something to tell a pod.
#[derive(Debug)]
pub struct EventRecord {
    /// Whom.
    pub pod: Arc<Pod>,
    /// What.
    pub cause: EventCause,
}

/// Where a request leaves what its pod should be told; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    records: Option<mpsc::Sender<EventRecord>>,
    metrics: Metrics,
}

impl Reporter {
    /// A reporter, and the end that the writer reads.
    pub fn new(metrics: Metrics) -> (Self, mpsc::Receiver<EventRecord>) {
        let (records, receiver) = mpsc::channel(QUEUE);
        (Self { records: Some(records), metrics }, receiver)
    }

    /// One that tells nobody anything.
    pub fn off(metrics: Metrics) -> Self {
        Self { records: None, metrics }
    }

    /// Tells a pod's owner, where there is something to tell. It never waits: where the queue is full, the record is dropped
    /// and counted.
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

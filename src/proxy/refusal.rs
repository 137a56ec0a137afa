//! The reasons why a pod gets nothing. This is the only place that decides what the pod and the operator learn about them.

use std::sync::Arc;

use super::metadata::table::Set;
use super::respond::Outcome;
use super::route::{Rejection, Route};
use crate::credentials::AssumeRoleError;
use crate::events::EventCause;
use crate::pod_identity::token::{Claims, TokenError};
use crate::pods::{HostNetworkTreatment, Objection, Pod};
use crate::policy::{Denial, RoleRequest};

mod log;

/// The reason why a pod gets nothing, with what the operator should know.
pub(super) enum Refusal {
    UnknownPod,
    /// The process that connected is in the control group of no pod.
    UnknownCgroup,
    /// The pod is in the node's network, and nothing is served to such pods.
    HostNetwork(Arc<Pod>),
    /// The pod is in the node's network and should not have been redirected.
    HostNetworkExempt(Arc<Pod>),
    /// Like [`Self::UnknownPod`], before the list of pods is known.
    PodsNotListed,
    AmbiguousAddress(Vec<Arc<Pod>>),
    UnreadablePod(Arc<Pod>),
    Objected(Arc<Pod>, Objection),
    Denied {
        pod: Arc<Pod>,
        denial: Denial,
        /// Whether the role is the default role, because the pod names none.
        by_default: bool,
    },
    OtherRole(Arc<Pod>),
    Changed(Arc<Pod>),
    /// There is no valid session token.
    Token {
        pod: Arc<Pod>,
        /// Whether the request has a token, which is not valid.
        given: bool,
    },
    /// The pod may not read the path.
    Path {
        pod: Arc<Pod>,
        /// The set that the path belongs to; `None` if no setting opens it.
        set: Option<Set>,
    },
    /// The pod may read the path, but there is no value at the moment.
    Absent(Arc<Pod>),
    /// The value could not be read from the real service yet.
    Unavailable(Arc<Pod>),
    /// The request is not one of a metadata client. The pod is for the log alone, if the address has one.
    Rejected(Option<Arc<Pod>>, Rejection),
    /// STS returned no session.
    Session {
        pod: Arc<Pod>,
        request: Box<RoleRequest>,
        error: AssumeRoleError,
        /// Whether the role is the default role, because the pod names none.
        by_default: bool,
    },
    /// The request is not one for credentials with a service account token. The pod is only for the log; `None` if the address has none.
    IdentityRejected(Option<Arc<Pod>>, Rejection),
    /// The service account token is not valid. The pod is the one that sent it; `None` if the address has none.
    ServiceAccountToken(Option<Arc<Pod>>, TokenError),
    /// The service account token is that of another pod. The pod is the one that sent it; `None` if the address has none.
    TokenOfOtherPod(Option<Arc<Pod>>, Arc<Claims>),
    /// A process in the node's network requested credentials without a token, so that nothing says which pod it belongs to.
    NodeWithoutToken,
    /// The service account token is that of a pod on another node. The pod is the one that sent it; `None` if the address has none.
    TokenOfOtherNode(Option<Arc<Pod>>, Arc<Claims>),
}

/// The kind of a request. Clients draw different conclusions from the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A session token.
    Token,
    /// Everything else of the metadata service.
    Value,
    /// Credentials from an address of Pod Identity.
    PodIdentity,
}

/// A request, as far as its refusal depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) kind: RequestKind,
    /// The path as the client sent it. It is cleaned before it is logged.
    pub(super) path: &'a str,
}

impl<'a> Asked<'a> {
    pub(super) fn by(route: &Route, path: &'a str) -> Self {
        let kind = if matches!(route, Route::NewToken { .. }) { RequestKind::Token } else { RequestKind::Value };
        Self { kind, path }
    }

    pub(super) fn for_value(path: &'a str) -> Self {
        Self { kind: RequestKind::Value, path }
    }

    pub(super) fn for_identity(path: &'a str) -> Self {
        Self { kind: RequestKind::PodIdentity, path }
    }
}

impl Refusal {
    /// Returns the stable name, which is also a value of the metric's label `reason`.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::UnknownPod => "unknown-pod",
            Self::UnknownCgroup => "unknown-cgroup",
            Self::HostNetwork(_) => "host-network",
            Self::HostNetworkExempt(_) => "host-network-exempt",
            Self::PodsNotListed => "pods-not-listed",
            Self::AmbiguousAddress(_) => "ambiguous-pod",
            Self::UnreadablePod(_) => "unreadable-pod",
            Self::Objected(_, objection) => objection.name(),
            Self::Denied { denial, .. } => denial.name(),
            Self::OtherRole(_) => "other-role",
            Self::Changed(_) => "changed",
            Self::Token { .. } => "token",
            Self::Path { .. } | Self::Absent(_) => "path",
            Self::Unavailable(_) => "metadata",
            Self::Rejected(_, rejection) | Self::IdentityRejected(_, rejection) => rejection.name(),
            Self::Session { error, .. } => error.name(),
            Self::ServiceAccountToken(_, error) => error.name(),
            Self::NodeWithoutToken => "node-without-token",
            Self::TokenOfOtherPod(..) => "token-other-pod",
            Self::TokenOfOtherNode(..) => "token-other-node",
        }
    }

    /// Returns the reason in metrics. Failures of STS share one, because other metrics count them by kind.
    pub(super) fn metric_reason(&self) -> &'static str {
        match self {
            Self::Session { .. } => "sts",
            _ => self.reason(),
        }
    }

    /// Returns the pod whose request is refused, if it is known.
    pub(super) fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::UnknownPod | Self::UnknownCgroup | Self::PodsNotListed | Self::AmbiguousAddress(_) | Self::NodeWithoutToken => None,
            Self::Rejected(pod, _)
            | Self::IdentityRejected(pod, _)
            | Self::ServiceAccountToken(pod, _)
            | Self::TokenOfOtherPod(pod, _)
            | Self::TokenOfOtherNode(pod, _) => pod.as_ref(),
            Self::Session { pod, .. }
            | Self::UnreadablePod(pod)
            | Self::HostNetwork(pod)
            | Self::HostNetworkExempt(pod)
            | Self::Objected(pod, _)
            | Self::Denied { pod, .. }
            | Self::OtherRole(pod)
            | Self::Changed(pod)
            | Self::Token { pod, .. }
            | Self::Path { pod, .. }
            | Self::Absent(pod)
            | Self::Unavailable(pod) => Some(pod),
        }
    }

    /// Whether the pod merely looks for credentials: it has no role, and none is meant for it. SDKs do so in every pod, for as long
    /// as it runs, so it is said once.
    pub(super) fn is_probe(&self) -> bool {
        matches!(self, Self::Denied { denial: Denial::NoRole, .. })
    }

    /// Whether it is worth no line: the pod is answered as the real service would.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }

    /// Returns what the pod's owner is told, if the owner can change something.
    pub(super) fn event(&self) -> Option<EventCause> {
        match self {
            Self::UnreadablePod(_) => Some(EventCause::Unreadable),
            Self::HostNetwork(_) => Some(EventCause::HostNetwork(HostNetworkTreatment::Denied)),
            Self::Objected(_, objection) => EventCause::objected(*objection),
            Self::Denied { denial, by_default, .. } => EventCause::denied(*denial, *by_default),
            Self::Token { given: false, .. } => Some(EventCause::TokenRequired),
            Self::Path { set: Some(set), .. } => Some(EventCause::MetadataClosed { setting: setting(*set) }),
            Self::Rejected(Some(_), Rejection::Forwarded) => Some(EventCause::Forwarded),
            Self::Session { request, error, by_default, .. } => EventCause::assume_role_failed(error, request, *by_default),
            Self::ServiceAccountToken(Some(_), error) => Some(EventCause::ServiceAccountToken(*error)),
            // Nobody to tell, or nothing that the owner could change. Each claimant of an address is told for itself.
            Self::UnknownPod
            | Self::NodeWithoutToken
            | Self::UnknownCgroup
            | Self::HostNetworkExempt(_)
            | Self::PodsNotListed
            | Self::AmbiguousAddress(_)
            | Self::OtherRole(_)
            | Self::Changed(_)
            | Self::Token { given: true, .. }
            | Self::Path { set: None, .. }
            | Self::Absent(_)
            | Self::Unavailable(_)
            | Self::Rejected(..)
            | Self::IdentityRejected(..)
            | Self::ServiceAccountToken(None, _)
            | Self::TokenOfOtherPod(..)
            | Self::TokenOfOtherNode(..) => None,
        }
    }

    /// Returns what the pod gets. On 404, SDKs conclude that there is no role, and go on with their credential chain. On 500, they
    /// retry, or keep what they have. A decision is therefore a 404, and what may be known a moment later is a 500.
    ///
    /// An unknown address that requests a value gets 404, because most never become known, such as a pod in the host's network.
    /// A request for a token never gets 404: the SDKs for .NET, Go and C++ and s3fs take that for a service without tokens, and send
    /// requests without one for as long as they live.
    pub(super) fn outcome(&self, asked: RequestKind) -> Outcome {
        match self {
            Self::UnknownPod | Self::AmbiguousAddress(_) | Self::UnreadablePod(_) if asked == RequestKind::Token => Outcome::Failed,
            // The API or the node's own view is behind, or an exemption is not in effect yet, so that SDKs should retry.
            Self::Changed(_)
            | Self::Objected(..)
            | Self::PodsNotListed
            | Self::Unavailable(_)
            | Self::UnknownCgroup
            | Self::HostNetworkExempt(_)
            | Self::Session { .. } => Outcome::Failed,
            Self::Denied { denial, .. } if denial.may_pass() => Outcome::Failed,
            Self::Token { .. } => Outcome::Unauthorized,
            Self::Rejected(_, rejection) | Self::IdentityRejected(_, rejection) => Outcome::Rejected(*rejection),
            // Never reached: requests for metadata have no such token.
            Self::ServiceAccountToken(..) | Self::TokenOfOtherPod(..) | Self::TokenOfOtherNode(..) | Self::NodeWithoutToken => {
                Outcome::Unauthorized
            }
            Self::UnknownPod
            | Self::AmbiguousAddress(_)
            | Self::UnreadablePod(_)
            | Self::HostNetwork(_)
            | Self::Denied { .. }
            | Self::OtherRole(_)
            | Self::Path { .. }
            | Self::Absent(_) => Outcome::NotFound,
        }
    }
}

/// Returns the flag that opens a set of metadata to a pod.
fn setting(set: Set) -> &'static str {
    match set {
        Set::Base => "--metadata-profile=base",
        Set::NodeInfo => "--node-info-namespaces",
    }
}

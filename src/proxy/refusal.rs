//! The reasons why a pod gets nothing, and the only place that decides what the pod and the operator learn of it.

use std::borrow::Cow;
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::metadata::table::Set;
use super::origin::Origin;
use super::respond::Outcome;
use super::route::{Rejection, Route};
use crate::advice::Advise as _;
use crate::events::EventCause;
use crate::pods::{HostNetworkTreatment, Objection, Pod};
use crate::policy::Denial;
use crate::text;

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
    /// The pod may read the path, and there is nothing at it now.
    Absent(Arc<Pod>),
    /// The value could not be read from the real service yet.
    Unavailable(Arc<Pod>),
    /// The request is not one of a metadata client. The pod is for the log alone, if the address has one.
    Rejected(Option<Arc<Pod>>, Rejection),
}

/// The kind of a request. Clients draw different conclusions from the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A session token.
    Token,
    /// Everything else.
    Value,
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
}

impl Refusal {
    /// Returns the stable name, which is a metric's label.
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
            Self::Rejected(_, rejection) => rejection.name(),
        }
    }

    /// Returns the pod whose request is refused, if it is one.
    pub(super) fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::UnknownPod | Self::UnknownCgroup | Self::PodsNotListed | Self::AmbiguousAddress(_) => None,
            Self::Rejected(pod, _) => pod.as_ref(),
            Self::UnreadablePod(pod)
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
            // Nobody to tell, or nothing that the owner could change. Each claimant of an address is told for itself.
            Self::UnknownPod
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
            | Self::Rejected(..) => None,
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
            | Self::HostNetworkExempt(_) => Outcome::Failed,
            Self::Denied { denial, .. } if denial.may_pass() => Outcome::Failed,
            Self::Token { .. } => Outcome::Unauthorized,
            Self::Rejected(_, rejection) => Outcome::Rejected(*rejection),
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

    /// Logs the refusal for the operator. `again` says that the pod merely looks for credentials, and that this was logged before.
    pub(super) fn log(&self, origin: &Origin, path: &str, again: bool) {
        let (ip, reason, path) = (origin.ip, self.reason(), text::path(path));
        let owner = origin.process.as_ref().and_then(|process| process.owner.as_ref());
        let uid = owner.map(|owner| &*owner.pod);
        let container = owner.and_then(|owner| owner.container.as_deref());
        let (namespace, pod) = self.pod().map(|pod| (pod.namespace.as_str(), pod.name.as_str())).unzip();
        match self {
            Self::UnknownPod if uid.is_some() => warn!(
                event = "request-refused", source = %ip, uid, container, reason, path,
                advice = "check the connection to the Kubernetes API, and that --node is the name of this node",
                "refused: no living pod of this node is known to have the UID of the client's control group"
            ),
            Self::UnknownCgroup => warn!(
                event = "request-refused", source = %ip, reason, path,
                advice = "check that the kernel's programs are attached to the control group in which the kubelet creates those of the pods",
                "refused: the client's process is in the control group of no pod"
            ),
            Self::HostNetwork(_) => warn!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "remove hostNetwork, set --host-network-pods=serve, or add the pod's service account to --host-network-exempt",
                "refused: the pod is in the node's network, and --host-network-pods=deny"
            ),
            Self::HostNetworkExempt(_) => info!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                "refused: the pod is exempt from redirection, but its exemption is not in effect yet; SDKs retry, and then reach the real \
                 metadata service"
            ),
            Self::UnknownPod => warn!(
                event = "request-refused", source = %ip, reason, path,
                "refused: no pod of this node is known to have this address; pods in the node's network are served only by --host-network-pods=serve"
            ),
            Self::PodsNotListed => warn!(
                event = "request-refused", source = %ip, reason, path,
                advice = "check the connection to the Kubernetes API", "refused: the list of this node's pods is not known yet"
            ),
            Self::AmbiguousAddress(pods) => {
                let mut pods: Vec<_> = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
                pods.sort();
                warn!(
                    event = "request-refused", source = %ip, reason, path, pods = pods.join(", "),
                    advice = "delete the one whose network no longer exists", "refused: more than one pod claims this address"
                );
            }
            Self::UnreadablePod(_) => warn!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "see the log line with the event object-unreadable or object-too-large",
                "refused: the object of the pod that has this address cannot be read"
            ),
            Self::Objected(_, objection) => {
                let (cause, advice) = explanation(*objection);
                warn!(event = "identity-objection", namespace, pod, source = %ip, uid, container, reason, path, advice, "refused: {cause}");
            }
            Self::Denied { denial, .. } if again => debug!(
                event = "request-refused", namespace, pod, source = %ip, reason, path, advice = denial.advice().as_deref(),
                "refused: {denial}"
            ),
            Self::Denied { denial, .. } if self.is_probe() => info!(
                event = "request-refused", namespace, pod, source = %ip, reason, path, advice = denial.advice().as_deref(),
                "refused: {denial}; further requests of this pod for a role are logged at the level debug only"
            ),
            Self::Denied { denial, by_default, .. } => {
                let advice = of_default_role(*by_default, denial.advice());
                warn!(
                    event = "request-refused", namespace, pod, source = %ip, reason, path, advice = advice.as_deref(), "refused: {denial}"
                );
            }
            Self::Changed(_) => info!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                "refused: the pod or its role changed during the request, or the connection is older than the pod; SDKs retry, and are \
                 served then"
            ),
            Self::OtherRole(_) => info!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "configure its client to use the role that rolegate lists",
                "refused: the pod requested a role that is not its own"
            ),
            Self::Token { given: false, .. } => warn!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "update the pod's AWS SDK to a version with IMDSv2, or set --imds-tokens=optional",
                "refused: the request has no session token (IMDSv1); nothing is wrong if the client requests a token next"
            ),
            Self::Token { given: true, .. } => info!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "set --token-key-file, so that session tokens outlive the daemon",
                "refused: the session token has expired, is not for this pod and address, or is of an earlier daemon; SDKs request a new one"
            ),
            Self::Path { set: Some(set), .. } => warn!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = format!("set {}, if the pod may read this metadata", setting(*set)),
                "refused: the settings do not open this metadata path to the pod"
            ),
            Self::Path { set: None, .. } => info!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                "refused: rolegate serves no pod this path; no setting opens it"
            ),
            // It has no line: see `is_silent`.
            Self::Absent(_) => {}
            Self::Unavailable(_) => warn!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "check that the daemon can reach --metadata-addr; see the log lines with the event metadata-read-failed",
                "no answer yet: the value could not be read from the metadata service"
            ),
            Self::Rejected(_, rejection) => info!(
                event = "request-rejected", namespace, pod, source = %ip, reason, path, advice = about(*rejection),
                "refused: the request is not one that a metadata client sends"
            ),
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

/// Returns what to change in the client that sends such requests.
fn about(rejection: Rejection) -> &'static str {
    match rejection {
        Rejection::Forwarded => "set NO_PROXY=169.254.169.254 in the pod: the request came through a proxy",
        Rejection::Host => {
            "send metadata requests to 169.254.169.254 by its address; a web page that was rebound to that address sends such requests, too"
        }
        Rejection::TokenVersion => "request session tokens at /latest/api/token",
        Rejection::Method | Rejection::ConnectionMethod => "use GET, or PUT for a session token",
        Rejection::Malformed => "find the client in the pod: its framing, path or headers are not those of an AWS SDK",
    }
}

/// Returns the advice; says first that the pod names no role if it has the default role.
pub(super) fn of_default_role(by_default: bool, advice: Option<Cow<'static, str>>) -> Option<Cow<'static, str>> {
    if !by_default {
        return advice;
    }
    let advice = advice.map_or_else(String::new, |advice| format!(": {advice}"));
    Some(format!("the pod names no role, so it gets that of --default-role; correct that role, or annotate the pod{advice}").into())
}

/// Returns what the node found, and what the operator should do.
fn explanation(objection: Objection) -> (&'static str, Option<&'static str>) {
    match objection {
        Objection::LinkChanged => (
            "the network interface, bridge port or MAC address that leads to this address is not the pod's",
            Some(
                "unless the pod's network is being recreated, find out which pod uses the address, and drop the NET_RAW capability from \
                 pods on bridge networks",
            ),
        ),
        Objection::OtherPodAttached => (
            "a CNI result assigns this address to another pod",
            Some("if this persists, the pod's status may have been forged: check who may patch pods/status"),
        ),
        Objection::BeforeBoot => (
            "all containers that the Kubernetes API reports for the pod started before this node was booted; waiting for the kubelet to \
             report the current ones",
            None,
        ),
        Objection::Stale => (
            "no contact with the Kubernetes API for longer than --max-staleness, and nothing on this node confirms that the address is \
             still the pod's",
            Some("check the connection to the API server"),
        ),
        Objection::OtherPodConnected => (
            "the process that connected is in the control group of another pod (uid)",
            Some("find out how that pod sends from this address: look for NET_RAW, NET_ADMIN and shared network namespaces"),
        ),
        Objection::NotInHostNetwork => (
            "a process of the pod connected from the node's network, and the pod has no hostNetwork",
            Some("find out how it entered that network: look for privileged containers and hostPID"),
        ),
    }
}

//! The reasons why a pod gets nothing, and the only place that decides what the pod and the operator learn of it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{info, warn};

use super::respond::Outcome;
use super::route::Route;
use crate::advice::Advise as _;
use crate::pods::{Objection, Pod};
use crate::policy::Denial;

/// The reason why a pod gets nothing, with what the operator should know.
pub(super) enum Refusal {
    UnknownPod,
    /// Like [`Self::UnknownPod`], before the list of pods is known.
    PodsNotListed,
    AmbiguousPod(Vec<Arc<Pod>>),
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
}

/// The kind of a request. Clients draw different conclusions from the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A session token.
    Token,
    /// Everything else.
    Value,
}

impl RequestKind {
    pub(super) fn by(route: &Route) -> Self {
        if matches!(route, Route::NewToken { .. }) { Self::Token } else { Self::Value }
    }
}

impl Refusal {
    /// Returns the stable name, which is a metric's label.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::UnknownPod => "unknown-pod",
            Self::PodsNotListed => "pods-not-listed",
            Self::AmbiguousPod(_) => "ambiguous-pod",
            Self::UnreadablePod(_) => "unreadable-pod",
            Self::Objected(_, objection) => objection.name(),
            Self::Denied { denial, .. } => denial.name(),
            Self::OtherRole(_) => "other-role",
            Self::Changed(_) => "changed",
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
            Self::UnknownPod | Self::AmbiguousPod(_) | Self::UnreadablePod(_) if asked == RequestKind::Token => Outcome::Failed,
            // The API or the node's own view is behind, so that SDKs should retry.
            Self::Changed(_) | Self::Objected(..) | Self::PodsNotListed => Outcome::Failed,
            Self::Denied { denial, .. } if denial.may_pass() => Outcome::Failed,
            Self::UnknownPod | Self::AmbiguousPod(_) | Self::UnreadablePod(_) | Self::Denied { .. } | Self::OtherRole(_) => {
                Outcome::NotFound
            }
        }
    }

    /// Logs the refusal for the operator.
    pub(super) fn log(&self, ip: IpAddr) {
        let reason = self.reason();
        match self {
            Self::UnknownPod => warn!(
                event = "request-refused", source = %ip, reason,
                "refused: no pod of this node is known to have this address; pods in the host's network cannot be served"
            ),
            Self::PodsNotListed => warn!(
                event = "request-refused", source = %ip, reason,
                "refused: the list of this node's pods is not known yet; check the connection to the Kubernetes API"
            ),
            Self::AmbiguousPod(pods) => {
                let mut pods: Vec<_> = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
                pods.sort();
                warn!(
                    event = "request-refused", source = %ip, reason, pods = pods.join(", "),
                    advice = "delete the one whose network no longer exists", "refused: more than one pod claims this address"
                );
            }
            Self::UnreadablePod(pod) => {
                warn!(
                    event = "request-refused", namespace = %pod.namespace, pod = %pod.name, source = %ip, reason,
                    advice = "see the log line with the event object-unreadable or object-too-large",
                    "refused: the object of the pod that has this address cannot be read"
                );
            }
            Self::Objected(pod, objection) => {
                let (cause, advice) = explanation(*objection);
                warn!(
                    event = "identity-objection", namespace = %pod.namespace, pod = %pod.name, source = %ip, reason, advice,
                    "refused: {cause}"
                );
            }
            Self::Denied { pod, denial, by_default } => {
                let advice = of_default_role(*by_default, denial.advice());
                warn!(
                    event = "request-refused", namespace = %pod.namespace, pod = %pod.name, source = %ip, reason,
                    advice = advice.as_deref(), "refused: {denial}"
                );
            }
            Self::Changed(pod) => {
                info!(
                    event = "request-refused", namespace = %pod.namespace, pod = %pod.name, source = %ip, reason,
                    "refused: the pod or its role changed during the request, or the connection is older than the pod; SDKs retry, and are \
                     served then"
                );
            }
            Self::OtherRole(pod) => {
                info!(
                    event = "request-refused", namespace = %pod.namespace, pod = %pod.name, source = %ip, reason,
                    advice = "configure its client to use the role that rolegate lists",
                    "refused: the pod requested a role that is not its own"
                );
            }
        }
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
    }
}

//! The log lines about refusals, for the operator.

use std::borrow::Cow;

use tracing::{debug, info, warn};

use super::{Asked, Refusal, RequestKind, setting};
use crate::advice::Advise as _;
use crate::pods::Objection;
use crate::proxy::origin::Origin;
use crate::proxy::route::Rejection;
use crate::text;

impl Refusal {
    /// Logs the refusal for the operator. `again` says that the pod merely looks for credentials, and that this was logged before.
    pub(in crate::proxy) fn log(&self, origin: &Origin, asked: Asked<'_>, again: bool) {
        let (ip, reason, path) = (origin.ip, self.reason(), text::path(asked.path));
        let is_identity = asked.kind == RequestKind::PodIdentity;
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
            Self::UnknownPod if origin.is_of_node => warn!(
                event = "request-refused", source = %ip, reason, path,
                advice = "check the connection to the Kubernetes API, and that --node is the name of this node",
                "refused: no living pod of this node is known to have the UID in the service account token"
            ),
            Self::UnknownPod if is_identity => warn!(
                event = "request-refused", source = %ip, reason, path,
                advice = "for a pod with hostNetwork, set AWS_CONTAINER_CREDENTIALS_FULL_URI to http://127.0.0.1:PORT/v1/credentials, with \
                          the port of --pod-identity-host-port",
                "refused: no pod of this node is known to have this address"
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
            Self::Unavailable(_) if is_identity => warn!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "report this as a bug in rolegate", "refused: the credentials cannot be written as JSON"
            ),
            Self::Unavailable(_) => warn!(
                event = "request-refused", namespace, pod, source = %ip, reason, path,
                advice = "check that the daemon can reach --metadata-addr; see the log lines with the event metadata-read-failed",
                "no answer yet: the value could not be read from the metadata service"
            ),
            Self::Session { request, error, by_default, .. } => warn!(
                event = "credentials-unavailable",
                namespace,
                pod,
                role = %request.role(),
                reason,
                path,
                advice = of_default_role(*by_default, error.advice_for(request)).as_deref(),
                %error,
                "no credentials for the pod; answering with an error, so that its SDK retries"
            ),
            Self::IdentityRejected(_, rejection) => info!(
                event = "request-rejected", namespace, pod, source = %ip, reason, path, advice = about_identity(*rejection),
                "refused: the request is not one for credentials"
            ),
            Self::ServiceAccountToken(_, error) => warn!(
                event = "service-account-token-refused", namespace, pod, source = %ip, reason, path, advice = error.advice().as_deref(),
                "refused: {error}"
            ),
            Self::TokenOfOtherPod(_, claims) => warn!(
                event = "service-account-token-refused", namespace, pod, source = %ip, reason, path,
                token_namespace = %claims.namespace, token_pod = %claims.pod, token_id = claims.token_id.as_deref(),
                advice = "unless the pod has just started, find out how the sender got the token of another pod",
                "refused: the service account token does not belong to the pod at this address"
            ),
            Self::NodeWithoutToken => warn!(
                event = "request-refused", source = %ip, reason, path,
                advice = "for a pod with hostNetwork, set AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE instead of \
                          AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "refused: a process in the node's network requested credentials without a token, so its pod is not known"
            ),
            Self::TokenOfOtherNode(_, claims) => warn!(
                event = "service-account-token-refused", namespace, pod, source = %ip, reason, path,
                token_namespace = %claims.namespace, token_pod = %claims.pod, token_id = claims.token_id.as_deref(),
                advice = "find out how the sender got the token of a pod on another node",
                "refused: the service account token belongs to a pod on another node"
            ),
            Self::Rejected(_, rejection) => info!(
                event = "request-rejected", namespace, pod, source = %ip, reason, path, advice = about(*rejection),
                "refused: the request is not one that a metadata client sends"
            ),
        }
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

/// Returns what to change in the client that sends such requests to an address of Pod Identity.
fn about_identity(rejection: Rejection) -> &'static str {
    match rejection {
        Rejection::Forwarded => "add the address of Pod Identity to NO_PROXY in the pod: the request came through a proxy",
        Rejection::Host => {
            "in the client's URI, such as AWS_CONTAINER_CREDENTIALS_FULL_URI, use the address of Pod Identity itself, not a host name"
        }
        Rejection::Method | Rejection::ConnectionMethod | Rejection::TokenVersion | Rejection::Malformed => {
            "find the client in the pod: only GET /v1/credentials is served at this address"
        }
    }
}

/// Returns the advice; says first that the pod names no role if it has the default role.
fn of_default_role(by_default: bool, advice: Option<Cow<'static, str>>) -> Option<Cow<'static, str>> {
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

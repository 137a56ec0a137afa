//! What a verified token says.

use jiff::Timestamp;

use crate::pods::PodUid;

/// What a verified token says about the pod that it was issued to. The issuer signed the token, the token is for the expected audience, and
/// it was valid when it was verified.
///
/// The claims say nothing about the client that sent the token. The caller compares them with the pod of the connection and with its own
/// node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The namespace of the pod and of its service account.
    pub namespace: String,
    /// The name of the pod.
    pub pod: String,
    /// The UID of the pod, which no other pod ever gets.
    pub pod_uid: PodUid,
    /// The name of the pod's service account.
    pub service_account: String,
    /// The UID of the pod's service account.
    pub service_account_uid: String,
    /// The node of the pod. Kubernetes writes it since 1.30 (feature `ServiceAccountTokenPodNodeInfo`), and older versions do not.
    pub node: Option<NodeClaim>,
    /// The ID of the token (`jti`), which is also in the audit log of the API server. Kubernetes writes it since 1.30.
    pub token_id: Option<String>,
    /// When the token was issued.
    pub issued: Timestamp,
    /// When the token expires.
    pub expires: Timestamp,
}

/// The node that a pod was assigned to when its token was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeClaim {
    /// The name of the node.
    pub name: String,
    /// The UID of the node object. A token has no UID if the node object did not exist.
    pub uid: Option<String>,
}

/// What a token says whose signature has not been verified: anybody could have written it. It can only refuse a token.
#[derive(Debug)]
pub struct UnprovenClaims {
    /// The UID of the pod that the token names.
    pub pod_uid: PodUid,
    /// The node that the token names, if any.
    pub node: Option<String>,
}

impl UnprovenClaims {
    pub(super) fn new(claims: Claims) -> Self {
        Self { pod_uid: claims.pod_uid, node: claims.node.map(|node| node.name) }
    }
}

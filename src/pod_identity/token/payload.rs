//! The claims of a token, as kube-apiserver writes them (`pkg/serviceaccount/claims.go`).

use jiff::Timestamp;
use serde::Deserialize;

use super::claims::{Claims, NodeClaim};
use super::error::TokenError;
use crate::cgroup::is_uid;
use crate::pods::PodUid;
use crate::text::is_object_name;

/// The longest name of a namespace, in bytes (RFC 1123 label).
const MAX_NAMESPACE: usize = 63;
/// The longest ID of a token that is kept, in bytes. Kubernetes writes a UUID.
const MAX_TOKEN_ID: usize = 64;

/// The payload. Members that are not listed are ignored; Kubernetes adds some with each release.
#[derive(Deserialize)]
pub(super) struct Payload {
    pub(super) iss: String,
    sub: String,
    pub(super) aud: Audiences,
    exp: i64,
    nbf: i64,
    iat: i64,
    jti: Option<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

/// One audience, or a list (RFC 7519, section 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Clone, Deserialize)]
struct KubernetesClaims {
    namespace: Option<String>,
    serviceaccount: Option<Reference>,
    pod: Option<Reference>,
    node: Option<Reference>,
}

#[derive(Clone, Deserialize)]
struct Reference {
    name: Option<String>,
    uid: Option<String>,
}

/// The period in which a token is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Period {
    pub(super) issued: Timestamp,
    pub(super) not_before: Timestamp,
    pub(super) expires: Timestamp,
}

impl Audiences {
    pub(super) fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

impl Payload {
    pub(super) fn period(&self) -> Result<Period, TokenError> {
        let time = |seconds, claim| Timestamp::from_second(seconds).map_err(|_| TokenError::BadClaim(claim));
        Ok(Period { issued: time(self.iat, "iat")?, not_before: time(self.nbf, "nbf")?, expires: time(self.exp, "exp")? })
    }

    /// Returns the claims, if all required ones are present and valid.
    pub(super) fn claims(&self) -> Result<Claims, TokenError> {
        let Period { issued, expires, .. } = self.period()?;
        let KubernetesClaims { namespace, serviceaccount, pod, node } = self.kubernetes.clone().ok_or(TokenError::NotOfPod)?;
        let (Some(namespace), Some(account), Some(pod)) = (namespace, serviceaccount, pod) else { return Err(TokenError::NotOfPod) };
        let is_label = is_object_name(&namespace) && namespace.len() <= MAX_NAMESPACE && !namespace.contains('.');
        let namespace = checked(namespace, |_| is_label, "kubernetes.io/namespace")?;
        let service_account = checked(account.name, is_object_name, "kubernetes.io/serviceaccount/name")?;
        let service_account_uid = checked(account.uid, is_uid, "kubernetes.io/serviceaccount/uid")?;
        let name = checked(pod.name, is_object_name, "kubernetes.io/pod/name")?;
        let pod_uid = checked(pod.uid, is_uid, "kubernetes.io/pod/uid")?;
        if self.sub != format!("system:serviceaccount:{namespace}:{service_account}") {
            return Err(TokenError::BadClaim("sub"));
        }
        let is_id = |id: &str| (1..=MAX_TOKEN_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        let token_id = self.jti.clone().map(|id| checked(id, is_id, "jti")).transpose()?;
        let node = node.map(Reference::node).transpose()?;
        let pod_uid = PodUid(pod_uid.into());
        Ok(Claims { namespace, pod: name, pod_uid, service_account, service_account_uid, node, token_id, issued, expires })
    }
}

impl Reference {
    fn node(self) -> Result<NodeClaim, TokenError> {
        let name = checked(self.name, is_object_name, "kubernetes.io/node/name")?;
        let uid = self.uid.map(|uid| checked(uid, is_uid, "kubernetes.io/node/uid")).transpose()?;
        Ok(NodeClaim { name, uid })
    }
}

fn checked(value: impl Into<Option<String>>, is_valid: impl Fn(&str) -> bool, claim: &'static str) -> Result<String, TokenError> {
    value.into().filter(|value| is_valid(value)).ok_or(TokenError::BadClaim(claim))
}

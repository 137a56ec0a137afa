//! What a token says.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// The audience of tokens for EKS Pod Identity.
const AUDIENCE: &str = "pods.eks.amazonaws.com";

/// The claims of a projected token of a pod, as kube-apiserver 1.33 writes them.
///
/// By default, it is for `pods.eks.amazonaws.com`, was issued now, is valid for an hour, and names the service account `default`
/// and the node `node-a`.
#[derive(Clone, Debug)]
pub struct PodToken {
    namespace: String,
    pod: Option<(String, String)>,
    service_account: (String, String),
    node: Option<(String, Option<String>)>,
    audiences: Vec<String>,
    issuer: Option<String>,
    issued: Timestamp,
    lifetime: SignedDuration,
    token_id: Option<String>,
}

impl PodToken {
    /// Creates the claims of this pod.
    #[must_use]
    pub fn new(namespace: &str, pod: &str, uid: &str) -> PodToken {
        PodToken {
            namespace: namespace.to_owned(),
            pod: Some((pod.to_owned(), uid.to_owned())),
            service_account: ("default".to_owned(), "2b9d3f6a-51c8-4e07-b6a4-90c1d7e8f201".to_owned()),
            node: Some(("node-a".to_owned(), Some("7f0c2d1e-8a3b-4c5d-9e6f-a1b2c3d4e5f6".to_owned()))),
            audiences: vec![AUDIENCE.to_owned()],
            issuer: None,
            issued: Timestamp::now(),
            lifetime: SignedDuration::from_hours(1),
            token_id: Some("c7a1f0de-4b52-4f0f-8f57-2d9e6b3c1a90".to_owned()),
        }
    }

    /// Sets the service account.
    #[must_use]
    pub fn service_account(mut self, name: &str, uid: &str) -> PodToken {
        self.service_account = (name.to_owned(), uid.to_owned());
        self
    }

    /// Sets the name of the service account.
    #[must_use]
    pub fn service_account_named(mut self, name: &str) -> PodToken {
        name.clone_into(&mut self.service_account.0);
        self
    }

    /// Sets the node. The API server leaves out the UID if there is no node object.
    #[must_use]
    pub fn node(mut self, name: &str, uid: Option<&str>) -> PodToken {
        self.node = Some((name.to_owned(), uid.map(str::to_owned)));
        self
    }

    /// Leaves out the node and the token's ID, as versions before 1.29 do.
    #[must_use]
    pub fn before_node_info(mut self) -> PodToken {
        (self.node, self.token_id) = (None, None);
        self
    }

    /// Leaves out the pod, as `kubectl create token` does.
    #[must_use]
    pub fn not_of_pod(mut self) -> PodToken {
        (self.pod, self.node) = (None, None);
        self
    }

    /// Sets the audiences.
    #[must_use]
    pub fn audiences(mut self, audiences: &[&str]) -> PodToken {
        self.audiences = audiences.iter().map(|&audience| audience.to_owned()).collect();
        self
    }

    /// Names another issuer than that which signs it.
    #[must_use]
    pub fn issuer(mut self, url: &str) -> PodToken {
        self.issuer = Some(url.to_owned());
        self
    }

    /// Sets when it was issued.
    #[must_use]
    pub fn issued_at(mut self, time: Timestamp) -> PodToken {
        self.issued = time;
        self
    }

    /// Sets for how long it is valid.
    #[must_use]
    pub fn valid_for(mut self, lifetime: SignedDuration) -> PodToken {
        self.lifetime = lifetime;
        self
    }

    /// Returns the payload.
    #[must_use]
    pub fn claims(&self, issuer: &str) -> Value {
        let issued = self.issued.as_second();
        let (account, account_uid) = &self.service_account;
        let mut kubernetes = json!({
            "namespace": self.namespace,
            "serviceaccount": { "name": account, "uid": account_uid },
        });
        if let Some((name, uid)) = &self.node {
            kubernetes["node"] = json!({ "name": name });
            if let Some(uid) = uid {
                kubernetes["node"]["uid"] = uid.as_str().into();
            }
        }
        if let Some((name, uid)) = &self.pod {
            kubernetes["pod"] = json!({ "name": name, "uid": uid });
        }
        let mut claims = json!({
            "aud": self.audiences,
            "exp": issued + self.lifetime.as_secs(),
            "iat": issued,
            "iss": self.issuer.as_deref().unwrap_or(issuer),
            "kubernetes.io": kubernetes,
            "nbf": issued,
            "sub": format!("system:serviceaccount:{}:{account}", self.namespace),
        });
        if let Some(id) = &self.token_id {
            claims["jti"] = id.as_str().into();
        }
        claims
    }
}

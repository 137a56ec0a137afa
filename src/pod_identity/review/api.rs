//! TokenReview requests to the Kubernetes API (`authentication.k8s.io/v1`).

use std::borrow::Cow;
use std::collections::HashMap;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;

use crate::advice::Advise;
use crate::kubernetes::client::{Client, RequestError};
use crate::pod_identity::token::{BearerToken, Claims};

const TARGET: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Where the API server names the pod that a token is bound to (Kubernetes `pkg/serviceaccount`, `PodUIDKey`).
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks whether tokens are valid.
pub trait TokenReviewer: Send + Sync + 'static {
    /// Returns what the API says of a valid token; `None` if the token is not valid for this audience.
    fn review<'a>(&'a self, token: &'a BearerToken, audience: &'a str) -> BoxFuture<'a, Result<Option<ReviewedToken>, ReviewError>>;
}

/// What the API says of a valid token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReviewedToken {
    /// The user that the token authenticates.
    pub user: ReviewedUser,
    /// Those of the audiences in question that the token is for.
    pub audiences: Vec<String>,
}

/// The user that a token authenticates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReviewedUser {
    /// `system:serviceaccount:NAMESPACE:NAME`
    pub username: String,
    /// The UID of the service account.
    pub uid: String,
    /// More about the token, such as its pod.
    pub extra: HashMap<String, Vec<String>>,
}

/// The reason why a token could not be reviewed.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API did not accept the request, or did not answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The answer is not a TokenReview.
    #[error("the answer of the Kubernetes API to a TokenReview is malformed")]
    Malformed,
    /// The API took too long.
    #[error("the Kubernetes API did not answer a TokenReview in time")]
    Slow,
}

impl Advise for ReviewError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Request(error) if error.code() == Some(403) => Some(
                "let rolegate's service account create tokenreviews.authentication.k8s.io, as the component \
                 daemonset/pod-identity-token-review does, or remove --pod-identity-token-review"
                    .into(),
            ),
            Self::Request(error) => error.advice(),
            Self::Malformed => None,
            Self::Slow => Some("check the connection to the API server, and its load".into()),
        }
    }
}

impl ReviewedToken {
    /// Returns whether this is the pod and the service account of these claims.
    pub(super) fn confirms(&self, claims: &Claims, audience: &str) -> bool {
        let Self { user, audiences } = self;
        let of_pod = user.extra.get(POD_UID).map(Vec::as_slice);
        user.username == format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account)
            && user.uid == claims.service_account_uid
            && matches!(of_pod, Some([uid]) if **uid == *claims.pod_uid.0)
            && audiences.iter().any(|one| one == audience)
    }
}

#[derive(Deserialize)]
struct TokenReview {
    status: TokenReviewStatus,
}

#[derive(Deserialize)]
struct TokenReviewStatus {
    #[serde(default)]
    authenticated: bool,
    #[serde(flatten)]
    token: ReviewedToken,
}

/// Sends TokenReviews to the API server. This requires the verb `create` of `tokenreviews`.
#[derive(Debug)]
pub struct ApiTokenReviewer(Client);

impl ApiTokenReviewer {
    /// Creates a reviewer that uses this client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl TokenReviewer for ApiTokenReviewer {
    fn review<'a>(&'a self, token: &'a BearerToken, audience: &'a str) -> BoxFuture<'a, Result<Option<ReviewedToken>, ReviewError>> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token.text(), "audiences": [audience] },
        });
        async move {
            let answer = self.0.create(TARGET, review.to_string().into_bytes()).await?;
            let TokenReview { status } = serde_json::from_slice(&answer).map_err(|_| ReviewError::Malformed)?;
            Ok(status.authenticated.then_some(status.token))
        }
        .boxed()
    }
}

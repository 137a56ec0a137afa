//! The reason why a token is refused.

use std::borrow::Cow;

use crate::advice::Advise;

/// The reason why a token is refused. No text of the token is part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The request has no header for it.
    #[error("the request has no header Authorization, in which the service account token is sent")]
    Missing,
    /// The token or one of its parts is longer than the limit.
    #[error("the service account token is too large")]
    TooLarge,
    /// It is not three parts of base64url text.
    #[error("the authorization header does not contain a service account token")]
    NotCompact,
    /// Its header is not a JSON object with an algorithm.
    #[error("the header of the service account token is malformed")]
    BadHeader,
    /// Its header has `crit`: a verifier that does not know these extensions must refuse the token. Kubernetes uses none.
    #[error("the service account token has critical extensions, which rolegate does not support")]
    CriticalExtension,
    /// Its header names ES512, or an algorithm that Kubernetes does not sign with, such as `none` or HMAC.
    #[error("the service account token names an algorithm that rolegate does not accept")]
    UnsupportedAlgorithm,
    /// Its header has no key ID, or one that is too long.
    #[error("the service account token names no key")]
    BadKeyId,
    /// Its payload is not the JSON object that Kubernetes writes.
    #[error("the claims of the service account token are malformed")]
    BadPayload,
    /// The value of a claim is not valid.
    #[error("the claim {0} of the service account token is not valid")]
    BadClaim(&'static str),
    /// It has expired.
    #[error("the service account token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the service account token is not valid yet")]
    NotYetValid,
    /// Another issuer, such as another cluster, issued it.
    #[error("the service account token is from another issuer")]
    WrongIssuer,
    /// It is for another audience, such as the Kubernetes API.
    #[error("the service account token is for another audience")]
    WrongAudience,
    /// It is not bound to a pod.
    #[error("the service account token is not bound to a pod")]
    NotOfPod,
    /// The issuer has no key of this ID. If the token does not name the pod that sent it, only the keys that are known were searched.
    #[error("the service account token names a key that the issuer does not have")]
    UnknownKey,
    /// The algorithm in its header is not that of the key which it names.
    #[error("the service account token names another algorithm than that of its key")]
    WrongAlgorithm,
    /// The signature does not match.
    #[error("the signature of the service account token is not valid")]
    BadSignature,
    /// The keys of the issuer have not been fetched yet.
    #[error("the keys of the service account issuer are not known yet")]
    NoKeys,
    /// It names a key that is not known, and the current keys could not be fetched in time.
    #[error("the service account token names a key that is not known yet, and the issuer's keys could not be fetched in time")]
    KeysOutdated,
    /// It names a key that is not known, and earlier tokens of the pod or its namespace caused fetches of the keys that changed nothing.
    #[error(
        "the service account token names a key that is not known; earlier tokens of this pod or its namespace did, too, and the issuer's \
         keys had not changed, so they are not fetched again yet"
    )]
    FetchesLimited,
    /// The API server does not confirm it (`--pod-identity-token-review`).
    #[error("the Kubernetes API does not confirm the service account token, or says that it is of another pod or service account")]
    ReviewRefused,
    /// The API server could not be asked, and has not confirmed it before.
    #[error("the Kubernetes API could not be asked whether the service account token is still valid")]
    ReviewUnavailable,
}

/// What a refusal means to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenErrorKind {
    /// There is no token: status 400. The client does not know the protocol well enough.
    Missing,
    /// The token cannot be read: status 400.
    Malformed,
    /// The token has expired or is not valid yet: status 400. The client reads its file again.
    Expired,
    /// The token is not from this cluster, or not for this purpose: status 403.
    Foreign,
    /// The token cannot be verified at the moment: status 503. The client retries.
    Unavailable,
}

impl TokenErrorKind {
    /// Returns the HTTP status.
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::Missing | Self::Malformed | Self::Expired => http::StatusCode::BAD_REQUEST,
            Self::Foreign => http::StatusCode::FORBIDDEN,
            Self::Unavailable => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl TokenError {
    /// All reasons, for documentation and metrics. The claim of [`TokenError::BadClaim`] is not part of the name.
    pub const ALL: [Self; 22] = [
        Self::Missing,
        Self::TooLarge,
        Self::NotCompact,
        Self::BadHeader,
        Self::CriticalExtension,
        Self::UnsupportedAlgorithm,
        Self::BadKeyId,
        Self::BadPayload,
        Self::BadClaim("exp"),
        Self::Expired,
        Self::NotYetValid,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::NotOfPod,
        Self::UnknownKey,
        Self::WrongAlgorithm,
        Self::BadSignature,
        Self::NoKeys,
        Self::KeysOutdated,
        Self::FetchesLimited,
        Self::ReviewRefused,
        Self::ReviewUnavailable,
    ];

    /// Returns the stable name of the reason, used as a metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "token-missing",
            Self::TooLarge => "token-too-large",
            Self::NotCompact => "token-not-compact",
            Self::BadHeader => "token-bad-header",
            Self::CriticalExtension => "token-critical-extension",
            Self::UnsupportedAlgorithm => "token-unsupported-algorithm",
            Self::BadKeyId => "token-bad-key-id",
            Self::BadPayload => "token-bad-payload",
            Self::BadClaim(_) => "token-bad-claim",
            Self::Expired => "token-expired",
            Self::NotYetValid => "token-not-yet-valid",
            Self::WrongIssuer => "token-wrong-issuer",
            Self::WrongAudience => "token-wrong-audience",
            Self::NotOfPod => "token-not-of-pod",
            Self::UnknownKey => "token-unknown-key",
            Self::WrongAlgorithm => "token-wrong-algorithm",
            Self::BadSignature => "token-bad-signature",
            Self::NoKeys => "token-no-keys",
            Self::KeysOutdated => "token-keys-outdated",
            Self::FetchesLimited => "token-fetches-limited",
            Self::ReviewRefused => "token-review-refused",
            Self::ReviewUnavailable => "token-review-unavailable",
        }
    }

    /// Returns what the refusal means to the client.
    pub fn kind(self) -> TokenErrorKind {
        match self {
            Self::Missing => TokenErrorKind::Missing,
            Self::TooLarge
            | Self::NotCompact
            | Self::BadHeader
            | Self::CriticalExtension
            | Self::UnsupportedAlgorithm
            | Self::BadKeyId
            | Self::BadPayload
            | Self::BadClaim(_) => TokenErrorKind::Malformed,
            Self::Expired | Self::NotYetValid => TokenErrorKind::Expired,
            Self::WrongIssuer
            | Self::WrongAudience
            | Self::NotOfPod
            | Self::UnknownKey
            | Self::WrongAlgorithm
            | Self::BadSignature
            | Self::ReviewRefused => TokenErrorKind::Foreign,
            Self::NoKeys | Self::KeysOutdated | Self::FetchesLimited | Self::ReviewUnavailable => TokenErrorKind::Unavailable,
        }
    }
}

impl Advise for TokenError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        let advice = match self {
            Self::Missing => {
                "update the AWS SDK in the container to a version that knows AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, and set this variable; \
                 if it cannot be updated, remove AWS_CONTAINER_CREDENTIALS_FULL_URI from the container, which then uses the metadata \
                 service"
            }
            Self::TooLarge
            | Self::NotCompact
            | Self::BadHeader
            | Self::CriticalExtension
            | Self::BadKeyId
            | Self::BadPayload
            | Self::BadClaim(_) => "set AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE to the path of a projected service account token",
            Self::UnsupportedAlgorithm => {
                "let the API server sign with an RSA key, or an EC key on P-256 or P-384; rolegate does not support P-521"
            }
            Self::WrongAlgorithm => "find the client in the pod: no API server issues such a token",
            Self::Expired => "let the application read the token file for each request; the kubelet replaces it before it expires",
            Self::NotYetValid => "synchronize the clocks of the node and of the control plane",
            Self::WrongIssuer => "use a token of this cluster, and compare its claim iss with the issuer that rolegate expects",
            Self::WrongAudience => "set the audience of the pod's projected token to the one that rolegate expects",
            Self::NotOfPod => "use a projected service account token of the pod itself, not one of a Secret or of kubectl create token",
            Self::UnknownKey | Self::BadSignature | Self::FetchesLimited => {
                "use a token of this cluster; if it is one, check that all API servers have the same --service-account-key-file"
            }
            Self::ReviewRefused => {
                "recreate the pod, if its service account was deleted or replaced; otherwise find out who withdrew the token"
            }
            Self::ReviewUnavailable => {
                "check the connection to the API server, and that rolegate may create tokenreviews (component \
                 daemonset/pod-identity-token-review)"
            }
            Self::NoKeys | Self::KeysOutdated => {
                "check the connection to the API server, and that rolegate may read /openid/v1/jwks and \
                 /.well-known/openid-configuration (ClusterRole system:service-account-issuer-discovery)"
            }
        };
        Some(advice.into())
    }
}

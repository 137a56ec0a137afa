//! The errors that clients of Pod Identity get. A message says nothing about other pods, roles or the node.

use http::StatusCode;

use crate::pod_identity::token::TokenErrorKind;
use crate::proxy::refusal::Refusal;
use crate::proxy::respond::IdentityError;
use crate::proxy::route::Rejection;

const fn error(status: StatusCode, code: &'static str, message: &'static str) -> IdentityError {
    IdentityError { status, code, message }
}

const DENIED: IdentityError = error(StatusCode::FORBIDDEN, "AccessDeniedException", "This pod is not allowed to have credentials.");
const DENIED_WITH_EVENT: IdentityError =
    error(StatusCode::FORBIDDEN, "AccessDeniedException", "This pod is not allowed to have credentials. See the Events of the pod.");
const UNAVAILABLE: IdentityError =
    error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableException", "The pod cannot be identified at the moment. Try again.");

impl Refusal {
    /// Returns the error for a client of Pod Identity. On 4xx, SDKs give up; on 429 and 5xx, they try again. `has_events` says whether Events
    /// are written at all.
    pub(in crate::proxy) fn identity_error(&self, has_events: bool) -> IdentityError {
        let error = self.error_for_client();
        if error == DENIED && has_events && self.event().is_some() { DENIED_WITH_EVENT } else { error }
    }

    fn error_for_client(&self) -> IdentityError {
        match self {
            Self::IdentityRejected(_, rejection) | Self::Rejected(_, rejection) => rejected(*rejection),
            Self::ServiceAccountToken(_, token) => match token.kind() {
                TokenErrorKind::Missing => error(
                    StatusCode::BAD_REQUEST,
                    "InvalidTokenException",
                    "The header Authorization is missing. Use an SDK that supports AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE.",
                ),
                TokenErrorKind::Malformed => error(
                    StatusCode::BAD_REQUEST,
                    "InvalidTokenException",
                    "The header Authorization must contain a service account token.",
                ),
                TokenErrorKind::Expired => {
                    error(StatusCode::BAD_REQUEST, "ExpiredTokenException", "The service account token has expired, or is not valid yet.")
                }
                TokenErrorKind::Foreign => {
                    error(StatusCode::FORBIDDEN, "AccessDeniedException", "The service account token is not valid here.")
                }
                TokenErrorKind::Unavailable => {
                    error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableException", "The token cannot be verified yet. Try again.")
                }
            },
            Self::NodeWithoutToken => error(
                StatusCode::FORBIDDEN,
                "AccessDeniedException",
                "Pods with hostNetwork get credentials only in exchange for a token. Use AWS_CONTAINER_CREDENTIALS_FULL_URI.",
            ),
            Self::TokenOfOtherPod(..) | Self::TokenOfOtherNode(..) => {
                error(StatusCode::FORBIDDEN, "AccessDeniedException", "The service account token does not belong to this pod.")
            }
            Self::Session { error: failure, .. } if failure.is_throttled() => {
                error(StatusCode::TOO_MANY_REQUESTS, "ThrottlingException", "Too many requests for credentials. Try again.")
            }
            Self::Session { error: failure, .. } if failure.is_refusal() => DENIED,
            Self::Session { .. } => {
                error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerException", "The credentials could not be obtained. Try again.")
            }
            Self::Denied { denial, .. } if !denial.may_pass() => DENIED,
            Self::UnknownPod
            | Self::UnreadablePod(_)
            | Self::AmbiguousAddress(_)
            | Self::HostNetwork(_)
            | Self::OtherRole(_)
            | Self::Token { .. }
            | Self::Path { .. } => DENIED,
            Self::Denied { .. }
            | Self::UnknownCgroup
            | Self::HostNetworkExempt(_)
            | Self::PodsNotListed
            | Self::Objected(..)
            | Self::Changed(_)
            | Self::Absent(_)
            | Self::Unavailable(_) => UNAVAILABLE,
        }
    }
}

fn rejected(rejection: Rejection) -> IdentityError {
    match rejection {
        Rejection::Host => error(StatusCode::FORBIDDEN, "AccessDeniedException", "The header Host names another host."),
        Rejection::Forwarded => error(StatusCode::FORBIDDEN, "AccessDeniedException", "The request came through a proxy."),
        Rejection::Method | Rejection::ConnectionMethod => {
            error(StatusCode::METHOD_NOT_ALLOWED, "InvalidRequestException", "Only GET is served.")
        }
        Rejection::Malformed | Rejection::TokenVersion => {
            error(StatusCode::BAD_REQUEST, "InvalidRequestException", "Only GET /v1/credentials is served.")
        }
    }
}

//! The one place that makes HTTP answers for pods.
//!
//! Every refusal has an empty body: clients that take any body for data (aws-c-auth) find none, and nothing is told to a
//! pod that the operator's log does not keep to itself. The statuses are those that SDKs act rightly on: 404 where there
//! is no role (the chain goes on), 401 for a token, 500 and no other where STS fails or something is not known yet (retried, or
//! the old credentials kept).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::route::{Rejection, TOKEN_TTL};

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A session token.
    Token {
        /// The token.
        token: String,
        /// Its life, in seconds: SDKs need it in a header.
        ttl_seconds: u32,
    },
    /// A document, or the name of the role.
    Text(Bytes),
    /// Not looked at.
    Rejected(Rejection),
    /// No token, or none that is valid.
    Unauthorized,
    /// Not here, or not for this pod.
    NotFound,
    /// Not now: there are no credentials to give for an allowed role, or it is not known yet what to answer.
    Failed,
}

/// The answer to a pod.
pub(crate) fn respond(outcome: Outcome) -> Response<Full<Bytes>> {
    let (status, body) = match &outcome {
        Outcome::Token { token, .. } => (StatusCode::OK, Bytes::copy_from_slice(token.as_bytes())),
        Outcome::Text(text) => (StatusCode::OK, text.clone()),
        Outcome::Rejected(Rejection::Malformed) => (StatusCode::BAD_REQUEST, Bytes::new()),
        Outcome::Rejected(Rejection::Forwarded | Rejection::Host | Rejection::TokenVersion) => (StatusCode::FORBIDDEN, Bytes::new()),
        Outcome::Rejected(Rejection::Method | Rejection::ConnectionMethod) => (StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
        Outcome::Unauthorized => (StatusCode::UNAUTHORIZED, Bytes::new()),
        Outcome::NotFound => (StatusCode::NOT_FOUND, Bytes::new()),
        Outcome::Failed => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("EC2ws"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    match outcome {
        Outcome::Token { ttl_seconds, .. } => {
            headers.insert(TOKEN_TTL, HeaderValue::from(ttl_seconds));
        }
        Outcome::Rejected(Rejection::Malformed | Rejection::Host | Rejection::ConnectionMethod) => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

//! The only place that makes HTTP responses for pods.
//!
//! SDKs act on the status: 404 if there is no role (the credential chain goes on), 401 for a token, and only 500 if STS fails or
//! something is not known yet (they retry, or keep what they have). The body of a refusal never says more than the status.
//!
//! Whether a refusal has a body depends on what clients do with it:
//!
//! - 401 has one. The SDK for C++ of 2020 to 2023 takes an error without a body for a network error. After one failed request for a
//!   token, it would then never learn that tokens are required.
//! - Refusals of requests for tokens have one, for the same reason: 400 makes that SDK try again later, and a network error makes it
//!   go on without tokens.
//! - Other refusals of GET have none. aws-c-auth takes the body of any status but 401 for data, such as the name of a role.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use http::{Method, Response, StatusCode};
use http_body_util::Full;

use super::route::{Rejection, TOKEN_TTL};

/// The outcome of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A session token.
    Token {
        /// The token.
        token: String,
        /// The lifetime in seconds, which SDKs expect in a header.
        ttl_seconds: u32,
    },
    /// A document, or the name of the role.
    Text(Bytes),
    /// Refused before anything was looked up.
    Rejected(Rejection),
    /// There is no token, or it is not valid.
    Unauthorized,
    /// The resource does not exist, or not for this pod.
    NotFound,
    /// There are no credentials for an allowed role, or the answer is not known yet.
    Failed,
}

/// The error document: `{"Code": "…", "Message": "…"}`. SDKs show both. The codes are those of the EKS Auth API
/// (AssumeRoleForPodIdentity, "Errors").
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct IdentityError {
    /// The status.
    #[serde(skip)]
    pub(crate) status: StatusCode,
    /// One word.
    pub(crate) code: &'static str,
    /// One sentence.
    pub(crate) message: &'static str,
}

/// Returns the response to a request with this method.
pub(crate) fn respond(outcome: Outcome, method: &Method) -> Response<Full<Bytes>> {
    let (status, body) = match &outcome {
        Outcome::Token { token, .. } => (StatusCode::OK, Bytes::copy_from_slice(token.as_bytes())),
        Outcome::Text(text) => (StatusCode::OK, text.clone()),
        Outcome::Rejected(Rejection::Malformed) => refusal(StatusCode::BAD_REQUEST, method),
        Outcome::Rejected(Rejection::Forwarded | Rejection::Host | Rejection::TokenVersion) => refusal(StatusCode::FORBIDDEN, method),
        Outcome::Rejected(Rejection::Method | Rejection::ConnectionMethod) => refusal(StatusCode::METHOD_NOT_ALLOWED, method),
        Outcome::Unauthorized => refusal(StatusCode::UNAUTHORIZED, method),
        Outcome::NotFound => refusal(StatusCode::NOT_FOUND, method),
        Outcome::Failed => refusal(StatusCode::INTERNAL_SERVER_ERROR, method),
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

/// Returns the credentials for a client of Pod Identity.
pub(super) fn identity_document(document: Bytes) -> Response<Full<Bytes>> {
    json(StatusCode::OK, document)
}

/// Returns an error for a client of Pod Identity.
pub(super) fn identity_error(error: &IdentityError) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(error).unwrap_or_default();
    let mut response = json(error.status, body.into());
    if error.status == StatusCode::BAD_REQUEST {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns a refusal, with a body if clients need one.
fn refusal(status: StatusCode, method: &Method) -> (StatusCode, Bytes) {
    let reads_data = matches!(*method, Method::GET | Method::HEAD);
    let has_body = status == StatusCode::UNAUTHORIZED || !reads_data;
    let body = status.canonical_reason().filter(|_| has_body).unwrap_or_default();
    (status, Bytes::from_static(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    fn all_refusals() -> Vec<Outcome> {
        use Rejection::{ConnectionMethod, Forwarded, Host, Malformed, Method, TokenVersion};
        let rejections = [Malformed, Forwarded, Host, Method, ConnectionMethod, TokenVersion].map(Outcome::Rejected);
        rejections.into_iter().chain([Outcome::Unauthorized, Outcome::NotFound, Outcome::Failed]).collect()
    }

    #[tokio::test]
    async fn a_refusal_has_a_body_where_no_client_takes_it_for_data() {
        for (method, has_bodies) in [(Method::GET, false), (Method::HEAD, false), (Method::PUT, true), (Method::POST, true)] {
            for outcome in all_refusals() {
                let response = respond(outcome, &method);
                let status = response.status();
                let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                assert_eq!(!body.is_empty(), has_bodies || status == StatusCode::UNAUTHORIZED, "{method}: {status}");
                assert!(body.len() < 32 && !body.contains(&b'\n'), "{body:?}");
            }
        }
    }
}

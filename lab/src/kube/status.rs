//! Errors in the form of the `Status` objects that a Kubernetes API server returns.

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::info::ResourceInfo;
use super::json::encode;
use crate::serve::{Body, full};

/// An error answer: the status code, and the fields of the `Status` object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    /// Boxed, to keep results small.
    pub(super) details: Option<Box<Value>>,
    /// The seconds for the header and for `details.retryAfterSeconds`.
    pub(super) retry_after: Option<u64>,
    /// `metadata.continue`.
    pub(super) continue_token: Option<String>,
}

impl ApiError {
    pub(super) fn new(code: u16, reason: &str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason: reason.to_owned(), message: message.into(), details: None, retry_after: None, continue_token: None }
    }

    pub(super) fn with_details(mut self, details: Value) -> ApiError {
        self.details = Some(Box::new(details));
        self
    }

    pub(super) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> ApiError {
        ApiError::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn forbidden(user: &str, verb: &str, resource: ResourceInfo<'_>, namespace: Option<&str>, name: Option<&str>) -> ApiError {
        let scope = match namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let ResourceInfo { group, plural } = resource;
        let subject = match name {
            Some(name) => format!("{} \"{name}\"", resource.qualified()),
            None => resource.qualified(),
        };
        let message =
            format!("{subject} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" in API group \"{group}\" {scope}");
        ApiError::new(403, "Forbidden", message).with_details(resource.details(name))
    }

    pub(super) fn not_found(resource: ResourceInfo<'_>, name: &str) -> ApiError {
        ApiError::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified())).with_details(resource.details(Some(name)))
    }

    pub(super) fn unknown_path() -> ApiError {
        ApiError::new(404, "NotFound", "the server could not find the requested resource").with_details(json!({}))
    }

    pub(super) fn method_not_allowed() -> ApiError {
        ApiError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource").with_details(json!({}))
    }

    pub(super) fn not_acceptable() -> ApiError {
        let media_types = "only the following media types are accepted: application/json, \
            application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        ApiError::new(406, "NotAcceptable", media_types)
    }

    /// Returns the error for a version whose history is gone: `version` is older than `oldest`, the first from which a client
    /// can continue.
    pub(super) fn too_old(version: u64, oldest: u64) -> ApiError {
        ApiError::new(410, "Expired", format!("too old resource version: {version} ({oldest})"))
    }

    /// Returns the error for a version that does not exist yet, because the client has seen a later version of another server.
    pub(super) fn too_new(version: u64, current: u64) -> ApiError {
        let message = format!("Timeout: Too large resource version: {version}, current: {current}");
        ApiError { retry_after: Some(1), ..ApiError::new(504, "Timeout", message) }.with_details(json!({ "causes": [{
            "reason": "ResourceVersionTooLarge",
            "message": "Too large resource version",
        }] }))
    }

    /// Returns the error for a write that expected another version of the object.
    pub(super) fn conflict(resource: ResourceInfo<'_>, name: &str) -> ApiError {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes to \
             the latest version and try again",
            resource.qualified()
        );
        ApiError::new(409, "Conflict", message).with_details(resource.details(Some(name)))
    }

    /// Returns the error for list or watch options that contradict each other.
    pub(super) fn invalid_options(message: &str) -> ApiError {
        ApiError::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {message}"))
            .with_details(json!({ "group": "meta.k8s.io", "kind": "ListOptions" }))
    }

    /// Returns the `Status` object.
    pub(super) fn object(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = Value::clone(details);
        }
        if let Some(seconds) = self.retry_after {
            status["details"]["retryAfterSeconds"] = seconds.into();
        }
        if let Some(token) = &self.continue_token {
            status["metadata"]["continue"] = token.as_str().into();
        }
        status
    }

    pub(super) fn response(&self) -> Response<Body> {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(code, &self.object());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Returns an answer that consists of one JSON document.
pub(super) fn json_response(code: StatusCode, document: &Value) -> Response<Body> {
    let mut response = Response::new(full(encode(document)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

//! Lists in pages, and the starting points of lists and watches.
//!
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::documents::Key;
use super::objects::{Resource, Shape};
use super::request::Call;
use super::selector::Selector;
use super::status::ApiError;
use super::store::{Snapshot, Store};
use super::subscription::Start;

/// Answers a list request.
pub(super) fn list(store: &Store, call: &Call, shape: Shape, resource: Resource, namespace: Option<&str>) -> Result<Value, ApiError> {
    let selector = Selector::parse(resource, namespace, call.parameter("fieldSelector"), call.parameter("labelSelector"))?;
    let version = call.number("resourceVersion")?;
    let mut limit = call.number("limit")?.filter(|&limit| limit > 0);
    let snapshot = match (call.parameter("continue"), version) {
        (Some(_), Some(version)) if version > 0 => {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        (Some(token), _) => continued(token)?,
        (None, version) => begun(store, call, version)?,
    };
    if version == Some(0) && snapshot == Snapshot::Latest {
        // The watch cache answers such a list, and does not support pages.
        limit = None;
    }
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let page = store.list(resource, &selector, &snapshot, limit).map_err(|error| match &snapshot {
        Snapshot::At(_, Some(key)) if error.code == 410 => expired(store.version(), key),
        _ => error,
    })?;
    let mut metadata = json!({ "resourceVersion": page.version.to_string() });
    if let Some(last) = &page.more {
        metadata["continue"] = token(page.version, last).into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let items = page.items.iter().map(|object| shape.item(object));
    Ok(shape.list(resource, metadata, items.collect()))
}

/// Returns the state that the first page shows, from `resourceVersion` and `resourceVersionMatch`.
fn begun(store: &Store, call: &Call, version: Option<u64>) -> Result<Snapshot, ApiError> {
    let forbidden = |message: &str| Err(ApiError::invalid_options(&format!("resourceVersionMatch: Forbidden: {message}")));
    match (call.parameter("resourceVersionMatch"), version) {
        (None, None | Some(0)) | (Some("NotOlderThan"), Some(0)) => Ok(Snapshot::Latest),
        (Some(_), None) => forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        (Some("Exact"), Some(0)) => forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""),
        (Some("Exact"), Some(version)) => Ok(Snapshot::At(version, None)),
        (None | Some("NotOlderThan"), Some(version)) => {
            // The latest state satisfies this, unless the client has seen a version that does not exist here yet: then the list
            // fails.
            Ok(match version > store.version() {
                true => Snapshot::At(version, None),
                false => Snapshot::Latest,
            })
        }
        (Some(other), _) => Err(ApiError::invalid_options(&format!("resourceVersionMatch: Unsupported value: \"{other}\""))),
    }
}

/// Returns where a watch begins.
pub(super) fn watch_start(call: &Call, streaming_lists: bool) -> Result<Start, ApiError> {
    let version = call.number("resourceVersion")?;
    let forbidden = |field: &str, message: &str| Err(ApiError::invalid_options(&format!("{field}: Forbidden: {message}")));
    let version_match = call.parameter("resourceVersionMatch");
    match call.flag("sendInitialEvents") {
        Some(_) if !streaming_lists => {
            forbidden("sendInitialEvents", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
        }
        Some(_) if version_match != Some("NotOlderThan") => {
            forbidden("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        }
        Some(true) => Ok(Start::Everything { mark_end: true }),
        Some(false) => Ok(match version {
            None | Some(0) => Start::Now,
            Some(version) => Start::After(version),
        }),
        None if version_match.is_some() => {
            forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
        }
        None => Ok(match version {
            None | Some(0) => Start::Everything { mark_end: false },
            Some(version) => Start::After(version),
        }),
    }
}

/// Returns a `continue` token, in the form of a real server's.
fn token(version: u64, (namespace, name): &Key) -> String {
    let start = format!("{namespace}/{name}\u{0}");
    let token = json!({ "v": "meta.k8s.io/v1", "rv": version, "start": start });
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn continued(token: &str) -> Result<Snapshot, ApiError> {
    let invalid = || ApiError::bad_request("continue key is not valid");
    let token = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let token: Value = serde_json::from_slice(&token).map_err(|_| invalid())?;
    let version = token["rv"].as_u64().ok_or_else(invalid)?;
    let start = token["start"].as_str().and_then(|start| {
        let (namespace, name) = start.strip_suffix('\u{0}')?.split_once('/')?;
        Some((namespace.to_owned(), name.to_owned()))
    });
    Ok(Snapshot::At(version, Some(start.ok_or_else(invalid)?)))
}

/// Returns the error for a token whose history is gone. As on a real server, it contains a token with which the client can
/// continue inconsistently.
fn expired(version: u64, last: &Key) -> ApiError {
    ApiError {
        continue_token: Some(token(version, last)),
        ..ApiError::new(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
        )
    }
}

//! Event objects of the core and the `events.k8s.io` groups, with the validation of a real server: an event that a cluster
//! would reject is rejected here.

use serde_json::{Value, json};

use super::documents::{merge, now, uid_of};
use super::status::ApiError;

/// The newer of the two API groups.
pub(super) const NEW_GROUP: &str = "events.k8s.io";

/// The maximum size of a `note` or `message`, in bytes.
const NOTE_LIMIT: usize = 1024;
/// The maximum size of `action`, `reason` and `reportingInstance`, in bytes.
const WORD_LIMIT: usize = 128;
/// The maximum size of an object's name, in bytes.
const NAME_LIMIT: usize = 253;
/// The fields that an update through the newer group must not change (`ValidateEventUpdate`).
const IMMUTABLE: [&str; 9] =
    ["regarding", "related", "reason", "note", "type", "eventTime", "action", "reportingController", "reportingInstance"];
/// The fields that only the older group sets.
const DEPRECATED: [&str; 4] = ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource"];

/// The events that were posted, in order, with later patches applied.
#[derive(Debug, Default)]
pub(super) struct Events {
    events: Vec<Value>,
}

impl Events {
    pub(super) fn all(&self) -> Vec<Value> {
        self.events.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn create(&mut self, group: &str, namespace: &str, version: u64, mut event: Value) -> Result<Value, ApiError> {
        let metadata = &mut event["metadata"];
        match metadata["namespace"].as_str() {
            None | Some("") => metadata["namespace"] = namespace.into(),
            Some(own) if own != namespace => {
                return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
            }
            Some(_) => {}
        }
        if metadata["name"].as_str().is_none_or(str::is_empty) {
            let prefix = metadata["generateName"].as_str().unwrap_or_default();
            metadata["name"] = format!("{prefix}{:05x}", self.events.len()).into();
        }
        validate(group, namespace, &event)?;
        if group == NEW_GROUP {
            validate_new(&event)?;
            validate_series(&event)?;
        }
        let name = event["metadata"]["name"].clone();
        if self.position(namespace, &name).is_some() {
            return Err(ApiError::new(409, "AlreadyExists", format!("events {name} already exists")));
        }
        let metadata = &mut event["metadata"];
        metadata["uid"] = uid_of(version).into();
        metadata["resourceVersion"] = version.to_string().into();
        metadata["creationTimestamp"] = now().into();
        self.events.push(event.clone());
        Ok(event)
    }

    pub(super) fn patch(&mut self, group: &str, namespace: &str, name: &str, patch: &Value) -> Result<Value, ApiError> {
        let Some(at) = self.position(namespace, &name.into()) else {
            let info = super::info::ResourceInfo { group, plural: "events" };
            return Err(ApiError::not_found(info, name));
        };
        let mut event = self.events[at].clone();
        merge(&mut event, patch);
        validate(group, namespace, &event)?;
        if group == NEW_GROUP {
            if event["series"] != self.events[at]["series"] {
                validate_series(&event)?;
            }
            if let Some(field) = IMMUTABLE.into_iter().find(|field| event[field] != self.events[at][field]) {
                return Err(invalid(group, &event, field, "Invalid value: field is immutable"));
            }
        }
        self.events[at] = event.clone();
        Ok(event)
    }

    fn position(&self, namespace: &str, name: &Value) -> Option<usize> {
        self.events.iter().position(|event| event["metadata"]["namespace"] == namespace && event["metadata"]["name"] == *name)
    }
}

fn invalid(group: &str, event: &Value, field: &str, what: &str) -> ApiError {
    let name = event["metadata"]["name"].as_str().unwrap_or_default();
    let message = format!("Event \"{name}\" is invalid: {field}: {what}");
    ApiError::new(422, "Invalid", message).with_details(json!({
        "name": name, "group": group, "kind": "Event",
        "causes": [{ "reason": "FieldValueInvalid", "message": what, "field": field }],
    }))
}

/// Validates what is checked only when an event is created through the newer group: `ValidateEventCreate` of kubernetes'
/// `pkg/apis/core/validation/events.go`, and fields that cannot be decoded at all.
fn validate_new(event: &Value) -> Result<(), ApiError> {
    let invalid = |field: &str, what: &str| invalid(NEW_GROUP, event, field, what);
    for (field, expected) in [("apiVersion", "events.k8s.io/v1"), ("kind", "Event")] {
        if event[field] != expected {
            return Err(ApiError::bad_request(format!("the {field} of the object is not {expected}")));
        }
    }
    let name = event["metadata"]["name"].as_str().unwrap_or_default();
    if !is_dns_subdomain(name) {
        return Err(invalid("metadata.name", "Invalid value: a lowercase RFC 1123 subdomain is expected"));
    }
    if let Some(field) = DEPRECATED.into_iter().find(|field| !event[field].is_null()) {
        return Err(invalid(field, "Invalid value: needs to be unset"));
    }
    if !is_micro_time(&event["eventTime"]) {
        return Err(ApiError::bad_request("Event in version \"v1\" cannot be handled as a Event: parsing eventTime"));
    }
    // IsQualifiedName, without a prefix.
    let controller = event["reportingController"].as_str().unwrap_or_default();
    let name = controller.rsplit('/').next().unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) {
        return Err(invalid("reportingController", "Invalid value: name part must consist of alphanumeric characters, '-', '_' or '.'"));
    }
    Ok(())
}

/// Implements `validateV1EventSeries` of the same file.
fn validate_series(event: &Value) -> Result<(), ApiError> {
    let series = &event["series"];
    if series.is_null() {
        return Ok(());
    }
    let Some(count) = series["count"].as_i64().filter(|count| i32::try_from(*count).is_ok()) else {
        return Err(ApiError::bad_request("Event in version \"v1\" cannot be handled as a Event: series.count is no int32"));
    };
    if count < 2 {
        return Err(invalid(NEW_GROUP, event, "series.count", "Invalid value: \"\": should be at least 2"));
    }
    if series["lastObservedTime"].is_null() {
        return Err(invalid(NEW_GROUP, event, "series.lastObservedTime", "Required value"));
    }
    if !is_micro_time(&series["lastObservedTime"]) {
        return Err(ApiError::bad_request("Event in version \"v1\" cannot be handled as a Event: parsing series.lastObservedTime"));
    }
    Ok(())
}

/// Returns whether this is an RFC 3339 time with exactly six fractional digits (`RFC3339Micro` of apimachinery).
fn is_micro_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let fraction: String = text.split_once('.').map_or("", |(_, rest)| rest).chars().take_while(char::is_ascii_digit).collect();
    fraction.len() == 6 && text.parse::<jiff::Timestamp>().is_ok()
}

fn is_dns_subdomain(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= NAME_LIMIT && name.split('.').all(is_label)
}

/// Implements `legacyValidateEvent` of the same file.
fn validate(group: &str, namespace: &str, event: &Value) -> Result<(), ApiError> {
    let new = group == NEW_GROUP;
    let invalid = |field: &str, what: &str| invalid(group, event, field, what);
    let regarding = if new { "regarding" } else { "involvedObject" };
    let about = event[regarding]["namespace"].as_str().unwrap_or_default();
    if about.is_empty() {
        if !matches!(namespace, "default" | "kube-system") {
            return Err(invalid("involvedObject.namespace", "Invalid value: \"\": does not match event.namespace"));
        }
    } else if about != namespace {
        return Err(invalid("involvedObject.namespace", "Invalid value: does not match event.namespace"));
    }
    // The older group is strict only about events that use the newer fields.
    if event["eventTime"].is_null() {
        return if new { Err(invalid("eventTime", "Required value")) } else { Ok(()) };
    }
    let controller = if new { "reportingController" } else { "reportingComponent" };
    for field in [controller, "reportingInstance", "action", "reason"] {
        let value = event[field].as_str().unwrap_or_default();
        if value.is_empty() {
            return Err(invalid(field, "Required value"));
        }
        if field != controller && value.len() > WORD_LIMIT {
            return Err(invalid(field, "can have at most 128 characters"));
        }
    }
    if !matches!(event["type"].as_str(), Some("Normal" | "Warning")) {
        return Err(invalid("type", "Invalid value: has invalid value"));
    }
    let note = event[if new { "note" } else { "message" }].as_str();
    if note.is_some_and(|note| note.len() > NOTE_LIMIT) {
        return Err(invalid("message", "can have at most 1024 characters"));
    }
    Ok(())
}

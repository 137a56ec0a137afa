//! The fields that all objects have in common, and how objects are changed.

use serde_json::{Value, json};

use super::objects::Resource;

/// Namespace (empty for cluster-scoped objects) and name.
pub(super) type Key = (String, String);

/// Returns a copy of an object with another resource version.
pub(super) fn at_version(object: &Value, version: u64) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = version.to_string().into();
    object
}

/// Fills in the fields that every object has, and returns its key.
pub(super) fn complete(resource: Resource, object: &mut Value) -> Key {
    object["kind"] = resource.kind().into();
    object["apiVersion"] = "v1".into();
    let metadata = &mut object["metadata"];
    if resource.is_namespaced() && metadata["namespace"].is_null() {
        metadata["namespace"] = "default".into();
    }
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    let namespace = match resource.is_namespaced() {
        true => text("namespace"),
        false => String::new(),
    };
    (namespace, text("name"))
}

/// Returns a UID in the usual form, the same in every run.
pub(super) fn uid_of(version: u64) -> String {
    format!("5f3c1e2a-7b64-4d0e-9a51-{version:012x}")
}

/// Returns the time as objects show it: UTC, in whole seconds.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Applies a JSON merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(fields) = target.as_object_mut() {
                fields.remove(key);
            }
        } else {
            merge(&mut target[key], value);
        }
    }
}

//! The objects of a manifest, and what is read of them.

use serde_json::{Map, Value};

use super::error::MigrateError;
use super::yaml;
use crate::text;

/// Lists within lists are followed this deep.
const MAX_NESTED_LISTS: usize = 4;

/// One Kubernetes object.
#[derive(Clone, Debug)]
pub(super) struct ManifestObject {
    value: Map<String, Value>,
}

impl ManifestObject {
    pub(super) fn kind(&self) -> &str {
        string(&self.value, "kind").unwrap_or_default()
    }

    pub(super) fn name(&self) -> &str {
        self.metadata("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// The namespace, if the manifest names one.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.metadata("namespace").and_then(Value::as_str).filter(|name| !name.is_empty())
    }

    pub(super) fn metadata(&self, key: &str) -> Option<&Value> {
        self.value.get("metadata")?.get(key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key)
    }

    pub(super) fn spec(&self, key: &str) -> Option<&Value> {
        self.value.get("spec")?.get(key)
    }

    /// The pod template's metadata.
    pub(super) fn template(&self, key: &str) -> Option<&Value> {
        self.value.get("spec")?.get("template")?.get("metadata")?.get(key)
    }

    /// The pod's spec.
    pub(super) fn pod(&self) -> Option<&Map<String, Value>> {
        self.value.get("spec")?.get("template")?.get("spec")?.as_object()
    }

    pub(super) fn is_workload(&self) -> bool {
        matches!(self.kind(), "DaemonSet" | "Deployment")
    }

    /// The object's kind and name, for messages.
    pub(super) fn title(&self) -> String {
        match self.namespace() {
            Some(namespace) => format!("{} {}", text::bounded(self.kind()), text::quoted(&format!("{namespace}/{}", self.name()))),
            None => format!("{} {}", text::bounded(self.kind()), text::quoted(self.name())),
        }
    }
}

/// Returns the objects of a text. Lists are opened.
pub(super) fn objects(input: &str) -> Result<Vec<ManifestObject>, MigrateError> {
    let mut objects = Vec::new();
    let input = input.trim_start_matches('\u{feff}');
    // JSON is YAML, too, but a parser of its own is faster: the workloads of a cluster can be large.
    let document = if input.starts_with('{') { serde_json::from_str(input).ok() } else { None };
    let documents = match document {
        Some(document) => vec![document],
        None => yaml::parse(input).map_err(MigrateError::Yaml)?,
    };
    for document in documents {
        open(document, 0, &mut objects)?;
    }
    Ok(objects)
}

fn open(document: Value, depth: usize, objects: &mut Vec<ManifestObject>) -> Result<(), MigrateError> {
    let Value::Object(mut value) = document else { return Err(MigrateError::NotAnObject) };
    let is_list = string(&value, "kind").is_some_and(|kind| kind.ends_with("List")) && value.contains_key("items");
    if !is_list {
        objects.push(ManifestObject { value });
        return Ok(());
    }
    if depth == MAX_NESTED_LISTS {
        return Err(MigrateError::NotAnObject);
    }
    match value.remove("items") {
        Some(Value::Array(items)) => items.into_iter().try_for_each(|item| open(item, depth + 1, objects)),
        Some(Value::Null) | None => Ok(()),
        Some(_) => Err(MigrateError::NotAnObject),
    }
}

/// A text in a mapping.
pub(super) fn string<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}

/// The mappings of a list.
pub(super) fn maps<'a>(map: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Map<String, Value>> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

/// A value that has something in it.
pub(super) fn filled(value: Option<&Value>) -> Option<Value> {
    let value = value?;
    let is_empty = match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    (!is_empty).then(|| value.clone())
}

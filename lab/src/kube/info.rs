//! Resources as RBAC and error messages name them.

use serde_json::{Map, Value};

/// A resource as RBAC and error messages name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResourceInfo<'a> {
    pub(super) group: &'a str,
    pub(super) plural: &'a str,
}

impl ResourceInfo<'_> {
    /// The name with its group: `pods`, or `events.events.k8s.io`.
    pub(super) fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    pub(super) fn details(&self, name: Option<&str>) -> Value {
        let mut details = Map::new();
        if let Some(name) = name {
            details.insert("name".to_owned(), name.into());
        }
        if !self.group.is_empty() {
            details.insert("group".to_owned(), self.group.into());
        }
        details.insert("kind".to_owned(), self.plural.into());
        Value::Object(details)
    }
}

//! The fields of the API's JSON documents that rolegate uses, as data for [`Filter`](crate::kubernetes::filter::Filter).

use crate::kubernetes::fields::{Field, JsonMember, MAX_TEXT, members};

/// The longest continue token of a list, in bytes: base64 of a version and a key of etcd.
const MAX_CONTINUE: usize = 8 << 10;
/// The longest message of a `Status`, in bytes.
const MAX_MESSAGE: usize = 2 << 10;
/// The annotation of the bookmark that ends a streamed list.
pub(super) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// An annotation that is read.
#[derive(Clone, Debug)]
pub(super) struct Annotation {
    pub(super) key: String,
    /// The longest valid value, in bytes. A longer one is refused because of its length, and is truncated to just above this
    /// limit: a pod's author may write 256 KiB there.
    pub(super) longest: usize,
}

impl Annotation {
    pub(super) fn new(key: &str, longest: usize) -> Self {
        Self { key: key.to_owned(), longest }
    }
}

fn identity<const N: usize>(named: [(&str, Field); N]) -> Field {
    Field::Object(identifying(named))
}

fn identifying<const N: usize>(named: [(&str, Field); N]) -> Vec<JsonMember> {
    members(named).into_iter().map(|member| JsonMember { identifies: true, ..member }).collect()
}

fn names() -> Vec<JsonMember> {
    identifying(["name", "namespace", "uid", "resourceVersion"].map(|name| (name, Field::text())))
}

/// Returns the member `metadata`, with the fields common to all objects and these annotations.
pub(super) fn metadata(annotations: &[Annotation]) -> JsonMember {
    let read = annotations.iter().map(|annotation| (annotation.key.clone(), annotation.longest));
    let all = read.chain([(INITIAL_EVENTS_END.to_owned(), MAX_TEXT)]);
    let annotations = all.map(|(key, longest)| JsonMember { key, field: Field::Scalar(longest), identifies: false }).collect();
    let owner = Field::object([("kind", Field::text()), ("name", Field::text()), ("controller", Field::text())]);
    let others = members([
        ("deletionTimestamp", Field::text()),
        ("annotations", Field::Object(annotations)),
        ("ownerReferences", Field::array(owner)),
    ]);
    let field = Field::Object(names().into_iter().chain(others).collect());
    JsonMember { key: "metadata".to_owned(), field, identifies: true }
}

/// Returns the fields that identify an object.
pub(super) fn identity_of_object() -> Field {
    identity([("metadata", Field::Object(names()))])
}

/// Returns the fields that identify the object in a line of a watch, and the type of the event.
pub(super) fn identity_of_line() -> Field {
    identity([("type", Field::text()), ("object", identity_of_object())])
}

/// Returns a line of a watch whose object has these members: an event about the object, or an error, whose object is a
/// `Status`.
pub(super) fn line(object: Vec<JsonMember>) -> Field {
    let members = object.into_iter().chain(status()).collect();
    identity([("type", Field::text()), ("object", Field::Object(members))])
}

/// Returns a page of a list of objects with these members.
pub(super) fn page(object: Vec<JsonMember>) -> Field {
    Field::object([
        ("kind", Field::text()),
        ("metadata", Field::object([("resourceVersion", Field::text()), ("continue", Field::Scalar(MAX_CONTINUE))])),
        ("items", Field::Items(Box::new(Field::Object(object)))),
    ])
}

/// Returns the members of a `Status` that are used, besides those common to all objects.
fn status() -> Vec<JsonMember> {
    let causes = Field::array(Field::object([("reason", Field::text())]));
    members([
        ("code", Field::text()),
        ("reason", Field::text()),
        ("message", Field::Scalar(MAX_MESSAGE)),
        ("details", Field::object([("retryAfterSeconds", Field::text()), ("causes", causes)])),
    ])
}

#[cfg(test)]
mod tests;

//! The fields of the API's JSON documents that rolegate uses, as data for [`Filter`](crate::kubernetes::filter::Filter).

use super::objects::{Annotation, Object};
use crate::kubernetes::fields::{Field, JsonMember, MAX_TEXT, members};

/// Bytes of the token that continues a list: base64 of a version and a key of etcd.
const MAX_CONTINUE: usize = 8 << 10;
/// Bytes of the message of a `Status`.
const MAX_MESSAGE: usize = 2 << 10;
/// The annotation of the bookmark that ends a streamed list.
pub(super) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

fn identity<const N: usize>(named: [(&str, Field); N]) -> Field {
    Field::Object(identifying(named))
}

fn identifying<const N: usize>(named: [(&str, Field); N]) -> Vec<JsonMember> {
    members(named).into_iter().map(|member| JsonMember { identifies: true, ..member }).collect()
}

fn names() -> Vec<JsonMember> {
    identifying(["name", "namespace", "uid", "resourceVersion"].map(|name| (name, Field::text())))
}

/// The member `metadata`, with the fields common to all objects and these annotations.
pub(super) fn metadata(annotations: &[Annotation]) -> JsonMember {
    let read = annotations.iter().map(|annotation| (annotation.key.clone(), annotation.longest));
    let all = read.chain([(INITIAL_EVENTS_END.to_owned(), MAX_TEXT)]);
    let annotations = all.map(|(key, longest)| JsonMember { key, field: Field::Scalar(longest), identifies: false }).collect();
    let others = members([("deletionTimestamp", Field::text()), ("annotations", Field::Object(annotations))]);
    let field = Field::Object(names().into_iter().chain(others).collect());
    JsonMember { key: "metadata".to_owned(), field, identifies: true }
}

/// An object.
pub(super) fn object<T: Object>(annotations: &[Annotation]) -> Field {
    Field::Object(T::members(annotations))
}

/// The fields that identify an object.
pub(super) fn identity_of_object() -> Field {
    identity([("metadata", Field::Object(names()))])
}

/// The fields that identify the object of a line of a watch, and the type of the event.
pub(super) fn identity_of_line() -> Field {
    identity([("type", Field::text()), ("object", identity_of_object())])
}

/// A line of a watch: an event of an object, or an error, whose object is a `Status`.
pub(super) fn line<T: Object>(annotations: &[Annotation]) -> Field {
    let members = T::members(annotations).into_iter().chain(status()).collect();
    identity([("type", Field::text()), ("object", Field::Object(members))])
}

/// A page of a list.
pub(super) fn page<T: Object>(annotations: &[Annotation]) -> Field {
    Field::object([
        ("kind", Field::text()),
        ("metadata", Field::object([("resourceVersion", Field::text()), ("continue", Field::Scalar(MAX_CONTINUE))])),
        ("items", Field::Items(Box::new(object::<T>(annotations)))),
    ])
}

/// The members of a `Status` that are used, besides those common to all objects.
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

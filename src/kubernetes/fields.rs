//! Which fields of a JSON document to keep, as data for [`Filter`](super::filter::Filter).

/// Bytes of a name, a UID, a version or an address. The API's own are at most 253 characters long.
pub(crate) const MAX_TEXT: usize = 512;

/// The part of a JSON value to keep. If a value has another type than the field, an empty value of that type is kept, so that
/// decoding fails as it would for the whole document.
#[derive(Debug)]
pub(crate) enum Field {
    /// An object of which these members are kept.
    Object(Vec<JsonMember>),
    /// An array. An element that is equal to an earlier one may be left out.
    Array(Box<Field>),
    /// An array of which every element is kept, in order.
    List(Box<Field>),
    /// An array whose elements are returned one by one, as separate documents.
    Items(Box<Field>),
    /// A string, a number, a boolean or null. A string longer than this many bytes is truncated to just above this length.
    Scalar(usize),
    /// A string that matters only if it is one of these. Any other is kept as an empty string.
    OneOf(&'static [&'static str]),
}

/// A member of an object.
#[derive(Debug)]
pub(crate) struct JsonMember {
    pub(crate) key: String,
    pub(crate) field: Field,
    /// Kept even if the other fields of the document exceed the limit.
    pub(crate) identifies: bool,
}

impl Field {
    /// A name, or another short value.
    pub(crate) fn text() -> Self {
        Self::Scalar(MAX_TEXT)
    }

    /// An object with these members.
    pub(crate) fn object<const N: usize>(named: [(&str, Self); N]) -> Self {
        Self::Object(members(named))
    }

    /// An array of such elements.
    pub(crate) fn array(element: Self) -> Self {
        Self::Array(Box::new(element))
    }

    /// An array of such elements, in which order and repetition matter.
    pub(crate) fn list(element: Self) -> Self {
        Self::List(Box::new(element))
    }
}

/// Members of an object.
pub(crate) fn members<const N: usize>(named: [(&str, Field); N]) -> Vec<JsonMember> {
    named.into_iter().map(|(key, field)| JsonMember { key: key.to_owned(), field, identifies: false }).collect()
}

//! Where in a document the parser is.

use crate::kubernetes::fields::Field;

/// The state of the parser.
#[derive(Clone, Copy, Debug)]
pub(super) enum ParserState<'a> {
    /// A value; `None` where it is not kept.
    Value(Option<&'a Field>),
    /// A key, or the end of the object.
    Key,
    /// The rest of a key.
    InKey { escaped: bool },
    /// The colon after a key.
    Colon(Option<&'a Field>),
    /// An element, or the end of the array.
    Element,
    /// The rest of a string that is kept.
    Text(Text),
    /// The rest of a number or a literal that is kept.
    Literal { length: usize },
    /// The rest of a value that is not.
    Skipped(Skipped),
    /// The rest of a number or a literal that is not.
    SkippedLiteral,
    /// A comma or the end of the container; nothing at the end of the document.
    AfterValue,
    /// No JSON.
    Broken,
}

/// Where a value is being skipped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skipped {
    pub(super) depth: u64,
    pub(super) in_string: bool,
    pub(super) escaped: bool,
}

/// A string that is kept, during parsing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    pub(super) begin: usize,
    pub(super) longest: usize,
    pub(super) one_of: Option<&'static [&'static str]>,
    /// Bytes so far, as they are without escapes.
    pub(super) length: usize,
    pub(super) escape: Escape,
    /// The last character is the first half of a surrogate pair.
    pub(super) is_halved: bool,
    pub(super) is_cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    None,
    Begun,
    Unicode { digits: u8, code: u32 },
}

pub(super) fn is_begin_of_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

pub(super) fn is_end_of_literal(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}')
}

/// Returns a text without its escapes; `None` where they are malformed.
pub(super) fn unescaped(text: &[u8]) -> Option<String> {
    serde_json::from_slice(&[b"\"", text, b"\""].concat()).ok()
}

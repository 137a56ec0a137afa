//! Filters a JSON document as it arrives, and keeps the fields that rolegate uses.
//!
//! A document may be of any size: a pod's author decides how long its annotations are, and the API server writes `<` as `\u003c`.
//! Other fields are skipped in constant memory, however long or deeply nested they are: nesting is counted, without recursion.
//! The order of the fields does not matter. The result is a JSON document that decodes to the same value as the whole document.
//! Strings that are too long to be valid are truncated to a length at which they are still too long.
//!
//! Skipped values are validated only as far as needed to find their end.

use super::fields::{Field, JsonMember};

mod skip;
mod state;
mod text;

use state::{ParserState, is_begin_of_literal, is_end_of_literal, unescaped};

/// The most bytes that are kept of one document. Beyond it, only the identifying fields are kept. The largest legitimate document
/// is a namespace with two lists of 64 KiB, each character escaped with six bytes. No real API server sends more.
pub(crate) const MAX_KEPT: usize = 1 << 20;
/// Bytes of a key, escaped. An annotation's has at most 317 characters.
const MAX_KEY: usize = 4 << 10;
/// The most elements of an array that others are compared with. The arrays that are used have few different elements.
const MAX_DIFFERENT: usize = 16;

/// What was kept of a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Excerpt {
    /// A JSON document.
    pub(crate) json: Vec<u8>,
    /// The document exceeded the limit: beyond it, only the identifying fields are there.
    pub(crate) truncated: bool,
}

/// What a document was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// Nothing but white space.
    Empty,
    /// One value.
    Complete(Excerpt),
    /// Something else, or the beginning of a value.
    Broken,
}

/// A filter of one document after another.
#[derive(Debug)]
pub(crate) struct Filter<'a> {
    root: &'a Field,
    state: ParserState<'a>,
    /// The containers around the present position that are kept: no more than the fields are deep.
    containers: Vec<Container<'a>>,
    kept: Vec<u8>,
    truncated: bool,
    /// Where the current item begins, and whether it exceeded the limit.
    item: Option<(usize, bool)>,
    items: Vec<Excerpt>,
    key: Vec<u8>,
}

#[derive(Debug)]
struct Container<'a> {
    field: &'a Field,
    /// Members or elements that were kept.
    count: usize,
    /// Where the present one begins, with the comma before it, if it is kept.
    begin: Option<usize>,
    /// Where elements are that differ from each other.
    different: Vec<(usize, usize)>,
}

impl<'a> Filter<'a> {
    pub(crate) fn new(root: &'a Field) -> Self {
        Self {
            root,
            state: ParserState::Value(Some(root)),
            containers: Vec::new(),
            kept: Vec::new(),
            truncated: false,
            item: None,
            items: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Filters a complete document.
    pub(crate) fn once(root: &'a Field, json: &[u8]) -> Document {
        let mut filter = Self::new(root);
        filter.feed(json);
        filter.finish()
    }

    /// Reads on.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            let read = match self.state {
                ParserState::Skipped(skipped) => self.skip(skipped, bytes),
                ParserState::Text(text) if text.is_cut => self.skip_text(text, bytes),
                ParserState::Broken => bytes.len(),
                _ => self.read(byte).into(),
            };
            bytes = &bytes[read..];
        }
    }

    /// Returns the items of a [`Field::Items`] that were completed since the last call.
    pub(crate) fn take_items(&mut self) -> Vec<Excerpt> {
        std::mem::take(&mut self.items)
    }

    /// Ends a document. The next bytes belong to another one.
    pub(crate) fn finish(&mut self) -> Document {
        if self.containers.is_empty() && matches!(self.state, ParserState::Literal { .. } | ParserState::SkippedLiteral) {
            self.state = ParserState::AfterValue;
        }
        let document = match self.state {
            ParserState::Value(_) if self.containers.is_empty() && self.kept.is_empty() => Document::Empty,
            ParserState::AfterValue if self.containers.is_empty() => {
                Document::Complete(Excerpt { json: std::mem::take(&mut self.kept), truncated: self.truncated })
            }
            _ => Document::Broken,
        };
        *self = Self::new(self.root);
        document
    }

    /// Bytes of memory that it holds.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        let items: usize = self.items.iter().map(|item| item.json.capacity()).sum();
        self.kept.capacity() + self.key.capacity() + items + self.containers.capacity() * size_of::<Container<'_>>()
    }

    /// Reads one byte; `false` if the byte must be read again in the next state.
    fn read(&mut self, byte: u8) -> bool {
        match self.state {
            ParserState::Text(text) => return self.text(text, byte),
            ParserState::Literal { length } => return self.literal(length, byte),
            ParserState::SkippedLiteral if is_end_of_literal(byte) => {
                self.state = ParserState::AfterValue;
                return false;
            }
            ParserState::SkippedLiteral | ParserState::Broken | ParserState::Skipped(_) => {}
            ParserState::InKey { escaped } => self.in_key(escaped, byte),
            _ if byte.is_ascii_whitespace() => {}
            ParserState::Value(field) => self.value(field, byte),
            ParserState::Element if byte == b']' => self.close(),
            ParserState::Element => {
                let field = self.begin_element();
                self.value(field, byte);
            }
            ParserState::Key => match byte {
                b'"' => {
                    self.key.clear();
                    self.state = ParserState::InKey { escaped: false };
                }
                b'}' => self.close(),
                _ => self.state = ParserState::Broken,
            },
            ParserState::Colon(field) if byte == b':' => self.state = ParserState::Value(field),
            ParserState::Colon(_) => self.state = ParserState::Broken,
            ParserState::AfterValue => self.after_value(byte),
        }
        true
    }

    fn after_value(&mut self, byte: u8) {
        let is_object = self.containers.last().map(|container| matches!(container.field, Field::Object(_)));
        self.state = match (is_object, byte) {
            (Some(true), b',') => ParserState::Key,
            (Some(false), b',') => ParserState::Element,
            (Some(true), b'}') | (Some(false), b']') => return self.close(),
            _ => ParserState::Broken,
        };
    }

    fn in_key(&mut self, escaped: bool, byte: u8) {
        if byte == b'"' && !escaped {
            let member = self.begin_member();
            self.state = ParserState::Colon(member);
            return;
        }
        // A key that is too long is not one of those that are kept.
        if self.key.len() <= MAX_KEY {
            self.key.push(byte);
        }
        self.state = ParserState::InKey { escaped: byte == b'\\' && !escaped };
    }

    /// The field of the member whose key was read; `None` where it is not kept.
    fn begin_member(&mut self) -> Option<&'a Field> {
        let container = self.containers.last_mut()?;
        container.begin = None;
        let Field::Object(members) = container.field else { return None };
        if self.key.len() > MAX_KEY {
            return None;
        }
        let member = match self.key.contains(&b'\\') {
            false => members.iter().find(|member| member.key.as_bytes() == self.key)?,
            true => {
                let key = unescaped(&self.key)?;
                members.iter().find(|member| member.key == key)?
            }
        };
        if !self.has_room(member.identifies) {
            return None;
        }
        let JsonMember { field, .. } = member;
        let begin = self.kept.len();
        let container = self.containers.last_mut()?;
        container.begin = Some(begin);
        if container.count > 0 {
            self.kept.push(b',');
        }
        container.count += 1;
        self.kept.push(b'"');
        self.kept.extend_from_slice(&self.key);
        self.kept.extend_from_slice(b"\":");
        Some(field)
    }

    /// The field of the element that begins; `None` where it is not kept.
    fn begin_element(&mut self) -> Option<&'a Field> {
        let begin = self.kept.len();
        let container = self.containers.last_mut()?;
        container.begin = None;
        let field = match container.field {
            Field::Array(element) | Field::List(element) => element,
            Field::Items(element) => {
                container.begin = Some(begin);
                self.item = Some((begin, false));
                return Some(element);
            }
            _ => return None,
        };
        if !self.has_room(false) {
            return None;
        }
        let container = self.containers.last_mut()?;
        container.begin = Some(begin);
        if container.count > 0 {
            self.kept.push(b',');
        }
        container.count += 1;
        Some(field)
    }

    /// Whether more may be kept; records if not.
    fn has_room(&mut self, identifies: bool) -> bool {
        let begin = self.item.map_or(0, |(begin, _)| begin);
        let room = if identifies { 2 * MAX_KEPT } else { MAX_KEPT };
        if self.kept.len() - begin <= room {
            return true;
        }
        match &mut self.item {
            Some((_, truncated)) => *truncated = true,
            None => self.truncated = true,
        }
        false
    }

    /// Begins a value with this byte.
    fn value(&mut self, field: Option<&'a Field>, byte: u8) {
        let Some(field) = field else { return self.begin_skipped(byte) };
        match (byte, field) {
            (b'{', Field::Object(_)) => self.open(field, ParserState::Key, byte),
            (b'[', Field::Array(_) | Field::List(_) | Field::Items(_)) => self.open(field, ParserState::Element, byte),
            // serde accepts an array for a struct.
            (b'[', Field::Object(_)) => self.without_contents(b"0", byte),
            (b'{', _) => self.without_contents(b"{}", byte),
            (b'[', _) => self.without_contents(b"[]", byte),
            (b'"', Field::Scalar(longest)) => self.begin_text(*longest, None),
            (b'"', Field::OneOf(values)) => {
                let longest = values.iter().map(|value| value.len()).max().unwrap_or_default();
                self.begin_text(longest, Some(values));
            }
            (b'"', _) => self.without_contents(b"\"\"", byte),
            _ if is_begin_of_literal(byte) => {
                self.kept.push(byte);
                self.state = ParserState::Literal { length: 1 };
            }
            _ => self.state = ParserState::Broken,
        }
    }

    fn open(&mut self, field: &'a Field, state: ParserState<'a>, byte: u8) {
        self.kept.push(byte);
        self.containers.push(Container { field, count: 0, begin: None, different: Vec::new() });
        self.state = state;
    }

    fn close(&mut self) {
        let Some(container) = self.containers.pop() else {
            self.state = ParserState::Broken;
            return;
        };
        self.kept.push(if matches!(container.field, Field::Object(_)) { b'}' } else { b']' });
        self.end_value();
    }

    /// Ends a value, kept or not.
    fn end_value(&mut self) {
        self.state = ParserState::AfterValue;
        let Some(container) = self.containers.last_mut() else { return };
        let Some(begin) = container.begin.take() else { return };
        match container.field {
            Field::Items(_) => {
                let json = self.kept.split_off(begin);
                let truncated = self.item.take().is_some_and(|(_, truncated)| truncated);
                self.items.push(Excerpt { json, truncated });
            }
            Field::Array(_) => {
                let element = begin + usize::from(container.count > 1);
                let earlier = |&(begin, end): &(usize, usize)| self.kept[begin..end] == self.kept[element..];
                if container.different.iter().any(earlier) {
                    container.count -= 1;
                    self.kept.truncate(begin);
                } else if container.different.len() < MAX_DIFFERENT {
                    container.different.push((element, self.kept.len()));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Strings that are kept, and truncated if they are too long.

use super::Filter;
use super::state::{Escape, ParserState, Text, unescaped};

impl Filter<'_> {
    pub(super) fn begin_text(&mut self, longest: usize, one_of: Option<&'static [&'static str]>) {
        let begin = self.kept.len();
        self.kept.push(b'"');
        self.state = ParserState::Text(Text { begin, longest, one_of, length: 0, escape: Escape::None, is_halved: false, is_cut: false });
    }

    /// Skips the rest of a truncated string, as much as is available; returns the number of bytes.
    pub(super) fn skip_text(&mut self, mut text: Text, bytes: &[u8]) -> usize {
        let mut read = 0;
        while let Some(rest) = bytes.get(read..).filter(|rest| !rest.is_empty()) {
            if text.escape != Escape::None {
                text.escape = Escape::None;
                read += 1;
                continue;
            }
            let Some(next) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                read = bytes.len();
                break;
            };
            read += next + 1;
            if rest[next] == b'"' {
                self.end_text(&text);
                return read;
            }
            text.escape = Escape::Begun;
        }
        self.state = ParserState::Text(text);
        read
    }

    pub(super) fn text(&mut self, mut text: Text, byte: u8) -> bool {
        match text.escape {
            Escape::None if byte == b'"' => {
                self.end_text(&text);
                return true;
            }
            Escape::None => {
                let is_within_character = byte & 0xC0 == 0x80 || text.is_halved;
                if text.length > text.longest && !is_within_character {
                    // Read again, to be skipped.
                    self.state = ParserState::Text(Text { is_cut: true, ..text });
                    return false;
                }
                if byte == b'\\' {
                    text.escape = Escape::Begun;
                } else {
                    text.length += 1;
                    text.is_halved = false;
                }
            }
            Escape::Begun if byte == b'u' => text.escape = Escape::Unicode { digits: 0, code: 0 },
            Escape::Begun => {
                text.length += 1;
                (text.escape, text.is_halved) = (Escape::None, false);
            }
            Escape::Unicode { digits, code } => {
                let Some(digit) = char::from(byte).to_digit(16) else {
                    // Not a valid escape: decoding fails because of it.
                    text.escape = Escape::None;
                    self.state = ParserState::Text(text);
                    return false;
                };
                let code = code << 4 | digit;
                text.escape = Escape::Unicode { digits: digits + 1, code };
                if digits == 3 {
                    text.length += match code {
                        0..0x80 => 1,
                        // Each half of a pair that has four bytes.
                        0x80..0x800 | 0xD800..0xE000 => 2,
                        _ => 3,
                    };
                    (text.escape, text.is_halved) = (Escape::None, (0xD800..0xDC00).contains(&code));
                }
            }
        }
        self.kept.push(byte);
        self.state = ParserState::Text(text);
        true
    }

    pub(super) fn end_text(&mut self, text: &Text) {
        if let Some(values) = text.one_of {
            let value = &self.kept[text.begin + 1..];
            let matters = match value.contains(&b'\\') {
                false => values.iter().any(|one| one.as_bytes() == value),
                true => unescaped(value).is_some_and(|value| values.contains(&&*value)),
            };
            if !matters {
                self.kept.truncate(text.begin + 1);
            }
        }
        self.kept.push(b'"');
        self.end_value();
    }
}

//! Skipped values, and short values that are kept unchanged.

use super::Filter;
use super::state::{ParserState, Skipped, is_begin_of_literal, is_end_of_literal};

/// Bytes of a number or a literal.
const MAX_LITERAL: usize = 64;

impl Filter<'_> {
    pub(super) fn without_contents(&mut self, kept: &[u8], byte: u8) {
        self.kept.extend_from_slice(kept);
        self.begin_skipped(byte);
    }

    pub(super) fn begin_skipped(&mut self, byte: u8) {
        self.state = match byte {
            b'{' | b'[' => ParserState::Skipped(Skipped { depth: 1, in_string: false, escaped: false }),
            b'"' => ParserState::Skipped(Skipped { depth: 0, in_string: true, escaped: false }),
            _ if is_begin_of_literal(byte) => ParserState::SkippedLiteral,
            _ => ParserState::Broken,
        };
    }

    /// Skips as much as is available; returns the number of bytes.
    pub(super) fn skip(&mut self, mut skipped: Skipped, bytes: &[u8]) -> usize {
        let mut read = 0;
        while let Some(rest) = bytes.get(read..).filter(|rest| !rest.is_empty()) {
            if skipped.escaped {
                skipped.escaped = false;
                read += 1;
                continue;
            }
            let next = match skipped.in_string {
                true => rest.iter().position(|byte| matches!(byte, b'"' | b'\\')),
                false => rest.iter().position(|byte| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']')),
            };
            let Some(next) = next else {
                read = bytes.len();
                break;
            };
            read += next + 1;
            match rest[next] {
                b'\\' => skipped.escaped = true,
                b'"' => skipped.in_string = !skipped.in_string,
                b'{' | b'[' => skipped.depth = skipped.depth.saturating_add(1),
                _ => skipped.depth = skipped.depth.saturating_sub(1),
            }
            if skipped.depth == 0 && !skipped.in_string && !skipped.escaped {
                self.end_value();
                return read;
            }
        }
        self.state = ParserState::Skipped(skipped);
        read
    }

    pub(super) fn literal(&mut self, length: usize, byte: u8) -> bool {
        if is_end_of_literal(byte) {
            self.end_value();
            return false;
        }
        if length < MAX_LITERAL {
            self.kept.push(byte);
            self.state = ParserState::Literal { length: length + 1 };
        }
        true
    }
}

//! The body of a watch: one JSON document per line.

use std::time::Duration;

use tokio::time::Instant;

use crate::kubernetes::failure::RequestFailure;
use crate::kubernetes::fields::Field;
use crate::kubernetes::filter::{Document, Excerpt, Filter};

/// The longest line, in bytes. The API server accepts requests of 3 MiB and etcd objects of 1.5 MiB, which are about 10 MB if
/// each character is escaped. A line far beyond that is not an object, even if an operator has raised these limits.
const MAX_LINE: u64 = 256 << 20;
/// How long a line may take to arrive.
const LINE_TIMEOUT: Duration = Duration::from_secs(90);

/// Assembles lines from chunks, and keeps only the fields that are used in memory.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    filter: Filter<'a>,
    length: u64,
    began: Option<Instant>,
}

/// A complete line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The fields of the line that are used.
    Read(Excerpt),
    /// The line is not a JSON document.
    Broken,
}

impl<'a> Lines<'a> {
    /// Creates an assembler that keeps these fields of each line.
    pub(super) fn of(fields: &'a Field) -> Self {
        Self { filter: Filter::new(fields), length: 0, began: None }
    }

    /// Returns the lines that these bytes complete. An unterminated line is never returned, because the connection broke within
    /// it.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.filter.feed(&rest[..end]);
            rest = &rest[end + 1..];
            (self.length, self.began) = (0, None);
            match self.filter.finish() {
                Document::Empty => {}
                Document::Complete(excerpt) => lines.push(Line::Read(excerpt)),
                Document::Broken => lines.push(Line::Broken),
            }
        }
        self.filter.feed(rest);
        self.length += rest.len() as u64;
        if self.length > 0 && self.began.is_none() {
            self.began = Some(Instant::now());
        }
        lines
    }

    /// Fails if the current line is too long, or takes too long, to be an object.
    pub(super) fn check(&self) -> Result<(), RequestFailure> {
        if self.length > MAX_LINE {
            return Err(RequestFailure::TooLarge);
        }
        match self.began {
            Some(began) if began.elapsed() > LINE_TIMEOUT => Err(RequestFailure::Slow),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Line {
        Line::Read(Excerpt { json: text.as_bytes().to_vec(), truncated: false })
    }

    #[test]
    fn lines_do_not_depend_on_chunk_boundaries() {
        let text = br#"{"n":1}
{"n":"two","m":[3]}

{"n":3
{"n":4} x
17
{"n":6"#;
        let fields = Field::object([("n", Field::text())]);
        for size in 1..=text.len() {
            let mut lines = Lines::of(&fields);
            let got: Vec<_> = text.chunks(size).flat_map(|piece| lines.take(piece)).collect();
            let wanted = [read(r#"{"n":1}"#), read(r#"{"n":"two"}"#), Line::Broken, Line::Broken, read("17")];
            assert_eq!(got, wanted, "pieces of {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_line_is_never_returned_and_needs_no_memory() {
        let fields = Field::object([("n", Field::text())]);
        let piece = vec![b'x'; 64 << 10];
        for begin in ["", "{", "{\"n\":\"", "{\"n\":", "{\"", "{\"m\":\"", "[[[", "{\"m\":[1"] {
            let mut lines = Lines::of(&fields);
            assert_eq!(lines.take(begin.as_bytes()), []);
            for _ in 0..64 {
                assert_eq!(lines.take(&piece), []);
            }
            assert!(lines.check().is_ok(), "an object may be large");
            assert!(lines.filter.memory() < 64 << 10, "{begin}: {}", lines.filter.memory());
            lines.length += MAX_LINE;
            assert!(matches!(lines.check(), Err(RequestFailure::TooLarge)));
            let next = lines.take(b"\n{\"n\":1}\n");
            assert!(next.ends_with(&[read(r#"{"n":1}"#)]) && lines.check().is_ok(), "the next line is not affected: {next:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_arrives_too_slowly_is_abandoned() {
        let fields = Field::object([("n", Field::text())]);
        let mut lines = Lines::of(&fields);
        for _ in 0..9 {
            lines.take(b"{\n[");
            tokio::time::advance(LINE_TIMEOUT).await;
            assert!(lines.check().is_ok(), "each line has its own time");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        lines.take(b"[");
        assert!(matches!(lines.check(), Err(RequestFailure::Slow)));
    }
}

//! The body of a watch: one JSON document a line.

use bytes::Bytes;

/// Bytes of a line. The API takes objects of at most 3 MB.
const MAX_LINE: usize = 8 << 20;

/// Puts lines together from what comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    too_long: bool,
}

/// A whole line, or word of one that was too long to keep.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    TooLong,
}

impl Lines {
    /// The lines that these bytes complete. A line without an end is never given out: the connection broke in it.
    pub(super) fn take(&mut self, bytes: &Bytes) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut rest = &bytes[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.add(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.partial);
            if std::mem::take(&mut self.too_long) {
                lines.push(Line::TooLong);
            } else if !line.is_empty() {
                lines.push(Line::Whole(line));
            }
        }
        self.add(rest);
        lines
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.too_long {
            return;
        }
        if self.partial.len() + bytes.len() > MAX_LINE {
            self.too_long = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(texts: &[&str]) -> Vec<Line> {
        texts.iter().map(|text| Line::Whole(text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let text = b"one\ntwo\n\nthree\nnot the end";
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let got: Vec<_> = text.chunks(size).flat_map(|piece| lines.take(&Bytes::copy_from_slice(piece))).collect();
            assert_eq!(got, whole(&["one", "two", "three"]), "pieces of {size}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_does_not_harm_the_next() {
        let mut lines = Lines::default();
        let piece = Bytes::from(vec![b'x'; MAX_LINE / 2 + 1]);
        assert_eq!(lines.take(&piece), []);
        assert_eq!(lines.take(&piece), []);
        assert!(lines.partial.is_empty(), "it is not kept");
        assert_eq!(lines.take(&Bytes::from_static(b"xx\nnext\n")), [Line::TooLong, Line::Whole(b"next".to_vec())]);
    }
}

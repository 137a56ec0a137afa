//! JSON as a Kubernetes API server writes it.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Encodes JSON as a real API server does, with Go's default encoding (<https://pkg.go.dev/encoding/json#Marshal>): `<`, `>`
/// and `&` are escaped, and so are the line separators U+2028 and U+2029. Fields are sorted by name.
pub(super) fn encode(document: &impl Serialize) -> String {
    let mut json = Vec::new();
    // Serializing a value into a vector cannot fail.
    let _ = document.serialize(&mut Serializer::with_formatter(&mut json, GoStrings));
    String::from_utf8(json).unwrap_or_default()
}

struct GoStrings;

impl Formatter for GoStrings {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut written = 0;
        for (at, found) in fragment.match_indices(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            writer.write_all(&fragment.as_bytes()[written..at])?;
            let escaped: &[u8] = match found {
                "<" => br"\u003c",
                ">" => br"\u003e",
                "&" => br"\u0026",
                "\u{2028}" => br"\u2028",
                _ => br"\u2029",
            };
            writer.write_all(escaped)?;
            written = at + found.len();
        }
        writer.write_all(&fragment.as_bytes()[written..])
    }
}

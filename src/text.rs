//! Text for log lines and terminals: what others wrote, of bounded length and without control characters.

/// Characters of a text in a log line or an error.
const MAX_LOGGED: usize = 500;
/// Characters of a text that is quoted in an explanation.
const MAX_QUOTED: usize = 200;

/// Returns a text for a log line: at most 500 characters of it, without control characters.
pub(crate) fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_LOGGED).collect()
}

/// Returns a text in quotation marks, with control characters escaped; of a long one, the first 200 characters and its length.
pub(crate) fn quoted(text: &str) -> String {
    let start: String = text.chars().take(MAX_QUOTED).collect();
    if start.len() < text.len() { format!("{start:?}... ({} bytes)", text.len()) } else { format!("{text:?}") }
}

/// Returns a whole text for a terminal, with `?` for what could move its cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_cut_and_holds_no_control_characters() {
        let long = format!("a\u{1b}[31m\nb{}", "ü".repeat(600));
        assert_eq!(bounded(&long), format!("a[31mb{}", "ü".repeat(494)));
        assert_eq!(printable("a\u{1b}[31m\nb\u{85}"), "a?[31m?b?");
        assert_eq!(quoted("a\n"), r#""a\n""#);
        assert_eq!(quoted(&"x".repeat(201)), format!("\"{}\"... (201 bytes)", "x".repeat(200)));
    }
}

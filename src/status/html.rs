//! A writer of HTML that keeps markup and values apart by type: markup is text of this program, and every value is escaped.

use std::fmt::Display;

/// A document that is being written.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    /// Adds markup. Only texts of this program have this type.
    pub(super) fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds a value as text, or as the value of an attribute in quotation marks.
    pub(super) fn text(&mut self, value: impl Display) -> &mut Self {
        for character in value.to_string().chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // They could hide text, or change its direction.
                character if character.is_control() || is_invisible(character) => self.0.push('\u{fffd}'),
                character => self.0.push(character),
            }
        }
        self
    }

    /// Adds an element around a value.
    pub(super) fn element(&mut self, open: &'static str, value: impl Display, close: &'static str) -> &mut Self {
        self.markup(open).text(value).markup(close)
    }

    /// Returns the document.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// Returns whether a character has no shape of its own: marks of direction, joiners and other format characters.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_become_markup() {
        let mut html = Html::default();
        html.element("<td title=\"", "\"><script>alert('1')</script>&amp;", "\">").text("a\u{202e}b\nc\u{0}d");
        assert_eq!(
            html.into_text(),
            "<td title=\"&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;\">a\u{fffd}b\u{fffd}c\u{fffd}d"
        );
    }
}

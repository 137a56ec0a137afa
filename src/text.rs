//! Untrusted text for log lines and terminals: bounded in length, and without control characters.

/// The longest text in a log line or an error, in characters.
const MAX_LOGGED: usize = 500;
/// The longest text that is quoted in an explanation, in characters.
const MAX_QUOTED: usize = 200;

/// The longest path of a request in a log line, in bytes.
const MAX_PATH: usize = 128;

/// Returns the path of a request for a log line: without control characters, at most 128 bytes. Nothing is decoded.
pub(crate) fn path(text: &str) -> String {
    let start = &text[..text.floor_char_boundary(MAX_PATH)];
    start.chars().filter(|c| !c.is_control()).collect()
}

/// Returns the first 500 characters of a text for a log line, without control characters.
pub(crate) fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_LOGGED).collect()
}

/// Returns a text in quotation marks, with control characters escaped. A text longer than 200 characters is cut, and its length
/// added.
pub(crate) fn quoted(text: &str) -> String {
    let start: String = text.chars().take(MAX_QUOTED).collect();
    if start.len() < text.len() { format!("{start:?}... ({} bytes)", text.len()) } else { format!("{text:?}") }
}

/// Returns a text without the user names and passwords of the URLs in it: `http://user:password@proxy` is `http://...@proxy`. A proxy
/// may be written without a scheme, so everything before an `@` counts as such.
pub(crate) fn without_userinfo(text: &str) -> String {
    let ends_word = |c: char| c.is_whitespace() || matches!(c, '"' | '\'');
    let shown = text.split_inclusive(ends_word).map(|word| {
        let start = word.find("://").map_or(0, |at| at + "://".len());
        match word.rfind('@') {
            Some(at) if at >= start => format!("{}...{}", &word[..start], &word[at..]),
            _ => word.to_owned(),
        }
    });
    shown.collect()
}

/// Returns the whole text for a terminal, with `?` in place of control characters, which could move the cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The longest name of an object, in bytes (Kubernetes documentation, "Object Names and IDs").
const MAX_NAME: usize = 253;

/// Returns whether a text has the form of an object's name: lower-case letters, digits, `-` and `.`, and none of the last two first.
pub(crate) fn is_object_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_user_and_password() {
        for (text, shown) in [
            ("http://user:s3cr3t@proxy:3128", "http://...@proxy:3128"),
            (
                "no: http://s3cr3t@proxy/ and https://a:s3cr3t@b, (socks5://s@3cr3t@c)",
                "no: http://...@proxy/ and https://...@b, (socks5://...@c)",
            ),
            ("https://sts.amazonaws.com/?a=b@c, d@e", "https://...@c, ...@e"),
            ("configured proxy user:s3cr3t@proxy:3128 is odd", "configured proxy ...@proxy:3128 is odd"),
            ("\"user:s3cr3t@proxy\" http://a:s3cr3t://b@proxy", "\"...@proxy\" http://...@proxy"),
            ("http://user:s3/cr3t@proxy, next", "http://...@proxy, next"),
            ("nothing", "nothing"),
            ("", ""),
        ] {
            assert_eq!(without_userinfo(text), shown);
        }
    }

    #[test]
    fn untrusted_text_is_cut_and_has_no_control_characters() {
        let long = format!("a\u{1b}[31m\nb{}", "ü".repeat(600));
        assert_eq!(bounded(&long), format!("a[31mb{}", "ü".repeat(494)));
        assert_eq!(printable("a\u{1b}[31m\nb\u{85}"), "a?[31m?b?");
        assert_eq!(path("/latest/%0a\u{1b}[31m\nb"), "/latest/%0a[31mb", "nothing is decoded");
        assert_eq!(path(&format!("/{}", "ü".repeat(100))), format!("/{}", "ü".repeat(63)), "128 bytes, and whole characters");
        assert_eq!(quoted("a\n"), r#""a\n""#);
        assert_eq!(quoted(&"x".repeat(201)), format!("\"{}\"... (201 bytes)", "x".repeat(200)));
    }

    #[test]
    fn names_of_objects_have_the_form_that_kubernetes_gives_them() {
        assert!(is_object_name("web-0.shop"));
        for odd in ["", "-a", ".a", "A", "a b", "a\n", "a/b", "ä", &"a".repeat(254)] {
            assert!(!is_object_name(odd), "{odd:?}");
        }
    }
}

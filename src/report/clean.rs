//! Texts of other people, made fit for a report: short, and of characters that no terminal, shell or spreadsheet acts on.

/// The longest name of a client, in bytes.
const MAX_CLIENT: usize = 48;
/// The name of a client that does not say who it is.
const NAMELESS: &str = "unknown";
/// The longest role that is not a valid ARN, in bytes.
const MAX_ROLE: usize = 128;

/// Returns the name of a client: the first product of its `User-Agent`, such as `curl/8.5.0`.
pub(super) fn client(user_agent: Option<&[u8]>) -> String {
    let product = user_agent.unwrap_or_default().split(|byte| byte.is_ascii_whitespace()).find(|part| !part.is_empty());
    let name = cleaned(product.unwrap_or_default(), b"._/+-", MAX_CLIENT);
    if name.is_empty() { NAMELESS.to_owned() } else { name }
}

/// Returns the text of a role annotation that may not be a role.
pub(super) fn role(text: &str) -> String {
    cleaned(text.as_bytes(), b"_+=,.@:/-", MAX_ROLE)
}

/// Returns whether a text has the form of a kind, such as `StatefulSet`.
pub(super) fn is_kind(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && text.starts_with(|c: char| c.is_ascii_uppercase())
}

/// Replaces everything but letters, digits and these characters by `-`, and begins with a letter or a digit: a spreadsheet takes
/// a text that begins with one of `=+-@` for a formula.
fn cleaned(text: &[u8], others: &[u8], longest: usize) -> String {
    let start = text.iter().position(u8::is_ascii_alphanumeric).unwrap_or(text.len());
    let fit = |byte: &u8| if byte.is_ascii_alphanumeric() || others.contains(byte) { char::from(*byte) } else { '-' };
    text[start..].iter().take(longest).map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_the_first_product_without_odd_characters() {
        for (given, name) in [
            ("curl/8.5.0", "curl/8.5.0"),
            ("Boto3/1.9.0 Python/3.7.0 Linux/4.14", "Boto3/1.9.0"),
            ("aws-sdk-go/1.25.0 (go1.13; linux; amd64)", "aws-sdk-go/1.25.0"),
            ("", "unknown"),
            ("  \t", "unknown"),
            ("=cmd|'/c calc'!A1", "cmd--/c"),
            ("--\u{1b}[31mred", "31mred"),
            ("a\nb", "a"),
        ] {
            assert_eq!(client(Some(given.as_bytes())), name, "{given:?}");
        }
        assert_eq!(client(None), "unknown");
        assert_eq!(client(Some(&[b'x'; 500])).len(), MAX_CLIENT);
        assert_eq!(client(Some(b"a\xff\xfe")), "a--");
    }

    #[test]
    fn a_role_annotation_keeps_the_characters_of_roles() {
        assert_eq!(role("arn:aws:iam::1:role/a_b+c=d,e.f@g"), "arn:aws:iam::1:role/a_b+c=d,e.f@g");
        assert_eq!(role("'; rm -rf / #"), "rm--rf-/--");
        assert_eq!(role(&"r".repeat(9000)).len(), MAX_ROLE);
    }

    #[test]
    fn kinds_have_the_form_that_kubernetes_gives_them() {
        assert!(is_kind("StatefulSet"));
        for odd in ["", "set", "9Set", "Set\n", "Se t", &"S".repeat(64)] {
            assert!(!is_kind(odd), "{odd:?}");
        }
    }
}

//! Patterns of roles: they match whole ARNs, from the first character to the last, in linear time.
//!
//! A pattern that does not begin as an ARN is a short name: the base ARN is put before it, as in kube2iam.

use crate::config::PatternFormat;

/// The pattern cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pattern of roles")]
pub struct BadPattern;

/// The longest pattern, in bytes; an ARN has 2048 at most.
const MAX_LENGTH: usize = 4096;
/// What one compiled expression may take, in bytes: the annotation is written by others.
const MAX_COMPILED: usize = 256 * 1024;

/// Whether `pattern` matches the whole of `arn`.
pub fn matches(format: PatternFormat, pattern: &str, base: Option<&str>, arn: &str) -> Result<bool, BadPattern> {
    if pattern.is_empty() || pattern.len() > MAX_LENGTH {
        return Err(BadPattern);
    }
    match format {
        PatternFormat::Glob => {
            let short = !pattern.starts_with("arn:");
            let base = if short { base.unwrap_or_default() } else { "" };
            let name = if short { pattern.strip_prefix('/').unwrap_or(pattern) } else { pattern };
            Ok(glob(&format!("{base}{name}"), arn))
        }
        PatternFormat::Regexp => {
            let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
            let short = !pattern.starts_with("arn:");
            let base = if short { base.map(regex::escape).unwrap_or_default() } else { String::new() };
            let name = if short { pattern.strip_prefix('/').unwrap_or(pattern) } else { pattern };
            // One that is valid by itself cannot end the group that it is put in: `a)|(b` would leave the anchors.
            compile(name)?;
            // A closing `$` of the author's is inside the group and changes nothing.
            Ok(compile(&format!(r"\A{base}(?:{name})\z"))?.is_match(arn))
        }
    }
}

fn compile(expression: &str) -> Result<regex::Regex, BadPattern> {
    regex::RegexBuilder::new(expression).size_limit(MAX_COMPILED).build().map_err(|_| BadPattern)
}

/// `*` stands for any text (also none), everything else for itself. Greedy with one point to go back to, so that the work
/// is bounded by the product of the lengths and in practice linear.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        // No star at all.
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "arn:aws:iam::111122223333:role/";

    fn glob_matches(pattern: &str, role: &str) -> bool {
        matches(PatternFormat::Glob, pattern, Some(BASE), &format!("{BASE}{role}")).unwrap_or(false)
    }

    fn regexp_matches(pattern: &str, role: &str) -> bool {
        matches(PatternFormat::Regexp, pattern, Some(BASE), &format!("{BASE}{role}")).unwrap_or(false)
    }

    #[test]
    fn globs_match_whole_names() {
        for (pattern, role, expected) in [
            ("web", "web", true),
            ("/web", "web", true),
            ("web", "web-admin", false),
            ("web", "my-web", false),
            ("web*", "web-admin", true),
            ("web*", "web", true),
            ("*", "web", true),
            ("team/*", "team/web", true),
            ("team/*", "other/web", false),
            ("*-web-*", "a-web-b", true),
            ("*a*a", "a", false),
            ("a*a", "a", false),
            ("w?b", "web", false),
            ("w.b", "web", false),
            ("arn:aws:iam::111122223333:role/w*", "web", true),
            ("arn:aws:iam::444455556666:role/*", "web", false),
            ("", "web", false),
        ] {
            assert_eq!(glob_matches(pattern, role), expected, "{pattern} on {role}");
        }
    }

    #[test]
    fn regular_expressions_match_whole_names() {
        for (pattern, role, expected) in [
            ("web", "web", true),
            ("web", "web-admin", false),
            ("web", "my-web", false),
            ("^web$", "web", true),
            ("/web", "web", true),
            ("^/team/.*", "team/web", true),
            ("//web", "web", false),
            ("/web", "x/web", false),
            ("/arn:aws:iam::111122223333:role/web", "web", false),
            ("web.*", "web-admin", true),
            ("web|db", "db", true),
            ("web|db", "db-admin", false),
            ("(web|db)", "web", true),
            ("a)|(web.*", "web", false),
            ("web)|(?:.*", "admin", false),
            ("(", "web", false),
            ("(?i)WEB", "web", true),
            ("^arn:aws:iam::111122223333:role/w.b$", "web", true),
            (".*", "web", true),
        ] {
            assert_eq!(regexp_matches(pattern, role), expected, "{pattern} on {role}");
        }
    }

    #[test]
    fn the_base_is_not_part_of_the_expression() {
        let other_account = "arn:aws:iam::111122223333:roleX".replace("roleX", "role/x.web");
        let matched = matches(PatternFormat::Regexp, "web", Some("arn:aws:iam::111122223333:role/x."), &other_account);
        assert_eq!(matched, Ok(true));
        let matched =
            matches(PatternFormat::Regexp, "web", Some("arn:aws:iam::111122223333:role/x."), "arn:aws:iam::111122223333:role/xyweb");
        assert_eq!(matched, Ok(false));
    }

    #[test]
    fn a_star_does_not_reach_beyond_the_base() {
        let other = "arn:aws:iam::444455556666:role/web";
        for format in [PatternFormat::Glob, PatternFormat::Regexp] {
            let everything = if format == PatternFormat::Glob { "*" } else { ".*" };
            assert_eq!(matches(format, everything, Some(BASE), other), Ok(false));
            assert_eq!(matches(format, everything, None, other), Ok(true));
        }
    }

    #[test]
    fn an_expression_that_would_be_huge_is_refused() {
        assert_eq!(matches(PatternFormat::Regexp, "(a{1000}){1000}", None, "x"), Err(BadPattern));
    }

    proptest::proptest! {
        #[test]
        fn a_glob_matches_as_the_expression_that_it_means(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            let expression = format!(r"\A{}\z", regex::escape(&pattern).replace(r"\*", ".*"));
            let expected = regex::Regex::new(&expression).is_ok_and(|expression| expression.is_match(&text));
            proptest::prop_assert_eq!(glob(&pattern, &text), expected);
        }
    }
}

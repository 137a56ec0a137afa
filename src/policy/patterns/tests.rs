#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use super::*;

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn matches(format: PatternFormat, pattern: &str, base: Option<&str>, arn: &str) -> Result<bool, Mistake> {
    Patterns::new(format, base, vec![pattern.to_owned()]).map(|patterns| patterns.find(arn).is_some())
}

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
    let matched = matches(PatternFormat::Regexp, "web", Some("arn:aws:iam::111122223333:role/x."), "arn:aws:iam::111122223333:role/xyweb");
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
    assert_eq!(matches(PatternFormat::Regexp, "(a{1000}){1000}", None, "x"), Err(Mistake::Costly));
}

#[test]
fn a_comment_does_not_swallow_the_anchor() {
    for pattern in ["(?x)web # .*", "(?x)web #", "web(?x)#", "(?x)(?:web#"] {
        assert!(!regexp_matches(pattern, "web-admin"), "{pattern}");
    }
}

#[test]
fn lists_are_bounded() {
    use Mistake::*;
    let parse = |text: &str| Patterns::of_list(PatternFormat::Glob, Some(BASE), text).map(|patterns| patterns.count());
    let list = |patterns: Vec<String>| serde_json::to_string(&patterns).unwrap();
    let text_of = |bytes: usize| format!("[\"x\"{}]", " ".repeat(bytes - 5));
    for (text, expected) in [
        (list(vec!["web".to_owned(); MAX_PATTERNS]), Ok(MAX_PATTERNS)),
        (list(vec!["web".to_owned(); MAX_PATTERNS + 1]), Err(TooLarge)),
        (list(vec!["w".repeat(MAX_LENGTH)]), Ok(1)),
        (list(vec!["w".repeat(MAX_LENGTH + 1)]), Err(TooLarge)),
        (text_of(MAX_TEXT), Ok(1)),
        (text_of(MAX_TEXT + 1), Err(TooLarge)),
        ("x".repeat(1024 * 1024), Err(TooLarge)),
        ("[".repeat(MAX_TEXT), Err(NotAList)),
        ("[\"web\"".to_owned(), Err(NotAList)),
        ("[\"we\u{0}b\"]".to_owned(), Err(NotAList)),
        ("[]".to_owned(), Ok(0)),
        ("[\"\"]".to_owned(), Err(EmptyPattern)),
    ] {
        assert_eq!(parse(&text), expected, "{} bytes, {:?}", text.len(), text.get(..20));
    }
}

#[test]
fn a_full_list_of_ordinary_expressions_compiles_but_no_hostile_one() {
    let ordinary = (0..MAX_PATTERNS).map(|n| format!("arn:aws:iam::111122223333:role/team-{n}/web-.*")).collect();
    let ordinary = Patterns::new(PatternFormat::Regexp, None, ordinary).unwrap();
    assert_eq!(ordinary.find("arn:aws:iam::111122223333:role/team-255/web-1"), Some("arn:aws:iam::111122223333:role/team-255/web-.*"));
    let hostile = vec![r"(\w{40}|\W{40}){3}".to_owned(); MAX_PATTERNS];
    assert_eq!(Patterns::new(PatternFormat::Regexp, None, hostile).err(), Some(Mistake::Costly));
}

#[test]
fn a_kiam_expression_matches_whole_arns() {
    let permits = |expression: &str| Patterns::of_expression(expression).map(|found| found.find(&format!("{BASE}web")).is_some());
    for (expression, expected) in [
        (".*", Ok(true)),
        (".*web", Ok(true)),
        ("^arn:aws:iam::111122223333:role/web$", Ok(true)),
        ("arn:aws:iam::111122223333:role/(web|db)", Ok(true)),
        ("web", Ok(false)),
        ("arn:aws:iam::111122223333:role/we", Ok(false)),
        ("", Ok(false)),
        ("(", Err(Mistake::BadPattern)),
        ("a)|(.*", Err(Mistake::BadPattern)),
        (&"a".repeat(MAX_LENGTH + 1), Err(Mistake::TooLarge)),
    ] {
        assert_eq!(permits(expression), expected, "{expression}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in "([\\[\\]\",(){}|?*+\\\\^$#-]|arn:aws|web|\\PC){0,24}", arn in "(arn:aws:iam::|web|/|\\PC){0,8}") {
        for format in [PatternFormat::Glob, PatternFormat::Regexp] {
            if let Ok(patterns) = Patterns::new(format, Some(BASE), vec![text.clone()]) {
                let _ = patterns.find(&arn);
            }
            let _ = Patterns::of_list(format, None, &text);
        }
        let _ = Patterns::of_expression(&text);
    }

    /// Any text that an expression matches starts with the base, so no expression escapes its group.
    #[test]
    fn an_expression_never_escapes_its_base(pattern in "[web.*|()?:^$\\[\\]-]{0,12}") {
        let short = !pattern.strip_prefix('^').unwrap_or(&pattern).starts_with("arn:");
        if let Ok(found) = matches(PatternFormat::Regexp, &pattern, Some(BASE), "web") {
            proptest::prop_assert!(!(short && found), "{}", pattern);
        }
    }

    #[test]
    fn a_glob_matches_like_the_equivalent_expression(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
        let expression = format!(r"\A{}\z", regex::escape(&pattern).replace(r"\*", ".*"));
        let expected = regex::Regex::new(&expression).is_ok_and(|expression| expression.is_match(&text));
        proptest::prop_assert_eq!(glob(&pattern, &text), expected);
    }
}

#[test]
fn remembered_matches_are_unchanged_and_bounded() {
    let patterns = Patterns::new(PatternFormat::Regexp, None, vec!["arn:a[0-9]*".to_owned(), "arn:b".to_owned()]).unwrap();
    for _ in 0..2 {
        assert_eq!(patterns.find("arn:a1"), Some("arn:a[0-9]*"));
        assert_eq!(patterns.find("arn:b"), Some("arn:b"));
        assert_eq!(patterns.find("arn:c"), None);
    }
    for number in 0..3 * MAX_MATCHED {
        assert!(patterns.find(&format!("arn:a{number}")).is_some());
    }
    let Matcher::Expressions(_, matched) = &patterns.matcher else { panic!("they are expressions") };
    assert!(matched.0.lock().unwrap().len() <= MAX_MATCHED);
}

use super::*;

#[test]
fn values_of_tags_are_what_sts_takes() {
    for (text, expected) in [
        ("web-0", "web-0"),
        ("", ""),
        ("a b_c.d:e/f=g+h-i@j", "a b_c.d:e/f=g+h-i@j"),
        ("a*b\nc\"d", "a-b-c-d"),
        ("w\u{e9}b", "w-b"),
        (&"x".repeat(300), &"x".repeat(256)),
    ] {
        assert_eq!(Tag::new(SessionTag::Cluster, text).value(), expected, "{text:?}");
    }
}

#[test]
fn keys_are_distinct_and_not_reserved() {
    let keys: std::collections::HashSet<_> = SessionTag::NAMES.iter().map(|(_, tag)| tag.key()).collect();
    assert_eq!(keys.len(), SessionTag::NAMES.len());
    assert!(keys.iter().all(|key| !key.starts_with("aws:") && key.len() <= 128));
}

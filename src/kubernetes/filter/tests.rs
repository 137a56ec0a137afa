#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use serde_json::{Value, json};

use super::*;

pub(crate) fn excerpt(fields: &Field, pieces: &[&[u8]]) -> Document {
    let mut filter = Filter::new(fields);
    pieces.iter().for_each(|piece| filter.feed(piece));
    filter.finish()
}

/// What is kept of a document, in however large pieces it comes.
#[track_caller]
pub(crate) fn kept(fields: &Field, json: &[u8]) -> String {
    let Document::Complete(once) = Filter::once(fields, json) else { panic!("{}", String::from_utf8_lossy(json)) };
    for size in [1, 2, 3, 7] {
        let pieces: Vec<_> = json.chunks(size).collect();
        let Document::Complete(again) = excerpt(fields, &pieces) else { panic!("pieces of {size}") };
        assert_eq!(again, once, "pieces of {size}");
    }
    String::from_utf8(once.json).unwrap()
}

/// JSON as the API server writes it.
pub(crate) fn escaped(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003E").replace('\u{2028}', "\\u2028")
}

#[test]
fn what_is_not_read_is_left_out_whatever_it_is() {
    let fields = Field::object([
        ("a", Field::text()),
        ("b", Field::object([("c", Field::text())])),
        ("d", Field::array(Field::object([("e", Field::OneOf(&["x", "yes"]))]))),
        ("f", Field::object([])),
    ]);
    for (json, wanted) in [
        (r#"{}"#, r#"{}"#),
        (r#" { "a" : "1" , "z" : [ "a", {"a":"2"}, "\"]}" ] } "#, r#"{"a":"1"}"#),
        (r#"{"z":{"a":[{"a":"\\"}]},"a":null,"y":-1.5e3,"b":{"z":true,"c":"\u003c","a":"2"}}"#, r#"{"a":null,"b":{"c":"\u003c"}}"#),
        // A key may be escaped.
        (r#"{"\u0061":"1","a\u0062":"2"}"#, r#"{"\u0061":"1"}"#),
        (
            r#"{"d":[{"e":"x"},{"e":"no"},{"e":"x"},{},{"e":"never"},{"e":"\u0078"},{"e":"yes"}]}"#,
            r#"{"d":[{"e":"x"},{"e":""},{},{"e":"\u0078"},{"e":"yes"}]}"#,
        ),
        (r#"{"f":{"a":"1"}}"#, r#"{"f":{}}"#),
        (r#"{"f":[1,2]}"#, r#"{"f":0}"#),
        (r#"{"f":"[{"}"#, r#"{"f":""}"#),
        // Values of other types stay of other types.
        (r#"{"a":{"a":"1"},"b":["1"],"d":{"e":"x"}}"#, r#"{"a":{},"b":0,"d":{}}"#),
        (r#"{"a":17,"b":"c","d":[["x"],7,null]}"#, r#"{"a":17,"b":"","d":[0,7,null]}"#),
        // Twice is twice: that is for whoever decodes it.
        (r#"{"a":"1","a":"2"}"#, r#"{"a":"1","a":"2"}"#),
    ] {
        assert_eq!(kept(&fields, json.as_bytes()), wanted, "{json}");
    }
}

#[test]
fn what_is_no_document_is_said_to_be_none() {
    let fields = Field::object([("a", Field::text()), ("b", Field::array(Field::text()))]);
    assert_eq!(Filter::once(&fields, b" \r\t"), Document::Empty);
    let whole = br#"{"a":"\u003c\\","b":[1,"2"],"c":{"d":["}\"",{}]}}"#;
    for end in 1..whole.len() {
        assert_eq!(Filter::once(&fields, &whole[..end]), Document::Broken, "{end}");
    }
    for broken in [
        r#"{"a":}"#,
        r#"{"a" "1"}"#,
        r#"{a:1}"#,
        r#"{"a":"1""b":2}"#,
        r#"{"b":[1}"#,
        r#"{"b":[1 2]}"#,
        r#"{"a":"1"}}"#,
        r#"{"a":"1"}{}"#,
        "}",
        ",",
        r#"{"c":,}"#,
        r#"{"a":"1"]"#,
    ] {
        assert_eq!(Filter::once(&fields, broken.as_bytes()), Document::Broken, "{broken}");
    }
}

#[test]
fn strings_are_cut_where_they_are_too_long_and_never_within_a_character() {
    let fields = Field::object([("a", Field::Scalar(4))]);
    for (text, left) in [
        ("1234", "1234"),
        ("12345", "12345"),
        ("123456", "12345"),
        ("<<<<<<", "<<<<<"),
        ("123\u{1f600}\u{1f600}", "123\u{1f600}"),
        ("1234\u{1f600}\u{1f600}", "1234\u{1f600}"),
        ("\u{e9}\u{e9}\u{e9}\u{e9}", "\u{e9}\u{e9}\u{e9}"),
        ("\u{2028}\u{2028}\u{2028}", "\u{2028}\u{2028}"),
        ("\n\n\n\n\n\n", "\n\n\n\n\n"),
        ("\u{1}\u{1}\u{1}\u{1}\u{1}\u{1}", "\u{1}\u{1}\u{1}\u{1}\u{1}"),
    ] {
        let plain = json!({ "a": text }).to_string();
        let code_units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
        for json in [escaped(&plain), format!(r#"{{"a":"{code_units}"}}"#), plain] {
            assert_eq!(serde_json::from_str::<Value>(&kept(&fields, json.as_bytes())).unwrap(), json!({ "a": left }), "{json}");
        }
    }
}

#[test]
fn an_escape_that_is_none_ends_no_string_early() {
    let fields = Field::object([("a", Field::text()), ("b", Field::text())]);
    for odd in [r#"\u12"#, r#"\uzzzz"#, r#"\q"#, r#"\ud800"#] {
        let json = format!(r#"{{"a":"{odd}","b":"1"}}"#);
        assert_eq!(kept(&fields, json.as_bytes()), json);
    }
}

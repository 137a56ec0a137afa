//! Colors of results, for terminals only. The words stay as they are, so that nothing depends on colors.

use std::borrow::Cow;
use std::io::IsTerminal as _;

/// The words that have a color, with its code (ECMA-48, SGR).
const WORDS: [(&str, &str); 8] = [
    ("ok", "32"),
    ("allowed", "32"),
    ("warning", "33"),
    ("unknown", "33"),
    ("failed", "31"),
    ("denied", "31"),
    ("no", "31"),
    ("skipped", "2"),
];

/// Whether standard output gets colors: if it is a terminal that has them, and `NO_COLOR` is unset or empty (<https://no-color.org>).
pub(super) fn is_wanted(env: &dyn Fn(&str) -> Option<String>) -> bool {
    permits(env) && std::io::stdout().is_terminal()
}

fn permits(env: &dyn Fn(&str) -> Option<String>) -> bool {
    let given = |name: &str| env(name).filter(|value| !value.is_empty());
    given("NO_COLOR").is_none() && given("TERM").is_some_and(|term| term != "dumb")
}

/// Colors the verdicts of a text: the first word of an indented line, or the word before a colon at the beginning of a line.
pub(super) fn verdicts(text: &str, wanted: bool) -> Cow<'_, str> {
    if !wanted {
        return Cow::Borrowed(text);
    }
    text.split_inclusive('\n').map(line).collect::<String>().into()
}

fn line(line: &str) -> Cow<'_, str> {
    let (indent, rest, end) = match line.strip_prefix("  ") {
        Some(rest) => ("  ", rest, ' '),
        None => ("", line, ':'),
    };
    let colored = WORDS.iter().find_map(|(word, code)| {
        let after = rest.strip_prefix(word).filter(|after| after.starts_with(end))?;
        Some(format!("{indent}\x1b[{code}m{word}\x1b[0m{after}"))
    });
    colored.map_or(Cow::Borrowed(line), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verdicts_have_a_color_and_the_words_stay() {
        let text = "AWS\n  ok       region  x\n  failed   sts  ok\n  okay     x\nnote: no\n\ndenied: no\n";
        let colored = verdicts(text, true);
        assert_eq!(
            colored,
            "AWS\n  \x1b[32mok\x1b[0m       region  x\n  \x1b[31mfailed\x1b[0m   sts  ok\n  okay     x\nnote: no\n\n\x1b[31mdenied\x1b[0m: no\n"
        );
        assert_eq!(verdicts(text, false), text);
    }

    #[test]
    fn the_environment_may_forbid_colors() {
        let of = |no_color: Option<&'static str>, term: Option<&'static str>| {
            permits(&move |name| if name == "NO_COLOR" { no_color } else { term }.map(str::to_owned))
        };
        assert!(of(None, Some("xterm")) && of(Some(""), Some("xterm")));
        for (no_color, term) in [(Some("1"), Some("xterm")), (Some("0"), Some("xterm")), (None, Some("dumb")), (None, None)] {
            assert!(!of(no_color, term), "{no_color:?} {term:?}");
        }
    }
}

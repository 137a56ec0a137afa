//! Prints the story, and records whether its checks passed.

use std::io::IsTerminal as _;

/// The maximum width of a printed line, in columns.
const WIDTH: usize = 104;

/// Prints the story, and counts passed and failed checks.
#[derive(Debug)]
pub(crate) struct Story {
    colours: bool,
    passed: usize,
    failed: Vec<String>,
    heading: String,
}

impl Story {
    /// Creates a story on standard output, with colours on a terminal.
    pub(crate) fn new() -> Story {
        Story { colours: std::io::stdout().is_terminal(), passed: 0, failed: Vec::new(), heading: String::new() }
    }

    /// Begins a new part, with a few sentences about it.
    pub(crate) fn heading(&mut self, title: &str, text: &str) {
        self.heading = title.to_owned();
        println!("\n{}", self.painted("1", title));
        println!("{}", self.painted("1", &"-".repeat(title.chars().count())));
        self.text(text);
    }

    /// Prints a paragraph.
    pub(crate) fn text(&self, text: &str) {
        for line in wrap(text.split(' '), WIDTH, "") {
            println!("{line}");
        }
    }

    /// Prints a command that can be repeated in another terminal. Words are never broken.
    pub(crate) fn command(&self, words: &[String]) {
        println!();
        for (at, line) in wrap(words.iter().map(String::as_str), WIDTH - 8, " \\").iter().enumerate() {
            println!("{}{}", if at == 0 { "  $ " } else { "      " }, self.painted("36", line));
        }
    }

    /// Prints the result of a command.
    pub(crate) fn output(&self, text: &str) {
        for line in text.lines() {
            let indent = line.len() - line.trim_start().len();
            for part in wrap(line.trim_start().split(' '), WIDTH - 4 - indent, "") {
                println!("    {:indent$}{part}", "");
            }
        }
    }

    /// Prints a program's output unchanged, line by line.
    pub(crate) fn printed(&self, text: &str) {
        text.lines().for_each(|line| println!("{}", format!("    {line}").trim_end()));
    }

    /// Records and prints whether a check passed.
    pub(crate) fn check(&mut self, as_told: bool, expected: &str) {
        let (mark, colour) = if as_told { ("\u{2713}", "32") } else { ("\u{2717} FAILED:", "31") };
        println!("  {} {expected}", self.painted(colour, mark));
        if as_told {
            self.passed += 1;
        } else {
            self.failed.push(format!("{}: {expected}", self.heading));
        }
    }

    /// Prints the number of checks that passed.
    pub(crate) fn end(&self) {
        println!();
        match self.failed.as_slice() {
            [] => println!("{}", self.painted("1;32", &format!("All {} checks passed.", self.passed))),
            failed => {
                println!("{}", self.painted("1;31", &format!("{} of {} checks failed:", failed.len(), failed.len() + self.passed)));
                failed.iter().for_each(|what| println!("  {what}"));
            }
        }
    }

    /// Returns whether all checks passed, and there was at least one.
    pub(crate) fn went_as_told(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Wraps words into lines of at most `width` columns. Every line except the last ends with `join`.
fn wrap<'a>(words: impl Iterator<Item = &'a str>, width: usize, join: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            line.push_str(join);
            lines.push(word.to_owned());
        }
    }
    lines
}

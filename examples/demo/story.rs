//! What is printed, and whether everything went as told.

use std::io::IsTerminal as _;

/// Columns of a printed line.
const WIDTH: usize = 104;

/// Tells the story and keeps the score.
#[derive(Debug)]
pub(crate) struct Story {
    colours: bool,
    passed: usize,
    failed: Vec<String>,
    heading: String,
}

impl Story {
    /// A story on standard output, in colours where that is a terminal.
    pub(crate) fn new() -> Story {
        Story { colours: std::io::stdout().is_terminal(), passed: 0, failed: Vec::new(), heading: String::new() }
    }

    /// A new part, and a few sentences on what happens in it.
    pub(crate) fn heading(&mut self, title: &str, text: &str) {
        self.heading = title.to_owned();
        println!("\n{}", self.painted("1", title));
        println!("{}", self.painted("1", &"-".repeat(title.chars().count())));
        self.text(text);
    }

    /// A paragraph.
    pub(crate) fn text(&self, text: &str) {
        for line in wrap(text.split(' '), WIDTH, "") {
            println!("{line}");
        }
    }

    /// A command that can be repeated in another terminal; a word is never broken.
    pub(crate) fn command(&self, words: &[String]) {
        println!();
        for (at, line) in wrap(words.iter().map(String::as_str), WIDTH - 8, " \\").iter().enumerate() {
            println!("{}{}", if at == 0 { "  $ " } else { "      " }, self.painted("36", line));
        }
    }

    /// What came of it.
    pub(crate) fn output(&self, text: &str) {
        for line in text.lines() {
            let indent = line.len() - line.trim_start().len();
            for part in wrap(line.trim_start().split(' '), WIDTH - 4 - indent, "") {
                println!("    {:indent$}{part}", "");
            }
        }
    }

    /// What a program printed, line by line as it stands.
    pub(crate) fn printed(&self, text: &str) {
        text.lines().for_each(|line| println!("{}", format!("    {line}").trim_end()));
    }

    /// Says whether it is as told.
    pub(crate) fn check(&mut self, as_told: bool, expected: &str) {
        let (mark, colour) = if as_told { ("\u{2713}", "32") } else { ("\u{2717} FAILED:", "31") };
        println!("  {} {expected}", self.painted(colour, mark));
        if as_told {
            self.passed += 1;
        } else {
            self.failed.push(format!("{}: {expected}", self.heading));
        }
    }

    /// The score.
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

    /// Whether everything was as told, and anything was told at all.
    pub(crate) fn went_as_told(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Words in lines of at most `width` columns; every line but the last ends with `join`.
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

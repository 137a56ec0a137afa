//! The words of a container's command line: `command` and `args`, a shell's script, one text for a list.

use serde_json::{Map, Value};

use super::error::MigrateError;

/// Programs that start another one with the words that follow.
const LAUNCHERS: &[&str] = &["tini", "dumb-init", "catatonit"];
const SHELLS: &[&str] = &["sh", "bash", "ash", "dash"];

/// The words of a container, without programs that only start others.
#[derive(Debug, Default)]
pub(super) struct CommandLine {
    pub words: Vec<String>,
    /// What was read otherwise than Kubernetes would.
    pub notes: Vec<String>,
}

/// A flag, with its value if one is given, or a word that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommandWord {
    Flag { name: String, value: Option<String> },
    Bare(String),
}

impl CommandLine {
    /// Reads the command line of a container.
    pub(super) fn of(container: &Map<String, Value>) -> Result<Self, MigrateError> {
        let mut line = Self::default();
        let mut words = line.list(container, "command")?;
        words.extend(line.list(container, "args")?);
        while let Some(first) = words.first() {
            let program = base_name(first);
            if LAUNCHERS.contains(&program) {
                let flags = words.iter().skip(1).take_while(|word| word.starts_with('-')).count();
                words.drain(..=flags);
            } else if SHELLS.contains(&program) {
                let script = words.iter().position(|word| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c'));
                let script = script.and_then(|at| words.get(at + 1)).ok_or(MigrateError::Shell)?;
                let mut inner = split(script)?;
                if inner.first().is_some_and(|word| word == "exec") {
                    inner.remove(0);
                }
                line.notes.push("the command of a shell is written as a list of arguments".to_owned());
                words = inner;
            } else {
                break;
            }
        }
        line.words = words;
        Ok(line)
    }

    /// One of the two lists of a container. A text is not valid there, but is seen: it is split.
    fn list(&mut self, container: &Map<String, Value>, key: &str) -> Result<Vec<String>, MigrateError> {
        let mut words = Vec::new();
        let items = match container.get(key) {
            None | Some(Value::Null) => return Ok(words),
            Some(Value::String(text)) => {
                self.notes.push(format!("{key} was one text instead of a list; it is split at spaces"));
                return split(text);
            }
            Some(Value::Array(items)) => items,
            Some(_) => return Err(MigrateError::Arguments(key.to_owned())),
        };
        let mut is_script = false;
        for item in items {
            let word = match item {
                Value::String(text) => text.clone(),
                // Kubernetes refuses these; what is meant is clear.
                Value::Number(_) | Value::Bool(_) => item.to_string(),
                _ => return Err(MigrateError::Arguments(key.to_owned())),
            };
            if !is_script && is_several(&word) {
                self.notes.push("one argument held several; it is split at spaces".to_owned());
                words.extend(split(&word)?);
            } else {
                is_script = word.starts_with('-') && !word.starts_with("--") && word.ends_with('c');
                words.push(word);
            }
        }
        Ok(words)
    }

    /// The words before the first flag: the program and its subcommand.
    pub(super) fn program(&self) -> impl Iterator<Item = &str> {
        self.words.iter().take_while(|word| !word.starts_with('-')).map(|word| base_name(word))
    }

    /// Flags and other words after the program. `is_switch` says of a flag that it takes no value from the next word.
    pub(super) fn flags(&self, is_switch: impl Fn(&str) -> bool) -> Vec<CommandWord> {
        let mut found = Vec::new();
        let mut words = self.words.iter().skip_while(|word| !word.starts_with('-')).peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
                found.push(CommandWord::Bare(word.clone()));
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None if is_switch(flag) => (flag, None),
                None => (flag, words.next_if(|next| !next.starts_with("--")).cloned()),
            };
            found.push(CommandWord::Flag { name: name.to_owned(), value });
        }
        found
    }
}

/// Whether one item of a list holds several flags, or a flag and its value with a space between them.
fn is_several(word: &str) -> bool {
    let is_flag = word.starts_with("--");
    let name = word.split('=').next().unwrap_or_default();
    is_flag && (word.contains(" --") || word.contains("\n--") || name.contains(char::is_whitespace))
}

fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or_default()
}

/// Splits as a shell does, where that needs no shell: quotes, backslashes, and variables, which Kubernetes can insert instead.
fn split(script: &str) -> Result<Vec<String>, MigrateError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = script.trim().chars().peekable();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\'', None) => (quote, word) = (Some('\''), Some(word.unwrap_or_default())),
            ('"', None) => (quote, word) = (Some('"'), Some(word.unwrap_or_default())),
            ('\'', Some('\'')) | ('"', Some('"')) => quote = None,
            ('\\', None | Some('"')) => match characters.next() {
                Some('\n') => {}
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err(MigrateError::Shell),
            },
            ('$', None | Some('"')) => {
                let name = variable(&mut characters).ok_or(MigrateError::Shell)?;
                word.get_or_insert_default().push_str(&format!("$({name})"));
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('`', None | Some('"')) | (';' | '|' | '&' | '<' | '>' | '(' | ')' | '#' | '*' | '?' | '{' | '}', None) => {
                return Err(MigrateError::Shell);
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(MigrateError::Shell);
    }
    words.extend(word);
    Ok(words)
}

/// The name of a variable after `$`: `NAME`, `{NAME}`, or Kubernetes' `(NAME)`.
fn variable(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let end = match characters.peek()? {
        '{' => Some('}'),
        '(' => Some(')'),
        _ => None,
    };
    if end.is_some() {
        characters.next();
    }
    let mut name = String::new();
    while let Some(c) = characters.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    let is_closed = end.is_none_or(|end| characters.next() == Some(end));
    (is_closed && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

    use super::*;

    #[test]
    fn scripts_are_split_only_where_no_shell_is_needed() {
        assert_eq!(
            split("exec kube2iam --a='b c' \\\n  --d=\"$E\"${F} --g=$(H)").unwrap(),
            ["exec", "kube2iam", "--a=b c", "--d=$(E)$(F)", "--g=$(H)"]
        );
        for script in ["a; b", "a && b", "a | b", "a $(b c)", "a `b`", "a > b", "a 'b", "a $1", "a ${B:-c}", "a \\", "a # b", "a *"] {
            assert!(matches!(split(script), Err(MigrateError::Shell)), "{script}");
        }
    }
}

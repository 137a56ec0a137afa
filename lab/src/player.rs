//! A player of raw HTTP requests. It sends exactly the bytes that it is given, however malformed, and judges the answer.
//!
//! A corpus is a file of JSON lines, one [`Entry`] each. Each entry passes through [`load`], [`render`], [`play()`] and
//! [`judge`]. The player only writes to streams that it is given, and opens no connections.
#![forbid(unsafe_code)]

mod answer;
mod entry;
mod play;
#[cfg(test)]
mod tests;
mod verdict;

use std::io;
use std::path::Path;

pub use answer::Response;
pub use entry::{Entry, Expect, Mode};
pub use play::{PlayLimits, Transcript, play, request};
pub use verdict::{Own, judge};

/// The values for an entry's placeholders. `{OWN_ROLE_SWAPCASE}` is derived from the own role.
#[derive(Debug, Clone, Default)]
pub struct Substitutions {
    /// `{TOKEN}`: a valid session token of this pod.
    pub token: String,
    /// `{TOKEN_OTHER}`: a valid session token that was issued to another pod.
    pub token_other: String,
    /// `{TOKEN_EXPIRED}`: an expired session token of this pod.
    pub token_expired: String,
    /// `{OWN_ROLE}`: the name of this pod's role.
    pub own_role: String,
    /// `{OTHER_ROLE}`: the name of another pod's role.
    pub other_role: String,
    /// `{NODE_ROLE}`: the name of the node's role.
    pub node_role: String,
    /// `{OTHER_POD_IP}`: the address of a pod with another role.
    pub other_pod_ip: String,
    /// `{NODE_IP}`: the node's address.
    pub node_ip: String,
}

/// Why a corpus cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the corpus: {0}")]
    Read(#[from] io::Error),
    /// A line is not an entry.
    #[error("line {line} of the corpus: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with the line.
        why: String,
    },
}

impl Entry {
    /// Returns whether the entry applies to a daemon that requires tokens, or to one that does not.
    pub fn applies(&self, tokens_required: bool) -> bool {
        match self.mode {
            Mode::Any => true,
            Mode::V1 => !tokens_required,
            Mode::V2 => tokens_required,
        }
    }

    /// Returns all correct answers: [`Entry::expect`], then [`Entry::also_ok`].
    pub fn right(&self) -> impl Iterator<Item = Expect> {
        std::iter::once(self.expect).chain(self.also_ok.iter().copied())
    }

    fn check(&self) -> Result<(), String> {
        if let Some(wide) = self.raw_request.chars().find(|&character| u8::try_from(character).is_err()) {
            return Err(format!("{}: {wide:?} is not latin-1", self.id));
        }
        let nothing = Substitutions::default();
        for piece in pieces(&self.raw_request) {
            let Piece::Placeholder(name) = piece else {
                continue;
            };
            if nothing.value(name).is_none() {
                return Err(format!("{}: unknown placeholder {{{name}}}", self.id));
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CredentialsOfOwnRole => "credentials-of-own-role",
            Self::Passthrough => "passthrough",
            Self::Denied => "denied",
            Self::BadRequest => "bad-request",
        })
    }
}

impl Substitutions {
    fn value(&self, placeholder: &str) -> Option<String> {
        Some(match placeholder {
            "TOKEN" => self.token.clone(),
            "TOKEN_OTHER" => self.token_other.clone(),
            "TOKEN_EXPIRED" => self.token_expired.clone(),
            "OWN_ROLE" => self.own_role.clone(),
            "OWN_ROLE_SWAPCASE" => swap_case(&self.own_role),
            "OTHER_ROLE" => self.other_role.clone(),
            "NODE_ROLE" => self.node_role.clone(),
            "OTHER_POD_IP" => self.other_pod_ip.clone(),
            "NODE_IP" => self.node_ip.clone(),
            _ => return None,
        })
    }
}

/// Reads a corpus. Blank lines are skipped.
///
/// # Errors
/// If the file cannot be read, if a line is not an entry, or contains a character that is not latin-1 or a placeholder that is
/// not in [`Substitutions`], or if two entries have the same ID.
pub fn load(path: impl AsRef<Path>) -> Result<Vec<Entry>, LoadError> {
    let mut entries: Vec<Entry> = Vec::new();
    for (index, line) in std::fs::read_to_string(path)?.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |why: String| LoadError::Line { line: index + 1, why };
        let entry: Entry = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        entry.check().map_err(wrong)?;
        if entries.iter().any(|earlier| earlier.id == entry.id) {
            return Err(wrong(format!("{} is there already", entry.id)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Returns the bytes to send: the placeholders are replaced, and each character is one byte. A character outside latin-1, which
/// only a substitution can contain, becomes `?`.
pub fn render(entry: &Entry, subs: &Substitutions) -> Vec<u8> {
    let text: String = pieces(&entry.raw_request)
        .map(|piece| match piece {
            Piece::Text(text) => text.to_owned(),
            Piece::Placeholder(name) => subs.value(name).unwrap_or_else(|| format!("{{{name}}}")),
        })
        .collect();
    text.chars().map(|character| u8::try_from(character).unwrap_or(b'?')).collect()
}

/// A part of a raw request.
enum Piece<'a> {
    Text(&'a str),
    /// The name between the braces.
    Placeholder(&'a str),
}

/// Splits a raw request at its placeholders: capital letters and underscores in braces.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some((name, after)) = leading_placeholder(rest) {
            rest = after;
            return Some(Piece::Placeholder(name));
        }
        let next = rest.char_indices().skip(1).map(|(at, _)| at).find(|&at| leading_placeholder(&rest[at..]).is_some());
        let (text, after) = rest.split_at(next.unwrap_or(rest.len()));
        rest = after;
        Some(Piece::Text(text))
    })
}

fn leading_placeholder(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    is_name.then_some((name, after))
}

fn swap_case(text: &str) -> String {
    let swap = |c: char| {
        if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
    };
    text.chars().map(swap).collect()
}

//! Patterns of roles: they match whole ARNs, from the first character to the last, in linear time.
//!
//! A pattern that does not begin as an ARN is a short name: the base ARN is put before it, as in kube2iam.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use regex::{RegexSet, RegexSetBuilder};

use crate::advice::Advise;
use crate::config::PatternFormat;

/// An error in a list of patterns. None of the patterns counts then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Not a JSON list of strings.
    #[error("not a JSON list of patterns")]
    NotAList,
    /// Too many or too long patterns.
    #[error("it is longer than 64 KiB, has more than 256 patterns, or has a pattern longer than 4096 bytes")]
    TooLarge,
    /// A pattern is empty, or a regular expression that does not compile.
    #[error("a pattern is empty, is not a regular expression, or needs too much memory")]
    BadPattern,
}

impl Advise for Mistake {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::NotAList => "write a list such as [\"web-*\"]".into(),
            Self::TooLarge => "use fewer and shorter patterns".into(),
            Self::BadPattern => "correct the pattern".into(),
        })
    }
}

/// The longest annotation that is read, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// The most patterns in one list.
pub const MAX_PATTERNS: usize = 256;
/// The longest pattern, in bytes; an ARN has 2048 at most.
pub const MAX_LENGTH: usize = 4096;
/// What the expressions of one list may take together, compiled, in bytes: the annotation is written by others. The work of
/// compiling ends there, too, however many follow.
const MAX_COMPILED: usize = 1024 * 1024;
/// What may be kept of what was matched, to match faster.
const MAX_MATCHING: usize = 256 * 1024;

/// Patterns, ready to be matched.
#[derive(Debug)]
pub struct Patterns {
    /// As they were written.
    written: Vec<String>,
    matcher: Matcher,
}

#[derive(Debug)]
enum Matcher {
    Globs(Vec<String>),
    Expressions(RegexSet, Matched),
}

/// What expressions matched lately: the first of them, by ARN. An expression that its author made slow costs its time once for
/// a role, and not at each request of a pod.
#[derive(Debug, Default)]
struct Matched(Mutex<HashMap<Box<str>, Option<usize>>>);

/// ARNs that are remembered; with more, all are forgotten.
const MAX_MATCHED: usize = 256;

impl Matched {
    fn first(&self, set: &RegexSet, arn: &str) -> Option<usize> {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept().get(arn) {
            return *at;
        }
        // Not under the lock: it may take long.
        let at = set.matches(arn).iter().next();
        let mut kept = kept();
        if kept.len() >= MAX_MATCHED {
            kept.clear();
        }
        kept.insert(arn.into(), at);
        at
    }
}

impl Patterns {
    /// Reads a JSON list of patterns.
    pub fn of_list(format: PatternFormat, base: Option<&str>, text: &str) -> Result<Self, Mistake> {
        if text.len() > MAX_TEXT {
            return Err(Mistake::TooLarge);
        }
        Self::new(format, base, serde_json::from_str(text).map_err(|_| Mistake::NotAList)?)
    }

    /// Reads one regular expression for whole ARNs, as kiam's namespaces have it. An empty one matches no ARN.
    pub fn of_expression(text: &str) -> Result<Self, Mistake> {
        if text.len() > MAX_LENGTH {
            return Err(Mistake::TooLarge);
        }
        let matcher = Matcher::Expressions(expressions(None, &[text])?, Matched::default());
        Ok(Self { written: vec![text.to_owned()], matcher })
    }

    /// Patterns of one format; short names are completed with `base`.
    pub fn new(format: PatternFormat, base: Option<&str>, written: Vec<String>) -> Result<Self, Mistake> {
        if written.len() > MAX_PATTERNS || written.iter().any(|pattern| pattern.len() > MAX_LENGTH) {
            return Err(Mistake::TooLarge);
        }
        if written.iter().any(String::is_empty) {
            return Err(Mistake::BadPattern);
        }
        let matcher = match format {
            PatternFormat::Glob => Matcher::Globs(written.iter().map(|pattern| completed(pattern, base)).collect()),
            PatternFormat::Regexp => Matcher::Expressions(expressions(base, &written)?, Matched::default()),
        };
        Ok(Self { written, matcher })
    }

    /// The first pattern that matches the whole of `arn`, as it was written.
    pub fn find(&self, arn: &str) -> Option<&str> {
        let at = match &self.matcher {
            Matcher::Globs(globs) => globs.iter().position(|pattern| glob(pattern, arn)),
            Matcher::Expressions(set, matched) => matched.first(set, arn),
        };
        at.and_then(|at| self.written.get(at)).map(String::as_str)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.written.len()
    }
}

fn completed(pattern: &str, base: Option<&str>) -> String {
    match base {
        _ if pattern.starts_with("arn:") => pattern.to_owned(),
        base => format!("{}{}", base.unwrap_or_default(), pattern.strip_prefix('/').unwrap_or(pattern)),
    }
}

fn expressions(base: Option<&str>, patterns: &[impl AsRef<str>]) -> Result<RegexSet, Mistake> {
    let compile = |patterns: &[String]| {
        let mut set = RegexSetBuilder::new(patterns);
        set.size_limit(MAX_COMPILED).dfa_size_limit(MAX_MATCHING).build().map_err(|_| Mistake::BadPattern)
    };
    // A set reads each by itself. One that is valid so cannot end the group that it is put in: `a)|(b` would leave the anchors.
    let (mut alone, mut whole) = (Vec::with_capacity(patterns.len()), Vec::with_capacity(patterns.len()));
    for pattern in patterns {
        let pattern = pattern.as_ref().strip_prefix('^').unwrap_or(pattern.as_ref());
        let (base, pattern) = match base {
            Some(base) if !pattern.starts_with("arn:") => (regex::escape(base), pattern.strip_prefix('/').unwrap_or(pattern)),
            _ => (String::new(), pattern),
        };
        alone.push(pattern.to_owned());
        // A closing `$` of the author's is inside the group and changes nothing.
        whole.push(format!(r"\A{base}(?:{pattern})\z"));
    }
    compile(&alone)?;
    compile(&whole)
}

/// `*` stands for any text (also none), everything else for itself. Each part is looked for once, behind the one before, so
/// that the work is bounded by the product of the lengths and in practice linear.
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
mod tests;

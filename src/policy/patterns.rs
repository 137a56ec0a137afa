//! Patterns for roles. They match whole ARNs, from the first character to the last, in linear time.
//!
//! A pattern that does not start with `arn:` is a short name, and is completed with the base ARN, as in kube2iam.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use regex::{RegexSet, RegexSetBuilder};

use crate::advice::Advise;
use crate::config::PatternFormat;

/// An error in a list of patterns. None of its patterns applies then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Not a JSON list of strings.
    #[error("it is not a JSON list of patterns")]
    NotAList,
    /// Too many or too long patterns.
    #[error("it is longer than 64 KiB, has more than 256 patterns, or has a pattern longer than 4096 bytes")]
    TooLarge,
    /// A pattern is empty.
    #[error("it has a pattern that is empty")]
    EmptyPattern,
    /// A pattern is a regular expression that does not parse.
    #[error("it has a pattern that is not a regular expression")]
    BadPattern,
    /// The expressions take too much memory, compiled.
    #[error("its regular expressions need too much memory")]
    Costly,
}

impl Advise for Mistake {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::NotAList => "write a list such as [\"web-*\"]".into(),
            Self::TooLarge => "use fewer and shorter patterns".into(),
            Self::EmptyPattern => "remove the pattern, or write one".into(),
            Self::BadPattern => "correct the pattern".into(),
            Self::Costly => "use simpler patterns: smaller repetitions, fewer character classes".into(),
        })
    }
}

/// The longest annotation that is read, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// The maximum number of patterns in one list.
pub const MAX_PATTERNS: usize = 256;
/// The longest pattern, in bytes. An ARN has at most 2048.
pub const MAX_LENGTH: usize = 4096;
/// The maximum total size of the compiled expressions of one list, in bytes. It is limited because tenants write the annotation.
/// The limit also bounds the work of compiling, however many expressions follow.
const MAX_COMPILED: usize = 1024 * 1024;
/// The maximum size of the cache that speeds up matching, in bytes.
const MAX_MATCHING: usize = 256 * 1024;

/// Compiled patterns.
#[derive(Debug)]
pub struct Patterns {
    /// The patterns as written.
    written: Vec<String>,
    matcher: Matcher,
}

#[derive(Debug)]
enum Matcher {
    Globs(Vec<String>),
    Expressions(RegexSet, Matched),
}

/// The recent matches of expressions: the first matching expression, by ARN. An expression that its author made slow is
/// evaluated once for each role, not for each request of a pod.
#[derive(Debug, Default)]
struct Matched(Mutex<HashMap<Box<str>, Option<usize>>>);

/// The maximum number of remembered ARNs. When it is reached, all are forgotten.
const MAX_MATCHED: usize = 256;

impl Matched {
    fn first(&self, set: &RegexSet, arn: &str) -> Option<usize> {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept().get(arn) {
            return *at;
        }
        // Matched outside the lock, because it may take long.
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
    /// Parses a JSON list of patterns.
    pub fn of_list(format: PatternFormat, base: Option<&str>, text: &str) -> Result<Self, Mistake> {
        if text.len() > MAX_TEXT {
            return Err(Mistake::TooLarge);
        }
        Self::new(format, base, serde_json::from_str(text).map_err(|_| Mistake::NotAList)?)
    }

    /// Parses one regular expression for whole ARNs, as in kiam's namespace annotation. An empty one matches no ARN.
    pub fn of_expression(text: &str) -> Result<Self, Mistake> {
        if text.len() > MAX_LENGTH {
            return Err(Mistake::TooLarge);
        }
        let matcher = Matcher::Expressions(expressions(None, &[text])?, Matched::default());
        Ok(Self { written: vec![text.to_owned()], matcher })
    }

    /// Creates patterns of one format. Short names are completed with `base`.
    pub fn new(format: PatternFormat, base: Option<&str>, written: Vec<String>) -> Result<Self, Mistake> {
        if written.len() > MAX_PATTERNS || written.iter().any(|pattern| pattern.len() > MAX_LENGTH) {
            return Err(Mistake::TooLarge);
        }
        if written.iter().any(String::is_empty) {
            return Err(Mistake::EmptyPattern);
        }
        let matcher = match format {
            PatternFormat::Glob => Matcher::Globs(written.iter().map(|pattern| completed(pattern, base)).collect()),
            PatternFormat::Regexp => Matcher::Expressions(expressions(base, &written)?, Matched::default()),
        };
        Ok(Self { written, matcher })
    }

    /// Returns the first pattern that matches the whole of `arn`, as written.
    pub fn find(&self, arn: &str) -> Option<&str> {
        let at = match &self.matcher {
            Matcher::Globs(globs) => globs.iter().position(|pattern| glob(pattern, arn)),
            Matcher::Expressions(set, matched) => matched.first(set, arn),
        };
        at.and_then(|at| self.written.get(at)).map(String::as_str)
    }

    /// Returns the number of patterns.
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
        set.size_limit(MAX_COMPILED).dfa_size_limit(MAX_MATCHING).build().map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => Mistake::Costly,
            _ => Mistake::BadPattern,
        })
    };
    // Each pattern must be valid alone. A valid pattern cannot close the group that it is put in: `a)|(b` would escape the
    // anchors.
    let (mut alone, mut whole) = (Vec::with_capacity(patterns.len()), Vec::with_capacity(patterns.len()));
    for pattern in patterns {
        let pattern = pattern.as_ref().strip_prefix('^').unwrap_or(pattern.as_ref());
        let (base, pattern) = match base {
            Some(base) if !pattern.starts_with("arn:") => (regex::escape(base), pattern.strip_prefix('/').unwrap_or(pattern)),
            _ => (String::new(), pattern),
        };
        alone.push(pattern.to_owned());
        // A final `$` in the pattern is inside the group and changes nothing.
        whole.push(format!(r"\A{base}(?:{pattern})\z"));
    }
    compile(&alone)?;
    compile(&whole)
}

/// Matches `*` against any text, including none, and all other characters literally. Each part is searched once, after the
/// previous one, so the work is bounded by the product of the lengths and is linear in practice.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        // The pattern has no star.
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

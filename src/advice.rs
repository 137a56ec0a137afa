//! Errors in two parts: the cause and the advice. They are joined only where a person reads them: "CAUSE. To fix: ADVICE".
//!
//! The text of an error ([`std::fmt::Display`]) is only its cause, and an underlying error is its
//! [`source`](std::error::Error::source). An error that is wrapped in another one therefore keeps its advice separate.

use std::borrow::Cow;
use std::error::Error;

/// An error that may have advice.
pub trait Advise: Error {
    /// Returns what to do about the error; `None` if there is nothing that a person could do.
    fn advice(&self) -> Option<Cow<'static, str>>;

    /// Returns the whole text for a person: the error, its sources and the advice.
    fn with_advice(&self) -> String
    where
        Self: Sized,
    {
        join(&chain(self), self.advice().as_deref())
    }
}

/// Returns the text of an error and its sources in one line: "cannot run nft: No such file or directory". Leaves out a source
/// whose text is already included, because some libraries repeat it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// Joins a cause and its advice.
pub fn join(cause: &str, advice: Option<&str>) -> String {
    match advice {
        Some(advice) => format!("{}. To fix: {advice}", cause.trim_end_matches('.')),
        None => cause.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Locked(#[source] std::io::Error, bool);

    impl Advise for Locked {
        fn advice(&self) -> Option<Cow<'static, str>> {
            self.1.then(|| "use the key".into())
        }
    }

    #[test]
    fn cause_source_and_advice_are_joined_once() {
        let locked = |key| Locked(std::io::ErrorKind::PermissionDenied.into(), key);
        assert_eq!(locked(true).with_advice(), "cannot open the door: permission denied. To fix: use the key");
        assert_eq!(locked(false).with_advice(), "cannot open the door: permission denied");
        assert_eq!(join("it ended.", Some("start it")), "it ended. To fix: start it");
    }
}

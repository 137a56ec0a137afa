//! Failures that end a command, as people read them.

use std::borrow::Cow;

use crate::advice::{Advise, chain, join};
use crate::credentials::AssumeRoleError;
use crate::credentials::sts::AwsError;
use crate::daemon_client::AskError;
use crate::kubernetes::setup::ClientError;
use crate::pods::watch::snapshot::SnapshotError;
use crate::policy::patterns::Mistake;
use crate::redirect::RedirectError;
use crate::redirect::bpf::BpfError;
use crate::tasks::TaskEnded;
use crate::unix_socket::PlaceError;

/// A failure that only the command itself knows.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub(super) struct Failure {
    cause: String,
    advice: Option<Cow<'static, str>>,
}

impl Failure {
    /// A failure with this cause, and what to do about it.
    pub(super) fn new(cause: impl Into<String>, advice: impl Into<Cow<'static, str>>) -> Self {
        Self { cause: cause.into(), advice: Some(advice.into()) }
    }

    /// The failures of several attempts. What several of them advise is said once.
    pub(super) fn of_all(errors: &[impl Advise]) -> Self {
        let cause = errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; ");
        let mut advice: Vec<_> = errors.iter().filter_map(Advise::advice).collect();
        advice.dedup();
        Self { cause, advice: (!advice.is_empty()).then(|| advice.join("; ").into()) }
    }
}

impl Advise for Failure {
    fn advice(&self) -> Option<Cow<'static, str>> {
        self.advice.clone()
    }
}

/// Returns the whole text of a failure: what happened, with every source, and then the advice.
pub(crate) fn text(failure: &anyhow::Error) -> String {
    join(&format!("{failure:#}"), advice(failure).as_deref())
}

/// Returns what to do about a failure.
pub(super) fn advice(failure: &anyhow::Error) -> Option<Cow<'static, str>> {
    [of::<Failure>, of::<RedirectError>, of::<AwsError>, of::<AssumeRoleError>, of::<ClientError>, of::<AskError>]
        .into_iter()
        .chain([of::<BpfError>, of::<PlaceError>, of::<Mistake>, of::<SnapshotError>, of::<TaskEnded>])
        .find_map(|of| of(failure))
}

/// Returns the advice of the error of this type, whatever contexts it has.
fn of<E: Advise + Send + Sync + 'static>(failure: &anyhow::Error) -> Option<Cow<'static, str>> {
    failure.downcast_ref::<E>()?.advice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_of_several_failures_is_said_once() {
        let error = |program| RedirectError::Program { program, source: std::io::ErrorKind::NotFound.into() };
        let failure = anyhow::Error::new(Failure::of_all(&[error("nft"), error("iptables")]));
        let advice = error("nft").advice().map(Cow::into_owned);
        assert_eq!(text(&failure), join("cannot run nft: entity not found; cannot run iptables: entity not found", advice.as_deref()));
        assert_eq!(text(&failure).matches("To fix: ").count(), 1);
    }

    #[test]
    fn the_advice_of_an_error_stands_last_whatever_it_is_wrapped_in() {
        let error = RedirectError::Program { program: "nft", source: std::io::ErrorKind::NotFound.into() };
        let advice = error.advice().map(Cow::into_owned);
        let failure = anyhow::Error::new(error).context("the guard");
        assert_eq!(text(&failure), join("the guard: cannot run nft: entity not found", advice.as_deref()));
        let failure = anyhow::Error::new(Failure::new("no address", "give --host-ip")).context("the rules");
        assert_eq!(text(&failure), "the rules: no address. To fix: give --host-ip");
        // A failure that is itself the context of another error.
        let in_use = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let failure = anyhow::Error::new(in_use).context(Failure::new("cannot listen", "stop it")).context("the port");
        assert_eq!(text(&failure), "the port: cannot listen: address in use. To fix: stop it");
    }
}

//! The outcome of a self-test: its state, and the reason of a failure.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::advice::Advise;

/// The result of the last test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SelfTestState {
    /// Every packet was handled as expected.
    Passed,
    /// At least one packet was not.
    Failed,
    /// The test cannot run here.
    Unavailable,
    /// The test is switched off.
    Off,
}

impl SelfTestState {
    /// Every state.
    pub(crate) const ALL: [Self; 4] = [Self::Passed, Self::Failed, Self::Unavailable, Self::Off];

    /// Returns the value of the label `state` of the metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::Off => "off",
        }
    }
}

/// The reason why a test failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SelfTestFailure {
    #[error("the self-test's connection to {0} went elsewhere: the real metadata service may answer pods")]
    Missed(SocketAddr),
    #[error("the self-test's connection to {0} was refused")]
    Refused(SocketAddr),
    #[error("the self-test's connection to {0} got no answer")]
    TimedOut(SocketAddr),
    #[error("the self-test's connection to {0} found no route")]
    Unreachable(SocketAddr),
    #[error("the self-test can connect to {0}, which the guard must reject")]
    Open(SocketAddr),
    #[error("the self-test's packet to {to} got past the guard ({by} answered): pods may reach the real metadata service")]
    Unguarded { to: SocketAddr, by: IpAddr },
    #[error("the self-test's packet to {0} got no answer, but the guard would have rejected it: pods may reach the real metadata service")]
    Unproven(SocketAddr),
    #[error("cannot connect the test's namespace to the node")]
    NotMade(#[source] io::Error),
    #[error("the helper process ended")]
    Ended,
}

impl Advise for SelfTestFailure {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Missed(_) => "check that the redirect rule exists, matches the pods' interfaces (--host-interface), comes before other \
                                rules, and redirects to this daemon"
                .into(),
            Self::Refused(_) => "check that the redirect rule redirects to the address and port of this daemon".into(),
            Self::TimedOut(_) => "find what drops the packets or the answers (network policies, firewalls, rp_filter)".into(),
            Self::Unreachable(_) => "check the node's routes and network policies; the node does not accept packets for the address".into(),
            Self::Open(_) | Self::Unguarded { .. } => {
                "check that the guard's rules exist, and that no rule before them accepts the packet".into()
            }
            Self::Unproven(_) => "check that the guard's rules exist, that no rule before them accepts or drops the packet, and that a \
                                  guard of another program rejects packets and does not drop them"
                .into(),
            Self::NotMade(_) | Self::Ended => return None,
        })
    }
}

impl SelfTestFailure {
    /// Returns the value of the label `reason` of the metric.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Missed(_) => "missed",
            Self::Refused(_) => "refused",
            Self::TimedOut(_) => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Open(_) => "open",
            Self::Unguarded { .. } => "guard-missing",
            Self::Unproven(_) => "guard-unknown",
            Self::NotMade(_) => "not-made",
            Self::Ended => "helper",
        }
    }
}

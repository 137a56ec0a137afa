//! The outcome of a self-test: its state, and the reason of a failure.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::advice::Advise;
use crate::redirect::bpf::BpfError;

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
    #[error("BPF programs denied the self-test's connection to {0}")]
    Denied(SocketAddr),
    #[error("the self-test's connection to {0} was redirected by packet rules, not by the BPF programs")]
    ByRules(SocketAddr),
    #[error("the self-test's connection to {0} arrived, but the BPF programs did not record it")]
    Unrecorded(SocketAddr),
    #[error("the BPF programs did not deny the self-test's {} to {to}: pods may reach the real metadata service", what.name())]
    NotDenied { what: Attempt, to: SocketAddr },
    #[error(
        "the BPF programs did not drop the self-test's datagram to {0} from a socket that is not connected: pods may reach the real \
         metadata service"
    )]
    NotDropped(SocketAddr),
    #[error("the exit guard is not attached to {}", .0.join(", "))]
    ExitGuardMissing(Vec<String>),
    #[error("the exit guard makes the wrong decision about packets to {0}")]
    ExitGuardWrong(IpAddr),
    #[error("cannot check the exit guard")]
    ExitGuardUnknown(#[source] BpfError),
    #[error("cannot connect the test's namespace to the node")]
    NotMade(#[source] io::Error),
    #[error("the helper process ended")]
    Ended,
}

/// What the BPF programs must deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// A TCP connection.
    Connection,
    /// A UDP socket that is connected.
    Datagrams,
}

impl Attempt {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Datagrams => "UDP socket",
        }
    }
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
            Self::Denied(_) => {
                "restart the daemon, so that it configures its BPF programs again; if that does not help, find the BPF program of another \
                 component that denies the connection"
                    .into()
            }
            Self::ByRules(_) | Self::Unrecorded(_) | Self::NotDenied { .. } | Self::NotDropped(_) => {
                "find what detaches the BPF programs from the pods' control group; the daemon attaches them again at its next comparison \
                 (--redirect-interval); check --bpf-cgroup"
                    .into()
            }
            Self::ExitGuardMissing(_) => {
                "find what detaches the exit guard; the daemon attaches it again at its next comparison (--redirect-interval); check \
                 --bpf-interfaces"
                    .into()
            }
            Self::ExitGuardWrong(_) => "restart the daemon; if it fails again, report it".into(),
            Self::ExitGuardUnknown(error) => return error.advice(),
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
            Self::Denied(_) => "denied",
            Self::ByRules(_) => "by-rules",
            Self::Unrecorded(_) => "unrecorded",
            Self::NotDenied { .. } => "not-denied",
            Self::NotDropped(_) => "not-dropped",
            Self::ExitGuardMissing(_) => "exit-guard-missing",
            Self::ExitGuardWrong(_) => "exit-guard-wrong",
            Self::ExitGuardUnknown(_) => "exit-guard-unknown",
            Self::NotMade(_) => "not-made",
            Self::Ended => "helper",
        }
    }
}

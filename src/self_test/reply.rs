//! What the self-test's child answers.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The outcome of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HelperReply {
    /// It is in its namespace, or has done what it was told.
    Done,
    /// It is connected from this port, and the other side closed the connection without a byte.
    Closed { port: u16 },
    /// It is connected from this port, and the other side waits.
    Open { port: u16 },
    /// It was refused.
    Refused,
    /// No way leads there, or so it was told by a packet.
    Unreachable,
    /// Nothing came back.
    TimedOut,
    /// An ICMP error of this kind and code came back, from there.
    Told { by: IpAddr, kind: u8, code: u8 },
}

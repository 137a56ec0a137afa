//! The replies of the self-test's helper process.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The outcome of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HelperReply {
    /// The child is in its namespace, or has executed the order.
    Done,
    /// The connection was established from this port, and the other side closed it without sending a byte.
    Closed { port: u16 },
    /// The connection was established from this port, and the other side waits.
    Open { port: u16 },
    /// The connection was refused.
    Refused,
    /// There is no route, or an ICMP error said so.
    Unreachable,
    /// The kernel did not let the socket connect or send (`EPERM`). Nothing was sent.
    Denied,
    /// This kernel has no sockets of the address family.
    NoFamily,
    /// The datagram was sent; the helper did not wait for an answer.
    Sent,
    /// Nothing came back.
    TimedOut,
    /// An ICMP error of this type and code came back from this address.
    Told { by: IpAddr, kind: u8, code: u8 },
}

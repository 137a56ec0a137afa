//! A datagram that the guard is to reject, and the ICMP error that shows who rejected it.
//!
//! A TCP reset proves nothing: the source of the guard's reset is the metadata address, as is that of the real service when
//! nothing listens on the port. An ICMP error has a sender of its own, and the guard's comes from this node.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};

use super::reply::HelperReply;

/// The interval between datagrams. The kernel sends one ICMP error per second to an address after the first few (icmp(7),
/// `icmp_ratelimit`), and none while the interface's IPv6 address is new, so the datagram is repeated.
const RESEND_INTERVAL: Duration = Duration::from_millis(400);
/// The size of the control buffer, in bytes: twice what an IPv6 error and the address of its sender take.
const CONTROL: usize = 256;

/// Sends an empty datagram repeatedly until an answer or an ICMP error arrives, or until the timeout.
pub(super) fn send(to: SocketAddr, timeout: Duration) -> io::Result<HelperReply> {
    let socket = match bind_for(to) {
        Ok(socket) => socket,
        Err(error) => return refused_locally(&error).ok_or(error),
    };
    if to.is_ipv4() {
        setsockopt(&socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    if let Err(error) = socket.connect(to) {
        return refused_locally(&error).ok_or(error);
    }
    socket.set_read_timeout(Some(RESEND_INTERVAL))?;
    let port = socket.local_addr()?.port();
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        // An error may belong to the previous datagram. It is in the error queue in any case.
        let received = socket.send(&[]).and_then(|_| socket.recv(&mut [0]));
        if received.is_ok() {
            return Ok(HelperReply::Open { port });
        }
        if let Some(reply) = icmp_error(&socket)? {
            return Ok(reply);
        }
    }
    Ok(HelperReply::TimedOut)
}

/// Sends one empty datagram from a socket that is not connected, and does not wait for an answer.
pub(super) fn send_unconnected(to: SocketAddr) -> io::Result<HelperReply> {
    match bind_for(to).and_then(|socket| socket.send_to(&[], to)) {
        Ok(_) => Ok(HelperReply::Sent),
        Err(error) => refused_locally(&error).ok_or(error),
    }
}

fn bind_for(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))
}

/// Returns the reply for an error with which this kernel refused to send anything. Other errors may be responses of another host.
pub(super) fn refused_locally(error: &io::Error) -> Option<HelperReply> {
    match error.raw_os_error().map(Errno::from_raw) {
        // Compared by number: the standard library has the same kind for EACCES, which a route may cause.
        Some(Errno::EPERM) => Some(HelperReply::Denied),
        Some(Errno::EAFNOSUPPORT) => Some(HelperReply::NoFamily),
        _ => None,
    }
}

/// Returns the first ICMP error in the socket's error queue.
fn icmp_error(socket: &UdpSocket) -> io::Result<Option<HelperReply>> {
    loop {
        let (mut data, mut control) = ([0], vec![0; CONTROL]);
        let mut room = [IoSliceMut::new(&mut data)];
        let received = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut room, Some(&mut control), MsgFlags::MSG_ERRQUEUE) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // An error without a sender was raised in this namespace.
        let error = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4RecvErr(error, Some(by)) => {
                Some((Ipv4Addr::from(by.sin_addr.s_addr.to_ne_bytes()).into(), error.ee_type, error.ee_code))
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(by)) => {
                Some((Ipv6Addr::from(by.sin6_addr.s6_addr).into(), error.ee_type, error.ee_code))
            }
            _ => None,
        });
        if let Some((by, kind, code)) = error {
            return Ok(Some(HelperReply::Told { by, kind, code }));
        }
    }
}

/// The meaning of an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IcmpError {
    /// A rule or a prohibiting route rejected the packet: the codes of "destination unreachable" that the kernel uses for
    /// these.
    Rejected,
    /// There was no route. The packet was not forwarded, whatever the rules are.
    NoWay,
    /// Any other error. "Host unreachable" is about packets that were forwarded: no host had the address.
    Other,
}

/// Interprets an ICMP error that this node sent (RFC 792, RFC 1812 5.2.7.1, RFC 4443 3.1).
pub(super) fn said(is_ipv4: bool, kind: u8, code: u8) -> IcmpError {
    const UNREACHABLE_IPV4: u8 = 3;
    const UNREACHABLE_IPV6: u8 = 1;
    match (is_ipv4, kind, code) {
        // Protocol and port unreachable; network, host and communication prohibited.
        (true, UNREACHABLE_IPV4, 2 | 3 | 9 | 10 | 13) => IcmpError::Rejected,
        // Prohibited; port unreachable; failed policy; reject route.
        (false, UNREACHABLE_IPV6, 1 | 4 | 5 | 6) => IcmpError::Rejected,
        (true, UNREACHABLE_IPV4, 0) | (false, UNREACHABLE_IPV6, 0) => IcmpError::NoWay,
        _ => IcmpError::Other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn the_sender_of_an_icmp_error_is_reported() {
        for ip in ["127.0.0.1", "::1"] {
            let nobody = {
                let Ok(socket) = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), 0)) else { continue };
                socket.local_addr().unwrap()
            };
            let answer = send(nobody, TIMEOUT).unwrap();
            let HelperReply::Told { by, kind, code } = answer else { panic!("{answer:?}") };
            assert_eq!((by, said(nobody.is_ipv4(), kind, code)), (nobody.ip(), IcmpError::Rejected));
        }
    }

    #[test]
    fn an_answer_and_silence_are_distinguished() {
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = there.local_addr().unwrap();
        assert_eq!(send(to, RESEND_INTERVAL).unwrap(), HelperReply::TimedOut);
        let answering = std::thread::spawn(move || {
            // Earlier datagrams from other sockets are still in the queue.
            while let Ok((_, from)) = there.recv_from(&mut [0]) {
                let _ = there.send_to(b"!", from);
                if there.set_read_timeout(Some(TIMEOUT / 5)).is_err() {
                    break;
                }
            }
        });
        assert!(matches!(send(to, TIMEOUT).unwrap(), HelperReply::Open { .. }));
        answering.join().unwrap();
    }

    #[test]
    fn an_error_about_a_forwarded_packet_is_no_rejection() {
        for (is_ipv4, kind, code, wanted) in [
            (true, 3, 3, IcmpError::Rejected),
            (true, 3, 13, IcmpError::Rejected),
            (true, 3, 0, IcmpError::NoWay),
            (true, 3, 1, IcmpError::Other),
            (true, 11, 0, IcmpError::Other),
            (true, 1, 4, IcmpError::Other),
            (false, 1, 4, IcmpError::Rejected),
            (false, 1, 1, IcmpError::Rejected),
            (false, 1, 0, IcmpError::NoWay),
            (false, 1, 3, IcmpError::Other),
            (false, 3, 0, IcmpError::Other),
        ] {
            assert_eq!(said(is_ipv4, kind, code), wanted, "{is_ipv4} {kind} {code}");
        }
    }
}

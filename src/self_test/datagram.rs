//! A datagram that the guard is to reject, and who says what became of it.
//!
//! A TCP reset shows nothing: the guard's bears the metadata address as its source, as that of the service itself does, where
//! nobody listens at the port. An ICMP error has a sender of its own: the guard's comes from this node.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};

use super::reply::HelperReply;

/// The kernel sends one ICMP error a second to an address, after the first few (icmp(7), `icmp_ratelimit`), and none while the
/// interface's IPv6 address is young: so it is sent again.
const AGAIN: Duration = Duration::from_millis(400);
/// Room for what stands beside an error: it and the address of who sent it, twice as much as IPv6 takes.
const CONTROL: usize = 256;

/// Sends an empty datagram until somebody answers it or says that it did not get there, for this long at the most.
pub(super) fn send(to: SocketAddr, timeout: Duration) -> io::Result<HelperReply> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    if to.is_ipv4() {
        setsockopt(&socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    socket.connect(to)?;
    socket.set_read_timeout(Some(AGAIN))?;
    let port = socket.local_addr()?.port();
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        // What came in for the last one may stand here as an error of this one; the queue has it either way.
        let came = socket.send(&[]).and_then(|_| socket.recv(&mut [0]));
        if came.is_ok() {
            return Ok(HelperReply::Open { port });
        }
        if let Some(told) = told(&socket)? {
            return Ok(told);
        }
    }
    Ok(HelperReply::TimedOut)
}

/// The first ICMP error that came for the socket.
fn told(socket: &UdpSocket) -> io::Result<Option<HelperReply>> {
    loop {
        let (mut data, mut control) = ([0], vec![0; CONTROL]);
        let mut room = [IoSliceMut::new(&mut data)];
        let received = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut room, Some(&mut control), MsgFlags::MSG_ERRQUEUE) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // Without a sender it is this namespace's own.
        let told = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4RecvErr(error, Some(by)) => {
                Some((Ipv4Addr::from(by.sin_addr.s_addr.to_ne_bytes()).into(), error.ee_type, error.ee_code))
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(by)) => {
                Some((Ipv6Addr::from(by.sin6_addr.s6_addr).into(), error.ee_type, error.ee_code))
            }
            _ => None,
        });
        if let Some((by, kind, code)) = told {
            return Ok(Some(HelperReply::Told { by, kind, code }));
        }
    }
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IcmpError {
    /// A rule, or a route of that kind, forbids it: of "destination unreachable", the codes that the kernel has for these.
    Rejected,
    /// There was no route: it was not passed on, whatever the rules have.
    NoWay,
    /// Anything else. "Host unreachable" is said of packets that were passed on already: nobody had the address.
    Other,
}

/// The meaning of an ICMP error (RFC 792, RFC 1812 5.2.7.1, RFC 4443 3.1) that this node sent.
pub(super) fn said(is_ipv4: bool, kind: u8, code: u8) -> IcmpError {
    const UNREACHABLE_IPV4: u8 = 3;
    const UNREACHABLE_IPV6: u8 = 1;
    match (is_ipv4, kind, code) {
        // Protocol and port unreachable; network, host and all prohibited.
        (true, UNREACHABLE_IPV4, 2 | 3 | 9 | 10 | 13) => IcmpError::Rejected,
        // Prohibited; port unreachable; failed a policy; reject route.
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
    fn it_is_told_who_says_that_nobody_is_there() {
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
    fn an_answer_and_silence_are_told_apart() {
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = there.local_addr().unwrap();
        assert_eq!(send(to, AGAIN).unwrap(), HelperReply::TimedOut);
        let answering = std::thread::spawn(move || {
            // Those of before are still there, from others.
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
    fn an_error_of_a_packet_that_was_passed_on_is_no_rejection() {
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

//! The names of daemons: abstract Unix sockets, which every process of the network namespace can see, and can take as well.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::geteuid;
use tokio::net::UnixListener;

/// The prefix of the name of a running daemon; its number follows.
pub(super) const RUNS: &str = "rolegate/daemon/";
/// The prefix of the name of a daemon that has installed its rules; its number, a slash and the time of the installation
/// follow.
pub(super) const RULES: &str = "rolegate/rules/";
/// The file that lists the names of open sockets.
const NAMES: &str = "/proc/self/net/unix";
/// The columns `Flags` and `Type` of a listening stream socket. Its accepted connections have the same name, but do not listen.
const LISTENS: [&str; 2] = ["00010000", "0001"];
/// The most names that are looked at. A process may hold any number of them.
pub(super) const MOST: usize = 64;

/// The names of one kind, by their numbers.
pub(super) type Names = BTreeSet<(u64, String)>;

/// The holder of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    OurUser,
    AnotherUser,
    /// The name is no longer held.
    Nobody,
    /// The holder cannot be determined, for example because its queue is full.
    Unknown,
}

/// Takes a name.
pub(super) fn hold(name: &str) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Returns who holds a name.
pub(super) fn holder(name: &str) -> Holder {
    let user = || {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(stream.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Ok(getsockopt(&stream, PeerCredentials)?.uid())
    };
    holder_of(user(), geteuid().as_raw())
}

fn holder_of(user: Result<u32, Errno>, ours: u32) -> Holder {
    match user {
        Ok(user) if user == ours => Holder::OurUser,
        Ok(_) => Holder::AnotherUser,
        Err(Errno::ECONNREFUSED) => Holder::Nobody,
        Err(_) => Holder::Unknown,
    }
}

/// Returns the numbers and names that begin with this prefix and have a wanted number, at most one more than [`MOST`].
pub(super) fn names(prefix: &str, is_wanted: impl Fn(u64) -> bool) -> io::Result<Names> {
    names_in(BufReader::new(File::open(NAMES)?), prefix, is_wanted)
}

/// Reads the last column of `/proc/net/unix`, in which `@` stands for the zero byte that abstract names begin with.
fn names_in(table: impl BufRead, prefix: &str, is_wanted: impl Fn(u64) -> bool) -> io::Result<Names> {
    let mut found = Names::new();
    for line in table.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let columns: Vec<_> = line.split_whitespace().take(9).collect();
        let [_, _, _, flags, kind, _, _, name] = columns[..] else { continue };
        let named = name.strip_prefix('@').filter(|name| [flags, kind] == LISTENS && name.starts_with(prefix));
        let number = named.and_then(|name| name.strip_prefix(prefix)?.split('/').next()?.parse().ok());
        if let (Some(name), Some(number)) = (named, number)
            && is_wanted(number)
        {
            found.insert((number, name.to_owned()));
            if found.len() > MOST {
                break;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_listening_abstract_sockets_are_read() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17001 @rolegate/daemon/7\n\
            0000000000000000: 00000002 00000000 00000000 0001 03 17006 @rolegate/daemon/6\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17002 /tmp/rolegate/daemon/8\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17003 @rolegate/daemon/x\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17004\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17005 @rolegate/rules/9/12\n";
        let names = |prefix| names_in(table.as_bytes(), prefix, |_| true).unwrap();
        assert_eq!(names(RUNS), [(7, "rolegate/daemon/7".to_owned())].into());
        assert_eq!(names(RULES), [(9, "rolegate/rules/9/12".to_owned())].into());
    }

    /// A process may hold as many names as it has descriptors.
    #[test]
    fn a_flood_of_names_is_not_read_to_its_end() {
        let line = |number: usize| format!("0: 2 0 00010000 0001 01 1 @{RUNS}{number}\n");
        let table = (0..100_000).map(line).collect::<String>();
        assert_eq!(names_in(table.as_bytes(), RUNS, |_| true).unwrap().len(), MOST + 1);
        assert_eq!(names_in(table.as_bytes(), RUNS, |number| number == 99_999).unwrap().len(), 1);
    }

    #[test]
    fn an_unknown_holder_is_not_an_absent_one() {
        assert_eq!(holder_of(Ok(0), 0), Holder::OurUser);
        assert_eq!(holder_of(Ok(65534), 0), Holder::AnotherUser);
        assert_eq!(holder_of(Err(Errno::ECONNREFUSED), 0), Holder::Nobody);
        for errno in [Errno::EAGAIN, Errno::EMFILE, Errno::EPROTOTYPE] {
            assert_eq!(holder_of(Err(errno), 0), Holder::Unknown, "{errno}");
        }
    }
}

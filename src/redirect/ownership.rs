//! Decides which of the daemons on this node maintains the rules.
//!
//! In a rolling update two daemons overlap. Usually they want the same rules, and each may repair them. If they want different
//! rules (the new one has another port), the one that was started later owns the rules while it lives, and the other does not
//! touch them. Otherwise, the two would overwrite each other's rules and cut off every pod, forever.
//!
//! Each daemon has a number, the time at which it started, and holds it as the name of an abstract Unix socket (unix(7)). These
//! names belong to a network namespace, as packet rules do. They need no file, every process can see them in `/proc/net/unix`,
//! and the kernel releases them when the process ends, however it ends.
//!
//! Any process in the network namespace can take such names, and many of them, and can connect to ours. Therefore:
//!
//! - the kernel reports which user holds a name (SO_PEERCRED), the same condition as for sharing the app port;
//! - names end with a time in nanoseconds, so that no other process can take them in advance;
//! - connections are accepted and closed at once, so that the next caller can connect;
//! - a name whose holder cannot be determined takes no ownership, and rules that a daemon might still need are not removed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::geteuid;
use tokio::net::UnixListener;

/// The prefix of the name of a running daemon; its number follows.
const RUNS: &str = "rolegate/daemon/";
/// The prefix of the name of a daemon that has installed its rules; its number, a slash and the time of the installation
/// follow.
const RULES: &str = "rolegate/rules/";
/// The file that lists the names of open sockets.
const NAMES: &str = "/proc/self/net/unix";
/// The columns `Flags` and `Type` of a listening stream socket. Its accepted connections have the same name, but do not listen.
const LISTENS: [&str; 2] = ["00010000", "0001"];

/// This daemon's number, held until it is dropped.
#[derive(Debug)]
pub struct Ownership {
    number: u64,
    held: Mutex<HeldNames>,
}

#[derive(Debug)]
struct HeldNames {
    runs: Option<UnixListener>,
    rules: Option<UnixListener>,
}

/// The other daemons of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtherDaemons {
    /// Whether there is one, or may be one: a name whose holder cannot be determined counts.
    pub is_any: bool,
    /// Whether one was started later. It may not have installed its rules yet.
    pub is_later: bool,
}

/// The holder of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    OurUser,
    AnotherUser,
    /// The name is no longer held.
    Nobody,
    /// The holder cannot be determined, for example because its queue is full.
    Unknown,
}

impl Ownership {
    /// Takes a number higher than those of all earlier daemons. Requires a runtime with I/O.
    ///
    /// # Errors
    /// If no name can be taken.
    pub fn take() -> io::Result<Self> {
        let number = now()?;
        let runs = hold(&format!("{RUNS}{number}"))?;
        Ok(Self { number, held: Mutex::new(HeldNames { runs: Some(runs), rules: None }) })
    }

    /// Announces to the other daemons that this daemon owns the rules.
    ///
    /// # Errors
    /// If the name cannot be taken.
    pub fn claim_rules(&self) -> io::Result<()> {
        let mut held = self.held();
        if held.rules.is_none() {
            held.rules = Some(hold(&format!("{RULES}{}/{}", self.number, now()?))?);
        }
        Ok(())
    }

    /// Returns whether a daemon that was started later has installed its rules.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn is_succeeded(&self) -> io::Result<bool> {
        let later = names(RULES)?.into_iter().filter(|(number, _)| *number > self.number);
        Ok(later.into_iter().any(|(_, name)| holder(&name) == Holder::OurUser))
    }

    /// Returns which other daemons of this user run on this node.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn others(&self) -> io::Result<OtherDaemons> {
        let mut others = OtherDaemons::default();
        for (number, name) in names(RUNS)?.into_iter().filter(|(number, _)| *number != self.number) {
            match holder(&name) {
                Holder::OurUser => (others.is_any, others.is_later) = (true, others.is_later || number > self.number),
                Holder::Unknown => others.is_any = true,
                Holder::AnotherUser | Holder::Nobody => {}
            }
        }
        Ok(others)
    }

    /// Accepts and closes the connections of processes that check who holds the names. Cancel safe.
    pub async fn answer(&self) -> Infallible {
        poll_fn(|context| {
            let held = self.held();
            for listener in held.runs.iter().chain(&held.rules) {
                while let Poll::Ready(Ok(_)) = listener.poll_accept(context) {}
            }
            Poll::Pending
        })
        .await
    }

    /// Releases the number, and returns whether another daemon runs, or may run, whatever its state. Of several daemons that
    /// end at the same time, the last one gets `false`.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn leave(&self) -> io::Result<bool> {
        let mut held = self.held();
        (held.runs, held.rules) = (None, None);
        any()
    }

    fn held(&self) -> MutexGuard<'_, HeldNames> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a daemon of this user runs on this node, or may run: a name whose holder cannot be determined counts.
///
/// # Errors
/// If names cannot be listed.
pub fn any() -> io::Result<bool> {
    Ok(names(RUNS)?.into_iter().any(|(_, name)| matches!(holder(&name), Holder::OurUser | Holder::Unknown)))
}

/// Returns the nanoseconds since the node's boot. All daemons share this clock, and it is never set.
fn now() -> io::Result<u64> {
    let since_boot = std::time::Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    u64::try_from(since_boot.as_nanos()).map_err(io::Error::other)
}

fn hold(name: &str) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn holder(name: &str) -> Holder {
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

/// Returns the numbers and names that begin with this prefix.
fn names(prefix: &str) -> io::Result<BTreeSet<(u64, String)>> {
    Ok(names_in(&std::fs::read_to_string(NAMES)?, prefix))
}

/// Reads the last column of `/proc/net/unix`, in which `@` stands for the zero byte that abstract names begin with.
fn names_in(table: &str, prefix: &str) -> BTreeSet<(u64, String)> {
    let name = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, flags, kind, _, _, name] = columns[..] else { return None };
        let name = name.strip_prefix('@').filter(|_| [flags, kind] == LISTENS)?;
        let number = name.strip_prefix(prefix)?.split('/').next()?.parse().ok()?;
        Some((number, name.to_owned()))
    };
    table.lines().filter_map(name).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use std::time::Duration;

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
        assert_eq!(names_in(table, RUNS), [(7, "rolegate/daemon/7".to_owned())].into());
        assert_eq!(names_in(table, RULES), [(9, "rolegate/rules/9/12".to_owned())].into());
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

    /// Fills a listener's queue, as any process can.
    fn fill(name: &str) {
        while holder(name) != Holder::Unknown {}
    }

    /// One test covers everything, because the names belong to the network namespace that all tests share.
    #[tokio::test]
    async fn the_later_daemon_owns_the_rules_while_it_lives() {
        // Another process holds the highest number.
        let last = StdListener::bind_addr(&SocketAddr::from_abstract_name(format!("{RUNS}{}", u64::MAX)).unwrap()).unwrap();
        let (first, second) = (Ownership::take().unwrap(), Ownership::take().unwrap());
        drop(last);
        assert!(first.number < second.number && second.number < u64::MAX);
        assert_eq!(first.others().unwrap(), OtherDaemons { is_any: true, is_later: true });
        assert_eq!(second.others().unwrap(), OtherDaemons { is_any: true, is_later: false });
        first.claim_rules().unwrap();
        assert!(!second.is_succeeded().unwrap());
        // Another process took the name that it could guess in advance.
        let guessed = StdListener::bind_addr(&SocketAddr::from_abstract_name(format!("{RULES}{}", second.number)).unwrap()).unwrap();
        second.claim_rules().unwrap();
        second.claim_rules().unwrap();
        drop(guessed);
        assert!(first.is_succeeded().unwrap() && first.is_succeeded().unwrap());

        let claim = names(RULES).unwrap().into_iter().find(|(number, _)| *number == second.number).unwrap().1;
        fill(&claim);
        assert!(!first.is_succeeded().unwrap(), "a daemon that hangs takes no ownership");
        fill(&format!("{RUNS}{}", first.number));
        assert!(any().unwrap(), "a daemon that hangs still counts as running");
        let answered = tokio::time::timeout(Duration::from_secs(60), async {
            while !first.is_succeeded().unwrap() {
                tokio::task::yield_now().await;
            }
        });
        tokio::select! {
            answered = answered => answered.unwrap(),
            never = second.answer() => match never {},
        }

        assert_eq!(second.others().unwrap(), OtherDaemons { is_any: true, is_later: false }, "although its holder is unknown");
        assert!(second.leave().unwrap(), "the first daemon still counts, although its holder is unknown");
        assert_eq!(first.others().unwrap(), OtherDaemons::default());
        assert!(names(RULES).unwrap().iter().all(|(number, _)| *number != second.number), "its claim is released with it");
        assert!(!first.is_succeeded().unwrap());
    }
}

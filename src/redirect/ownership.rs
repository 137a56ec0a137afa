//! The daemons of this node, among themselves: which of them maintains the rules.
//!
//! In a rolling update two daemons overlap. Usually they want the same rules, and each may repair them. If they want different
//! rules (the new one has another port), the one that was started later owns the rules while it lives, and the other does not
//! touch them. Otherwise, the two would overwrite each other's rules and cut off every pod, forever.
//!
//! Each daemon has a number, the time at which it started, and holds it as an abstract Unix socket's name (unix(7)). Such names
//! belong to a network namespace, as packet rules do; they need no file, they are in `/proc/net/unix` for all to see, and the
//! kernel takes them away with the process, however it ends.
//!
//! Any process of the network may take such names, also many, and may connect to ours. So the kernel says of which user the
//! holder is (SO_PEERCRED), as one may share the app port on the same condition; names end with a time in nanoseconds, so that
//! nobody takes them before us; what connects is let in and sent away, so that the next one can ask; and where it cannot be
//! asked who holds a name, nobody is succeeded by it, and rules that a daemon might need are not removed.

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

/// What a name of a daemon that runs begins with; its number follows.
const RUNS: &str = "rolegate/daemon/";
/// The prefix of the name of a daemon that has installed its rules; the time of that follows behind a slash.
const RULES: &str = "rolegate/rules/";
/// Names of sockets that live.
const NAMES: &str = "/proc/self/net/unix";
/// A stream socket that listens, in the columns `Flags` and `Type` there: others have its name, too, and answer nobody.
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

/// Who holds a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    OurUser,
    AnotherUser,
    /// Not any more.
    Nobody,
    /// It cannot be asked: too many do, say.
    Unknown,
}

impl Ownership {
    /// Takes a number, which is higher than those of all before. Needs a runtime with I/O.
    ///
    /// # Errors
    /// If no name can be taken.
    pub fn take() -> io::Result<Self> {
        let number = now()?;
        let runs = hold(&format!("{RUNS}{number}"))?;
        Ok(Self { number, held: Mutex::new(HeldNames { runs: Some(runs), rules: None }) })
    }

    /// Says to the others that the rules are this daemon's now.
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

    /// Whether a daemon that was started later has its rules in place.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn is_succeeded(&self) -> io::Result<bool> {
        let later = names(RULES)?.into_iter().filter(|(number, _)| *number > self.number);
        Ok(later.into_iter().any(|(_, name)| holder(&name) == Holder::OurUser))
    }

    /// Lets those in who want to know who holds the names, and sends them away. It may be left at any time.
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

    /// Gives the number back, and says whether another daemon runs, or may run, whatever it has come to. Of those that end at
    /// the same time, the last hears that none does.
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

/// Whether a daemon of our user runs here, or may run: a name whose holder cannot be asked counts.
///
/// # Errors
/// If names cannot be listed.
pub fn any() -> io::Result<bool> {
    Ok(names(RUNS)?.into_iter().any(|(_, name)| matches!(holder(&name), Holder::OurUser | Holder::Unknown)))
}

/// Nanoseconds since the node's boot: the same clock for all daemons, and one that is never set.
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

/// The numbers and names of those that begin so.
fn names(prefix: &str) -> io::Result<BTreeSet<(u64, String)>> {
    Ok(names_in(&std::fs::read_to_string(NAMES)?, prefix))
}

/// The last column of `/proc/net/unix`, in which `@` stands for the zero that abstract names begin with.
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
    fn names_are_read_of_abstract_sockets_that_listen_alone() {
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
    fn who_cannot_be_asked_is_not_nobody() {
        assert_eq!(holder_of(Ok(0), 0), Holder::OurUser);
        assert_eq!(holder_of(Ok(65534), 0), Holder::AnotherUser);
        assert_eq!(holder_of(Err(Errno::ECONNREFUSED), 0), Holder::Nobody);
        for errno in [Errno::EAGAIN, Errno::EMFILE, Errno::EPROTOTYPE] {
            assert_eq!(holder_of(Err(errno), 0), Holder::Unknown, "{errno}");
        }
    }

    /// Fills a listener's queue, as anybody may.
    fn fill(name: &str) {
        while holder(name) != Holder::Unknown {}
    }

    /// In one test, since the names are those of the whole machine's network.
    #[tokio::test]
    async fn the_later_one_has_the_word_while_it_lives() {
        // Somebody has the last number.
        let last = StdListener::bind_addr(&SocketAddr::from_abstract_name(format!("{RUNS}{}", u64::MAX)).unwrap()).unwrap();
        let (first, second) = (Ownership::take().unwrap(), Ownership::take().unwrap());
        drop(last);
        assert!(first.number < second.number && second.number < u64::MAX);
        first.claim_rules().unwrap();
        assert!(!second.is_succeeded().unwrap());
        // The name is not one that somebody could have taken before.
        let guessed = StdListener::bind_addr(&SocketAddr::from_abstract_name(format!("{RULES}{}", second.number)).unwrap()).unwrap();
        second.claim_rules().unwrap();
        second.claim_rules().unwrap();
        drop(guessed);
        assert!(first.is_succeeded().unwrap() && first.is_succeeded().unwrap());

        let claim = names(RULES).unwrap().into_iter().find(|(number, _)| *number == second.number).unwrap().1;
        fill(&claim);
        assert!(!first.is_succeeded().unwrap(), "one that hangs, or hides who it is");
        fill(&format!("{RUNS}{}", first.number));
        assert!(any().unwrap(), "one that hangs is there");
        let answered = tokio::time::timeout(Duration::from_secs(60), async {
            while !first.is_succeeded().unwrap() {
                tokio::task::yield_now().await;
            }
        });
        tokio::select! {
            answered = answered => answered.unwrap(),
            never = second.answer() => match never {},
        }

        assert!(second.leave().unwrap(), "the first is here, if nobody can ask it");
        assert!(names(RULES).unwrap().iter().all(|(number, _)| *number != second.number), "its word went with it");
        assert!(!first.is_succeeded().unwrap());
    }
}

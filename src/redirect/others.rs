//! The daemons of this node, among themselves: who of them looks after the rules.
//!
//! In a rolling update two daemons overlap. Mostly they want the same rules, and each may repair them. Where they do not (the
//! new one has another port), the one that was started later has the word while it lives, and the other leaves the rules to
//! it: two that take them from each other would cut off every pod, for ever.
//!
//! Each daemon has a number, one more than the highest that lives, and holds it as an abstract Unix socket's name (unix(7)).
//! Such names belong to a network namespace, as packet rules do; they need no file, they are in `/proc/net/unix` for all to
//! see, and the kernel takes them away with the process, however it ends. Whoever holds a name must be of the same user
//! as we are: the kernel says who (SO_PEERCRED), and the app port may be shared on the same condition.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::geteuid;

/// What a name of a daemon that runs begins with; its number follows.
const RUNS: &str = "rolegate/daemon/";
/// The same of one that has put its rules in place.
const RULES: &str = "rolegate/rules/";
/// Names of sockets that live.
const NAMES: &str = "/proc/self/net/unix";
/// How often a number is looked for that another daemon has not taken just then.
const ATTEMPTS: usize = 100;

/// This daemon's number, held until it is dropped.
#[derive(Debug)]
pub struct Turn {
    number: u64,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    runs: Option<UnixListener>,
    rules: Option<UnixListener>,
    /// Later ones that are known to be of our user: asking takes a place in their queue, which nobody empties.
    later: BTreeSet<u64>,
}

impl Turn {
    /// Takes the next number.
    ///
    /// # Errors
    /// If names cannot be listed or taken.
    pub fn take() -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let number = numbers(RUNS)?.into_iter().max().unwrap_or(0).saturating_add(1);
            match hold(RUNS, number) {
                Ok(runs) => {
                    let held = Held { runs: Some(runs), rules: None, later: BTreeSet::new() };
                    return Ok(Self { number, held: Mutex::new(held) });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("other daemons take every number"))
    }

    /// Says to the others that the rules are this daemon's now.
    ///
    /// # Errors
    /// If the name cannot be taken.
    pub fn claim_rules(&self) -> io::Result<()> {
        let mut held = self.held();
        if held.rules.is_none() {
            held.rules = Some(hold(RULES, self.number)?);
        }
        Ok(())
    }

    /// Whether a daemon that was started later has its rules in place.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn is_succeeded(&self) -> io::Result<bool> {
        let numbers: BTreeSet<u64> = numbers(RULES)?.into_iter().filter(|number| *number > self.number).collect();
        let later = &mut self.held().later;
        later.retain(|number| numbers.contains(number));
        if later.is_empty() {
            *later = numbers.into_iter().filter(|number| is_of_our_user(RULES, *number)).collect();
        }
        Ok(!later.is_empty())
    }

    /// Gives the number back, and says whether another daemon runs, whatever it has come to. Of those that end at the same
    /// time, the last hears that none does.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn leave(&self) -> io::Result<bool> {
        let mut held = self.held();
        (held.runs, held.rules) = (None, None);
        any()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the holder of a name is of our user. One that lets nobody in is not: it would be somebody else's trick.
fn is_of_our_user(prefix: &str, number: u64) -> bool {
    let user = || {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(stream.as_raw_fd(), &UnixAddr::new_abstract(format!("{prefix}{number}").as_bytes())?)?;
        getsockopt(&stream, PeerCredentials)
    };
    user().is_ok_and(|theirs| theirs.uid() == geteuid().as_raw())
}

/// Whether a daemon of our user runs here.
///
/// # Errors
/// If names cannot be listed.
pub fn any() -> io::Result<bool> {
    Ok(numbers(RUNS)?.into_iter().any(|number| is_of_our_user(RUNS, number)))
}

fn hold(prefix: &str, number: u64) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("{prefix}{number}"))?)
}

/// The numbers of the names that begin so.
fn numbers(prefix: &str) -> io::Result<Vec<u64>> {
    Ok(numbers_in(&std::fs::read_to_string(NAMES)?, prefix))
}

/// The last column of `/proc/net/unix`, in which `@` stands for the zero that abstract names begin with. Sockets that were
/// accepted have the name of their listener; those are closed soon.
fn numbers_in(names: &str, prefix: &str) -> Vec<u64> {
    let number = |line: &str| line.split_whitespace().nth(7)?.strip_prefix('@')?.strip_prefix(prefix)?.parse().ok();
    names.lines().filter_map(number).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_abstract_names_alone() {
        let names = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17001 @rolegate/daemon/7\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17002 /tmp/rolegate/daemon/8\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17003 @rolegate/daemon/x\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17004\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17005 @rolegate/rules/9\n";
        assert_eq!(numbers_in(names, RUNS), [7]);
        assert_eq!(numbers_in(names, RULES), [9]);
    }

    /// In one test, since the names are those of the whole machine's network.
    #[test]
    fn the_later_one_has_the_word_while_it_lives() {
        let (first, second) = (Turn::take().unwrap(), Turn::take().unwrap());
        assert!(second.number > first.number);
        first.claim_rules().unwrap();
        assert!(!second.is_succeeded().unwrap());
        second.claim_rules().unwrap();
        second.claim_rules().unwrap();
        assert!(first.is_succeeded().unwrap() && first.is_succeeded().unwrap());
        assert!(second.leave().unwrap(), "the first is here");
        assert!(!numbers(RULES).unwrap().contains(&second.number), "its word went with it");
        assert!(!first.is_succeeded().unwrap());
    }
}

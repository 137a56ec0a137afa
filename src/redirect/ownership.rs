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
//! - a name counts as a later daemon only with a [proof](proofs): a socket in a directory of the node that such a process does not have,
//!   that of `--handover-socket` or `--token-key-file`. A daemon without such a directory can neither prove its names nor verify others'.
//!   For it, the names of its own user count, and it leaves to a later daemon only what nobody could take away without rights to change
//!   rules or programs: see [`reconcile`](super::reconcile) and `bpf/turn.rs`;
//! - the kernel reports which user holds a name (SO_PEERCRED), the same condition as for sharing the app port;
//! - names end with a time in nanoseconds, so that no other process can take them in advance;
//! - connections are accepted and closed at once, so that the next caller can connect;
//! - a name whose holder cannot be determined takes no ownership, and rules that a daemon might still need are not removed. For this, a
//!   name needs no proof: a daemon of another version, or with another directory, needs its rules as well.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use nix::time::{ClockId, clock_gettime};
use tokio::net::UnixListener;

use self::names::{Holder, MOST, Names, RULES, RUNS, hold, holder};
use self::proofs::{Claim, HeldProof, Proof};
pub use self::proofs::{ProofError, Proofs};

mod names;
mod proofs;

/// This daemon's number, held until it is dropped.
#[derive(Debug)]
pub struct Ownership {
    number: u64,
    proofs: Option<Proofs>,
    held: Mutex<HeldNames>,
}

#[derive(Debug, Default)]
struct HeldNames {
    /// The proofs of the names.
    proofs: Vec<HeldProof>,
    runs: Option<UnixListener>,
    rules: Option<UnixListener>,
}

/// The other daemons of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtherDaemons {
    /// Whether there is one, or may be one: a name whose holder cannot be determined counts, and so does one without a proof.
    pub is_any: bool,
    /// Whether one was started later, or may have been. It may not have installed its rules yet.
    pub is_later: bool,
}

impl Ownership {
    /// Takes a number higher than those of all earlier daemons, and proves it in the directory. Requires a runtime with I/O.
    ///
    /// # Errors
    /// If no name can be taken, or it cannot be proved.
    pub fn take(proofs: Option<Proofs>) -> io::Result<Self> {
        let number = now()?;
        let mut held = HeldNames::default();
        if let Some(proofs) = &proofs {
            proofs.tidy();
            // Before the name, so that nobody sees a name without its proof.
            held.proofs.push(proofs.give(Claim::Runs, number)?);
        }
        held.runs = Some(hold(&format!("{RUNS}{number}"))?);
        Ok(Self { number, proofs, held: Mutex::new(held) })
    }

    /// Announces to the other daemons that this daemon owns the rules.
    ///
    /// # Errors
    /// If the name cannot be taken or proved.
    pub fn claim_rules(&self) -> io::Result<()> {
        let mut held = self.held();
        if held.rules.is_none() {
            if let Some(proofs) = &self.proofs {
                held.proofs.push(proofs.give(Claim::Rules, self.number)?);
            }
            held.rules = Some(hold(&format!("{RULES}{}/{}", self.number, now()?))?);
        }
        Ok(())
    }

    /// Returns whether a daemon that was started later has installed its rules.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn is_succeeded(&self) -> io::Result<bool> {
        match &self.proofs {
            Some(proofs) => {
                let is_proved = |number: u64| number > self.number && proofs.look(Claim::Rules, number) == Proof::Given;
                Ok(!names::names(RULES, is_proved)?.is_empty())
            }
            None => {
                let later = names::names(RULES, |number| number > self.number)?;
                Ok(later.into_iter().take(MOST).any(|(_, name)| holder(&name) == Holder::OurUser))
            }
        }
    }

    /// Whether this daemon can tell a name that is a daemon's from one that another process took.
    pub fn verifies(&self) -> bool {
        self.proofs.is_some()
    }

    /// Returns whether a daemon that was started later runs, or may run. Without a directory for proofs, every name of this user counts.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn is_followed(&self) -> io::Result<bool> {
        match &self.proofs {
            Some(proofs) => {
                let is_proved = |number: u64| number > self.number && proofs.look(Claim::Runs, number) != Proof::Missing;
                Ok(!names::names(RUNS, is_proved)?.is_empty())
            }
            None => Ok(self.others()?.is_later),
        }
    }

    /// Returns which other daemons of this user run on this node.
    ///
    /// # Errors
    /// If names cannot be listed.
    pub fn others(&self) -> io::Result<OtherDaemons> {
        let names = names::names(RUNS, |number| number != self.number)?;
        if names.len() > MOST {
            return Ok(OtherDaemons { is_any: true, is_later: true });
        }
        let mut others = OtherDaemons::default();
        for (number, name) in names {
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
            let of_proofs = held.proofs.iter().map(|proof| &proof.listener);
            for listener in held.runs.iter().chain(&held.rules).chain(of_proofs) {
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
        *self.held() = HeldNames::default();
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
    let names: Names = names::names(RUNS, |_| true)?;
    Ok(names.len() > MOST || names.into_iter().any(|(_, name)| matches!(holder(&name), Holder::OurUser | Holder::Unknown)))
}

/// Returns whether a daemon runs on this node whose name has a proof in this directory, or may have one.
///
/// # Errors
/// If names cannot be listed.
pub fn any_proved(proofs: &Proofs) -> io::Result<bool> {
    Ok(!names::names(RUNS, |number| proofs.look(Claim::Runs, number) != Proof::Missing)?.is_empty())
}

/// Returns the nanoseconds since the node's boot. All daemons share this clock, and it is never set.
fn now() -> io::Result<u64> {
    let since_boot = std::time::Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    u64::try_from(since_boot.as_nanos()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;

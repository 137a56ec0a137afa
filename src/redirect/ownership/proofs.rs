//! Proofs that a name is a daemon's: sockets in a directory that only the daemon's user may write to.
//!
//! A process in the node's network that runs as the same user, such as a pod with `hostNetwork`, can take any abstract name. It cannot place
//! a file into a directory of the node that it does not have. Each daemon therefore has a socket with its number in this directory for each
//! of its names. The kernel refuses connections to the socket of a daemon that has ended, so a file that is left proves nothing, and the next
//! daemon removes it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::net::UnixListener;

use crate::unix_socket::{self, PathState, PlaceError};

/// What is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The daemon runs.
    Runs,
    /// It has installed its rules.
    Rules,
}

impl Claim {
    const ALL: [Self; 2] = [Self::Runs, Self::Rules];

    /// What the names of the sockets begin with; the number of the daemon follows.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Runs => "daemon.",
            Self::Rules => "rules.",
        }
    }
}

/// The state of a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The daemon lives.
    Given,
    /// There is none, or its daemon has ended.
    Missing,
    /// Its daemon does not answer.
    Unknown,
}

/// The directory with the proofs.
#[derive(Clone, Debug)]
pub struct Proofs(PathBuf);

/// A proof that is given until it is dropped.
#[derive(Debug)]
pub(super) struct HeldProof {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Drop for HeldProof {
    fn drop(&mut self) {
        if unix_socket::inode(&self.path) == Some(self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Proofs {
    /// Uses this directory, which it creates if it does not exist.
    ///
    /// # Errors
    /// If another user may write to it.
    pub fn in_directory(directory: &Path) -> Result<Self, ProofError> {
        let proofs = Self(directory.to_owned());
        unix_socket::check_directory(&proofs.path(Claim::Runs, 0))?;
        Ok(proofs)
    }

    /// Uses this directory if it exists.
    ///
    /// # Errors
    /// If another user may write to it.
    pub fn existing(directory: &Path) -> Result<Option<Self>, ProofError> {
        if directory.exists() { Self::in_directory(directory).map(Some) } else { Ok(None) }
    }

    /// Gives a proof. Requires a runtime with I/O.
    pub(super) fn give(&self, claim: Claim, number: u64) -> Result<HeldProof, ProofError> {
        let path = self.path(claim, number);
        let (listener, inode) = unix_socket::place(&path)?;
        Ok(HeldProof { listener, path, inode })
    }

    /// Looks for a proof.
    pub(super) fn look(&self, claim: Claim, number: u64) -> Proof {
        state(&self.path(claim, number))
    }

    /// Removes the files of daemons that have ended.
    pub(super) fn tidy(&self) {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let number = |name: &str| Claim::ALL.into_iter().find_map(|claim| name.strip_prefix(claim.prefix())?.parse::<u64>().ok());
        for path in entries.filter(|entry| entry.file_name().to_str().and_then(number).is_some()).map(|entry| entry.path()) {
            if matches!(unix_socket::look(&path), Ok(PathState::Socket)) && state(&path) == Proof::Missing {
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn path(&self, claim: Claim, number: u64) -> PathBuf {
        self.0.join(format!("{}{number}", claim.prefix()))
    }
}

fn state(path: &Path) -> Proof {
    match unix_socket::look(path) {
        Ok(PathState::Socket) => {}
        // A file of another kind, or of another user, is none.
        Ok(PathState::Nothing) | Err(_) => return Proof::Missing,
    }
    let connected = || {
        let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        connect(stream.as_raw_fd(), &UnixAddr::new(path)?)
    };
    match connected() {
        Ok(()) => Proof::Given,
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Proof::Missing,
        Err(_) => Proof::Unknown,
    }
}

/// Why no proof can be given.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ProofError(#[from] PlaceError);

impl From<ProofError> for io::Error {
    fn from(error: ProofError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_proof_is_given_while_its_daemon_lives() {
        let directory = tempfile::tempdir().unwrap();
        let proofs = Proofs::in_directory(&directory.path().join("made")).unwrap();
        assert_eq!(proofs.look(Claim::Runs, 7), Proof::Missing);
        let held = proofs.give(Claim::Runs, 7).unwrap();
        assert_eq!(
            [proofs.look(Claim::Runs, 7), proofs.look(Claim::Rules, 7), proofs.look(Claim::Runs, 8)],
            [Proof::Given, Proof::Missing, Proof::Missing]
        );
        // It hangs.
        while proofs.look(Claim::Runs, 7) == Proof::Given {}
        assert_eq!(proofs.look(Claim::Runs, 7), Proof::Unknown);
        let path = held.path.clone();
        drop(held);
        assert!(!path.exists() && proofs.look(Claim::Runs, 7) == Proof::Missing);
    }

    /// A daemon that was killed leaves its files.
    #[tokio::test]
    async fn files_of_dead_daemons_prove_nothing_and_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let proofs = Proofs::in_directory(directory.path()).unwrap();
        let (dead, living) = (directory.path().join("rules.5"), proofs.give(Claim::Runs, 6).unwrap());
        drop(unix_socket::place(&dead).unwrap());
        let other = directory.path().join("handover");
        drop(unix_socket::place(&other).unwrap());
        fs::write(directory.path().join("daemon.9"), "no socket").unwrap();
        assert_eq!([proofs.look(Claim::Rules, 5), proofs.look(Claim::Runs, 9)], [Proof::Missing; 2]);
        proofs.tidy();
        assert!(!dead.exists() && other.exists() && directory.path().join("daemon.9").exists());
        assert_eq!(proofs.look(Claim::Runs, 6), Proof::Given);
        drop(living);
    }

    #[test]
    fn a_directory_of_others_proves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Proofs::in_directory(directory.path()).is_err());
    }
}

//! The file that keeps the keys of session tokens. A daemon that restarts, or runs beside another one, can check the tokens that were
//! issued.
//!
//! It is read and written under the lock of a file beside it, replaced as a whole, and readable for the daemon's own user only. A file
//! that others may have read or written is not used.

use std::borrow::Cow;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::libc::{ELOOP, O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::geteuid;
use tracing::warn;
use zeroize::Zeroizing;

use super::keys::{Keys, NoRandomness};
use crate::advice::Advise;

/// The largest file, in bytes. Eight keys have about 500.
const MAX_FILE: u64 = 4096;
/// How often, and with which pause, the lock is tried: it is held for as long as a small file is written.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// Where the keys are kept.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

/// The reason why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Reading, writing or locking failed.
    #[error("{step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The path.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
    /// What is there in place of the file beside it, which is locked, is not what the daemon makes.
    #[error("cannot lock {path}: it is not a regular file of the daemon's user")]
    NotOwn {
        /// Where.
        path: String,
    },
    /// No key could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl Advise for KeyFileError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NotOwn { .. } => Some("remove it".into()),
            // Somebody holds the lock; it is tried again.
            Self::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock => None,
            Self::Io { .. } => {
                Some("check that the directory of --token-key-file exists on the node and that the daemon may write to it".into())
            }
            Self::NoRandomness(_) => None,
        }
    }
}

/// The content of the file.
enum KeyFileState {
    Keys(Keys),
    Nothing,
    /// Others may have read it.
    Exposed,
    Damaged,
}

impl KeyFile {
    /// Creates a handle of the file at this path. Its directory is created at the first use.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The keys of the file as they should be now, and the file too. Where it has none, those of `current`.
    pub(super) fn sync(&self, current: &Keys, now: Timestamp) -> Result<Keys, KeyFileError> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| failed("cannot make", directory, error))?;
        let lock = self.lock()?;
        let found = self.read().map_err(|error| failed("cannot read", &self.path, error))?;
        let (keys, is_new) = match found {
            KeyFileState::Keys(keys) => (keys, false),
            KeyFileState::Nothing => (Keys::parse(&current.render()).unwrap_or(Keys::random(now)?), true),
            KeyFileState::Damaged => {
                warn!(
                    event = "token-key-file-damaged", path = %self.path.display(),
                    "--token-key-file holds no valid keys; replacing them; session tokens of earlier daemons become invalid"
                );
                (Keys::parse(&current.render()).unwrap_or(Keys::random(now)?), true)
            }
            KeyFileState::Exposed => {
                warn!(
                    event = "token-key-file-exposed", path = %self.path.display(),
                    "--token-key-file is not a regular file that only the daemon's user can read and write; replacing it with new keys; \
                     all earlier session tokens become invalid; check its owner, permissions and links"
                );
                (Keys::random(now)?, true)
            }
        };
        let (keys, is_new) = match keys.rotated(now)? {
            Some(turned) => (turned, true),
            None => (keys, is_new),
        };
        if is_new {
            self.write(&keys, directory, &lock).map_err(|error| failed("cannot write", &self.path, error))?;
        }
        Ok(keys)
    }

    fn read(&self) -> io::Result<KeyFileState> {
        let file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(KeyFileState::Nothing),
            // A symbolic link.
            Err(error) if error.raw_os_error() == Some(ELOOP) => return Ok(KeyFileState::Exposed),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.mode() & 0o077 != 0 || metadata.uid() != geteuid().as_raw() || metadata.nlink() != 1 {
            return Ok(KeyFileState::Exposed);
        }
        if metadata.len() > MAX_FILE {
            return Ok(KeyFileState::Damaged);
        }
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let keys = std::str::from_utf8(&text).ok().and_then(|text| Keys::parse(text).ok());
        Ok(keys.map_or(KeyFileState::Damaged, KeyFileState::Keys))
    }

    /// A file of its own, which others cannot open: a directory could be locked by whoever may read it.
    fn lock(&self) -> Result<Lock, KeyFileError> {
        let path = self.beside(".lock");
        let opened =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&path);
        let file = opened.map_err(|error| failed("cannot open", &path, error))?;
        let metadata = file.metadata().map_err(|error| failed("cannot read", &path, error))?;
        if !metadata.is_file() || metadata.uid() != geteuid().as_raw() {
            return Err(KeyFileError::NotOwn { path: path.display().to_string() });
        }
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(error)) => return Err(failed("cannot lock", &path, error)),
            }
        }
        Err(failed("cannot lock", &path, io::Error::new(io::ErrorKind::WouldBlock, "another process holds the lock")))
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(ending);
        path.into()
    }

    fn write(&self, keys: &Keys, directory: &Path, _lock: &Lock) -> io::Result<()> {
        let beside = self.beside(".new");
        // What a daemon that was killed left behind; nobody else is at work under the lock.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&beside)?;
        file.write_all(keys.render().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        File::open(directory)?.sync_all()
    }
}

/// The right to read and write, until dropped.
struct Lock(#[expect(dead_code, reason = "it is let go by being closed")] File);

fn failed(step: &'static str, path: &Path, source: io::Error) -> KeyFileError {
    KeyFileError::Io { step, path: path.display().to_string(), source }
}

//! Unix sockets of the daemon's own: put in place as a whole, and for its own user alone.
//!
//! A socket stays when its daemon ends: nobody answers at it then, and the next one is put in its place. So no daemon ever
//! takes away the one of another that came after it.

use std::fs::{self, Permissions};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// Something else is there.
    #[error("{0} is there, and is no socket of the daemon's own; remove it, or name another path")]
    Foreign(PathBuf),
    /// Others may put something into the directory.
    #[error(
        "the directory {0} is not the daemon's own, or others may write to it; name a socket in one that only the daemon's user may write to"
    )]
    Exposed(PathBuf),
    /// The system did not let us.
    #[error("cannot {step} {path}: {error}; check that its directory is there, and writable for the daemon")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathState {
    /// Nothing.
    Nothing,
    /// A socket that only this user may connect to.
    Socket,
}

/// What is at `path`; an error where it is nothing of ours. A symbolic link is not followed.
pub(crate) fn look(path: &Path) -> Result<PathState, PlaceError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PathState::Nothing),
        Err(error) => return Err(PlaceError::Io { step: "look at", path: path.to_owned(), error }),
    };
    let is_ours = metadata.file_type().is_socket() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if is_ours { Ok(PathState::Socket) } else { Err(PlaceError::Foreign(path.to_owned())) }
}

/// Whether the directory of `path` is such that nobody else can put a socket there. One that is not there yet is made.
pub(crate) fn check_directory(path: &Path) -> Result<(), PlaceError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |step| move |error| PlaceError::Io { step, path: directory.to_owned(), error };
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(directory).map_err(failed("make"))?;
    let metadata = fs::metadata(directory).map_err(failed("look at"))?;
    let is_ours = metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if is_ours { Ok(()) } else { Err(PlaceError::Exposed(directory.to_owned())) }
}

/// The inode of what is at `path`. As long as a listener lives, no other socket has the one of it.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

/// A socket at `path` that listens, in place of one that is there; with its inode.
pub(crate) fn place(path: &Path) -> Result<(UnixListener, u64), PlaceError> {
    look(path)?;
    let failed = |step| move |error| PlaceError::Io { step, path: path.to_owned(), error };
    // Under another name until it listens: whoever finds it at its path is answered. Two daemons may be at it.
    let mut beside = path.to_owned().into_os_string();
    beside.push(format!(".{:08x}", RandomState::new().build_hasher().finish() >> 32));
    let beside = PathBuf::from(beside);
    let placed = (|| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(&beside)?)?;
        // Before it listens, so that nobody else is ever let in.
        fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        let inode = fs::symlink_metadata(&beside)?.ino();
        fs::rename(&beside, path)?;
        Ok((UnixListener::from_std(StdListener::from(socket))?, inode))
    })();
    if placed.is_err() {
        let _ = fs::remove_file(&beside);
    }
    placed.map_err(failed("make a socket at"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn a_socket_takes_the_place_of_another_and_is_for_its_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(look(&path).unwrap(), PathState::Nothing);
        let (first, _) = place(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        let (second, inode_of_second) = place(&path).unwrap();
        drop(first);
        assert_eq!((look(&path).unwrap(), inode(&path)), (PathState::Socket, Some(inode_of_second)));
        let _client = UnixStream::connect(&path).unwrap();
        second.accept().await.unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[tokio::test]
    async fn what_is_not_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, real) = (directory.path().join("socket"), directory.path().join("real"));
        fs::write(&path, "precious").unwrap();
        assert!(matches!(place(&path), Err(PlaceError::Foreign(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        let _other = place(&real).unwrap();
        symlink(&real, &path).unwrap();
        assert!(matches!(place(&path), Err(PlaceError::Foreign(_))), "a link is not followed");
        mode(&real, 0o666);
        assert!(matches!(look(&real), Err(PlaceError::Foreign(_))), "others may connect to it");
    }

    #[test]
    fn others_may_not_write_to_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made").join("socket");
        check_directory(&path).unwrap();
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        for bits in [0o770, 0o702] {
            mode(path.parent().unwrap(), bits);
            assert!(matches!(check_directory(&path), Err(PlaceError::Exposed(_))), "{bits:o}");
        }
    }
}

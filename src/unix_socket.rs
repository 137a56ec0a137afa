//! The daemon's own Unix sockets: put in place atomically, and accessible only to the daemon's user.
//!
//! A socket file remains when its daemon ends. Connections to it are then refused, and the next daemon replaces it, so a daemon
//! never removes the socket of a successor.

use std::borrow::Cow;
use std::fs::{self, Permissions};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use crate::advice::Advise;

/// The maximum number of connections waiting to be accepted.
const BACKLOG: i32 = 16;

/// An error about the socket at a path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// The path is in use by another file.
    #[error("{0} exists and is not a socket of the daemon's user")]
    Foreign(PathBuf),
    /// Other users may create files in the directory.
    #[error("the directory {0} belongs to another user, or other users may write to it")]
    Exposed(PathBuf),
    /// A system call failed.
    #[error("cannot {step} {path}")]
    Io {
        /// The step that failed.
        step: &'static str,
        /// The path that it concerns.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

impl Advise for PlaceError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Foreign(_) => "remove it, or give another path".into(),
            Self::Exposed(_) => "give a path in a directory that only the daemon's user may write to".into(),
            Self::Io { .. } => "check that the directory exists and that the daemon may write to it".into(),
        })
    }
}

/// The state of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathState {
    /// There is no file.
    Nothing,
    /// There is a socket that only this user may connect to.
    Socket,
}

/// Returns the state of `path`; an error if the file there is not the daemon's own. Symbolic links are not followed.
pub(crate) fn look(path: &Path) -> Result<PathState, PlaceError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(PathState::Nothing),
        Err(source) => return Err(PlaceError::Io { step: "inspect", path: path.to_owned(), source }),
    };
    let is_ours = metadata.file_type().is_socket() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if is_ours { Ok(PathState::Socket) } else { Err(PlaceError::Foreign(path.to_owned())) }
}

/// Checks that no other user can put a socket into the directory of `path`. Creates the directory if it does not exist.
pub(crate) fn check_directory(path: &Path) -> Result<(), PlaceError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |step| move |source| PlaceError::Io { step, path: directory.to_owned(), source };
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(directory).map_err(failed("create"))?;
    let metadata = fs::metadata(directory).map_err(failed("inspect"))?;
    let is_ours = metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if is_ours { Ok(()) } else { Err(PlaceError::Exposed(directory.to_owned())) }
}

/// Returns the inode of the file at `path`. While a listener lives, no other socket has its inode.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

/// Creates a listening socket at `path`, replacing an existing one. Returns it with its inode.
pub(crate) fn place(path: &Path) -> Result<(UnixListener, u64), PlaceError> {
    look(path)?;
    let failed = |step| move |source| PlaceError::Io { step, path: path.to_owned(), source };
    // The socket has another name until it listens, so that clients at the final path always get an answer. Two daemons may do
    // this at the same time.
    let mut beside = path.to_owned().into_os_string();
    beside.push(format!(".{:08x}", RandomState::new().build_hasher().finish() >> 32));
    let beside = PathBuf::from(beside);
    let placed = (|| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(&beside)?)?;
        // Set before listening, so that no other user can ever connect.
        fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        let inode = fs::symlink_metadata(&beside)?.ino();
        fs::rename(&beside, path)?;
        Ok((UnixListener::from_std(StdListener::from(socket))?, inode))
    })();
    if placed.is_err() {
        let _ = fs::remove_file(&beside);
    }
    placed.map_err(failed("create a socket at"))
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
    async fn a_socket_replaces_another_and_only_its_user_may_connect() {
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
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[tokio::test]
    async fn foreign_files_are_left_alone() {
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
        assert!(matches!(look(&real), Err(PlaceError::Foreign(_))), "other users may connect to it");
    }

    #[test]
    fn a_directory_writable_by_others_is_refused() {
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

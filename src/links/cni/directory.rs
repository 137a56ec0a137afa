//! The directory of result files: its names, the content of the files, and the kernel's events.
//!
//! See inotify(7). A watch belongs to an inode, so events that processes of the host cause arrive through a bind mount. A
//! directory that is removed while a process holds it open, or while it is mounted elsewhere, sends no event, so it is reopened
//! for each check and compared with the watched one. Opening a FIFO for reading waits for a writer, unless `O_NONBLOCK` is
//! given (open(2)).

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, statat};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::parse::Ignored;

/// The maximum size of a file that is read, in bytes. A pod's annotations are in its file (`capabilityArgs`): at most 256 KiB,
/// which Go's JSON encoding expands by a factor of six if every character is escaped. With a lower limit, a pod could hide its
/// own file.
pub(super) const MAX_FILE: u64 = 4 * 1024 * 1024;
/// The maximum number of events that are processed at once.
const AT_ONE_GO: usize = 1024;
/// The size of the event buffer, in bytes. The largest event has 16 bytes plus a name of 255 with its NUL.
const EVENTS: usize = 8192;

/// The opened directory.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    /// The device and inode.
    pub(super) identity: (u64, u64),
}

/// Metadata of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileMetadata {
    /// Whether it is a regular file.
    pub(super) is_regular: bool,
    /// When it was last written, in nanoseconds since 1970.
    pub(super) written: u64,
    size: u64,
}

impl Directory {
    /// Opens the directory.
    ///
    /// # Errors
    /// If it cannot be opened, or has been removed and is only there because it is mounted.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&fd)?;
        if stat.st_nlink == 0 {
            return Err(Errno::NOENT.into());
        }
        Ok(Self { fd, identity: (stat.st_dev, stat.st_ino) })
    }

    /// Returns the entries, in no particular order.
    pub(super) fn entries(&self) -> io::Result<Dir> {
        Ok(Dir::read_from(&self.fd)?)
    }

    /// Returns the metadata of the file with this name; `None` if there is none. Symbolic links are not followed.
    pub(super) fn find(&self, name: &CStr) -> io::Result<Option<FileMetadata>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileMetadata::from(stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the content of a file that was found, and when it was last written.
    pub(super) fn read(&self, name: &CStr, found: FileMetadata) -> Result<(Vec<u8>, u64), Ignored> {
        // Opening a device may have side effects, so only regular files are opened.
        found.check()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(|error| Ignored::Unreadable(error.kind()))?;
        let found = fstat(&fd).map(FileMetadata::from).map_err(|error| Ignored::Unreadable(error.kind()))?;
        found.check()?;
        let mut bytes = Vec::new();
        File::from(fd).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| Ignored::Unreadable(error.kind()))?;
        // The file may have grown in the meantime.
        if bytes.len() as u64 > MAX_FILE { Err(Ignored::TooLarge) } else { Ok((bytes, found.written)) }
    }
}

impl FileMetadata {
    fn check(self) -> Result<(), Ignored> {
        match self {
            Self { is_regular: false, .. } => Err(Ignored::NotRegular),
            Self { size, .. } if size > MAX_FILE => Err(Ignored::TooLarge),
            _ => Ok(()),
        }
    }
}

impl From<Stat> for FileMetadata {
    fn from(stat: Stat) -> Self {
        // Times before 1970 count as the oldest possible.
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        Self {
            is_regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            written: seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
            size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
        }
    }
}

/// A watch on the directory that a path referred to.
#[derive(Debug)]
pub(super) struct DirectoryWatch(AsyncFd<OwnedFd>);

/// An event in a watched directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Files were written, renamed or removed; names may be repeated.
    Files(Vec<CString>),
    /// Events were lost.
    Overflow,
    /// The directory was removed, renamed or unmounted.
    Gone,
}

impl DirectoryWatch {
    /// Watches the directory at this path. Needs a runtime with I/O.
    ///
    /// # Errors
    /// If there is no such directory, or the limit of watches is reached (`fs.inotify.max_user_instances`).
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let files = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        inotify::add_watch(&fd, path, files | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR)?;
        // The replacement is unsafe because some types close their descriptor too early; this one owns it.
        #[allow(deprecated, reason = "an OwnedFd stays what it is until it is dropped, which is after its registration ends")]
        let fd = AsyncFd::new(fd)?;
        Ok(Self(fd))
    }

    /// Waits for events. Cancel-safe: no event is lost if the future is dropped.
    ///
    /// # Errors
    /// If the events cannot be read.
    pub(super) async fn heard(&mut self) -> io::Result<Heard> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(heard) = ready.try_io(|fd| take(fd.get_ref())) {
                return heard;
            }
        }
    }
}

fn take(fd: &OwnedFd) -> io::Result<Heard> {
    let mut buffer = [MaybeUninit::uninit(); EVENTS];
    let mut reader = Reader::new(fd, &mut buffer);
    let mut names = Vec::new();
    let mut is_lost = false;
    while names.len() < AT_ONE_GO || !reader.is_buffer_empty() {
        match reader.next() {
            Ok(event) => {
                let events = event.events();
                if events.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED) {
                    return Ok(Heard::Gone);
                }
                is_lost |= events.contains(ReadFlags::QUEUE_OVERFLOW);
                names.extend(event.file_name().map(CStr::to_owned));
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if names.is_empty() && !is_lost => return Err(io::ErrorKind::WouldBlock.into()),
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if is_lost { Heard::Overflow } else { Heard::Files(names) })
}

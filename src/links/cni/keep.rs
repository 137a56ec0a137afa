//! Keeps the results in sync with the directory.

use std::ffi::{CStr, CString};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::attachment::Attachment;
use super::directory::{Directory, DirectoryWatch, FileMetadata, Heard};
use super::parse::{Ignored, parse};
use super::table::{AttachmentTable, Change};
use super::{MAX_FILES, Results};
use crate::log_once::{Changes, Condition};
use crate::metrics::Metrics;

/// The maximum number of names in a directory that are examined.
const MAX_NAMES: usize = 16 * MAX_FILES;
/// The number of names that are examined before other tasks get a turn. Files are read separately.
const NAMES_AT_ONCE: usize = 256;
/// Name prefixes of files for the runtime's loopback network: each pod has one, without an address, and most are never removed.
const LOOPBACK: [&[u8]; 2] = [b"cni-loopback-", b"kubenet-loopback-"];

/// The keeper's pauses.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetryPauses {
    /// Before retrying a directory that does not exist or cannot be read.
    pub(super) retry: Duration,
    /// Between two checks that the path still refers to the watched directory.
    pub(super) compare: Duration,
    /// Before reading a directory that replaced the watched one.
    pub(super) replaced: Duration,
    /// Before rereading a directory with more files than are used: some of the used files may be gone.
    pub(super) full: Duration,
}

impl Default for RetryPauses {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(2),
            compare: Duration::from_secs(15),
            replaced: Duration::from_millis(50),
            full: Duration::from_secs(300),
        }
    }
}

impl Results {
    /// Reads the directory and follows its changes for the lifetime of the process. Waits for a directory that does not exist
    /// yet, and rereads one that is replaced.
    pub async fn keep(self, dir: PathBuf, metrics: Metrics) {
        self.keep_with(dir, metrics, RetryPauses::default()).await;
    }

    pub(super) async fn keep_with(self, dir: PathBuf, metrics: Metrics, pauses: RetryPauses) {
        let mut keeper = ResultsFollower { results: self, dir, metrics, pauses, logged: Logged::default() };
        loop {
            let pause = match keeper.follow().await {
                Ok(()) => pauses.replaced,
                Err(error) => {
                    keeper.log_failure(&error);
                    keeper.publish(|table| {
                        let change = Change { is_news: table.used() > 0, is_full: false };
                        *table = table.empty();
                        change
                    });
                    pauses.retry
                }
            };
            sleep(pause).await;
        }
    }
}

struct ResultsFollower {
    results: Results,
    dir: PathBuf,
    metrics: Metrics,
    pauses: RetryPauses,
    logged: Logged,
}

/// The conditions that were logged.
#[derive(Default)]
struct Logged {
    directory: Changes<io::ErrorKind>,
    unreadable_file: Condition,
    full: Condition,
}

impl ResultsFollower {
    /// Reads the directory and follows it; returns when the path refers to another directory.
    async fn follow(&mut self) -> io::Result<()> {
        // The watch comes first, so that changes during the reading are reported.
        let mut watch = DirectoryWatch::begin(&self.dir)?;
        let directory = Directory::open(&self.dir)?;
        let identity = directory.identity;
        self.read_all(Arc::new(directory)).await?;
        let mut read_at = Instant::now();
        self.logged.directory.forget();
        info!(event = "cni-results-read", path = %self.dir.display(), attachments = self.results.count(), "read the CNI results");
        loop {
            let heard = match timeout(self.pauses.compare, watch.heard()).await {
                Ok(heard) => heard?,
                Err(_elapsed) => Heard::Files(Vec::new()),
            };
            // Not held open, because the kernel would then not report its removal.
            let directory = Arc::new(Directory::open(&self.dir)?);
            if directory.identity != identity {
                return Ok(());
            }
            let is_due = self.logged.full.holds() && read_at.elapsed() >= self.pauses.full;
            match heard {
                Heard::Gone => return Ok(()),
                Heard::Files(names) if !is_due => self.read_some(&directory, names).await,
                Heard::Files(_) | Heard::Overflow => {
                    self.read_all(directory).await?;
                    read_at = Instant::now();
                }
            }
        }
    }

    /// Reads all files, then replaces the known attachments.
    async fn read_all(&mut self, directory: Arc<Directory>) -> io::Result<()> {
        let mut table = self.results.read().empty();
        let (mut names, mut is_full) = self.list(&directory).await?;
        if names.len() > MAX_FILES {
            names.select_nth_unstable_by_key(MAX_FILES, |(_, found)| std::cmp::Reverse(found.written));
            names.truncate(MAX_FILES);
            is_full = true;
        }
        for (name, found) in names {
            let attachment = self.read_one(&directory, &name, found).await;
            is_full |= table.put(name.as_bytes(), attachment.as_ref()).is_full;
        }
        self.publish(|known| {
            let change = Change { is_news: !known.is_same(&table), is_full };
            *known = table;
            change
        });
        if !is_full {
            self.logged.full.ends();
        }
        Ok(())
    }

    /// Returns the files that may be results.
    async fn list(&self, directory: &Directory) -> io::Result<(Vec<(CString, FileMetadata)>, bool)> {
        let mut names = Vec::new();
        for (place, entry) in directory.entries()?.enumerate() {
            if place >= MAX_NAMES {
                return Ok((names, true));
            }
            if place % NAMES_AT_ONCE == NAMES_AT_ONCE - 1 {
                yield_now().await;
            }
            let entry = entry?;
            let name = entry.file_name();
            if may_be_result(name)
                && let Some(found) = directory.find(name)?
            {
                names.push((name.to_owned(), found));
            }
        }
        Ok((names, false))
    }

    /// Rereads the files with these names, or forgets those that are gone.
    async fn read_some(&mut self, directory: &Arc<Directory>, mut names: Vec<CString>) {
        names.sort_unstable();
        names.dedup();
        for names in names.chunks(NAMES_AT_ONCE) {
            for name in names.iter().filter(|name| may_be_result(name)) {
                match directory.find(name) {
                    Ok(None) => self.publish(|table| Change { is_news: table.remove(name.as_bytes()), is_full: false }),
                    Ok(Some(found)) => {
                        let attachment = self.read_one(directory, name, found).await;
                        self.publish(|table| table.put(name.as_bytes(), attachment.as_ref()));
                    }
                    Err(_) => self.publish(|table| table.put(name.as_bytes(), None)),
                }
            }
            yield_now().await;
        }
    }

    /// Returns the content of a file, or `None` if it is ignored. Reads and parses on a thread for blocking work, because a
    /// file may have 4 MiB and pods' requests are answered meanwhile.
    async fn read_one(&mut self, directory: &Arc<Directory>, name: &CStr, found: FileMetadata) -> Option<Attachment> {
        let reading = spawn_blocking({
            let (directory, name) = (directory.clone(), name.to_owned());
            move || {
                let (bytes, written) = directory.read(&name, found)?;
                let file_name = name.to_str().map_err(|_| Ignored::Foreign)?;
                parse(file_name, &bytes, written)
            }
        });
        let read = match reading.await {
            Ok(read) => read,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => return None,
            },
        };
        let (path, file) = (self.dir.display(), name.to_string_lossy());
        match read {
            Ok(attachment) => Some(attachment),
            Err(Ignored::Unreadable(error)) if self.logged.unreadable_file.begins() => {
                warn!(
                    event = "cni-result-file-unreadable", %path, %file, %error,
                    "cannot read this CNI result; ignoring it (others that cannot be read are logged at level debug); check that the \
                     daemon runs as root and that SELinux or AppArmor does not deny it"
                );
                None
            }
            Err(reason) => {
                debug!(
                    event = "cni-result-ignored", %path, %file, %reason,
                    "ignoring a CNI result; the pod is identified by the Kubernetes API alone"
                );
                None
            }
        }
    }

    /// Changes the table that readers see, and updates the metrics.
    fn publish(&mut self, change: impl FnOnce(&mut AttachmentTable) -> Change) {
        let mut counts = (0, 0);
        let change = self.results.write(|table| {
            let change = change(table);
            counts = (table.used(), table.ignored());
            change
        });
        self.metrics.cni_results(counts.0, counts.1);
        if change.is_full && self.logged.full.begins() {
            warn!(
                event = "cni-results-too-many", path = %self.dir.display(), limit = MAX_FILES,
                "there are more CNI results than rolegate reads (limit); ignoring the oldest; remove files of pods that no longer exist"
            );
        }
    }

    fn log_failure(&mut self, error: &io::Error) {
        if !self.logged.directory.is_new(error.kind()) {
            return;
        }
        let path = self.dir.display();
        if error.kind() == io::ErrorKind::NotFound {
            info!(
                event = "cni-results-missing", %path,
                "the directory of CNI results does not exist; pods are identified by the Kubernetes API alone until it appears"
            );
        } else {
            warn!(
                event = "cni-results-unreadable", %path, %error,
                "cannot read or watch the directory of CNI results; pods are identified by the Kubernetes API alone until that succeeds; \
                 mount the directory for the daemon, and check fs.inotify.max_user_instances"
            );
        }
    }
}

fn may_be_result(name: &CStr) -> bool {
    let name = name.to_bytes();
    !name.starts_with(b".") && !LOOPBACK.iter().any(|prefix| name.starts_with(prefix))
}

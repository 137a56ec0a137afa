//! Finds the pod of a control group by its id: the inode numbers of the directories below the pods' control group.
//!
//! The kernel does not reuse these numbers until the node reboots (they have 64 bits, see `fs/kernfs`). A pod that was found for an
//! id therefore stays correct, and entries of removed directories only need to be deleted. To find an unknown id, the directories
//! are read again. Containers can create control groups of their own, so the costs are limited: there is a minimum interval between
//! two readings, all waiting requests share one reading, and each reading visits a limited number of directories of a pod.

use std::collections::HashMap;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::id::CgroupId;
use super::path::{Layout, PodDirectory, container};

/// The shortest time between two readings of the directories.
const READ_AGAIN: Duration = Duration::from_millis(250);
/// The most control groups of one pod that are known. Those of its containers come first, then those in them, level by level.
const MAX_OF_POD: usize = 256;
/// The most directory entries of one pod that are looked at: each control group has about 50 files.
const MAX_ENTRIES_OF_POD: usize = 64 * MAX_OF_POD;

/// The pod, and the container in it, that a control group belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupOwner {
    /// The UID of the pod, as the kubelet knows it: a static pod has another one in the Kubernetes API.
    pub pod: Arc<str>,
    /// The ID of the container, if the control group is a container's or in one.
    pub container: Option<Arc<str>>,
}

/// The control groups of this node's pods; cheap to clone.
#[derive(Clone, Debug)]
pub struct PodCgroups(Arc<SharedCgroups>);

#[derive(Debug)]
struct SharedCgroups {
    root: PathBuf,
    layout: Layout,
    known: RwLock<HashMap<CgroupId, CgroupOwner>>,
    /// When the last reading began.
    read: Mutex<Option<Instant>>,
}

impl PodCgroups {
    /// Creates the control groups below this directory, that of the control group of all pods. None is known yet.
    pub fn new(pods: PathBuf) -> Self {
        let layout = Layout::of(&pods);
        Self(Arc::new(SharedCgroups { root: pods, layout, known: RwLock::default(), read: Mutex::default() }))
    }

    /// Returns the owner of a control group, if it is known already.
    pub fn known(&self, id: CgroupId) -> Option<CgroupOwner> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Returns the number of known control groups.
    pub fn count(&self) -> usize {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns the owner of a control group; `None` if it is no pod's. If it is not known, waits until the directories have been
    /// read again: at most for a fraction of a second.
    ///
    /// # Errors
    ///
    /// The directory of the pods' control group cannot be read.
    pub async fn find(&self, id: CgroupId) -> io::Result<Option<CgroupOwner>> {
        if let Some(owner) = self.known(id) {
            return Ok(Some(owner));
        }
        let asked = Instant::now();
        let mut read = self.0.read.lock().await;
        // Another task has read them meanwhile. The directory existed before its process connected.
        if read.is_none_or(|began| began < asked) {
            if let Some(began) = *read {
                tokio::time::sleep_until(began + READ_AGAIN).await;
            }
            *read = Some(Instant::now());
            self.read_again().await?;
        }
        Ok(self.known(id))
    }

    async fn read_again(&self) -> io::Result<()> {
        let cgroups = self.clone();
        in_background(move || {
            let known = cgroups.0.read()?;
            *cgroups.0.known.write().unwrap_or_else(PoisonError::into_inner) = known;
            Ok(())
        })
        .await
    }

    /// Returns the id of a pod's own control group, by the UID that the kubelet knows the pod by; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// The directories cannot be read.
    pub async fn of_pod(&self, uid: &str) -> io::Result<Option<CgroupId>> {
        let (cgroups, paths) = (self.clone(), self.0.layout.paths(uid));
        in_background(move || {
            let root = fs::metadata(&cgroups.0.root)?;
            for path in paths {
                if let Some(metadata) = present(fs::symlink_metadata(cgroups.0.root.join(path)))?.filter(|found| is_cgroup(found, &root)) {
                    return Ok(Some(CgroupId(metadata.ino())));
                }
            }
            Ok(None)
        })
        .await
    }
}

impl SharedCgroups {
    fn read(&self) -> io::Result<HashMap<CgroupId, CgroupOwner>> {
        let root = fs::metadata(&self.root)?;
        let mut known = HashMap::new();
        let mut classes = vec![(None, self.root.clone())];
        while let Some((class, path)) = classes.pop() {
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                // A class has just been removed.
                Err(error) if class.is_some() && error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let Some((entry, metadata)) = directory(entry, &root) else { continue };
                match entry.file_name().to_str().and_then(|name| self.layout.directory(class, name)) {
                    Some(PodDirectory::Class(class)) => classes.push((Some(class), entry.path())),
                    Some(PodDirectory::Pod(uid)) => read_pod(&entry.path(), &metadata, &root, uid.into(), &mut known),
                    None => {}
                }
            }
        }
        Ok(known)
    }
}

/// Adds the control groups of a pod, level by level.
fn read_pod(path: &Path, metadata: &Metadata, root: &Metadata, pod: Arc<str>, known: &mut HashMap<CgroupId, CgroupOwner>) {
    let of_pod = CgroupOwner { pod, container: None };
    known.insert(CgroupId(metadata.ino()), of_pod.clone());
    let (mut directories, mut entries, mut is_of_containers) = (1, 0, true);
    let mut level = vec![(path.to_owned(), of_pod)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (path, owner) in level {
            let Ok(found) = fs::read_dir(&path) else { continue };
            for entry in found {
                entries += 1;
                if directories >= MAX_OF_POD || entries > MAX_ENTRIES_OF_POD {
                    return;
                }
                let Some((entry, metadata)) = directory(entry, root) else { continue };
                directories += 1;
                let name = entry.file_name();
                // Names below these are the container's own choice.
                let id = || name.to_str().and_then(container).filter(|_| is_of_containers).map(Arc::from);
                let owner = CgroupOwner { pod: owner.pod.clone(), container: owner.container.clone().or_else(id) };
                known.insert(CgroupId(metadata.ino()), owner.clone());
                next.push((entry.path(), owner));
            }
        }
        (level, is_of_containers) = (next, false);
    }
}

/// Returns the entry if it is a directory of the same file system.
fn directory(entry: io::Result<DirEntry>, root: &Metadata) -> Option<(DirEntry, Metadata)> {
    let entry = entry.ok()?;
    if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
        return None;
    }
    // This follows no link. The directory may have been removed since.
    let metadata = entry.metadata().ok().filter(|metadata| is_cgroup(metadata, root))?;
    Some((entry, metadata))
}

/// Whether something is a directory of the same file system, and not one that is mounted there.
fn is_cgroup(metadata: &Metadata, root: &Metadata) -> bool {
    metadata.is_dir() && metadata.dev() == root.dev()
}

/// Returns `None` for what does not exist.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads files, or calls the kernel, on a thread that may wait.
pub(crate) async fn in_background<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        // A panic ends the process, as in every task.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The process is ending.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests;

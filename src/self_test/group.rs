//! The control group of the helper, where BPF programs on the pods' control group redirect connections.
//!
//! If the daemon runs in a pod, its helper is already in the control group of that pod. Otherwise, the helper is moved to its own control
//! group, directly below that of all pods. No pod can have its name.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::advice::Advise;
use crate::cgroup::SELF_TEST;
use crate::redirect::bpf::BpfError;
use crate::redirect::bpf::cgroups::PodsCgroup;

/// How many times moving the helper is tried, because another daemon may have just removed the control group.
const TRIES: usize = 5;
/// How long the kernel may take to notice that the helper has ended.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause between two attempts to remove the control group.
const PAUSE: Duration = Duration::from_millis(5);

/// The reason why the helper cannot be in a control group below that of all pods.
#[derive(Debug, thiserror::Error)]
pub(super) enum GroupFailure {
    /// The control group of all pods was not found.
    #[error("cannot find the pods' control group")]
    Pods(#[source] BpfError),
    /// The helper could not be moved.
    #[error("cannot move the self-test's helper process to the control group {}", path.display())]
    Move {
        /// The control group.
        path: PathBuf,
        /// The error from the system.
        source: io::Error,
    },
}

impl Advise for GroupFailure {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Pods(error) => error.advice(),
            Self::Move { .. } => Some(
                "run the daemon in a pod (daemonset/), or on the node as root, outside of containers, and where /sys/fs/cgroup is writable"
                    .into(),
            ),
        }
    }
}

/// The control group that was created for the helper, if there is one. Dropping it removes the control group, if the helper has ended.
#[derive(Debug, Default)]
pub(super) struct HelperGroup {
    made: Option<PathBuf>,
}

impl Drop for HelperGroup {
    fn drop(&mut self) {
        let Some(path) = self.made.take() else { return };
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&path).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
    }
}

impl HelperGroup {
    /// Remembers the control group that [`enter`] created, if it created one.
    pub(super) fn keep(&mut self, made: Option<PathBuf>) {
        if made.is_some() {
            self.made = made;
        }
    }
}

/// Moves the process into a control group below that of all pods, unless it is already in that of a pod. Returns the created control group.
/// `given` is the control group of all pods, if it is not where kubelets create it.
pub(super) fn enter(given: Option<&Path>, process: u32) -> Result<Option<PathBuf>, GroupFailure> {
    let pods = PodsCgroup::find(given).map_err(GroupFailure::Pods)?;
    if pods.has_in_a_pod(process) {
        return Ok(None);
    }
    let path = pods.path.join(SELF_TEST);
    let mut moved = Ok(());
    for _ in 0..TRIES {
        moved = move_into(&path, process);
        match &moved {
            // Another daemon of this node removed the control group between the two steps. In a container with its own cgroup namespace,
            // the kernel returns the same error for a control group outside of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => break,
        }
    }
    match moved {
        Ok(()) => Ok(Some(path)),
        Err(source) => {
            let _ = fs::remove_dir(&path);
            Err(GroupFailure::Move { path, source })
        }
    }
}

fn move_into(group: &Path, process: u32) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // The file is not created: a directory that is not a control group has no such file.
    fs::OpenOptions::new().write(true).open(group.join("cgroup.procs")).and_then(|mut file| {
        use io::Write as _;
        file.write_all(process.to_string().as_bytes())
    })
}

/// Removes the control group that a killed daemon left behind, unless it contains a process.
pub(super) fn sweep(given: Option<&Path>) {
    if let Ok(pods) = PodsCgroup::find(given) {
        let _ = fs::remove_dir(pods.path.join(SELF_TEST));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_control_group_is_not_entered() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(enter(Some(root.path()), 1), Err(GroupFailure::Pods(BpfError::NotCgroup2 { .. }))));
        let group = root.path().join(SELF_TEST);
        assert_eq!(move_into(&group, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(group.is_dir());
        drop(HelperGroup { made: Some(group.clone()) });
        assert!(!group.exists());
        let mut kept = HelperGroup::default();
        kept.keep(Some(group.clone()));
        kept.keep(None);
        assert_eq!(kept.made, Some(group));
    }
}

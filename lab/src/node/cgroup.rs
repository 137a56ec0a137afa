//! Control groups (version 2) of pods, as the kubelet creates them, and processes in them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::netns::Netns;
use super::privilege::find_program;

/// The prefix of the directory of a tree. The ID of the process that created it follows.
const PREFIX: &str = "rolegate-test-";
/// How long the kernel may take to end the processes of a tree.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which a condition is checked again.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Moves the shell into the group `$1`, and replaces it by the program in the other arguments.
const ENTER: &str = r#"echo $$ >"$1/cgroup.procs" && shift && exec "$@""#;

/// Distinguishes the trees of one process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A subtree of the machine's control groups. When it is dropped, its processes are killed and its directories removed.
#[derive(Debug)]
pub struct Cgroups {
    path: PathBuf,
}

/// One control group of a [`Cgroups`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroups {
    /// Creates an empty tree in the cgroup2 file system of this machine. Also removes the empty trees of processes that ended
    /// without doing so.
    ///
    /// # Errors
    /// If there is no such file system, or this process may not write to it.
    pub fn new() -> io::Result<Cgroups> {
        let mount = mount_point()?;
        remove_trees_of_the_dead(&mount);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Cgroups { path })
    }

    /// Returns the root of the tree.
    pub fn root(&self) -> Cgroup {
        Cgroup { path: self.path.clone() }
    }

    /// Returns the group at this path below the root. Creates it and its ancestors if they are missing.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn group(&self, path: impl AsRef<Path>) -> io::Result<Cgroup> {
        let path = self.path.join(path);
        fs::create_dir_all(&path)?;
        Ok(Cgroup { path })
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        while let Err(error) = fs::write(self.path.join("cgroup.kill"), "1").and_then(|()| remove(&self.path)) {
            if Instant::now() > deadline {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove the control groups");
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Cgroup {
    /// Returns its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the kernel's ID of it.
    ///
    /// # Errors
    /// If it was removed.
    pub fn id(&self) -> io::Result<u64> {
        fs::metadata(&self.path).map(|metadata| metadata.ino())
    }

    /// Moves a process into the group.
    ///
    /// # Errors
    /// If the process has ended, or the group was removed.
    pub fn take(&self, process: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), process.to_string())
    }

    /// Kills its processes, and removes it with the groups in it, as the kubelet does when a pod ends.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match fs::write(self.path.join("cgroup.kill"), "1").and_then(|()| remove(&self.path)) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                result => return result,
            }
        }
    }

    /// Returns the words that precede a command line which is to run in the group.
    pub fn words(&self) -> [String; 5] {
        let shell = find_program("sh").unwrap_or_else(|| "/bin/sh".into());
        [shell.display().to_string(), "-c".to_owned(), ENTER.to_owned(), "sh".to_owned(), self.path.display().to_string()]
    }

    /// Returns a command that will run in the group and inside the network namespace. It starts the program's own process, so
    /// that `kill` reaches it.
    pub fn command(&self, ns: &Netns, program: impl AsRef<Path>) -> Command {
        let [shell, words @ ..] = self.words();
        let mut command = ns.command(&shell);
        command.args(words).arg(program.as_ref());
        command
    }
}

/// Finds the cgroup2 file system.
fn mount_point() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.ok_or_else(|| io::Error::other("no cgroup2 file system is mounted"))
}

/// Removes a group and the groups in it. They must not have processes.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn remove_trees_of_the_dead(mount: &Path) {
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            // If processes are left in it, this fails, and removes nothing that anybody uses.
            let _ = remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::node::{available_or_skip, skip};

    #[test]
    fn a_process_runs_in_its_group_until_the_tree_is_dropped() {
        if !available_or_skip() {
            return;
        }
        let cgroups = match Cgroups::new() {
            Ok(cgroups) => cgroups,
            Err(error) => return skip(error),
        };
        let ns = Netns::new("pod").unwrap();
        let group = cgroups.group("kubepods/burstable/pod1/main").unwrap();
        let mut child = group.command(&ns, "cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let members = || fs::read_to_string(group.path().join("cgroup.procs")).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while members().trim() != child.id().to_string() {
            assert!(Instant::now() < deadline, "the process never entered its group");
            std::thread::sleep(POLL_INTERVAL);
        }
        let other = cgroups.group("system.slice/kubelet.service").unwrap();
        other.take(child.id()).unwrap();
        assert_eq!(members(), "");
        assert_ne!(group.id().unwrap(), other.id().unwrap());
        group.remove().unwrap();
        let root = cgroups.root();
        drop(cgroups);
        assert!(!root.path().exists());
        assert!(!child.wait().unwrap().success());
    }
}

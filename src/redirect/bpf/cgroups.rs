//! Finds the control group of all pods, and the daemon's own pod in it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::BpfError;
use super::mounts::{Mount, containing, parse};
use crate::cgroup::{CgroupId, Layout, PodDirectory};

/// Where the kubelet creates the control group of all pods: with the drivers cgroupfs and systemd, and with both below a control group of
/// its own (kind).
const NAMES: [&str; 4] = ["kubepods", "kubepods.slice", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];
/// The file system type of control groups of version 2.
const VERSION_2: &str = "cgroup2";
/// That of version 1.
const VERSION_1: &str = "cgroup";
/// A file that every control group has but the root.
const NOT_IN_ROOT: &str = "cgroup.events";
/// How deep the daemon's own process is looked for below the pods' control group: class, pod, container, and two of its own.
const MAX_DEPTH: u32 = 5;

/// The control group of all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodsCgroup {
    /// Its directory.
    pub path: PathBuf,
    /// Its id.
    pub id: CgroupId,
    /// Its depth below the root of all control groups.
    pub level: u32,
}

impl PodsCgroup {
    /// Finds the control group at this path, or without a path where kubelets create it.
    ///
    /// # Errors
    /// If there is none, or not all of the node's control groups can be seen.
    pub fn find(given: Option<&Path>) -> Result<Self, BpfError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map(|text| parse(&text));
        let mounts = mounts.map_err(|source| BpfError::Cgroups { path: "/proc/self/mountinfo".into(), source })?;
        match given {
            Some(path) => Self::given(path, &mounts),
            None => Self::found(&mounts),
        }
    }

    fn given(path: &Path, mounts: &[Mount]) -> Result<Self, BpfError> {
        match containing(mounts, path) {
            Some(mount) if mount.kind == VERSION_2 => Self::at(path, &mount.path),
            Some(mount) if mount.kind == VERSION_1 => Err(BpfError::CgroupV1),
            _ => Err(BpfError::NotCgroup2 { path: path.to_owned() }),
        }
    }

    fn found(mounts: &[Mount]) -> Result<Self, BpfError> {
        let of_kind = |kind: &'static str| mounts.iter().filter(move |mount| mount.kind == kind);
        let candidates = |mount: &Mount| NAMES.map(|name| mount.path.join(name)).into_iter().find(|path| path.is_dir());
        // A container may see its own control groups at one place, and the node's at another.
        if let Some((path, mount)) = of_kind(VERSION_2).find_map(|mount| Some((candidates(mount)?, mount))) {
            return Self::at(&path, &mount.path);
        }
        if of_kind(VERSION_1).any(|mount| candidates(mount).is_some()) {
            return Err(BpfError::CgroupV1);
        }
        if of_kind(VERSION_2).next().is_none() {
            return Err(BpfError::NoCgroup2);
        }
        match of_kind(VERSION_2).find(|mount| !mount.path.join(NOT_IN_ROOT).exists()) {
            Some(_) => Err(BpfError::NoPodsCgroup),
            None => Err(BpfError::NotRoot { path: of_kind(VERSION_2).next().map(|mount| mount.path.clone()).unwrap_or_default() }),
        }
    }

    fn at(path: &Path, mount: &Path) -> Result<Self, BpfError> {
        if mount.join(NOT_IN_ROOT).exists() {
            return Err(BpfError::NotRoot { path: mount.to_owned() });
        }
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BpfError::NoPodsCgroup),
            Err(source) => return Err(BpfError::Cgroups { path: path.to_owned(), source }),
        };
        let below = path.strip_prefix(mount).map_or(0, |below| below.components().count());
        match u32::try_from(below) {
            // The root is the node's own as well.
            Ok(level) if level > 0 => Ok(Self { path: path.to_owned(), id: CgroupId(metadata.ino()), level }),
            _ => Err(BpfError::NotCgroup2 { path: path.to_owned() }),
        }
    }

    /// Returns whether it is still there, and no other one in its place.
    pub fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.id.0)
    }

    /// Returns the ids of the control groups of the QoS classes burstable and besteffort; 0 for one that does not exist.
    pub fn classes(&self) -> [u64; 2] {
        let layout = Layout::of(&self.path);
        let mut classes = [0; 2];
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(PodDirectory::Class(class)) = name.to_str().and_then(|name| layout.directory(None, name)) else { continue };
            let place = usize::from(class != "burstable");
            classes[place] = entry.metadata().map_or(0, |metadata| metadata.ino());
        }
        classes
    }

    /// Returns the control group of the pod that this process is in; `None` if it is in none.
    ///
    /// The process looks for its own number: in a container, the kernel shows only numbers of processes that the container can see, and
    /// 0 for all others (cgroups(7)). A private view of control groups hides the path of `/proc/self/cgroup`.
    pub fn own_pod(&self) -> Option<CgroupId> {
        self.pod_of(std::process::id())
    }

    fn pod_of(&self, process: u32) -> Option<CgroupId> {
        let number = process.to_string();
        let mut directories = vec![(self.path.clone(), 0, None)];
        while let Some((path, depth, pod)) = directories.pop() {
            if depth > 0 && fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.lines().any(|line| line == number)) {
                return pod.or_else(|| fs::metadata(&path).ok().map(|metadata| CgroupId(metadata.ino())));
            }
            if depth == MAX_DEPTH {
                continue;
            }
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let is_pod = pod.is_none() && entry.file_name().to_str().is_some_and(is_of_pod);
                    let pod = pod.or_else(|| entry.metadata().ok().filter(|_| is_pod).map(|metadata| CgroupId(metadata.ino())));
                    directories.push((entry.path(), depth + 1, pod));
                }
            }
        }
        None
    }
}

/// Whether a directory below the pods' control group has the name of a pod's: `pod<uid>`, or `…-pod<uid>.slice`.
fn is_of_pod(name: &str) -> bool {
    name.starts_with("pod") || name.contains("-pod")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    /// A tree of directories that looks like mounted control groups.
    fn tree(directories: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        root
    }

    fn mount(path: &Path, kind: &str) -> Mount {
        Mount { path: path.to_owned(), kind: kind.to_owned(), options: String::new() }
    }

    #[test]
    fn the_pods_control_group_is_found_by_the_names_of_kubelets() {
        for (name, level) in NAMES.into_iter().zip([1, 1, 2, 2]) {
            let (root, other) = (tree(&[name]), tree(&["other"]));
            let found = PodsCgroup::found(&[mount(other.path(), VERSION_2), mount(root.path(), VERSION_2)]).unwrap();
            assert_eq!((found.path.clone(), found.level), (root.path().join(name), level));
            assert!(found.is_there());
            fs::remove_dir(&found.path).unwrap();
            assert!(!found.is_there());
        }
    }

    #[test]
    fn what_is_missing_is_told_apart() {
        let (empty, v1) = (tree(&["system.slice"]), tree(&["kubepods"]));
        let part = tree(&["init.scope"]);
        fs::write(part.path().join(NOT_IN_ROOT), "").unwrap();
        let found = |mounts: &[Mount]| PodsCgroup::found(mounts).unwrap_err();
        assert!(matches!(found(&[mount(empty.path(), VERSION_2)]), BpfError::NoPodsCgroup));
        assert!(matches!(found(&[mount(empty.path(), VERSION_2), mount(v1.path(), VERSION_1)]), BpfError::CgroupV1));
        assert!(matches!(found(&[mount(empty.path(), "tmpfs")]), BpfError::NoCgroup2));
        assert!(matches!(found(&[mount(part.path(), VERSION_2)]), BpfError::NotRoot { .. }));
    }

    #[test]
    fn a_given_path_must_be_a_control_group_and_not_the_root() {
        let root = tree(&["a/pods"]);
        let mounts = [mount(root.path(), VERSION_2)];
        assert_eq!(PodsCgroup::given(&root.path().join("a/pods"), &mounts).unwrap().level, 2);
        assert!(matches!(PodsCgroup::given(&root.path().join("b"), &mounts), Err(BpfError::NoPodsCgroup)));
        assert!(matches!(PodsCgroup::given(root.path(), &mounts), Err(BpfError::NotCgroup2 { .. })));
        assert!(matches!(PodsCgroup::given(Path::new("/elsewhere"), &mounts), Err(BpfError::NotCgroup2 { .. })));
        fs::write(root.path().join(NOT_IN_ROOT), "").unwrap();
        assert!(matches!(PodsCgroup::given(&root.path().join("a/pods"), &mounts), Err(BpfError::NotRoot { .. })));
    }

    #[test]
    fn the_pod_of_a_process_is_found_and_never_a_class() {
        let root = tree(&["kubepods/burstable/podx/container", "kubepods/pody/container/nested", "kubepods/besteffort"]);
        let pods = PodsCgroup { path: root.path().join("kubepods"), id: CgroupId(0), level: 1 };
        let id = |path: &str| Some(CgroupId(fs::metadata(root.path().join("kubepods").join(path)).unwrap().ino()));
        let holds = |path: &str, text: &str| fs::write(root.path().join("kubepods").join(path).join("cgroup.procs"), text).unwrap();
        assert_eq!(pods.pod_of(7), None);
        holds("burstable/podx/container", "0\n17\n");
        assert_eq!(pods.pod_of(7), None);
        holds("burstable/podx/container", "0\n7\n");
        assert_eq!(pods.pod_of(7), id("burstable/podx"));
        holds("burstable/podx/container", "0\n");
        holds("pody/container/nested", "7\n");
        assert_eq!(pods.pod_of(7), id("pody"));
    }

    #[test]
    fn pods_have_names() {
        for name in ["pod4dcc8d14", "kubepods-pod4d.slice", "kubelet-kubepods-burstable-pod4d.slice"] {
            assert!(is_of_pod(name), "{name}");
        }
        for name in ["burstable", "besteffort", "kubepods-burstable.slice", "kubelet-kubepods-besteffort.slice"] {
            assert!(!is_of_pod(name), "{name}");
        }
    }

    #[test]
    fn the_classes_are_found_by_their_names() {
        let root = tree(&["kubepods.slice/kubepods-burstable.slice", "kubepods.slice/kubepods-pod1.slice", "kubepods/besteffort"]);
        let of = |name: &str| PodsCgroup { path: root.path().join(name), id: CgroupId(1), level: 1 }.classes();
        let number = |path: &str| fs::metadata(root.path().join(path)).unwrap().ino();
        assert_eq!(of("kubepods.slice"), [number("kubepods.slice/kubepods-burstable.slice"), 0]);
        assert_eq!(of("kubepods"), [0, number("kubepods/besteffort")]);
    }
}

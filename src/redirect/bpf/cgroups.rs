//! Finds the control group of all pods, and the daemon's own pod in it.

use std::fs::{self, DirEntry};
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
/// The file that says whether there is a process in a control group or below it (cgroups(7)).
const EVENTS: &str = NOT_IN_ROOT;
/// The line of that file if there is one.
const POPULATED: &str = "populated 1";
/// How deep the daemon's own process is looked for below the control group of a pod: container, and two of its own.
const MAX_DEPTH: u32 = 3;
/// What the kubelet mounts into every pod that talks to the Kubernetes API.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

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
        let is_root = |mount: &&Mount| !mount.path.join(NOT_IN_ROOT).exists();
        let candidates = |mount: &Mount| NAMES.map(|name| mount.path.join(name)).into_iter().filter(|path| path.is_dir());
        let mut found: Vec<Self> = Vec::new();
        for mount in of_kind(VERSION_2).filter(is_root) {
            for path in candidates(mount) {
                let candidate = Self::at(&path, &mount.path)?;
                // The node's control groups may be mounted twice.
                if found.iter().all(|other| other.id != candidate.id) {
                    found.push(candidate);
                }
            }
        }
        if !found.is_empty() {
            return Self::in_use(found);
        }
        // A container may see its own control groups at one place, and the node's at another.
        if let Some(mount) = of_kind(VERSION_2).find(|mount| candidates(mount).next().is_some()) {
            return Err(BpfError::NotRoot { path: mount.path.clone() });
        }
        if of_kind(VERSION_1).any(|mount| candidates(mount).next().is_some()) {
            return Err(BpfError::CgroupV1);
        }
        if of_kind(VERSION_2).next().is_none() {
            return Err(BpfError::NoCgroup2);
        }
        match of_kind(VERSION_2).find(is_root) {
            Some(_) => Err(BpfError::NoPodsCgroup),
            None => Err(BpfError::NotRoot { path: of_kind(VERSION_2).next().map(|mount| mount.path.clone()).unwrap_or_default() }),
        }
    }

    /// Returns the candidate that the kubelet uses. Another one is left when its driver is changed: without processes, if the pods of
    /// before are gone.
    fn in_use(mut candidates: Vec<Self>) -> Result<Self, BpfError> {
        let paths: Vec<_> = candidates.iter().map(|candidate| candidate.path.clone()).collect();
        if candidates.len() > 1 {
            candidates.retain(Self::is_populated);
        }
        match <[Self; 1]>::try_from(candidates) {
            Ok([one]) => Ok(one),
            Err(_) => Err(BpfError::AmbiguousPodsCgroup { paths }),
        }
    }

    fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join(EVENTS)).is_ok_and(|text| text.lines().any(|line| line == POPULATED))
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

    /// Returns whether a process is in the control group of a pod. `process` is its number in the PID namespace of this process.
    pub fn has_in_a_pod(&self, process: u32) -> bool {
        self.pod_of(process).is_some()
    }

    /// Returns the control group of the pod that this process is in; `None` if it is in none.
    ///
    /// The process looks for its own number: in a container, the kernel shows only numbers of processes that the container can see, and
    /// 0 for all others (cgroups(7)). A private view of control groups hides the path of `/proc/self/cgroup`.
    ///
    /// # Errors
    /// If this process is in a pod, but in no control group of a pod here: the container runtime does not create them where the kubelet
    /// says, and programs here would see no pod.
    pub fn own_pod(&self) -> Result<Option<CgroupId>, BpfError> {
        self.own_pod_of(std::process::id(), Path::new(SERVICE_ACCOUNT).exists())
    }

    fn own_pod_of(&self, process: u32, is_in_pod: bool) -> Result<Option<CgroupId>, BpfError> {
        match self.pod_of(process) {
            None if is_in_pod => Err(BpfError::OwnPodElsewhere { path: self.path.clone() }),
            found => Ok(found),
        }
    }

    /// Looks only where the kubelet creates the control groups of pods: what is exempt by mistake reaches the real metadata service.
    fn pod_of(&self, process: u32) -> Option<CgroupId> {
        let (layout, number) = (Layout::of(&self.path), process.to_string());
        let mut parents = vec![(None, self.path.clone())];
        while let Some((class, parent)) = parents.pop() {
            for entry in directories(&parent) {
                match entry.file_name().to_str().and_then(|name| layout.directory(class, name)) {
                    Some(PodDirectory::Class(class)) => parents.push((Some(class), entry.path())),
                    Some(PodDirectory::Pod(_)) if holds(&entry.path(), &number, MAX_DEPTH) => {
                        return entry.metadata().ok().map(|metadata| CgroupId(metadata.ino()));
                    }
                    _ => {}
                }
            }
        }
        None
    }
}

/// Returns whether a process is in a control group, or in one below it.
fn holds(path: &Path, process: &str, depth: u32) -> bool {
    let is_here = fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.lines().any(|line| line == process));
    is_here || depth > 0 && directories(path).any(|below| holds(&below.path(), process, depth - 1))
}

/// Returns the directories in a directory; none if it is gone.
fn directories(path: &Path) -> impl Iterator<Item = DirEntry> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
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

    fn populate(path: &Path, is_populated: bool) {
        fs::write(path.join(EVENTS), format!("populated {}\nfrozen 0\n", u8::from(is_populated))).unwrap();
    }

    #[test]
    fn an_empty_control_group_that_a_former_driver_left_hides_no_other() {
        for used in NAMES {
            let root = tree(&NAMES);
            let mounts = [mount(root.path(), VERSION_2), mount(root.path(), VERSION_2)];
            for name in NAMES {
                populate(&root.path().join(name), name == used);
            }
            assert_eq!(PodsCgroup::found(&mounts).unwrap().path, root.path().join(used));
        }
    }

    #[test]
    fn control_groups_of_two_drivers_are_ambiguous_if_both_or_none_have_processes() {
        let names = ["kubepods", "kubepods.slice"];
        for are_populated in [false, true] {
            let root = tree(&names);
            for name in names {
                populate(&root.path().join(name), are_populated);
            }
            let error = PodsCgroup::found(&[mount(root.path(), VERSION_2)]).unwrap_err();
            let BpfError::AmbiguousPodsCgroup { paths } = error else { panic!("{error}") };
            assert_eq!(paths, names.map(|name| root.path().join(name)));
        }
    }

    const UID: &str = "0b7d2c1e-4c1a-4a57-9f0e-1234567890ab";
    const OTHER: &str = "ffffffff-4c1a-4a57-9f0e-1234567890ab";

    #[test]
    fn the_pod_of_a_process_is_found_with_each_driver() {
        let (uid, other) = (UID.replace('-', "_"), OTHER.replace('-', "_"));
        let layouts = [
            ("kubepods", format!("burstable/pod{UID}"), format!("pod{OTHER}")),
            (
                "pods-kubepods.slice",
                format!("pods-kubepods-burstable.slice/pods-kubepods-burstable-pod{uid}.slice"),
                format!("pods-kubepods-pod{other}.slice"),
            ),
        ];
        for (name, first, second) in layouts {
            let root = tree(&[&format!("{name}/{first}/container"), &format!("{name}/{second}/container/nested")]);
            let path = root.path().join(name);
            let pods = PodsCgroup { path: path.clone(), id: CgroupId(0), level: 1 };
            let id = |of: &str| Some(CgroupId(fs::metadata(path.join(of)).unwrap().ino()));
            let holds = |of: &str, text: &str| fs::write(path.join(of).join("cgroup.procs"), text).unwrap();
            assert_eq!(pods.pod_of(7), None);
            holds(&format!("{first}/container"), "0\n17\n");
            assert_eq!(pods.pod_of(7), None);
            holds(&format!("{first}/container"), "0\n7\n");
            assert_eq!(pods.pod_of(7), id(&first));
            holds(&format!("{first}/container"), "0\n");
            holds(&format!("{second}/container/nested"), "7\n");
            assert_eq!(pods.pod_of(7), id(&second));
            assert_eq!(pods.own_pod_of(7, true).unwrap(), id(&second));
        }
    }

    #[test]
    fn no_class_and_no_other_directory_is_taken_for_the_daemons_pod() {
        for (name, below) in [
            ("pods-kubepods.slice", "pods-kubepods-burstable.slice"),
            ("pods-kubepods.slice", "pods-kubepods-burstable.slice/container"),
            ("kubepods", "burstable/container"),
            ("kubepods", "besteffort/podx/container"),
            ("kubepods", "container"),
            ("kubepods", ""),
        ] {
            let root = tree(&[&format!("{name}/{below}")]);
            let pods = PodsCgroup { path: root.path().join(name), id: CgroupId(0), level: 1 };
            fs::write(pods.path.join(below).join("cgroup.procs"), "7\n").unwrap();
            assert_eq!(pods.pod_of(7), None, "{name}/{below}");
            assert_eq!(pods.own_pod_of(7, false).unwrap(), None, "a process of the node");
            assert!(matches!(pods.own_pod_of(7, true), Err(BpfError::OwnPodElsewhere { .. })), "{name}/{below}");
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

//! Which pod a control group belongs to, by its path below the control group of all pods.
//!
//! The kubelet creates one directory for each pod, directly below the pods' control group or in that of a QoS class. Its name
//! depends on the driver:
//!
//! ```text
//! cgroupfs   kubepods/burstable/pod<uid>/<container>
//! systemd    kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<container>.scope
//! ```
//!
//! With systemd, the dashes of the UID are underscores, and the names begin with that of the parent. With `--cgroup-root` of the
//! kubelet, that is `kubelet-kubepods.slice`, for example. (Kubernetes, `pkg/kubelet/cm/pod_container_manager_linux.go` and
//! `cgroup_manager_linux.go`.)
//!
//! Below its own directory, a container with a writable cgroup file system may create directories of any name. Only the first
//! directory below the pods' control group, or the first one in a QoS class, therefore names the pod.

use std::path::Path;

/// The QoS classes that have a directory. Guaranteed pods are directly below the pods' control group.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];
/// The groups of a UID of the API, in hexadecimal digits (RFC 9562).
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
/// The length of the UID of a static pod: the hash of its manifest, without dashes (Kubernetes, `pkg/kubelet/config/common.go`).
const STATIC: usize = 32;
/// The length of a container's ID.
const CONTAINER: usize = 64;

/// The name of the self-test's control group, directly below that of all pods. It is no name of a pod or of a QoS class, with any driver.
pub const SELF_TEST: &str = "rolegate-self-test";

/// How the directories below the pods' control group are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The kubelet's driver `cgroupfs`.
    Cgroupfs,
    /// The kubelet's driver `systemd`. The names begin with this text: that of the pods' slice without `.slice`.
    Systemd(String),
}

/// A directory below the pods' control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodDirectory {
    /// That of a QoS class, in which there are pods.
    Class(&'static str),
    /// That of the pod with this UID, as the kubelet knows it: a static pod has another one in the Kubernetes API.
    Pod(String),
}

impl Layout {
    /// Returns the layout of the directories below this control group of all pods.
    pub fn of(pods: &Path) -> Self {
        let name = pods.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_suffix(".slice").map_or(Self::Cgroupfs, |slice| Self::Systemd(slice.to_owned()))
    }

    /// Returns what a directory of this name is: directly below the pods' control group, or in that of a QoS class. Returns `None`
    /// if the kubelet creates no such directory there.
    pub fn directory(&self, class: Option<&str>, name: &str) -> Option<PodDirectory> {
        if class.is_none()
            && let Some(class) = CLASSES.into_iter().find(|class| self.of_class(class) == name)
        {
            return Some(PodDirectory::Class(class));
        }
        let uid = name.strip_prefix(&*self.before_uid(class))?.strip_suffix(self.suffix())?;
        let uid = match self {
            Self::Cgroupfs => uid.to_owned(),
            // A dash begins another slice.
            Self::Systemd(_) if uid.contains('-') => return None,
            Self::Systemd(_) => uid.replace('_', "-"),
        };
        is_uid(&uid).then_some(PodDirectory::Pod(uid))
    }

    /// Returns the paths, relative to the pods' control group, that the directory of the pod with this UID may have. Returns none
    /// if the text is no UID.
    pub fn paths(&self, uid: &str) -> Vec<String> {
        if !is_uid(uid) {
            return Vec::new();
        }
        let uid = match self {
            Self::Cgroupfs => uid.to_owned(),
            Self::Systemd(_) => uid.replace('-', "_"),
        };
        let of = |class: Option<&str>| format!("{}{uid}{}", self.before_uid(class), self.suffix());
        let in_class = CLASSES.map(|class| format!("{}/{}", self.of_class(class), of(Some(class))));
        std::iter::once(of(None)).chain(in_class).collect()
    }

    /// Returns which pod and container a control group belongs to, by its path relative to the pods' control group.
    pub fn owner<'a>(&self, path: &'a str) -> Option<(String, Option<&'a str>)> {
        let mut names = path.split('/');
        let uid = match self.directory(None, names.next()?)? {
            PodDirectory::Pod(uid) => uid,
            PodDirectory::Class(class) => match self.directory(Some(class), names.next()?)? {
                PodDirectory::Pod(uid) => uid,
                PodDirectory::Class(_) => return None,
            },
        };
        Some((uid, names.next().and_then(container)))
    }

    fn of_class(&self, class: &str) -> String {
        match self {
            Self::Cgroupfs => class.to_owned(),
            Self::Systemd(slice) => format!("{slice}-{class}.slice"),
        }
    }

    fn before_uid(&self, class: Option<&str>) -> String {
        match (self, class) {
            (Self::Cgroupfs, _) => "pod".to_owned(),
            (Self::Systemd(slice), None) => format!("{slice}-pod"),
            (Self::Systemd(slice), Some(class)) => format!("{slice}-{class}-pod"),
        }
    }

    fn suffix(&self) -> &'static str {
        match self {
            Self::Cgroupfs => "",
            Self::Systemd(_) => ".slice",
        }
    }
}

/// Returns the ID of the container that a directory directly below a pod's belongs to: `<id>`, `cri-containerd-<id>.scope`,
/// `crio-<id>.scope` and the like.
pub(super) fn container(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit('-').next()?;
    (id.len() == CONTAINER && id.bytes().all(is_hexadecimal)).then_some(id)
}

/// Returns whether a text has the form of a UID of the API, or of a static pod. Both have lower-case digits only, so that each UID
/// has one form.
pub(crate) fn is_uid(text: &str) -> bool {
    let is_of_api = || {
        let mut groups = text.split('-');
        let are_long_enough = GROUPS.iter().all(|length| groups.next().is_some_and(|group| group.len() == *length));
        are_long_enough && groups.next().is_none()
    };
    is_static_uid(text) || is_of_api() && text.bytes().all(|byte| byte == b'-' || is_hexadecimal(byte))
}

/// Returns whether a text has the form of the UID by which the kubelet knows a static pod. No UID of the API has it.
pub fn is_static_uid(text: &str) -> bool {
    text.len() == STATIC && text.bytes().all(is_hexadecimal)
}

fn is_hexadecimal(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0b7d2c1e-4c1a-4a57-9f0e-1234567890ab";
    const OTHER: &str = "ffffffff-4c1a-4a57-9f0e-1234567890ab";
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    const ID: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn systemd(slice: &str) -> Layout {
        Layout::of(Path::new(&format!("/sys/fs/cgroup/{slice}.slice")))
    }

    fn escaped(uid: &str) -> String {
        uid.replace('-', "_")
    }

    #[test]
    fn pods_of_each_driver_and_class_are_found() {
        let cgroupfs = Layout::of(Path::new("/sys/fs/cgroup/kubepods"));
        for path in [format!("pod{UID}"), format!("burstable/pod{UID}"), format!("besteffort/pod{UID}")] {
            assert_eq!(cgroupfs.owner(&path), Some((UID.to_owned(), None)), "{path}");
            assert_eq!(cgroupfs.owner(&format!("{path}/{ID}")), Some((UID.to_owned(), Some(ID))), "{path}");
            assert_eq!(cgroupfs.owner(&format!("{path}/{ID}/init.scope")), Some((UID.to_owned(), Some(ID))), "{path}");
        }
        assert_eq!(cgroupfs.owner(&format!("burstable/pod{HASH}")), Some((HASH.to_owned(), None)), "a static pod");
        for slice in ["kubepods", "kubelet-kubepods", "my-own-kubepods"] {
            let (layout, uid) = (systemd(slice), escaped(UID));
            for path in [
                format!("{slice}-pod{uid}.slice"),
                format!("{slice}-burstable.slice/{slice}-burstable-pod{uid}.slice"),
                format!("{slice}-besteffort.slice/{slice}-besteffort-pod{uid}.slice"),
            ] {
                assert_eq!(layout.owner(&path), Some((UID.to_owned(), None)), "{path}");
                for scope in ["cri-containerd", "crio", "docker"] {
                    assert_eq!(layout.owner(&format!("{path}/{scope}-{ID}.scope")), Some((UID.to_owned(), Some(ID))), "{path}");
                }
                assert_eq!(layout.owner(&format!("{path}/crio-{ID}")), Some((UID.to_owned(), Some(ID))));
                assert_eq!(layout.owner(&format!("{path}/crio-conmon-{ID}.scope")), Some((UID.to_owned(), Some(ID))));
            }
            assert_eq!(layout.owner(&format!("{slice}-pod{HASH}.slice")), Some((HASH.to_owned(), None)));
        }
    }

    /// A container with a writable cgroup file system creates directories below its own.
    #[test]
    fn the_first_pod_of_a_path_decides() {
        let cgroupfs = Layout::Cgroupfs;
        for below in [
            format!("pod{OTHER}"),
            format!("{ID}/pod{OTHER}"),
            format!("{ID}/kubepods/pod{OTHER}/{ID}"),
            format!("{ID}/kubepods/burstable/pod{OTHER}"),
            format!("burstable/pod{OTHER}"),
        ] {
            let (uid, _) = cgroupfs.owner(&format!("burstable/pod{UID}/{below}")).unwrap();
            assert_eq!(uid, UID, "{below}");
        }
        let (layout, own) = (systemd("kubepods"), format!("kubepods-pod{}.slice", escaped(UID)));
        for below in ["kubepods.slice/kubepods-pod@.slice", "kubepods-pod@.slice", "kubepods-burstable.slice/kubepods-burstable-pod@.slice"]
        {
            let (uid, _) = layout.owner(&format!("{own}/{}", below.replace('@', &escaped(OTHER)))).unwrap();
            assert_eq!(uid, UID, "{below}");
        }
    }

    #[test]
    fn the_self_tests_control_group_is_of_no_pod() {
        for layout in [Layout::Cgroupfs, systemd("kubepods"), systemd("rolegate"), systemd("rolegate-self-test")] {
            for class in [None, Some("burstable"), Some("besteffort")] {
                assert_eq!(layout.directory(class, SELF_TEST), None, "{layout:?}");
            }
            for below in [String::new(), format!("/{ID}"), format!("/pod{UID}"), format!("/kubepods-pod{}.slice", escaped(UID))] {
                assert_eq!(layout.owner(&format!("{SELF_TEST}{below}")), None, "{layout:?}");
            }
        }
    }

    #[test]
    fn other_directories_are_of_no_pod() {
        let cgroupfs = Layout::Cgroupfs;
        for path in [
            String::new(),
            "burstable".to_owned(),
            "pod".to_owned(),
            format!("{ID}/pod{UID}"),
            format!("system/pod{UID}"),
            format!("guaranteed/pod{UID}"),
            format!("burstable/burstable/pod{UID}"),
            format!("burstable/{ID}/pod{UID}"),
            format!("burstable//pod{UID}"),
            format!("/pod{UID}"),
            format!("./pod{UID}"),
            format!("../kubepods/pod{UID}"),
            format!("Pod{UID}"),
            format!("pod{UID}.slice"),
            format!("pod{}", UID.to_uppercase()),
            format!("pod{}", escaped(UID)),
            format!("pod{UID}0"),
            format!("pod{}", &UID[1..]),
            format!("pod{HASH}0"),
            format!("pod{}", UID.replace('b', "g")),
            format!("kubepods-pod{}.slice", escaped(UID)),
        ] {
            assert_eq!(cgroupfs.owner(&path), None, "{path}");
        }
        let layout = systemd("kubepods");
        for path in [
            format!("kubepods-pod{UID}.slice"),
            format!("kubepods-pod{}", escaped(UID)),
            format!("kubepods-pod{}.scope", escaped(UID)),
            format!("kubepods-burstable-pod{}.slice", escaped(UID)),
            format!("kubepods-burstable.slice/kubepods-pod{}.slice", escaped(UID)),
            format!("kubepods-burstable.slice/kubepods-besteffort-pod{}.slice", escaped(UID)),
            format!("kubelet-kubepods-pod{}.slice", escaped(UID)),
            format!("kubepods.slice/kubepods-pod{}.slice", escaped(UID)),
            format!("pod{UID}"),
        ] {
            assert_eq!(layout.owner(&path), None, "{path}");
        }
    }

    fn is_at_or_below(path: &str, directory: &str) -> bool {
        path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        prop_oneof![Just(Layout::Cgroupfs), "[a-z]{1,8}(-[a-z]{1,8}){0,2}".prop_map(Layout::Systemd)]
    }

    fn uids() -> impl Strategy<Value = String> {
        prop_oneof!["[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[0-9a-f]{32}"]
    }

    proptest! {
        #[test]
        fn a_path_that_the_kubelet_creates_is_its_pods_whatever_is_below(
            layout in layouts(), uid in uids(), class in 0..3_usize, below in "(/[a-zA-Z0-9._-]{1,20}){0,4}", other in uids(), at in 0..2_u8,
        ) {
            let path = layout.paths(&uid).swap_remove(class);
            let below = if at == 0 { below } else { format!("{below}/{}", layout.paths(&other)[class]) };
            let (found, _) = layout.owner(&format!("{path}{below}")).unwrap();
            prop_assert_eq!(&found, &uid);
            if other != uid {
                prop_assert!(!layout.paths(&other).contains(&path));
            }
        }

        #[test]
        fn only_directories_that_the_kubelet_creates_have_an_owner(layout in layouts(), path in ".{0,200}") {
            if let Some((uid, _)) = layout.owner(&path) {
                prop_assert!(layout.paths(&uid).iter().any(|of_pod| is_at_or_below(&path, of_pod)));
            }
        }

        /// Mutations of real paths come closer to the borders than random texts.
        #[test]
        fn a_mutated_path_has_the_owner_that_it_names_or_none(
            layout in layouts(), uid in uids(), class in 0..3_usize, at in 0..80_usize, byte in "[0-9a-z/._-]",
        ) {
            let mut path = layout.paths(&uid).swap_remove(class);
            let at = at % path.len();
            path.replace_range(at..=at, &byte);
            if let Some((found, _)) = layout.owner(&path) {
                prop_assert!(layout.paths(&found).iter().any(|of_pod| is_at_or_below(&path, of_pod)));
            }
        }

        #[test]
        fn no_uid_is_made_of_anything_else(layout in layouts(), text in "[0-9a-f_/.-]{0,40}") {
            for path in layout.paths(&text) {
                prop_assert_eq!(layout.owner(&path).map(|owner| owner.0), Some(text.clone()));
            }
        }
    }
}

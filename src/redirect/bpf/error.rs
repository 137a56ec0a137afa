//! Why the kernel's programs cannot be loaded, attached or read.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::advice::Advise;

/// Why the kernel's programs cannot be loaded, attached or read.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The process lacks a capability.
    #[error("the process is not permitted to {what}")]
    NotPermitted {
        /// What it tried.
        what: String,
        /// The error from the system.
        source: io::Error,
    },
    /// The kernel refuses something.
    #[error("cannot {what}")]
    Kernel {
        /// What failed.
        what: String,
        /// The error of the loader.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The directory of the pins is not in a BPF file system.
    #[error("{} is not in a BPF file system", path.display())]
    NotBpfFileSystem {
        /// The directory.
        path: PathBuf,
    },
    /// The directory of the pins cannot be read or changed.
    #[error("cannot use the directory {}", path.display())]
    Pins {
        /// The directory.
        path: PathBuf,
        /// The error from the system.
        source: io::Error,
    },
    /// There is no cgroup2 file system.
    #[error("no cgroup2 file system is mounted here")]
    NoCgroup2,
    /// The kubelet uses control groups of version 1.
    #[error("the pods' control groups are of version 1")]
    CgroupV1,
    /// The control group of all pods does not exist yet.
    #[error("the pods' control group does not exist")]
    NoPodsCgroup,
    /// Several control groups may be that of all pods.
    #[error("several control groups may be that of all pods: {}", list(paths))]
    AmbiguousPodsCgroup {
        /// Their directories.
        paths: Vec<PathBuf>,
    },
    /// This process is in a pod, but in no control group of a pod.
    #[error("the daemon's own pod has no control group in {}", path.display())]
    OwnPodElsewhere {
        /// The directory of the pods' control group.
        path: PathBuf,
    },
    /// The path given is not in a cgroup2 file system.
    #[error("{} is not a directory in a cgroup2 file system", path.display())]
    NotCgroup2 {
        /// The path.
        path: PathBuf,
    },
    /// The control groups that are mounted are only a part of the node's.
    #[error("the control groups at {} are not all of the node's", path.display())]
    NotRoot {
        /// The root that is visible.
        path: PathBuf,
    },
    /// A directory of control groups cannot be read.
    #[error("cannot read {}", path.display())]
    Cgroups {
        /// The directory.
        path: PathBuf,
        /// The error from the system.
        source: io::Error,
    },
}

impl BpfError {
    /// Makes an error of the loader's, by its cause.
    pub(super) fn kernel(what: impl Into<String>, error: impl Error + Send + Sync + 'static) -> Self {
        let what = what.into();
        match cause(&error) {
            Some(source) if source.kind() == io::ErrorKind::PermissionDenied => Self::NotPermitted { what, source },
            _ => Self::Kernel { what, source: Box::new(error) },
        }
    }
}

/// Returns the system's error behind another one.
fn cause(error: &(dyn Error + 'static)) -> Option<io::Error> {
    let mut error = Some(error);
    while let Some(current) = error {
        if let Some(code) = current.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(io::Error::from_raw_os_error(code));
        }
        error = current.source();
    }
    None
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Advise for BpfError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::NotPermitted { .. } => {
                "add the capabilities BPF and NET_ADMIN to the container's securityContext, or give --redirect=nftables".into()
            }
            Self::Kernel { .. } => {
                "use Linux 6.6 or later with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, or give --redirect=nftables".into()
            }
            Self::NotBpfFileSystem { .. } => "mount the node's /sys/fs/bpf into the container, or correct --bpf-pins".into(),
            Self::Pins { .. } => "run as root, with the node's /sys/fs/bpf mounted writable".into(),
            Self::NoCgroup2 | Self::NotRoot { .. } => {
                "mount the node's /sys/fs/cgroup into the container (hostPath; see daemonset/bpf)".into()
            }
            Self::CgroupV1 => {
                "use control groups of version 2 (boot with systemd.unified_cgroup_hierarchy=1), or give --redirect=nftables".into()
            }
            Self::NoPodsCgroup => "start the kubelet; if its control groups have another name, give --bpf-cgroup".into(),
            Self::AmbiguousPodsCgroup { .. } => {
                "remove (rmdir) the control groups that the kubelet no longer uses, drain and reboot the node, or give --bpf-cgroup".into()
            }
            Self::OwnPodElsewhere { .. } => {
                "configure the same cgroup driver in the kubelet and the container runtime, or correct --bpf-cgroup".into()
            }
            Self::NotCgroup2 { .. } => "correct --bpf-cgroup: the directory of all pods' control groups, below /sys/fs/cgroup".into(),
            Self::Cgroups { .. } => return None,
        })
    }
}

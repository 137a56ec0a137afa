//! The kernel's id of a control group.

use std::fmt;

/// The kernel's id of a control group: the inode number of its directory in the cgroup2 file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupId(pub u64);

impl CgroupId {
    /// The root of all control groups. Where control groups of version 2 are not used, all processes are in it.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for CgroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

//! The mounted file systems of `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Pure.

use std::path::{Path, PathBuf};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is mounted.
    pub(super) path: PathBuf,
    /// Its type.
    pub(super) kind: String,
    /// Its options, such as the controllers of control groups of version 1.
    pub(super) options: String,
}

/// Returns the mounted file systems, later ones last.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let path = unescaped(before.split(' ').nth(4)?);
            let mut words = after.split(' ');
            let kind = words.next()?.to_owned();
            Some(Mount { path: PathBuf::from(path), kind, options: words.nth(1).unwrap_or_default().to_owned() })
        })
        .collect()
}

/// Returns the file system that a path is in.
pub(super) fn containing<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let depth = |mount: &&Mount| mount.path.components().count();
    // Of several in one place, the last one is visible.
    mounts.iter().filter(|mount| path.starts_with(&mount.path)).max_by_key(depth)
}

/// Spaces, tabs, newlines and backslashes are octal numbers.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, sign)| text.replace(code, sign))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:2 master:3 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
33 22 0:29 / /a\\040b rw - bpf bpf rw
odd line
";

    #[test]
    fn mounts_are_read_with_optional_fields_and_escapes() {
        let mounts = parse(TEXT);
        let short: Vec<_> = mounts.iter().map(|mount| (mount.path.to_str().unwrap(), &*mount.kind)).collect();
        let wanted = [
            ("/", "ext4"),
            ("/sys/fs/cgroup", "tmpfs"),
            ("/sys/fs/cgroup/unified", "cgroup2"),
            ("/sys/fs/cgroup/cpu", "cgroup"),
            ("/a b", "bpf"),
        ];
        assert_eq!(short, wanted);
        assert_eq!(mounts[3].options, "rw,cpu,cpuacct");
    }

    #[test]
    fn a_path_is_in_the_deepest_mount() {
        let mounts = parse(TEXT);
        let kind = |path: &str| containing(&mounts, Path::new(path)).unwrap().kind.clone();
        assert_eq!(kind("/sys/fs/cgroup/unified/kubepods"), "cgroup2");
        assert_eq!(kind("/sys/fs/cgroup/unified-not"), "tmpfs");
        assert_eq!(kind("/a b/rolegate"), "bpf");
        assert_eq!(kind("/etc"), "ext4");
    }
}

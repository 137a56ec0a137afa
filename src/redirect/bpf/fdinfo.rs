//! What the kernel says about the links that this process has open (`/proc/self/fdinfo`, `bpf_link_show_fdinfo`): the program, and what
//! it is attached to. The loader's own interface does not say the latter.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::RawFd;

/// Where the kernel describes the open files of this process.
pub(super) const DIRECTORY: &str = "/proc/self/fdinfo";

/// A program, attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttachedLink {
    /// The program's number.
    pub(super) program: u32,
    /// The id of the control group, or the number of the interface; 0 if that is gone, `None` if it was not read.
    pub(super) target: Option<u64>,
}

/// Returns the links that this process has open, by their numbers.
pub(super) fn links() -> io::Result<BTreeMap<u32, AttachedLink>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(DIRECTORY)? {
        // Others are closed meanwhile.
        let text = entry.and_then(|entry| fs::read_to_string(entry.path())).unwrap_or_default();
        found.extend(parse(&text));
    }
    Ok(found)
}

/// Returns the descriptor of the newest link of this program that this process has open.
pub(super) fn descriptor(program: u32) -> io::Result<Option<RawFd>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(DIRECTORY)?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some((link, AttachedLink { program: of_link, .. })), Some(number)) = (parse(&text), number)
            && of_link == program
        {
            found.insert(link, number);
        }
    }
    Ok(found.pop_last().map(|(_, number)| number))
}

fn parse(text: &str) -> Option<(u32, AttachedLink)> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    let number = u32::try_from(field("link_id")?).ok()?;
    let target = Some(field("cgroup_id").or_else(|| field("ifindex")).unwrap_or_default());
    Some((number, AttachedLink { program: u32::try_from(field("prog_id")?).ok()?, target }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_and_other_files_are_not() {
        let cgroup = "pos:\t0\nflags:\t02000000\nino:\t9\nlink_type:\tcgroup\nlink_id:\t5\nprog_tag:\ta1\nprog_id:\t22\ncgroup_id:\t4711\nattach_type:\t10\n";
        assert_eq!(parse(cgroup), Some((5, AttachedLink { program: 22, target: Some(4711) })));
        let interface = "link_type:\ttcx\nlink_id:\t6\nprog_tag:\ta1\nprog_id:\t23\nifindex:\t3\nattach_type:\t47 (tcx_egress)\n";
        assert_eq!(parse(interface), Some((6, AttachedLink { program: 23, target: Some(3) })));
        assert_eq!(parse("pos:\t0\nprog_id:\t3\n"), None);
        assert_eq!(parse(""), None);
    }
}

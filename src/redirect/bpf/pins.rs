//! The pins that keep the programs attached: files in a BPF file system, in a directory for each layout of the maps. To remove them takes no
//! capability.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::error::BpfError;
use super::mounts::{containing, parse};

/// The program on the pods' control group that the exit guard needs.
pub(super) const MARK_SOCKET: &str = "mark_socket";
/// The program on interfaces.
pub(super) const EXIT_GUARD: &str = "exit_guard";
/// What the names of links' pins begin with.
pub(super) const LINK: &str = "link-";

/// Returns the name of the pin of the exit guard on this interface.
pub(super) fn guard_pin(interface: u32) -> String {
    format!("{LINK}{EXIT_GUARD}-{interface}")
}

/// Removes all pins of rolegate, of every version, and describes what was removed. The programs are detached with them.
///
/// # Errors
/// If a pin cannot be removed.
pub fn remove_pins(pins: &Path) -> Result<Vec<String>, BpfError> {
    let all = remove_versions(pins, |_| true)?;
    removed(fs::remove_dir(pins)).map_err(|source| BpfError::Pins { path: pins.to_owned(), source })?;
    Ok(all)
}

/// Removes the links of all programs but the exit guard, of every version, and describes what was removed. It needs no capability:
/// without a daemon that may use BPF, nobody can tell the programs where to redirect connections.
///
/// # Errors
/// If a pin cannot be removed.
pub fn remove_all_but_guard(pins: &Path) -> Result<Vec<String>, BpfError> {
    let mut all = Vec::new();
    for version in versions(pins)? {
        all.extend(remove_from(&pins.join(version), |name| name.strip_prefix(LINK).is_some_and(|program| !is_of_guard(program)))?);
    }
    Ok(all)
}

/// Returns whether the exit guard needs this program.
pub fn is_of_guard(program: &str) -> bool {
    program == MARK_SOCKET || program.starts_with(EXIT_GUARD)
}

pub(super) fn remove_versions(pins: &Path, is_unwanted: impl Fn(&str) -> bool) -> Result<Vec<String>, BpfError> {
    let mut all = Vec::new();
    for version in versions(pins)?.into_iter().filter(|version| is_unwanted(version)) {
        let directory = pins.join(version);
        all.extend(remove_from(&directory, |_| true)?);
        removed(fs::remove_dir(&directory)).map_err(|source| BpfError::Pins { path: directory, source })?;
    }
    Ok(all)
}

fn remove_from(directory: &Path, is_unwanted: impl Fn(&str) -> bool) -> Result<Vec<String>, BpfError> {
    let mut all = names(directory).map_err(|source| BpfError::Pins { path: directory.to_owned(), source })?;
    // Pods must not be redirected to a daemon that is not told who they are, so connections are no longer redirected first.
    all.sort_by_key(|name| (!name.contains("connect"), !name.starts_with(LINK)));
    let mut removed = Vec::new();
    for name in all.into_iter().filter(|name| is_unwanted(name)) {
        let path = directory.join(&name);
        self::removed(fs::remove_file(&path)).map_err(|source| BpfError::Pins { path, source })?;
        removed.extend(name.strip_prefix(LINK).map(|program| format!("the BPF program {program}")));
    }
    Ok(removed)
}

/// Returns the directories of versions among the pins. Others are not ours.
fn versions(pins: &Path) -> Result<Vec<String>, BpfError> {
    let is_version = |name: &String| name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok());
    let all = names(pins).map_err(|source| BpfError::Pins { path: pins.to_owned(), source })?;
    Ok(all.into_iter().filter(is_version).collect())
}

/// Returns the names of the programs that are pinned, of any version.
///
/// # Errors
/// If the directory cannot be read.
pub fn pinned(pins: &Path) -> Result<BTreeSet<String>, BpfError> {
    let failed = |source| BpfError::Pins { path: pins.to_owned(), source };
    let mut found = BTreeSet::new();
    for version in versions(pins)? {
        let all = names(&pins.join(version)).map_err(failed)?;
        found.extend(all.iter().filter_map(|name| name.strip_prefix(LINK)).map(str::to_owned));
    }
    Ok(found)
}

/// Checks that pins can be there.
///
/// # Errors
/// If the directory is in no BPF file system, such as in a container that does not have the node's.
pub fn check_file_system(pins: &Path) -> Result<(), BpfError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map(|text| parse(&text));
    let mounts = mounts.map_err(|source| BpfError::Pins { path: pins.to_owned(), source })?;
    match containing(&mounts, pins) {
        Some(mount) if mount.kind == "bpf" => Ok(()),
        _ => Err(BpfError::NotBpfFileSystem { path: pins.to_owned() }),
    }
}

/// Returns the names in a directory; none if it does not exist.
pub(super) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// What does not exist needs not be removed.
pub(super) fn removed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    /// Files in place of pins.
    fn pins(files: &[&str]) -> tempfile::TempDir {
        let pins = tempfile::tempdir().unwrap();
        for file in files {
            let path = pins.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        pins
    }

    fn left(pins: &Path) -> Vec<String> {
        let mut left = Vec::new();
        for directory in names(pins).unwrap() {
            left.extend(names(&pins.join(&directory)).unwrap().into_iter().map(|name| format!("{directory}/{name}")));
        }
        left.sort();
        left
    }

    const ALL: [&str; 6] =
        ["v1/config", "v1/link-mark_socket", "v1/link-connect4", "v1/link-exit_guard-2", "v1/next-link-connect6", "v0/link-connect4"];

    #[test]
    fn all_but_the_exit_guard_is_removed() {
        let pins = pins(&ALL);
        let programs = ["the BPF program connect4"; 2];
        assert_eq!(remove_all_but_guard(pins.path()).unwrap(), programs);
        assert_eq!(left(pins.path()), ["v1/config", "v1/link-exit_guard-2", "v1/link-mark_socket", "v1/next-link-connect6"]);
        assert_eq!(remove_all_but_guard(pins.path()).unwrap(), [""; 0]);
        assert_eq!(remove_all_but_guard(&pins.path().join("missing")).unwrap(), [""; 0]);
    }

    #[test]
    fn other_layouts_are_removed_and_nothing_of_others() {
        let pins =
            pins(&["v1/link-connect4", "v0/config", "v0/link-drop_egress", "v0/link-connect6", "v22/link-connect4", "cilium/v1", "vx/a"]);
        let removed = remove_versions(pins.path(), |version| version != "v1").unwrap();
        let of_first: Vec<_> = removed.iter().filter(|name| !name.contains("connect4")).map(String::as_str).collect();
        assert_eq!(of_first, ["the BPF program connect6", "the BPF program drop_egress"], "connections first");
        assert_eq!(left(pins.path()), ["cilium/v1", "v1/link-connect4", "vx/a"]);
    }

    #[test]
    fn all_pins_are_removed_with_their_directory() {
        let root = pins(&ALL);
        let pins = root.path().join("rolegate");
        fs::create_dir(&pins).unwrap();
        fs::rename(root.path().join("v1"), pins.join("v1")).unwrap();
        assert_eq!(pinned(&pins).unwrap(), ["connect4", "exit_guard-2", "mark_socket"].map(str::to_owned).into());
        assert_eq!(remove_pins(&pins).unwrap().len(), 3);
        assert!(!pins.exists());
        assert_eq!(remove_pins(&pins).unwrap(), [""; 0]);
    }

    #[test]
    fn a_directory_outside_of_a_bpf_file_system_holds_no_pins() {
        let pins = pins(&[]);
        assert!(matches!(check_file_system(pins.path()), Err(BpfError::NotBpfFileSystem { .. })));
    }
}

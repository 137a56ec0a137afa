//! Loads the programs, attaches them, and keeps them attached by pins.
//!
//! A program of this daemon is attached beside the one of the former daemon, and pinned under a name of its own. Renaming that pin over
//! the former one removes the former program. There is no moment without a program, and programs that run twice give the same result.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, MapType};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, LinkOrder, Program};
use aya::{Ebpf, EbpfLoader};

use super::cgroups::PodsCgroup;
use super::error::BpfError;
use super::exit_check::ExitGuardCheck;
use super::fdinfo::{self, AttachedLink};
use super::layout::{CONFIG, CONNECTION, ProgramConfig, RECORD};
use super::passed::Passed;
use super::pins::{EXIT_GUARD, LINK, MARK_SOCKET, check_file_system, guard_pin, names, remove_versions, removed};
use super::records::{Exemptions, Records};
use super::sockopt;
use super::turn::ProgramTurn;
use crate::config::InterfaceMatch;
use crate::redirect::ownership::Ownership;

/// The compiled programs. `scripts/build-bpf` makes them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("programs.o");
/// The directory of this version's pins. It changes with the maps, so that a daemon never uses maps that mean something else.
const LAYOUT: &str = "v1";
/// The maps, as the source of the programs has them.
const MAPS: [MapShape; 6] = [
    MapShape { name: "config", kind: MapType::Hash, key: 4, value: CONFIG as u32, max_entries: 1 },
    MapShape { name: "exempt", kind: MapType::Hash, key: 8, value: 4, max_entries: 8192 },
    MapShape { name: "marks", kind: MapType::SkStorage, key: 4, value: 32, max_entries: 0 },
    MapShape { name: "connections", kind: MapType::Hash, key: CONNECTION as u32, value: RECORD as u32, max_entries: 131_072 },
    MapShape { name: "open", kind: MapType::LruHash, key: 8, value: 4, max_entries: 8192 },
    MapShape { name: "passed", kind: MapType::LruHash, key: 8, value: 8, max_entries: 8192 },
];
/// The programs on the pods' control group, in the order in which they are attached: connections must be recorded before any is
/// redirected, and sockets marked before packets are judged by that.
const OF_PODS: [&str; 8] =
    ["deny_bypass", "mark_socket", "record_connection", "getpeername4", "getpeername6", "connect4", "connect6", "drop_egress"];
/// What the name of a pin begins with that is about to replace another one. (The kernel allows no dots in these names.)
const NEXT: &str = "next-";
/// The key of the only entry of the map `config`.
const KEY: u32 = 0;

/// What a map must be like to be used.
#[derive(Clone, Copy, Debug, PartialEq)]
struct MapShape {
    name: &'static str,
    kind: MapType,
    /// The size of a key, in bytes.
    key: u32,
    /// The size of a value, in bytes.
    value: u32,
    max_entries: u32,
}

/// The maps that the rest of the daemon uses.
#[derive(Clone, Debug)]
pub(super) struct DaemonMaps {
    /// Records of redirected connections.
    pub(super) records: Records,
    /// Pods that may use the real metadata service.
    pub(super) exemptions: Exemptions,
    /// Counts of connections to it.
    pub(super) passed: Passed,
}

/// Which programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The exit guard alone, for `--redirect=auto`.
    ExitGuard,
    /// All of them.
    All,
}

/// The programs, loaded into the kernel.
#[derive(Debug)]
pub(super) struct Programs {
    directory: PathBuf,
    ebpf: Ebpf,
    config: HashMap<MapData, u32, [u8; CONFIG]>,
    /// The kernel's numbers of the programs.
    numbers: BTreeMap<&'static str, u32>,
}

impl Programs {
    /// Loads the programs, with the maps that are pinned already. Attaches nothing.
    pub(super) fn load(pins: &Path) -> Result<(Self, DaemonMaps), BpfError> {
        let directory = pins.join(LAYOUT);
        prepare(pins, &directory)?;
        let mut loader = EbpfLoader::new();
        // The programs use nothing of the kernel's own types.
        let loaded = loader.btf(None).default_map_pin_directory(&directory).load(OBJECT);
        let mut ebpf = loaded.map_err(|error| BpfError::kernel("create the maps of the BPF programs", error))?;
        let mut numbers = BTreeMap::new();
        for name in OF_PODS.into_iter().chain([EXIT_GUARD]) {
            numbers.insert(name, load(&mut ebpf, name)?);
        }
        let config = map(&mut ebpf, "config")?;
        let maps = DaemonMaps {
            records: Records::new(map(&mut ebpf, "connections")?),
            exemptions: Exemptions::new(map(&mut ebpf, "exempt")?),
            passed: Passed::new(map(&mut ebpf, "passed")?),
        };
        Ok((Self { directory, ebpf, config, numbers }, maps))
    }

    /// Returns which daemon decides about the programs.
    pub(super) fn turn(&self, ownership: Option<Arc<Ownership>>) -> ProgramTurn {
        let number = self.numbers.get(MARK_SOCKET).copied().unwrap_or_default();
        ProgramTurn::new(ownership, self.directory.join(format!("{LINK}{MARK_SOCKET}")), number)
    }

    /// Returns a check of the exit guard on the interfaces that `interfaces` chooses.
    pub(super) fn exit_guard_check(&mut self, interfaces: &[InterfaceMatch]) -> Result<ExitGuardCheck, BpfError> {
        let scratch = self.directory.join(format!("{NEXT}{EXIT_GUARD}"));
        let failed = |source| BpfError::Pins { path: scratch.clone(), source };
        let Program::SchedClassifier(guard) = program(&mut self.ebpf, EXIT_GUARD)? else { return Err(unknown(EXIT_GUARD)) };
        removed(fs::remove_file(&scratch)).map_err(failed)?;
        guard.pin(&scratch).map_err(|error| BpfError::kernel(format!("pin {}", scratch.display()), error))?;
        // The check holds the program open, so the pin can go.
        let check = ExitGuardCheck::open(&scratch, self.directory.clone(), interfaces.to_vec());
        removed(fs::remove_file(&scratch)).map_err(failed)?;
        check
    }

    /// Returns the configuration of the programs; `None` while there is none, and everything is denied.
    pub(super) fn config(&self) -> Option<ProgramConfig> {
        self.config.get(&KEY, 0).ok().as_ref().map(ProgramConfig::decode)
    }

    /// Replaces the configuration in one step.
    pub(super) fn configure(&mut self, config: &ProgramConfig) -> Result<(), BpfError> {
        self.config.insert(KEY, config.encode(), 0).map_err(|error| BpfError::kernel("configure the BPF programs", error))
    }

    /// Attaches what is missing, and returns what was: the programs of this scope on the pods' control group, and the exit guard on these
    /// interfaces. A thorough look also finds links whose pins are there, and which were detached; it reads about every open file.
    ///
    /// # Errors
    /// The first failure. What does not depend on it is attached all the same: one interface that fails leaves no other unguarded.
    pub(super) fn attach(
        &mut self,
        scope: Scope,
        pods: &PodsCgroup,
        uplinks: &BTreeMap<u32, String>,
        is_thorough: bool,
    ) -> Result<Vec<String>, BpfError> {
        let links = self.links(is_thorough)?;
        let mut attached = Vec::new();
        let mut failure = self.attach_missing(scope, pods, &links, &mut attached).err();
        for (index, interface) in uplinks {
            let pin = guard_pin(*index);
            if !self.is_attached(&links, EXIT_GUARD, &pin, u64::from(*index)) {
                match self.attach_to_interface(interface).and_then(|link| self.pin(link, &pin)) {
                    Ok(()) => attached.push(format!("{EXIT_GUARD} on {interface}")),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        failure.map_or(Ok(attached), Err)
    }

    /// Attaches the exit guard to those of these interfaces that have none, of whichever daemon, and returns what was done. Those of another
    /// daemon stay.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub(super) fn attach_beside(&mut self, uplinks: &BTreeMap<u32, String>) -> Result<Vec<String>, BpfError> {
        let (mut attached, mut failure) = (Vec::new(), None);
        let links = self.links(true)?;
        let is_guarded = |index: u32| links.get(&guard_pin(index)).is_some_and(|link| link.target == Some(u64::from(index)));
        for (index, interface) in uplinks.iter().filter(|(index, _)| !is_guarded(**index)) {
            match self.attach_to_interface(interface).and_then(|link| self.pin(link, &guard_pin(*index))) {
                Ok(()) => attached.push(format!("{EXIT_GUARD} on {interface}")),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(attached), Err)
    }

    fn attach_missing(
        &mut self,
        scope: Scope,
        pods: &PodsCgroup,
        links: &BTreeMap<String, AttachedLink>,
        attached: &mut Vec<String>,
    ) -> Result<(), BpfError> {
        let of_pods: &[&'static str] = match scope {
            Scope::All => &OF_PODS,
            Scope::ExitGuard => &[MARK_SOCKET],
        };
        let missing: Vec<_> = of_pods.iter().filter(|name| !self.is_attached(links, name, &format!("{LINK}{name}"), pods.id.0)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let cgroup = File::open(&pods.path).map_err(|source| BpfError::Cgroups { path: pods.path.clone(), source })?;
        for name in missing {
            let link = self.attach_to_cgroup(name, &cgroup)?;
            self.pin(link, &format!("{LINK}{name}"))?;
            attached.push((*name).to_owned());
        }
        Ok(())
    }

    /// Removes the programs that are not of this scope, and the pins of interfaces that are gone.
    pub(super) fn tidy(&self, scope: Scope, existing: &BTreeSet<u32>) -> Result<Vec<String>, BpfError> {
        let is_wanted = |name: &str| match name.strip_prefix(LINK) {
            Some(program) => match program.strip_prefix(&format!("{EXIT_GUARD}-")) {
                Some(index) => index.parse().is_ok_and(|index| existing.contains(&index)),
                None => scope == Scope::All || program == MARK_SOCKET,
            },
            None => true,
        };
        let mut removed = Vec::new();
        for name in self.names()?.into_iter().filter(|name| !is_wanted(name)) {
            let path = self.directory.join(&name);
            fs::remove_file(&path).map_err(|source| BpfError::Pins { path, source })?;
            removed.push(name);
        }
        Ok(removed)
    }

    /// Removes the pins of daemons whose maps differ, and with them their programs.
    pub(super) fn remove_other_layouts(&self) -> Result<Vec<String>, BpfError> {
        self.directory.parent().map_or(Ok(Vec::new()), |pins| remove_versions(pins, |version| version != LAYOUT))
    }

    fn is_attached(&self, links: &BTreeMap<String, AttachedLink>, program: &str, pin: &str, target: u64) -> bool {
        let is_ours = |link: &AttachedLink| self.numbers.get(program) == Some(&link.program);
        links.get(pin).is_some_and(|link| is_ours(link) && link.target.is_none_or(|of_link| of_link == target))
    }

    /// Returns the pinned links, by the names of their pins.
    fn links(&self, is_thorough: bool) -> Result<BTreeMap<String, AttachedLink>, BpfError> {
        let names = self.names()?.into_iter().filter(|name| name.starts_with(LINK));
        let open = |name: String| Some((name.clone(), PinnedLink::from_pin(self.directory.join(&name)).ok()?));
        // They are open until the kernel has described them.
        let open: Vec<_> = names.filter_map(open).map(|(name, link)| (name, FdLink::from(link))).collect();
        let described = match is_thorough {
            true => Some(fdinfo::links().map_err(|source| BpfError::Pins { path: fdinfo::DIRECTORY.into(), source })?),
            false => None,
        };
        let found = |(name, link): &(String, FdLink)| {
            let info = link.info().ok()?;
            let link = match &described {
                Some(described) => *described.get(&info.id())?,
                None => AttachedLink { program: info.program_id(), target: None },
            };
            Some((name.clone(), link))
        };
        Ok(open.iter().filter_map(found).collect())
    }

    fn names(&self) -> Result<Vec<String>, BpfError> {
        names(&self.directory).map_err(|source| BpfError::Pins { path: self.directory.clone(), source })
    }

    fn attach_to_cgroup(&mut self, name: &str, cgroup: &File) -> Result<FdLink, BpfError> {
        let what = || format!("attach the BPF program {name} to the pods' control group");
        // Links always run beside other programs, and the kernel refuses the flag that says so (`cgroup_bpf_link_attach`).
        let mode = CgroupAttachMode::Single;
        // Each arm is of another type.
        macro_rules! attach {
            ($program:ident, $($argument:expr),*) => {{
                let id = $program.attach(cgroup, $($argument),*).map_err(|error| BpfError::kernel(what(), error))?;
                $program.take_link(id).map_err(|error| BpfError::kernel(what(), error))?.try_into()
            }};
        }
        let link: Result<FdLink, _> = match program(&mut self.ebpf, name)? {
            Program::CgroupSock(program) => attach!(program, mode),
            Program::CgroupSockAddr(program) => attach!(program, mode),
            Program::SockOps(program) => attach!(program, mode),
            Program::CgroupSockopt(program) => {
                let failed = |error| BpfError::kernel(what(), error);
                let id = program.attach(cgroup, mode).map_err(failed)?;
                let number = program.info().map_err(failed)?.id();
                let scratch = self.directory.join(format!("{NEXT}{name}"));
                removed(fs::remove_file(&scratch)).map_err(|source| BpfError::Pins { path: scratch.clone(), source })?;
                let link = sockopt::link(number, &scratch).map_err(|error| BpfError::kernel(what(), error));
                // The link that was found is another descriptor.
                program.detach(id).map_err(failed)?;
                return link;
            }
            Program::CgroupSkb(program) => attach!(program, CgroupSkbAttachType::Egress, mode),
            _ => return Err(unknown(name)),
        };
        link.map_err(|error| BpfError::kernel(what(), error))
    }

    fn attach_to_interface(&mut self, interface: &str) -> Result<FdLink, BpfError> {
        let what = || format!("attach the BPF program {EXIT_GUARD} to the interface {interface}");
        let Program::SchedClassifier(guard) = program(&mut self.ebpf, EXIT_GUARD)? else { return Err(unknown(EXIT_GUARD)) };
        // Programs behind it do not see what it drops, and one ahead of it could send a packet on.
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = guard.attach_with_options(interface, TcAttachType::Egress, first).map_err(|error| BpfError::kernel(what(), error))?;
        let link = guard.take_link(id).map_err(|error| BpfError::kernel(what(), error))?;
        FdLink::try_from(link).map_err(|error| BpfError::kernel(what(), error))
    }

    /// Pins a link in place of the former one with this name, which ends.
    fn pin(&self, link: FdLink, name: &str) -> Result<(), BpfError> {
        let (next, path) = (self.directory.join(format!("{NEXT}{name}")), self.directory.join(name));
        removed(fs::remove_file(&next)).map_err(|source| BpfError::Pins { path: next.clone(), source })?;
        link.pin(&next).map_err(|error| BpfError::kernel(format!("pin {}", next.display()), error))?;
        fs::rename(&next, &path).map_err(|source| BpfError::Pins { path, source })
    }
}

/// Creates the directory of the pins, and removes pins of maps that are not like ours.
fn prepare(pins: &Path, directory: &Path) -> Result<(), BpfError> {
    check_file_system(pins)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| BpfError::Pins { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
    for shape in MAPS {
        let path = directory.join(shape.name);
        if path.exists() && shape_of(shape.name, &path).is_some_and(|found| found != shape) {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    Ok(())
}

fn shape_of(name: &'static str, path: &Path) -> Option<MapShape> {
    let info = MapData::from_pin(path).ok()?.info().ok()?;
    let (key, value, max_entries) = (info.key_size(), info.value_size(), info.max_entries());
    Some(MapShape { name, kind: info.map_type().ok()?, key, value, max_entries })
}

/// Loads a program, and returns its number.
fn load(ebpf: &mut Ebpf, name: &str) -> Result<u32, BpfError> {
    let what = || format!("load the BPF program {name}");
    let program = program(ebpf, name)?;
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(unknown(name)),
    }
    .map_err(|error| BpfError::kernel(what(), error))?;
    program.info().map(|info| info.id()).map_err(|error| BpfError::kernel(what(), error))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, BpfError> {
    ebpf.program_mut(name).ok_or_else(|| unknown(name))
}

fn map<K: aya::Pod, V: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> Result<HashMap<MapData, K, V>, BpfError> {
    let map: Map = ebpf.take_map(name).ok_or_else(|| unknown(name))?;
    HashMap::try_from(map).map_err(|error| BpfError::kernel(format!("use the BPF map {name}"), error))
}

fn unknown(name: &str) -> BpfError {
    BpfError::Kernel { what: format!("find {name} in the compiled BPF programs"), source: "the build is wrong".into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    /// The source of the programs.
    const SOURCE: &str = include_str!("programs.c");

    fn number(text: &str) -> u32 {
        let define = |name: &str| SOURCE.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name)?.trim().parse().ok());
        text.parse().ok().or_else(|| define(text)).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn the_maps_have_the_shapes_of_the_source() {
        for shape in MAPS {
            let before = SOURCE.split(&format!("}} {} SEC(\".maps\");", shape.name)).next().unwrap();
            let definition = &before[before.rfind("struct {").unwrap()..];
            let field = |name: &str| {
                let value = definition.split(&format!("__uint({name}, ")).nth(1)?;
                value.split(')').next()
            };
            let kind = match field("type").unwrap() {
                "BPF_MAP_TYPE_HASH" => MapType::Hash,
                "BPF_MAP_TYPE_SK_STORAGE" => MapType::SkStorage,
                "BPF_MAP_TYPE_LRU_HASH" => MapType::LruHash,
                other => panic!("{other}"),
            };
            assert_eq!((shape.kind, shape.max_entries), (kind, field("max_entries").map_or(0, number)), "{}", shape.name);
        }
        assert_eq!(SOURCE.matches("SEC(\".maps\")").count(), MAPS.len());
    }
}

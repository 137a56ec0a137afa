//! The combinations of programs and backend with which a node can manage rules. Tests run on each one that this machine has.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use rolegate_lab::daemon::{NO_PINS, Setup};
use rolegate_lab::node::{NODE_IP6, find_program, skip};
use tempfile::TempDir;

use crate::bed::{Bed, image};

/// A backend and its programs.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// A directory with these programs and nothing else.
    programs: TempDir,
    pub(crate) backend: &'static str,
    /// The script of a firewall that flushes everything and starts anew.
    pub(crate) flush: &'static str,
    /// The script that lists all rules of the node.
    pub(crate) list: &'static str,
}

impl Kind {
    /// Returns all kinds for which this machine has the programs. The others are skipped, with the reason reported.
    pub(crate) fn all() -> Vec<Kind> {
        let nft = || {
            let Some(program) = find_program("nft") else {
                skip("the program `nft` is not installed");
                return None;
            };
            let programs = tempfile::tempdir().unwrap();
            symlink(program, programs.path().join("nft")).unwrap();
            Some(programs)
        };
        let kind = |name, programs: Option<TempDir>, backend, flush, list| Some(Kind { name, programs: programs?, backend, flush, list });
        [
            kind("nft", nft(), "nftables", "nft flush ruleset", "nft list ruleset"),
            kind("iptables-nft", image("nft"), "iptables", "nft flush ruleset", "nft list ruleset"),
            kind(
                "iptables-legacy",
                image("legacy"),
                "iptables",
                // One table at a time: if a daemon repairs meanwhile, a chain that is in use could not be deleted.
                r"for program in iptables-legacy-restore ip6tables-legacy-restore; do
                printf '*filter\nCOMMIT\n*security\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n' | $program -w 30; done",
                "iptables-legacy -w 30 -S; ip6tables-legacy -w 30 -S",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Returns the directory of its programs.
    pub(crate) fn path(&self) -> &str {
        self.programs.path().to_str().unwrap()
    }

    /// Adds another program.
    pub(crate) fn add_program(&self, name: &str) {
        symlink(find_program(name).unwrap(), self.programs.path().join(name)).unwrap();
    }

    /// Returns the set-up of a daemon with this backend and these programs, for both families.
    pub(crate) fn setup(&self, bed: &Bed) -> Setup {
        let setup = bed.setup_with_ip().argument(format!("--host-ip={NODE_IP6}")).argument(format!("--redirect={}", self.backend));
        setup.env("PATH", self.path())
    }

    /// Runs `rolegate redirect status` on the node.
    pub(crate) fn status(&self, bed: &Bed, arguments: &[&str]) -> Output {
        let redirect = format!("--redirect={}", self.backend);
        let arguments = [&["redirect", "status", redirect.as_str()], arguments].concat();
        on_node(bed, self.path(), Path::new(env!("CARGO_BIN_EXE_rolegate"))).args(arguments).output().unwrap()
    }
}

/// Returns a command in the node's network that can find only these programs.
pub(crate) fn on_node(bed: &Bed, path: &str, program: &Path) -> Command {
    let mut command = Command::new(find_program("nsenter").unwrap());
    command.arg(format!("--net={}", bed.node.ns().path())).arg("--").arg(program).env_clear().env("PATH", path);
    // As in the set-up of the daemon.
    command.env("ROLEGATE_REDIRECT_ROUTING_RULES", "false").env("ROLEGATE_BPF_PINS", NO_PINS);
    command
}

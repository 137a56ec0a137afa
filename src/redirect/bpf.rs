//! The kernel's programs of `--redirect=bpf`: they redirect connections to the metadata address when pods' sockets connect, record who
//! opened them, and drop everything else that would reach the real metadata service. They work on nodes whose network plugin sends the
//! packets of pods past netfilter. `docs/bpf.md` describes them; `bpf/programs.c` is their source.
//!
//! The programs stay attached when the daemon ends, because their links are pinned in the BPF file system. The next daemon attaches its
//! own first and removes the former ones then. Their maps are pinned and shared, so that no record of a connection is lost.

mod attach;
pub mod cgroups;
mod error;
mod exit_check;
mod fdinfo;
mod host_network;
pub mod keeper;
pub mod layout;
mod mounts;
mod passed;
mod pins;
mod records;
mod sockopt;
mod turn;
pub mod uplinks;

pub use attach::Scope;
pub use error::BpfError;
pub use exit_check::{ExitGuardCheck, ExitGuardState};
pub use passed::Passed;
pub use pins::{check_file_system, is_of_guard, pinned, remove_all_but_guard, remove_pins};
pub use records::{Exemptions, Records};

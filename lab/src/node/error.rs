//! What can go wrong with namespaces.

use std::io;
use std::net::Ipv4Addr;

/// Why a namespace, a node or a pod could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A system call failed.
    #[error("namespace {label}: cannot {action}: {source}")]
    Namespace {
        /// Which namespace.
        label: String,
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program that was run inside ended with an error.
    #[error("namespace {label}: `{command}` ended with {status}: {stderr}")]
    Command {
        /// Which namespace.
        label: String,
        /// What was run.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A pod cannot have this address.
    #[error("no pod can have {ip}: {why}")]
    Address {
        /// The address.
        ip: Ipv4Addr,
        /// What stands against it.
        why: &'static str,
    },
    /// The interface's name is longer than the kernel allows.
    #[error("interface name {0:?} is longer than 15 characters")]
    InterfaceName(String),
}

/// Why namespaces cannot be made here: the text of a skipped test.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// A program is not installed.
    #[error("the program `{0}` is not installed")]
    Program(&'static str),
    /// The kernel refuses, or lacks something.
    #[error("network namespaces cannot be made (run as root, or allow unprivileged user namespaces): {0}")]
    Refused(#[from] NodeError),
}

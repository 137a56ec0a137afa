//! Errors of network namespaces.

use std::io;
use std::net::Ipv4Addr;

/// Why a namespace, a node or a pod could not be created or used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A system call failed.
    #[error("namespace {label}: cannot {action}: {source}")]
    Namespace {
        /// The label of the namespace.
        label: String,
        /// What was tried.
        action: String,
        /// The error from the system.
        source: io::Error,
    },
    /// A program that was run inside failed.
    #[error("namespace {label}: `{command}` ended with {status}: {stderr}")]
    Command {
        /// The label of the namespace.
        label: String,
        /// The command.
        command: String,
        /// The exit status.
        status: std::process::ExitStatus,
        /// The standard error of the program.
        stderr: String,
    },
    /// A pod cannot have this address.
    #[error("no pod can have {ip}: {why}")]
    Address {
        /// The address.
        ip: Ipv4Addr,
        /// Why the address cannot be used.
        why: &'static str,
    },
    /// The interface's name is longer than the kernel allows.
    #[error("interface name {0:?} is longer than 15 characters")]
    InterfaceName(String),
}

/// Why namespaces cannot be created here, as the text of a skipped test.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// A program is not installed.
    #[error("the program `{0}` is not installed")]
    Program(&'static str),
    /// The kernel does not permit it, or lacks a feature.
    #[error("network namespaces cannot be made (run as root, or allow unprivileged user namespaces): {0}")]
    Refused(#[from] NodeError),
}

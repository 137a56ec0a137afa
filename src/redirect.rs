//! The packet rules that redirect the pods' metadata requests to the daemon and keep them from going anywhere else.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use self::observed::ObservedRules;
use self::rules::RuleSet;
use crate::advice::{Advise, chain};
use crate::config::InterfaceMatch;

pub mod backend;
pub mod bpf;
pub mod changes;
pub mod conntrack;
pub mod foreign;
pub mod iptables;
pub mod legacy_rules;
pub mod nftables;
mod notifications;
pub mod observed;
pub mod ownership;
pub mod program;
pub mod reconcile;
pub mod routing;
pub mod rules;
pub mod status;

/// A program that loads the packet rules into the kernel and keeps them there.
pub trait Backend: Send + Sync {
    /// Returns the backend's name, as `--redirect` spells it.
    fn name(&self) -> &'static str;

    /// Renders the rules in the syntax of the backend's own program, ready to load by hand.
    fn render(&self, rules: &RuleSet) -> String;

    /// Replaces whatever rules of rolegate the kernel has with the wanted ones. Each table and family changes in one
    /// transaction, so that no packet meets half of the rules, and the guard is installed first. Rules that rolegate does not
    /// own are not touched.
    fn install(&self, rules: &RuleSet) -> impl Future<Output = Result<(), RedirectError>> + Send;

    /// Describes what differs from the wanted rules; empty if nothing does. Changes nothing.
    fn differences(&self, rules: &RuleSet) -> impl Future<Output = Result<Vec<String>, RedirectError>> + Send;

    /// Returns the rules that rolegate has in the kernel, whether wanted or not.
    fn observed(&self) -> impl Future<Output = Result<ObservedRules, RedirectError>> + Send;

    /// Returns the rules that rolegate has in the kernel through another backend, as far as they can be read.
    fn standing_elsewhere(&self) -> impl Future<Output = ObservedRules> + Send {
        std::future::ready(ObservedRules::default())
    }

    /// Removes exactly the rules that rolegate owns, and describes what it removed; empty if there was nothing.
    fn remove(&self) -> impl Future<Output = Result<Vec<String>, RedirectError>> + Send;
}

/// Why packet rules cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The program cannot be started.
    #[error("cannot run {program}")]
    Program {
        /// The program's name.
        program: &'static str,
        /// The error from the system.
        source: io::Error,
    },
    /// The program did not exit in time.
    #[error("{program} did not exit within {} seconds and was killed", patience.as_secs())]
    Hung {
        /// The program's name.
        program: &'static str,
        /// How long rolegate waited for it.
        patience: Duration,
    },
    /// The program exited with an error.
    #[error("{program} failed: {message}")]
    Failed {
        /// The program's name.
        program: &'static str,
        /// What it printed.
        message: String,
    },
    /// The kernel lacks a feature that the rules need.
    #[error("the kernel does not support the rules that {program} loads: {message}")]
    Kernel {
        /// The program's name.
        program: &'static str,
        /// What it printed.
        message: String,
    },
    /// Another program holds the iptables lock, or the lock file cannot be opened.
    #[error("{program} cannot get the iptables lock: {message}")]
    Locked {
        /// The program that waited.
        program: &'static str,
        /// What it printed.
        message: String,
    },
    /// The output of the program has an unknown format.
    #[error("cannot parse the output of {program}: {message}")]
    Unreadable {
        /// The program's name.
        program: &'static str,
        /// Why the output cannot be parsed.
        message: String,
    },
    /// The program lists more than is read, or needs more memory than it may use.
    #[error("cannot read what {program} lists: {message}")]
    TooLarge {
        /// The program's name.
        program: &'static str,
        /// What is too large.
        message: String,
    },
    /// An iptables table has rules that only `nft` can read.
    #[error("{program} cannot read the table {table}, which has rules that were made with nft")]
    MadeWithNft {
        /// The program's name.
        program: &'static str,
        /// The table's name.
        table: String,
    },
    /// A name in `--host-interface` that the program cannot match.
    #[error("{program} cannot match the interface name '{name}'")]
    InterfaceName {
        /// The program's name.
        program: &'static str,
        /// The name.
        name: String,
    },
    /// The rules still differ after every attempt to write them.
    #[error("{program} wrote the rules {attempts} times, and they still differ: {differences}")]
    NotKept {
        /// The program's name.
        program: &'static str,
        /// The number of attempts.
        attempts: usize,
        /// What differs.
        differences: String,
    },
    /// The rules come back after every attempt to remove them.
    #[error("{program} removed the rules {attempts} times, and they came back")]
    CameBack {
        /// The program's name.
        program: &'static str,
        /// The number of attempts.
        attempts: usize,
    },
    /// No backend works on this node.
    #[error("neither nftables nor iptables works here (nftables: {}; iptables: {})", chain(nftables), chain(iptables))]
    NoBackend {
        /// Why nftables does not work.
        nftables: Box<RedirectError>,
        /// Why iptables does not work.
        iptables: Box<RedirectError>,
    },
    /// The program that ends earlier connections cannot be started.
    #[error("cannot run conntrack")]
    Conntrack {
        /// The error from the system.
        source: io::Error,
    },
    /// There are too many earlier connections, or the node is too slow.
    #[error("conntrack did not finish within {} seconds; {forgotten} connections were closed, others may be left", deadline.as_secs())]
    ConntrackSlow {
        /// How long rolegate waited for it.
        deadline: Duration,
        /// The number of connections that were ended by then.
        forgotten: u64,
    },
    /// The kernel has IPv6, and the rules for it cannot be read or changed.
    #[error("cannot read or change the IPv6 rules")]
    Ipv6(#[source] Box<RedirectError>),
}

impl Advise for RedirectError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Program { .. } => {
                "use an image that has the program, or give --redirect=none and add the rules yourself (see iptables/)".into()
            }
            Self::Hung { .. } => "check the node for a shortage of memory or I/O (`ps`, `dmesg`)".into(),
            Self::Failed { message, .. } | Self::Locked { message, .. } if is_permission_error(message) => {
                missing_right(nix::unistd::geteuid().is_root()).into()
            }
            Self::Failed { .. } => return None,
            Self::Kernel { .. } => "give --redirect=iptables, or use Linux 5.2 or later with nf_tables".into(),
            Self::Locked { .. } => {
                "find the process that holds /run/xtables.lock on the node (`fuser`); if the file cannot be opened, mount it writable"
                    .into()
            }
            Self::Unreadable { program, .. } => format!("use another version of {program}, or give --redirect=iptables").into(),
            Self::TooLarge { .. } => "reduce the number of Services and ports of this cluster, or read the rules yourself with the program".into(),
            Self::MadeWithNft { .. } => "give --redirect=nftables".into(),
            Self::InterfaceName { .. } => "correct --host-interface".into(),
            Self::NotKept { .. } => "find the program on this node that changes rolegate's rules".into(),
            Self::CameBack { .. } => "stop the rolegate daemon of this node first".into(),
            Self::NoBackend { nftables, iptables } => match (nftables.advice(), iptables.advice()) {
                (Some(one), Some(other)) if one == other => one,
                (Some(one), Some(other)) => format!("for nftables, {one}; for iptables, {other}").into(),
                (one, other) => return one.or(other),
            },
            Self::Conntrack { .. } => {
                "use an image that has conntrack; without it, the guard rejects connections that were opened before the rules".into()
            }
            Self::ConntrackSlow { .. } => {
                "nothing needs to be done, because the guard rejects the connections that are left; to list them, run conntrack -L -d 169.254.169.254".into()
            }
            Self::Ipv6(error) => {
                let without_ipv6 = "disable IPv6 in the node's kernel (ipv6.disable=1)";
                error.advice().map_or(without_ipv6.into(), |advice| format!("{advice}; or {without_ipv6}").into())
            }
        })
    }
}

/// Returns whether a program's message says that the process lacks a permission.
fn is_permission_error(message: &str) -> bool {
    ["not permitted", "ermission denied", "must be root"].iter().any(|words| message.contains(words))
}

/// Returns what a process lacks that is not permitted to read or change packet rules.
const fn missing_right(is_root: bool) -> &'static str {
    if is_root {
        "add the capability NET_ADMIN (and NET_RAW for legacy iptables) to the container's securityContext"
    } else {
        "run as root (`runAsUser: 0` in the container's securityContext), with the capability NET_ADMIN"
    }
}

/// Returns the patterns that match no interface of this node at the moment.
pub fn without_interface(patterns: &[InterfaceMatch]) -> Vec<&InterfaceMatch> {
    let names: Vec<_> = nix::ifaddrs::getifaddrs().map(|all| all.map(|one| one.interface_name).collect()).unwrap_or_default();
    let fits = |pattern: &InterfaceMatch, name: &String| match pattern.name.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => *name == pattern.name,
    };
    patterns.iter().filter(|pattern| !names.iter().any(|name| fits(pattern, name))).collect()
}

/// Returns the addresses of all interfaces of this node.
pub fn interface_addresses() -> Vec<IpAddr> {
    named_interface_addresses().into_iter().map(|(_, ip)| ip).collect()
}

/// Returns the addresses of all interfaces of this node, each with the name of its interface.
fn named_interface_addresses() -> Vec<(String, IpAddr)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let ip = |address: nix::ifaddrs::InterfaceAddress| {
        let of_interface = address.address?;
        let v4 = of_interface.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let ip = v4.or_else(|| of_interface.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
        Some((address.interface_name, ip))
    };
    all.filter_map(ip).collect()
}

/// Returns an address of this interface that other interfaces can reach: never a loopback address.
pub fn interface_address(name: &str, ipv6: bool) -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    let of_interface = addresses.filter(|address| address.interface_name == name).filter_map(|address| address.address);
    let mut ips = of_interface.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    ips.find(|ip| ip.is_ipv6() == ipv6 && !ip.is_loopback())
}

/// Returns an IPv4 address of this node that packets can be sent to from elsewhere: of the interface that has this IPv6 address if
/// there is one, else of any other.
pub fn ipv4_beside(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let all: Vec<_> = nix::ifaddrs::getifaddrs().ok()?.collect();
    let has =
        |address: &&nix::ifaddrs::InterfaceAddress| address.address.and_then(|one| one.as_sockaddr_in6().map(|v6| v6.ip())) == Some(ip);
    let beside = all.iter().find(has).map(|address| &address.interface_name);
    let ipv4 = |address: &nix::ifaddrs::InterfaceAddress| Some(address.address?.as_sockaddr_in()?.ip());
    let is_useful = |ip: &Ipv4Addr| !ip.is_loopback() && !ip.is_link_local();
    let of_interface = all.iter().filter(|address| Some(&address.interface_name) == beside).filter_map(ipv4).find(is_useful);
    of_interface.or_else(|| all.iter().filter_map(ipv4).find(is_useful))
}

#[cfg(test)]
mod tests;

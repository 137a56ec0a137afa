//! The packet rules that bring the pods' metadata requests to the daemon, and let them go nowhere else.

use std::net::IpAddr;
use std::time::Duration;

use self::observed::ObservedRules;
use self::rules::RuleSet;
use crate::config::InterfaceMatch;

pub mod backend;
pub mod changes;
pub mod conntrack;
pub mod iptables;
pub mod legacy_rules;
pub mod nftables;
pub mod observed;
pub mod ownership;
pub mod program;
pub mod reconcile;
pub mod rules;
pub mod status;

/// What puts the rules into the kernel, and looks after them.
pub trait Backend: Send + Sync {
    /// Its name, as `--redirect` has it.
    fn name(&self) -> &'static str;

    /// The rules as a person would load them: the text of the backend's own program.
    fn render(&self, rules: &RuleSet) -> String;

    /// Makes the kernel's rules those wanted, whatever was there of ours: in one transaction for each table and family, so
    /// that no packet meets half of them, and the guard's before the others'. What others own is not touched.
    fn install(&self, rules: &RuleSet) -> impl Future<Output = Result<(), RedirectError>> + Send;

    /// What is not as wanted, in words; nothing where all is. It changes nothing.
    fn differences(&self, rules: &RuleSet) -> impl Future<Output = Result<Vec<String>, RedirectError>> + Send;

    /// What stands of ours, whatever is wanted.
    fn observed(&self) -> impl Future<Output = Result<ObservedRules, RedirectError>> + Send;

    /// What stands of ours by another backend, as far as that can be found out.
    fn standing_elsewhere(&self) -> impl Future<Output = ObservedRules> + Send {
        std::future::ready(ObservedRules::default())
    }

    /// Takes away exactly what is ours, and says in words what that was; nothing where there was nothing.
    fn remove(&self) -> impl Future<Output = Result<Vec<String>, RedirectError>> + Send;
}

/// Why there is no rule.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The program is not there.
    #[error("cannot run {program}: {reason}; use an image that has it, or --redirect=none with a rule of your own (see iptables/)")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why not.
        reason: String,
    },
    /// The program does not end.
    #[error(
        "{program} had not ended after {} seconds and was killed; it hangs, as on a node that is short of memory or I/O: look at the node          (`ps`, `dmesg`); it will be tried again",
        patience.as_secs()
    )]
    Hung {
        /// Its name.
        program: &'static str,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The program refused.
    #[error("{program} refused the rule: {message}; the daemon needs the capability NET_ADMIN and the host's network")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// The program and the right are there, and the kernel lacks what the rules need.
    #[error(
        "the kernel cannot hold the rules of {program}: {message}; that takes nf_tables, and Linux 5.2 or later for NAT of both families in one \
         table: use --redirect=iptables"
    )]
    Kernel {
        /// The program's name.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// Another program holds the lock on the tables of iptables, or the lock cannot be had.
    #[error(
        "{program} cannot have the lock on the tables ({message}); see who holds the node's /run/xtables.lock (`fuser` tells), \
         or mount it writable if it cannot be opened; nothing was changed, and it will be tried again"
    )]
    Locked {
        /// The program that waited.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// What the program lists is not what it is known to list.
    #[error("cannot read what {program} lists: {message}; use another version of it, or --redirect=iptables")]
    Unreadable {
        /// Its name.
        program: &'static str,
        /// What is wrong.
        message: String,
    },
    /// Nothing here can hold the rules.
    #[error(
        "neither nftables nor iptables works here. nftables: {nftables}. iptables: {iptables}. Give the daemon one of them: an image with \
         the programs, the capability NET_ADMIN (and NET_RAW for legacy iptables), and the host's network"
    )]
    NoBackend {
        /// Why not the one.
        nftables: Box<RedirectError>,
        /// Why not the other.
        iptables: Box<RedirectError>,
    },
    /// Connections that were opened before the rules cannot be forgotten.
    #[error(
        "cannot run conntrack: {reason}; connections to the metadata service that were opened before the rules are rejected by the guard all \
         the same; an image with the program conntrack ends them at once"
    )]
    Conntrack {
        /// Why not.
        reason: String,
    },
    /// The same, as they are too many or the machine is too slow.
    #[error(
        "conntrack was not done after {deadline:?}, and has ended {forgotten} connections; those to the metadata service that are left from \
         before the rules are rejected by the guard all the same; see how many there are (conntrack -L -d 169.254.169.254)"
    )]
    ConntrackSlow {
        /// How long it was waited for.
        deadline: Duration,
        /// Connections that were ended by then.
        forgotten: u64,
    },
    /// The kernel has IPv6, and the rules for it are not there.
    #[error(
        "pods' IPv6 requests are not guarded: {0}; give the daemon what it needs for ip6tables, or switch IPv6 off in the node's \
         kernel (ipv6.disable=1)"
    )]
    Ipv6(Box<RedirectError>),
}

/// Patterns that no interface of this node fits at the moment.
pub fn without_interface(patterns: &[InterfaceMatch]) -> Vec<&InterfaceMatch> {
    let names: Vec<_> = nix::ifaddrs::getifaddrs().map(|all| all.map(|one| one.interface_name).collect()).unwrap_or_default();
    let fits = |pattern: &InterfaceMatch, name: &String| match pattern.name.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => *name == pattern.name,
    };
    patterns.iter().filter(|pattern| !names.iter().any(|name| fits(pattern, name))).collect()
}

/// The addresses of all interfaces of this node.
pub fn interface_addresses() -> Vec<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().map(|addresses| addresses.filter_map(|address| address.address).collect::<Vec<_>>());
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    addresses.unwrap_or_default().into_iter().filter_map(ip).collect()
}

/// An address of an interface of this node that packets can be sent to from another one: none of loopback's own.
pub fn interface_address(name: &str, ipv6: bool) -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    let of_interface = addresses.filter(|address| address.interface_name == name).filter_map(|address| address.address);
    let mut ips = of_interface.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    ips.find(|ip| ip.is_ipv6() == ipv6 && !ip.is_loopback())
}

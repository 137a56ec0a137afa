//! The packet rules that bring the pods' metadata requests to the daemon, and let them go nowhere else.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tracing::info;

use self::rules::RuleSet;
use crate::config::InterfaceMatch;

pub mod iptables;
pub mod probe;
pub mod program;
pub mod rules;

/// How long the program may wait for the lock on the tables.
const LOCK_WAIT: Duration = Duration::from_secs(30);

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

    /// Takes away exactly what is ours, and says in words what that was; nothing where there was nothing.
    fn remove(&self) -> impl Future<Output = Result<Vec<String>, RedirectError>> + Send;
}

/// The rule as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneRule {
    /// Which interfaces the pods' requests come in on; empty means every one.
    pub interfaces: Vec<InterfaceMatch>,
    /// Where they are sent: an address of this node and the app port.
    pub target: SocketAddr,
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
    /// The program refused.
    #[error("{program} refused the rule: {message}; the daemon needs the capability NET_ADMIN and the host's network")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What it said.
        message: String,
    },
}

/// Puts the rule in place. Doing it again changes nothing; an older rule of ours with another target is replaced.
pub async fn install(rules: &OneRule) -> Result<(), RedirectError> {
    iptables::install(rules, LOCK_WAIT).await?;
    info!(target_address = %rules.target, "the packet rule is in place: pods' metadata requests come here");
    Ok(())
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

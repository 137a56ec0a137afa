//! The settings of Pod Identity: credentials for service account tokens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::flags::{DEFAULT_POD_IDENTITY_ADDRESSES as DEFAULT_ADDRESSES, DEFAULT_POD_IDENTITY_AUDIENCE as DEFAULT_AUDIENCE};
use super::source::SettingSource;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6};

/// Default of `--pod-identity-host-port`.
pub const DEFAULT_HOST_PORT: u16 = 8182;
/// The longest audience or issuer, in bytes.
const MAX_TEXT: usize = 512;
/// The most addresses.
const MAX_ADDRESSES: usize = 8;

/// The endpoint that serves credentials for service account tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentityConfig {
    /// Where pods connect. The daemon assigns these addresses to the node, except loopback addresses.
    pub addresses: Vec<SocketAddr>,
    /// Where pods in the node's network connect; `None` if nowhere.
    pub host_address: Option<SocketAddr>,
    /// The audience that tokens must have.
    pub audience: String,
    /// The accepted issuers of tokens. If the list is empty, the issuer that the Kubernetes API names is accepted.
    pub issuers: Vec<String>,
}

impl PodIdentityConfig {
    /// Reads the flags; `None` without `--pod-identity`.
    pub(super) fn read(source: &mut SettingSource<'_>) -> Option<Self> {
        let is_on = source.switch("pod-identity");
        let mut addresses = Vec::new();
        let items = match source.is_given("pod-identity-addresses") {
            true => source.list("pod-identity-addresses"),
            false => DEFAULT_ADDRESSES.split(',').map(|item| (String::new(), item.to_owned())).collect(),
        };
        for (place, item) in items {
            match item.parse::<SocketAddr>() {
                Ok(address) if is_usable(address.ip()) => addresses.push(address),
                Ok(_) | Err(_) => source.mistake(format!(
                    "{place}={item:?}: expected IP:PORT of an address that pods can reach, such as 169.254.170.23:80 or [fd00:ec2::23]:80"
                )),
            }
        }
        if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
            source.mistake(format!("--pod-identity-addresses: expected 1 to {MAX_ADDRESSES} addresses"));
        }
        let host_port = source.port("pod-identity-host-port", DEFAULT_HOST_PORT);
        let host_address = (host_port != 0).then(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), host_port));
        let audience = source.parse("pod-identity-audience", visible).unwrap_or_else(|| DEFAULT_AUDIENCE.to_owned());
        let mut issuers = Vec::new();
        for (place, item) in source.list("pod-identity-issuer") {
            match visible(&item) {
                Ok(issuer) => issuers.push(issuer),
                Err(expected) => source.mistake(format!("{place}={item:?}: {expected}")),
            }
        }
        is_on.then_some(Self { addresses, host_address, audience, issuers })
    }

    /// Returns every address that the daemon listens on.
    pub fn listen_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().copied().chain(self.host_address)
    }

    /// Returns the addresses that the daemon assigns to the node.
    pub fn assigned(&self) -> Vec<IpAddr> {
        let mut ips: Vec<_> = self.addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }
}

/// Returns whether the daemon may listen on this address. An unspecified address would open the port on every address of the node, and so
/// also to other nodes.
fn is_usable(ip: IpAddr) -> bool {
    let is_metadata = ip == IpAddr::V4(METADATA_IPV4) || ip == IpAddr::V6(METADATA_IPV6);
    !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST) && !is_metadata
}

/// Returns the text, if it consists of visible ASCII characters.
fn visible(text: &str) -> Result<String, String> {
    if (1..=MAX_TEXT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("expected 1 to {MAX_TEXT} visible ASCII characters"))
    }
}

//! The settings of Pod Identity: credentials for service account tokens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::flags::{DEFAULT_POD_IDENTITY_ADDRESSES as DEFAULT_ADDRESSES, DEFAULT_POD_IDENTITY_AUDIENCE as DEFAULT_AUDIENCE};
use super::source::SettingSource;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6};

/// Default of `--pod-identity-host-port`.
pub const DEFAULT_HOST_PORT: u16 = 8182;
/// The address to which SDKs add `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` ("Container credential provider", AWS SDKs and Tools Reference
/// Guide).
pub const RELATIVE_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)), 80);
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
    /// Whether the API must confirm each token.
    pub token_review: bool,
    /// Where pods connect whose SDKs know only the relative URI, without a token; `None` if nowhere. The daemon assigns this address, too.
    pub relative_address: Option<SocketAddr>,
}

/// What an address of Pod Identity is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityEndpoint {
    /// Requests with tokens, of pods with a network of their own.
    Pods,
    /// Requests with tokens, of pods in the node's network.
    HostNetwork,
    /// Requests without a token.
    RelativeUri,
}

impl IdentityEndpoint {
    /// Returns the flag that chooses the address.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Pods => "--pod-identity-addresses",
            Self::HostNetwork => "--pod-identity-host-port",
            Self::RelativeUri => "--pod-identity-relative-uri",
        }
    }
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
        let token_review = source.switch("pod-identity-token-review");
        let relative_address = source.switch("pod-identity-relative-uri").then_some(RELATIVE_ADDRESS);
        is_on.then_some(Self { addresses, host_address, audience, issuers, token_review, relative_address })
    }

    /// Returns every address that the daemon listens on, and what it is for.
    pub fn listen_addresses(&self) -> impl Iterator<Item = (SocketAddr, IdentityEndpoint)> {
        let of_pods = self.addresses.iter().map(|address| (*address, IdentityEndpoint::Pods));
        let of_host = self.host_address.map(|address| (address, IdentityEndpoint::HostNetwork));
        of_pods.chain(of_host).chain(self.relative_address.map(|address| (address, IdentityEndpoint::RelativeUri)))
    }

    /// Returns every address that the daemon listens on.
    pub fn addresses_alone(&self) -> impl Iterator<Item = SocketAddr> {
        self.listen_addresses().map(|(address, _)| address)
    }

    /// Returns the addresses that the daemon assigns to the node.
    pub fn assigned(&self) -> Vec<IpAddr> {
        let mut ips: Vec<_> =
            self.addresses.iter().chain(&self.relative_address).map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect();
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

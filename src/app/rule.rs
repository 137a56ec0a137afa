//! The packet rules at the start: which addresses of this node they send requests to.
//!
//! 169.254.169.254 must be covered, also on a node whose first address is an IPv6 one: pods reach the node's credentials by
//! it. The IPv6 address of the metadata service is covered where the node has an address of that family.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use anyhow::{Context as _, bail};
use tracing::{info, warn};

use crate::config::{RedirectBackend, RedirectConfig};
use crate::pods::watch::client::{self, Client};
use crate::readiness::Step;
use crate::redirect::iptables::Iptables;
use crate::redirect::rules::{RuleSet, Targets};
use crate::redirect::{self, Backend as _};

/// Places the rules, once the node's addresses are known.
pub(super) async fn place(
    redirect: &RedirectConfig,
    direct: bool,
    bound: SocketAddr,
    kube: Client,
    node: &str,
    step: Step,
) -> anyhow::Result<()> {
    if redirect.backend == RedirectBackend::Iptables {
        let found = targets(redirect, bound, &kube, node).await?;
        let (IpAddr::V4(ipv4), ipv6) = (found.ipv4, found.ipv6) else { bail!("{} is not an IPv4 address", found.ipv4) };
        let ipv6 = ipv6.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(SocketAddrV6::new(ip, bound.port(), 0, 0)) } else { None });
        if ipv6.is_none() {
            warn!(
                "requests to the metadata service's IPv6 address are rejected: this node has no IPv6 address that is known; \
                 add it to --host-ip if pods need that address"
            );
        }
        let targets = Targets { ipv4: SocketAddrV4::new(ipv4, bound.port()), ipv6, refuse_direct: !direct };
        let rules = RuleSet { interfaces: redirect.interfaces.clone(), targets: Some(targets) };
        Iptables::default().install(&rules).await?;
        info!(target_address = %targets.ipv4, "the packet rules are in place: pods' metadata requests come here");
    }
    step.done();
    Ok(())
}

struct Found {
    ipv4: IpAddr,
    ipv6: Option<IpAddr>,
}

/// The addresses given, else the one bound, else the node's in the API, else the interface's.
async fn targets(redirect: &RedirectConfig, bound: SocketAddr, kube: &Client, node: &str) -> anyhow::Result<Found> {
    let mut known = redirect.host_ips.clone();
    if !bound.ip().is_unspecified() {
        if bound.is_ipv6() {
            bail!(
                "--metadata-bind-address is an IPv6 address, and 169.254.169.254 cannot be redirected to it: give an IPv4 address or none"
            );
        }
        known.push(bound.ip());
    }
    let of_family = |ips: &[IpAddr], ipv6| ips.iter().copied().find(|ip| ip.is_ipv6() == ipv6);
    // A listener of one family serves that one alone.
    let ipv6 = |ips: &[IpAddr]| of_family(ips, true).filter(|_| bound.ip().is_unspecified() && bound.is_ipv6());
    if let Some(ipv4) = of_family(&known, false) {
        return Ok(Found { ipv4, ipv6: ipv6(&known) });
    }
    let reason = loop {
        match client::node_addresses(kube, node).await {
            Ok(ips) => {
                known.extend(ips);
                match of_family(&known, false) {
                    Some(ipv4) => return Ok(Found { ipv4, ipv6: ipv6(&known) }),
                    None => break "the node's object has no InternalIP of IPv4".to_owned(),
                }
            }
            Err(client::NodeError::Refused(reason)) => break reason,
            Err(client::NodeError::NotReached(reason)) => {
                warn!("the packet rule waits for this node's address: {reason}; --host-ip makes the question unnecessary");
                tokio::time::sleep(super::ASK_AGAIN).await;
            }
        }
    };
    let interface = redirect.interfaces.iter().find(|interface| !interface.negated && !interface.name.ends_with('+'));
    let ipv4 = interface.and_then(|interface| redirect::interface_address(&interface.name, false)).with_context(|| {
        format!("this node's IPv4 address is not known for the packet rule ({reason}): give it as --host-ip, from the field status.hostIP of the pod")
    })?;
    Ok(Found { ipv4, ipv6: ipv6(&known) })
}

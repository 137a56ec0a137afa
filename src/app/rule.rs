//! The packet rules at the start: which addresses of this node they send requests to.
//!
//! 169.254.169.254 must be covered, also on a node whose first address is an IPv6 one: pods reach the node's credentials by
//! it. The IPv6 address of the metadata service is covered where the node has an address of that family.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use tracing::warn;

use crate::config::{RedirectBackend, RedirectConfig};
use crate::pods::watch::client::{self, Client};
use crate::readiness::Step;
use crate::redirect::probe::{Probes, Wanted};
use crate::redirect::{self, OneRule};

/// Places the rules, once the node's addresses are known.
pub(super) async fn place(
    redirect: &RedirectConfig,
    bound: SocketAddr,
    kube: Client,
    node: &str,
    probes: &Probes,
    step: Step,
) -> anyhow::Result<()> {
    if redirect.backend == RedirectBackend::Iptables {
        let targets = targets(redirect, bound, &kube, node).await?;
        let rules = |ip| OneRule { interfaces: redirect.interfaces.clone(), target: SocketAddr::new(ip, bound.port()) };
        redirect::install(&rules(targets.ipv4)).await?;
        // The guard is not among these rules.
        probes.set_wanted(Wanted { ipv6: targets.ipv6.is_some(), guard: false });
        match targets.ipv6 {
            Some(ip) => redirect::install(&rules(ip)).await?,
            None => warn!(
                "no rule for the metadata service's IPv6 address: this node has no IPv6 address that is known; \
                 keep HttpProtocolIpv6 off in the instances' metadata options, or add the node's IPv6 address to --host-ip"
            ),
        }
    }
    step.done();
    Ok(())
}

struct Targets {
    ipv4: IpAddr,
    ipv6: Option<IpAddr>,
}

/// The addresses given, else the one bound, else the node's in the API, else the interface's.
async fn targets(redirect: &RedirectConfig, bound: SocketAddr, kube: &Client, node: &str) -> anyhow::Result<Targets> {
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
        return Ok(Targets { ipv4, ipv6: ipv6(&known) });
    }
    let reason = loop {
        match client::node_addresses(kube, node).await {
            Ok(ips) => {
                known.extend(ips);
                match of_family(&known, false) {
                    Some(ipv4) => return Ok(Targets { ipv4, ipv6: ipv6(&known) }),
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
    Ok(Targets { ipv4, ipv6: ipv6(&known) })
}

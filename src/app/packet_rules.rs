//! The packet rules of the daemon: the guard before everything else, the rest as soon as it is known where requests are to be
//! sent, and what becomes of them at the end.
//!
//! 169.254.169.254 must be covered, also on a node whose first address is an IPv6 one: pods reach the node's credentials by
//! it. The IPv6 address of the metadata service is covered where the node has an address of that family, and else requests to
//! it are rejected by the guard.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tracing::{error, info, warn};

use super::failure::Failure;
use crate::advice::Advise as _;
use crate::config::{InterfaceMatch, RedirectBackend, RedirectConfig};
use crate::metrics::Metrics;
use crate::pods::watch::client::{self, Client};
use crate::readiness::{Readiness, ReadinessStep};
use crate::redirect::backend::{SelectedBackend, System};
use crate::redirect::ownership::Ownership;
use crate::redirect::reconcile::{Like, Reconciler};
use crate::redirect::rules::{RuleSet, Targets};
use crate::redirect::{self, Backend as _};
use crate::self_test::{ExpectedRules, Probes};

/// The rules, of which the guard is in place.
#[derive(Debug)]
pub(super) struct PacketRules {
    backend: Arc<SelectedBackend>,
    turn: Option<Arc<Ownership>>,
    reconciler: Reconciler<Arc<SelectedBackend>, System>,
    refuse_direct: bool,
}

/// What removes the rules at the daemon's end.
#[derive(Debug)]
pub(super) struct Leaving {
    backend: Arc<SelectedBackend>,
    turn: Option<Arc<Ownership>>,
}

impl PacketRules {
    /// Puts the guard in place, if there are to be rules at all: what needs nobody's answer, before anybody is asked.
    pub(super) async fn guard(
        redirect: &RedirectConfig,
        accept_direct: bool,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> anyhow::Result<Option<Self>> {
        if redirect.backend == RedirectBackend::None {
            return Ok(None);
        }
        let turn = Ownership::take()
            .inspect_err(|error| warn!(%error, "other daemons of this node cannot be told from this one, by sockets' names"))
            .ok()
            .map(Arc::new);
        let backend = Arc::new(SelectedBackend::choose(redirect.backend, &redirect.interfaces).await?);
        let refuse_direct = !accept_direct;
        let like = Like { interfaces: redirect.interfaces.clone(), refuse_direct, interval: redirect.interval };
        let system = System::open(turn.clone());
        let mut reconciler = Reconciler::new(backend.clone(), system, like, metrics.clone(), readiness.clone());
        reconciler.guard().await.context("cannot install the guard, which keeps pods from the real metadata service")?;
        Ok(Some(Self { backend, turn, reconciler, refuse_direct }))
    }

    /// What removes them.
    pub(super) fn leaving(&self) -> Leaving {
        Leaving { backend: self.backend.clone(), turn: self.turn.clone() }
    }

    /// Keeps the guard until this is done.
    pub(super) async fn reconcile_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.reconciler.reconcile_during(work).await
    }

    /// Places the rules, once the node's addresses are known, and keeps the guard until then. What keeps the rules then is the
    /// answer; it does not come while a later daemon has rules of its own in place.
    pub(super) async fn place(
        mut self,
        redirect: &RedirectConfig,
        bound: SocketAddr,
        kube: Client,
        node: &str,
        probes: &Probes,
        step: ReadinessStep,
    ) -> anyhow::Result<Reconciler<Arc<SelectedBackend>, System>> {
        warn_of_missing(&redirect.interfaces);
        let found = self.reconciler.reconcile_during(addresses(redirect, bound, &kube, node)).await?;
        if found.ipv6.is_none() {
            info!(
                "requests to the metadata service's IPv6 address are rejected: no IPv6 address of this node is known; \
                 add it to --host-ip if pods are to be served there"
            );
        }
        let targets = Targets {
            ipv4: SocketAddrV4::new(found.ipv4, bound.port()),
            ipv6: found.ipv6.map(|ip| SocketAddrV6::new(ip, bound.port(), 0, 0)),
            refuse_direct: self.refuse_direct,
        };
        self.reconciler.place(RuleSet { interfaces: redirect.interfaces.clone(), targets: Some(targets) }).await;
        probes.set_wanted(ExpectedRules { ipv6: targets.ipv6.is_some() });
        step.done();
        let removed = self.backend.tidy().await;
        if !removed.is_empty() {
            info!(removed = removed.join("; "), "packet rules of ours that another backend had put in place are removed");
        }
        Ok(self.reconciler)
    }
}

impl Leaving {
    /// Removes the rules, unless another daemon of this node is there that needs them.
    pub(super) async fn remove(self) {
        match self.turn.as_ref().map(|turn| turn.leave()) {
            Some(Ok(false)) => {}
            Some(Ok(true)) => return info!("the packet rules stay: another daemon runs on this node"),
            Some(Err(error)) => return warn!(%error, "the packet rules stay: whether another daemon runs on this node is not known"),
            None => return warn!("the packet rules stay: whether another daemon runs on this node is not known"),
        }
        match self.backend.remove().await {
            Ok(removed) => {
                warn!(removed = removed.join("; "), "the packet rules are removed: pods reach the real metadata service from now on")
            }
            Err(error) => error!("the packet rules could not be removed: {}", error.with_advice()),
        }
    }
}

/// Pods' interfaces may come later, and a typing error looks the same.
pub(super) fn warn_of_missing(interfaces: &[InterfaceMatch]) {
    for InterfaceMatch { name, negated } in redirect::without_interface(interfaces) {
        if *negated {
            warn!("--host-interface=!{name}: no interface of this node has that name now, so none is left out of the packet rules");
        } else {
            warn!(
                "--host-interface={name}: no interface of this node has such a name now; until one has, requests are rejected that come in \
                 on others"
            );
        }
    }
}

struct Addresses {
    ipv4: Ipv4Addr,
    ipv6: Option<Ipv6Addr>,
}

fn ipv4_of(ips: &[IpAddr]) -> Option<Ipv4Addr> {
    ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    })
}

fn ipv6_of(ips: &[IpAddr]) -> Option<Ipv6Addr> {
    ips.iter().find_map(|ip| match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(*ip),
    })
}

/// The addresses that a daemon or a person gave, else those of the interfaces.
pub(super) fn given_addresses(redirect: &RedirectConfig) -> Option<(Ipv4Addr, Option<Ipv6Addr>)> {
    let ipv4 = ipv4_of(&redirect.host_ips).or_else(|| of_interfaces(redirect))?;
    Some((ipv4, ipv6_of(&redirect.host_ips)))
}

fn of_interfaces(redirect: &RedirectConfig) -> Option<Ipv4Addr> {
    let interface = redirect.interfaces.iter().find(|interface| !interface.negated && !interface.name.ends_with('+'))?;
    ipv4_of(&[redirect::interface_address(&interface.name, false)?])
}

/// The addresses given, else the one bound, else the node's in the API, else the interface's.
async fn addresses(redirect: &RedirectConfig, bound: SocketAddr, kube: &Client, node: &str) -> anyhow::Result<Addresses> {
    let mut known = redirect.host_ips.clone();
    if !bound.ip().is_unspecified() {
        if bound.is_ipv6() {
            bail!(Failure::new(
                "--metadata-bind-address is an IPv6 address, to which 169.254.169.254 cannot be redirected",
                "give an IPv4 address, or remove the flag"
            ));
        }
        known.push(bound.ip());
    }
    // A listener of one family serves that one alone.
    let ipv6 = |ips: &[IpAddr]| ipv6_of(ips).filter(|_| bound.ip().is_unspecified() && bound.is_ipv6());
    if let Some(ipv4) = ipv4_of(&known) {
        return Ok(Addresses { ipv4, ipv6: ipv6(&known) });
    }
    let reason = loop {
        match client::node_addresses(kube, node).await {
            Ok(ips) => {
                known.extend(ips);
                match ipv4_of(&known) {
                    Some(ipv4) => return Ok(Addresses { ipv4, ipv6: ipv6(&known) }),
                    None => break "the node's object has no InternalIP of IPv4".to_owned(),
                }
            }
            Err(client::NodeError::Refused(reason)) => break reason,
            Err(client::NodeError::NotReached(reason)) => {
                warn!("the packet rules wait for this node's address: {reason}; --host-ip makes the question unnecessary");
                tokio::time::sleep(super::ASK_AGAIN).await;
            }
        }
    };
    let ipv4 = of_interfaces(redirect).ok_or_else(|| {
        Failure::new(
            format!("the IPv4 address of this node, which the packet rules need, is not known: {reason}"),
            "give --host-ip, from the field status.hostIP of the pod",
        )
    })?;
    Ok(Addresses { ipv4, ipv6: ipv6(&known) })
}

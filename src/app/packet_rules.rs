//! The packet rules of the daemon: the guard before everything else, the rest as soon as it is known where requests are to be
//! sent, and what becomes of them at the end.
//!
//! 169.254.169.254 must be covered, also on a node whose first address is an IPv6 one: pods reach the node's credentials by
//! it. The IPv6 address of the metadata service is covered where the node has an address of that family, and else requests to
//! it are rejected by the guard.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tracing::{debug, info, warn};

use super::bpf_programs;
use super::failure::Failure;
use crate::advice::chain;
use crate::cgroup::RedirectPrograms;
use crate::config::{InterfaceMatch, RedirectBackend, RedirectConfig};
use crate::kubernetes::client::Client;
use crate::kubernetes::nodes::{NodeError, node_addresses};
use crate::kubernetes::own_pod::pods_with;
use crate::metrics::Metrics;
use crate::readiness::{Readiness, ReadinessStep};
use crate::redirect::backend::{SelectedBackend, System};
use crate::redirect::bpf::keeper::Keeper;
use crate::redirect::bpf::{BpfError, ExitGuardCheck};
use crate::redirect::legacy_rules::{self, LeftOver};
use crate::redirect::ownership::{Ownership, Proofs};
use crate::redirect::reconcile::{Like, Reconciler};
use crate::redirect::routing::keeper::{RoutingKeeper, withdraw};
use crate::redirect::rules::{RuleSet, Targets};
use crate::redirect::{self, RedirectError};
use crate::self_test::{ExpectedRules, Probes};

mod foreign;
mod leaving;

pub(super) use foreign::follow_foreign_redirects;
pub(super) use leaving::Leaving;

/// Pause between questions that a late API leaves open.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The rules, of which the guard is in place.
#[derive(Debug)]
pub(super) struct PacketRules {
    backend: Arc<SelectedBackend>,
    turn: Option<Arc<Ownership>>,
    reconciler: Reconciler<SelectedBackend, System>,
    routing: Option<RoutingKeeper>,
    has_routing: bool,
    like: Like,
    bpf: Option<Keeper>,
}

/// What keeps the rules, and the kernel's programs beside them.
#[derive(Debug)]
pub(super) struct Keepers {
    pub(super) rules: Reconciler<SelectedBackend, System>,
    pub(super) bpf: Option<Keeper>,
    /// The backend that maintains the rules.
    pub(super) backend: Arc<SelectedBackend>,
    /// The wanted rules.
    pub(super) placed: RuleSet,
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
            warn_of_open_pod_identity(&redirect.pod_identity);
            return Ok(None);
        }
        // Before anything is looked for: a daemon that ends must not remove what this one then relies on.
        let turn = take_turn(redirect.proofs.as_deref()).map(Arc::new);
        // Next, because they need no program: a node on which no backend works is closed all the same.
        let routing = if redirect.routing_rules {
            let mut routing = RoutingKeeper::new(redirect.interval, metrics.clone());
            routing.place().await;
            Some(routing)
        } else {
            withdraw().await;
            None
        };
        let backend = Arc::new(SelectedBackend::choose(redirect.backend, &redirect.interfaces).await?);
        let direct = bpf_programs::direct_connections(redirect.backend, !accept_direct);
        let (interfaces, pod_identity) = (redirect.interfaces.clone(), redirect.pod_identity.clone());
        let like = Like { interfaces, direct, pod_identity, interval: redirect.interval };
        let system = System::open(turn.clone());
        let mut reconciler = Reconciler::new(backend.clone(), system, like.clone(), metrics.clone(), readiness.clone());
        reconciler.guard().await.context("cannot install the guard, which keeps pods from the real metadata service")?;
        Ok(Some(Self { backend, turn, reconciler, routing, has_routing: redirect.routing_rules, like, bpf: None }))
    }

    /// Returns what keeps the routing rules, the first time.
    pub(super) fn take_routing(&mut self) -> Option<RoutingKeeper> {
        self.routing.take()
    }

    /// Attaches the kernel's programs, where they are wanted. With `--redirect=bpf`, waits until there is something to attach them to.
    pub(super) async fn attach(&mut self, redirect: &RedirectConfig, metrics: &Metrics, readiness: &Readiness) -> anyhow::Result<()> {
        if redirect.backend == RedirectBackend::Bpf {
            self.reconciler.reconcile_during(Keeper::pods_exist(&redirect.bpf)).await;
        }
        self.attach_at_once(redirect, metrics, readiness)
    }

    /// Attaches the kernel's programs, where they are wanted.
    pub(super) fn attach_at_once(&mut self, redirect: &RedirectConfig, metrics: &Metrics, readiness: &Readiness) -> anyhow::Result<()> {
        self.bpf = bpf_programs::start(redirect, self.turn.clone(), metrics, readiness)?;
        Ok(())
    }

    /// Returns what the rest of the daemon uses of the kernel's programs, where they redirect.
    pub(super) fn programs(&self) -> Option<RedirectPrograms> {
        self.bpf.as_ref().and_then(Keeper::programs)
    }

    /// Returns a check of the exit guard, if it is attached.
    pub(super) fn exit_guard_check(&mut self) -> Option<ExitGuardCheck> {
        let opened = self.bpf.as_mut()?.exit_guard_check();
        let failed = |error: &BpfError| debug!(error = chain(error), "the self-test does not check the exit guard");
        opened.inspect_err(failed).ok()
    }

    /// What removes them.
    pub(super) fn leaving(&self) -> Leaving {
        Leaving {
            backend: self.backend.clone(),
            turn: self.turn.clone(),
            pins: self.bpf.as_ref().map(Keeper::pins),
            has_routing: self.has_routing,
            like: self.like.clone(),
        }
    }

    /// Keeps the guard until this is done.
    pub(super) async fn reconcile_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        reconcile_during(&mut self.reconciler, &mut self.bpf, work).await
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
    ) -> anyhow::Result<Keepers> {
        warn_of_missing(&redirect.interfaces);
        let found = reconcile_during(&mut self.reconciler, &mut self.bpf, addresses(redirect, bound, &kube, node)).await?;
        if found.ipv6.is_none() {
            info!(
                event = "ipv6-not-served",
                "no IPv6 address of this node is known; rejecting requests to the IPv6 address of the metadata service; to serve pods \
                 there, add the address to --host-ip"
            );
        }
        let targets = Targets {
            ipv4: found.ipv4.map(|ip| SocketAddrV4::new(ip, bound.port())),
            ipv6: found.ipv6.map(|ip| SocketAddrV6::new(ip, bound.port(), 0, 0)),
            direct: self.like.direct,
        };
        let (interfaces, pod_identity) = (redirect.interfaces.clone(), redirect.pod_identity.clone());
        let rules = RuleSet { interfaces, targets: Some(targets), pod_identity };
        let placed = rules.clone();
        match &mut self.bpf {
            Some(bpf) => {
                bpf.keep_during(self.reconciler.place(rules)).await;
                // After the rules, which keep other programs from redirecting these connections.
                bpf.redirect(found.ipv4, found.ipv6, bound.port())?;
            }
            None => self.reconciler.place(rules).await,
        }
        probes.set_wanted(ExpectedRules { ipv4: targets.ipv4.is_some(), ipv6: targets.ipv6.is_some() });
        step.done();
        let removed = self.backend.tidy().await;
        if !removed.is_empty() {
            info!(
                event = "other-backend-removed",
                removed = removed.join("; "),
                "removed the packet rules that rolegate had placed with another backend"
            );
        }
        bpf_programs::remove_unwanted(redirect, self.bpf.as_ref());
        name_legacy_rules().await;
        Ok(Keepers { rules: self.reconciler, bpf: self.bpf, backend: self.backend, placed })
    }
}

/// Takes this daemon's number, with a proof in this directory if that is possible.
fn take_turn(directory: Option<&Path>) -> Option<Ownership> {
    let proved =
        directory.map(|directory| Proofs::in_directory(directory).map_err(Into::into).and_then(|proofs| Ownership::take(Some(proofs))));
    match proved {
        Some(Ok(turn)) => return Some(turn),
        Some(Err(error)) => warn!(
            event = "ownership-unproved",
            error = chain(&error),
            directory = directory.map(Path::display).map(tracing::field::display),
            "cannot create the socket that proves to other daemons of this node that this one runs; a process of the daemon's user in the \
             node's network can pose as a later daemon; check that the directory exists, and that only the daemon's user may write to it"
        ),
        None => {}
    }
    let taken = Ownership::take(None).inspect_err(|error| {
        warn!(
            event = "ownership-unavailable", %error,
            "cannot create the socket by which daemons of this node find each other; keeping the packet rules in place when this \
             daemon stops"
        )
    });
    taken.ok()
}

/// Does this, and keeps the rules and the kernel's programs meanwhile.
async fn reconcile_during<T>(
    reconciler: &mut Reconciler<SelectedBackend, System>,
    bpf: &mut Option<Keeper>,
    work: impl Future<Output = T>,
) -> T {
    match bpf {
        Some(bpf) => reconciler.reconcile_during(bpf.keep_during(work)).await,
        None => reconciler.reconcile_during(work).await,
    }
}

/// Names the rules that kube2iam and kiam left behind. rolegate's come first, so they redirect nothing while its rules are there;
/// without them, pods would be sent to a port on which nobody listens.
async fn name_legacy_rules() {
    match legacy_rules::find().await {
        Ok(found) => {
            for LeftOver { program, rule, target, .. } in found {
                warn!(
                    event = "legacy-rule", program, %rule, redirects_to = %target,
                    "a rule of kube2iam or kiam is left on this node; pods reach rolegate all the same; once those are uninstalled, run \
                     'rolegate redirect remove --peers'"
                );
            }
        }
        Err(error @ RedirectError::TooLarge { .. }) => warn!(
            event = "legacy-rules-unknown",
            reason = "too-large",
            error = chain(&error),
            "cannot look for rules of kube2iam and kiam, because the node has too many packet rules to read them in bounded memory; pods reach \
             rolegate all the same, because its rules come first"
        ),
        Err(error) => debug!(error = chain(&error), "the rules of kube2iam and kiam cannot be looked for"),
    }
}

/// Without packet rules, nothing keeps other programs from redirecting connections to these addresses.
fn warn_of_open_pod_identity(addresses: &BTreeSet<SocketAddr>) {
    if !addresses.is_empty() {
        warn!(
            event = "pod-identity-not-kept",
            addresses = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", "),
            "--redirect=none: rolegate places no packet rules, so a host port or a Service of another pod can take connections to the \
             addresses of Pod Identity, with the tokens in them; set --redirect=auto, or place the rules yourself (see \
             iptables/rolegate-pod-identity.nft), and forbid host ports with an admission policy"
        );
    }
}

/// Pods' interfaces may come later, and a typing error looks the same.
pub(super) fn warn_of_missing(interfaces: &[InterfaceMatch]) {
    for InterfaceMatch { name, negated } in redirect::without_interface(interfaces) {
        if *negated {
            warn!(
                event = "excluded-interface-missing", interface = %name,
                "no interface of this node matches the name that --host-interface excludes; it excludes nothing until one does; check the \
                 name"
            );
        } else {
            warn!(
                event = "host-interface-missing", interface = %name,
                "no interface of this node matches this --host-interface; rejecting metadata requests from other interfaces; check the \
                 name if pods' interfaces already exist"
            );
        }
    }
}

/// Addresses of this node, at least one.
struct Addresses {
    ipv4: Option<Ipv4Addr>,
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
    if known.is_empty() {
        // Manifests of kube2iam and kiam set the variable, whatever else they do.
        known.extend(redirect.host_ip_hint.filter(|ip| redirect::interface_addresses().contains(ip)));
    }
    if let Some(ipv4) = ipv4_of(&known) {
        return Ok(Addresses { ipv4: Some(ipv4), ipv6: ipv6(&known) });
    }
    let reason = loop {
        match node_addresses(kube, node).await {
            Ok(ips) => {
                known.extend(ips);
                match ipv4_of(&known) {
                    Some(ipv4) => return Ok(Addresses { ipv4: Some(ipv4), ipv6: ipv6(&known) }),
                    None => break "the node's object has no InternalIP of IPv4".to_owned(),
                }
            }
            Err(NodeError::Refused(reason)) => {
                // The permissions of kube2iam are for pods, and pods have the addresses of their node.
                let addresses = redirect::interface_addresses();
                let pods = pods_with(kube, &format!("spec.nodeName={node}")).await.unwrap_or_default();
                known.extend(pods.iter().flat_map(|pod| &pod.host_ips).filter(|ip| addresses.contains(ip)));
                match ipv4_of(&known) {
                    Some(ipv4) => return Ok(Addresses { ipv4: Some(ipv4), ipv6: ipv6(&known) }),
                    None => break reason,
                }
            }
            Err(NodeError::NotReached(reason)) => {
                warn!(
                    event = "node-address-unavailable", %reason,
                    "cannot read this node's address from the Kubernetes API; retrying, placing the packet rules when it is known; to do \
                     without the API, set --host-ip"
                );
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    };
    if let Some(ipv4) = of_interfaces(redirect) {
        return Ok(Addresses { ipv4: Some(ipv4), ipv6: ipv6(&known) });
    }
    // A node of an IPv6 cluster has only IPv6 addresses in the API. Most have an IPv4 address as well, and any of the node will do.
    if let Some(ip) = ipv6(&known) {
        let ipv4 = redirect::ipv4_beside(ip);
        if ipv4.is_none() {
            info!(
                event = "ipv4-not-served",
                "this node has no IPv4 address; rejecting requests to the IPv4 address of the metadata service; pods are served at its IPv6 \
                 address, fd00:ec2::254"
            );
        }
        return Ok(Addresses { ipv4, ipv6: Some(ip) });
    }
    Err(Failure::new(
        format!("the IPv4 address of this node, which the packet rules need, is not known: {reason}"),
        "give --host-ip, from the field status.hostIP of the pod",
    )
    .into())
}

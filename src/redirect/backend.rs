//! The choice of the backend, and the node's side of the reconciler: kernel notifications, connection tracking, other daemons.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::changes::Changes;
use super::conntrack;
use super::foreign::Precedence;
use super::iptables::Iptables;
use super::nftables::{self, Nftables};
use super::notifications::Watched;
use super::observed::ObservedRules;
use super::ownership::Ownership;
use super::reconcile::ReconcilerEnvironment;
use super::rules::{DirectConnections, RuleSet, Targets};
use super::{Backend, RedirectError};
use crate::advice::{Advise as _, chain};
use crate::config::{InterfaceMatch, RedirectBackend};

/// The backend that was selected.
#[derive(Debug)]
pub enum SelectedBackend {
    /// The rules are loaded by `nft`.
    Nftables(Nftables),
    /// The rules are loaded by `iptables` and `ip6tables`.
    Iptables(Iptables),
}

impl SelectedBackend {
    /// Returns both backends, the preferred one first.
    pub fn all() -> [Self; 2] {
        [Self::Nftables(Nftables::default()), Self::Iptables(Iptables::default())]
    }

    /// Returns the configured backend. For `auto`, returns the first that works on this node: nftables if the kernel would
    /// accept the rules from `nft`, else iptables if its tables can be read. Changes nothing.
    ///
    /// # Errors
    /// With `auto`, if neither works; the error says why for each.
    pub async fn choose(wanted: RedirectBackend, interfaces: &[InterfaceMatch]) -> Result<Self, RedirectError> {
        let [nftables, iptables] = Self::all();
        match wanted {
            RedirectBackend::Nftables => return Ok(nftables),
            RedirectBackend::Iptables => return Ok(iptables),
            RedirectBackend::Auto | RedirectBackend::Bpf | RedirectBackend::None => {}
        }
        let without_nftables = match nftables::try_out(&sample(interfaces)).await {
            Ok(()) => {
                info!(event = "backend-selected", backend = nftables.name(), "using nftables for the packet rules");
                return Ok(nftables);
            }
            Err(error) => error,
        };
        match iptables.observed().await {
            // If IPv6 cannot be guarded, installing the rules reports it, and IPv4 is closed all the same.
            Ok(_) | Err(RedirectError::Ipv6(_)) => {
                info!(
                    event = "backend-selected",
                    backend = iptables.name(),
                    reason = chain(&without_nftables),
                    "using iptables for the packet rules because nftables does not work"
                );
                Ok(iptables)
            }
            Err(error) => Err(RedirectError::NoBackend { nftables: Box::new(without_nftables), iptables: Box::new(error) }),
        }
    }

    /// Returns which redirects of other programs come after rules of this backend.
    ///
    /// # Errors
    /// If the flavour of `iptables` cannot be determined.
    pub async fn precedence(&self) -> Result<Precedence, RedirectError> {
        match self {
            Self::Nftables(_) => Ok(Precedence::Nftables),
            Self::Iptables(backend) => backend.own().await.map(Precedence::Iptables),
        }
    }

    /// Removes the rules that rolegate has in the other backend, once this backend's rules are installed, and describes what it
    /// removed. Failures are logged.
    pub async fn tidy(&self) -> Vec<String> {
        let mut said = Vec::new();
        for other in Self::all().into_iter().filter(|other| other.name() != self.name()) {
            match other.remove().await {
                Ok(removed) => said.extend(removed),
                // A node without the program rarely has rules of that backend.
                Err(error @ RedirectError::Program { .. }) => {
                    debug!(
                        backend = other.name(),
                        error = chain(&error),
                        "cannot run the other backend's program; assuming that it has no rules"
                    );
                }
                Err(error) => {
                    warn!(
                        event = "other-backend-unknown",
                        backend = other.name(),
                        error = chain(&error),
                        advice = error.advice().as_deref(),
                        "cannot determine whether another backend holds packet rules of rolegate; leaving them in place if there are any; \
                         list them with 'rolegate redirect status'"
                    )
                }
            }
        }
        said
    }
}

/// Returns rules like those that will be wanted, with addresses reserved for documentation (RFC 5737, RFC 3849).
fn sample(interfaces: &[InterfaceMatch]) -> RuleSet {
    let ipv4 = Some(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1));
    let ipv6 = Some(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 1, 0, 0));
    let targets = Targets { ipv4, ipv6, direct: DirectConnections::Dropped };
    RuleSet { interfaces: interfaces.to_vec(), targets: Some(targets), ..RuleSet::guard_alone() }
}

impl Backend for SelectedBackend {
    fn name(&self) -> &'static str {
        match self {
            Self::Nftables(backend) => backend.name(),
            Self::Iptables(backend) => backend.name(),
        }
    }

    fn render(&self, rules: &RuleSet) -> String {
        match self {
            Self::Nftables(backend) => backend.render(rules),
            Self::Iptables(backend) => backend.render(rules),
        }
    }

    async fn install(&self, rules: &RuleSet) -> Result<(), RedirectError> {
        match self {
            Self::Nftables(backend) => backend.install(rules).await,
            Self::Iptables(backend) => backend.install(rules).await,
        }
    }

    async fn differences(&self, rules: &RuleSet) -> Result<Vec<String>, RedirectError> {
        match self {
            Self::Nftables(backend) => backend.differences(rules).await,
            Self::Iptables(backend) => backend.differences(rules).await,
        }
    }

    async fn observed(&self) -> Result<ObservedRules, RedirectError> {
        match self {
            Self::Nftables(backend) => backend.observed().await,
            Self::Iptables(backend) => backend.observed().await,
        }
    }

    async fn standing_elsewhere(&self) -> ObservedRules {
        let found = match self {
            Self::Nftables(_) => Iptables::default().observed().await,
            Self::Iptables(_) => Nftables::default().observed().await,
        };
        found
            .inspect_err(|error| {
                debug!(error = chain(error), "cannot read rolegate's rules in the other backend; assuming that there are none")
            })
            .unwrap_or_default()
    }

    async fn remove(&self) -> Result<Vec<String>, RedirectError> {
        match self {
            Self::Nftables(backend) => backend.remove().await,
            Self::Iptables(backend) => backend.remove().await,
        }
    }
}

/// The reconciler's environment on a real node: rule notifications from the kernel, and the ownership of the rules among
/// daemons.
#[derive(Debug)]
pub struct System {
    changes: Option<Changes>,
    turn: Option<Arc<Ownership>>,
}

impl System {
    /// Opens what is available on this node, and logs what is not.
    pub fn open(turn: Option<Arc<Ownership>>) -> Self {
        Self { changes: Watched::PacketRules.subscribed(Changes::open()), turn }
    }
}

impl ReconcilerEnvironment for System {
    async fn changed(&mut self) {
        let Self { changes, turn } = self;
        let notified = async {
            if let Some(open) = changes {
                match open.changed().await {
                    Ok(()) => return,
                    Err(error) => {
                        Watched::PacketRules.lost(&error);
                        *changes = None;
                    }
                }
            }
            std::future::pending().await
        };
        let answer = async {
            match turn {
                Some(turn) => turn.answer().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = notified => {}
            never = answer => match never {},
        }
    }

    async fn forget(&mut self, rules: &RuleSet) -> Result<u64, RedirectError> {
        conntrack::forget_earlier(rules).await
    }

    fn claim(&mut self) {
        if let Some(Err(error)) = self.turn.as_ref().map(|turn| turn.claim_rules()) {
            warn!(
                event = "rules-claim-failed", %error,
                "cannot announce to other daemons of this node that this one owns the packet rules; two daemons may replace each other's \
                 rules; make sure that only one runs"
            );
        }
    }

    fn is_succeeded(&mut self) -> bool {
        let Some(turn) = &self.turn else { return false };
        turn.is_succeeded().unwrap_or_else(|error| {
            debug!(%error, "cannot look for other rolegate daemons on this node; assuming that there is no later one");
            false
        })
    }
}

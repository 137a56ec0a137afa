//! Which backend it is, and what of the node is beside the rules.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::changes::Changes;
use super::conntrack;
use super::iptables::Iptables;
use super::nftables::{self, Nftables};
use super::observed::ObservedRules;
use super::ownership::Ownership;
use super::reconcile::ReconcilerEnvironment;
use super::rules::{RuleSet, Targets};
use super::{Backend, RedirectError};
use crate::config::{InterfaceMatch, RedirectBackend};

/// One of the backends.
#[derive(Debug)]
pub enum SelectedBackend {
    /// By the program `nft`.
    Nftables(Nftables),
    /// By the programs `iptables` and `ip6tables`.
    Iptables(Iptables),
}

impl SelectedBackend {
    /// Both, the preferred one first.
    pub fn all() -> [Self; 2] {
        [Self::Nftables(Nftables::default()), Self::Iptables(Iptables::default())]
    }

    /// The backend that is wanted, and with `auto` the first that works here: nftables where the kernel would take the rules
    /// from the program `nft`, else iptables where its tables can be read. It changes nothing.
    ///
    /// # Errors
    /// With `auto`, if neither works: why each does not.
    pub async fn choose(wanted: RedirectBackend, interfaces: &[InterfaceMatch]) -> Result<Self, RedirectError> {
        let [nftables, iptables] = Self::all();
        match wanted {
            RedirectBackend::Nftables => return Ok(nftables),
            RedirectBackend::Iptables => return Ok(iptables),
            RedirectBackend::Auto | RedirectBackend::None => {}
        }
        let without_nftables = match nftables::try_out(&sample(interfaces)).await {
            Ok(()) => {
                info!(event = "backend-selected", backend = nftables.name(), "using nftables for the packet rules");
                return Ok(nftables);
            }
            Err(error) => error,
        };
        match iptables.observed().await {
            // That IPv6 is left open is said when the rules are put in place, which closes IPv4.
            Ok(_) | Err(RedirectError::Ipv6(_)) => {
                info!(
                    event = "backend-selected", backend = iptables.name(), reason = %without_nftables,
                    "using iptables for the packet rules because nftables does not work"
                );
                Ok(iptables)
            }
            Err(error) => Err(RedirectError::NoBackend { nftables: Box::new(without_nftables), iptables: Box::new(error) }),
        }
    }

    /// Takes away what is ours of the other backend, once the rules of this one are in place, and says what that was. What fails
    /// is logged.
    pub async fn tidy(&self) -> Vec<String> {
        let mut said = Vec::new();
        for other in Self::all().into_iter().filter(|other| other.name() != self.name()) {
            match other.remove().await {
                Ok(removed) => said.extend(removed),
                // Without its program there is mostly nothing of it either.
                Err(error @ RedirectError::Program { .. }) => debug!("{error}"),
                Err(error) => {
                    warn!(
                        event = "other-backend-unknown", backend = other.name(), %error,
                        "cannot determine whether another backend holds packet rules of rolegate; leaving them in place if there are any; \
                         list them with 'rolegate redirect status'"
                    )
                }
            }
        }
        said
    }
}

/// Rules like those that will be wanted, with addresses of nobody (RFC 5737, RFC 3849).
fn sample(interfaces: &[InterfaceMatch]) -> RuleSet {
    let ipv4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1);
    let ipv6 = Some(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 1, 0, 0));
    RuleSet { interfaces: interfaces.to_vec(), targets: Some(Targets { ipv4, ipv6, refuse_direct: true }) }
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
        found.inspect_err(|error| debug!("what the other backend holds of ours is not known: {error}")).unwrap_or_default()
    }

    async fn remove(&self) -> Result<Vec<String>, RedirectError> {
        match self {
            Self::Nftables(backend) => backend.remove().await,
            Self::Iptables(backend) => backend.remove().await,
        }
    }
}

/// What the kernel and the other daemons say.
#[derive(Debug)]
pub struct System {
    changes: Option<Changes>,
    turn: Option<Arc<Ownership>>,
}

impl System {
    /// What can be had of it; what cannot is logged.
    pub fn open(turn: Option<Arc<Ownership>>) -> Self {
        let changes = Changes::open()
            .inspect_err(|error| {
                warn!(
                    event = "rule-notifications-unavailable", %error,
                    "cannot subscribe to changes of packet rules; comparing the rules at each --redirect-interval only"
                )
            })
            .ok();
        Self { changes, turn }
    }
}

impl ReconcilerEnvironment for System {
    async fn changed(&mut self) {
        let Self { changes, turn } = self;
        let told = async {
            if let Some(open) = changes {
                match open.changed().await {
                    Ok(()) => return,
                    Err(error) => {
                        warn!(
                            event = "rule-notifications-failed", %error,
                            "the subscription to changes of packet rules failed; comparing the rules at each --redirect-interval only"
                        );
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
            () = told => {}
            never = answer => match never {},
        }
    }

    async fn forget(&mut self, targets: &Targets) -> Result<u64, RedirectError> {
        conntrack::forget_earlier(*targets).await
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
            debug!(%error, "other daemons of this node cannot be looked for");
            false
        })
    }
}

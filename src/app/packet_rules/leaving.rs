//! The removal of the rules at the daemon's end, with `--redirect-on-exit=remove`.
//!
//! Another daemon may start at any moment of the removal. It takes its name before it looks for the guard, so either it finds no guard and
//! places its own, or its name is there when the removal is done, and the guard is placed again.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::{error, info, warn};

use crate::advice::{Advise as _, chain};
use crate::metrics::Metrics;
use crate::pod_identity::addresses;
use crate::readiness::Readiness;
use crate::redirect::Backend as _;
use crate::redirect::backend::{SelectedBackend, System};
use crate::redirect::bpf::remove_pins;
use crate::redirect::ownership::{self, Ownership};
use crate::redirect::reconcile::{Like, Reconciler};
use crate::redirect::routing::node as routing_rules;

/// What removes the rules at the daemon's end.
#[derive(Debug)]
pub(in crate::app) struct Leaving {
    pub(super) backend: Arc<SelectedBackend>,
    pub(super) turn: Option<Arc<Ownership>>,
    /// The directory of the pins of the kernel's programs, if there are any.
    pub(super) pins: Option<PathBuf>,
    /// Whether there are to be routing rules.
    pub(super) has_routing: bool,
    /// What is placed again if another daemon needs it.
    pub(super) like: Like,
}

impl Leaving {
    /// Removes the rules, unless another daemon of this node is there that needs them.
    pub(in crate::app) async fn remove(self) {
        if !self.is_last() {
            return;
        }
        let mut removed = self.remove_routing().await;
        addresses::withdraw();
        if is_followed() {
            return self.restore(removed).await;
        }
        if let Some(Err(error)) = self.pins.as_deref().map(remove_pins) {
            error!(
                event = "bpf-programs-kept",
                error = chain(&error),
                advice = error.advice().as_deref(),
                "cannot remove the BPF programs; pods' connections that they redirect are refused; run 'rolegate redirect remove'"
            );
        }
        if is_followed() {
            return self.restore(removed).await;
        }
        match self.backend.remove().await {
            Ok(of_packets) => removed.splice(0..0, of_packets).for_each(drop),
            Err(error) => error!(
                event = "rules-removal-failed",
                error = chain(&error),
                advice = error.advice().as_deref(),
                "cannot remove the packet rules; pods' metadata requests are refused while no daemon runs; to remove the rules, run \
                 'rolegate redirect remove'"
            ),
        }
        if is_followed() {
            return self.restore(removed).await;
        }
        if !removed.is_empty() {
            warn!(
                event = "rules-removed",
                removed = removed.join("; "),
                "removed the packet rules because of --redirect-on-exit=remove; pods can reach the real metadata service from now on"
            );
        }
    }

    /// Releases this daemon's names, and returns whether no other daemon has one. Logs why the rules stay.
    fn is_last(&self) -> bool {
        match self.turn.as_ref().map(|turn| turn.leave()) {
            Some(Ok(false)) => return true,
            Some(Ok(true)) => info!(event = "rules-kept", "another rolegate daemon runs on this node; leaving the packet rules in place"),
            Some(Err(error)) => warn!(
                event = "rules-kept-unsure", %error,
                "cannot determine whether another rolegate daemon runs on this node; leaving the packet rules in place; without a \
                 daemon, pods' metadata requests are refused; to remove the rules, run 'rolegate redirect remove'"
            ),
            None => warn!(
                event = "rules-kept-unsure",
                error = "the socket by which daemons of this node find each other could not be created (event ownership-unavailable)",
                "cannot determine whether another rolegate daemon runs on this node; leaving the packet rules in place; without a \
                 daemon, pods' metadata requests are refused; to remove the rules, run 'rolegate redirect remove'"
            ),
        }
        false
    }

    /// Removes the routing rules, and describes what was removed.
    async fn remove_routing(&self) -> Vec<String> {
        let mut removed = Vec::new();
        for (_, result) in routing_rules::remove().await {
            match result {
                Ok(of_family) => removed.extend(of_family),
                Err(error) => error!(
                    event = "rules-removal-failed",
                    error = chain(&error),
                    advice = error.advice().as_deref(),
                    "cannot remove the routing rules; pods' metadata requests are refused while no daemon runs; to remove the rules, run \
                     'rolegate redirect remove'"
                ),
            }
        }
        removed
    }

    /// Places the guard and the routing rules again, for the daemon that started meanwhile. What it has placed itself stays.
    async fn restore(self, removed: Vec<String>) {
        let removed = removed.join("; ");
        let mut failures: Vec<String> = Vec::new();
        if self.has_routing {
            let routed = routing_rules::install().await.into_iter().filter_map(|(_, result)| result.err());
            failures.extend(routed.map(|error| error.with_advice()));
        }
        let mut guard = Reconciler::new(self.backend, System::open(None), self.like, Metrics::new(), Readiness::default());
        failures.extend(guard.guard().await.err().map(|error| error.with_advice()));
        if failures.is_empty() {
            warn!(
                event = "rules-restored",
                removed, "another rolegate daemon started while this one removed the rules; placed the guard and the routing rules again"
            );
        } else {
            error!(
                event = "rules-restore-failed",
                removed,
                error = failures.join("; "),
                "another rolegate daemon started while this one removed the rules, and they cannot be placed again; pods may reach the real \
                 metadata service until that daemon has placed them"
            );
        }
    }
}

/// Returns whether another daemon runs, or may run.
fn is_followed() -> bool {
    ownership::any().unwrap_or(true)
}

//! The kernel's programs beside the packet rules: all of them with `--redirect=bpf`, the exit guard with `--redirect=auto` where it is
//! permitted.

use std::sync::Arc;

use anyhow::Context as _;
use tracing::{debug, info, warn};

use crate::advice::{Advise as _, chain};
use crate::config::{RedirectBackend, RedirectConfig};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::redirect::bpf::keeper::{Keeper, KeeperEnvironment};
use crate::redirect::bpf::{Scope, pinned, remove_pins};
use crate::redirect::ownership::Ownership;

/// Returns which programs are wanted.
pub(super) const fn scope(backend: RedirectBackend) -> Option<Scope> {
    match backend {
        RedirectBackend::Bpf => Some(Scope::All),
        RedirectBackend::Auto => Some(Scope::ExitGuard),
        RedirectBackend::Nftables | RedirectBackend::Iptables | RedirectBackend::None => None,
    }
}

/// Attaches the programs, where they are wanted. The exit guard is an additional lock: without it, the daemon says so and goes on.
pub(super) fn start(
    redirect: &RedirectConfig,
    turn: Option<Arc<Ownership>>,
    metrics: &Metrics,
    readiness: &Readiness,
) -> anyhow::Result<Option<Keeper>> {
    let Some(scope) = scope(redirect.backend) else { return Ok(None) };
    let environment = KeeperEnvironment { interval: redirect.interval, turn, metrics: metrics.clone(), readiness: readiness.clone() };
    match Keeper::start(redirect.bpf.clone(), scope, environment) {
        Ok(keeper) => Ok(Some(keeper)),
        Err(error) if scope == Scope::ExitGuard => {
            info!(
                event = "exit-guard-unavailable",
                reason = chain(&error),
                advice = error.advice().as_deref(),
                "cannot attach the exit guard; relying on the packet rules, which see no packets that the network plugin sends past netfilter"
            );
            Ok(None)
        }
        Err(error) => Err(error).context("--redirect=bpf: cannot attach the BPF programs"),
    }
}

/// Removes the programs of an earlier daemon, where none are wanted now.
pub(super) fn remove_unwanted(redirect: &RedirectConfig, keeper: Option<&Keeper>) {
    // Without the exit guard of `auto`, a former one of it does no harm, and closes what it closed.
    if keeper.is_some() || redirect.backend == RedirectBackend::Auto {
        return;
    }
    match pinned(&redirect.bpf.pins) {
        Ok(found) if found.is_empty() => return,
        Ok(_) => {}
        Err(error) => return debug!(error = chain(&error), "cannot look for BPF programs of an earlier daemon"),
    }
    match remove_pins(&redirect.bpf.pins) {
        Ok(removed) => info!(
            event = "bpf-programs-removed",
            removed = removed.join("; "),
            "removed the BPF programs of an earlier daemon, which --redirect no longer asks for"
        ),
        Err(error) => warn!(
            event = "bpf-programs-kept",
            error = chain(&error),
            advice = error.advice().as_deref(),
            "cannot remove the BPF programs of an earlier daemon; pods' connections that they redirect are refused; run 'rolegate redirect \
             remove'"
        ),
    }
}

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
use crate::redirect::bpf::{Scope, is_of_guard, pinned, remove_all_but_guard, remove_pins};
use crate::redirect::ownership::Ownership;
use crate::redirect::rules::DirectConnections;

/// Returns which programs are wanted.
pub(super) const fn scope(backend: RedirectBackend) -> Option<Scope> {
    match backend {
        RedirectBackend::Bpf => Some(Scope::All),
        RedirectBackend::Auto => Some(Scope::ExitGuard),
        RedirectBackend::Nftables | RedirectBackend::Iptables | RedirectBackend::None => None,
    }
}

/// Returns what packet rules do with connections straight to the app port. Connections that the programs redirect arrive there without
/// NAT, so they must reach the daemon. The server recognizes them by their records, and closes all others.
pub(super) fn direct_connections(backend: RedirectBackend, refuse_direct: bool) -> DirectConnections {
    match (scope(backend), refuse_direct) {
        (Some(Scope::All), _) => DirectConnections::Kept,
        (_, true) => DirectConnections::Dropped,
        (_, false) => DirectConnections::Accepted,
    }
}

/// Attaches the programs that the configuration wants. The exit guard of `auto` is optional: if it cannot be attached, the daemon logs
/// that and continues.
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
                "cannot attach the exit guard; relying on the packet rules, which do not see packets that bypass netfilter"
            );
            Ok(None)
        }
        Err(error) => Err(error).context("--redirect=bpf: cannot attach the BPF programs"),
    }
}

/// Removes the programs of an earlier daemon, if the configuration wants none now.
pub(super) fn remove_unwanted(redirect: &RedirectConfig, keeper: Option<&Keeper>) {
    if keeper.is_some() {
        return;
    }
    // With `auto`, an exit guard that an earlier daemon attached may stay: it still drops packets to the metadata addresses. The other
    // programs must not stay, because no daemon configures them.
    let is_guard_wanted = redirect.backend == RedirectBackend::Auto;
    let pins = &redirect.bpf.pins;
    match pinned(pins) {
        Ok(found) if found.iter().all(|program| is_guard_wanted && is_of_guard(program)) => return,
        Ok(_) => {}
        Err(error) => return debug!(error = chain(&error), "cannot look for BPF programs of an earlier daemon"),
    }
    match if is_guard_wanted { remove_all_but_guard(pins) } else { remove_pins(pins) } {
        Ok(removed) if is_guard_wanted => info!(
            event = "bpf-programs-removed",
            removed = removed.join("; "),
            "removed the BPF programs of an earlier daemon that redirect connections; keeping its exit guard as it is configured, which this \
             daemon cannot change; to remove that as well, give --redirect=nftables or --redirect=iptables"
        ),
        Ok(removed) => info!(
            event = "bpf-programs-removed",
            removed = removed.join("; "),
            "removed the BPF programs of an earlier daemon, because --redirect no longer needs them"
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

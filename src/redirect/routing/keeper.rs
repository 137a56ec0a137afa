//! Keeps the routing rules in place: compares them regularly, and soon after the kernel reports that some process changed rules.
//!
//! Several daemons of one node want the same rules, so each may repair them. What the keeper cannot repair is logged and retried; it
//! does not make the daemon unready, because the packet rules guard the node as well.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::node::{EachFamily, install, observe, remove};
use super::{RoutingError, RoutingRules, family_name};
use crate::advice::{Advise as _, chain};
use crate::log_once::{Changes, EachKey, LOG_EVERY, WhenFull};
use crate::metrics::{ComparedRules, Metrics, RuleKind, RuleState};
use crate::netlink::Notifications;
use crate::redirect::notifications::Watched;
use crate::redirect::rules::Family;

/// How long notifications of changes are gathered before the rules are compared.
const GATHER: Duration = Duration::from_millis(100);
/// The minimum pause between two comparisons.
const PAUSE: Duration = Duration::from_secs(1);
/// `RTNLGRP_IPV4_RULE` and `RTNLGRP_IPV6_RULE` of linux/rtnetlink.h, as bits. Groups count from one.
const RULE_GROUPS: u32 = (1 << (8 - 1)) | (1 << (19 - 1));
/// Room for notifications, in bytes. The content of a notification is not used, so none is missed if some are lost.
const QUEUE: usize = 64 << 10;
/// The most notifications read in one turn, so that a process that changes rules constantly cannot block the daemon.
const MAX_NOTIFICATIONS: usize = 1024;

/// Keeps the routing rules in place.
#[derive(Debug)]
pub struct RoutingKeeper {
    interval: Duration,
    metrics: Metrics,
    changes: Option<RuleChanges>,
    /// The repair that was last logged.
    logged: EachKey<Vec<String>>,
    /// The failures that were last logged.
    failing: Changes<Vec<String>>,
    /// The rules ahead of rolegate's that were last logged.
    ahead: Changes<Vec<String>>,
}

impl RoutingKeeper {
    /// Creates a keeper that compares the rules at least at this interval.
    pub fn new(interval: Duration, metrics: Metrics) -> Self {
        Self {
            interval,
            metrics,
            changes: Watched::RoutingRules.subscribed(RuleChanges::open()),
            logged: EachKey::new(LOG_EVERY, 1, WhenFull::ForgetAll),
            failing: Changes::default(),
            ahead: Changes::default(),
        }
    }

    /// Installs the rules for the first time. What fails is logged, and tried again by [`RoutingKeeper::keep`].
    pub async fn place(&mut self) {
        let done = install().await;
        self.report_failures(&done);
        let families: Vec<_> = done.iter().filter(|(_, result)| result.is_ok()).map(|(family, _)| family_name(*family)).collect();
        if !families.is_empty() {
            info!(
                event = "routing-rules-in-place",
                families = families.join(", "),
                "the routing rules are in place; only the node itself has a route to the real metadata service"
            );
        }
        self.look_ahead().await;
    }

    /// Keeps the rules until the process ends.
    pub async fn keep(mut self) {
        loop {
            self.wait().await;
            let done = install().await;
            let repaired: Vec<_> = done.iter().filter_map(|(_, result)| result.as_ref().ok()).flatten().cloned().collect();
            for (family, result) in &done {
                if result.as_ref().is_ok_and(|changed| !changed.is_empty()) {
                    self.metrics.rules_repaired(RuleKind::Routing, Some(short_name(*family)));
                }
            }
            if !repaired.is_empty() {
                self.metrics.redirect_repaired(true);
                self.log_repair(repaired);
            }
            for error in done.iter().filter_map(|(_, result)| result.as_ref().err()) {
                match error {
                    RoutingError::NotKept { .. } => self.metrics.redirect_repaired(false),
                    RoutingError::Refused { .. } => self.metrics.redirect_check_failed(),
                    // No retry could change this.
                    RoutingError::Unsupported(_) => {}
                }
            }
            self.report_failures(&done);
            self.look_ahead().await;
        }
    }

    /// Waits until the next comparison is due: after the interval, or soon after a change.
    async fn wait(&mut self) {
        let compared_at = Instant::now();
        tokio::select! {
            () = sleep_until(compared_at + self.interval) => return,
            () = self.changed() => {}
        }
        let mut gathered = std::pin::pin!(sleep_until((Instant::now() + GATHER).max(compared_at + PAUSE)));
        loop {
            tokio::select! {
                biased;
                () = &mut gathered => return,
                () = self.changed() => {}
            }
        }
    }

    /// Returns when some process has changed rules; never, if changes are not reported.
    async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes {
            match changes.changed().await {
                Ok(()) => return,
                Err(error) => {
                    Watched::RoutingRules.lost(&error);
                    self.changes = None;
                }
            }
        }
        std::future::pending().await
    }

    /// Logs failures that are new, and their end.
    fn report_failures<T>(&mut self, done: &EachFamily<T>) {
        for (family, result) in done {
            let state = match result {
                Ok(_) => RuleState::InPlace,
                Err(RoutingError::NotKept { .. }) => RuleState::Wrong,
                Err(RoutingError::Refused { .. }) => RuleState::Unknown,
                Err(RoutingError::Unsupported(_)) => RuleState::Unsupported,
            };
            let (kind, family) = (RuleKind::Routing, Some(short_name(*family)));
            self.metrics.rules_compared(ComparedRules { kind, backend: "rtnetlink", family, redirects_to: None, state });
        }
        let errors: Vec<_> = done.iter().filter_map(|(_, result)| result.as_ref().err()).collect();
        self.metrics.routing_rules_in_place(errors.is_empty());
        if errors.is_empty() {
            if self.failing.forget().is_some() {
                info!(event = "routing-rules-correct-again", "the routing rules are correct again");
            }
            return;
        }
        if self.failing.is_new(errors.iter().map(|error| chain(*error)).collect()) {
            for error in errors {
                match error {
                    RoutingError::Unsupported(_) => warn!(
                        event = "routing-rules-unsupported",
                        error = chain(error),
                        advice = error.advice().as_deref(),
                        "the kernel lacks routing rules; guarding the node with packet rules alone; a flush of the firewall opens the node \
                         until they are repaired"
                    ),
                    RoutingError::Refused { .. } | RoutingError::NotKept { .. } => warn!(
                        event = "routing-rules-failed",
                        error = chain(error),
                        advice = error.advice().as_deref(),
                        "cannot keep the routing rules in place; retrying, guarding the node with packet rules alone; a flush of the \
                         firewall opens the node until they are repaired"
                    ),
                }
            }
        }
    }

    /// Logs the rules of other programs that come before rolegate's.
    async fn look_ahead(&mut self) {
        let ahead: Vec<_> = observe().await.iter().filter_map(|(_, result)| result.as_ref().ok()).flat_map(RoutingRules::ahead).collect();
        let rules = ahead.join("; ");
        if self.ahead.is_new(ahead) && !rules.is_empty() {
            warn!(
                event = "routing-rule-ahead",
                rules,
                "a routing rule of another program comes before rolegate's and may route pods' packets to the real metadata service; the \
                 packet rules still guard the node; give that rule a preference above 0"
            );
        }
    }

    fn log_repair(&mut self, differences: Vec<String>) {
        let joined = differences.join("; ");
        let Some(repairs) = self.logged.count(differences) else { return };
        // The repairs since the previous log line.
        let repeated = repairs - 1;
        warn!(
            event = "routing-rules-repaired",
            differences = joined,
            repeated,
            "something changed the routing rules; repaired them; if this repeats, find the program that changes them \
             (systemd-networkd needs ManageForeignRoutingPolicyRules=no)"
        );
    }
}

/// Returns the name of an address family in data.
fn short_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// Removes the rules of a daemon that was configured otherwise.
pub async fn withdraw() {
    for (_, result) in remove().await {
        match result {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                info!(
                    event = "routing-rules-removed",
                    removed = removed.join("; "),
                    "removed routing rules because of --redirect-routing-rules=false; the packet rules guard the node"
                );
            }
            Err(error) => {
                warn!(
                    event = "routing-rules-failed",
                    error = chain(&error),
                    advice = error.advice().as_deref(),
                    "cannot remove the routing rules, although --redirect-routing-rules=false turns them off; leaving them in place"
                );
            }
        }
    }
}

/// A subscription to changes of routing rules in the network namespace in which it was opened.
#[derive(Debug)]
struct RuleChanges(AsyncFd<Notifications>);

impl RuleChanges {
    fn open() -> io::Result<Self> {
        let notifications = Notifications::open(RULE_GROUPS, QUEUE)?;
        // The replacement is unsafe because some types close their descriptor too early. This one does not.
        #[allow(deprecated, reason = "the descriptor stays open until it is dropped, which is after its registration ends")]
        AsyncFd::new(notifications).map(Self)
    }

    /// Returns when something has changed since the last return. Changes that arrive together count as one, and rolegate's own
    /// changes are included. Cancel safe.
    async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            // The content of a notification is ignored, so it may be truncated.
            let (mut rest, mut changed) = ([0; 64], false);
            for _ in 0..MAX_NOTIFICATIONS {
                match ready.get_inner().next(&mut rest) {
                    Ok(Some(_)) => changed = true,
                    Ok(None) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => changed = true,
                    Err(error) => return Err(error),
                }
            }
            if changed {
                return Ok(());
            }
        }
    }
}

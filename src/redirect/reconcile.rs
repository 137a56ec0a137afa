//! Reconciles the packet rules: installs them, compares them regularly, and repairs changes that others make.
//!
//! The rules are compared on an interval, and soon after the kernel reports that some process changed rules. Other programs
//! change their rules in bursts (a Service with a thousand endpoints), and each comparison runs a program. Notifications are
//! therefore gathered for a moment, and there is a pause between comparisons. Our own repair is also reported: it causes one
//! more comparison, which finds no difference.
//!
//! If two daemons want different rules, the later one owns them while it lives: see [`ownership`](super::ownership). The
//! earlier one does not restore its own rules, so the two do not overwrite each other in turn. It leaves the later daemon's
//! rules alone only if they are complete, lead to another daemon, and stand behind a guard; or if the later daemon restores
//! them itself. A later daemon that hangs therefore does not prevent repairs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::observed::ObservedRules;
use super::rules::{DirectConnections, RuleSet, Targets};
use super::{Backend, RedirectError};
use crate::advice::{Advise as _, chain};
use crate::backoff::Backoff;
use crate::config::InterfaceMatch;
use crate::log_once::{EachKey, LOG_EVERY, WhenFull};
use crate::metrics::{ComparedRules, Metrics, RuleKind, RuleState};
use crate::readiness::{RULES_REPAIRED, Readiness, ReadinessStep};

/// How long notifications of changes are gathered before the rules are compared.
const GATHER: Duration = Duration::from_millis(100);
/// The minimum pause between two comparisons.
const PAUSE: Duration = Duration::from_secs(1);
/// The number of consecutive failed comparisons after which the state of the rules counts as unknown.
const FAILURES: u32 = 3;
/// The difference that is reported if the guard is missing.
const NO_GUARD: &str = "the guard rules, or those for Pod Identity, are missing, or other rules come before them";

/// What the reconciler needs besides the backend.
pub trait ReconcilerEnvironment: Send {
    /// Returns when a process has changed packet rules; never, if changes are not reported. Cancel safe.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// Ends pods' connections that are older than the rules and do not lead where the rules send them, and returns how many there were.
    fn forget(&mut self, rules: &RuleSet) -> impl Future<Output = Result<u64, RedirectError>> + Send;

    /// Announces to the other daemons of this node that this daemon owns the rules. Called once the rules are installed.
    fn claim(&mut self);

    /// Returns whether a daemon that was started later has installed rules of its own and still runs.
    fn is_succeeded(&mut self) -> bool;
}

/// Keeps the packet rules as wanted.
#[derive(Debug)]
pub struct Reconciler<B, S> {
    backend: Arc<B>,
    environment: S,
    interval: Duration,
    metrics: Metrics,
    readiness: Readiness,
    wanted: WantedRules,
    state: RulesState,
    /// Held while the rules are wrong, which makes the daemon not ready.
    waiting: Option<ReadinessStep>,
    /// The number of consecutive failures.
    failures: u32,
    /// The repair that was last logged.
    logged: EachKey<Vec<String>>,
    /// The differences that were last repaired while a later daemon was alive, and when.
    taken_back: Option<(Vec<String>, Instant)>,
    /// Whether rules have changed since they were last compared.
    heard: bool,
}

/// What is known about the rules before their targets are known.
#[derive(Clone, Debug)]
pub struct Like {
    /// The interfaces that the rules match.
    pub interfaces: Vec<InterfaceMatch>,
    /// What happens to connections straight to the app port.
    pub direct: DirectConnections,
    /// The addresses of Pod Identity, of which the rules are placed together with the guard.
    pub pod_identity: BTreeSet<SocketAddr>,
    /// How often the rules are compared.
    pub interval: Duration,
}

/// The rules that are to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum WantedRules {
    /// At least the guard and the rules of Pod Identity, and the rules that are already there. A repair uses these settings: which
    /// interfaces are redirected, and what happens to connections straight to the app port.
    Guard { interfaces: Vec<InterfaceMatch>, direct: DirectConnections, pod_identity: BTreeSet<SocketAddr> },
    /// Exactly these rules.
    Exactly(RuleSet),
}

/// The state of the rules, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RulesState {
    /// The rules are as wanted.
    AsWanted,
    /// The rules could not be compared, for this reason.
    Unknown(String),
    /// The rules are wrong and could not be repaired, for this reason.
    Wrong(String),
    /// The rules are those of another daemon.
    AnotherDaemons,
}

/// The result of a comparison.
enum RulesComparison {
    AsWanted,
    /// The differences, and the rules that repair them.
    Different(Vec<String>, RuleSet),
    AnotherDaemons(Vec<String>),
}

impl<B: Backend, S: ReconcilerEnvironment> Reconciler<B, S> {
    /// Creates a reconciler that wants the guard at first, on a node that may already have such rules.
    pub fn new(backend: Arc<B>, environment: S, like: Like, metrics: Metrics, readiness: Readiness) -> Self {
        let Like { interfaces, direct, pod_identity, interval } = like;
        Self {
            backend,
            environment,
            interval,
            metrics,
            readiness,
            wanted: WantedRules::Guard { interfaces, direct, pod_identity },
            state: RulesState::AsWanted,
            waiting: None,
            failures: 0,
            logged: EachKey::new(LOG_EVERY, 1, WhenFull::ForgetAll),
            taken_back: None,
            heard: false,
        }
    }

    /// Installs the guard if it is missing. Rules that already serve pods stay as they are.
    ///
    /// # Errors
    /// If the guard cannot be installed: the node may be open.
    pub async fn guard(&mut self) -> Result<(), RedirectError> {
        let backend = self.backend.name();
        match self.backend.observed().await {
            Ok(observed) if observed.is_guarded_with(self.pod_identity()) => {
                info!(
                    event = "guard-in-place",
                    backend,
                    "the guard (rules that reject metadata requests that do not go to rolegate) is already in place; pods cannot reach the \
                     real metadata service"
                );
                return Ok(());
            }
            Ok(observed) => self.backend.install(&self.repair(&observed)).await?,
            // One family may be open, so the guard is installed all the same.
            Err(_) => self.backend.install(&self.repair(&ObservedRules::default())).await?,
        }
        info!(
            event = "guard-in-place",
            backend,
            "placed the guard (rules that reject metadata requests that do not go to rolegate); pods cannot reach the real metadata service"
        );
        Ok(())
    }

    /// Replaces the installed rules with these in one step, retrying until that succeeds; the guard stays in place meanwhile.
    /// Then ends the connections that were opened before the rules. Waits while a later daemon has rules of its own in place.
    pub async fn place(&mut self, rules: RuleSet) {
        let targets = rules.targets;
        self.wanted = WantedRules::Exactly(rules);
        while let Err(pause) = self.try_to_place().await {
            self.wait(pause).await;
        }
        self.environment.claim();
        let (backend, ipv4) = (self.backend.name(), targets.and_then(|targets| targets.ipv4).map(|ipv4| ipv4.to_string()));
        let ipv6 = targets.and_then(|targets| targets.ipv6).map(|ipv6| ipv6.to_string());
        info!(event = "rules-in-place", backend, ipv4, ipv6, "placed the packet rules; pods' metadata requests reach this daemon");
        self.forget().await;
    }

    /// Reconciles the rules forever.
    pub async fn reconcile(&mut self) {
        let mut pause = self.interval;
        loop {
            self.wait(pause).await;
            pause = self.check().await;
        }
    }

    /// Reconciles the rules until `work` is done. A repair that has begun by then is finished first.
    pub async fn reconcile_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut pause = self.interval;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.wait(pause) => {}
            }
            let mut check = std::pin::pin!(self.check());
            pause = tokio::select! {
                biased;
                done = &mut work => {
                    check.await;
                    return done;
                }
                pause = &mut check => pause,
            };
        }
    }

    /// Waits until the next comparison is due: after `pause`, soon after a change, or after the daemon that owns the rules has
    /// ended. If it is cancelled, no change is lost.
    async fn wait(&mut self, pause: Duration) {
        let compared_at = Instant::now();
        let end = compared_at + pause;
        while !self.heard {
            let look = if self.state == RulesState::AnotherDaemons { end.min(Instant::now() + PAUSE) } else { end };
            tokio::select! {
                () = sleep_until(look) => if look == end || !self.environment.is_succeeded() { return },
                () = self.environment.changed() => self.heard = true,
            }
        }
        let mut gathered = std::pin::pin!(sleep_until((Instant::now() + GATHER).max(compared_at + PAUSE)));
        loop {
            tokio::select! {
                biased;
                () = &mut gathered => return,
                () = self.environment.changed() => {}
            }
        }
    }

    /// Tries to install the rules. If they are not installed afterwards, the error is the time to wait before the next attempt.
    async fn try_to_place(&mut self) -> Result<(), Duration> {
        match self.compare().await {
            Ok(RulesComparison::AsWanted) => {}
            Ok(RulesComparison::AnotherDaemons(differences)) => {
                self.is_another_daemons(&differences);
                return Err(self.interval);
            }
            Ok(RulesComparison::Different(differences, repair)) => {
                self.backend.install(&repair).await.map_err(|error| self.is_wrong(&error, &differences))?;
                if !self.is_all(&repair) {
                    self.is_another_daemons(&differences);
                    return Err(self.interval);
                }
            }
            Err(error) => return Err(self.is_unknown(&error)),
        }
        self.is_as_wanted();
        Ok(())
    }

    /// Compares and repairs once, and returns the time to wait before the next comparison.
    async fn check(&mut self) -> Duration {
        match self.compare().await {
            Ok(RulesComparison::AsWanted) => self.is_as_wanted(),
            Ok(RulesComparison::AnotherDaemons(differences)) => self.is_another_daemons(&differences),
            Ok(RulesComparison::Different(differences, repair)) => {
                let installed = self.backend.install(&repair).await;
                self.metrics.redirect_repaired(installed.is_ok());
                if let Err(error) = installed {
                    return self.is_wrong(&error, &differences);
                }
                self.metrics.rules_repaired(RuleKind::Packet, None);
                self.log_repair(&differences);
                if self.is_all(&repair) {
                    self.is_as_wanted();
                    self.forget().await;
                } else {
                    self.is_another_daemons(&differences);
                }
            }
            Err(error) => {
                self.metrics.redirect_check_failed();
                return self.is_unknown(&error);
            }
        }
        self.interval
    }

    async fn compare(&mut self) -> Result<RulesComparison, RedirectError> {
        self.heard = false;
        let rules = match &self.wanted {
            WantedRules::Guard { pod_identity, .. } => {
                let observed = self.backend.observed().await?;
                return Ok(if observed.is_guarded_with(pod_identity) {
                    RulesComparison::AsWanted
                } else {
                    RulesComparison::Different(vec![NO_GUARD.to_owned()], self.repair(&observed))
                });
            }
            WantedRules::Exactly(rules) => rules.clone(),
        };
        let differences = self.backend.differences(&rules).await?;
        if differences.is_empty() {
            return Ok(RulesComparison::AsWanted);
        }
        if !self.environment.is_succeeded() {
            self.taken_back = None;
            return Ok(RulesComparison::Different(differences, rules));
        }
        let observed = self.backend.observed().await?;
        if observed.targets.is_empty() {
            // The later daemon may have installed its rules through another backend and removed these.
            let elsewhere = self.backend.standing_elsewhere().await;
            if elsewhere.is_guarded() && !elsewhere.targets.is_empty() {
                return Ok(RulesComparison::AnotherDaemons(differences));
            }
        }
        let theirs = observed
            .as_targets(DirectConnections::Dropped)
            .filter(|theirs| rules.targets.is_none_or(|ours| !leads_to_the_same(theirs, &ours)));
        match (observed.is_guarded(), theirs) {
            // The guard is restored, and the redirect that serves pods stays.
            (false, Some(_)) => Ok(RulesComparison::Different(differences, self.repair(&observed))),
            (true, Some(theirs)) if self.are_whole(&rules, theirs, &observed).await? => Ok(RulesComparison::AnotherDaemons(differences)),
            (true, _) if !observed.targets.is_empty() && self.came_back(&differences) => Ok(RulesComparison::AnotherDaemons(differences)),
            _ => {
                self.taken_back = Some((differences.clone(), Instant::now()));
                Ok(RulesComparison::Different(differences, rules))
            }
        }
    }

    /// Returns whether the installed rules with these targets are complete.
    async fn are_whole(&self, rules: &RuleSet, targets: Targets, observed: &ObservedRules) -> Result<bool, RedirectError> {
        for direct in [DirectConnections::Dropped, DirectConnections::Accepted, DirectConnections::Kept] {
            let theirs = RuleSet {
                interfaces: rules.interfaces.clone(),
                targets: Some(Targets { direct, ..targets }),
                pod_identity: observed.pod_identity.clone(),
            };
            if self.backend.differences(&theirs).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether the same differences were repaired a short time ago: then the later daemon is alive and wants them.
    fn came_back(&mut self, differences: &[String]) -> bool {
        let now = Instant::now();
        let taken_back = self.taken_back.as_mut().filter(|(last, at)| *last == differences && now <= *at + self.interval + PAUSE + GATHER);
        taken_back.map(|(_, at)| *at = now).is_some()
    }

    /// Returns the guard together with the redirect that already serves pods, and the rules of Pod Identity: those that are wanted, and
    /// those of another daemon.
    fn repair(&self, observed: &ObservedRules) -> RuleSet {
        let (interfaces, direct) = match &self.wanted {
            WantedRules::Guard { interfaces, direct, .. } => (interfaces, *direct),
            WantedRules::Exactly(rules) => (&rules.interfaces, rules.targets.map_or(DirectConnections::Accepted, |targets| targets.direct)),
        };
        let targets = observed.as_targets(direct);
        let interfaces = if targets.is_some() { interfaces.clone() } else { Vec::new() };
        RuleSet { interfaces, targets, pod_identity: self.pod_identity().union(&observed.pod_identity).copied().collect() }
    }

    fn pod_identity(&self) -> &BTreeSet<SocketAddr> {
        match &self.wanted {
            WantedRules::Guard { pod_identity, .. } | WantedRules::Exactly(RuleSet { pod_identity, .. }) => pod_identity,
        }
    }

    /// Returns whether these rules include everything that is wanted.
    fn is_all(&self, repair: &RuleSet) -> bool {
        match &self.wanted {
            WantedRules::Guard { .. } => true,
            WantedRules::Exactly(rules) => rules == repair,
        }
    }

    async fn forget(&mut self) {
        let WantedRules::Exactly(rules) = &self.wanted else { return };
        match self.environment.forget(rules).await {
            Ok(0) => {}
            Ok(connections) => {
                self.metrics.redirect_forgot(connections);
                info!(
                    event = "earlier-connections-closed",
                    connections, "closed connections that were open before the packet rules and did not lead to this daemon"
                );
            }
            Err(error) => warn!(
                event = "earlier-connections-not-closed",
                error = chain(&error),
                advice = error.advice().as_deref(),
                "cannot close connections that were open before the packet rules; the guard rejects packets to the real metadata service, but \
                 connections to the daemon that another program redirected stay open"
            ),
        }
    }

    fn is_as_wanted(&mut self) {
        if self.state != RulesState::AsWanted {
            info!(event = "rules-correct-again", "the packet rules are correct again");
        }
        self.enter(RulesState::AsWanted);
        self.failures = 0;
        let is_all = matches!(self.wanted, WantedRules::Exactly(_));
        self.observed(if is_all { RuleState::InPlace } else { RuleState::Guarded });
        self.metrics.redirect_in_place(matches!(self.wanted, WantedRules::Exactly(_)));
        if let Some(waiting) = self.waiting.take() {
            waiting.done();
        }
    }

    fn is_another_daemons(&mut self, differences: &[String]) {
        if self.enter(RulesState::AnotherDaemons) {
            let differences = differences.join("; ");
            warn!(
                event = "rules-of-newer-daemon",
                differences,
                "a newer rolegate daemon on this node owns the packet rules; leaving them alone, not ready; this is normal during an \
                 update: otherwise make sure that only one daemon runs on the node"
            );
        }
        self.failures = 0;
        self.observed(RuleState::AnotherDaemons);
        self.not_ready();
    }

    /// Records the state for the status page. Both families are compared together.
    fn observed(&self, state: RuleState) {
        let targets = match &self.wanted {
            WantedRules::Exactly(RuleSet { targets: Some(targets), .. }) => {
                (targets.ipv4.map(SocketAddr::from), targets.ipv6.map(SocketAddr::from))
            }
            WantedRules::Exactly(_) | WantedRules::Guard { .. } => (None, None),
        };
        for (family, redirects_to) in [("ipv4", targets.0), ("ipv6", targets.1)] {
            let (kind, backend, family) = (RuleKind::Packet, self.backend.name(), Some(family));
            self.metrics.rules_compared(ComparedRules { kind, backend, family, redirects_to, state });
        }
    }

    fn is_wrong(&mut self, error: &RedirectError, differences: &[String]) -> Duration {
        if self.enter(RulesState::Wrong(chain(error))) {
            error!(
                event = "rules-repair-failed",
                differences = differences.join("; "),
                error = chain(error),
                advice = error.advice().as_deref(),
                "cannot repair the packet rules; not ready, retrying; pods may reach the real metadata service"
            );
        }
        self.observed(RuleState::Wrong);
        self.not_ready();
        self.backoff()
    }

    fn is_unknown(&mut self, error: &RedirectError) -> Duration {
        if self.enter(RulesState::Unknown(chain(error))) {
            warn!(
                event = "rules-unreadable",
                error = chain(error),
                advice = error.advice().as_deref(),
                "cannot read the packet rules; retrying, not ready after {FAILURES} failures in a row"
            );
        }
        self.observed(RuleState::Unknown);
        if self.failures + 1 >= FAILURES {
            self.not_ready();
        }
        self.backoff()
    }

    /// Enters this state, and returns whether it differs from the previous one.
    fn enter(&mut self, state: RulesState) -> bool {
        let is_new = self.state != state;
        self.state = state;
        is_new
    }

    fn not_ready(&mut self) {
        self.metrics.redirect_in_place(false);
        if self.waiting.is_none() {
            self.waiting = Some(self.readiness.step(RULES_REPAIRED));
        }
    }

    /// Returns the time before the next attempt: one second at first, doubling with each failure up to the interval.
    fn backoff(&mut self) -> Duration {
        let pause = Backoff::new(PAUSE, self.interval.max(PAUSE)).pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    fn log_repair(&mut self, differences: &[String]) {
        let Some(repairs) = self.logged.count(differences.to_vec()) else { return };
        // The repairs since the previous log line.
        let repeated = repairs - 1;
        warn!(
            event = "rules-repaired",
            differences = differences.join("; "),
            repeated,
            "something changed the packet rules; repaired them; if this repeats, find the program that changes them"
        );
    }
}

/// Returns whether both send requests to the same place, for the families that both have.
fn leads_to_the_same(one: &Targets, other: &Targets) -> bool {
    (one.ipv4, one.ipv6) == (other.ipv4, other.ipv6)
}

#[cfg(test)]
mod tests;

//! Keeps the packet rules true: puts them in place, compares them again and again, and repairs what somebody changed.
//!
//! They are compared on an interval, and soon after the kernel says that somebody changed rules. Others change theirs in
//! storms (a Service with a thousand endpoints), and a comparison is a program that runs: so notices are gathered for a moment,
//! and comparisons have a pause between them. Our own repair is such a change, too: it is looked at once more, and nothing
//! differs then.
//!
//! Of two daemons that want different rules, the one that started later has its way while it lives: see
//! [`others`](super::ownership). Nothing is taken back from it, so nothing is taken back and forth. But only whole rules are
//! left to it, that lead elsewhere, behind a guard that stands; and others if it puts them back itself. One that hangs keeps
//! nobody from repairing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::observed::ObservedRules;
use super::rules::{RuleSet, Targets};
use super::{Backend, RedirectError};
use crate::backoff::Backoff;
use crate::config::InterfaceMatch;
use crate::log_once::{EachKey, WhenFull};
use crate::metrics::Metrics;
use crate::readiness::{Readiness, ReadinessStep};

/// Notices of changes are gathered for so long before the rules are compared.
const GATHER: Duration = Duration::from_millis(100);
/// Pause between two comparisons, at least.
const PAUSE: Duration = Duration::from_secs(1);
/// The same repair is logged once in this time.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// After so many comparisons in a row that failed, nobody knows what the rules are.
const FAILURES: u32 = 3;
/// What readiness waits for while the rules are wrong.
const STEP: &str = "the repair of the packet rules";
/// What differs where that is missing which is wanted in any case.
const NO_GUARD: &str = "the guard is not there, or not ahead of everything";

/// What the reconciler needs besides the rules' backend.
pub trait ReconcilerEnvironment: Send {
    /// Returns when somebody has changed packet rules; never where that cannot be told. It may be left at any time.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// Ends pods' connections to the metadata address that are older than the rules, and says how many these were.
    fn forget(&mut self, targets: &Targets) -> impl Future<Output = Result<u64, RedirectError>> + Send;

    /// Says to other daemons of this node that the rules are ours now. They are.
    fn claim(&mut self);

    /// Whether a daemon that was started later has put rules of its own in place, and lives.
    fn is_succeeded(&mut self) -> bool;
}

/// What keeps the rules true.
#[derive(Debug)]
pub struct Reconciler<B, S> {
    backend: Arc<B>,
    environment: S,
    interval: Duration,
    metrics: Metrics,
    readiness: Readiness,
    wanted: WantedRules,
    state: RulesState,
    /// Readiness waits for the end of a state that is wrong.
    waiting: Option<ReadinessStep>,
    /// How often in a row something has failed.
    failures: u32,
    /// The repair that was logged last.
    logged: EachKey<Vec<String>>,
    /// What was last taken back although a later daemon lives, and when.
    taken_back: Option<(Vec<String>, Instant)>,
    /// Somebody has changed rules since they were last compared.
    heard: bool,
}

/// What is known of the rules before it is known where they lead to.
#[derive(Clone, Debug)]
pub struct Like {
    /// The interfaces that they match.
    pub interfaces: Vec<InterfaceMatch>,
    /// Whether connections straight to the app port are dropped.
    pub refuse_direct: bool,
    /// How often they are compared.
    pub interval: Duration,
}

/// What is to be in place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum WantedRules {
    /// The guard at least, and what else is there already. Where that has to be mended, it is by these: which interfaces are
    /// redirected, and whether connections straight to the app port are dropped.
    Guard { interfaces: Vec<InterfaceMatch>, refuse_direct: bool },
    /// Exactly these.
    Exactly(RuleSet),
}

/// What is known of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RulesState {
    /// They are as wanted.
    AsWanted,
    /// They could not be compared, and this is why.
    Unknown(String),
    /// They are wrong and could not be repaired, and this is why.
    Wrong(String),
    /// They are those of another daemon.
    AnotherDaemons,
}

/// What a comparison found.
enum RulesComparison {
    AsWanted,
    /// These differ, and this repairs them.
    Different(Vec<String>, RuleSet),
    AnotherDaemons(Vec<String>),
}

impl<B: Backend, S: ReconcilerEnvironment> Reconciler<B, S> {
    /// One that wants the guard at first, on a node that may have rules of ours like these already.
    pub fn new(backend: Arc<B>, environment: S, like: Like, metrics: Metrics, readiness: Readiness) -> Self {
        let Like { interfaces, refuse_direct, interval } = like;
        Self {
            backend,
            environment,
            interval,
            metrics,
            readiness,
            wanted: WantedRules::Guard { interfaces, refuse_direct },
            state: RulesState::AsWanted,
            waiting: None,
            failures: 0,
            logged: EachKey::new(LOG_AGAIN, 1, WhenFull::ForgetAll),
            taken_back: None,
            heard: false,
        }
    }

    /// Puts the guard in place where there is none. Rules that serve pods already stay as they are.
    ///
    /// # Errors
    /// If that fails: the node may be open.
    pub async fn guard(&mut self) -> Result<(), RedirectError> {
        let backend = self.backend.name();
        match self.backend.observed().await {
            Ok(observed) if observed.is_guarded() => {
                info!(event = "guard-in-place", backend, "the guard is already in place; pods cannot reach the real metadata service");
                return Ok(());
            }
            Ok(observed) => self.backend.install(&self.repair(&observed)).await?,
            // One family may be there to be closed all the same.
            Err(_) => self.backend.install(&RuleSet::guard_alone()).await?,
        }
        info!(event = "guard-in-place", backend, "placed the guard; pods cannot reach the real metadata service");
        Ok(())
    }

    /// Puts these rules in place instead of what was there, in one step, and tries until that is done; the guard is kept
    /// meanwhile. What was open before them is ended then. While a later daemon has rules of its own in place it waits.
    pub async fn place(&mut self, rules: RuleSet) {
        let targets = rules.targets;
        self.wanted = WantedRules::Exactly(rules);
        while let Err(pause) = self.try_to_place().await {
            self.wait(pause).await;
        }
        self.environment.claim();
        let (backend, ipv4) = (self.backend.name(), targets.map(|targets| targets.ipv4.to_string()));
        let ipv6 = targets.and_then(|targets| targets.ipv6).map(|ipv6| ipv6.to_string());
        info!(event = "rules-in-place", backend, ipv4, ipv6, "placed the packet rules; pods' metadata requests reach this daemon");
        self.forget().await;
    }

    /// Looks after them for ever.
    pub async fn reconcile(&mut self) {
        let mut pause = self.interval;
        loop {
            self.wait(pause).await;
            pause = self.check().await;
        }
    }

    /// Looks after them until this is done. A repair that was begun by then is finished first.
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

    /// Until the next comparison: so long, or until soon after a change, or after the end of the daemon that has the rules. Left
    /// before that, it forgets no change.
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

    /// If the rules are not in place then: how long to wait before it is tried again.
    async fn try_to_place(&mut self) -> Result<(), Duration> {
        match self.compare().await {
            Ok(RulesComparison::AsWanted) => {}
            Ok(RulesComparison::AnotherDaemons(differences)) => {
                self.is_another_daemons(&differences);
                return Err(self.interval);
            }
            Ok(RulesComparison::Different(differences, repair)) => {
                self.backend.install(&repair).await.map_err(|error| self.is_wrong(&error))?;
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

    /// Compares and repairs once, and says how long to wait before the next time.
    async fn check(&mut self) -> Duration {
        match self.compare().await {
            Ok(RulesComparison::AsWanted) => self.is_as_wanted(),
            Ok(RulesComparison::AnotherDaemons(differences)) => self.is_another_daemons(&differences),
            Ok(RulesComparison::Different(differences, repair)) => {
                let installed = self.backend.install(&repair).await;
                self.metrics.redirect_repaired(installed.is_ok());
                if let Err(error) = installed {
                    return self.is_wrong(&error);
                }
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
            WantedRules::Guard { .. } => {
                let observed = self.backend.observed().await?;
                return Ok(if observed.is_guarded() {
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
            // The later daemon may have its rules by another backend, and have removed these.
            let elsewhere = self.backend.standing_elsewhere().await;
            if elsewhere.is_guarded() && !elsewhere.targets.is_empty() {
                return Ok(RulesComparison::AnotherDaemons(differences));
            }
        }
        let theirs = observed.as_targets(true).filter(|theirs| rules.targets.is_none_or(|ours| !leads_to_the_same(theirs, &ours)));
        match (observed.is_guarded(), theirs) {
            // The guard is put back, and what serves pods stays.
            (false, Some(_)) => Ok(RulesComparison::Different(differences, self.repair(&observed))),
            (true, Some(theirs)) if self.are_whole(&rules, theirs).await? => Ok(RulesComparison::AnotherDaemons(differences)),
            (true, _) if !observed.targets.is_empty() && self.came_back(&differences) => Ok(RulesComparison::AnotherDaemons(differences)),
            _ => {
                self.taken_back = Some((differences.clone(), Instant::now()));
                Ok(RulesComparison::Different(differences, rules))
            }
        }
    }

    /// Whether nothing is missing of the rules that lead there.
    async fn are_whole(&self, rules: &RuleSet, targets: Targets) -> Result<bool, RedirectError> {
        for refuse_direct in [true, false] {
            let theirs = RuleSet { interfaces: rules.interfaces.clone(), targets: Some(Targets { refuse_direct, ..targets }) };
            if self.backend.differences(&theirs).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether just these were taken back a short time ago: the later daemon is alive, and wants them.
    fn came_back(&mut self, differences: &[String]) -> bool {
        let now = Instant::now();
        let taken_back = self.taken_back.as_mut().filter(|(last, at)| *last == differences && now <= *at + self.interval + PAUSE + GATHER);
        taken_back.map(|(_, at)| *at = now).is_some()
    }

    /// The guard, with what serves pods already.
    fn repair(&self, observed: &ObservedRules) -> RuleSet {
        let (interfaces, refuse_direct) = match &self.wanted {
            WantedRules::Guard { interfaces, refuse_direct } => (interfaces, *refuse_direct),
            WantedRules::Exactly(rules) => (&rules.interfaces, rules.targets.is_some_and(|targets| targets.refuse_direct)),
        };
        let targets = observed.as_targets(refuse_direct);
        RuleSet { interfaces: if targets.is_some() { interfaces.clone() } else { Vec::new() }, targets }
    }

    /// Whether nothing is wanted that is not among these.
    fn is_all(&self, repair: &RuleSet) -> bool {
        match &self.wanted {
            WantedRules::Guard { .. } => true,
            WantedRules::Exactly(rules) => rules == repair,
        }
    }

    async fn forget(&mut self) {
        let WantedRules::Exactly(RuleSet { targets: Some(targets), .. }) = &self.wanted else { return };
        match self.environment.forget(targets).await {
            Ok(0) => {}
            Ok(connections) => {
                self.metrics.redirect_forgot(connections);
                info!(
                    event = "earlier-connections-closed",
                    connections, "closed pods' connections to the real metadata service that were open before the packet rules"
                );
            }
            Err(error) => warn!(
                event = "earlier-connections-not-closed", %error,
                "cannot close connections that were open before the packet rules; the guard rejects their packets"
            ),
        }
    }

    fn is_as_wanted(&mut self) {
        if self.state != RulesState::AsWanted {
            info!(event = "rules-correct-again", "the packet rules are correct again");
        }
        self.enter(RulesState::AsWanted);
        self.failures = 0;
        self.metrics.redirect_in_place(matches!(self.wanted, WantedRules::Exactly(_)));
        if let Some(waiting) = self.waiting.take() {
            waiting.done();
        }
    }

    fn is_another_daemons(&mut self, differences: &[String]) {
        if self.enter(RulesState::AnotherDaemons) {
            let differences = differences.join("; ");
            warn!(event = "rules-of-newer-daemon", differences, "a newer daemon owns the packet rules; standing by, not ready");
        }
        self.failures = 0;
        self.not_ready();
    }

    fn is_wrong(&mut self, error: &RedirectError) -> Duration {
        let text = error.to_string();
        if self.enter(RulesState::Wrong(text.clone())) {
            error!(event = "rules-repair-failed", error = text, "the packet rules are wrong and cannot be repaired; not ready, retrying");
        }
        self.not_ready();
        self.backoff()
    }

    fn is_unknown(&mut self, error: &RedirectError) -> Duration {
        let text = error.to_string();
        if self.enter(RulesState::Unknown(text.clone())) {
            warn!(event = "rules-unreadable", error = text, "cannot read the packet rules; retrying");
        }
        if self.failures + 1 >= FAILURES {
            self.not_ready();
        }
        self.backoff()
    }

    /// Whether this state is another than the one before.
    fn enter(&mut self, state: RulesState) -> bool {
        let is_new = self.state != state;
        self.state = state;
        is_new
    }

    fn not_ready(&mut self) {
        self.metrics.redirect_in_place(false);
        if self.waiting.is_none() {
            self.waiting = Some(self.readiness.step(STEP));
        }
    }

    /// One second at first, then twice as long each time, and never longer than the interval.
    fn backoff(&mut self) -> Duration {
        let pause = Backoff::new(PAUSE, self.interval.max(PAUSE)).pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    fn log_repair(&mut self, differences: &[String]) {
        let Some(repairs) = self.logged.count(differences.to_vec()) else { return };
        // Those since the line before.
        let repeated = repairs - 1;
        warn!(
            event = "rules-repaired",
            differences = differences.join("; "),
            repeated,
            "something changed the packet rules; repaired them; if this repeats, find the program that changes them"
        );
    }
}

/// Whether requests come to the same place, as far as both say.
fn leads_to_the_same(one: &Targets, other: &Targets) -> bool {
    (one.ipv4, one.ipv6) == (other.ipv4, other.ipv6)
}

#[cfg(test)]
mod tests;

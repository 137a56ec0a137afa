#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::*;
use crate::redirect::observed::ObservedRules;
use crate::redirect::rules::Family;

const INTERVAL: Duration = Duration::from_secs(30);

/// A fake kernel: its rules, and a record of what was done to them.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<Inner>>, Arc<Notify>);

#[derive(Default)]
struct Inner {
    rules: Option<RuleSet>,
    installed: usize,
    compared: Vec<Instant>,
    held: bool,
    /// Whether another program's rule is ahead of the guard.
    pushed: bool,
    blind: bool,
    succeeded: bool,
    forgotten: usize,
    claimed: bool,
    /// Whether another backend has complete rules of rolegate.
    elsewhere: bool,
}

impl Kernel {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Changes the rules as another program would, and notifies the reconciler.
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner());
        self.1.notify_one();
    }

    /// Returns whether the rules were claimed, and how often connections were ended.
    fn done(&self) -> (bool, usize) {
        let inner = self.inner();
        (inner.claimed, inner.forgotten)
    }

    fn read(&self) -> Result<Option<RuleSet>, RedirectError> {
        let mut inner = self.inner();
        inner.compared.push(Instant::now());
        if inner.blind { Err(refused("no list")) } else { Ok(inner.rules.clone()) }
    }
}

fn refused(message: &str) -> RedirectError {
    RedirectError::Failed { program: "nft", message: message.to_owned() }
}

impl Backend for Kernel {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn render(&self, rules: &RuleSet) -> String {
        format!("{rules:?}")
    }

    async fn install(&self, rules: &RuleSet) -> Result<(), RedirectError> {
        if self.inner().held {
            return Err(refused("the lock is held"));
        }
        self.change(|inner| {
            (inner.rules, inner.pushed) = (Some(rules.clone()), false);
            inner.installed += 1;
        });
        Ok(())
    }

    async fn differences(&self, rules: &RuleSet) -> Result<Vec<String>, RedirectError> {
        let found = self.read()?;
        let pushed = self.inner().pushed;
        Ok(if found.as_ref() == Some(rules) && !pushed { Vec::new() } else { vec![format!("{found:?}, {pushed}")] })
    }

    async fn standing_elsewhere(&self) -> ObservedRules {
        let targets = ["10.0.0.1:8181".parse().unwrap()].into();
        if self.inner().elsewhere { ObservedRules { targets, ..ObservedRules::guarding(Family::ALL) } } else { ObservedRules::default() }
    }

    async fn observed(&self) -> Result<ObservedRules, RedirectError> {
        let rules = self.read()?;
        let guarded = if rules.is_some() && !self.inner().pushed { Family::ALL.to_vec() } else { Vec::new() };
        let pod_identity = rules.as_ref().map(|rules| rules.pod_identity.clone()).unwrap_or_default();
        let targets = rules.and_then(|rules| rules.targets).and_then(|targets| targets.ipv4).map(SocketAddr::from);
        Ok(ObservedRules { targets: targets.into_iter().collect(), pod_identity, ..ObservedRules::guarding(guarded) })
    }

    async fn remove(&self) -> Result<Vec<String>, RedirectError> {
        Ok(self.inner().rules.take().map(|_| "the table".to_owned()).into_iter().collect())
    }
}

impl ReconcilerEnvironment for Kernel {
    async fn changed(&mut self) {
        self.1.notified().await;
    }

    async fn forget(&mut self, _rules: &RuleSet) -> Result<u64, RedirectError> {
        self.inner().forgotten += 1;
        Ok(3)
    }

    fn claim(&mut self) {
        self.inner().claimed = true;
    }

    fn is_succeeded(&mut self) -> bool {
        self.inner().succeeded
    }
}

struct Bed {
    kernel: Kernel,
    metrics: Metrics,
    readiness: Readiness,
    reconciler: Reconciler<Kernel, Kernel>,
}

fn rules() -> RuleSet {
    let targets = Targets { ipv4: "10.0.0.1:8181".parse().ok(), ipv6: None, direct: DirectConnections::Dropped };
    RuleSet { targets: Some(targets), ..RuleSet::guard_alone() }
}

/// Returns these rules with those of Pod Identity at this address.
fn with_pod_identity(address: &str, rules: RuleSet) -> RuleSet {
    RuleSet { pod_identity: [address.parse().unwrap()].into(), ..rules }
}

fn bed() -> Bed {
    bed_with(BTreeSet::new())
}

fn bed_with(pod_identity: BTreeSet<SocketAddr>) -> Bed {
    let (kernel, metrics, readiness) = (Kernel::default(), Metrics::new(), Readiness::default());
    let like = Like { interfaces: Vec::new(), direct: DirectConnections::Dropped, pod_identity, interval: INTERVAL };
    let reconciler = Reconciler::new(Arc::new(kernel.clone()), kernel.clone(), like, metrics.clone(), readiness.clone());
    Bed { kernel, metrics, readiness, reconciler }
}

/// A reconciler that has installed its rules and has processed the notification of its own change.
struct Kept {
    kernel: Kernel,
    metrics: Metrics,
    readiness: Readiness,
    work: tokio::task::JoinHandle<()>,
}

async fn kept() -> Kept {
    let Bed { kernel, metrics, readiness, mut reconciler } = bed();
    reconciler.place(rules()).await;
    let work = tokio::spawn(async move { reconciler.reconcile().await });
    sleep(Duration::from_secs(5)).await;
    kernel.inner().compared.clear();
    Kept { kernel, metrics, readiness, work }
}

impl Kept {
    fn metric(&self, line: &str) -> bool {
        String::from_utf8_lossy(&self.metrics.render()).lines().any(|found| found == line)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.work.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_guard_is_installed_and_serving_rules_stay() {
    let mut bed = bed();
    bed.reconciler.guard().await.unwrap();
    assert_eq!(bed.kernel.inner().rules, Some(RuleSet::guard_alone()));
    bed.reconciler.guard().await.unwrap();
    assert_eq!(bed.kernel.inner().installed, 1, "the guard is in place");
    bed.kernel.inner().rules = Some(rules());
    bed.reconciler.guard().await.unwrap();
    assert_eq!(bed.kernel.inner().rules, Some(rules()), "a restart leaves the rules that serve pods");
    bed.kernel.inner().pushed = true;
    bed.reconciler.guard().await.unwrap();
    let found = {
        let inner = bed.kernel.inner();
        (inner.installed, inner.pushed)
    };
    assert_eq!(found, (2, false));
    assert_eq!(bed.kernel.inner().rules, Some(rules()), "a repair of the guard leaves them, too");
    assert!(!bed.kernel.inner().claimed, "another daemon still owns the rules");
}

#[tokio::test(start_paused = true)]
async fn the_guard_is_repaired_while_the_targets_are_unknown() {
    let mut bed = bed();
    bed.reconciler.guard().await.unwrap();
    bed.kernel.change(|inner| inner.rules = None);
    tokio::select! {
        () = bed.reconciler.reconcile() => {}
        () = sleep(Duration::from_millis(1500)) => {}
    }
    assert_eq!(bed.kernel.inner().rules, Some(RuleSet::guard_alone()));
    assert!(String::from_utf8_lossy(&bed.metrics.render()).contains("rolegate_redirect_in_place 0\n"));
}

/// The addresses are assigned to the node soon after: from then on, other programs' rules apply to them.
#[tokio::test(start_paused = true)]
async fn the_rules_of_pod_identity_are_placed_with_the_guard() {
    const OURS: &str = "169.254.170.23:80";
    for present in [None, Some(RuleSet::guard_alone()), Some(rules())] {
        let mut bed = bed_with([OURS.parse().unwrap()].into());
        bed.kernel.inner().rules = present.clone();
        bed.reconciler.guard().await.unwrap();
        let wanted = with_pod_identity(OURS, present.unwrap_or_else(RuleSet::guard_alone));
        assert_eq!(bed.kernel.inner().rules, Some(wanted.clone()));
        // They are repaired as well.
        let kernel = bed.kernel.clone();
        kernel.change(|inner| inner.rules.as_mut().unwrap().pod_identity.clear());
        bed.reconciler.reconcile_during(sleep(PAUSE + GATHER)).await;
        assert_eq!(kernel.inner().rules, Some(wanted));
    }
    // Nothing can be read.
    let mut bed = bed_with([OURS.parse().unwrap()].into());
    bed.kernel.inner().blind = true;
    bed.reconciler.guard().await.unwrap();
    assert_eq!(bed.kernel.inner().rules, Some(with_pod_identity(OURS, RuleSet::guard_alone())));
}

/// A daemon without Pod Identity starts beside one that still serves it.
#[tokio::test(start_paused = true)]
async fn a_repair_of_the_guard_leaves_another_daemons_rules_of_pod_identity() {
    let theirs = with_pod_identity("169.254.170.23:80", rules());
    let mut bed = bed();
    bed.kernel.change(|inner| (inner.rules, inner.pushed) = (Some(theirs.clone()), true));
    bed.reconciler.guard().await.unwrap();
    assert!(!bed.kernel.inner().pushed);
    assert_eq!(bed.kernel.inner().rules, Some(theirs));
    bed.reconciler.place(rules()).await;
    assert_eq!(bed.kernel.inner().rules, Some(rules()));
}

/// The later daemon serves Pod Identity, and its rules are complete.
#[tokio::test(start_paused = true)]
async fn a_later_daemons_rules_of_pod_identity_are_left_alone() {
    let kept = kept().await;
    let theirs = with_pod_identity("169.254.170.23:80", theirs());
    kept.kernel.change(|inner| (inner.rules, inner.succeeded) = (Some(theirs.clone()), true));
    sleep(INTERVAL).await;
    assert_eq!(kept.kernel.inner().rules, Some(theirs));
    assert_eq!(kept.readiness.pending(), [RULES_REPAIRED]);
}

#[tokio::test(start_paused = true)]
async fn rules_that_are_in_place_are_not_installed_again() {
    let mut bed = bed();
    bed.kernel.inner().rules = Some(rules());
    bed.reconciler.place(rules()).await;
    let inner = bed.kernel.inner();
    assert_eq!((inner.installed, inner.claimed, inner.forgotten), (0, true, 1));
}

#[tokio::test(start_paused = true)]
async fn placing_rules_waits_while_the_lock_is_held() {
    let mut bed = bed();
    bed.kernel.inner().held = true;
    let kernel = bed.kernel.clone();
    let (_, ()) = tokio::join!(bed.reconciler.place(rules()), async {
        sleep(Duration::from_secs(60)).await;
        assert_eq!(bed.readiness.pending(), [RULES_REPAIRED]);
        kernel.inner().held = false;
    });
    assert_eq!(bed.kernel.inner().rules, Some(rules()));
    assert!(bed.readiness.pending().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_change_is_repaired_soon() {
    let kept = kept().await;
    kept.kernel.change(|inner| inner.rules = None);
    sleep(GATHER + Duration::from_millis(1)).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()));
    assert_eq!(kept.kernel.inner().forgotten, 2, "connections that were opened meanwhile are ended");
    assert!(kept.metric(r#"rolegate_redirect_repairs_total{outcome="repaired"} 1"#));
    assert!(kept.metric("rolegate_redirect_in_place 1"));
    assert!(kept.metric("rolegate_redirect_forgotten_connections_total 6"));
}

#[tokio::test(start_paused = true)]
async fn an_unreported_change_is_repaired_on_the_interval() {
    let kept = kept().await;
    kept.kernel.inner().rules = Some(RuleSet::guard_alone());
    sleep(INTERVAL).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()));
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_changes_costs_one_comparison_a_second() {
    let kept = kept().await;
    for _ in 0..1000 {
        kept.kernel.change(|_| {});
        sleep(Duration::from_millis(10)).await;
    }
    sleep(INTERVAL / 2).await;
    let compared = kept.kernel.inner().compared.clone();
    assert!((9..=12).contains(&compared.len()), "{}", compared.len());
    assert!(compared.windows(2).all(|two| two[1] - two[0] >= PAUSE));
    assert_eq!(kept.kernel.inner().installed, 1, "no rule of rolegate was changed");
}

#[tokio::test(start_paused = true)]
async fn a_failed_repair_is_retried_and_readiness_waits_for_it() {
    let kept = kept().await;
    kept.kernel.change(|inner| (inner.rules, inner.held) = (None, true));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(kept.readiness.pending(), [RULES_REPAIRED]);
    assert!(kept.metric("rolegate_redirect_in_place 0"));
    let failed = kept.kernel.inner().compared.len();
    assert!((5..=12).contains(&failed), "1, 2, 4, 8, 16, 30 seconds and so on: {failed}");
    assert!(kept.metric(&format!(r#"rolegate_redirect_repairs_total{{outcome="failed"}} {failed}"#)));
    kept.kernel.inner().held = false;
    sleep(INTERVAL).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()));
    assert!(kept.readiness.pending().is_empty());
    assert!(kept.metric("rolegate_redirect_in_place 1"));
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_fails_is_counted_and_changes_nothing() {
    let kept = kept().await;
    kept.kernel.change(|inner| inner.blind = true);
    sleep(Duration::from_millis(2500)).await;
    assert!(kept.metric("rolegate_redirect_check_failures_total 2"), "at 0.1 and 1.1 seconds");
    assert!(kept.readiness.pending().is_empty());
    assert!(kept.metric("rolegate_redirect_in_place 1"));
    sleep(PAUSE).await;
    assert!(kept.metric("rolegate_redirect_check_failures_total 3"), "at 3.1 seconds");
    assert_eq!(kept.readiness.pending(), [RULES_REPAIRED], "the state of the rules is unknown");
    assert!(kept.metric("rolegate_redirect_in_place 0"));
    assert_eq!(kept.kernel.inner().installed, 1);
    kept.kernel.change(|inner| (inner.blind, inner.rules) = (false, None));
    sleep(PAUSE + GATHER).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()));
    assert!(kept.readiness.pending().is_empty());
    assert!(kept.metric("rolegate_redirect_in_place 1"));
}

#[tokio::test(start_paused = true)]
async fn the_rules_of_a_later_daemon_are_left_to_it_while_it_lives() {
    let kept = kept().await;
    kept.kernel.change(|inner| (inner.rules, inner.succeeded) = (Some(theirs()), true));
    sleep(10 * INTERVAL + PAUSE / 2).await;
    assert_eq!(kept.kernel.inner().rules, Some(theirs()));
    assert_eq!(kept.kernel.inner().forgotten, 1, "connections that it serves are not ended");
    assert_eq!(kept.readiness.pending(), [RULES_REPAIRED]);
    // The later daemon was killed.
    kept.kernel.inner().succeeded = false;
    sleep(PAUSE).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()));
    assert!(kept.readiness.pending().is_empty());
}

/// The later daemon removed this daemon's rules once its own were in place.
#[tokio::test(start_paused = true)]
async fn a_later_daemon_may_use_another_backend() {
    let kept = kept().await;
    kept.kernel.change(|inner| (inner.rules, inner.succeeded, inner.elsewhere) = (None, true, true));
    sleep(3 * INTERVAL).await;
    assert_eq!(kept.kernel.inner().rules, None, "the rules are not restored beside those of the later daemon");
    assert_eq!(kept.readiness.pending(), [RULES_REPAIRED]);
    kept.kernel.inner().elsewhere = false;
    sleep(INTERVAL).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()), "no daemon has rules");
    assert!(kept.readiness.pending().is_empty());
}

/// Returns the rules of a daemon with another port.
fn theirs() -> RuleSet {
    let mut theirs = rules();
    theirs.targets.as_mut().unwrap().ipv4.as_mut().unwrap().set_port(9191);
    theirs
}

/// The later daemon hangs, or is none of ours.
#[tokio::test(start_paused = true)]
async fn a_later_daemon_that_hangs_does_not_prevent_repairs() {
    let kept = kept().await;
    for gone in [None, Some(RuleSet::guard_alone())] {
        for _again in 0..2 {
            kept.kernel.change(|inner| (inner.rules, inner.succeeded) = (gone.clone(), true));
            sleep(PAUSE + GATHER).await;
            assert_eq!(kept.kernel.inner().rules, Some(rules()), "{gone:?}");
        }
    }
    kept.kernel.change(|inner| inner.pushed = true);
    sleep(PAUSE + GATHER).await;
    assert!(!kept.kernel.inner().pushed);
    let mut less = rules();
    less.targets.as_mut().unwrap().direct = DirectConnections::Accepted;
    kept.kernel.change(|inner| inner.rules = Some(less));
    sleep(PAUSE + GATHER).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()), "the rules lead here, and one is missing");
    assert!(kept.readiness.pending().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_guard_is_restored_while_a_later_daemon_owns_the_rules() {
    let kept = kept().await;
    kept.kernel.change(|inner| (inner.rules, inner.succeeded, inner.pushed) = (Some(theirs()), true, true));
    sleep(PAUSE + GATHER).await;
    assert!(!kept.kernel.inner().pushed);
    assert_eq!(kept.kernel.inner().rules, Some(theirs()), "the rules that serve pods stay");
    assert_eq!(kept.kernel.inner().forgotten, 1);
    assert!(kept.metric(r#"rolegate_redirect_repairs_total{outcome="repaired"} 1"#));
    assert_eq!(kept.readiness.pending(), [RULES_REPAIRED]);
}

/// The later daemon has other interfaces. Only that it restores its rules tells them from rules that something else changed.
#[tokio::test(start_paused = true)]
async fn changes_that_come_back_are_left_to_the_later_daemon() {
    let kept = kept().await;
    let others = RuleSet { interfaces: vec![InterfaceMatch { name: "eth0".to_owned(), negated: true }], ..rules() };
    kept.kernel.change(|inner| (inner.rules, inner.succeeded) = (Some(others.clone()), true));
    sleep(PAUSE + GATHER).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()));
    kept.kernel.change(|inner| inner.rules = Some(others.clone()));
    sleep(10 * INTERVAL).await;
    assert_eq!(kept.kernel.inner().rules, Some(others));
    assert_eq!(kept.readiness.pending(), [RULES_REPAIRED]);
    kept.kernel.inner().succeeded = false;
    sleep(PAUSE).await;
    assert_eq!(kept.kernel.inner().rules, Some(rules()));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_or_ended_before_the_rules_are_in_place() {
    let mut bed = bed();
    let kernel = bed.kernel.clone();
    kernel.change(|inner| (inner.rules, inner.succeeded) = (Some(theirs()), true));
    let (_, ()) = tokio::join!(bed.reconciler.place(rules()), async {
        sleep(3 * INTERVAL + PAUSE / 2).await;
        assert_eq!(kernel.inner().rules, Some(theirs()));
        kernel.change(|inner| (inner.succeeded, inner.held) = (false, true));
        sleep(INTERVAL).await;
        assert_eq!(kernel.done(), (false, 0));
        kernel.change(|inner| inner.held = false);
        sleep(PAUSE + GATHER).await;
        assert_eq!(kernel.inner().rules, Some(rules()), "the wait ends when rules change");
    });
    assert_eq!(kernel.done(), (true, 1));
    assert!(bed.readiness.pending().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_guard_is_kept_during_other_work() {
    let mut bed = bed();
    bed.reconciler.guard().await.unwrap();
    let kernel = bed.kernel.clone();
    let done = bed.reconciler.reconcile_during(async {
        for _again in 0..2 {
            kernel.change(|inner| inner.rules = None);
            sleep(PAUSE + GATHER).await;
            assert_eq!(kernel.inner().rules, Some(RuleSet::guard_alone()));
        }
        "done"
    });
    assert_eq!(done.await, "done");
    // A notification arrived just as the work was done.
    bed.reconciler.reconcile_during(sleep(PAUSE)).await;
    let kernel = bed.kernel.clone();
    let heard = async {
        kernel.change(|inner| inner.rules = None);
        sleep(GATHER / 2).await;
    };
    bed.reconciler.reconcile_during(heard).await;
    bed.reconciler.reconcile_during(sleep(PAUSE + GATHER)).await;
    assert_eq!(bed.kernel.inner().rules, Some(RuleSet::guard_alone()));
}

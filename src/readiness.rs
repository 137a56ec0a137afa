//! The start-up steps that are still pending. The daemon is ready when none is left, and no longer ready once it drains.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The pending start-up steps. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<BTreeSet<&'static str>>>);

/// One start-up step. If it is dropped without [`ReadinessStep::done`], it stays pending, because a step that failed is not
/// done.
#[derive(Debug)]
#[must_use = "a step that nobody finishes keeps the daemon from being ready"]
pub struct ReadinessStep {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a step that has to be done before the daemon is ready.
    pub fn step(&self, name: &'static str) -> ReadinessStep {
        self.0.send_modify(|pending| {
            pending.insert(name);
        });
        ReadinessStep { name, readiness: self.clone() }
    }

    /// Returns the pending steps. Empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.borrow().iter().copied().collect()
    }

    /// Returns whether no step is pending.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Returns when no step is pending, which may be at once.
    pub async fn ready(&self) {
        // The channel cannot close, because `self` holds the sender.
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// Returns when none of these steps is pending.
    pub async fn done(&self, names: &[&str]) {
        // The channel cannot close, because `self` holds the sender.
        let _ = self.0.subscribe().wait_for(|pending| !pending.iter().any(|name| names.contains(name))).await;
    }
}

impl ReadinessStep {
    /// Marks the step as done.
    pub fn done(self) {
        self.readiness.0.send_modify(|pending| {
            pending.remove(self.name);
        });
    }
}

/// Whether the daemon's start has come to its end, for the liveness probe on the app port: kube2iam's manifests have no other
/// probe, and without it a rollout would go on while nothing is served. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StartupHealth {
    readiness: Readiness,
    was_ready: Arc<AtomicBool>,
    began: Instant,
    grace: Duration,
}

impl StartupHealth {
    /// Begins now. After `grace`, the process counts as well whatever is pending.
    pub fn new(readiness: Readiness, grace: Duration) -> Self {
        Self { readiness, was_ready: Arc::default(), began: Instant::now(), grace }
    }

    /// Notes when the daemon is ready first. Runs until then.
    pub async fn follow(&self) {
        self.readiness.ready().await;
        self.was_ready.store(true, Ordering::Relaxed);
    }

    /// What is pending of a start that is under way; empty once it was ready, or the grace is over.
    pub fn pending(&self) -> Vec<&'static str> {
        if self.was_ready.load(Ordering::Relaxed) || self.began.elapsed() >= self.grace { Vec::new() } else { self.readiness.pending() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_step_is_done_and_a_dropped_step_is_not() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.step("first"), readiness.step("second"));
        assert_eq!(readiness.pending(), ["first", "second"]);
        first.done();
        assert_eq!(readiness.pending(), ["second"]);
        drop(second);
        assert_eq!(readiness.pending(), ["second"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_is_over_once_ready_or_after_its_grace() {
        let readiness = Readiness::default();
        let step = readiness.step("first");
        let grace = Duration::from_secs(60);
        let (followed, left) = (StartupHealth::new(readiness.clone(), grace), StartupHealth::new(readiness.clone(), grace));
        assert_eq!(StartupHealth::new(readiness.clone(), Duration::ZERO).pending(), [""; 0]);
        let mut follow = std::pin::pin!(followed.follow());
        assert!(futures_util::poll!(follow.as_mut()).is_pending());
        assert_eq!(followed.pending(), ["first"]);
        step.done();
        follow.await;
        let _again = readiness.step("again");
        assert_eq!((followed.pending(), left.pending()), (vec![], vec!["again"]));
        tokio::time::advance(grace).await;
        assert_eq!(left.pending(), [""; 0]);
    }

    #[tokio::test]
    async fn a_wait_may_be_for_some_steps_only() {
        let readiness = Readiness::default();
        let (first, second, _other) = (readiness.step("first"), readiness.step("second"), readiness.step("other"));
        let mut waiting = std::pin::pin!(readiness.done(&["first", "second"]));
        for step in [first, second] {
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            step.done();
        }
        assert!(futures_util::poll!(waiting.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn ready_waits_for_every_step_even_those_added_later() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.step("first"), readiness.step("second"));
        let mut waiting = std::pin::pin!(readiness.ready());
        first.done();
        assert!(futures_util::poll!(waiting.as_mut()).is_pending() && !readiness.is_ready());
        second.done();
        waiting.await;
        assert!(readiness.is_ready());
        let _later = readiness.step("later");
        assert!(futures_util::poll!(std::pin::pin!(readiness.ready())).is_pending() && !readiness.is_ready());
    }
}

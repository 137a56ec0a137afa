//! The start-up steps that are still pending. The daemon is ready when none is left, and no longer ready once it drains.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

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

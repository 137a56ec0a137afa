//! Which steps of the start are still to be done. The daemon is ready when none is left, and not any more once it drains.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// The steps of the start; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<BTreeSet<&'static str>>>);

/// One step of the start. Dropped without [`ReadinessStep::done`] it stays pending: a step that failed is not done.
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

    /// What is not done yet; empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.borrow().iter().copied().collect()
    }

    /// Whether nothing is left to be done.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Returns when nothing is left to be done: at once, where that is so now.
    pub async fn ready(&self) {
        // It cannot be closed: the sender is ours.
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// Returns when none of these is to be done.
    pub async fn done(&self, names: &[&str]) {
        // It cannot be closed: the sender is ours.
        let _ = self.0.subscribe().wait_for(|pending| !pending.iter().any(|name| names.contains(name))).await;
    }
}

impl ReadinessStep {
    /// The step is done.
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
    async fn some_steps_are_waited_for() {
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
    async fn who_waits_for_all_waits_for_the_last_and_for_what_is_added_later() {
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

//! Which steps of the start are still to be done. The daemon is ready when none is left, and not any more once it drains.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The steps of the start; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Steps>);

#[derive(Debug, Default)]
struct Steps {
    pending: Mutex<BTreeSet<&'static str>>,
    fewer: Notify,
}

/// One step of the start. Dropped without [`Step::done`] it stays pending: a step that failed is not done.
#[derive(Debug)]
#[must_use = "a step that nobody finishes keeps the daemon from being ready"]
pub struct Step {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a step that has to be done before the daemon is ready.
    pub fn step(&self, name: &'static str) -> Step {
        self.lock().insert(name);
        Step { name, readiness: self.clone() }
    }

    /// What is not done yet; empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    /// Returns when none of these is to be done.
    pub async fn done(&self, names: &[&str]) {
        loop {
            let mut fewer = std::pin::pin!(self.0.fewer.notified());
            // From here on none is missed.
            fewer.as_mut().enable();
            if !self.lock().iter().any(|pending| names.contains(pending)) {
                return;
            }
            fewer.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    /// The step is done.
    pub fn done(self) {
        self.readiness.lock().remove(self.name);
        self.readiness.0.fewer.notify_waiters();
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
}

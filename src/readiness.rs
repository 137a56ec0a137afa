//! Which steps of the start are still to be done. The daemon is ready when none is left, and not any more once it drains.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The steps of the start; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

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

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    /// The step is done.
    pub fn done(self) {
        self.readiness.lock().remove(self.name);
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
}

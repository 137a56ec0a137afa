//! Which refusals the log has had lately: a pod that asks again and again must not fill the node's disk.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A complaint about a pod is logged once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// How many complaints are remembered; with more, all are forgotten, and the log says some again.
const MAX_REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Complaints {
    hasher: RandomState,
    lately: Mutex<HashMap<u64, Instant>>,
}

impl Complaints {
    /// Whether `reason` about `subject` was not logged lately.
    pub(super) fn is_new(&self, subject: &impl Hash, reason: &'static str) -> bool {
        let complaint = self.hasher.hash_one((subject, reason));
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        if lately.get(&complaint).is_some_and(|at| at.elapsed() < QUIET) {
            return false;
        }
        if lately.len() >= MAX_REMEMBERED {
            lately.clear();
        }
        lately.insert(complaint, Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_new_once_per_subject_and_reason_and_memory_is_bounded() {
        let complaints = Complaints::default();
        assert!(complaints.is_new(&"a", "no-role"));
        assert!(!complaints.is_new(&"a", "no-role"));
        assert!(complaints.is_new(&"a", "bad-role"));
        assert!(complaints.is_new(&"b", "no-role"));
        for subject in 0..3 * MAX_REMEMBERED {
            complaints.is_new(&subject, "no-role");
        }
        assert!(complaints.lately.lock().unwrap_or_else(PoisonError::into_inner).len() <= MAX_REMEMBERED);
    }
}

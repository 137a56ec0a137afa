//! The end of the record that requests see: it counts a finding, and never waits.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::clean;
use super::ledger::{Ledger, Noted};
use super::workload::Workload;
use crate::pods::Pod;
use crate::policy::Denial;
use crate::role::RoleArn;

/// Records what requests show that the strict settings would refuse; without `--migrate`, nothing. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Option<Arc<Recording>>);

struct Recording {
    node: String,
    began: Instant,
    ledger: Mutex<Ledger>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorder").field(&self.0.as_ref().map(|recording| &recording.node)).finish()
    }
}

impl Recording {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Creates a record for the pods of this node.
    pub(crate) fn on(node: &str) -> Self {
        Self(Some(Arc::new(Recording { node: node.to_owned(), began: Instant::now(), ledger: Mutex::default() })))
    }

    /// Counts a request without a session token.
    pub(crate) fn without_token(&self, pod: &Pod, user_agent: Option<&[u8]>) {
        self.note(pod, Noted::WithoutToken, || clean::client(user_agent));
    }

    /// Counts a request for metadata of a set that the pod could not read. `path` is a name of the table.
    pub(crate) fn metadata(&self, pod: &Pod, set: &'static str, path: String) {
        self.note(pod, Noted::Metadata(set), || path);
    }

    /// Counts a request for a role that namespace restrictions would refuse.
    pub(crate) fn restricted(&self, pod: &Pod, role: &RoleArn, denial: Denial) {
        if !denial.may_pass() {
            self.note(pod, Noted::Role(denial), || role.to_string());
        }
    }

    /// Counts a request for a role that is refused.
    pub(crate) fn denied(&self, pod: &Pod, role: Option<RoleArn>, denial: Denial) {
        if !denial.may_pass() {
            self.note(pod, Noted::Denied(denial), || role_text(pod, role));
        }
    }

    /// Counts another refusal. `subject` must not be a client's text.
    pub(crate) fn refused(&self, pod: &Pod, reason: &'static str, subject: &'static str) {
        self.note(pod, Noted::Refused(reason), || subject.to_owned());
    }

    /// Counts connections of a pod in the node's network to the real metadata service. `exempt_as` is the item of
    /// `--host-network-exempt` that would name the pod.
    pub(super) fn used_node_role(&self, pod: &Pod, exempt_as: String, count: u64) {
        self.note_all(pod, Noted::UsesNodeRole, || exempt_as, count);
    }

    fn note(&self, pod: &Pod, noted: Noted, subject: impl FnOnce() -> String) {
        self.note_all(pod, noted, subject, 1);
    }

    fn note_all(&self, pod: &Pod, noted: Noted, subject: impl FnOnce() -> String, count: u64) {
        if let Some(recording) = &self.0 {
            let (workload, now) = (Workload::of(pod, &recording.node), recording.began.elapsed());
            recording.ledger().note(workload, noted, &subject(), count, now);
        }
    }

    /// Returns everything that was found, how much more there was, and how long it has been recorded.
    pub(super) fn found(&self) -> (Vec<(Workload, Vec<super::ledger::Tally>)>, u64, Duration) {
        let Some(recording) = &self.0 else { return Default::default() };
        let ledger = recording.ledger();
        (ledger.all(), ledger.left_out(), recording.began.elapsed())
    }
}

/// Returns the role that a pod asks for, or the text that should name it.
pub(super) fn role_text(pod: &Pod, role: Option<RoleArn>) -> String {
    role.map_or_else(|| clean::role(pod.role.as_deref().unwrap_or_default()), |role| role.to_string())
}

//! The interface through which requests are recorded: it counts the protocols in use and the findings, and never waits.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::clean;
use super::ledger::{Ledger, Noted, Tally};
use super::uses::{ProtocolUse, Uses};
use super::workload::Workload;
use crate::pods::Pod;
use crate::policy::Denial;
use crate::role::RoleArn;

pub(crate) use super::CredentialProtocol;
pub(crate) use super::uses::UseMeter;

/// Records which protocols pods use and, with `--migrate`, what the strict settings would refuse; by default, nothing. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Option<Arc<Recording>>);

struct Recording {
    node: String,
    began: Instant,
    ledger: Mutex<Ledger>,
    uses: Mutex<Uses>,
}

/// Everything that was recorded.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    /// The findings by workload.
    pub(super) findings: Vec<(Workload, Vec<Tally>)>,
    /// The number of requests whose findings are missing.
    pub(super) left_out: u64,
    /// The protocols in use by workload.
    pub(super) uses: Vec<(Workload, CredentialProtocol, ProtocolUse)>,
    /// The number of requests that are missing in `uses`.
    pub(super) uses_left_out: u64,
    /// Since when it has been recorded.
    pub(super) elapsed: Duration,
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

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Creates a record for the pods of this node.
    pub(crate) fn on(node: &str) -> Self {
        let (node, began, ledger, uses) = (node.to_owned(), Instant::now(), Mutex::default(), Mutex::default());
        Self(Some(Arc::new(Recording { node, began, ledger, uses })))
    }

    /// Counts a request of a pod, whatever the answer will be.
    pub(crate) fn requested(&self, pod: &Pod, protocol: CredentialProtocol) {
        if let Some(recording) = &self.0 {
            let (workload, now) = (Workload::of(pod, &recording.node), recording.began.elapsed());
            recording.uses().requested(workload, protocol, now);
        }
    }

    /// Counts that a request, which was counted before, was answered with credentials.
    pub(crate) fn answered(&self, pod: &Pod, protocol: CredentialProtocol) {
        if let Some(recording) = &self.0 {
            recording.uses().answered(Workload::of(pod, &recording.node), protocol);
        }
    }

    /// Returns what counts further requests of the pod that are answered with credentials; `None` if nothing is recorded of it.
    pub(crate) fn meter(&self, pod: &Pod, protocol: CredentialProtocol) -> Option<UseMeter> {
        let recording = self.0.as_ref()?;
        recording.uses().meter(&Workload::of(pod, &recording.node), protocol)
    }

    /// Counts a request that is answered with credentials now. Returns whether the meter is still in use.
    pub(crate) fn answered_by(&self, meter: &UseMeter, now: Instant) -> bool {
        self.0.as_ref().is_some_and(|recording| meter.answered_at(now.saturating_duration_since(recording.began)))
    }

    /// Returns whether anything is recorded.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
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

    /// Returns everything that was recorded.
    pub(super) fn recorded(&self) -> Recorded {
        let Some(recording) = &self.0 else { return Recorded::default() };
        let elapsed = recording.began.elapsed();
        let (findings, left_out) = {
            let ledger = recording.ledger();
            (ledger.all(), ledger.left_out())
        };
        let uses = recording.uses();
        Recorded { findings, left_out, uses: uses.all(), uses_left_out: uses.left_out(), elapsed }
    }
}

/// Returns the role that a pod asks for, or the text that should name it.
pub(super) fn role_text(pod: &Pod, role: Option<RoleArn>) -> String {
    role.map_or_else(|| clean::role(pod.role.as_deref().unwrap_or_default()), |role| role.to_string())
}

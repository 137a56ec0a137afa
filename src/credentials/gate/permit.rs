//! A permit for one request to STS, and what the gate learns from its result.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::queue::QueuedCall;
use super::{CallCause, Gate, Ticket, TurnResult};
use crate::credentials::AssumeRoleError;
use crate::credentials::caller::Caller;
use crate::role::RoleArn;

/// A permit for one request to STS, until dropped.
#[derive(Debug)]
pub(in crate::credentials) struct StsPermit {
    pub(super) gate: Gate,
    pub(super) cause: CallCause,
    pub(super) ticket: Ticket,
    pub(super) ends: Option<Instant>,
    /// The pods whose turns a retry may use. If no session is cached, one pod, whose place stays taken until then.
    pub(super) callers: Vec<Arc<Caller>>,
    pub(super) epoch: u64,
    pub(super) began: Instant,
}

impl StsPermit {
    /// The cause of the request to STS.
    pub(in crate::credentials) fn cause(&self) -> CallCause {
        self.cause
    }

    /// What STS answered about this role.
    pub(in crate::credentials) fn answered<T>(&self, role: &RoleArn, answer: &Result<T, AssumeRoleError>) {
        let mut state = self.gate.lock();
        match answer {
            Err(error) if !error.is_refusal() => state.pace.failed(role, self.epoch, error),
            _ => {
                let is_waited_for = !state.queue.is_empty();
                state.pace.answered(role, self.epoch, self.began.elapsed(), is_waited_for);
            }
        }
    }

    /// Whether an immediate retry may succeed and is worth it: for a shorter session, or once after a lost connection or a
    /// failure if the session `is_needed` and no outage is known.
    pub(in crate::credentials) fn is_asked_again(&self, error: &AssumeRoleError, questions: u32, is_needed: bool) -> bool {
        match error {
            AssumeRoleError::TooLong { .. } => questions <= 2,
            AssumeRoleError::Unreachable { .. } | AssumeRoleError::Failed { .. } => {
                let trouble = self.gate.trouble();
                let is_outage = matches!(trouble, Some(AssumeRoleError::Unreachable { .. } | AssumeRoleError::Failed { .. }));
                questions == 1 && is_needed && !is_outage
            }
            _ => false,
        }
    }

    /// Waits for a permit for a retry with the same cause. Keeps the pod's place.
    pub(in crate::credentials) fn again(mut self) -> oneshot::Receiver<TurnResult> {
        let (sender, turn) = oneshot::channel();
        let callers = std::mem::take(&mut self.callers);
        {
            let mut state = self.gate.lock();
            state.queue.insert(self.ticket, QueuedCall { cause: self.cause, ends: self.ends, callers, is_charged: false, sender });
            self.gate.0.metrics.sts_queue(self.cause.name()).inc();
        }
        // Dropping the permit frees its slot and admits the next request.
        turn
    }
}

impl Drop for StsPermit {
    fn drop(&mut self) {
        {
            let mut state = self.gate.lock();
            state.under_way -= 1;
            if let Some(caller) = self.callers.first().filter(|_| self.ends.is_none()) {
                state.allowances.leave_place(&caller.uid);
            }
        }
        self.gate.dispatch();
    }
}

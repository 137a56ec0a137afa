//! Pauses of creating and amending Events, node-wide and for single namespaces.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// The pauses of one verb. A refusal pauses only its own namespace, because the namespace itself may be the cause, for example
/// through an admission webhook or a quota. Otherwise a tenant could silence the other namespaces.
#[derive(Debug, Default)]
pub(super) struct VerbPauses {
    until: Option<Instant>,
    of_namespaces: HashMap<String, Instant>,
    /// Namespaces in which the verb was forbidden since it was last accepted anywhere.
    forbidden: BTreeSet<String>,
}

impl VerbPauses {
    /// Returns the end of the pause for writes in a namespace.
    pub(super) fn until(&self, namespace: &str) -> Option<Instant> {
        self.until.max(self.of_namespaces.get(namespace).copied())
    }

    /// Pauses writes in all namespaces.
    pub(super) fn pause(&mut self, until: Instant) {
        self.until = self.until.max(Some(until));
    }

    /// Pauses writes in a namespace that forbids them.
    pub(super) fn forbid(&mut self, namespace: &str, until: Instant) {
        self.forbidden.insert(namespace.to_owned());
        self.of_namespaces.insert(namespace.to_owned(), until);
    }

    /// Records that a write was accepted.
    pub(super) fn accepted(&mut self) {
        self.forbidden.clear();
    }

    /// Returns whether the verb was forbidden in more than one namespace since it was last accepted. Usually, this means that
    /// the daemon lacks the permission.
    pub(super) fn is_forbidden_everywhere(&self) -> bool {
        self.forbidden.len() > 1
    }

    /// Forgets pauses of namespaces that have ended.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.of_namespaces.retain(|_, until| *until > now);
    }
}

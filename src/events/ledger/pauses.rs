//! For how long no Event is created or amended, everywhere and in single namespaces.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// The pauses of one verb. A refusal pauses its own namespace alone, because the namespace may be the one that refuses, for example
/// by an admission webhook or a quota. Tenants must not be able to silence the other namespaces with that.
#[derive(Debug, Default)]
pub(super) struct VerbPauses {
    until: Option<Instant>,
    of_namespaces: HashMap<String, Instant>,
    /// Namespaces in which it was forbidden since it was last accepted anywhere.
    forbidden: BTreeSet<String>,
}

impl VerbPauses {
    /// Returns the end of the pause for writes in a namespace.
    pub(super) fn until(&self, namespace: &str) -> Option<Instant> {
        self.until.max(self.of_namespaces.get(namespace).copied())
    }

    /// Pauses everywhere.
    pub(super) fn pause(&mut self, until: Instant) {
        self.until = self.until.max(Some(until));
    }

    /// Pauses in a namespace in which it is forbidden.
    pub(super) fn forbid(&mut self, namespace: &str, until: Instant) {
        self.forbidden.insert(namespace.to_owned());
        self.of_namespaces.insert(namespace.to_owned(), until);
    }

    /// Notes that a write was accepted.
    pub(super) fn accepted(&mut self) {
        self.forbidden.clear();
    }

    /// Returns whether it was forbidden in more than one namespace since it was last accepted: usually, the daemon lacks the
    /// permission.
    pub(super) fn is_forbidden_everywhere(&self) -> bool {
        self.forbidden.len() > 1
    }

    /// Forgets the pauses of namespaces that are over.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.of_namespaces.retain(|_, until| *until > now);
    }
}

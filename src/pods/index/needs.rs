//! Counts of what the pods of an index need, updated with every change. Reading them costs nothing for pods that need nothing,
//! such as finished pods, of which a namespace may have thousands.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::known::{Name, Pod};

/// The namespaces and service accounts that decisions about pods depend on, and the times at which claims end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PodNeeds {
    namespaces: BTreeMap<String, NamespaceCount>,
    service_accounts: BTreeMap<Name, usize>,
    claim_ends: BTreeMap<Timestamp, usize>,
}

/// The pods of one namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct NamespaceCount {
    all: usize,
    /// Pods that can be served: not finished and, unless they are served, not in the host network.
    may_ask: usize,
}

impl PodNeeds {
    /// Adds what a readable pod needs. `may_ask` says whether its requests may be served.
    pub(super) fn add(&mut self, pod: &Pod, may_ask: bool) {
        let count = self.namespaces.entry(pod.namespace.clone()).or_default();
        count.all += 1;
        count.may_ask += usize::from(may_ask);
        if let Some(account) = service_account(pod, may_ask) {
            *self.service_accounts.entry(account).or_default() += 1;
        }
        self.add_claim_end(pod);
    }

    /// Removes what a readable pod needed.
    pub(super) fn remove(&mut self, pod: &Pod, may_ask: bool) {
        if let Some(count) = self.namespaces.get_mut(&pod.namespace) {
            count.all -= 1;
            count.may_ask -= usize::from(may_ask);
            if count.all == 0 {
                self.namespaces.remove(&pod.namespace);
            }
        }
        if let Some(account) = service_account(pod, may_ask) {
            decrease(&mut self.service_accounts, &account);
        }
        self.remove_claim_end(pod);
    }

    /// Adds the end of a pod's claim, if it has one.
    pub(super) fn add_claim_end(&mut self, pod: &Pod) {
        if let Some(end) = pod.claims_until {
            *self.claim_ends.entry(end).or_default() += 1;
        }
    }

    /// Removes the end of a pod's claim.
    pub(super) fn remove_claim_end(&mut self, pod: &Pod) {
        if let Some(end) = pod.claims_until {
            decrease(&mut self.claim_ends, &end);
        }
    }

    /// Returns the first end of a claim after this time.
    pub(super) fn next_claim_end(&self, after: Timestamp) -> Option<Timestamp> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.claim_ends.range((Excluded(after), Unbounded)).next().map(|(end, _)| *end)
    }

    /// Returns whether a namespace has a readable pod.
    pub(super) fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// Returns the namespaces of all readable pods.
    pub(super) fn all_namespaces(&self) -> BTreeSet<String> {
        self.namespaces.keys().cloned().collect()
    }

    /// Returns the namespaces of pods that can be served.
    pub(super) fn namespaces(&self) -> BTreeSet<String> {
        self.namespaces.iter().filter(|(_, count)| count.may_ask > 0).map(|(name, _)| name.clone()).collect()
    }

    /// Returns the service accounts, by namespace and name, of pods that can be served and have no role of their own.
    pub(super) fn service_accounts(&self) -> BTreeSet<Name> {
        self.service_accounts.keys().cloned().collect()
    }
}

fn service_account(pod: &Pod, may_ask: bool) -> Option<Name> {
    let is_needed = may_ask && pod.role.is_none() && !pod.service_account.is_empty();
    is_needed.then(|| (pod.namespace.clone(), pod.service_account.clone()))
}

fn decrease<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

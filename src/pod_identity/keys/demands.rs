//! Who may cause a fetch of the keys, and when.
//!
//! A token with an unknown key causes a fetch, because the cluster may have begun to sign with another key. A fetch that changes nothing
//! was wasted. A pod that wasted one must wait before it can cause the next one, and longer each time. Its namespace must also wait, though
//! not as long, because a tenant may create one pod after the other. Neither delays the fetches that others cause. When the keys change,
//! all waits end.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::{Backoff, spread};
use crate::pods::PodUid;

/// The shortest time between two fetches that tokens with unknown keys cause.
pub const LEAST_BETWEEN: Duration = Duration::from_secs(5);
/// The pauses of a pod after fetches that it wasted.
const OF_POD: Backoff = Backoff::new(LEAST_BETWEEN, Duration::from_secs(5 * 60));
/// The pauses of a namespace, and of all pods in the node's network.
const OF_GROUP: Backoff = Backoff::new(LEAST_BETWEEN, Duration::from_secs(60));
/// The time after the end of a pause when earlier wasted fetches no longer count.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10 * 60);
/// The most accounts. A node has fewer pods and namespaces.
const MAX_ACCOUNTS: usize = 1024;

/// The sender of a token with an unknown key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRequester {
    /// A pod with a network of its own.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its UID.
        uid: PodUid,
    },
    /// A process in the node's network. It could name any pod there, so all of them count together.
    HostNetwork,
}

/// Who wants the next fetch, and who must wait because of earlier ones.
#[derive(Debug, Default)]
pub(super) struct Demands {
    /// Who wants a fetch that has not begun.
    next: HashSet<KeyRequester>,
    /// Who wanted the fetch that is under way.
    current: HashSet<KeyRequester>,
    wasted: HashMap<Account, Waste>,
}

/// What a fetch brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FetchOutcome {
    /// Other keys, or another issuer.
    Changed,
    /// What was known already.
    Unchanged,
    /// Nothing. This is nobody's fault.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Account {
    Pod(PodUid),
    Namespace(String),
    HostNetwork,
}

/// The wasted fetches of an account.
#[derive(Clone, Copy, Debug)]
struct Waste {
    fetches: u32,
    /// The end of the pause.
    until: Instant,
}

impl KeyRequester {
    fn accounts(&self) -> Vec<Account> {
        match self {
            Self::Pod { namespace, uid } => vec![Account::Pod(uid.clone()), Account::Namespace(namespace.clone())],
            Self::HostNetwork => vec![Account::HostNetwork],
        }
    }
}

impl Account {
    fn backoff(&self) -> Backoff {
        match self {
            Self::Pod(_) => OF_POD,
            Self::Namespace(_) | Self::HostNetwork => OF_GROUP,
        }
    }
}

impl Demands {
    /// Requests a fetch. Returns whether the requester may do so now.
    pub(super) fn request(&mut self, requester: &KeyRequester, now: Instant) -> bool {
        let must_wait = |account| self.wasted.get(account).is_some_and(|waste| waste.until > now);
        if requester.accounts().iter().any(must_wait) {
            return false;
        }
        // There are fewer pods. If there are not, the fetch is wanted already.
        if self.next.len() < MAX_ACCOUNTS {
            self.next.insert(requester.clone());
        }
        true
    }

    /// Returns whether somebody wants a fetch that has not begun.
    pub(super) fn is_wanted(&self) -> bool {
        !self.next.is_empty()
    }

    /// Records that a fetch begins. It is for everybody who has requested one.
    pub(super) fn begin(&mut self) {
        self.current = std::mem::take(&mut self.next);
    }

    /// Records the end of the fetch.
    pub(super) fn end(&mut self, outcome: FetchOutcome, now: Instant) {
        let requesters = std::mem::take(&mut self.current);
        match outcome {
            FetchOutcome::Changed => self.wasted.clear(),
            FetchOutcome::Unchanged => {
                let accounts: HashSet<_> = requesters.iter().flat_map(KeyRequester::accounts).collect();
                accounts.into_iter().for_each(|account| self.waste(account, now));
            }
            FetchOutcome::Failed => {}
        }
    }

    fn waste(&mut self, account: Account, now: Instant) {
        if self.wasted.len() >= MAX_ACCOUNTS && !self.wasted.contains_key(&account) {
            self.wasted.retain(|_, waste| waste.counts(now));
            let first = self.wasted.iter().min_by_key(|(_, waste)| waste.until).map(|(account, _)| account.clone());
            if let Some(first) = first.filter(|_| self.wasted.len() >= MAX_ACCOUNTS) {
                self.wasted.remove(&first);
            }
        }
        let earlier = self.wasted.get(&account).filter(|waste| waste.counts(now)).map_or(0, |waste| waste.fetches);
        let until = now + spread(account.backoff().pause(earlier));
        self.wasted.insert(account, Waste { fetches: earlier.saturating_add(1), until });
    }
}

impl Waste {
    fn counts(&self, now: Instant) -> bool {
        now < self.until + FORGOTTEN_AFTER
    }
}

#[cfg(test)]
mod tests;

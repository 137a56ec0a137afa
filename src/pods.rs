//! Who is asking: the pods of this node, by their addresses.
//!
//! [`Pods`] is the read handle that a request is answered from. [`PodsWriter`] is its other end; only the watch holds it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, watch as signal};

pub mod index;
pub mod watch;

use index::Index;
pub use index::{Claims, Namespace, Pod, PodUid, ServiceAccount, Surroundings};

/// How many requests may wait for an unknown address at one time. Beyond it they are refused at once.
pub const MAX_WAITING: usize = 256;

/// Which objects besides pods decisions are made by: what is not needed is not read, and not waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The namespaces of pods.
    pub namespaces: bool,
    /// The service accounts of pods without a role of their own.
    pub service_accounts: bool,
}

impl Needs {
    /// Whether all that a decision about `pod` needs is known.
    pub fn are_met(self, pod: &Pod, around: &Surroundings) -> bool {
        let namespace = !self.namespaces || around.namespace.is_some();
        let service_account = !self.service_accounts || pod.role.is_some() || around.service_account.is_some();
        namespace && service_account
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// This pod, and what is known around it.
    Found(Arc<Pod>, Surroundings),
    /// More than one living pod claims it.
    Ambiguous(Vec<Arc<Pod>>),
    /// No pod of this node, as far as is known.
    Unknown,
}

/// The pods of this node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Pods {
    shared: Arc<Shared>,
    changes: signal::Receiver<u64>,
}

#[derive(Debug)]
struct Shared {
    index: RwLock<Index>,
    waiting: Semaphore,
    needs: Needs,
}

impl Shared {
    /// The index is plain data that every writer leaves whole, so a panic elsewhere does not spoil it.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end of [`Pods`].
#[derive(Debug)]
pub struct PodsWriter {
    shared: Arc<Shared>,
    changed: signal::Sender<u64>,
}

/// An empty set of pods: the end to write and the end to read.
pub fn pods(needs: Needs) -> (PodsWriter, Pods) {
    let (changed, changes) = signal::channel(0);
    let shared = Arc::new(Shared { index: RwLock::default(), waiting: Semaphore::new(MAX_WAITING), needs });
    (PodsWriter { shared: shared.clone(), changed }, Pods { shared, changes })
}

impl PodsWriter {
    /// Changes the index and wakes whoever waits for a change.
    pub fn write<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let result = change(&mut self.shared.index.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|generation| *generation += 1);
        result
    }
}

impl Pods {
    /// Who has this address now.
    pub fn by_ip(&self, ip: IpAddr) -> Lookup {
        let index = self.shared.read();
        match index.by_ip(ip) {
            Claims::One(pod) => {
                let around = index.surroundings(&pod);
                Lookup::Found(pod, around)
            }
            Claims::None => Lookup::Unknown,
            Claims::Several(pods) => Lookup::Ambiguous(pods),
        }
    }

    /// Who has this address, waiting at most `at_most` for it to become known. The watch's events wake the wait; at most
    /// [`MAX_WAITING`] requests wait at one time.
    pub async fn wait_for_ip(&self, ip: IpAddr, at_most: Duration) -> Lookup {
        let found = self.by_ip(ip);
        if self.is_complete(&found) {
            return found;
        }
        let Ok(_waiting) = self.shared.waiting.try_acquire() else {
            return found;
        };
        let mut changes = self.changes.clone();
        let complete = async {
            loop {
                changes.mark_unchanged();
                let found = self.by_ip(ip);
                if self.is_complete(&found) || changes.changed().await.is_err() {
                    return found;
                }
            }
        };
        match tokio::time::timeout(at_most, complete).await {
            Ok(found) => found,
            Err(_) => self.by_ip(ip),
        }
    }

    /// Whether nothing that is still to come can be needed for a decision.
    pub fn is_complete(&self, lookup: &Lookup) -> bool {
        match lookup {
            Lookup::Found(pod, around) => self.shared.needs.are_met(pod, around),
            Lookup::Ambiguous(_) => true,
            Lookup::Unknown => false,
        }
    }

    /// Every pod, for status pages; in the order of namespace and name.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.shared.read().all()
    }

    /// What is known of a namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.shared.read().namespace(name)
    }

    /// How many pods are known.
    pub fn count(&self) -> usize {
        self.shared.read().len()
    }

    /// The namespaces of the known pods.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.shared.read().namespaces_of_pods()
    }

    /// Returns when something changed since the last call on this handle.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The writer is gone: nothing will change any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests;

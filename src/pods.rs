//! Who is asking: the pods of this node, by their addresses.
//!
//! [`Pods`] is the read handle that a request is answered from. [`PodsWriter`] is its other end; only the watch holds it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch as signal;

pub mod index;
pub mod watch;

use index::Index;
pub use index::{Claims, Namespace, NodeAddresses, Pod, PodName, PodUid, ServiceAccount, Surroundings};

/// How many requests may wait for the watch at one time. Beyond it they are refused at once.
pub const MAX_WAITING: usize = 1024;
/// How many of them may be of one address, so that no pod or stranger takes the places of all.
pub const MAX_WAITING_OF_ONE: usize = 64;

/// Which objects besides pods decisions are made by: what is not needed is not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The namespaces of pods.
    pub namespaces: bool,
    /// The service accounts of pods without a role of their own.
    pub service_accounts: bool,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// This pod, and what is known around it.
    Found(Arc<Pod>, Surroundings),
    /// More than one living pod claims it.
    Ambiguous(Vec<Arc<Pod>>),
    /// A pod claims it whose present state cannot be read: nobody is served there. This is what it last was.
    Unreadable(Arc<Pod>),
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
    waiting: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among those who wait, until dropped.
struct Waiting<'a> {
    shared: &'a Shared,
    ip: IpAddr,
}

impl Shared {
    /// The index is plain data that every writer leaves whole, so a panic elsewhere does not spoil it.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place to wait in, where there is one.
    fn wait(&self, ip: IpAddr) -> Option<Waiting<'_>> {
        let mut waiting = self.waiting();
        let of_one = waiting.get(&ip).copied().unwrap_or(0);
        if of_one >= MAX_WAITING_OF_ONE || waiting.values().sum::<usize>() >= MAX_WAITING {
            return None;
        }
        waiting.insert(ip, of_one + 1);
        Some(Waiting { shared: self, ip })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        if let Some(count) = waiting.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.ip);
            }
        }
    }
}

/// The writing end of [`Pods`].
#[derive(Debug)]
pub struct PodsWriter {
    shared: Arc<Shared>,
    changed: signal::Sender<u64>,
}

/// An empty set of pods: the end to write and the end to read.
pub fn pods() -> (PodsWriter, Pods) {
    let (changed, changes) = signal::channel(0);
    let shared = Arc::new(Shared { index: RwLock::default(), waiting: Mutex::default() });
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
            Claims::Unreadable(pod) => Lookup::Unreadable(pod),
        }
    }

    /// Who has this address, waiting at most `at_most` for it to become known, for the API's word on it where several pods
    /// claim it, and for what is known of its pod to be `enough`. The watch's events wake the wait. An address of the node
    /// itself is not waited for: it never becomes a pod's. At most [`MAX_WAITING`] requests wait at one time, and at most
    /// [`MAX_WAITING_OF_ONE`] of one address; the others are answered by what is known.
    pub async fn wait_for_ip(&self, ip: IpAddr, at_most: Duration, enough: impl Fn(&Pod, &Surroundings) -> bool) -> Lookup {
        let is_enough = |lookup: &Lookup| match lookup {
            Lookup::Found(pod, around) => enough(pod, around),
            Lookup::Ambiguous(pods) => self.shared.read().is_confirmed(ip, pods),
            Lookup::Unreadable(_) => true,
            Lookup::Unknown => self.shared.read().is_node(ip),
        };
        let found = self.by_ip(ip);
        if is_enough(&found) {
            return found;
        }
        let Some(_waiting) = self.shared.wait(ip) else {
            return found;
        };
        let mut changes = self.changes.clone();
        let complete = async {
            loop {
                changes.mark_unchanged();
                let found = self.by_ip(ip);
                if is_enough(&found) || changes.changed().await.is_err() {
                    return found;
                }
            }
        };
        match tokio::time::timeout(at_most, complete).await {
            Ok(found) => found,
            Err(_) => self.by_ip(ip),
        }
    }

    /// Grows with every change: what was decided at one number still holds while it is the same.
    pub fn generation(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Every pod, for status pages; in the order of namespace and name.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.shared.read().all()
    }

    /// Every pod that may ask, now or when it has an address, with what is known around it, in no order; and whether there
    /// was a complete list of them.
    pub fn that_may_ask(&self) -> (bool, Vec<(Arc<Pod>, Surroundings)>) {
        let index = self.shared.read();
        (index.is_listed(), index.with_addresses().map(|pod| (pod.clone(), index.surroundings(pod))).collect())
    }

    /// The pod of this name, and what is known around it.
    pub fn named(&self, namespace: &str, name: &str) -> Option<(Arc<Pod>, Surroundings)> {
        let index = self.shared.read();
        let pod = index.all().into_iter().find(|pod| pod.namespace == namespace && pod.name == name)?;
        let around = index.surroundings(&pod);
        Some((pod, around))
    }

    /// Whether an address is the node's own.
    pub fn is_node(&self, ip: IpAddr) -> bool {
        self.shared.read().is_node(ip)
    }

    /// What is known of a namespace and a service account, whether or not there are pods of them.
    #[cfg(test)]
    pub(crate) fn around(&self, namespace: &str, service_account: &str) -> Surroundings {
        self.shared.read().around(namespace, service_account)
    }

    /// What is known of a namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.shared.read().namespace(name)
    }

    /// The addresses that several pods claim, with these.
    pub fn ambiguous(&self) -> Vec<(IpAddr, Vec<Arc<Pod>>)> {
        self.shared.read().ambiguous()
    }

    /// Whether this pod is here, be it readable or not.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.shared.read().contains(uid)
    }

    /// When the next claim of a terminating pod ends.
    pub fn next_claim_end(&self) -> Option<jiff::Timestamp> {
        self.shared.read().next_claim_end()
    }

    /// How many pods are known.
    pub fn count(&self) -> usize {
        self.shared.read().len()
    }

    /// The namespaces of the known pods.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.shared.read().namespaces_of_pods()
    }

    /// Namespace and name of the service accounts of the known pods that have no role of their own.
    pub fn service_accounts(&self) -> BTreeSet<(String, String)> {
        self.shared.read().service_accounts_of_pods()
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

//! The pods of this node, by their addresses, and those in the node's network by their UIDs. They identify the sender of a request.
//!
//! [`Pods`] is the read handle that requests are answered from. [`PodsWriter`] is the write handle; only the watch holds it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, watch as signal};

mod identifier;
pub mod index;
mod lookup;
mod manifest;
mod pins;
pub(crate) mod waiting;
pub mod watch;
mod witness;

pub use identifier::Identifier;
use index::{ByUid, Index};
pub use index::{
    Claims, HostNetworkRules, HostNetworkTreatment, Namespace, NodeAddresses, OwnPodName, Pod, PodContext, PodName, PodOwner, PodUid,
    Sandbox, ServiceAccount,
};
pub use lookup::Lookup;
pub use manifest::{ManifestContainer, ManifestMount, ManifestVariable, PodManifest, PodManifests, VolumeToken};
use waiting::{Places, RequestWaiter};
pub use witness::Objection;
use witness::{Judged, NodeWitness};

use crate::digest::Digest;
use crate::generation::Generation;
pub use crate::links::witness::RecordedPod;
use crate::links::witness::{Fixed, Witness};
use crate::shares::Network;

/// How often the node is checked for one answer if its view changes meanwhile.
const LOOKS: usize = 3;
/// The number of addresses that are pinned before other tasks get a turn.
const PINNED_AT_ONCE: usize = 16;
/// The maximum number of tasks that wait for a kernel query about an address of no pod.
const MAX_ASKING: usize = 128;

/// The objects besides pods that decisions depend on. Those that are not needed are not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The namespaces of pods.
    pub namespaces: bool,
    /// The service accounts of pods without a role of their own.
    pub service_accounts: bool,
    /// The owners of all pods, which the report names. The owners of static pods are read in any case.
    pub owners: bool,
}

/// The pods of this node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Pods {
    shared: Arc<SharedPods>,
    changes: signal::Receiver<u64>,
}

#[derive(Debug)]
struct SharedPods {
    index: RwLock<Index>,
    /// Advances with each change of the index.
    generation: Generation,
    node: NodeWitness,
    /// Whether the addresses of a complete list have been pinned.
    pinned: AtomicBool,
    waiting: Places,
    asking: Semaphore,
    turn: Mutex<()>,
}

impl SharedPods {
    /// Every writer leaves the index consistent, so a panic elsewhere does not invalidate it.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The write handle of [`Pods`].
#[derive(Debug)]
pub struct PodsWriter {
    shared: Arc<SharedPods>,
    changed: signal::Sender<u64>,
}

/// Creates an empty set of pods that relies on the API alone. Returns the write handle and the read handle.
pub fn pods() -> (PodsWriter, Pods) {
    pods_with(Arc::new(Fixed::blind()), None)
}

/// Creates an empty set of pods whose addresses are compared with what the node itself sees. Pods whose containers started before
/// `booted` have lost their network.
pub fn pods_with(witness: Arc<dyn Witness>, booted: Option<jiff::Timestamp>) -> (PodsWriter, Pods) {
    let (changed, changes) = signal::channel(0);
    let shared = Arc::new(SharedPods {
        index: RwLock::default(),
        generation: Generation::default(),
        node: NodeWitness::new(witness, booted),
        pinned: AtomicBool::new(false),
        waiting: Places::default(),
        asking: Semaphore::new(MAX_ASKING),
        turn: Mutex::new(()),
    });
    (PodsWriter { shared: shared.clone(), changed }, Pods { shared, changes })
}

impl PodsWriter {
    /// Changes the index, and wakes tasks that wait for a change.
    pub fn write<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let result = change(&mut self.shared.index.write().unwrap_or_else(PoisonError::into_inner));
        self.shared.generation.advance();
        self.changed.send_modify(|generation| *generation += 1);
        result
    }
}

fn lookup(index: &Index, judged: Judged) -> Lookup {
    match judged {
        Judged::Claims(Claims::One(pod)) => {
            let context = index.context(&pod);
            Lookup::Found(pod, context)
        }
        Judged::Claims(Claims::None) => Lookup::Unknown,
        Judged::Claims(Claims::Ambiguous(pods)) => Lookup::Ambiguous(pods),
        Judged::Claims(Claims::Unreadable(pod)) => Lookup::Unreadable(pod),
        Judged::Objected(pod, objection) => Lookup::Objected(pod, objection),
    }
}

impl Pods {
    /// Returns which pod has this address now.
    pub fn by_ip(&self, ip: IpAddr) -> Lookup {
        let index = self.shared.read();
        if let Some(judged) = self.shared.node.known(&index, ip) {
            return lookup(&index, judged);
        }
        drop(index);
        let mut looks = 1;
        loop {
            let view = self.shared.node.view(ip);
            let index = self.shared.read();
            if looks == LOOKS || self.shared.node.is_current(&view) {
                return lookup(&index, self.shared.node.judge(&index, ip, &view));
            }
            looks += 1;
        }
    }

    /// Returns which pod has this address, without querying the kernel and therefore without waiting. If the kernel would have to be
    /// queried, the error holds what the API alone says: it may be used to count connections, but not for decisions.
    pub fn at_once(&self, ip: IpAddr) -> Result<Lookup, Lookup> {
        let index = self.shared.read();
        match self.shared.node.known(&index, ip) {
            Some(judged) => Ok(lookup(&index, judged)),
            None => Err(lookup(&index, Judged::Claims(index.by_ip(ip)))),
        }
    }

    /// Returns the group that an address of no known pod is counted in. Behind bridges, the kernel is asked which pod's port
    /// leads to the address. These addresses can be invented, so only one query runs at a time, and they occupy one thread at
    /// most.
    pub async fn network_of(&self, ip: IpAddr) -> Network {
        let network = Network::from(ip);
        if !self.has_bridges() {
            return network;
        }
        // If too many tasks are waiting already, do not wait.
        let Ok(_asks) = self.shared.asking.try_acquire() else { return network };
        let _turn = self.shared.turn.lock().await;
        self.shared.node.witness().behind(ip).map_or(network, Network::Port)
    }

    /// Returns which pod has this address according to the API alone, for comparison. Decisions must not rely on it, because the
    /// node's own view may contradict it.
    #[doc(hidden)]
    pub fn by_api_alone(&self, ip: IpAddr) -> Lookup {
        let index = self.shared.read();
        lookup(&index, Judged::Claims(index.by_ip(ip)))
    }

    /// Returns the pod in the node's network that the kubelet knows by this UID. The kubelet names the pod's control group, and no UID
    /// is used again, so that the node itself confirms this however long the API has been silent.
    pub fn by_uid(&self, uid: &str) -> Lookup {
        let index = self.shared.read();
        match index.by_uid(uid) {
            ByUid::Living(pod) if !pod.host_network => Lookup::Objected(pod, Objection::NotInHostNetwork),
            ByUid::Living(pod) => {
                let context = index.context(&pod);
                Lookup::Found(pod, context)
            }
            ByUid::Unreadable(pod) => Lookup::Unreadable(pod),
            ByUid::None => Lookup::Unknown,
        }
    }

    /// Returns which pod this identifies now.
    pub fn find(&self, identifier: &Identifier) -> Lookup {
        match identifier {
            Identifier::Address(ip) => self.by_ip(*ip),
            Identifier::HostNetwork(uid) => self.by_uid(uid),
        }
    }

    /// Calls [`Self::wait_for`] for an address.
    pub async fn wait_for_ip(&self, ip: IpAddr, at_most: Duration, enough: impl Fn(&Pod, &PodContext) -> bool) -> Lookup {
        self.wait_for(&Identifier::Address(ip), at_most, enough).await
    }

    /// Returns which pod this identifies. Waits at most `at_most` until the pod is known, the API has confirmed the claims to its
    /// address if there are several, and what is known about the pod is `enough`. Events of the watch wake it. Does not wait for an
    /// address of the node itself, which never becomes a pod's. The number of waiting requests is bounded, see [`waiting`]; a
    /// request without a place is answered from what is known.
    pub async fn wait_for(&self, identifier: &Identifier, at_most: Duration, enough: impl Fn(&Pod, &PodContext) -> bool) -> Lookup {
        let is_enough = |lookup: &Lookup| match (lookup, identifier) {
            (Lookup::Found(pod, context), _) => enough(pod, context),
            (Lookup::Ambiguous(pods), Identifier::Address(ip)) => self.shared.read().is_confirmed(*ip, pods),
            (Lookup::Ambiguous(_), Identifier::HostNetwork(_)) | (Lookup::Unreadable(_), _) => true,
            // The API or the node may be about to report a change, unless the API has been silent for long. The network of a pod
            // does not change.
            (Lookup::Objected(_, objection), _) => matches!(objection, Objection::Stale | Objection::NotInHostNetwork),
            (Lookup::Unknown, Identifier::Address(ip)) => self.shared.read().is_node(*ip),
            (Lookup::Unknown, Identifier::HostNetwork(_)) => false,
        };
        let found = self.find(identifier);
        if is_enough(&found) {
            return found;
        }
        let waiter = match RequestWaiter::of(identifier, &found) {
            RequestWaiter::Unknown(ip, _) => RequestWaiter::Unknown(ip, self.network_of(ip).await),
            waiter => waiter,
        };
        let Some(place) = self.shared.waiting.take(&waiter) else {
            return found;
        };
        let (mut changes, mut seen) = (self.changes.clone(), self.shared.node.witness().changes());
        let complete = async {
            loop {
                changes.mark_unchanged();
                seen.mark_unchanged();
                let found = self.find(identifier);
                if is_enough(&found) {
                    return found;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() {
                        return found;
                    },
                    Ok(()) = seen.changed() => {}
                }
            }
        };
        tokio::select! {
            biased;
            found = complete => found,
            () = tokio::time::sleep(at_most) => self.find(identifier),
            () = place.lost() => self.find(identifier),
        }
    }

    /// Returns how many requests were not allowed to wait, or to continue waiting, for their pod since the start.
    pub fn waits_turned_away(&self) -> u64 {
        self.shared.waiting.turned_away()
    }

    /// Returns how many requests of this pod were not allowed to wait, or to continue waiting, in the last minutes.
    pub fn waits_turned_away_of(&self, pod: &Pod) -> Option<waiting::TurnedAwayRequests> {
        self.shared.waiting.turned_away_of(pod)
    }

    /// Returns a number that grows with every change: a decision holds while the number is unchanged.
    pub fn generation(&self) -> u64 {
        // Both only grow, so their sum changes with each of them.
        self.shared.generation.now().wrapping_add(self.shared.node.witness().generation())
    }

    /// Returns whether [`Self::by_ip`] finds this pod at the address, and finds it again as long as [`Self::generation`] is the same and
    /// [`Self::is_stale`] is false: the node has confirmed the claim, and nothing is left to compare.
    pub fn is_settled(&self, ip: IpAddr, uid: &PodUid) -> bool {
        let index = self.shared.read();
        matches!(self.shared.node.known(&index, ip), Some(Judged::Claims(Claims::One(pod))) if pod.uid == *uid)
    }

    /// Applies every change of the node's links that the kernel has announced so far. Call it before identifying the peer of a
    /// new connection: changes on which the peer's packets depended were announced before.
    pub fn catch_up(&self) {
        self.shared.node.witness().catch_up();
    }

    /// Calls [`Self::catch_up`] if pods are on bridges. Elsewhere, packets of pods cannot change what leads to an address.
    pub fn catch_up_on_bridges(&self) {
        if self.has_bridges() {
            self.catch_up();
        }
    }

    /// Compares every pod's addresses with what the node sees, pins those that are not pinned yet, and forgets the pins of
    /// deleted pods. A claim is pinned when it appears, because another pod might have the address later. Returns how many pods
    /// are on a bridge and may have the capability `NET_RAW`, with which they can change what leads to other pods' addresses.
    pub async fn pin(&self) -> Vec<Arc<Pod>> {
        self.catch_up();
        // Before the addresses of deleted pods are forgotten. Without a complete list, a pod that is not known may have the address.
        self.shared.node.witness().remove_leftovers(&|ip, removed| {
            let index = self.shared.read();
            index.is_listed()
                && match index.by_ip(ip) {
                    Claims::None => true,
                    // The kubelet reports the end of a pod later than its network is removed.
                    Claims::One(pod) => self.shared.node.pins().is_by_port(&pod.uid, ip, removed),
                    Claims::Ambiguous(_) | Claims::Unreadable(_) => false,
                }
        });
        let (was_listed, addresses): (_, Vec<_>) = {
            let index = self.shared.read();
            let mut kept = self.shared.node.pins().keep(&index.digests());
            let addresses: Vec<_> = index.with_addresses().flat_map(|pod| pod.ips.iter().copied()).collect();
            kept.extend(addresses.iter().map(|ip| Digest::of_ip(*ip).short()));
            self.shared.node.witness().keep(&|ip| kept.contains(&Digest::of_ip(ip).short()));
            (index.is_listed(), addresses)
        };
        for (done, ip) in addresses.into_iter().enumerate() {
            self.by_ip(ip);
            if done % PINNED_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
        let index = self.shared.read();
        if was_listed {
            self.shared.pinned.store(true, Ordering::Relaxed);
        }
        let may_forge = |pod: &&Arc<Pod>| pod.may_have_net_raw && self.shared.node.pins().is_behind_bridge(&pod.uid);
        index.with_addresses().filter(may_forge).cloned().collect()
    }

    /// Returns a receiver of changes of what the node sees.
    pub fn witness_changes(&self) -> signal::Receiver<u64> {
        self.shared.node.witness().changes()
    }

    /// Sets whether the API has been silent for longer than the operator allows. Pods are then served only if the node itself
    /// confirms their claims.
    pub fn set_stale(&self, stale: bool) {
        self.shared.node.set_stale(stale);
    }

    /// Returns whether pods are behind bridges, where they can forge what leads to others' addresses.
    pub fn has_bridges(&self) -> bool {
        self.shared.node.witness().has_bridges()
    }

    /// Returns which pods a new connection may belong to, if the API assigns its address to no pod: `None` if to any pod that gets
    /// the address later. Behind bridges, another pod may use the address until then. If CNI results name each pod before it can
    /// send anything, they name the client already. Until the links of all pods are pinned for the first time, nobody else is
    /// trusted either.
    pub fn candidates(&self, ip: IpAddr) -> Option<Vec<RecordedPod>> {
        let witness = self.shared.node.witness();
        let are_limited = self.has_bridges() && (!self.shared.pinned.load(Ordering::Relaxed) || witness.has_records());
        are_limited.then(|| witness.recorded(ip))
    }

    /// Sets the time of the node's last boot, by its current clock.
    pub fn booted_at(&self, booted: jiff::Timestamp) {
        self.shared.node.booted_at(booted);
    }

    /// Returns whether the API has been silent for longer than the operator allows.
    pub fn is_stale(&self) -> bool {
        self.shared.node.is_stale()
    }

    /// Returns every pod, in the order of namespace and name, for status pages.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.shared.read().all()
    }

    /// Returns every pod with its context, in the order of namespace and name, for status pages.
    pub fn all_with_context(&self) -> Vec<(Arc<Pod>, PodContext)> {
        let index = self.shared.read();
        index.all().into_iter().map(|pod| (pod.clone(), index.context(&pod))).collect()
    }

    /// Returns every pod that may send requests, now or once it has an address, with its context and in no particular order,
    /// and whether there was a complete list of pods.
    pub fn that_may_ask(&self) -> (bool, Vec<(Arc<Pod>, PodContext)>) {
        let index = self.shared.read();
        (index.is_listed(), index.that_may_ask().map(|pod| (pod.clone(), index.context(pod))).collect())
    }

    /// Whether the API has sent a complete list of this node's pods. Until then, a pod that is not known may exist.
    pub fn is_listed(&self) -> bool {
        self.shared.read().is_listed()
    }

    /// Returns the pod with this name, and its context.
    pub fn named(&self, namespace: &str, name: &str) -> Option<(Arc<Pod>, PodContext)> {
        let index = self.shared.read();
        let pod = index.all().into_iter().find(|pod| pod.namespace == namespace && pod.name == name)?;
        let context = index.context(&pod);
        Some((pod, context))
    }

    /// Returns whether an address is the node's own.
    pub fn is_node(&self, ip: IpAddr) -> bool {
        self.shared.read().is_node(ip)
    }

    /// Returns what is known about a namespace and a service account, whether or not there are pods of them.
    #[cfg(test)]
    pub(crate) fn context(&self, namespace: &str, service_account: &str) -> PodContext {
        self.shared.read().context_of(namespace, service_account)
    }

    /// Returns what is known about a namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.shared.read().namespace(name)
    }

    /// Returns the addresses that several pods claim, with these pods.
    pub fn ambiguous(&self) -> Vec<(IpAddr, Vec<Arc<Pod>>)> {
        self.shared.read().ambiguous()
    }

    /// Returns whether this pod is on the node, readable or not.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.shared.read().contains(uid)
    }

    /// Returns when the next claim of a terminating pod ends.
    pub fn next_claim_end(&self) -> Option<jiff::Timestamp> {
        self.shared.read().next_claim_end()
    }

    /// Returns the number of known pods.
    pub fn count(&self) -> usize {
        self.shared.read().len()
    }

    /// Returns whether a namespace has a pod here.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.shared.read().has_namespace(name)
    }

    /// Returns the namespaces of the known pods.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.shared.read().namespaces()
    }

    /// Returns whether the settings refuse this pod, which is in the node's network.
    pub fn denies_in_host_network(&self, pod: &Pod) -> bool {
        self.shared.read().host_network().denies(pod)
    }

    /// Returns what happens to the requests of a pod that is in the node's network.
    pub fn host_network_treatment(&self, pod: &Pod) -> HostNetworkTreatment {
        self.shared.read().host_network().treatment(pod)
    }

    /// Returns the rules for pods in the node's network.
    pub fn host_network_rules(&self) -> HostNetworkRules {
        self.shared.read().host_network().clone()
    }

    /// Returns the living pods in the node's network, in no particular order.
    pub fn in_host_network(&self) -> Vec<Arc<Pod>> {
        self.shared.read().in_host_network().cloned().collect()
    }

    /// Returns the namespaces of known pods that can be served: pods that are not finished and, unless they are served, not in the
    /// host network.
    pub fn namespaces_to_follow(&self) -> BTreeSet<String> {
        self.shared.read().namespaces_of_pods()
    }

    /// Returns the namespace and name of the service accounts of pods that can be served and have no role of their own.
    pub fn service_accounts(&self) -> BTreeSet<(String, String)> {
        self.shared.read().service_accounts_of_pods()
    }

    /// Returns when something changed since the last call on this handle.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The writer is gone, so nothing will change.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests;

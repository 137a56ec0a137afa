//! Maps addresses to pods: pure data, no I/O.
//!
//! A pod *claims* the addresses in its `status.podIPs` unless it is finished (Succeeded, Failed) or runs in the host network. A
//! terminating pod keeps its claim until it is deleted or its time is over, but yields to a pod that is not terminating,
//! because the address was reassigned to that pod. The caller passes the time in ([`Index::end_claims`]). Two claims of equal
//! standing are not resolved here: the answer contains both.
//!
//! A pod whose current state cannot be read keeps its claim to its last known addresses but is not served: no pod is served at
//! these addresses until the pod can be read again or is gone. If the addresses of such a pod are not known, it may have any
//! address that a terminating pod had. The node's own addresses belong to no pod.
//!
//! A pod in the host network is found by its UID, which its control group shows.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

mod by_uid;
mod claims;
mod context;
mod host_network;
mod known;
mod named;
mod needs;
mod tombstones;

pub use host_network::{HostNetworkRules, HostNetworkTreatment, OwnPodName};
pub use known::{ByUid, Claims, Namespace, NodeAddresses, Pod, PodContext, PodName, PodOwner, PodUid, Sandbox, ServiceAccount};
use named::Named;
use needs::PodNeeds;
use tombstones::Tombstones;

use self::known::{Name, is_older};
use crate::digest::Digest;

/// A pod and its `metadata.resourceVersion`, if that is a number.
#[derive(Debug)]
struct VersionedPod {
    pod: Arc<Pod>,
    version: Option<u64>,
}

/// A pod whose state at this version could not be read, with its last readable state, if known.
#[derive(Debug)]
struct Unreadable {
    last: Option<Arc<Pod>>,
    name: Name,
    version: Option<u64>,
}

/// The pods of one node, with their namespaces and service accounts.
///
/// Changes that carry a version are applied in the order of versions: Kubernetes' resource versions grow with every change, and
/// are comparable as numbers. An older state never replaces a newer one, and a deleted pod does not come back, in whatever
/// order events, lists and responses arrive. Versions that are not numbers are applied in the order of arrival.
#[derive(Debug, Default)]
pub struct Index {
    pods: HashMap<PodUid, VersionedPod>,
    /// The pods that name an address, whether or not they may claim it now.
    by_ip: HashMap<IpAddr, Named>,
    /// Usually empty.
    unreadable: HashMap<PodUid, Unreadable>,
    /// Whether the last list had an object without a readable UID, which may be any pod.
    incomplete: bool,
    /// Two pods with the same name, readable or not, cannot exist at the same time. Keyed by the name's digest: the pods hold
    /// the names already, and a second copy would be a large part of the index's size.
    by_name: HashMap<Digest, PodUid>,
    tombstones: Tombstones,
    needs: PodNeeds,
    /// The version of the last list: a pod that was not in it did not exist then.
    listed_at: Option<u64>,
    /// Whether there was a complete list.
    listed: bool,
    /// The latest time that was passed in: claims that end by then have ended.
    now: Timestamp,
    node: NodeAddresses,
    host_ips: BTreeSet<IpAddr>,
    /// Addresses for which the API has confirmed several claims.
    confirmed: HashMap<IpAddr, Vec<PodUid>>,
    namespaces: HashMap<String, Arc<Namespace>>,
    service_accounts: HashMap<Name, Arc<ServiceAccount>>,
    forbidden_service_accounts: HashSet<Name>,
    host_network: HostNetworkRules,
}

impl Index {
    /// Adds or replaces a pod. Another pod with the same name and a different UID is gone and is removed.
    pub fn apply(&mut self, pod: Pod) {
        self.apply_at(pod, None);
    }

    /// Applies the state of a pod at this version, unless a later state is known.
    pub fn apply_at(&mut self, pod: Pod, version: Option<u64>) {
        let name = (pod.namespace.clone(), pod.name.clone());
        if self.is_news(&pod.uid, &name, version) {
            self.hold(pod, version);
        }
    }

    /// Records that a pod's state at this version cannot be read: the pod is no longer known, and its addresses go to no other
    /// pod.
    pub fn unreadable_at(&mut self, pod: PodName, version: Option<u64>) {
        let last = self.last_of(&pod.uid);
        self.refuse(pod, version, last);
    }

    fn refuse(&mut self, pod: PodName, version: Option<u64>, last: Option<Arc<Pod>>) {
        let PodName { uid, namespace, name } = pod;
        let name = (namespace, name);
        if !self.is_news(&uid, &name, version) {
            return;
        }
        // If the version cannot be read either, older states remain older.
        let version = version.max(self.version_of(&uid).flatten());
        self.remove(&uid);
        self.by_name.insert(Digest::of_pod(&name.0, &name.1), uid.clone());
        if let Some(last) = &last {
            self.needs.add_claim_end(last);
        }
        self.unreadable.insert(uid, Unreadable { last, name, version });
    }

    /// Returns whether a state with this version is newer than what is known, for a pod that is not gone. Removes another pod
    /// that this shows to be gone.
    fn is_news(&mut self, uid: &PodUid, name: &Name, version: Option<u64>) -> bool {
        if self.tombstones.cover(uid, name, version) {
            return false;
        }
        match self.version_of(uid) {
            Some(known) if is_older(version, known) => return false,
            // The pod is unknown and was in no list: it was gone by the time of the list.
            None if is_older(version, self.listed_at) || version.is_some() && version == self.listed_at => return false,
            _ => {}
        }
        if let Some(other) = self.of_name(name).filter(|other| other != uid) {
            let version_of_other = self.version_of(&other).flatten();
            if is_older(version, version_of_other) {
                // The other pod had the name afterwards.
                self.remove(uid);
                self.tombstones.add(uid.clone(), name.clone(), version, version_of_other);
                return false;
            }
            self.remove(&other);
            if version.is_some() && version_of_other.is_some() {
                self.tombstones.add(other, name.clone(), version_of_other, version);
            }
        }
        true
    }

    /// Returns the version of the latest known state of a pod; `None` if no state is known.
    fn version_of(&self, uid: &PodUid) -> Option<Option<u64>> {
        let readable = self.pods.get(uid).map(|held| held.version);
        readable.or_else(|| self.unreadable.get(uid).map(|unreadable| unreadable.version))
    }

    /// Returns the last readable state of a pod.
    fn last_of(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let readable = self.pods.get(uid).map(|held| held.pod.clone());
        readable.or_else(|| self.unreadable.get(uid).and_then(|unreadable| unreadable.last.clone()))
    }

    fn name_of(&self, uid: &PodUid) -> Option<Name> {
        let readable = self.pods.get(uid).map(|held| (held.pod.namespace.clone(), held.pod.name.clone()));
        readable.or_else(|| self.unreadable.get(uid).map(|unreadable| unreadable.name.clone()))
    }

    /// Returns the pod that has this name.
    fn of_name(&self, name: &Name) -> Option<PodUid> {
        let uid = self.by_name.get(&Digest::of_pod(&name.0, &name.1))?;
        self.name_of(uid).filter(|other| other == name).map(|_| uid.clone())
    }

    fn hold(&mut self, pod: Pod, version: Option<u64>) {
        self.remove(&pod.uid);
        for ip in &pod.ips {
            self.by_ip.entry(*ip).and_modify(|named| named.add(&pod.uid)).or_insert_with(|| Named::by(pod.uid.clone()));
        }
        self.by_name.insert(Digest::of_pod(&pod.namespace, &pod.name), pod.uid.clone());
        self.needs.add(&pod, self.may_send(&pod));
        self.pods.insert(pod.uid.clone(), VersionedPod { pod: Arc::new(pod), version });
    }

    /// Forgets a pod. A pod with another UID that has its name by now stays.
    pub fn delete(&mut self, uid: &PodUid) {
        self.remove(uid);
    }

    /// Records the deletion of a pod, which never comes back.
    pub fn delete_at(&mut self, uid: &PodUid, namespace: &str, name: &str, version: Option<u64>) {
        self.remove(uid);
        let name = (namespace.to_owned(), name.to_owned());
        // A pod with this name that was seen before this one was deleted had been deleted earlier.
        if let Some(other) = self.of_name(&name) {
            let version_of_other = self.version_of(&other).flatten();
            if is_older(version_of_other, version) {
                self.remove(&other);
                self.tombstones.add(other, name.clone(), version_of_other, version);
            }
        }
        self.tombstones.add(uid.clone(), name, version, version);
    }

    /// Records that a pod did not exist at this version, according to a response of the API. Later information about it stays.
    pub fn gone_at(&mut self, uid: &PodUid, version: Option<u64>) {
        let Some((name, seen)) = self.name_of(uid).zip(self.version_of(uid)) else {
            return;
        };
        if !is_older(version, seen) {
            self.remove(uid);
            self.tombstones.add(uid.clone(), name, seen, version);
        }
    }

    /// Replaces all pods at once, and discards all known versions.
    pub fn reset(&mut self, pods: impl IntoIterator<Item = Pod>) {
        self.replace_at(pods.into_iter().map(|pod| (pod, None)), [], None, false);
    }

    /// Replaces all pods with those of a list from another history: the API's data was restored from an earlier state, and its
    /// versions started over.
    pub fn replace_at(
        &mut self,
        pods: impl IntoIterator<Item = (Pod, Option<u64>)>,
        unreadable: impl IntoIterator<Item = (PodName, Option<u64>)>,
        version: Option<u64>,
        incomplete: bool,
    ) {
        // A UID identifies the same pod in every history.
        let with_last = |(pod, version): (PodName, Option<u64>)| (self.last_of(&pod.uid), pod, version);
        let unreadable: Vec<_> = unreadable.into_iter().map(with_last).collect();
        let before = if incomplete { self.with_last() } else { Vec::new() };
        self.pods.clear();
        self.by_ip.clear();
        self.by_name.clear();
        self.unreadable.clear();
        self.tombstones.clear();
        self.needs = PodNeeds::default();
        self.listed_at = None;
        for (pod, version) in pods {
            self.apply_at(pod, version);
        }
        for (last, pod, version) in unreadable {
            self.refuse(pod, version, last);
        }
        for (pod, last) in before {
            let is_listed = self.version_of(&pod.uid).is_some();
            if !is_listed && self.of_name(&(pod.namespace.clone(), pod.name.clone())).is_none() {
                self.refuse(pod, None, last);
            }
        }
        self.incomplete = incomplete;
        self.listed_at = version;
        self.listed = true;
    }

    /// Returns the names of every pod, with its last readable state.
    fn with_last(&self) -> Vec<(PodName, Option<Arc<Pod>>)> {
        let names = |uid: &PodUid| {
            let (namespace, name) = self.name_of(uid)?;
            Some((PodName { uid: uid.clone(), namespace, name }, self.last_of(uid)))
        };
        self.pods.keys().chain(self.unreadable.keys()).filter_map(names).collect()
    }

    /// Applies a complete list, as of its version, with the pods in it that could not be read. Pods that are not in it are
    /// gone, except those known to have existed later. Pods that are in it exist, even if their deletion was reported, except
    /// those known to have been deleted later. A list that is older than the last one is ignored. If the list is `incomplete`,
    /// because an object in it cannot be matched to any pod, pods that are not in it may still exist: their state counts as
    /// unreadable.
    pub fn list_at(
        &mut self,
        pods: impl IntoIterator<Item = (Pod, Option<u64>)>,
        unreadable: impl IntoIterator<Item = (PodName, Option<u64>)>,
        version: Option<u64>,
        incomplete: bool,
    ) {
        if is_older(version, self.listed_at) {
            return;
        }
        let list_version = version;
        let mut unlisted: HashSet<PodUid> = self.pods.keys().chain(self.unreadable.keys()).cloned().collect();
        // Unknown pods in this list exist, whatever the earlier list contained.
        self.listed_at = None;
        for (pod, version) in pods {
            unlisted.remove(&pod.uid);
            self.tombstones.lift(&pod.uid, list_version);
            self.apply_at(pod, version);
        }
        for (pod, version) in unreadable {
            unlisted.remove(&pod.uid);
            self.tombstones.lift(&pod.uid, list_version);
            self.unreadable_at(pod, version);
        }
        for uid in unlisted {
            let Some((name, seen)) = self.name_of(&uid).zip(self.version_of(&uid)) else {
                continue;
            };
            if is_older(list_version, seen) {
                continue;
            }
            if incomplete {
                let last = self.last_of(&uid);
                let (namespace, name) = name;
                self.refuse(PodName { uid, namespace, name }, seen, last);
                continue;
            }
            self.remove(&uid);
            if list_version.is_some() && seen.is_some() {
                self.tombstones.add(uid, name, seen, list_version);
            }
        }
        self.incomplete = incomplete;
        self.listed_at = list_version;
        self.listed = true;
    }

    /// Returns whether all pods have been listed once.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    fn remove(&mut self, uid: &PodUid) {
        if let Some((namespace, name)) = self.name_of(uid) {
            let digest = Digest::of_pod(&namespace, &name);
            if self.by_name.get(&digest) == Some(uid) {
                self.by_name.remove(&digest);
            }
        }
        if let Some(Unreadable { last: Some(last), .. }) = self.unreadable.remove(uid) {
            self.needs.remove_claim_end(&last);
        }
        let Some(VersionedPod { pod, .. }) = self.pods.remove(uid) else {
            return;
        };
        self.needs.remove(&pod, self.may_send(&pod));
        for ip in &pod.ips {
            if self.by_ip.get_mut(ip).is_some_and(|named| named.remove(uid)) {
                self.by_ip.remove(ip);
            }
        }
    }

    /// Sets the time: claims that end by then end for good. A clock that is set back does not restore them.
    pub fn end_claims(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Returns when the next claim ends that has not ended by the time passed in.
    pub fn next_claim_end(&self) -> Option<Timestamp> {
        self.needs.next_claim_end(self.now)
    }

    /// Sets the addresses that pods report for their node. They are used if the node's interfaces are not known.
    pub fn set_host_ips(&mut self, ips: impl IntoIterator<Item = IpAddr>) {
        self.host_ips = ips.into_iter().collect();
    }

    /// Adds to the addresses that pods report for their node.
    pub fn add_host_ips(&mut self, ips: impl IntoIterator<Item = IpAddr>) {
        self.host_ips.extend(ips);
    }

    /// Sets the node's own addresses.
    pub fn set_node(&mut self, node: NodeAddresses) {
        self.node = node;
    }

    /// Returns whether a namespace has a pod here.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.needs.has_namespace(name)
    }

    /// Returns the namespaces that pods here are in.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.needs.all_namespaces()
    }

    /// Returns the namespaces of pods that can be served: pods that are not finished and, unless they are served, not in the host
    /// network. The kubelet limits their number; finished pods stay as long as their authors like.
    pub fn namespaces_of_pods(&self) -> BTreeSet<String> {
        self.needs.namespaces()
    }

    /// Returns the namespace and name of the service accounts of pods that can be served and have no role of their own.
    pub fn service_accounts_of_pods(&self) -> BTreeSet<(String, String)> {
        self.needs.service_accounts()
    }

    /// Returns every pod, in the order of namespace and name.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<_> = self.pods.values().map(|held| held.pod.clone()).collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }

    /// Returns the pods that have addresses of their own, or may get them, in no particular order.
    pub fn with_addresses(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().map(|held| &held.pod).filter(|pod| pod.may_claim(self.now))
    }

    /// Returns the pods whose requests may be served, now or once they have an address, in no particular order.
    pub fn that_may_ask(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().map(|held| &held.pod).filter(|pod| pod.may_run(self.now) && self.may_send(pod))
    }

    /// Returns the digests of the UIDs of all known pods, readable or not.
    pub(super) fn digests(&self) -> HashSet<Digest> {
        self.pods.keys().chain(self.unreadable.keys()).map(PodUid::digest).collect()
    }

    /// Returns whether this pod is known, readable or not.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.pods.contains_key(uid) || self.unreadable.contains_key(uid)
    }

    /// Returns the number of pods.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Returns whether there are no pods.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

#[cfg(test)]
mod tests;

//! Which pod has which address: pure data, no I/O.
//!
//! A pod *claims* the addresses of its `status.podIPs` unless it is finished (Succeeded, Failed) or runs in the host's
//! network. A terminating pod keeps its claim until it is deleted or its time is over, but yields to a pod that is not
//! terminating: the address was given to that one. Its time is told from outside ([`Index::end_claims`]). Two claims of equal standing are not told apart here: the answer is both of them. A pod
//! whose present state cannot be read keeps its claim to what it last had, and is not served: nobody is at that address
//! until it can be read again, or is gone. Where it is not known which address such a pod has, it may be any that a
//! terminating pod had. The node's own addresses are nobody's.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

mod claims;
mod context;
mod known;
mod named;
mod needs;
mod tombstones;

pub use known::{Claims, Namespace, NodeAddresses, Pod, PodContext, PodName, PodUid, Sandbox, ServiceAccount};
use named::Named;
use needs::PodNeeds;
use tombstones::Tombstones;

use self::known::{Name, is_older};
use crate::digest::Digest;

/// A pod, and when it was so: its `metadata.resourceVersion`, where that is a number.
#[derive(Debug)]
struct VersionedPod {
    pod: Arc<Pod>,
    version: Option<u64>,
}

/// A pod whose state at this version could not be read, and what it was before, where that is known.
#[derive(Debug)]
struct Unreadable {
    last: Option<Arc<Pod>>,
    name: Name,
    version: Option<u64>,
}

/// The pods of one node, and the namespaces and service accounts that they are in.
///
/// What is told with a version is kept in the order of versions: Kubernetes' resource versions grow with every change, and
/// are comparable as numbers. An older state never replaces a newer one, and a pod that is gone does not come back, in
/// whatever order events, lists and answers come in. Versions that are no numbers are taken in the order they come in.
#[derive(Debug, Default)]
pub struct Index {
    pods: HashMap<PodUid, VersionedPod>,
    /// Which pods name an address, whether or not they may claim it now.
    by_ip: HashMap<IpAddr, Named>,
    /// Mostly none.
    unreadable: HashMap<PodUid, Unreadable>,
    /// The last list had an object of which not even a UID could be read: it may be any pod.
    incomplete: bool,
    /// Two pods of one name cannot be there at one time, be they readable or not. By the name's digest: the names are in the
    /// pods already, and would be a good part of what the index weighs.
    by_name: HashMap<Digest, PodUid>,
    tombstones: Tombstones,
    needs: PodNeeds,
    /// The version of the last list: a pod that was not in it was not there then.
    listed_at: Option<u64>,
    /// There was a complete list.
    listed: bool,
    /// The latest time that was told: claims that end by it have ended.
    now: Timestamp,
    node: NodeAddresses,
    host_ips: BTreeSet<IpAddr>,
    /// Addresses whose several claims are so by the API's own word.
    confirmed: HashMap<IpAddr, Vec<PodUid>>,
    namespaces: HashMap<String, Arc<Namespace>>,
    service_accounts: HashMap<Name, Arc<ServiceAccount>>,
    forbidden_service_accounts: HashSet<Name>,
}

impl Index {
    /// Adds a pod, or replaces what was known of it. A pod of the same name with another UID is gone by that.
    pub fn apply(&mut self, pod: Pod) {
        self.apply_at(pod, None);
    }

    /// Takes in a pod as it was at this version, unless something later is known of it.
    pub fn apply_at(&mut self, pod: Pod, version: Option<u64>) {
        let name = (pod.namespace.clone(), pod.name.clone());
        if self.is_news(&pod.uid, &name, version) {
            self.hold(pod, version);
        }
    }

    /// A pod has a state at this version that cannot be read: it is not known any more, and nobody gets the addresses that
    /// it had.
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
        // Where its version cannot be read either, what was before it is still before it.
        let version = version.max(self.version_of(&uid).flatten());
        self.remove(&uid);
        self.by_name.insert(Digest::of_pod(&name.0, &name.1), uid.clone());
        if let Some(last) = &last {
            self.needs.add_claim_end(last);
        }
        self.unreadable.insert(uid, Unreadable { last, name, version });
    }

    /// Whether a state of this version is later than what is known of the pod, and the pod is not gone. Another pod that
    /// is gone by that is removed.
    fn is_news(&mut self, uid: &PodUid, name: &Name, version: Option<u64>) -> bool {
        if self.tombstones.cover(uid, name, version) {
            return false;
        }
        match self.version_of(uid) {
            Some(known) if is_older(version, known) => return false,
            // It is in no list and not known: it was gone by the list's time.
            None if is_older(version, self.listed_at) || version.is_some() && version == self.listed_at => return false,
            _ => {}
        }
        if let Some(other) = self.of_name(name).filter(|other| other != uid) {
            let version_of_other = self.version_of(&other).flatten();
            if is_older(version, version_of_other) {
                // The other had the name afterwards.
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

    /// The version of the last state of a pod that was heard of; `None` where none was.
    fn version_of(&self, uid: &PodUid) -> Option<Option<u64>> {
        let readable = self.pods.get(uid).map(|held| held.version);
        readable.or_else(|| self.unreadable.get(uid).map(|unreadable| unreadable.version))
    }

    /// The last state of a pod that could be read.
    fn last_of(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let readable = self.pods.get(uid).map(|held| held.pod.clone());
        readable.or_else(|| self.unreadable.get(uid).and_then(|unreadable| unreadable.last.clone()))
    }

    fn name_of(&self, uid: &PodUid) -> Option<Name> {
        let readable = self.pods.get(uid).map(|held| (held.pod.namespace.clone(), held.pod.name.clone()));
        readable.or_else(|| self.unreadable.get(uid).map(|unreadable| unreadable.name.clone()))
    }

    /// The pod that has this name.
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
        self.needs.add(&pod);
        self.pods.insert(pod.uid.clone(), VersionedPod { pod: Arc::new(pod), version });
    }

    /// Forgets a pod. That of another UID which has its name by now stays.
    pub fn delete(&mut self, uid: &PodUid) {
        self.remove(uid);
    }

    /// A pod was deleted, and never comes back.
    pub fn delete_at(&mut self, uid: &PodUid, namespace: &str, name: &str, version: Option<u64>) {
        self.remove(uid);
        let name = (namespace.to_owned(), name.to_owned());
        // A pod of the name that was seen before this one went had gone before.
        if let Some(other) = self.of_name(&name) {
            let version_of_other = self.version_of(&other).flatten();
            if is_older(version_of_other, version) {
                self.remove(&other);
                self.tombstones.add(other, name.clone(), version_of_other, version);
            }
        }
        self.tombstones.add(uid.clone(), name, version, version);
    }

    /// A pod was not there at this version, by the API's answer to a question about it. What was heard of it later stays.
    pub fn gone_at(&mut self, uid: &PodUid, version: Option<u64>) {
        let Some((name, seen)) = self.name_of(uid).zip(self.version_of(uid)) else {
            return;
        };
        if !is_older(version, seen) {
            self.remove(uid);
            self.tombstones.add(uid.clone(), name, seen, version);
        }
    }

    /// Replaces all pods at once, and all that was known of versions.
    pub fn reset(&mut self, pods: impl IntoIterator<Item = Pod>) {
        self.replace_at(pods.into_iter().map(|pod| (pod, None)), [], None, false);
    }

    /// Replaces all pods by those of a list of another history than what was known: the API's data was restored from an
    /// earlier state, and its versions began anew.
    pub fn replace_at(
        &mut self,
        pods: impl IntoIterator<Item = (Pod, Option<u64>)>,
        unreadable: impl IntoIterator<Item = (PodName, Option<u64>)>,
        version: Option<u64>,
        incomplete: bool,
    ) {
        // A UID is the same pod in every history.
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

    /// Every pod by its names, with the last state of it that could be read.
    fn with_last(&self) -> Vec<(PodName, Option<Arc<Pod>>)> {
        let names = |uid: &PodUid| {
            let (namespace, name) = self.name_of(uid)?;
            Some((PodName { uid: uid.clone(), namespace, name }, self.last_of(uid)))
        };
        self.pods.keys().chain(self.unreadable.keys()).filter_map(names).collect()
    }

    /// Takes in a complete list, as of its version, with the pods in it that could not be read. Pods that are not in it are
    /// gone, but for those that are known to have been there later; pods that are in it are there, whatever was heard of
    /// their end, but for those that are known to have gone later. A list that is older than the last one is not taken.
    /// Where it is `incomplete`, by an object that is nobody's by what can be read of it, pods that are not in it may be there
    /// as well: their state counts as one that cannot be read.
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
        // Pods that are not known and in the list are there whatever the earlier list said.
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

    /// Whether all pods were listed once.
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
        self.needs.remove(&pod);
        for ip in &pod.ips {
            if self.by_ip.get_mut(ip).is_some_and(|named| named.remove(uid)) {
                self.by_ip.remove(ip);
            }
        }
    }

    /// It is this time now: claims that end by it end for good. A clock that is set back brings none back.
    pub fn end_claims(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// When the next claim ends that has not ended by the time that was told.
    pub fn next_claim_end(&self) -> Option<Timestamp> {
        self.needs.next_claim_end(self.now)
    }

    /// Sets what pods say of their node's addresses. It counts where the node's interfaces are not known.
    pub fn set_host_ips(&mut self, ips: impl IntoIterator<Item = IpAddr>) {
        self.host_ips = ips.into_iter().collect();
    }

    /// Adds to what pods say of their node's addresses.
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

    /// Returns the namespaces of pods that can be served: neither finished nor in the node's network. The kubelet limits how many
    /// these are; finished pods stay as long as their authors like.
    pub fn namespaces_of_pods(&self) -> BTreeSet<String> {
        self.needs.namespaces()
    }

    /// Returns namespace and name of the service accounts of pods that can be served and have no role of their own.
    pub fn service_accounts_of_pods(&self) -> BTreeSet<(String, String)> {
        self.needs.service_accounts()
    }

    /// Every pod, in the order of namespace and name.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<_> = self.pods.values().map(|held| held.pod.clone()).collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }

    /// The pods that have addresses of their own, or may come to have them; in no order.
    pub fn with_addresses(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().map(|held| &held.pod).filter(|pod| pod.may_claim(self.now))
    }

    /// The digests of the UIDs of all pods of which anything is known, be they readable or not.
    pub(super) fn digests(&self) -> HashSet<Digest> {
        self.pods.keys().chain(self.unreadable.keys()).map(PodUid::digest).collect()
    }

    /// Whether this pod is here, be it readable or not.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.pods.contains_key(uid) || self.unreadable.contains_key(uid)
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

#[cfg(test)]
mod tests;

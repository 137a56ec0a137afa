//! Which pod has which address: pure data, no I/O.
//!
//! A pod *claims* the addresses of its `status.podIPs` unless it is finished (Succeeded, Failed) or runs in the host's
//! network. A terminating pod keeps its claim until it is deleted, but yields to a pod that is not terminating: the
//! address was given to that one. Two claims of equal standing are not told apart here: the answer is both of them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// A pod's `metadata.uid`: the one name that is never used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Box<str>);

/// What is known of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Never used again for another pod.
    pub uid: PodUid,
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace at one time.
    pub name: String,
    /// The annotation that names its role, as it stands.
    pub role: Option<String>,
    /// The annotation with the external id, as it stands.
    pub external_id: Option<String>,
    /// The annotation with the session's name, as it stands.
    pub session_name: Option<String>,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// Phase Succeeded or Failed: it has no address any more, whatever its status says.
    pub finished: bool,
    /// Its deletion has begun.
    pub terminating: bool,
    /// It has the node's address, and is not told from the node.
    pub host_network: bool,
}

impl Pod {
    fn claims(&self, ip: IpAddr) -> bool {
        !self.finished && !self.host_network && self.ips.contains(&ip)
    }
}

/// What is known of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The name.
    pub name: String,
    /// The annotation with the list of allowed roles (kube2iam's), as it stands.
    pub allowed_roles: Option<String>,
}

/// What is known of the objects that a pod is decided by, besides the pod itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The pod's namespace.
    pub namespace: Option<Arc<Namespace>>,
}

/// Who claims an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claims {
    /// Nobody.
    None,
    /// One pod.
    One(Arc<Pod>),
    /// Pods of equal standing.
    Several(Vec<Arc<Pod>>),
}

/// The pods of one node, and the namespaces that they are in.
#[derive(Debug, Default)]
pub struct Index {
    pods: HashMap<PodUid, Arc<Pod>>,
    /// Which pods name an address, whether or not they may claim it now.
    by_ip: HashMap<IpAddr, Vec<PodUid>>,
    /// Two pods of one name cannot be there at one time; the API's events are ordered per name.
    by_name: HashMap<(String, String), PodUid>,
    namespaces: HashMap<String, Arc<Namespace>>,
}

impl Index {
    /// Adds a pod, or replaces what was known of it. A pod of the same name with another UID is gone by that.
    pub fn apply(&mut self, pod: Pod) {
        let name = (pod.namespace.clone(), pod.name.clone());
        if let Some(earlier) = self.by_name.insert(name, pod.uid.clone()) {
            self.remove(&earlier);
        }
        self.remove(&pod.uid);
        for ip in &pod.ips {
            let named = self.by_ip.entry(*ip).or_default();
            // An address that a pod names twice is one claim.
            if !named.contains(&pod.uid) {
                named.push(pod.uid.clone());
            }
        }
        self.pods.insert(pod.uid.clone(), Arc::new(pod));
    }

    /// Forgets a pod. That of another UID which has its name by now stays.
    pub fn delete(&mut self, uid: &PodUid) {
        if let Some(pod) = self.remove(uid) {
            let name = (pod.namespace.clone(), pod.name.clone());
            if self.by_name.get(&name) == Some(uid) {
                self.by_name.remove(&name);
            }
        }
    }

    /// Replaces all pods at once: the end of a relist.
    pub fn reset(&mut self, pods: impl IntoIterator<Item = Pod>) {
        self.pods.clear();
        self.by_ip.clear();
        self.by_name.clear();
        for pod in pods {
            self.apply(pod);
        }
    }

    fn remove(&mut self, uid: &PodUid) -> Option<Arc<Pod>> {
        let pod = self.pods.remove(uid)?;
        for ip in &pod.ips {
            if let Some(uids) = self.by_ip.get_mut(ip) {
                uids.retain(|other| other != uid);
                if uids.is_empty() {
                    self.by_ip.remove(ip);
                }
            }
        }
        Some(pod)
    }

    /// Who claims this address.
    pub fn by_ip(&self, ip: IpAddr) -> Claims {
        let named = self.by_ip.get(&ip).map_or(&[][..], Vec::as_slice);
        let claims = || named.iter().filter_map(|uid| self.pods.get(uid)).filter(|pod| pod.claims(ip));
        let (terminating, running): (Vec<_>, Vec<_>) = claims().partition(|pod| pod.terminating);
        let standing = if running.is_empty() { terminating } else { running };
        match standing.as_slice() {
            [] => Claims::None,
            [pod] => Claims::One((*pod).clone()),
            pods => Claims::Several(pods.iter().map(|pod| (*pod).clone()).collect()),
        }
    }

    /// Sets what is known of a namespace.
    pub fn apply_namespace(&mut self, namespace: Namespace) {
        self.namespaces.insert(namespace.name.clone(), Arc::new(namespace));
    }

    /// Forgets a namespace.
    pub fn delete_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// What is known of a namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.get(name).cloned()
    }

    /// What is known of the objects that a pod is decided by.
    pub fn surroundings(&self, pod: &Pod) -> Surroundings {
        Surroundings { namespace: self.namespace(&pod.namespace) }
    }

    /// The namespaces that pods here are in.
    pub fn namespaces_of_pods(&self) -> BTreeSet<String> {
        self.pods.values().map(|pod| pod.namespace.clone()).collect()
    }

    /// Every pod, in the order of namespace and name.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<_> = self.pods.values().cloned().collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
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

//! Finds the pods in the node's network by their UIDs, and says what happens to their requests.

use std::sync::Arc;

use super::{ByUid, HostNetworkRules, Index, Pod, PodNeeds, PodUid};
use crate::cgroup::is_static_uid;

impl Index {
    /// Sets what happens to the requests of pods in the node's network.
    pub fn set_host_network(&mut self, rules: HostNetworkRules) {
        self.host_network = rules;
        let mut needs = PodNeeds::default();
        self.pods.values().for_each(|held| needs.add(&held.pod, self.may_send(&held.pod)));
        self.unreadable.values().filter_map(|unreadable| unreadable.last.as_ref()).for_each(|last| needs.add_claim_end(last));
        self.needs = needs;
    }

    /// Returns the rules for pods in the node's network.
    pub fn host_network(&self) -> &HostNetworkRules {
        &self.host_network
    }

    /// Returns whether requests of a pod that has not finished may be served.
    pub(super) fn may_send(&self, pod: &Pod) -> bool {
        !pod.finished && (!pod.host_network || self.host_network.may_be_served(pod))
    }

    /// Returns the living pods in the node's network, in no particular order.
    pub fn in_host_network(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().map(|held| &held.pod).filter(|pod| pod.host_network && pod.may_run(self.now))
    }

    /// Returns the pod that the kubelet knows by this UID. The UIDs of static pods have a form of their own, so that no pod has the
    /// UID of another one.
    pub fn by_uid(&self, uid: &str) -> ByUid {
        let readable = || self.pods.values().map(|held| &held.pod);
        let unreadable = || self.unreadable.values().filter_map(|unreadable| unreadable.last.as_ref());
        if is_static_uid(uid) {
            let is_it = |pod: &&Arc<Pod>| pod.static_uid.as_deref() == Some(uid) && pod.may_run(self.now);
            if let Some(pod) = unreadable().find(is_it) {
                return ByUid::Unreadable(pod.clone());
            }
            let mut found = readable().filter(is_it);
            // Anybody may create an object that looks like the mirror of a static pod. The kubelet deletes it.
            return match (found.next(), found.next()) {
                (Some(pod), None) => ByUid::Living(pod.clone()),
                _ => ByUid::None,
            };
        }
        let uid = PodUid(uid.into());
        let is_it = |pod: &&Arc<Pod>| pod.static_uid.is_none() && pod.may_run(self.now);
        if let Some(last) = self.unreadable.get(&uid).and_then(|unreadable| unreadable.last.as_ref()).filter(is_it) {
            return ByUid::Unreadable(last.clone());
        }
        self.pods.get(&uid).map(|held| &held.pod).filter(is_it).map_or(ByUid::None, |pod| ByUid::Living(pod.clone()))
    }
}

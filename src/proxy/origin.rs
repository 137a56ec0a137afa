//! The origin of requests: one connection, and what the kernel says of its client.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::route::Hosts;
use crate::cgroup::CgroupOwner;
use crate::pods::{Identifier, Pod, PodUid, RecordedPod};

/// The origin of requests: one connection.
#[derive(Debug)]
pub struct Origin {
    /// The peer's address, from the kernel.
    pub ip: IpAddr,
    /// The hosts that a request may name on this connection.
    pub hosts: Hosts,
    /// The pods that the connection may belong to; `None` for any. It was accepted before the API assigned its address to a pod: see
    /// [`crate::pods::Pods::candidates`].
    pub candidates: Option<Vec<RecordedPod>>,
    /// The connection is from the node's own network, as those of pods with `hostNetwork: true` are. Set only at the addresses of Pod
    /// Identity, where the token says which pod it is.
    pub is_of_node: bool,
    /// The process that connected, if the kernel recorded it.
    pub process: Option<ConnectedProcess>,
    /// The pod that the connection belongs to: the one that sent its first request.
    pod: OnceLock<PodUid>,
    /// No request on the connection can be served any more. Its requests are refused.
    is_over: AtomicBool,
}

/// The process that connected, by the kernel's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedProcess {
    /// The pod and the container that its control group belongs to; `None` if it belongs to no pod.
    pub owner: Option<CgroupOwner>,
    /// Whether it connected from the node's own network.
    pub is_in_host_network: bool,
}

impl Origin {
    /// Creates the origin of a connection that belongs to no pod yet.
    pub fn new(ip: IpAddr, hosts: Hosts) -> Self {
        Self { ip, hosts, candidates: None, is_of_node: false, process: None, pod: OnceLock::new(), is_over: AtomicBool::new(false) }
    }

    /// Returns what identifies the pod. In the node's network, that is the control group alone, because the address is that of the
    /// node and of all such pods. `None` if the process is in the control group of no pod: then nothing is served, whatever the
    /// address.
    pub(super) fn identifier(&self) -> Option<Identifier> {
        match &self.process {
            None => Some(Identifier::Address(self.ip)),
            Some(ConnectedProcess { owner: None, .. }) => None,
            Some(ConnectedProcess { owner: Some(owner), is_in_host_network: true }) => Some(Identifier::HostNetwork(owner.pod.clone())),
            Some(ConnectedProcess { owner: Some(_), is_in_host_network: false }) => Some(Identifier::Address(self.ip)),
        }
    }

    /// Returns whether the process that connected is in the control group of another pod.
    pub(super) fn contradicts(&self, pod: &Pod) -> bool {
        self.process.as_ref().is_some_and(|process| process.owner.as_ref().is_none_or(|owner| *owner.pod != *pod.uid_of_kubelet()))
    }

    /// Returns whether no request on this connection can be served any more.
    pub fn is_over(&self) -> bool {
        self.candidates.as_ref().is_some_and(Vec::is_empty) || self.is_over.load(Ordering::Relaxed)
    }

    /// Ends the connection with the next response.
    pub(super) fn close(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Assigns the connection to the pod, if it belongs to none yet. Returns whether it belongs to this pod.
    pub(super) fn is_of(&self, pod: &Pod) -> bool {
        let is_own = self.is_candidate(pod) && *self.pod.get_or_init(|| pod.uid.clone()) == pod.uid;
        if !is_own {
            self.close();
        }
        is_own
    }

    /// Returns the pod that the connection belongs to, if it belongs to one yet.
    pub fn pod(&self) -> Option<&PodUid> {
        self.pod.get()
    }

    fn is_candidate(&self, pod: &Pod) -> bool {
        self.candidates.as_ref().is_none_or(|candidates| candidates.iter().any(|candidate| pod.is_recorded(candidate)))
    }

    /// Returns whether requests on this connection can be those of this pod.
    pub(super) fn may_be_of(&self, pod: &Pod) -> bool {
        self.is_candidate(pod) && !self.contradicts(pod) && self.pod.get().is_none_or(|own| *own == pod.uid)
    }
}

//! A queue that is fair by namespace and, within a namespace, by pod. Namespaces take turns, and the pods of a namespace take
//! turns within the namespace's turns.
//!
//! The first request of a pod therefore waits for at most as many turns as there are namespaces, multiplied by the number of pods
//! in its own namespace, whatever other pods do.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::credentials::caller::Caller;
use crate::pods::PodUid;

/// The fair queue of one cause.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// The namespaces with requests here, the next one first.
    round: VecDeque<Arc<str>>,
    namespaces: HashMap<Arc<str>, NamespaceLane>,
}

#[derive(Debug, Default)]
struct NamespaceLane {
    /// The pods with requests here, the next one first.
    round: VecDeque<PodUid>,
    /// The numbers of their requests, in order of arrival.
    pods: HashMap<PodUid, VecDeque<u64>>,
}

impl Lane {
    /// Adds a request to the end of the pod's queue.
    pub(super) fn push(&mut self, caller: &Caller, number: u64) {
        let namespace = self.namespaces.entry(caller.namespace.clone()).or_default();
        if namespace.pods.is_empty() {
            self.round.push_back(caller.namespace.clone());
        }
        let requests = namespace.pods.entry(caller.uid.clone()).or_default();
        if requests.is_empty() {
            namespace.round.push_back(caller.uid.clone());
        }
        requests.push_back(number);
    }

    /// Returns the request whose turn is next.
    pub(super) fn first(&self) -> Option<u64> {
        let namespace = self.namespaces.get(self.round.front()?)?;
        namespace.pods.get(namespace.round.front()?)?.front().copied()
    }

    /// Moves the first namespace, and its first pod, to the end, after their turn.
    pub(super) fn turn(&mut self) {
        let Some(first) = self.round.front() else { return };
        if let Some(namespace) = self.namespaces.get_mut(first) {
            rotate(&mut namespace.round);
        }
        rotate(&mut self.round);
    }

    /// Removes a request of a pod.
    pub(super) fn remove(&mut self, caller: &Caller, number: u64) {
        let Some(namespace) = self.namespaces.get_mut(&caller.namespace) else { return };
        let Some(requests) = namespace.pods.get_mut(&caller.uid) else { return };
        requests.retain(|other| *other != number);
        if !requests.is_empty() {
            return;
        }
        namespace.pods.remove(&caller.uid);
        namespace.round.retain(|uid| *uid != caller.uid);
        if namespace.pods.is_empty() {
            self.namespaces.remove(&caller.namespace);
            self.round.retain(|name| *name != caller.namespace);
        }
    }
}

fn rotate<T>(round: &mut VecDeque<T>) {
    if let Some(first) = round.pop_front() {
        round.push_back(first);
    }
}

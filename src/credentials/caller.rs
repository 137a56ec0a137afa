//! The pod that a session is requested for. It is passed beside the request, never inside it: the cache's key stays what STS
//! receives.

use std::sync::Arc;

use crate::pods::{Pod, PodUid};

/// A pod, as the queue for STS identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Its UID.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
}

impl Caller {
    /// Returns the pod as a caller.
    pub(crate) fn of(pod: &Pod) -> Arc<Self> {
        Arc::new(Self { uid: pod.uid.clone(), namespace: pod.namespace.as_str().into(), name: pod.name.as_str().into() })
    }
}

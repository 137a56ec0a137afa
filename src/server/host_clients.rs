//! The clients of connections to Pod Identity from the node's own network, by the control groups of their sockets.
//!
//! All pods in the node's network have its addresses, so limits would count them together. The kernel reports the control group of a
//! client's socket, and the directory of the control group names the pod. A token of another pod is then refused. If the kernel reports no
//! control group, the token alone identifies the pod.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use crate::cgroup::{CgroupId, CgroupOwner, PodCgroups, SocketCgroups};
use crate::log_once::Condition;

/// The most connections that wait until the pod of their control group is found.
const MAX_RESOLVING: usize = 256;
/// The most control groups that are remembered to be no pod's. A node has fewer services.
const MAX_OF_NO_POD: usize = 1024;

/// Finds out which pod or control group a client in the node's network belongs to.
#[derive(Debug)]
pub(crate) struct HostClients {
    sockets: Arc<dyn SocketCgroups>,
    /// The control groups of pods, once they are found.
    cgroups: Arc<OnceLock<PodCgroups>>,
    /// Control groups that are no pod's. The kernel does not reuse their numbers.
    of_no_pod: Mutex<VecDeque<CgroupId>>,
    resolving: Arc<Semaphore>,
    unreadable: Condition,
}

/// A client in the node's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostClient {
    /// A process of a pod.
    Pod(CgroupOwner),
    /// Processes that are not known to be a pod's.
    Cgroup(CgroupId),
    /// The pod of this control group has yet to be found, if there is one.
    Unresolved(CgroupId),
    /// The kernel does not report a control group.
    Unknown,
}

impl HostClients {
    /// Creates a source of clients. `cgroups` may be set later.
    pub(crate) fn new(sockets: Arc<dyn SocketCgroups>, cgroups: Arc<OnceLock<PodCgroups>>) -> Self {
        let (of_no_pod, resolving) = (Mutex::default(), Arc::new(Semaphore::new(MAX_RESOLVING)));
        Self { sockets, cgroups, of_no_pod, resolving, unreadable: Condition::default() }
    }

    /// Returns the client of a connection. This asks the kernel, which answers at once.
    pub(super) fn find(&self, client: SocketAddr, server: SocketAddr) -> HostClient {
        let id = match self.sockets.of(client, server) {
            Ok(id) => {
                if self.unreadable.ends() {
                    info!(event = "socket-owners-readable", "the control groups of clients in the node's network can be read again");
                }
                id
            }
            Err(error) => {
                if self.unreadable.begins() {
                    warn!(
                        event = "socket-owners-unreadable", %error,
                        "cannot read the control groups of clients in the node's network; retrying for each connection. Until then, these \
                         clients share one limit for connections, and only tokens identify them"
                    );
                }
                None
            }
        };
        match (id, self.cgroups.get()) {
            (None | Some(CgroupId::ROOT), _) => HostClient::Unknown,
            (Some(id), None) => HostClient::Cgroup(id),
            (Some(id), Some(cgroups)) => match cgroups.known(id) {
                Some(owner) => HostClient::Pod(owner),
                None if self.of_no_pod().contains(&id) => HostClient::Cgroup(id),
                None => HostClient::Unresolved(id),
            },
        }
    }

    /// Finds the pod of a control group. May wait for a fraction of a second.
    pub(super) async fn resolve(&self, id: CgroupId) -> HostClient {
        let Some(cgroups) = self.cgroups.get() else { return HostClient::Cgroup(id) };
        match cgroups.find(id).await {
            Ok(Some(owner)) => HostClient::Pod(owner),
            Ok(None) => {
                let mut of_no_pod = self.of_no_pod();
                if !of_no_pod.contains(&id) {
                    of_no_pod.truncate(MAX_OF_NO_POD - 1);
                    of_no_pod.push_front(id);
                }
                HostClient::Cgroup(id)
            }
            Err(error) => {
                debug!(%error, "cannot read the control groups of pods");
                HostClient::Cgroup(id)
            }
        }
    }

    fn of_no_pod(&self) -> std::sync::MutexGuard<'_, VecDeque<CgroupId>> {
        self.of_no_pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection whose pod has to be found. Returns `None` if there is none.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.resolving.clone().try_acquire_owned().ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const POD: &str = "0b7d2c1e-4c1a-4a57-9f0e-1234567890ab";

    /// Sockets that belong to the control group whose number is the port of the client; none if that is 0.
    #[derive(Debug)]
    struct ByPort;

    impl SocketCgroups for ByPort {
        fn of(&self, client: SocketAddr, _: SocketAddr) -> io::Result<Option<CgroupId>> {
            Ok(Some(CgroupId(client.port().into())).filter(|id| id.0 > 0))
        }
    }

    /// Sockets of which all belong to one control group.
    #[derive(Debug)]
    struct All(io::Result<CgroupId>);

    impl SocketCgroups for All {
        fn of(&self, _: SocketAddr, _: SocketAddr) -> io::Result<Option<CgroupId>> {
            self.0.as_ref().map(|id| Some(*id)).map_err(|error| error.kind().into())
        }
    }

    fn find(clients: &HostClients, port: u16) -> HostClient {
        clients.find(([127, 0, 0, 1], port).into(), ([127, 0, 0, 1], 8182).into())
    }

    #[test]
    fn without_the_directory_of_pods_each_control_group_counts_for_itself() {
        let clients = HostClients::new(Arc::new(ByPort), Arc::default());
        assert_eq!(find(&clients, 7), HostClient::Cgroup(CgroupId(7)));
        assert_eq!([0, 1].map(|port| find(&clients, port)), [HostClient::Unknown, HostClient::Unknown]);
        let failing = HostClients::new(Arc::new(All(Err(io::ErrorKind::TimedOut.into()))), Arc::default());
        assert_eq!(find(&failing, 7), HostClient::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pod_of_a_control_group_is_found_once() {
        let root = tempfile::tempdir().unwrap();
        let pods = root.path().join("kubepods");
        let container = pods.join(format!("burstable/pod{POD}/c0ffee"));
        fs::create_dir_all(&container).unwrap();
        let id = CgroupId(fs::metadata(&container).unwrap().ino());
        let cgroups = Arc::new(OnceLock::from(PodCgroups::new(pods)));
        let clients = HostClients::new(Arc::new(All(Ok(id))), cgroups);
        assert_eq!(find(&clients, 7), HostClient::Unresolved(id));
        let HostClient::Pod(owner) = clients.resolve(id).await else { panic!("{clients:?}") };
        assert_eq!((&*owner.pod, find(&clients, 7)), (POD, HostClient::Pod(owner.clone())));
    }

    #[tokio::test(start_paused = true)]
    async fn control_groups_of_no_pod_are_remembered_up_to_a_limit() {
        let root = tempfile::tempdir().unwrap();
        let pods = root.path().join("kubepods");
        fs::create_dir(&pods).unwrap();
        let clients = HostClients::new(Arc::new(ByPort), Arc::new(OnceLock::from(PodCgroups::new(pods))));
        let groups = 2..u64::try_from(MAX_OF_NO_POD).unwrap() + 3;
        for id in groups.clone().map(CgroupId) {
            assert_eq!(clients.resolve(id).await, HostClient::Cgroup(id));
        }
        assert_eq!(find(&clients, 3), HostClient::Cgroup(CgroupId(3)));
        assert_eq!(find(&clients, 2), HostClient::Unresolved(CgroupId(2)), "the oldest is forgotten");
    }
}

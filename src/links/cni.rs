//! The second witness of which pod has which address: the results of CNI plugins that the container runtime caches.
//!
//! # The files
//!
//! libcni writes one JSON file for each network, container and interface when a plugin's `ADD` has succeeded, and removes it
//! after `DEL`. The directory is `/var/lib/cni/results`, mode 0700, the files are `NETWORK-CONTAINER-INTERFACE`, mode 0600
//! (containernetworking/cni, `libcni/api.go`: `cacheAdd`, `cacheDel`, `getCacheFilePath`). It writes in place (truncate, write,
//! close), so a reader may see an empty or partial file; a node that loses power leaves empty ones
//! (containernetworking/cni#1055).
//!
//! - Since libcni 0.8 a file is a `cachedInfo`: `kind` (`cniCacheV1`), `containerId`, `config` (base64), `ifName`,
//!   `networkName`, `netns`, `cniArgs` (pairs), `capabilityArgs` and `result`. Earlier files contain only the result, which
//!   names no pod, and are ignored.
//! - `cniArgs` has `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_INFRA_CONTAINER_ID` and, in containerd and CRI-O since the
//!   middle of 2021, `K8S_POD_UID` (containerd/containerd#5640, `internal/cri/server/sandbox_run.go`: `toCNILabels`;
//!   cri-o/cri-o#5026; cri-o/ocicni, `pkg/ocicni/ocicni.go`: `buildCNIRuntimeConf`). For a static pod it is the UID that the
//!   kubelet derives from the manifest, which the API's mirror pod has as the annotation `kubernetes.io/config.hash` and not as
//!   its UID (k8snetworkplumbingwg/multus-cni#773). Pods in the host's network have no file. cri-dockerd passes no UID, and
//!   caches below `/var/lib/cni/cache/results` (Mirantis/cri-dockerd, `network/cni/cni.go`), as the dockershim did. Multus
//!   caches the results of its delegates below `/var/lib/cni/multus/results`, and passes each pair on twice.
//! - `capabilityArgs` has all of the pod's annotations (`io.kubernetes.cri.pod-annotations`), so a pod's author decides how
//!   large its file is.
//! - The runtime's loopback network has files of its own (`cni-loopback-…-lo`).
//! - Until libcni 1.2.1 `DelNetworkList` removed a file only where the configuration's `cniVersion` was 0.4.0 or later
//!   (containernetworking/cni#1095), and no version removes a file when the node restarts (Bottlerocket does so itself). A
//!   directory may hold thousands of files of pods that were deleted long ago (cri-o/cri-o#4296).
//!
//! # Results
//!
//! Versions 0.3.0 to 1.1.0 have `interfaces` (those of the node without `sandbox`) and `ips`, whose `interface` is an index;
//! 0.1.0 and 0.2.0 have `ip4` and `ip6` (containernetworking/cni, `pkg/types`).
//!
//! | plugin | interfaces of the node | of the pod |
//! |---|---|---|
//! | bridge, also behind flannel and kubenet | the bridge and the veth | with MAC |
//! | ptp | the veth | with MAC |
//! | AWS VPC CNI (`cmd/routed-eni-cni-plugin/cni.go`) | `eni…`, or `vlan…` with security groups for pods | without MAC; `dummy…` is no interface, its name is too long for one, and its `mac` is a VLAN |
//! | Calico (projectcalico/calico#10351) | `cali…` | not named, and no index, in most versions |
//! | Cilium | `lxc…` | with MAC |
//! | macvlan, ipvlan | none | with MAC |
//!
//! # Rules
//!
//! A file that cannot be parsed is ignored: it is no evidence for or against a pod. If the directory cannot be read or watched,
//! all files are ignored. A file's content counts until the kernel reports a change; a file that cannot be parsed after a
//! change no longer counts.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch as signal;

mod attachment;
mod directory;
mod keep;
mod parse;
mod record;
mod table;

pub use record::{AttachmentRecord, RecordedPod};
use table::{AttachmentTable, Change};

/// The maximum number of files that are used. Beyond it, the most recently written files are used: a node has at most a few
/// hundred pods, and leftover files are older than those of running pods.
pub const MAX_FILES: usize = 4096;

/// The attachments that the result files describe; cheap to clone.
#[derive(Clone, Debug)]
pub struct Results(Arc<CniResultsInner>);

#[derive(Debug)]
struct CniResultsInner {
    table: RwLock<AttachmentTable>,
    /// Mirrors the count in the table, so that a node without files avoids the lock.
    used: AtomicUsize,
    generation: AtomicU64,
    changed: signal::Sender<u64>,
}

impl Default for Results {
    fn default() -> Self {
        Self::none()
    }
}

impl Results {
    /// Creates an empty set of results, which [`Results::keep`] fills.
    pub fn none() -> Self {
        Self::with_room(MAX_FILES)
    }

    fn with_room(room: usize) -> Self {
        Self(Arc::new(CniResultsInner {
            table: RwLock::new(AttachmentTable::new(room)),
            used: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            changed: signal::Sender::new(0),
        }))
    }

    /// Calls `look` with the records of attachments that name this address, the most recently written first; usually none or
    /// one. The table is locked for reading meanwhile: `look` must be quick, and must not call other methods of this handle.
    pub fn look<T>(&self, ip: IpAddr, look: impl FnOnce(&[AttachmentRecord]) -> T) -> T {
        if self.count() == 0 {
            return look(&[]);
        }
        look(self.read().of(ip))
    }

    /// Returns the records of attachments that name this address, the most recently written first.
    pub fn of(&self, ip: IpAddr) -> Vec<AttachmentRecord> {
        self.look(ip, <[_]>::to_vec)
    }

    /// Returns how many attachments are known.
    pub fn count(&self) -> usize {
        self.0.used.load(Ordering::Acquire)
    }

    /// Returns a number that grows with every change. A conclusion drawn from the attachments holds while the number is
    /// unchanged, if the number was read before the attachments were.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Returns a receiver of the generation, which wakes with every change.
    pub fn changes(&self) -> signal::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Every writer leaves the table consistent, so a panic elsewhere does not invalidate it.
    fn read(&self) -> RwLockReadGuard<'_, AttachmentTable> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table, and wakes waiting tasks if the change was relevant.
    fn write(&self, change: impl FnOnce(&mut AttachmentTable) -> Change) -> Change {
        let mut table = self.0.table.write().unwrap_or_else(PoisonError::into_inner);
        let change = change(&mut table);
        self.0.used.store(table.used(), Ordering::Release);
        if change.is_news {
            let generation = self.0.generation.fetch_add(1, Ordering::AcqRel) + 1;
            drop(table);
            self.0.changed.send_modify(|last| *last = generation.max(*last));
        }
        change
    }
}

#[cfg(test)]
mod tests;

//! What leads to an address on this node: the interface of the kernel's route and, on a bridge, the neighbour's link-layer
//! address and bridge port.
//!
//! A pod is identified by its source address. On a bridge, a pod with the capability NET_RAW can take over another pod's address
//! in two ways. With forged ARP or neighbour discovery, the node sends packets for the address to the link-layer address of the
//! attacker. With frames from the link-layer address of the victim, the bridge sends them to the port of the attacker. Both
//! change what leads to the address, so a comparison with the previous link detects them.
//!
//! [`Links`] queries the kernel when an address is looked up, and caches the result until the kernel announces a change that
//! concerns it. Its size therefore follows the addresses that are looked up, whatever the pods send. It relies on these facts
//! about Linux, which `tests/netns/links.rs` verifies:
//!
//! - A change of a neighbour's link-layer address is announced under the lock of the neighbour (`__neigh_update`, Linux 6.18),
//!   and so is a move of an address between the ports of a bridge, before the frame that caused it is forwarded
//!   (`br_fdb_update`). Notifications that are read after a handshake therefore include every change that the handshake depended
//!   on.
//! - When an interface goes down, its IPv4 routes disappear without notifications, and its IPv6 routes with one each. The
//!   interface itself is announced in both cases.
//! - A route is announced with its table. Whatever its table, it can only affect addresses of its network. Rules and next hop
//!   objects can affect every address.
//! - When a queue of notifications overflows, the reader gets one error, and nothing more is queued until it has read everything
//!   (`netlink_overrun`). Until then, nothing is cached, and the kernel is queried each time.
//! - The kernel does not reuse the number of an interface before it has used all other numbers.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use self::feed::Feed;
use self::table::{InterfaceKind, KernelAnswer, KnownInterface, Leftover, LinkTable, NotificationQueue, classify};
use crate::digest::Digest;
use crate::log_once::Condition;
use crate::netlink::Netlink;

pub use self::link::{Link, LinkKind, Reach};
pub use crate::netlink::Mac;

pub(crate) mod boot;
pub mod cni;
mod event;
mod feed;
mod keeper;
mod link;
mod table;
pub mod view;
pub mod witness;

/// How often a query is repeated if the kernel announces a change of the address meanwhile.
const TRIES: usize = 3;
/// The pause before the notifications are subscribed to again after an error.
const AGAIN: Duration = Duration::from_secs(1);

/// The table of links; cheap to clone.
#[derive(Clone, Debug)]
pub struct Links {
    /// `None` if the kernel is not queried.
    shared: Option<Arc<SharedLinks>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct SharedLinks {
    /// Locked only briefly, and never during a query to the kernel.
    table: RwLock<LinkTable>,
    /// For queries, one at a time. Locked after the feed if both are needed.
    netlink: Mutex<Netlink>,
    /// For queries about addresses of no pod. Pods can invent such addresses, so queries about pods must not wait for these.
    strangers: Mutex<Netlink>,
    /// A reader of notifications applies them to the table before it releases this lock: what was read is in the table for the
    /// next reader. Never held during a query to the kernel.
    feed: Mutex<Feed>,
    /// Wakes the keeper when another reader has found that notifications were lost.
    resync: Notify,
    generation: AtomicU64,
    has_bridges: AtomicBool,
    overflows: AtomicU64,
    failing: Condition,
    /// Whether the process may not remove neighbours.
    is_read_only: AtomicBool,
    changes: watch::Sender<u64>,
}

impl Links {
    /// Subscribes to notifications in the network namespace of the calling thread, and reads the existing interfaces. Needs no
    /// capability; with NET_ADMIN the queues can be larger than the node's limit. [`Links::keep`] has to run from then on.
    ///
    /// # Errors
    /// If netlink is unavailable, or no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let feed = Feed::open()?;
        let mut netlink = Netlink::open()?;
        // Changes from here on are announced.
        let interfaces = netlink.links()?;
        let shared = SharedLinks {
            table: RwLock::default(),
            netlink: Mutex::new(netlink),
            strangers: Mutex::new(Netlink::open()?),
            feed: Mutex::new(feed),
            resync: Notify::new(),
            generation: AtomicU64::new(0),
            has_bridges: AtomicBool::new(false),
            overflows: AtomicU64::new(0),
            failing: Condition::default(),
            is_read_only: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        };
        shared.change(|table| table.set_links(&interfaces));
        Ok(Self { changes: shared.changes.clone(), shared: Some(Arc::new(shared)) })
    }

    /// Creates a table without a kernel to query: everything is [`Reach::Unknown`].
    pub fn none() -> Self {
        Self { shared: None, changes: watch::Sender::new(0) }
    }

    /// Returns what leads to the address now, according to the notifications applied so far ([`Links::catch_up`]). Queries the
    /// kernel only if no answer is cached or a notification made it stale. For an address on a bridge, the kernel may then have
    /// to wait for other processes that change interfaces (see [`crate::netlink`]): the caller's task waits, other tasks do
    /// not.
    ///
    /// Call it only for addresses of pods, because each address is cached.
    pub fn of(&self, ip: IpAddr) -> Reach {
        let Some(shared) = &self.shared else { return Reach::Unknown };
        let ip = ip.to_canonical();
        if let Some(reach) = shared.table().fresh(ip) {
            return reach;
        }
        // Moves on a bridge in the meantime are unknown while notifications are unread.
        let known_or_not = |reach: Reach| match reach {
            Reach::By(Link { kind: LinkKind::Bridge { .. }, .. }) if shared.table().is_behind(NotificationQueue::Neighbours) => {
                Reach::Unknown
            }
            reach => reach,
        };
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            Reach::Nowhere
        } else {
            known_or_not(blocking(|| shared.resolve(ip)))
        }
    }

    /// Returns the number of the interface to the one pod that an address is behind: the pod's own, or its port of a bridge. If
    /// the port is not known, returns the bridge. `None` for an address behind any other interface, such as an address on
    /// another node. Queries the kernel each time and caches nothing, because pods can invent any number of such addresses. The
    /// caller's task waits.
    pub fn behind(&self, ip: IpAddr) -> Option<u32> {
        let shared = self.shared.as_ref()?;
        let found = blocking(|| {
            let mut netlink = shared.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            shared.look(&mut netlink, ip.to_canonical(), |_, _| {})
        });
        match found.ok()? {
            KernelAnswer::Own { interface } | KernelAnswer::Bridge { interface, port: None, .. } => Some(interface),
            // Other interfaces are the node's own, and may have a whole network behind them.
            KernelAnswer::Bridge { port: Some(port), .. } => {
                shared.table().link(port).filter(|known| known.kind == InterfaceKind::Pair).map(|_| port)
            }
            KernelAnswer::Shared { .. } | KernelAnswer::Nowhere => None,
        }
    }

    /// Forgets all addresses except those for which `is_kept` is true, which are those of pods, and those that
    /// [`Links::remove_leftovers`] still needs: of each pod that is gone, until its port is removed.
    pub fn keep_only(&self, is_kept: &dyn Fn(IpAddr) -> bool) {
        if let Some(shared) = &self.shared {
            let awaits_leftovers = !shared.is_read_only.load(Ordering::Relaxed);
            shared.change(|table| table.keep_only(is_kept, awaits_leftovers));
        }
    }

    /// Removes from the kernel the neighbours whose ports were removed, for the addresses and removed ports for which `is_over` is
    /// true: their pods are gone, and so nothing has the address. The kernel would keep them, and the first packet of the next pod at the address
    /// would be a move: bridges flood frames to a link-layer address that no port has, so that any pod may have received them.
    /// Without the capability `NET_ADMIN`, they remain, and the next pod has to wait.
    pub fn remove_leftovers(&self, is_over: &dyn Fn(IpAddr, u32) -> bool) {
        let Some(shared) = &self.shared else { return };
        if shared.is_read_only.load(Ordering::Relaxed) {
            return;
        }
        let leftovers = shared.table().leftovers();
        let over: Vec<_> = leftovers.into_iter().filter(|leftover| is_over(leftover.ip, leftover.port)).collect();
        if !over.is_empty() {
            blocking(|| over.into_iter().for_each(|leftover| shared.remove_leftover(leftover, is_over)));
        }
    }

    /// Returns a number that changes whenever the result for any address may have changed. Read it before [`Links::of`]: a result
    /// need not be compared again while the number is the same.
    pub fn generation(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.generation.load(Ordering::Acquire))
    }

    /// Applies what the kernel has announced by now, without waiting: one system call if there is nothing new, two if there are
    /// bridges. While there is too much to read, or interfaces have to be read again because notifications were lost, no answer
    /// is cached, so that [`Links::of`] does not depend on unread notifications. The keeper catches up.
    pub fn catch_up(&self) {
        let Some(shared) = &self.shared else { return };
        for queue in [NotificationQueue::Topology, NotificationQueue::Neighbours] {
            if (queue == NotificationQueue::Neighbours && !self.has_bridges()) || shared.table().is_behind(queue) {
                continue;
            }
            if let Err(error) = shared.take_in(queue) {
                // The keeper gets the same error, and repairs what can be repaired.
                debug!(%error, "cannot read the kernel's notifications about the node's network");
                shared.fall_behind();
            }
        }
    }

    /// Returns whether any bridge has ports. Without one, nothing that a pod sends changes what leads to an address.
    pub fn has_bridges(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.has_bridges.load(Ordering::Relaxed))
    }

    /// Returns how often notifications were lost, or were too many for one turn. A growing number means that a pod is flooding
    /// a bridge.
    pub fn overflows(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.overflows.load(Ordering::Relaxed))
    }

    /// Returns the number of the interface of the name with this digest ([`Digest::of_name`]).
    pub fn named(&self, name: Digest) -> Option<u32> {
        self.shared.as_ref()?.table().named(name)
    }

    /// Returns the interface that this one is a part of, such as the bridge that it is a port of.
    pub fn master_of(&self, interface: u32) -> Option<u32> {
        self.shared.as_ref()?.table().link(interface)?.master()
    }

    /// Returns when the interface to the one pod that this link identifies appeared, as the time from the node's last boot to
    /// the kernel's announcement. `None` if the interface existed before the table, or the link identifies no pod.
    pub fn appeared(&self, link: Link) -> Option<Duration> {
        let interface = match link.kind {
            LinkKind::Own => link.interface,
            LinkKind::Bridge { port, .. } => port?,
            LinkKind::Shared => return None,
        };
        let appeared = self.shared.as_ref()?.table().link(interface)?.appeared();
        (appeared != 0).then(|| Duration::from_secs(appeared.into()))
    }

    /// Returns whether this interface is one end of a pair and not a bridge port.
    pub fn is_free_pair(&self, interface: u32) -> bool {
        let Some(shared) = &self.shared else { return false };
        shared.table().link(interface).is_some_and(|known| known.kind == InterfaceKind::Pair && known.master().is_none())
    }

    /// Returns a receiver of the generation, which wakes when notifications change it. Without a table, it never wakes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps the table current; never returns. Needs a runtime with I/O and time.
    pub async fn keep(&self) {
        let Some(shared) = &self.shared else { return std::future::pending().await };
        let failing = Condition::default();
        loop {
            let begun = Instant::now();
            let Err(error) = shared.follow().await;
            // A subscription that worked for a while resets the backoff.
            if begun.elapsed() > 2 * AGAIN {
                failing.ends();
            }
            if failing.begins() {
                warn!(
                    event = "network-notifications-failed", %error,
                    "cannot read the kernel's notifications about the node's network; resubscribing, and querying the kernel for each \
                     request until then"
                );
            }
            shared.fall_behind();
            tokio::time::sleep(AGAIN).await;
            match Feed::open() {
                Ok(mut feed) => {
                    // Changes before the new subscription are not announced in it.
                    [NotificationQueue::Topology, NotificationQueue::Neighbours].into_iter().for_each(|queue| feed.lose(queue));
                    *shared.feed() = feed;
                }
                Err(error) => debug!(%error, "cannot subscribe to notifications about the node's network"),
            }
        }
    }
}

impl SharedLinks {
    fn table(&self) -> RwLockReadGuard<'_, LinkTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn netlink(&self) -> MutexGuard<'_, Netlink> {
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table. A reader that sees the new generation sees the change as well.
    fn change<T>(&self, change: impl FnOnce(&mut LinkTable) -> T) -> T {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut table);
        self.generation.store(table.generation(), Ordering::Release);
        self.has_bridges.store(table.has_bridges(), Ordering::Relaxed);
        changed
    }

    fn fall_behind(&self) {
        self.change(|table| [NotificationQueue::Topology, NotificationQueue::Neighbours].map(|queue| table.fall_behind(queue)));
    }

    fn resolve(&self, ip: IpAddr) -> Reach {
        let mut netlink = self.netlink();
        let mut last = Reach::Unknown;
        for _ in 0..TRIES {
            // Another caller may have queried it in the meantime.
            if let Some(reach) = self.table().fresh(ip) {
                return reach;
            }
            self.change(|table| table.ask(ip));
            let found = match self.ask(&mut netlink, ip) {
                Ok(found) => found,
                Err(error) => {
                    self.change(|table| table.give_up(ip));
                    if self.failing.begins() {
                        warn!(
                            event = "route-lookup-failed", %ip, %error,
                            "cannot look up the route to an address; retrying; until then, another pod that uses the address would not be \
                             noticed"
                        );
                    }
                    return Reach::Unknown;
                }
            };
            self.failing.ends();
            let (reach, is_settled) = self.change(|table| {
                let (reach, is_kept) = table.answer(ip, found);
                (reach, is_kept || table.is_behind(NotificationQueue::Topology) || table.is_behind(NotificationQueue::Neighbours))
            });
            last = reach;
            if is_settled {
                break;
            }
        }
        last
    }

    fn remove_leftover(&self, leftover: Leftover, is_over: &dyn Fn(IpAddr, u32) -> bool) {
        let Leftover { ip, bridge, mac, port } = leftover;
        let mut netlink = self.netlink();
        // Before it is removed: if a pod forges it again afterwards, that is announced, and remembered.
        if !self.change(|table| table.forget_leftover(leftover)) {
            return;
        }
        let removed = match netlink.neighbour(bridge, ip) {
            Ok(None) => Ok(true),
            Ok(Some(now)) if now == mac => netlink.delete_neighbour(bridge, ip).map(|()| true),
            Ok(Some(_)) => Ok(false),
            Err(error) => Err(error),
        };
        if let Err(error) = &removed {
            self.is_read_only.fetch_or(error.kind() == io::ErrorKind::PermissionDenied, Ordering::Relaxed);
            debug!(%ip, %error, "cannot remove the neighbour of a pod that is gone; the next pod at its address is refused at first");
        }
        // If a pod has got the address meanwhile, another one may have connected before the neighbour was removed.
        if !matches!(removed, Ok(true)) || !is_over(ip, port) {
            self.change(|table| table.restore_leftover(leftover));
        }
    }

    fn ask(&self, netlink: &mut Netlink, ip: IpAddr) -> io::Result<KernelAnswer> {
        self.look(netlink, ip, |bridge, mac| self.change(|table| table.saw_mac(ip, bridge, mac)))
    }

    /// Queries the kernel for what leads to an address. Calls `saw_mac` with the bridge and the link-layer address before
    /// querying the port.
    fn look(&self, netlink: &mut Netlink, ip: IpAddr, saw_mac: impl FnOnce(u32, Mac)) -> io::Result<KernelAnswer> {
        let Some(route) = netlink.route_to(ip)? else { return Ok(KernelAnswer::Nowhere) };
        let mut known = self.table().link(route.interface).copied();
        if known.is_none() && route.interface != 0 {
            // The interface may be so new that its notification has not been read yet.
            known = match netlink.link_at(route.interface) {
                Ok(interface) => Some(KnownInterface::of(&interface)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        let KernelAnswer::Bridge { interface, .. } = classify(route, known.as_ref()) else { return Ok(classify(route, known.as_ref())) };
        let vlan = known.and_then(|known| if let InterfaceKind::Bridge { vlan } = known.kind { vlan } else { None });
        let Some(mac) = netlink.neighbour(interface, ip)? else { return Ok(KernelAnswer::Bridge { interface, mac: None, port: None }) };
        saw_mac(interface, mac);
        Ok(KernelAnswer::Bridge { interface, mac: Some(mac), port: netlink.port_of(interface, mac, vlan)? })
    }
}

/// Runs a call that may wait for the kernel. On a multi-threaded runtime, other tasks continue meanwhile because the waiting
/// thread is replaced as a worker. Only one query runs at a time, and each waiting caller is an admitted connection or one of
/// the daemon's few tasks, so the connection limits bound the number of threads, as does the runtime's own limit (512). Beyond
/// that limit, tasks wait as if the call were not wrapped.
fn blocking<T>(ask: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(ask),
        _ => ask(),
    }
}

#[cfg(test)]
mod tests;

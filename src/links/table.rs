//! A cache of the kernel's answers, valid until the kernel announces a change. Pure: the caller queries the kernel and reads the
//! notifications.
//!
//! The table holds the addresses that were looked up, and the interfaces of the node. Packets of pods cannot make it grow: a
//! notification about another address, or about a link-layer address that no record has, changes nothing.

use std::net::IpAddr;
use std::num::NonZeroU32;

use super::event::LinkEvent;
use super::link::{Link, LinkKind, Reach};
use crate::digest::Digest;
use crate::netlink::{Interface, KernelRoute, Mac};
use crate::sorted::Sorted;

mod interface;
mod record;

pub(super) use interface::{InterfaceKind, KnownInterface};
use record::{AddressRecord, Kept, Knows, LookupState, key};

/// The maximum number of remembered addresses. When it is exceeded, all are forgotten and queried again; a node has a few
/// hundred pods.
pub(super) const RECORDS: usize = 16_384;
/// How many link-layer addresses are kept, beyond two for each record, before those that no record needs are removed.
const SPARE_MACS: usize = 256;

/// One of the two queues of notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotificationQueue {
    /// Interfaces, routes, rules and addresses: only administrators of the node's network can fill it.
    Topology,
    /// Neighbours and forwarding databases: pods can fill it.
    Neighbours,
}

impl NotificationQueue {
    /// The name in the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Topology => "topology",
            Self::Neighbours => "neighbours",
        }
    }
}

/// An answer of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KernelAnswer {
    Nowhere,
    Own { interface: u32 },
    Shared { interface: u32 },
    Bridge { interface: u32, mac: Option<Mac>, port: Option<u32> },
}

/// Interprets a route. If it leads to a bridge, the rest needs further queries.
pub(super) fn classify(route: KernelRoute, interface: Option<&KnownInterface>) -> KernelAnswer {
    let number = route.interface;
    if !route.is_unicast {
        return KernelAnswer::Nowhere;
    }
    match interface {
        Some(known) if !route.by_gateway => match known.kind {
            InterfaceKind::Bridge { .. } => KernelAnswer::Bridge { interface: number, mac: None, port: None },
            // A wider route leads to many addresses: Cilium's `cilium_host` is one end of a veth pair as well.
            InterfaceKind::Pair if route.for_one && known.master().is_none() => KernelAnswer::Own { interface: number },
            InterfaceKind::Pair | InterfaceKind::Other => KernelAnswer::Shared { interface: number },
        },
        _ => KernelAnswer::Shared { interface: number },
    }
}

/// The neighbour that the kernel still has for an address whose port was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leftover {
    pub(super) ip: IpAddr,
    pub(super) bridge: u32,
    pub(super) mac: Mac,
    /// The port that was removed.
    pub(super) port: u32,
}

/// A cache of what leads to addresses.
#[derive(Debug, Default)]
pub(super) struct LinkTable {
    records: Sorted<AddressRecord>,
    /// The link-layer addresses of the records, and perhaps some more: most notifications concern none of them.
    macs: Sorted<Mac>,
    links: Sorted<KnownInterface>,
    has_bridges: bool,
    behind_topology: bool,
    behind_neighbours: bool,
    generation: u64,
    /// The present time, in seconds since the node's last boot.
    uptime: u32,
}

impl LinkTable {
    /// Returns the cached result for this address, if it is still valid.
    pub(super) fn fresh(&self, ip: IpAddr) -> Option<Reach> {
        self.records.get(&key(ip)).and_then(AddressRecord::fresh)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn link(&self, index: u32) -> Option<&KnownInterface> {
        self.links.get(&index)
    }

    pub(super) fn named(&self, name: Digest) -> Option<u32> {
        self.links.iter().find(|known| known.name == name).map(|known| known.index)
    }

    pub(super) fn has_bridges(&self) -> bool {
        self.has_bridges
    }

    pub(super) fn is_behind(&self, queue: NotificationQueue) -> bool {
        match queue {
            NotificationQueue::Topology => self.behind_topology,
            NotificationQueue::Neighbours => self.behind_neighbours,
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.records.len(), self.macs.len(), self.links.len())
    }

    /// Begins a query for this address. Its result does not overwrite changes that are announced from here on.
    pub(super) fn ask(&mut self, ip: IpAddr) {
        if self.records.len() >= RECORDS && self.records.get(&key(ip)).is_none() {
            self.records.clear();
            self.macs.clear();
            self.generation += 1;
        }
        self.records.get_or_insert(&key(ip), || AddressRecord::new(ip)).state = LookupState::Asked;
    }

    /// Stores the first part of a result, so that notifications about this link-layer address apply from here on.
    pub(super) fn saw_mac(&mut self, ip: IpAddr, bridge: u32, mac: Mac) {
        let Some(record) = self.records.get_mut(&key(ip)) else { return };
        record.at(Kept::Bridge(None), bridge);
        if record.saw_mac(mac) {
            self.generation += 1;
            record.moved = self.generation;
        }
        self.remember(mac);
    }

    /// Records that the query failed.
    pub(super) fn give_up(&mut self, ip: IpAddr) {
        self.drop_record(ip);
    }

    /// Stores the result. Returns it, and whether it is cached: it is not if a change was announced in the meantime.
    pub(super) fn answer(&mut self, ip: IpAddr, found: KernelAnswer) -> (Reach, bool) {
        let is_behind = self.behind_topology || (self.behind_neighbours && matches!(found, KernelAnswer::Bridge { .. }));
        // The record may have been forgotten together with others.
        let record = self.records.get_or_insert(&key(ip), || AddressRecord::new(ip));
        let is_kept = record.state == LookupState::Asked && !is_behind;
        let mut knows = Knows::Nothing;
        let reach = match found {
            KernelAnswer::Nowhere => {
                record.at(Kept::Nowhere, 0);
                Reach::Nowhere
            }
            KernelAnswer::Own { interface } => {
                record.at(Kept::Own, interface);
                Reach::By(Link { interface, kind: LinkKind::Own })
            }
            KernelAnswer::Shared { interface } => {
                record.at(Kept::Shared, interface);
                Reach::By(Link { interface, kind: LinkKind::Shared })
            }
            KernelAnswer::Bridge { interface, mac, port } => {
                record.at(Kept::Bridge(None), interface);
                let other_mac = mac.is_some_and(|mac| record.saw_mac(mac));
                let other_port = port.and_then(NonZeroU32::new).is_some_and(|port| record.saw_port(port));
                if other_mac | other_port {
                    self.generation += 1;
                    record.moved = self.generation;
                }
                knows = match (mac, port) {
                    (None, _) => Knows::Nothing,
                    (Some(_), None) => Knows::Mac,
                    (Some(_), Some(_)) => Knows::MacAndPort,
                };
                Reach::By(Link { interface, kind: LinkKind::Bridge { mac, port, moved: record.moved } })
            }
        };
        record.state = if is_kept { LookupState::Fresh(knows) } else { LookupState::Stale };
        let mac = record.last_mac();
        mac.into_iter().for_each(|mac| self.remember(mac));
        if !is_kept {
            // No value that callers cached may survive.
            self.generation += 1;
        }
        (reach, is_kept)
    }

    fn remember(&mut self, mac: Mac) {
        if self.macs.insert(mac).is_none() && self.macs.len() > 2 * self.records.len() + SPARE_MACS {
            self.macs = self.records.iter().filter_map(AddressRecord::last_mac).collect();
        }
    }

    /// Forgets all addresses except those for which `is_kept` is true and, with `awaits_leftovers`, those whose port is known: when
    /// the port is removed, they will be leftovers. The API may report the end of a pod earlier than the node removes its network.
    pub(super) fn keep_only(&mut self, is_kept: &dyn Fn(IpAddr) -> bool, awaits_leftovers: bool) {
        let before = self.records.len();
        self.records.retain(|record| is_kept(record.ip()) || (awaits_leftovers && record.has_port()));
        if self.records.len() != before {
            self.generation += 1;
        }
    }

    /// Returns the neighbours of addresses whose ports were removed. Their pods are gone, if no pod has the addresses.
    pub(super) fn leftovers(&self) -> Vec<Leftover> {
        let of = |record: &AddressRecord| {
            let port = record.last_port().filter(|port| self.link(*port).is_none())?;
            Some(Leftover { ip: record.ip(), bridge: record.interface(), mac: record.last_mac()?, port })
        };
        self.records.iter().filter_map(of).collect()
    }

    /// Forgets a neighbour, before it is removed from the kernel: the next one is then not a move. Returns whether it was known.
    pub(super) fn forget_leftover(&mut self, leftover: Leftover) -> bool {
        let Leftover { ip, bridge, mac, port: _ } = leftover;
        let Some(record) = self.records.get_mut(&key(ip)) else { return false };
        if !record.is_on_bridge(bridge) || record.last_mac() != Some(mac) {
            return false;
        }
        record.forget_mac();
        record.state = LookupState::Stale;
        self.generation += 1;
        true
    }

    /// Remembers a neighbour again, because it was not removed. One that was announced meanwhile has moved.
    pub(super) fn restore_leftover(&mut self, leftover: Leftover) {
        let Leftover { ip, bridge, mac, port: _ } = leftover;
        let next = self.generation + 1;
        let Some(record) = self.records.get_mut(&key(ip)).filter(|record| record.is_on_bridge(bridge)) else { return };
        match record.last_mac() {
            None => {
                record.saw_mac(mac);
                self.remember(mac);
            }
            Some(last) if last != mac => record.moved = next,
            Some(_) => {}
        }
        self.generation = next;
        self.drop_record(ip);
    }

    /// Records that notifications of this queue were lost, or are still unread. Until the queue has caught up, results that
    /// they concern are not cached.
    pub(super) fn fall_behind(&mut self, queue: NotificationQueue) {
        match queue {
            NotificationQueue::Topology => {
                self.behind_topology = true;
                self.make_stale(|_| true);
            }
            NotificationQueue::Neighbours => {
                self.behind_neighbours = true;
                self.make_stale(|record| record.is_behind_bridge());
            }
        }
    }

    /// Counts every link by a bridge as moved: notifications about neighbours were lost, and with them perhaps a move and its
    /// return.
    pub(super) fn distrust_bridges(&mut self) {
        let next = self.generation + 1;
        self.generation = next;
        self.records.iter_mut().filter(|record| record.is_behind_bridge()).for_each(|record| record.moved = next);
    }

    /// Records that everything that was announced in this queue has been applied.
    pub(super) fn catch_up(&mut self, queue: NotificationQueue) {
        match queue {
            NotificationQueue::Topology => self.behind_topology = false,
            NotificationQueue::Neighbours => self.behind_neighbours = false,
        }
    }

    /// Sets the present time, in seconds since the node's last boot, for later announcements.
    pub(super) fn set_uptime(&mut self, uptime: u32) {
        self.uptime = uptime;
    }

    /// Replaces the interfaces. The time at which new ones appeared is unknown.
    pub(super) fn set_links(&mut self, interfaces: &[Interface]) {
        let appeared = |now: &KnownInterface| {
            self.links.get(&now.index).filter(|before| before.name == now.name).map_or(0, |before| before.appeared())
        };
        let links = interfaces.iter().map(KnownInterface::of).map(|now| now.with_appeared(appeared(&now))).collect();
        self.links = links;
        self.look_for_bridges();
        self.make_stale(|_| true);
    }

    /// Applies a change that the kernel announced.
    pub(super) fn apply(&mut self, event: &LinkEvent) {
        match event {
            LinkEvent::Routes(network) => self.make_stale(|record| network.contains(record.ip())),
            LinkEvent::AllRoutes => self.make_stale(|_| true),
            LinkEvent::Neighbour { interface, ip, mac } => self.neighbour(*interface, *ip, *mac),
            LinkEvent::Forwarding { bridge, mac, vlan, port } => self.forwarding(*bridge, *mac, *vlan, port.and_then(NonZeroU32::new)),
            LinkEvent::Interface(interface) => self.interface(KnownInterface::of(interface)),
            LinkEvent::Port { interface, bridge } => {
                if let Some(known) = self.links.get(interface) {
                    self.interface(known.with_master(*bridge));
                }
            }
            LinkEvent::Gone(index) => {
                // CNI results are compared with the existing interfaces.
                self.generation += u64::from(self.links.remove(index).is_some());
                self.look_for_bridges();
                self.make_stale(|record| record.is_by(*index));
            }
        }
    }

    fn interface(&mut self, now: KnownInterface) {
        let appeared = self.links.get(&now.index).map_or(self.uptime, |before| before.appeared());
        let now = now.with_appeared(appeared);
        // A new interface leads nowhere yet: a route to it is announced separately.
        let before = self.links.insert(now);
        self.look_for_bridges();
        // CNI results name interfaces, so their meaning depends on which interfaces exist.
        if before.is_none_or(|before| (before.name, before.kind, before.master()) != (now.name, now.kind, now.master())) {
            self.generation += 1;
        }
        let Some(before) = before else { return };
        if now.is_up() && !before.is_up() {
            // Routes with several next hops may use the interface again without a notification.
            self.make_stale(|_| true);
        } else if (now.kind, now.master(), now.is_up()) != (before.kind, before.master(), before.is_up()) {
            // When an interface goes down, its IPv4 routes disappear without notifications (`fib_sync_down_dev`).
            self.make_stale(|record| record.is_by(now.index));
        }
    }

    fn look_for_bridges(&mut self) {
        let is_bridge = |index| self.links.get(&index).is_some_and(|known| matches!(known.kind, InterfaceKind::Bridge { .. }));
        self.has_bridges = self.links.iter().filter_map(KnownInterface::master).any(is_bridge);
    }

    fn neighbour(&mut self, interface: u32, ip: IpAddr, mac: Option<Mac>) {
        let next = self.generation + 1;
        let Some(record) = self.records.get_mut(&key(ip)) else { return };
        if record.is_on_bridge(interface) {
            let before = record.mac();
            let is_other = mac.is_some_and(|mac| record.saw_mac(mac));
            if is_other {
                record.moved = next;
                self.generation = next;
            }
            // The kernel keeps reconfirming a neighbour, with the same address.
            if is_other || before != mac || record.state == LookupState::Asked {
                self.drop_record(ip);
            }
            mac.into_iter().for_each(|mac| self.remember(mac));
        } else if record.state == LookupState::Asked {
            self.drop_record(ip);
        }
    }

    fn forwarding(&mut self, bridge: u32, mac: Mac, vlan: Option<u16>, port: Option<NonZeroU32>) {
        if self.macs.get(&mac).is_none() {
            return;
        }
        // In another VLAN, the same address may belong to another pod.
        let own = self.links.get(&bridge).and_then(|known| if let InterfaceKind::Bridge { vlan } = known.kind { vlan } else { None });
        if vlan != own {
            return;
        }
        let next = self.generation + 1;
        for record in self.records.iter_mut().filter(|record| record.is_on_bridge(bridge) && record.last_mac() == Some(mac)) {
            let before = record.port();
            let is_other = port.is_some_and(|port| record.saw_port(port));
            if is_other {
                record.moved = next;
                self.generation = next;
            }
            if (is_other || before != port || record.state == LookupState::Asked) && record.state != LookupState::Stale {
                record.state = LookupState::Stale;
                self.generation = next;
            }
        }
    }

    fn drop_record(&mut self, ip: IpAddr) {
        if let Some(record) = self.records.get_mut(&key(ip)).filter(|record| record.state != LookupState::Stale) {
            record.state = LookupState::Stale;
            self.generation += 1;
        }
    }

    fn make_stale(&mut self, concerns: impl Fn(&AddressRecord) -> bool) {
        let mut is_changed = false;
        for record in self.records.iter_mut() {
            // A query in progress may be answered with the state before this change.
            let is_asked = record.state == LookupState::Asked;
            if record.state != LookupState::Stale && (is_asked || concerns(record)) {
                record.state = LookupState::Stale;
                is_changed = true;
            }
        }
        self.generation += u64::from(is_changed);
    }
}

#[cfg(test)]
mod tests;

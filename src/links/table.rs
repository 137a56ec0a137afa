//! A cache of the kernel's answers, valid until the kernel announces a change. Pure: the caller queries the kernel and reads the
//! notifications.
//!
//! The table holds the addresses that were looked up, and the interfaces of the node. Packets of pods cannot make it grow: a
//! notification about another address, or about a link-layer address that no record has, changes nothing.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::event::Event;
use super::{Link, LinkKind, Reach};
use crate::netlink::{Interface, Mac, Route};

/// The most addresses that are cached. Beyond it, all are forgotten and looked up again; a node has a few hundred pods.
pub(super) const RECORDS: usize = 4096;
/// The number of link-layer addresses beyond those of the records at which the unneeded ones are removed.
const SPARE_MACS: usize = 256;

/// One of the two queues of notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Interfaces, routes, rules and addresses: only administrators of the node's network can fill it.
    Topology,
    /// Neighbours and forwarding databases: pods can fill it.
    Neighbours,
}

/// What is known of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) name: Box<str>,
    pub(super) kind: Kind,
    pub(super) master: Option<u32>,
    is_up: bool,
}

/// The kinds of interfaces that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One end of a pair, whose other end may be in a pod.
    Pair,
    /// A bridge, and the VLAN of its own packets if it is VLAN-aware.
    Bridge { vlan: Option<u16> },
    /// Any other.
    Other,
}

impl Known {
    pub(super) fn of(interface: &Interface) -> Self {
        let kind = match interface.kind.as_deref() {
            Some("veth" | "netkit") => Kind::Pair,
            Some("bridge") => Kind::Bridge { vlan: interface.vlan },
            _ => Kind::Other,
        };
        Self { name: interface.name.as_str().into(), kind, master: interface.master, is_up: interface.is_up }
    }
}

/// What the kernel answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nowhere,
    Own { interface: u32 },
    Shared { interface: u32 },
    Bridge { interface: u32, mac: Option<Mac>, port: Option<u32> },
}

/// What a route says about the link. If it leads to a bridge, the rest needs further queries.
pub(super) fn classify(route: Route, interface: Option<&Known>) -> Found {
    let number = route.interface;
    if !route.is_unicast {
        return Found::Nowhere;
    }
    match interface {
        Some(known) if !route.by_gateway => match known.kind {
            Kind::Bridge { .. } => Found::Bridge { interface: number, mac: None, port: None },
            // A wider route leads to many pods: Cilium's cilium_host is one end of a veth pair as well.
            Kind::Pair if route.for_one && known.master.is_none() => Found::Own { interface: number },
            Kind::Pair | Kind::Other => Found::Shared { interface: number },
        },
        _ => Found::Shared { interface: number },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Valid: the kernel has announced no change since the query.
    Fresh,
    /// Stale: a query is needed.
    Stale,
    /// A query is in progress. There is one query at a time.
    Asked,
}

/// What is cached about an address.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// The generation in which another link-layer address or port was last announced.
    moved: u64,
    state: State,
    found: Kept,
    interface: u32,
    mac: Option<Mac>,
    port: Option<NonZeroU32>,
    /// The last ones that were known, on this interface.
    last_mac: Option<Mac>,
    last_port: Option<NonZeroU32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Nowhere,
    Own,
    Shared,
    Bridge,
}

impl Record {
    const NEW: Self =
        Self { moved: 0, state: State::Stale, found: Kept::Nowhere, interface: 0, mac: None, port: None, last_mac: None, last_port: None };

    fn reach(&self) -> Reach {
        let kind = match self.found {
            Kept::Nowhere => return Reach::Nowhere,
            Kept::Own => LinkKind::Own,
            Kept::Shared => LinkKind::Shared,
            Kept::Bridge => LinkKind::Bridge { mac: self.mac, port: self.port.map(NonZeroU32::get), moved: self.moved },
        };
        Reach::By(Link { interface: self.interface, kind })
    }

    /// Sets the interface; forgets what was known on another one.
    fn at(&mut self, found: Kept, interface: u32) {
        if (self.found, self.interface) != (found, interface) {
            *self = Self { moved: self.moved, state: self.state, found, interface, ..Self::NEW };
        }
    }

    /// Sets the link-layer address; returns whether it has changed.
    fn saw_mac(&mut self, mac: Mac) -> bool {
        let is_other = self.last_mac.is_some_and(|last| last != mac);
        if is_other {
            self.last_port = None;
        }
        self.last_mac = Some(mac);
        is_other
    }

    /// Sets the port; returns whether it has changed.
    fn saw_port(&mut self, port: NonZeroU32) -> bool {
        self.last_port.replace(port).is_some_and(|last| last != port)
    }

    fn is_on_bridge(&self, bridge: u32) -> bool {
        self.found == Kept::Bridge && self.interface == bridge
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table {
    records: HashMap<IpAddr, Record>,
    /// The link-layer addresses of the records, and perhaps some others. Most notifications are about none of them.
    macs: HashSet<Mac>,
    links: HashMap<u32, Known>,
    has_bridges: bool,
    behind_topology: bool,
    behind_neighbours: bool,
    generation: u64,
}

impl Table {
    /// Returns the cached result for this address, if it is still valid.
    pub(super) fn fresh(&self, ip: IpAddr) -> Option<Reach> {
        self.records.get(&ip).filter(|record| record.state == State::Fresh).map(Record::reach)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn link(&self, index: u32) -> Option<&Known> {
        self.links.get(&index)
    }

    pub(super) fn named(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, known)| *known.name == *name).map(|(index, _)| *index)
    }

    pub(super) fn has_bridges(&self) -> bool {
        self.has_bridges
    }

    pub(super) fn is_behind(&self, queue: Queue) -> bool {
        match queue {
            Queue::Topology => self.behind_topology,
            Queue::Neighbours => self.behind_neighbours,
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.records.len(), self.macs.len(), self.links.len())
    }

    /// Begins a query for this address. Its result does not overwrite changes that are announced from here on.
    pub(super) fn ask(&mut self, ip: IpAddr) {
        if self.records.len() >= RECORDS && !self.records.contains_key(&ip) {
            self.records.clear();
            self.macs.clear();
            self.generation += 1;
        }
        self.records.entry(ip).or_insert(Record::NEW).state = State::Asked;
    }

    /// Stores the first part of a result, so that notifications about this link-layer address apply from here on.
    pub(super) fn saw_mac(&mut self, ip: IpAddr, bridge: u32, mac: Mac) {
        let Some(record) = self.records.get_mut(&ip) else { return };
        record.at(Kept::Bridge, bridge);
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
    pub(super) fn answer(&mut self, ip: IpAddr, found: Found) -> (Reach, bool) {
        let is_behind = self.behind_topology || (self.behind_neighbours && matches!(found, Found::Bridge { .. }));
        // Others may have been forgotten together with it.
        let record = self.records.entry(ip).or_insert(Record::NEW);
        let is_kept = record.state == State::Asked && !is_behind;
        match found {
            Found::Nowhere => record.at(Kept::Nowhere, 0),
            Found::Own { interface } => record.at(Kept::Own, interface),
            Found::Shared { interface } => record.at(Kept::Shared, interface),
            Found::Bridge { interface, mac, port } => {
                record.at(Kept::Bridge, interface);
                (record.mac, record.port) = (mac, port.and_then(NonZeroU32::new));
                let other_mac = mac.is_some_and(|mac| record.saw_mac(mac));
                if other_mac | record.port.is_some_and(|port| record.saw_port(port)) {
                    self.generation += 1;
                    record.moved = self.generation;
                }
            }
        }
        record.state = if is_kept { State::Fresh } else { State::Stale };
        let reach = record.reach();
        let mac = record.last_mac;
        mac.into_iter().for_each(|mac| self.remember(mac));
        if !is_kept {
            // No cached value may survive.
            self.generation += 1;
        }
        (reach, is_kept)
    }

    fn remember(&mut self, mac: Mac) {
        if self.macs.insert(mac) && self.macs.len() > 2 * self.records.len() + SPARE_MACS {
            self.macs = self.records.values().filter_map(|record| record.last_mac).collect();
        }
    }

    /// Forgets all addresses except these.
    pub(super) fn keep_only(&mut self, addresses: &HashSet<IpAddr>) {
        let before = self.records.len();
        self.records.retain(|ip, _| addresses.contains(ip));
        if self.records.len() != before {
            self.generation += 1;
        }
    }

    /// Notifications of this queue were lost, or are still unread. Until it has caught up, results that they concern are not
    /// cached.
    pub(super) fn fall_behind(&mut self, queue: Queue) {
        match queue {
            Queue::Topology => {
                self.behind_topology = true;
                self.make_stale(|_, _| true);
            }
            Queue::Neighbours => {
                self.behind_neighbours = true;
                self.make_stale(|_, record| record.found == Kept::Bridge);
            }
        }
    }

    /// Everything that was announced in this queue has been applied.
    pub(super) fn catch_up(&mut self, queue: Queue) {
        match queue {
            Queue::Topology => self.behind_topology = false,
            Queue::Neighbours => self.behind_neighbours = false,
        }
    }

    /// Replaces the interfaces.
    pub(super) fn set_links(&mut self, interfaces: &[Interface]) {
        self.links = interfaces.iter().map(|interface| (interface.index, Known::of(interface))).collect();
        self.look_for_bridges();
        self.make_stale(|_, _| true);
    }

    /// Applies a change that the kernel announced.
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Routes(network) => self.make_stale(|ip, _| network.contains(ip)),
            Event::AllRoutes => self.make_stale(|_, _| true),
            Event::Neighbour { interface, ip, mac } => self.neighbour(*interface, *ip, *mac),
            Event::Forwarding { bridge, mac, vlan, port } => self.forwarding(*bridge, *mac, *vlan, port.and_then(NonZeroU32::new)),
            Event::Interface(interface) => self.interface(interface.index, Known::of(interface)),
            Event::Port { interface, bridge } => {
                if let Some(known) = self.links.get(interface) {
                    self.interface(*interface, Known { master: *bridge, ..known.clone() });
                }
            }
            Event::Gone(index) => {
                self.links.remove(index);
                self.look_for_bridges();
                self.make_stale(|_, record| record.is_by(*index));
            }
        }
    }

    fn interface(&mut self, index: u32, now: Known) {
        // A new interface has no routes yet: they are announced separately.
        let before = self.links.insert(index, now.clone());
        self.look_for_bridges();
        let Some(before) = before else { return };
        if now.is_up && !before.is_up {
            // Routes with several next hops may use it again without a notification.
            self.make_stale(|_, _| true);
        } else if (now.kind, now.master, now.is_up) != (before.kind, before.master, before.is_up) {
            // When an interface goes down, its IPv4 routes are removed without notifications (fib_sync_down_dev).
            self.make_stale(|_, record| record.is_by(index));
        }
    }

    fn look_for_bridges(&mut self) {
        let is_bridge = |index| self.links.get(&index).is_some_and(|known| matches!(known.kind, Kind::Bridge { .. }));
        self.has_bridges = self.links.values().filter_map(|known| known.master).any(is_bridge);
    }

    fn neighbour(&mut self, interface: u32, ip: IpAddr, mac: Option<Mac>) {
        let next = self.generation + 1;
        let Some(record) = self.records.get_mut(&ip) else { return };
        if record.is_on_bridge(interface) {
            let is_other = mac.is_some_and(|mac| record.saw_mac(mac));
            if is_other {
                record.moved = next;
                self.generation = next;
            }
            // The state of a neighbour changes all the time without a change of its address.
            if is_other || record.mac != mac || record.state == State::Asked {
                self.drop_record(ip);
            }
            mac.into_iter().for_each(|mac| self.remember(mac));
        } else if record.state == State::Asked {
            self.drop_record(ip);
        }
    }

    fn forwarding(&mut self, bridge: u32, mac: Mac, vlan: Option<u16>, port: Option<NonZeroU32>) {
        if !self.macs.contains(&mac) {
            return;
        }
        // In another VLAN, the same address may belong to another pod.
        let own = self.links.get(&bridge).and_then(|known| if let Kind::Bridge { vlan } = known.kind { vlan } else { None });
        if vlan != own {
            return;
        }
        let next = self.generation + 1;
        for record in self.records.values_mut().filter(|record| record.is_on_bridge(bridge) && record.last_mac == Some(mac)) {
            let is_other = port.is_some_and(|port| record.saw_port(port));
            if is_other {
                record.moved = next;
                self.generation = next;
            }
            if (is_other || record.port != port || record.state == State::Asked) && record.state != State::Stale {
                record.state = State::Stale;
                self.generation = next;
            }
        }
    }

    fn drop_record(&mut self, ip: IpAddr) {
        if let Some(record) = self.records.get_mut(&ip).filter(|record| record.state != State::Stale) {
            record.state = State::Stale;
            self.generation += 1;
        }
    }

    fn make_stale(&mut self, concerns: impl Fn(IpAddr, &Record) -> bool) {
        let mut is_changed = false;
        for (ip, record) in &mut self.records {
            // A query in progress may return the state from before the change.
            let is_asked = record.state == State::Asked;
            if record.state != State::Stale && (is_asked || concerns(*ip, record)) {
                record.state = State::Stale;
                is_changed = true;
            }
        }
        self.generation += u64::from(is_changed);
    }
}

impl Record {
    /// Whether it is reached through this interface, as far as is known.
    fn is_by(&self, interface: u32) -> bool {
        self.interface == interface || self.last_port.is_some_and(|port| port.get() == interface)
    }
}

#[cfg(test)]
mod tests;

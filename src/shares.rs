//! A bounded number of places, shared fairly. While places are free, anyone enters. When all are taken, the holder of the
//! most places gives one up to a newcomer that holds fewer.
//!
//! Holders are counted at two levels: members, and groups of members. Therefore, many members of one group lose places before a
//! member of a small group does.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The places, each of which holds a value of type `T`.
#[derive(Debug)]
pub(crate) struct Shares<G, M, T> {
    all: usize,
    each: usize,
    /// The entries by ID. IDs increase, so the first entry is the oldest.
    held: BTreeMap<u64, Holding<G, M, T>>,
}

#[derive(Debug)]
struct Holding<G, M, T> {
    group: G,
    member: M,
    value: T,
}

/// The reason why a newcomer does not get a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The newcomer's member already holds the maximum number of places per member.
    Member,
    /// All places are taken, and no other member holds more than the newcomer's.
    All,
}

/// An entry that gave its place to a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Displaced<M, T> {
    /// The ID of the entry.
    pub id: u64,
    /// The member that held the place.
    pub member: M,
    /// The value of the entry.
    pub value: T,
}

impl<G: Clone + Eq + Hash, M: Clone + Eq + Hash, T> Shares<G, M, T> {
    /// Creates `all` places, of which each member may hold at most `each`.
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self { all, each, held: BTreeMap::new() }
    }

    /// Takes a place under a new `id`, which must be larger than all earlier ones. Returns the displaced entry, if any.
    pub(crate) fn enter(&mut self, id: u64, group: G, member: M, value: T) -> Result<Option<Displaced<M, T>>, Full> {
        if self.held_by(&member) >= self.each {
            return Err(Full::Member);
        }
        let displaced = match self.held.len() < self.all {
            true => None,
            false => Some(self.displace(&group, &member).ok_or(Full::All)?),
        };
        self.held.insert(id, Holding { group, member, value });
        Ok(displaced)
    }

    /// Gives a place up, and returns its value.
    pub(crate) fn leave(&mut self, id: u64) -> Option<T> {
        self.held.remove(&id).map(|held| held.value)
    }

    /// Returns the value of the entry with this ID.
    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        self.held.get(&id).map(|held| &held.value)
    }

    /// Returns the value of the entry with this ID, for modification.
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.held.get_mut(&id).map(|held| &mut held.value)
    }

    /// Returns the IDs and values of the entries, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.held.iter().map(|(id, held)| (*id, &held.value))
    }

    /// The entries of one member, oldest first.
    pub(crate) fn of<'a>(&'a self, member: &'a M) -> impl Iterator<Item = (u64, &'a T)> {
        self.held.iter().filter(move |(_, held)| held.member == *member).map(|(id, held)| (*id, &held.value))
    }

    /// Returns the number of taken places.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether no place is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Returns the number of places that a member holds.
    pub(crate) fn held_by(&self, member: &M) -> usize {
        self.held.values().filter(|held| held.member == *member).count()
    }

    /// Removes the oldest entry of the largest member of the largest group, counting the newcomer. Ties go against members other
    /// than the newcomer's, then against the oldest entry. `None` if the newcomer itself would be removed.
    fn displace(&mut self, group: &G, member: &M) -> Option<Displaced<M, T>> {
        let newcomer = std::iter::once((group, u64::MAX));
        let largest_group = largest(self.held.iter().map(|(id, held)| (&held.group, *id)).chain(newcomer))?.clone();
        let of_group = self.held.iter().filter(|(_, held)| held.group == largest_group).map(|(id, held)| (&held.member, *id));
        let newcomer = (*group == largest_group).then_some((member, u64::MAX));
        let largest_member = largest(of_group.chain(newcomer))?;
        // A newcomer that would itself hold the most gets no place.
        if largest_member == member {
            return None;
        }
        let id = *self.held.iter().find(|(_, held)| held.group == largest_group && held.member == *largest_member)?.0;
        self.held.remove(&id).map(|held| Displaced { id, member: held.member, value: held.value })
    }
}

/// Returns the most frequent key. If several keys are equally frequent, returns the one with the smallest ID.
fn largest<K: Eq + Hash>(entries: impl Iterator<Item = (K, u64)>) -> Option<K> {
    let mut counts: HashMap<K, (usize, u64)> = HashMap::new();
    for (key, id) in entries {
        let (count, oldest) = counts.entry(key).or_insert((0, id));
        *count += 1;
        *oldest = (*oldest).min(id);
    }
    counts.into_iter().max_by_key(|(_, (count, oldest))| (*count, std::cmp::Reverse(*oldest))).map(|(key, _)| key)
}

/// The unit by which unknown addresses are counted. Behind a bridge, a pod can use any number of addresses, so all addresses
/// behind one port count together. Elsewhere, a host can use every address of an IPv6 /64, so these count together. Each IPv4
/// address counts separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// One IPv4 address.
    V4(u32),
    /// The upper half of an IPv6 address.
    V6(u64),
    /// The number of the interface to one pod, such as a bridge port, whatever the address.
    Port(u32),
}

impl From<IpAddr> for Network {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(bits) => write!(f, "{}/32", Ipv4Addr::from_bits(*bits)),
            Self::Port(interface) => write!(f, "interface {interface}"),
            Self::V6(upper) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*upper) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(all: usize, each: usize) -> Shares<char, (char, u32), ()> {
        Shares::new(all, each)
    }

    #[test]
    fn a_member_has_its_limit_while_there_is_room() {
        let mut shares = shares(10, 2);
        assert_eq!(shares.enter(1, 'a', ('a', 1), ()), Ok(None));
        assert_eq!(shares.enter(2, 'a', ('a', 1), ()), Ok(None));
        assert_eq!(shares.enter(3, 'a', ('a', 1), ()), Err(Full::Member));
        assert_eq!(shares.enter(4, 'a', ('a', 2), ()), Ok(None));
        assert_eq!((shares.leave(1), shares.leave(1), shares.len()), (Some(()), None, 2));
        assert_eq!(shares.enter(5, 'a', ('a', 1), ()), Ok(None));
    }

    #[test]
    fn the_oldest_entry_of_the_largest_member_and_group_gives_way() {
        let mut shares = shares(6, 9);
        for (id, member) in [('a', 1), ('b', 1), ('a', 2), ('b', 2), ('b', 2), ('b', 3)].into_iter().enumerate() {
            assert_eq!(shares.enter(id as u64, member.0, member, ()), Ok(None));
        }
        let displaced = |entered: Result<Option<Displaced<_, _>>, Full>| entered.map(|displaced| displaced.map(|displaced| displaced.id));
        assert_eq!(displaced(shares.enter(10, 'c', ('c', 1), ())), Ok(Some(3)), "b holds four places, two of them by its second member");
        assert_eq!(displaced(shares.enter(11, 'c', ('c', 2), ())), Ok(Some(1)), "each member of b now holds one place");
        // Each group now holds two places, so a third one would make c the largest.
        assert_eq!(displaced(shares.enter(12, 'c', ('c', 1), ())), Err(Full::All), "the newcomer itself holds the most");
        assert_eq!(displaced(shares.enter(13, 'c', ('c', 3), ())), Ok(Some(10)), "the oldest entry of its own group is displaced");
    }

    #[test]
    fn a_flood_of_members_of_one_group_never_displaces_another_group() {
        let mut shares = shares(8, 4);
        assert_eq!(shares.enter(0, 'h', ('h', 0), ()), Ok(None));
        for id in 1..1000 {
            let entered = shares.enter(id, 'f', ('f', id as u32), ());
            assert!(!matches!(entered, Ok(Some(Displaced { member: ('h', _), .. }))), "{id}");
        }
        assert!(shares.get(0).is_some() && shares.len() == 8);
        assert!(matches!(shares.enter(1001, 'n', ('n', 0), ()), Ok(Some(Displaced { member: ('f', _), .. }))));
    }

    #[test]
    fn addresses_of_an_ipv6_network_count_together() {
        let network = |text: &str| Network::from(text.parse::<IpAddr>().unwrap_or(IpAddr::from([0, 0, 0, 0])));
        assert_eq!(network("fd00::1"), network("fd00::ffff:2"));
        assert_ne!(network("fd00::1"), network("fd00:0:0:1::1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
        assert_eq!([network("10.0.0.1"), network("fd00:1::2")].map(|network| network.to_string()), ["10.0.0.1/32", "fd00:1::/64"]);
    }
}

//! Sorted lists that replace maps for data that is kept for each pod and rarely looked up.
//!
//! A hash table of the standard library has up to 2.3 times the capacity that it needs, and a growing vector up to twice. These
//! lists have one sixteenth more. An insertion moves the entries after it, which takes about ten microseconds for thousands of
//! entries.

/// An entry with a key.
pub(crate) trait Keyed {
    /// The type of the key.
    type Key: Ord;

    fn key(&self) -> Self::Key;
}

impl Keyed for [u8; 6] {
    type Key = Self;

    fn key(&self) -> Self {
        *self
    }
}

/// A list sorted by key, with one entry for each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sorted<T>(Vec<T>);

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Sorted<T> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Returns the entries for modification. Their keys must not change.
    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }

    pub(crate) fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// Keeps only the entries for which `is_kept` returns true.
    pub(crate) fn retain(&mut self, is_kept: impl FnMut(&T) -> bool) {
        self.0.retain(is_kept);
        if self.0.capacity() > self.0.len() + self.0.len() / 4 + 16 {
            self.0.shrink_to(self.0.len() + more(self.0.len()));
        }
    }
}

impl<T: Keyed> Sorted<T> {
    fn place(&self, key: &T::Key) -> Result<usize, usize> {
        self.0.binary_search_by(|entry| entry.key().cmp(key))
    }

    pub(crate) fn get(&self, key: &T::Key) -> Option<&T> {
        self.place(key).ok().and_then(|place| self.0.get(place))
    }

    /// Returns an entry for modification. Its key must not change.
    pub(crate) fn get_mut(&mut self, key: &T::Key) -> Option<&mut T> {
        self.place(key).ok().and_then(|place| self.0.get_mut(place))
    }

    /// Returns the entry with this key for modification. Inserts `new` if there is none. The key must not change.
    pub(crate) fn get_or_insert(&mut self, key: &T::Key, new: impl FnOnce() -> T) -> &mut T {
        let place = self.place(key).unwrap_or_else(|place| {
            self.insert_at(place, new());
            place
        });
        &mut self.0[place]
    }

    /// Inserts an entry. Returns the previous entry with its key.
    pub(crate) fn insert(&mut self, entry: T) -> Option<T> {
        match self.place(&entry.key()) {
            Ok(place) => self.0.get_mut(place).map(|before| std::mem::replace(before, entry)),
            Err(place) => {
                self.insert_at(place, entry);
                None
            }
        }
    }

    fn insert_at(&mut self, place: usize, entry: T) {
        if self.0.len() == self.0.capacity() {
            self.0.reserve_exact(more(self.0.len()));
        }
        self.0.insert(place, entry);
    }

    pub(crate) fn remove(&mut self, key: &T::Key) -> Option<T> {
        let removed = self.0.remove(self.place(key).ok()?);
        self.retain(|_| true);
        Some(removed)
    }

    /// Returns the entries for which `part` returns `wanted`. The list must be sorted by `part`, such as the start of the key.
    pub(crate) fn all_with<P: Ord>(&self, wanted: &P, part: impl Fn(&T) -> P) -> &[T] {
        let begin = self.0.partition_point(|entry| part(entry) < *wanted);
        let rest = self.0.get(begin..).unwrap_or_default();
        rest.get(..rest.partition_point(|entry| part(entry) == *wanted)).unwrap_or_default()
    }
}

impl<T> IntoIterator for Sorted<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<T: Keyed> FromIterator<T> for Sorted<T> {
    /// Keeps any one of several entries with the same key.
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut entries: Vec<T> = entries.into_iter().collect();
        entries.sort_unstable_by_key(Keyed::key);
        entries.dedup_by(|one, other| one.key() == other.key());
        entries.shrink_to_fit();
        Self(entries)
    }
}

/// Returns the capacity that is added to a list of this length.
fn more(len: usize) -> usize {
    len / 16 + 4
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct SortedEntry(u8, u32);

    impl Keyed for SortedEntry {
        type Key = u8;

        fn key(&self) -> u8 {
            self.0
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_of_bounded_capacity(changes in proptest::collection::vec((any::<u8>(), any::<u32>(), 0..4_u8), 0..600)) {
            let (mut list, mut map) = (Sorted::default(), BTreeMap::new());
            for (key, value, kind) in changes {
                match kind {
                    0 => prop_assert_eq!(list.remove(&key).map(|entry: SortedEntry| entry.1), map.remove(&key)),
                    1 => {
                        prop_assert_eq!(list.get_or_insert(&key, || SortedEntry(key, value)).1, *map.entry(key).or_insert(value));
                    }
                    _ => prop_assert_eq!(list.insert(SortedEntry(key, value)).map(|entry| entry.1), map.insert(key, value)),
                }
                prop_assert_eq!(list.get(&key).map(|entry| entry.1), map.get(&key).copied());
                prop_assert_eq!(list.get_mut(&key).map(|entry| entry.1), map.get(&key).copied());
            }
            prop_assert!(list.iter().map(|entry| (entry.0, entry.1)).eq(map.iter().map(|(key, value)| (*key, *value))));
            let again: Sorted<SortedEntry> = list.iter().rev().cloned().collect();
            prop_assert_eq!(&again, &list);
            let high: Vec<u8> = list.all_with(&1, |entry| entry.0 >> 7).iter().map(|entry| entry.0).collect();
            prop_assert!(high.iter().eq(map.keys().filter(|key| **key >= 128)));
            list.retain(|entry| entry.0 < 16);
            prop_assert!(list.len() <= 16 && list.0.capacity() <= list.len() + list.len() / 4 + 16);
        }
    }
}

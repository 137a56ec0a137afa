//! A bounded record of what a limit recently turned away, for the log and for `rolegate explain`.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use crate::log_once::{EachKey, LOG_EVERY, WhenFull};

/// How long a key is remembered.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(600);
/// The maximum number of remembered keys.
const MAX_REMEMBERED: usize = 1024;

/// The record of recent refusals. Its keys must not be values that a tenant can make up in any number.
#[derive(Debug)]
pub(crate) struct RecentRefusals<K> {
    entries: HashMap<K, RefusalCount>,
    lines: EachKey<K>,
}

/// The record of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recent {
    /// How often it was turned away.
    pub count: u64,
    /// The time since it was last turned away.
    pub ago: Duration,
}

#[derive(Debug)]
struct RefusalCount {
    count: u64,
    last: Instant,
}

impl<K: Eq + Hash> Default for RecentRefusals<K> {
    fn default() -> Self {
        Self { entries: HashMap::new(), lines: EachKey::new(LOG_EVERY, MAX_REMEMBERED, WhenFull::ForgetAll) }
    }
}

impl RefusalCount {
    fn recent(&self, now: Instant) -> Option<Recent> {
        let ago = now - self.last;
        (ago < REMEMBERED).then_some(Recent { count: self.count, ago })
    }
}

impl<K: Clone + Eq + Hash> RecentRefusals<K> {
    /// Counts a refusal. Returns the number for a log line if one is due, which is at most once a minute for each key.
    pub(crate) fn note(&mut self, key: K) -> Option<u64> {
        let now = Instant::now();
        if self.entries.len() >= MAX_REMEMBERED && !self.entries.contains_key(&key) {
            self.entries.retain(|_, entry| entry.recent(now).is_some());
            if self.entries.len() >= MAX_REMEMBERED {
                // There are more keys than a node has pods.
                self.entries.clear();
            }
        }
        let due = self.lines.count(key.clone());
        let entry = self.entries.entry(key).or_insert(RefusalCount { count: 0, last: now });
        if entry.recent(now).is_none() {
            entry.count = 0;
        }
        entry.count += 1;
        entry.last = now;
        due
    }

    /// Returns the record of a key.
    pub(crate) fn of(&self, key: &K) -> Option<Recent> {
        self.entries.get(key)?.recent(Instant::now())
    }

    /// Returns all remembered records, in no particular order.
    pub(crate) fn recent(&self) -> impl Iterator<Item = (&K, Recent)> {
        let now = Instant::now();
        self.entries.iter().filter_map(move |(key, entry)| Some((key, entry.recent(now)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_key_is_logged_once_a_minute_and_forgotten_later() {
        let mut memory = RecentRefusals::default();
        assert_eq!([memory.note('a'), memory.note('a'), memory.note('b')], [Some(1), None, Some(1)]);
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!(memory.note('a'), Some(2), "includes the one that was not logged");
        assert_eq!(memory.of(&'a'), Some(Recent { count: 3, ago: Duration::ZERO }));
        assert_eq!(memory.recent().find(|(key, _)| **key == 'b'), Some((&'b', Recent { count: 1, ago: LOG_EVERY })));
        tokio::time::advance(REMEMBERED).await;
        assert_eq!((memory.of(&'a'), memory.recent().count()), (None, 0));
        assert_eq!((memory.note('a'), memory.of(&'a').map(|recent| recent.count)), (Some(1), Some(1)), "the count starts again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded() {
        let mut memory = RecentRefusals::default();
        for key in 0..3 * MAX_REMEMBERED {
            memory.note(key);
        }
        assert!(memory.entries.len() <= MAX_REMEMBERED);
    }
}

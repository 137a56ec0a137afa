//! Rate limits for repeated log lines: once, once per period, or when something changes. This module only decides whether a
//! line is due, and writes nothing to the log. Its memory is bounded.
//!
//! - [`Condition`], [`Conditions`]: when a condition begins, and when it ends
//! - [`SharedConditions`]: when a condition begins for the first of several holders
//! - [`Changes`]: when a value differs from the previous one
//! - [`EachKey`], [`EachDigest`]: once per period for each key

use std::borrow::Borrow;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The usual interval between two log lines about the same subject.
pub(crate) const LOG_EVERY: Duration = Duration::from_secs(60);
/// The maximum number of conditions that [`Conditions`] keeps. When it is exceeded, all are forgotten, and some are logged
/// again.
const MOST_CONDITIONS: usize = 4096;
/// The maximum number of conditions of one [`Holder`]. Further ones are not logged.
const MOST_HELD: usize = 64;

/// A condition that is logged when it begins, and optionally when it ends.
#[derive(Debug, Default)]
pub(crate) struct Condition(AtomicBool);

impl Condition {
    /// Records that the condition holds. Returns whether it did not hold before, so that a line is due.
    pub(crate) fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// Records that the condition no longer holds. Returns whether it held before.
    pub(crate) fn ends(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// Whether the condition holds.
    pub(crate) fn holds(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Conditions by key, each logged when it begins.
#[derive(Debug)]
pub(crate) struct Conditions<K>(HashSet<K>);

impl<K> Default for Conditions<K> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<K: Eq + Hash> Conditions<K> {
    /// Records that the condition holds for this key. Returns whether it did not hold before, so that a line is due.
    pub(crate) fn begins(&mut self, key: K) -> bool {
        if self.0.len() >= MOST_CONDITIONS && !self.0.contains(&key) {
            self.0.clear();
        }
        self.0.insert(key)
    }

    /// Records that the condition no longer holds for this key. Returns whether it held before.
    pub(crate) fn ends<Q>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.0.remove(key)
    }

    /// Records that the condition holds for no key.
    pub(crate) fn end_all(&mut self) {
        self.0.clear();
    }

    /// Forgets the keys that are not wanted.
    pub(crate) fn retain(&mut self, is_wanted: impl FnMut(&K) -> bool) {
        self.0.retain(is_wanted);
    }
}

/// Conditions that several holders share. A condition is logged when it begins for the first holder, and again only after it
/// has ended for all.
#[derive(Debug)]
pub(crate) struct SharedConditions<K>(Mutex<HashMap<K, usize>>);

/// One of several holders of conditions. All of its conditions end when it is dropped.
#[derive(Debug)]
pub(crate) struct Holder<'a, K: Clone + Eq + Hash> {
    shared: &'a SharedConditions<K>,
    own: HashSet<K>,
}

impl<K> Default for SharedConditions<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> SharedConditions<K> {
    /// Returns a new holder.
    pub(crate) fn holder(&self) -> Holder<'_, K> {
        Holder { shared: self, own: HashSet::new() }
    }
}

impl<K: Clone + Eq + Hash> Holder<'_, K> {
    /// Records that the condition holds for this holder. Returns whether it held for no holder before, so that a line is due.
    pub(crate) fn begins(&mut self, key: K) -> bool {
        if self.own.len() >= MOST_HELD || !self.own.insert(key.clone()) {
            return false;
        }
        let mut all = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holders = all.entry(key).or_default();
        *holders += 1;
        *holders == 1
    }

    /// Records that no condition holds for this holder.
    pub(crate) fn end_all(&mut self) {
        let mut all = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in self.own.drain() {
            if let Some(holders) = all.get_mut(&key) {
                *holders -= 1;
                if *holders == 0 {
                    all.remove(&key);
                }
            }
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Holder<'_, K> {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// The last value that was logged.
#[derive(Debug)]
pub(crate) struct Changes<T>(Option<T>);

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Changes<T> {
    /// Records the value. Returns whether it differs from the previous one, so that a line is due.
    pub(crate) fn is_new(&mut self, value: T) -> bool {
        let is_new = self.0.as_ref() != Some(&value);
        self.0 = Some(value);
        is_new
    }

    /// Returns the last value and forgets it, so that the next one is new.
    pub(crate) fn forget(&mut self) -> Option<T> {
        self.0.take()
    }

    /// Whether there is no last value.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// What happens to a new key when the memory is full of recent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// All keys are forgotten, and some are logged again early.
    ForgetAll,
    /// The new key is not logged.
    StayQuiet,
}

/// Allows at most one line per period for each key, and counts occurrences between lines.
#[derive(Debug)]
pub(crate) struct EachKey<K> {
    every: Duration,
    most: usize,
    when_full: WhenFull,
    lines: HashMap<K, Line>,
}

#[derive(Debug)]
struct Line {
    logged_at: Instant,
    /// The number of occurrences that no line has counted yet.
    uncounted: u64,
}

impl<K: Eq + Hash> EachKey<K> {
    /// Creates a limit of one line per period of `every` for each key. Remembers at most `most` keys.
    pub(crate) fn new(every: Duration, most: usize, when_full: WhenFull) -> Self {
        Self { every, most, when_full, lines: HashMap::new() }
    }

    /// Counts an occurrence of this key. If a line is due, returns the number of occurrences that it should report.
    pub(crate) fn count(&mut self, key: K) -> Option<u64> {
        let now = Instant::now();
        let is_recent = |line: &Line| now - line.logged_at < self.every;
        if let Some(line) = self.lines.get_mut(&key) {
            line.uncounted += 1;
            if is_recent(line) {
                return None;
            }
            line.logged_at = now;
            return Some(std::mem::take(&mut line.uncounted));
        }
        if self.lines.len() >= self.most {
            self.lines.retain(|_, line| is_recent(line));
        }
        if self.lines.len() >= self.most {
            match self.when_full {
                WhenFull::ForgetAll => self.lines.clear(),
                WhenFull::StayQuiet => return None,
            }
        }
        self.lines.insert(key, Line { logged_at: now, uncounted: 0 });
        Some(1)
    }

    /// Whether a line about this key is due. If so, it counts as logged.
    pub(crate) fn is_due(&mut self, key: K) -> bool {
        self.count(key).is_some()
    }

    /// Forgets the keys that are not wanted.
    pub(crate) fn retain(&mut self, mut is_wanted: impl FnMut(&K) -> bool) {
        self.lines.retain(|key, _| is_wanted(key));
    }

    /// Returns the number of remembered keys.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }
}

/// Allows at most one line per period for each key. Keys may be of any type and length, because only their digests are kept.
/// Supports concurrent callers.
#[derive(Debug)]
pub(crate) struct EachDigest {
    hasher: RandomState,
    keys: Mutex<EachKey<u64>>,
}

impl EachDigest {
    /// Creates a limit of one line per period of `every` for each key. Remembers at most `most` keys, and forgets all when
    /// full.
    pub(crate) fn new(every: Duration, most: usize) -> Self {
        Self { hasher: RandomState::new(), keys: Mutex::new(EachKey::new(every, most, WhenFull::ForgetAll)) }
    }

    /// Whether a line about this key is due. If so, it counts as logged.
    pub(crate) fn is_due(&self, key: impl Hash) -> bool {
        let digest = self.hasher.hash_one(key);
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).is_due(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_condition_is_logged_when_it_begins_and_when_it_ends() {
        let condition = Condition::default();
        assert_eq!((condition.ends(), condition.begins(), condition.begins(), condition.holds()), (false, true, false, true));
        assert_eq!((condition.ends(), condition.holds(), condition.begins()), (true, false, true));
    }

    #[test]
    fn conditions_are_logged_once_for_each_key_and_are_bounded() {
        let mut conditions = Conditions::default();
        assert!(conditions.begins("a".to_owned()) && !conditions.begins("a".to_owned()) && conditions.begins("b".to_owned()));
        assert!(conditions.ends("a") && !conditions.ends("a") && conditions.begins("a".to_owned()));
        conditions.retain(|key| key != "b");
        assert!(conditions.begins("b".to_owned()) && !conditions.begins("a".to_owned()));
        conditions.end_all();
        assert!(conditions.begins("a".to_owned()));
        for number in 0..3 * MOST_CONDITIONS {
            conditions.begins(number.to_string());
        }
        assert!(conditions.0.len() <= MOST_CONDITIONS);
    }

    #[test]
    fn a_shared_condition_is_logged_again_after_it_ended_for_all() {
        let all = SharedConditions::default();
        let (mut a, mut b) = (all.holder(), all.holder());
        assert!(a.begins("refused") && !a.begins("refused") && !b.begins("refused"));
        assert!(b.begins("silent") && !a.begins("silent"), "another condition");
        a.end_all();
        assert!(!a.begins("refused"), "the condition still holds for the other holder");
        a.end_all();
        drop(b);
        assert!(a.begins("refused"));
        drop(a);
        assert!(all.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty());
    }

    #[test]
    fn the_conditions_of_a_holder_are_bounded() {
        let all = SharedConditions::default();
        let mut holder = all.holder();
        assert_eq!((0..3 * MOST_HELD).filter(|key| holder.begins(*key)).count(), MOST_HELD);
    }

    #[test]
    fn a_change_is_logged_when_the_value_differs() {
        let mut changes = Changes::default();
        assert!(changes.is_empty() && changes.is_new(1) && !changes.is_new(1) && changes.is_new(2) && changes.is_new(1));
        assert_eq!((changes.forget(), changes.forget()), (Some(1), None));
        assert!(changes.is_new(1));
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_is_logged_once_per_period_with_a_count() {
        let mut lines = EachKey::new(MINUTE, 16, WhenFull::ForgetAll);
        assert_eq!(["a", "a", "b"].map(|key| lines.count(key)), [Some(1), None, Some(1)]);
        tokio::time::advance(MINUTE).await;
        assert_eq!(lines.count("a"), Some(2), "includes the one that was not logged");
        lines.retain(|key| *key == "b");
        assert_eq!((lines.len(), lines.count("a")), (1, Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_bounded_and_new_ones_follow_the_setting() {
        let mut early = EachKey::new(MINUTE, 8, WhenFull::ForgetAll);
        assert_eq!((0..24).filter(|key| early.is_due(*key)).count(), 24);
        assert!(early.len() <= 8);
        let mut quiet = EachKey::new(MINUTE, 8, WhenFull::StayQuiet);
        assert_eq!((0..24).filter(|key| quiet.is_due(*key)).count(), 8);
        tokio::time::advance(MINUTE).await;
        assert!(quiet.is_due(24) && quiet.is_due(0), "older keys made room");
        assert_eq!(quiet.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_digest_is_logged_once_per_period() {
        let lines = EachDigest::new(MINUTE, 4096);
        assert!(lines.is_due(("a", "no-role")) && !lines.is_due(("a", "no-role")));
        assert!(lines.is_due(("a", "bad-role")) && lines.is_due(("b", "no-role")));
        for subject in 0..3 * 4096 {
            lines.is_due((subject, "no-role"));
        }
        assert!(lines.keys.lock().unwrap_or_else(PoisonError::into_inner).len() <= 4096);
        tokio::time::advance(MINUTE).await;
        assert!(lines.is_due(("a", "no-role")));
    }
}

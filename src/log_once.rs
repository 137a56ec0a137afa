//! Decides whether a log line is due, so that what repeats does not fill the log: a line once, once in a while, or when something
//! changes. Nothing here writes to the log. Everything is bounded.
//!
//! - [`Condition`], [`Conditions`]: when it begins, and when it ends
//! - [`SharedConditions`]: the same for several holders, of which the first logs it
//! - [`Changes`]: when it is another than before
//! - [`EachKey`], [`EachDigest`]: once in a period for each key

use std::borrow::Borrow;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The most conditions that [`Conditions`] keeps. At more, all are forgotten, and some are logged again.
const MOST_CONDITIONS: usize = 4096;
/// The most conditions of one [`Holder`]. More are not logged.
const MOST_HELD: usize = 64;

/// A condition that is logged when it begins, and perhaps when it ends.
#[derive(Debug, Default)]
pub(crate) struct Condition(AtomicBool);

impl Condition {
    /// Notes that it holds. Returns whether it did not before: a line is due.
    pub(crate) fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// Notes that it does not hold. Returns whether it did before.
    pub(crate) fn ends(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// Whether it holds.
    pub(crate) fn holds(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Conditions by a key, each logged when it begins.
#[derive(Debug)]
pub(crate) struct Conditions<K>(HashSet<K>);

impl<K> Default for Conditions<K> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<K: Eq + Hash> Conditions<K> {
    /// Notes that it holds for this key. Returns whether it did not before: a line is due.
    pub(crate) fn begins(&mut self, key: K) -> bool {
        if self.0.len() >= MOST_CONDITIONS && !self.0.contains(&key) {
            self.0.clear();
        }
        self.0.insert(key)
    }

    /// Notes that it does not hold for this key. Returns whether it did before.
    pub(crate) fn ends<Q>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.0.remove(key)
    }

    /// Notes that it holds for no key.
    pub(crate) fn end_all(&mut self) {
        self.0.clear();
    }

    /// Forgets the keys that are not wanted.
    pub(crate) fn retain(&mut self, is_wanted: impl FnMut(&K) -> bool) {
        self.0.retain(is_wanted);
    }
}

/// Conditions that several holders share. One is logged when it begins for the first holder, and again after it ended for all.
#[derive(Debug)]
pub(crate) struct SharedConditions<K>(Mutex<HashMap<K, usize>>);

/// One of several holders of conditions; all of its own end when it is dropped.
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
    /// Notes that it holds for this holder. Returns whether it did for none before: a line is due.
    pub(crate) fn begins(&mut self, key: K) -> bool {
        if self.own.len() >= MOST_HELD || !self.own.insert(key.clone()) {
            return false;
        }
        let mut all = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holders = all.entry(key).or_default();
        *holders += 1;
        *holders == 1
    }

    /// Notes that none holds for this holder.
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
    /// Remembers the value. Returns whether it differs from the one before: a line is due.
    pub(crate) fn is_new(&mut self, value: T) -> bool {
        let is_new = self.0.as_ref() != Some(&value);
        self.0 = Some(value);
        is_new
    }

    /// Returns the value, and forgets it: the next one is new.
    pub(crate) fn forget(&mut self) -> Option<T> {
        self.0.take()
    }

    /// Whether there has been no value since the start, or since it was forgotten.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// What becomes of a new key when the memory is full of recent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// All are forgotten, and some are logged again early.
    ForgetAll,
    /// It is not logged.
    StayQuiet,
}

/// At most one line in a period for each key, with the number of those that no line has counted.
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
    /// Those that no line counts yet.
    uncounted: u64,
}

impl<K: Eq + Hash> EachKey<K> {
    /// Keeps at most `most` keys, each with one line `every` period.
    pub(crate) fn new(every: Duration, most: usize, when_full: WhenFull) -> Self {
        Self { every, most, when_full, lines: HashMap::new() }
    }

    /// Counts one more of this key. Returns how many a line should count, if one is due.
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

    /// Whether a line about this key is due, which is then taken as logged.
    pub(crate) fn is_due(&mut self, key: K) -> bool {
        self.count(key).is_some()
    }

    /// Forgets the keys that are not wanted.
    pub(crate) fn retain(&mut self, mut is_wanted: impl FnMut(&K) -> bool) {
        self.lines.retain(|key, _| is_wanted(key));
    }

    /// The number of keys that are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }
}

/// At most one line in a period for each key, which may be anything: only its digest is kept. For several callers at one time.
#[derive(Debug)]
pub(crate) struct EachDigest {
    hasher: RandomState,
    keys: Mutex<EachKey<u64>>,
}

impl EachDigest {
    /// Keeps at most `most` keys, each with one line `every` period. When it is full, all are forgotten.
    pub(crate) fn new(every: Duration, most: usize) -> Self {
        Self { hasher: RandomState::new(), keys: Mutex::new(EachKey::new(every, most, WhenFull::ForgetAll)) }
    }

    /// Whether a line about this key is due, which is then taken as logged.
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
    fn a_shared_condition_is_logged_by_the_first_holder_and_again_after_it_ended_for_all() {
        let all = SharedConditions::default();
        let (mut a, mut b) = (all.holder(), all.holder());
        assert!(a.begins("refused") && !a.begins("refused") && !b.begins("refused"));
        assert!(b.begins("silent") && !a.begins("silent"), "another one");
        a.end_all();
        assert!(!a.begins("refused"), "the other still has it");
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
    async fn each_key_is_logged_once_in_a_period_with_those_that_were_not_counted() {
        let mut lines = EachKey::new(MINUTE, 16, WhenFull::ForgetAll);
        assert_eq!(["a", "a", "b"].map(|key| lines.count(key)), [Some(1), None, Some(1)]);
        tokio::time::advance(MINUTE).await;
        assert_eq!(lines.count("a"), Some(2), "with the one that the line before did not count");
        lines.retain(|key| *key == "b");
        assert_eq!((lines.len(), lines.count("a")), (1, Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_bounded_and_new_ones_are_logged_again_early_or_not_at_all() {
        let mut early = EachKey::new(MINUTE, 8, WhenFull::ForgetAll);
        assert_eq!((0..24).filter(|key| early.is_due(*key)).count(), 24);
        assert!(early.len() <= 8);
        let mut quiet = EachKey::new(MINUTE, 8, WhenFull::StayQuiet);
        assert_eq!((0..24).filter(|key| quiet.is_due(*key)).count(), 8);
        tokio::time::advance(MINUTE).await;
        assert!(quiet.is_due(24) && quiet.is_due(0), "room for others");
        assert_eq!(quiet.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_digest_is_logged_once_in_a_period_for_everything_that_makes_it() {
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

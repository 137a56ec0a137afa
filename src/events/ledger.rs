//! What is to be written, and when: pure data, with the time given.
//!
//! The first time of a cause is written at once. Repeats are counted, and told by a series of that Event at most every
//! [`SERIES_EVERY`], as client-go does it, but rarely. What has been quiet for [`QUIET`] is forgotten; the next time is a
//! first one again. Over all stands the node's own rate, and pauses while the API does not take what it is sent.

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::object::{self, Series};
use super::{Cause, Record};
use crate::pods::{Pod, PodUid};

/// The least time between two writes about the same cause of the same pod.
pub(super) const SERIES_EVERY: Duration = Duration::from_secs(5 * 60);
/// A cause that did not come again in this time is forgotten. Less than the hour for which the API keeps Events.
pub(super) const QUIET: Duration = Duration::from_secs(15 * 60);
/// Causes that are remembered: some for each pod of a node.
pub(super) const MAX_ENTRIES: usize = 1024;
/// Causes of one pod that are remembered: what an owner may change by and by, and no more by changing it again and again.
pub(super) const MAX_OF_POD: usize = 6;
/// Writes at one time, where there were none for a while.
pub(super) const BURST: u32 = 25;
/// The time for one more.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// The first pause after a failure, and the longest.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5 * 60));
/// The pause after it was forbidden: somebody has to change a rule.
pub(super) const FORBIDDEN_AGAIN: Duration = Duration::from_secs(10 * 60);

/// Both times of a moment: one to count by, one to write down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) wall: Timestamp,
}

/// A cause of a pod, whose UID is what counts.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) pod: Arc<Pod>,
    pub(super) cause: Cause,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.pod.uid == other.pod.uid && self.cause == other.cause
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.pod.uid, self.cause).hash(state);
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is the first.
    New,
    /// It is counted.
    Repeat,
    /// There is no room.
    Full,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verb {
    Create,
    Amend,
}

/// One thing to write.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) verb: Verb,
    pub(super) name: String,
    /// When it was first.
    pub(super) at: Timestamp,
    /// Where it was more than once.
    pub(super) series: Option<Series>,
}

/// What to do next.
#[derive(Clone, Debug)]
pub(super) enum Next {
    Write(Write),
    /// Nothing before this time.
    At(Instant),
    /// Nothing before the next record.
    Nothing,
}

/// What the API said to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is there.
    Written,
    /// What was to be amended is not there any more.
    Missing,
    /// It will never be taken: what it is about is going, or it is not as the API wants it.
    Never,
    /// The daemon may not.
    Forbidden,
    /// It may be taken later, and not before this time is over.
    Later(Duration),
}

#[derive(Debug)]
struct Entry {
    name: String,
    stage: Stage,
    in_flight: bool,
    count: u32,
    first: Timestamp,
    last: Timestamp,
    /// When it was last seen, or written.
    stirred: Instant,
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is to be written.
    New,
    /// The API has it, with this count.
    Written { told: u32 },
    /// It is only remembered, so that it is not tried again.
    GivenUp,
}

impl Entry {
    /// What there is to write of it, and from when on.
    fn due(&self) -> Option<(Verb, Instant)> {
        let verb = match self.stage {
            _ if self.in_flight => return None,
            Stage::New => Verb::Create,
            Stage::Written { told } if self.count > told => Verb::Amend,
            Stage::Written { .. } | Stage::GivenUp => return None,
        };
        Some((verb, self.not_before))
    }
}

/// What pods are told, have been told and are still to be told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<Key, Entry>,
    /// When all tokens of the bucket are there again (the generic cell rate algorithm).
    full_at: Option<Instant>,
    /// Names that were given: each has another number.
    named: u64,
    failures: u32,
    creates: Pauses,
    amends: Pauses,
}

/// How long a verb is not tried, everywhere and in single namespaces. A namespace may refuse by itself, by an admission webhook,
/// say; where two do so and nothing was taken between, it is the daemon that may not.
#[derive(Debug, Default)]
struct Pauses {
    until: Option<Instant>,
    of_namespaces: HashMap<String, Instant>,
    /// Namespaces in which it was forbidden since it was last taken anywhere.
    forbidden: BTreeSet<String>,
}

impl Pauses {
    /// The end of the pause for writes in a namespace.
    fn until(&self, namespace: &str) -> Option<Instant> {
        self.until.max(self.of_namespaces.get(namespace).copied())
    }

    fn pause(&mut self, until: Instant) {
        self.until = self.until.max(Some(until));
    }

    fn forbid(&mut self, namespace: &str, until: Instant) {
        self.forbidden.insert(namespace.to_owned());
        self.of_namespaces.insert(namespace.to_owned(), until);
        if self.is_forbidden_everywhere() {
            self.pause(until);
        }
    }

    fn is_forbidden_everywhere(&self) -> bool {
        self.forbidden.len() > 1
    }
}

impl Ledger {
    /// Takes a record in.
    pub(super) fn take(&mut self, record: Record, now: Now) -> Taken {
        let key = Key { pod: record.pod, cause: record.cause };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.count = entry.count.saturating_add(1).min(i32::MAX.unsigned_abs());
            (entry.last, entry.stirred) = (now.wall, now.instant);
            return Taken::Repeat;
        }
        let of_pod = || self.entries.keys().filter(|known| known.pod.uid == key.pod.uid).count();
        if self.entries.len() >= MAX_ENTRIES || of_pod() >= MAX_OF_POD {
            return Taken::Full;
        }
        let entry = Entry {
            name: self.name(&key.pod, now.wall),
            stage: Stage::New,
            in_flight: false,
            count: 1,
            first: now.wall,
            last: now.wall,
            stirred: now.instant,
            not_before: now.instant,
        };
        self.entries.insert(key, entry);
        Taken::New
    }

    /// The time, and a number besides: two of one moment have different names.
    fn name(&mut self, pod: &Pod, at: Timestamp) -> String {
        self.named += 1;
        let nanoseconds = u64::try_from(at.as_nanosecond()).unwrap_or(0);
        object::name(&pod.name, nanoseconds.wrapping_add(self.named))
    }

    /// Whether this is remembered.
    pub(super) fn knows(&self, pod: &Arc<Pod>, cause: Cause) -> bool {
        self.entries.contains_key(&Key { pod: pod.clone(), cause })
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What to do now. A write that is given out is under way until [`Self::answered`], or [`Self::forget`].
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let due = self.entries.iter().filter_map(|(key, entry)| entry.due().map(|(verb, at)| (key, verb, at)));
        // What was to be written first comes first, also after a pause.
        let ready = |key: &Key, verb, at| self.pauses(verb).until(&key.pod.namespace).map_or(at, |until| until.max(at));
        let first = due.map(|(key, verb, at)| (ready(key, verb, at), at, key, verb)).min_by_key(|it| (it.0, it.1));
        let quiet_at = self.entries.values().filter(|entry| !entry.in_flight).map(|entry| entry.stirred + QUIET).min();
        let Some((ready_at, _, key, verb)) = first else {
            return quiet_at.map_or(Next::Nothing, Next::At);
        };
        let at = ready_at.max(self.token_at().unwrap_or(ready_at));
        if at > now {
            return Next::At(quiet_at.map_or(at, |quiet| quiet.min(at)));
        }
        let key = key.clone();
        self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + INTERVAL);
        let Some(entry) = self.entries.get_mut(&key) else {
            return Next::Nothing;
        };
        entry.in_flight = true;
        let series = (entry.count > 1).then_some(Series { count: entry.count, last: entry.last });
        Next::Write(Write { verb, name: entry.name.clone(), at: entry.first, series, key })
    }

    /// When there is a token.
    fn token_at(&self) -> Option<Instant> {
        self.full_at?.checked_sub(INTERVAL * (BURST - 1))
    }

    fn pauses(&self, verb: Verb) -> &Pauses {
        match verb {
            Verb::Create => &self.creates,
            Verb::Amend => &self.amends,
        }
    }

    fn pauses_mut(&mut self, verb: Verb) -> &mut Pauses {
        match verb {
            Verb::Create => &mut self.creates,
            Verb::Amend => &mut self.amends,
        }
    }

    /// Whether this is forbidden in more than one namespace, and was taken in none since.
    pub(super) fn is_forbidden_everywhere(&self, verb: Verb) -> bool {
        self.pauses(verb).is_forbidden_everywhere()
    }

    /// Takes in what the API said to a write. `jitter` is from 0 to 1, and shortens pauses by up to a quarter.
    pub(super) fn answered(&mut self, write: &Write, answer: &Answer, now: Now, jitter: f64) {
        let pause = match answer {
            Answer::Later(at_least) => {
                let (first, last) = PAUSES;
                let doubled = first.saturating_mul(1 << self.failures.min(16)).min(last);
                self.failures = self.failures.saturating_add(1);
                Some(doubled.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0).max(*at_least).min(last))
            }
            Answer::Forbidden => Some(FORBIDDEN_AGAIN),
            _ => {
                self.failures = 0;
                None
            }
        };
        match (answer, pause.map(|pause| now.instant + pause)) {
            // It may be so for one of the verbs alone.
            (Answer::Forbidden, Some(until)) => self.pauses_mut(write.verb).forbid(&write.key.pod.namespace, until),
            // What failed would fail for the other verb too.
            (_, Some(until)) => {
                self.creates.pause(until);
                self.amends.pause(until);
            }
            (Answer::Written, None) => self.pauses_mut(write.verb).forbidden.clear(),
            (_, None) => {}
        }
        let anew = (*answer == Answer::Missing).then(|| self.name(&write.key.pod, now.wall));
        let Some(entry) = self.entries.get_mut(&write.key) else {
            return;
        };
        entry.in_flight = false;
        match answer {
            Answer::Written => {
                entry.stage = Stage::Written { told: write.series.map_or(1, |series| series.count) };
                (entry.stirred, entry.not_before) = (now.instant, now.instant + SERIES_EVERY);
            }
            Answer::Missing => {
                entry.stage = Stage::New;
                entry.name = anew.unwrap_or_default();
            }
            Answer::Never => entry.stage = Stage::GivenUp,
            // Behind those that have not been tried yet.
            Answer::Forbidden | Answer::Later(_) => entry.not_before = now.instant + pause.unwrap_or_default(),
        }
    }

    /// A write is not made after all: its pod is gone.
    pub(super) fn forget(&mut self, write: &Write) {
        self.entries.remove(&write.key);
    }

    /// Lets go of what has been quiet, and of pods that are gone. Gives the number of those that were never written.
    pub(super) fn tidy(&mut self, now: Instant, is_here: impl Fn(&PodUid) -> bool) -> usize {
        let mut lost = 0;
        for pauses in [&mut self.creates, &mut self.amends] {
            pauses.of_namespaces.retain(|_, until| *until > now);
        }
        self.entries.retain(|key, entry| {
            let keep = entry.in_flight || now < entry.stirred + QUIET && is_here(&key.pod.uid);
            lost += usize::from(!keep && entry.stage == Stage::New);
            keep
        });
        lost
    }
}

#[cfg(test)]
mod tests;

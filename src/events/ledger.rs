//! Decides which Events to write, and when: pure data, with the time passed in.
//!
//! The first occurrence of a cause is written at once. Repeats are counted, and written as a series of the same Event as
//! client-go does, but less often: at most once per [`SERIES_EVERY`]. An entry that has been quiet for [`FORGET_AFTER`] is forgotten;
//! the next occurrence then counts as the first.
//!
//! Namespaces share the entries and take turns writing, so that many refused pods in one namespace do not delay the owners of
//! other pods. `turns` holds the order and the rates of the node and of each namespace; `pauses` says how long to leave the API
//! alone after it refused a write.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::object::{self, Series};
use super::{EventCause, EventRecord};
use crate::backoff::{Backoff, shortened};
use crate::pods::{Pod, PodUid};
use crate::shares::{Full, Shares};

mod pauses;
mod turns;

use pauses::VerbPauses;
pub(super) use turns::FORGET_AFTER;
use turns::Turns;

/// The minimum interval between two writes about the same cause for the same pod.
pub(super) const SERIES_EVERY: Duration = Duration::from_secs(5 * 60);
/// The maximum number of remembered causes: a few for each pod of a node. When it is exceeded, the namespace with the most
/// entries gives one up.
pub(super) const MAX_ENTRIES: usize = 1024;
/// The maximum number of remembered causes for one pod: enough for changes that an owner makes over time, but repeated changes
/// do not produce more.
pub(super) const MAX_OF_POD: usize = 6;
/// The first pause after a failure. It doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LAST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// The pause after the API forbade a write: somebody has to change an RBAC rule first.
pub(super) const FORBIDDEN_AGAIN: Duration = Duration::from_secs(10 * 60);

/// One moment on both clocks: a monotonic instant to measure with, and a timestamp to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) wall: Timestamp,
}

/// A cause for a pod, which is identified by its UID.
#[derive(Clone, Debug)]
pub(super) struct EventKey {
    pub(super) pod: Arc<Pod>,
    pub(super) cause: EventCause,
}

impl PartialEq for EventKey {
    fn eq(&self, other: &Self) -> bool {
        self.pod.uid == other.pod.uid && self.cause == other.cause
    }
}

impl Eq for EventKey {}

impl Hash for EventKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.pod.uid, self.cause).hash(state);
    }
}

/// The result of adding a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TakenIn {
    /// The cause is new.
    New,
    /// The cause is new and displaced an Event on this pod that had not been written yet.
    InPlaceOf(Arc<Pod>),
    /// The cause is a repeat and was counted.
    Repeat,
    /// There is no room for the record.
    Full(Full),
}

/// The kind of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verb {
    Create,
    Amend,
}

/// One Event to write.
#[derive(Clone, Debug)]
pub(super) struct Write {
    /// The id of the ledger entry.
    id: u64,
    pub(super) key: EventKey,
    pub(super) verb: Verb,
    pub(super) name: String,
    /// The time of the first occurrence.
    pub(super) at: Timestamp,
    /// The series, if there was more than one occurrence.
    pub(super) series: Option<Series>,
}

/// What the writer should do next.
#[derive(Clone, Debug)]
pub(super) enum Next {
    Write(Write),
    /// Wait until this time.
    At(Instant),
    /// Wait for the next record.
    Nothing,
}

/// The API's response to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// The Event was stored.
    Written,
    /// The Event to amend no longer exists.
    Missing,
    /// The API will never accept the write: the object is being deleted, or the Event is invalid.
    Never,
    /// The daemon lacks permission.
    Forbidden,
    /// The API may accept the write later, but not before this time has passed.
    Later(Duration),
}

#[derive(Debug)]
struct LedgerEntry {
    key: EventKey,
    name: String,
    stage: Stage,
    in_flight: bool,
    count: u32,
    first: Timestamp,
    last: Timestamp,
    /// When the entry last occurred or was last written.
    last_active: Instant,
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The Event is still to be written.
    New,
    /// The API has the Event, with this count.
    Written { told: u32 },
    /// The entry is remembered only so that it is not tried again.
    GivenUp,
}

impl LedgerEntry {
    /// Returns what to write for this entry, if anything, and the earliest time to do so.
    fn due(&self) -> Option<(Verb, Instant)> {
        let verb = match self.stage {
            _ if self.in_flight => return None,
            Stage::New => Verb::Create,
            Stage::Written { told } if self.count > told => Verb::Amend,
            Stage::Written { .. } | Stage::GivenUp => return None,
        };
        Some((verb, self.not_before))
    }

    /// Returns whether information is lost if the entry is forgotten now.
    fn is_unwritten(&self) -> bool {
        self.stage == Stage::New && !self.in_flight
    }
}

/// The Events on pods, both written and unwritten.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Entries by namespace and pod.
    entries: Shares<String, PodUid, LedgerEntry>,
    ids: HashMap<EventKey, u64>,
    last_id: u64,
    turns: Turns,
    /// The number of names generated so far; each name gets a different number.
    named: u64,
    failures: u32,
    creates: VerbPauses,
    amends: VerbPauses,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            entries: Shares::new(MAX_ENTRIES, MAX_OF_POD),
            ids: HashMap::new(),
            last_id: 0,
            turns: Turns::default(),
            named: 0,
            failures: 0,
            creates: VerbPauses::default(),
            amends: VerbPauses::default(),
        }
    }
}

impl Ledger {
    /// Adds a record.
    pub(super) fn take(&mut self, record: EventRecord, now: Moment) -> TakenIn {
        let key = EventKey { pod: record.pod, cause: record.cause };
        if let Some(entry) = self.ids.get(&key).and_then(|id| self.entries.get_mut(*id)) {
            entry.count = entry.count.saturating_add(1).min(i32::MAX.unsigned_abs());
            (entry.last, entry.last_active) = (now.wall, now.instant);
            return TakenIn::Repeat;
        }
        let entry = LedgerEntry {
            name: self.name(&key.pod, now.wall),
            stage: Stage::New,
            in_flight: false,
            count: 1,
            first: now.wall,
            last: now.wall,
            last_active: now.instant,
            not_before: now.instant,
            key: key.clone(),
        };
        self.last_id += 1;
        let displaced = match self.entries.enter(self.last_id, key.pod.namespace.clone(), key.pod.uid.clone(), entry) {
            Ok(displaced) => displaced.map(|displaced| displaced.value),
            Err(full) => return TakenIn::Full(full),
        };
        self.ids.insert(key, self.last_id);
        let Some(displaced) = displaced else { return TakenIn::New };
        self.ids.remove(&displaced.key);
        if displaced.is_unwritten() { TakenIn::InPlaceOf(displaced.key.pod) } else { TakenIn::New }
    }

    /// Returns an Event name made from the time and a counter, so that two Events of the same moment have different names.
    fn name(&mut self, pod: &Pod, at: Timestamp) -> String {
        self.named += 1;
        let nanoseconds = u64::try_from(at.as_nanosecond()).unwrap_or(0);
        object::name(&pod.name, nanoseconds.wrapping_add(self.named))
    }

    /// Returns whether this cause is remembered.
    pub(super) fn knows(&self, pod: &Arc<Pod>, cause: EventCause) -> bool {
        self.ids.contains_key(&EventKey { pod: pod.clone(), cause })
    }

    /// Returns the number of remembered causes.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.ids.len(), self.entries.len());
        self.entries.len()
    }

    /// Returns what to do now. A returned write is in progress until [`Self::answered`] or [`Self::forget`] is called.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let quiet_at = self.entries.iter().filter(|(_, entry)| !entry.in_flight).map(|(_, entry)| entry.last_active + FORGET_AFTER).min();
        let Some((ready_at, id, verb)) = self.first(now) else {
            return quiet_at.map_or(Next::Nothing, Next::At);
        };
        let at = ready_at.max(self.turns.node_ready_at().unwrap_or(ready_at));
        if at > now {
            return Next::At(quiet_at.map_or(at, |quiet| quiet.min(at)));
        }
        let Some(entry) = self.entries.get_mut(id) else {
            return Next::Nothing;
        };
        self.turns.take(&entry.key.pod.namespace, now);
        entry.in_flight = true;
        let series = (entry.count > 1).then_some(Series { count: entry.count, last: entry.last });
        Next::Write(Write { id, verb, name: entry.name.clone(), at: entry.first, series, key: entry.key.clone() })
    }

    /// Returns the entry to write first, and when its namespace may write it. Among the entries that may be written now, it is
    /// one of the namespace whose turn it is, and the oldest of these, even after a pause.
    fn first(&self, now: Instant) -> Option<(Instant, u64, Verb)> {
        let due = self.entries.iter().filter_map(|(id, entry)| entry.due().map(|(verb, at)| (id, &entry.key.pod.namespace, verb, at)));
        let ranked = due.map(|(id, namespace, verb, at)| {
            let (rate_at, turn) = self.turns.of_namespace(namespace);
            let ready_at = self.pauses(verb).until(namespace).max(rate_at).max(Some(at)).unwrap_or(at);
            ((ready_at.max(now), turn, at, id), verb)
        });
        let ((ready_at, _, _, id), verb) = ranked.min_by_key(|(rank, _)| *rank)?;
        Some((ready_at, id, verb))
    }

    fn pauses(&self, verb: Verb) -> &VerbPauses {
        match verb {
            Verb::Create => &self.creates,
            Verb::Amend => &self.amends,
        }
    }

    fn pauses_mut(&mut self, verb: Verb) -> &mut VerbPauses {
        match verb {
            Verb::Create => &mut self.creates,
            Verb::Amend => &mut self.amends,
        }
    }

    /// Returns whether this verb was forbidden in more than one namespace and has been accepted in none since.
    pub(super) fn is_forbidden_everywhere(&self, verb: Verb) -> bool {
        self.pauses(verb).is_forbidden_everywhere()
    }

    /// Records the API's response to a write. `jitter` ranges from 0 to 1 and shortens pauses by up to a quarter.
    pub(super) fn answered(&mut self, write: &Write, answer: &WriteOutcome, now: Moment, jitter: f64) {
        let pause = match answer {
            WriteOutcome::Later(at_least) => {
                let doubled = Backoff::new(FIRST_PAUSE, LAST_PAUSE).pause(self.failures);
                self.failures = self.failures.saturating_add(1);
                Some(shortened(doubled, jitter).max(*at_least).min(LAST_PAUSE))
            }
            WriteOutcome::Forbidden => Some(FORBIDDEN_AGAIN),
            _ => {
                self.failures = 0;
                None
            }
        };
        match (answer, pause.map(|pause| now.instant + pause)) {
            // Permission may be missing for only one of the verbs.
            (WriteOutcome::Forbidden, Some(until)) => self.pauses_mut(write.verb).forbid(&write.key.pod.namespace, until),
            // A failure of the API would affect the other verb too.
            (_, Some(until)) => {
                self.creates.pause(until);
                self.amends.pause(until);
            }
            (WriteOutcome::Written, None) => self.pauses_mut(write.verb).accepted(),
            (_, None) => {}
        }
        let anew = (*answer == WriteOutcome::Missing).then(|| self.name(&write.key.pod, now.wall));
        let Some(entry) = self.entries.get_mut(write.id) else {
            return;
        };
        entry.in_flight = false;
        match answer {
            WriteOutcome::Written => {
                entry.stage = Stage::Written { told: write.series.map_or(1, |series| series.count) };
                (entry.last_active, entry.not_before) = (now.instant, now.instant + SERIES_EVERY);
            }
            WriteOutcome::Missing => {
                entry.stage = Stage::New;
                entry.name = anew.unwrap_or_default();
            }
            WriteOutcome::Never => entry.stage = Stage::GivenUp,
            // The entry moves behind those that have not been tried yet.
            WriteOutcome::Forbidden | WriteOutcome::Later(_) => entry.not_before = now.instant + pause.unwrap_or_default(),
        }
    }

    /// Discards a write whose pod is gone.
    pub(super) fn forget(&mut self, write: &Write) {
        self.remove(write.id);
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.leave(id) {
            self.ids.remove(&entry.key);
        }
    }

    /// Forgets entries that have been quiet, and those of pods that are gone. Returns how many of them were never written.
    pub(super) fn tidy(&mut self, now: Instant, is_here: impl Fn(&PodUid) -> bool) -> usize {
        self.creates.tidy(now);
        self.amends.tidy(now);
        self.turns.tidy(now);
        let keep = |entry: &LedgerEntry| entry.in_flight || now < entry.last_active + FORGET_AFTER && is_here(&entry.key.pod.uid);
        let gone: Vec<_> = self.entries.iter().filter(|(_, entry)| !keep(entry)).map(|(id, entry)| (id, entry.is_unwritten())).collect();
        for (id, _) in &gone {
            self.remove(*id);
        }
        gone.into_iter().filter(|(_, is_unwritten)| *is_unwritten).count()
    }
}

#[cfg(test)]
mod tests;

//! Which Events to write, and when: pure data, with the time given.
//!
//! The first time of a cause is written at once. Repeats are counted, and written as a series of that Event at most every
//! [`SERIES_EVERY`], as client-go does it, but rarely. An entry that has been quiet for [`QUIET`] is forgotten; the next time is
//! a first one again.
//!
//! Namespaces share the entries and take turns with the writes, so that many refused pods of one namespace do not keep the owners
//! of other pods waiting. `turns` has the order and the rates of the node and of each namespace; `pauses` says how long the
//! API is left alone after it refused a write.

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
pub(super) use turns::QUIET;
use turns::Turns;

/// The least time between two writes about the same cause of the same pod.
pub(super) const SERIES_EVERY: Duration = Duration::from_secs(5 * 60);
/// Causes that are remembered: some for each pod of a node. When there are more, the namespace with the most gives one up.
pub(super) const MAX_ENTRIES: usize = 1024;
/// Causes of one pod that are remembered: what an owner may change by and by, and no more by changing it again and again.
pub(super) const MAX_OF_POD: usize = 6;
/// The first pause after a failure. It doubles with each more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LAST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// The pause after it was forbidden: somebody has to change a rule.
pub(super) const FORBIDDEN_AGAIN: Duration = Duration::from_secs(10 * 60);

/// Both times of a moment: one to count by, one to write down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) wall: Timestamp,
}

/// A cause of a pod, whose UID is what counts.
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

/// What became of a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TakenIn {
    /// It is the first.
    New,
    /// It is the first, and took the place of an Event on this pod that was still to be written.
    InPlaceOf(Arc<Pod>),
    /// It is counted.
    Repeat,
    /// There is no place for it.
    Full(Full),
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
    /// The entry's id.
    id: u64,
    pub(super) key: EventKey,
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
pub(super) enum WriteOutcome {
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
struct LedgerEntry {
    key: EventKey,
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

impl LedgerEntry {
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

    /// Whether it is lost if it is forgotten now.
    fn is_unwritten(&self) -> bool {
        self.stage == Stage::New && !self.in_flight
    }
}

/// What pods are told, have been told and are still to be told.
#[derive(Debug)]
pub(super) struct Ledger {
    /// By namespace and pod.
    entries: Shares<String, PodUid, LedgerEntry>,
    ids: HashMap<EventKey, u64>,
    last_id: u64,
    turns: Turns,
    /// Names that were given: each has another number.
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
    /// Takes a record in.
    pub(super) fn take(&mut self, record: EventRecord, now: Moment) -> TakenIn {
        let key = EventKey { pod: record.pod, cause: record.cause };
        if let Some(entry) = self.ids.get(&key).and_then(|id| self.entries.get_mut(*id)) {
            entry.count = entry.count.saturating_add(1).min(i32::MAX.unsigned_abs());
            (entry.last, entry.stirred) = (now.wall, now.instant);
            return TakenIn::Repeat;
        }
        let entry = LedgerEntry {
            name: self.name(&key.pod, now.wall),
            stage: Stage::New,
            in_flight: false,
            count: 1,
            first: now.wall,
            last: now.wall,
            stirred: now.instant,
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

    /// The time, and a number besides: two of one moment have different names.
    fn name(&mut self, pod: &Pod, at: Timestamp) -> String {
        self.named += 1;
        let nanoseconds = u64::try_from(at.as_nanosecond()).unwrap_or(0);
        object::name(&pod.name, nanoseconds.wrapping_add(self.named))
    }

    /// Whether this is remembered.
    pub(super) fn knows(&self, pod: &Arc<Pod>, cause: EventCause) -> bool {
        self.ids.contains_key(&EventKey { pod: pod.clone(), cause })
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.ids.len(), self.entries.len());
        self.entries.len()
    }

    /// What to do now. A write that is given out is under way until [`Self::answered`], or [`Self::forget`].
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let quiet_at = self.entries.iter().filter(|(_, entry)| !entry.in_flight).map(|(_, entry)| entry.stirred + QUIET).min();
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

    /// Returns the entry to write first, and when its namespace may: of those that may be written now, one of the namespace whose
    /// turn it is, and of these the oldest, also after a pause.
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

    /// Whether this is forbidden in more than one namespace, and was taken in none since.
    pub(super) fn is_forbidden_everywhere(&self, verb: Verb) -> bool {
        self.pauses(verb).is_forbidden_everywhere()
    }

    /// Takes in what the API said to a write. `jitter` is from 0 to 1, and shortens pauses by up to a quarter.
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
            // It may be so for one of the verbs alone.
            (WriteOutcome::Forbidden, Some(until)) => self.pauses_mut(write.verb).forbid(&write.key.pod.namespace, until),
            // What failed would fail for the other verb too.
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
                (entry.stirred, entry.not_before) = (now.instant, now.instant + SERIES_EVERY);
            }
            WriteOutcome::Missing => {
                entry.stage = Stage::New;
                entry.name = anew.unwrap_or_default();
            }
            WriteOutcome::Never => entry.stage = Stage::GivenUp,
            // Behind those that have not been tried yet.
            WriteOutcome::Forbidden | WriteOutcome::Later(_) => entry.not_before = now.instant + pause.unwrap_or_default(),
        }
    }

    /// A write is not made after all: its pod is gone.
    pub(super) fn forget(&mut self, write: &Write) {
        self.remove(write.id);
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.leave(id) {
            self.ids.remove(&entry.key);
        }
    }

    /// Lets go of what has been quiet, and of pods that are gone. Gives the number of those that were never written.
    pub(super) fn tidy(&mut self, now: Instant, is_here: impl Fn(&PodUid) -> bool) -> usize {
        self.creates.tidy(now);
        self.amends.tidy(now);
        self.turns.tidy(now);
        let keep = |entry: &LedgerEntry| entry.in_flight || now < entry.stirred + QUIET && is_here(&entry.key.pod.uid);
        let gone: Vec<_> = self.entries.iter().filter(|(_, entry)| !keep(entry)).map(|(id, entry)| (id, entry.is_unwritten())).collect();
        for (id, _) in &gone {
            self.remove(*id);
        }
        gone.into_iter().filter(|(_, is_unwritten)| *is_unwritten).count()
    }
}

#[cfg(test)]
mod tests;

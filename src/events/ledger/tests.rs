#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what failed")]
use proptest::prelude::*;

use super::turns::{BURST, BURST_OF_NAMESPACE, INTERVAL};
use super::*;
use crate::events::tests::pod;
use crate::policy::Denial;

const NO_ROLE: EventCause = EventCause::Denied(Denial::NoRole);
const NODE_ROLE: EventCause = EventCause::Denied(Denial::NodeRole);
const SECOND: Duration = Duration::from_secs(1);

/// A ledger and its clock.
struct Bed {
    ledger: Ledger,
    start: Instant,
    passed: Duration,
}

impl Bed {
    fn new() -> Self {
        Self { ledger: Ledger::default(), start: Instant::now(), passed: Duration::ZERO }
    }

    fn now(&self) -> Moment {
        let wall: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        Moment { instant: self.start + self.passed, wall: wall + self.passed }
    }

    fn tell(&mut self, name: &str, cause: EventCause) -> TakenIn {
        self.tell_in("shop", name, cause)
    }

    fn tell_in(&mut self, namespace: &str, name: &str, cause: EventCause) -> TakenIn {
        let pod = Pod { namespace: namespace.to_owned(), ..pod(name) };
        self.ledger.take(EventRecord { pod: Arc::new(pod), cause }, self.now())
    }

    fn next(&mut self) -> Next {
        let now = self.now().instant;
        self.ledger.tidy(now, |_| true);
        self.ledger.next(now)
    }

    /// Returns the write that is due now.
    fn write(&mut self) -> Write {
        match self.next() {
            Next::Write(write) => write,
            other => panic!("nothing is to be written: {other:?}"),
        }
    }

    /// Returns how long the ledger has nothing to do.
    fn idle(&mut self) -> Option<Duration> {
        match self.next() {
            Next::Write(write) => panic!("this is to be written: {write:?}"),
            Next::At(at) => Some(at - self.now().instant),
            Next::Nothing => None,
        }
    }

    fn answer(&mut self, write: &Write, answer: WriteOutcome) {
        let now = self.now();
        self.ledger.answered(write, &answer, now, 0.0);
    }

    fn written(&mut self) -> Write {
        let write = self.write();
        self.answer(&write, WriteOutcome::Written);
        write
    }
}

#[test]
fn an_event_is_written_at_once_and_its_repeats_after_five_minutes() {
    let mut bed = Bed::new();
    assert_eq!(bed.idle(), None);
    assert_eq!(bed.tell("web", NO_ROLE), TakenIn::New);
    let first = bed.written();
    assert_eq!((first.verb, first.series, first.at), (Verb::Create, None, bed.now().wall));
    for _ in 0..49 {
        bed.passed += SECOND;
        assert_eq!(bed.tell("web", NO_ROLE), TakenIn::Repeat);
    }
    let last = bed.now().wall;
    assert_eq!(bed.idle(), Some(SERIES_EVERY - 49 * SECOND));
    bed.passed = SERIES_EVERY;
    let series = bed.written();
    assert_eq!((series.verb, series.series, &series.name), (Verb::Amend, Some(Series { count: 50, last }), &first.name));
    // A series that has already been written is not written again.
    assert_eq!(bed.idle(), Some(FORGET_AFTER));
    bed.passed += SECOND;
    bed.tell("web", NO_ROLE);
    assert_eq!(bed.idle(), Some(SERIES_EVERY - SECOND));
}

#[test]
fn causes_and_pods_have_separate_events() {
    let mut bed = Bed::new();
    let told = [("web", NO_ROLE), ("web", NODE_ROLE), ("db", NO_ROLE), ("web", EventCause::WouldBeDenied(Denial::NoRole))];
    for (name, cause) in told {
        assert_eq!(bed.tell(name, cause), TakenIn::New);
    }
    let mut names: Vec<_> = told.iter().map(|_| bed.written().name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), told.len(), "two Events of one moment have different names: {names:?}");
    // The next pod with this name is a different pod.
    let next = Pod { uid: PodUid("another".into()), ..pod("web") };
    assert_eq!(bed.ledger.take(EventRecord { pod: Arc::new(next), cause: NO_ROLE }, bed.now()), TakenIn::New);
}

#[test]
fn a_quiet_cause_is_forgotten_and_counts_as_new_again() {
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    let first = bed.written();
    bed.passed = FORGET_AFTER - SECOND;
    assert_eq!(bed.idle(), Some(SECOND));
    bed.passed = FORGET_AFTER;
    assert_eq!((bed.idle(), bed.ledger.len()), (None, 0));
    assert_eq!(bed.tell("web", NO_ROLE), TakenIn::New);
    let again = bed.written();
    assert_eq!((again.verb, again.series), (Verb::Create, None));
    assert_ne!(again.name, first.name);
}

#[test]
fn repeats_before_the_first_write_are_included_in_it() {
    let mut bed = Bed::new();
    for _ in 0..3 {
        bed.tell("web", NO_ROLE);
    }
    assert_eq!(bed.written().series.map(|series| series.count), Some(3));
    assert_eq!(bed.idle(), Some(FORGET_AFTER), "the repeats are written");
}

#[test]
fn repeats_during_a_write_are_written_after_it() {
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    let write = bed.write();
    bed.tell("web", NO_ROLE);
    assert_eq!(bed.idle(), None);
    bed.answer(&write, WriteOutcome::Written);
    assert_eq!(bed.idle(), Some(SERIES_EVERY));
}

/// Reports causes for 20 pods in each of three namespaces, one namespace after another.
fn report_in_three_namespaces(bed: &mut Bed, round: &str) {
    for namespace in ["a", "b", "c"] {
        for number in 0..20 {
            assert_eq!(bed.tell_in(namespace, &format!("{round}-{namespace}-{number}"), NO_ROLE), TakenIn::New);
        }
    }
}

#[test]
fn a_node_writes_25_events_at_once_and_then_one_per_second() {
    let mut bed = Bed::new();
    report_in_three_namespaces(&mut bed, "first");
    assert_eq!(BURST, 25);
    (0..BURST).for_each(|_| drop(bed.written()));
    for _ in 0..5 {
        assert_eq!(bed.idle(), Some(INTERVAL));
        bed.passed += INTERVAL;
        bed.written();
    }
    // Unused capacity accumulates, but only up to the burst.
    bed.passed += Duration::from_secs(3600);
    report_in_three_namespaces(&mut bed, "second");
    (0..BURST).for_each(|_| drop(bed.written()));
    assert_eq!(bed.idle(), Some(INTERVAL));
}

#[test]
fn a_namespace_writes_10_events_at_once_and_then_one_per_second() {
    let mut bed = Bed::new();
    for number in 0..30 {
        bed.tell(&format!("pod-{number}"), NO_ROLE);
    }
    assert_eq!(BURST_OF_NAMESPACE, 10);
    let names: Vec<_> = (0..BURST_OF_NAMESPACE).map(|_| bed.written().key.pod.name.clone()).collect();
    assert_eq!(names, (0..10).map(|number| format!("pod-{number}")).collect::<Vec<_>>(), "the oldest first");
    for _ in 0..5 {
        assert_eq!(bed.idle(), Some(INTERVAL));
        bed.passed += INTERVAL;
        bed.written();
    }
    // The rest of the node's burst is available to others.
    for number in 0..BURST - BURST_OF_NAMESPACE {
        let namespace = format!("other-{number}");
        bed.tell_in(&namespace, &namespace, NO_ROLE);
        assert_eq!(bed.written().key.pod.namespace, namespace);
    }
    bed.tell_in("late", "late", NO_ROLE);
    assert_eq!(bed.idle(), Some(INTERVAL));
}

#[test]
fn a_hundred_refused_pods_do_not_delay_another_namespaces_first_event() {
    let mut bed = Bed::new();
    for number in 0..100 {
        bed.tell_in("flood", &format!("flood-{number}"), NO_ROLE);
    }
    while let Next::Write(write) = bed.next() {
        bed.answer(&write, WriteOutcome::Written);
    }
    bed.tell_in("shop", "web", NO_ROLE);
    assert_eq!(bed.written().key.pod.name, "web", "at once");
    // Other namespaces have used up the node's burst.
    report_in_three_namespaces(&mut bed, "more");
    while let Next::Write(write) = bed.next() {
        bed.answer(&write, WriteOutcome::Written);
    }
    bed.tell_in("bank", "db", NO_ROLE);
    assert!(bed.idle().unwrap() <= INTERVAL);
    bed.passed += INTERVAL;
    assert_eq!(bed.written().key.pod.name, "db");
}

#[test]
fn namespaces_take_turns() {
    let mut bed = Bed::new();
    for number in 0..5 {
        bed.tell_in("a", &format!("a-{number}"), NO_ROLE);
    }
    for number in 0..3 {
        bed.tell_in("b", &format!("b-{number}"), NO_ROLE);
    }
    bed.tell_in("c", "c-0", NO_ROLE);
    let order: Vec<_> = (0..9).map(|_| bed.written().key.pod.name.clone()).collect();
    assert_eq!(order, ["a-0", "b-0", "c-0", "a-1", "b-1", "a-2", "b-2", "a-3", "a-4"]);
}

/// The namespace's pods end and come back, so the ledger has no entry of it in between.
#[test]
fn a_namespace_whose_pods_are_replaced_is_not_ahead_of_one_that_waits() {
    let mut bed = Bed::new();
    report_in_three_namespaces(&mut bed, "first");
    while let Next::Write(write) = bed.next() {
        bed.answer(&write, WriteOutcome::Written);
    }
    for number in 0..6 {
        bed.tell_in("flood", &format!("flood-{number}"), NO_ROLE);
        bed.passed += INTERVAL;
        let write = bed.written();
        assert_eq!(write.key.pod.namespace == "flood", number % 4 == 0, "{number}");
        bed.ledger.tidy(bed.now().instant, |uid| !uid.0.contains("flood"));
    }
}

#[test]
fn memory_of_turns_is_bounded() {
    let mut bed = Bed::new();
    for number in 0..1000 {
        let name = format!("pod-{number}");
        bed.tell_in(&name, &name, NO_ROLE);
        bed.passed += INTERVAL;
        bed.written();
    }
    assert!(bed.ledger.turns.len() <= (FORGET_AFTER + 2 * INTERVAL).as_secs() as usize, "{}", bed.ledger.turns.len());
    bed.passed += 2 * FORGET_AFTER;
    assert_eq!((bed.idle(), bed.ledger.turns.len()), (None, 0));
}

#[test]
fn failures_back_off_and_keep_the_event() {
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        bed.tell("web", NO_ROLE);
        let write = bed.write();
        bed.answer(&write, WriteOutcome::Later(Duration::ZERO));
        pauses.push(bed.idle().unwrap());
        bed.passed += pauses[pauses.len() - 1];
    }
    assert_eq!(pauses[..4], [SECOND, 2 * SECOND, 4 * SECOND, 8 * SECOND]);
    assert_eq!(pauses[8], SECOND * 256);
    assert_eq!(bed.written().series.map(|series| series.count), Some(10));
    bed.tell("db", NO_ROLE);
    let write = bed.write();
    bed.answer(&write, WriteOutcome::Later(30 * SECOND));
    assert_eq!(bed.idle(), Some(30 * SECOND), "the pause the API asks for; the backoff starts over");
}

#[test]
fn a_failed_event_moves_behind_untried_ones() {
    let mut bed = Bed::new();
    for name in ["bad", "good"] {
        bed.tell(name, NO_ROLE);
        bed.passed += SECOND;
    }
    let bad = bed.write();
    assert_eq!(bad.key.pod.name, "bad");
    bed.answer(&bad, WriteOutcome::Later(Duration::ZERO));
    bed.passed += SECOND;
    assert_eq!(bed.written().key.pod.name, "good");
    assert_eq!(bed.written().key.pod.name, "bad");
}

#[test]
fn forbidden_verbs_are_retried_rarely_and_independently() {
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    bed.written();
    bed.tell("web", NO_ROLE);
    bed.passed = SERIES_EVERY;
    let series = bed.write();
    assert_eq!(series.verb, Verb::Amend);
    bed.answer(&series, WriteOutcome::Forbidden);
    bed.tell("db", NO_ROLE);
    let create = bed.write();
    assert_eq!((create.verb, &*create.key.pod.name), (Verb::Create, "db"));
    bed.answer(&create, WriteOutcome::Forbidden);
    bed.tell("another", NO_ROLE);
    assert_eq!(bed.idle(), Some(FORBIDDEN_AGAIN));
    bed.passed += FORBIDDEN_AGAIN;
    bed.written();

    // The same holds with the verbs swapped.
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    bed.written();
    bed.tell("web", NO_ROLE);
    bed.passed = SERIES_EVERY - SECOND;
    bed.tell("db", NO_ROLE);
    let create = bed.write();
    bed.answer(&create, WriteOutcome::Forbidden);
    bed.passed = SERIES_EVERY;
    assert_eq!(bed.written().verb, Verb::Amend);
}

/// A namespace that rejects Events because of its own webhook or quota does not silence the others.
#[test]
fn a_namespace_that_forbids_events_does_not_silence_others() {
    let mut bed = Bed::new();
    bed.tell_in("strict", "one", NO_ROLE);
    let one = bed.write();
    bed.answer(&one, WriteOutcome::Forbidden);
    bed.tell_in("strict", "two", NO_ROLE);
    bed.tell_in("shop", "web", NO_ROLE);
    assert_eq!(bed.written().key.pod.namespace, "shop");
    assert_eq!(bed.idle(), Some(FORBIDDEN_AGAIN), "the strict namespace pauses");
    assert!(!bed.ledger.is_forbidden_everywhere(Verb::Create));
    // Another namespace refuses, after one that accepted.
    bed.tell_in("stricter", "three", NO_ROLE);
    let three = bed.write();
    bed.answer(&three, WriteOutcome::Forbidden);
    assert!(!bed.ledger.is_forbidden_everywhere(Verb::Create));
    bed.tell_in("shop", "db", NO_ROLE);
    assert_eq!(bed.written().key.pod.name, "db");
}

#[test]
fn several_namespaces_that_forbid_events_do_not_silence_others() {
    let mut bed = Bed::new();
    for namespace in ["a", "b"] {
        bed.tell_in(namespace, namespace, NO_ROLE);
        let write = bed.write();
        bed.answer(&write, WriteOutcome::Forbidden);
    }
    assert!(bed.ledger.is_forbidden_everywhere(Verb::Create) && !bed.ledger.is_forbidden_everywhere(Verb::Amend));
    bed.passed += SECOND;
    bed.tell_in("c", "c", NO_ROLE);
    assert_eq!(bed.written().key.pod.name, "c");
    assert_eq!(bed.idle(), Some(FORBIDDEN_AGAIN - SECOND), "the first two namespaces still pause");
    assert!(!bed.ledger.is_forbidden_everywhere(Verb::Create));
}

#[test]
fn causes_per_pod_are_bounded() {
    let mut bed = Bed::new();
    let causes = [Denial::NoRole, Denial::ServiceAccountsForbidden, Denial::NamespaceHasNoList, Denial::NotAllowedInNamespace];
    let causes: Vec<_> = causes.into_iter().flat_map(|denial| [EventCause::Denied(denial), EventCause::WouldBeDenied(denial)]).collect();
    let taken: Vec<_> = causes.iter().map(|cause| bed.tell("web", *cause)).collect();
    assert_eq!(taken[..MAX_OF_POD], [const { TakenIn::New }; MAX_OF_POD]);
    assert_eq!(taken[MAX_OF_POD..], [const { TakenIn::Full(Full::Member) }; 2]);
    assert_eq!((bed.tell("web", causes[0]), bed.tell("db", causes[7])), (TakenIn::Repeat, TakenIn::New));
    bed.passed = FORGET_AFTER;
    assert_eq!(bed.ledger.tidy(bed.now().instant, |_| true), MAX_OF_POD + 1);
    assert_eq!(bed.tell("web", causes[7]), TakenIn::New);
}

#[test]
fn a_series_starts_over_if_its_event_is_gone() {
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    let first = bed.written();
    bed.tell("web", NO_ROLE);
    bed.passed = SERIES_EVERY;
    let series = bed.write();
    bed.answer(&series, WriteOutcome::Missing);
    // The node's rate still applies, but the five-minute interval does not.
    let again = bed.written();
    assert_eq!((again.verb, again.series.map(|series| series.count)), (Verb::Create, Some(2)));
    assert_ne!(again.name, first.name);
}

#[test]
fn a_permanently_rejected_event_is_not_retried() {
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    let write = bed.write();
    bed.answer(&write, WriteOutcome::Never);
    assert_eq!(bed.tell("web", NO_ROLE), TakenIn::Repeat);
    assert_eq!(bed.idle(), Some(FORGET_AFTER), "until it is forgotten");
}

#[test]
fn deleted_pods_are_forgotten() {
    let mut bed = Bed::new();
    bed.tell("web", NO_ROLE);
    bed.written();
    bed.tell("db", NO_ROLE);
    let now = bed.now().instant;
    let (written, unwritten) = ("uid-of-web", "uid-of-db");
    assert_eq!(bed.ledger.tidy(now, |uid| &*uid.0 != written), 0, "a written Event does not count as lost");
    assert_eq!(bed.ledger.tidy(now, |uid| &*uid.0 != unwritten), 1);
    assert_eq!((bed.ledger.len(), bed.idle()), (0, None));
}

/// Creates a ledger that one namespace has filled, after writing as many Events as the burst allows.
fn filled() -> Bed {
    let mut bed = Bed::new();
    for number in 0..MAX_ENTRIES {
        assert_eq!(bed.tell_in("flood", &format!("flood-{number}"), NO_ROLE), TakenIn::New);
    }
    while let Next::Write(write) = bed.next() {
        bed.answer(&write, WriteOutcome::Written);
    }
    bed
}

#[test]
fn a_ledger_filled_by_one_namespace_still_accepts_others() {
    let mut bed = filled();
    assert_eq!(bed.tell_in("shop", "web", NO_ROLE), TakenIn::New, "the displaced Event had been written");
    assert_eq!(bed.written().key.pod.name, "web");
    assert_eq!(bed.tell_in("shop", "web", NO_ROLE), TakenIn::Repeat);
    // A namespace may have as many entries as all others together; only entries of the largest give way.
    let mut lost = Vec::new();
    for number in 1..MAX_ENTRIES / 2 {
        match bed.tell_in("shop", &format!("web-{number}"), NO_ROLE) {
            TakenIn::New => {}
            TakenIn::InPlaceOf(pod) => lost.push(pod.name.clone()),
            other => panic!("{number}: {other:?}"),
        }
    }
    let oldest: Vec<_> = (BURST_OF_NAMESPACE as usize..MAX_ENTRIES / 2).map(|number| format!("flood-{number}")).collect();
    assert_eq!(lost, oldest);
    assert!(matches!(bed.tell_in("bank", "db", NO_ROLE), TakenIn::InPlaceOf(_)), "a third namespace");
    assert_eq!(bed.ledger.len(), MAX_ENTRIES);
}

#[test]
fn a_full_namespace_displaces_its_own_events() {
    let mut bed = filled();
    assert_eq!(bed.tell_in("flood", "flood-1000", NO_ROLE), TakenIn::Repeat);
    assert_eq!(bed.tell_in("flood", "one-more", NO_ROLE), TakenIn::New, "displaces an Event that was written");
    // A pod with the most entries does not displace those of other pods in its namespace.
    assert_eq!(bed.tell_in("flood", "one-more", NODE_ROLE), TakenIn::Full(Full::All));
    assert_eq!(bed.ledger.len(), MAX_ENTRIES);
}

#[test]
fn the_response_to_a_displaced_event_leaves_its_successor_alone() {
    let mut bed = Bed::new();
    bed.tell_in("flood", "web", NO_ROLE);
    let write = bed.write();
    for number in 0..MAX_ENTRIES {
        assert_eq!(bed.tell_in("flood", &format!("flood-{number}"), NO_ROLE), TakenIn::New, "a write in progress is not lost");
    }
    bed.ledger.tidy(bed.now().instant, |uid| &*uid.0 == "uid-of-web");
    assert_eq!(bed.tell_in("flood", "web", NO_ROLE), TakenIn::New);
    bed.answer(&write, WriteOutcome::Written);
    assert_eq!(bed.written().verb, Verb::Create);
}

#[derive(Clone, Debug)]
enum Step {
    Tell(u8, bool),
    Wait(u16),
    Serve(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..40_u8, any::<bool>()).prop_map(|(pod, other)| Step::Tell(pod, other)),
        2 => (0..400_u16).prop_map(Step::Wait),
        4 => (0..8_u8).prop_map(Step::Serve),
    ]
}

proptest! {
    /// Checks the rates for any order of records and any responses of the API.
    #[test]
    fn the_rates_hold_and_nothing_is_written_twice(steps in proptest::collection::vec(step(), 1..300)) {
        let mut bed = Bed::new();
        let mut writes: Vec<Instant> = Vec::new();
        let mut last_of: HashMap<EventKey, (Instant, Verb, u32)> = HashMap::new();
        for step in steps {
            match step {
                Step::Tell(number, other) => {
                    bed.tell(&format!("pod-{number}"), if other { NO_ROLE } else { NODE_ROLE });
                }
                Step::Wait(seconds) => bed.passed += Duration::from_secs(seconds.into()),
                Step::Serve(kind) => {
                    let Next::Write(write) = bed.next() else { continue };
                    let now = bed.now().instant;
                    writes.push(now);
                    let count = write.series.map_or(1, |series| series.count);
                    if let Some((at, _, told)) = last_of.get(&write.key) {
                        match write.verb {
                            Verb::Amend => {
                                prop_assert!(now - *at >= SERIES_EVERY, "a series is written at most every five minutes");
                                prop_assert!(count > *told, "a series has a higher count");
                            }
                            Verb::Create => prop_assert!(now - *at >= FORGET_AFTER, "a cause is created once"),
                        }
                    } else {
                        prop_assert_eq!(write.verb, Verb::Create);
                    }
                    let answer = match kind {
                        0 => WriteOutcome::Later(Duration::ZERO),
                        1 => WriteOutcome::Forbidden,
                        _ => WriteOutcome::Written,
                    };
                    if answer == WriteOutcome::Written {
                        last_of.insert(write.key.clone(), (now, write.verb, count));
                    }
                    bed.answer(&write, answer);
                }
            }
            prop_assert!(bed.ledger.len() <= MAX_ENTRIES);
        }
        for (number, from) in writes.iter().enumerate() {
            for (more, to) in writes[number..].iter().enumerate() {
                let allowed = u64::from(BURST) + (*to - *from).as_secs();
                prop_assert!((more as u64) < allowed, "{} writes in {:?}", more + 1, *to - *from);
            }
        }
    }
}

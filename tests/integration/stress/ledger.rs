//! The truth of one address: which pods the daemon may rightly take for its holder at which moment.
//!
//! Time is the order of entries, never a clock. A state of a pod is *possible* from before the API is told of it until a
//! later state of the same pod is *proven*: until the daemon has shown that it took in something which the API gave out
//! afterwards. Between the two the daemon may know either, and both are right.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Which pod: its number in the run, which its role and its uid have too.
pub(super) type Life = u32;

/// What a pod is to its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not there yet, or gone.
    Absent = 1,
    /// There, without a hold on the address: no address yet, or finished.
    Idle = 2,
    Running = 4,
    Terminating = 8,
    /// It runs and has the address, so that no other pod gets it, and is itself not to be served: its state cannot be read, or
    /// nothing of it has started since the node was booted.
    Refused = 16,
}

/// The states that the daemon may take each pod to be in.
type Possible = BTreeMap<Life, u8>;

#[derive(Debug)]
pub(super) struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    pods: BTreeMap<Life, History>,
    moments: Vec<Possible>,
}

#[derive(Debug)]
struct History {
    /// From the one that is proven to the latest.
    states: Vec<State>,
    /// How many there were before the first of `states`.
    before: usize,
}

/// From when a request was sent to when its answer was here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: usize,
    pub(super) to: usize,
}

impl History {
    fn mask(&self) -> u8 {
        self.states.iter().fold(0, |mask, state| mask | *state as u8)
    }
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::new(Inner { pods: BTreeMap::new(), moments: vec![Possible::new()] }) }
    }

    /// The moment that is now.
    pub(super) fn now(&self) -> usize {
        self.inner.lock().unwrap().moments.len() - 1
    }

    /// The API is about to be told that a pod is so. Gives the number of this state among the pod's.
    pub(super) fn told(&self, life: Life, state: State) -> usize {
        let mut inner = self.inner.lock().unwrap();
        let history = inner.pods.entry(life).or_insert_with(|| History { states: vec![State::Absent], before: 0 });
        history.states.push(state);
        let number = history.before + history.states.len() - 1;
        inner.note();
        number
    }

    /// The daemon has taken in this state of the pod, or a later one.
    pub(super) fn proven(&self, life: Life, number: usize) {
        let mut inner = self.inner.lock().unwrap();
        let Some(history) = inner.pods.get_mut(&life).filter(|history| history.before < number) else { return };
        history.states.drain(..number - history.before);
        history.before = number;
        if history.states == [State::Absent] {
            inner.pods.remove(&life);
        }
        inner.note();
    }

    /// Whether the address may have been this pod's at some moment of the span.
    pub(super) fn may_be(&self, life: Life, span: Span) -> bool {
        self.inner.lock().unwrap().moments[span.from..=span.to].iter().any(|possible| may_be(possible, life))
    }

    /// The pod whose address it was, beyond doubt, during the whole of the span.
    pub(super) fn must_be(&self, span: Span) -> Option<Life> {
        let inner = self.inner.lock().unwrap();
        let mut holders = inner.moments[span.from..=span.to].iter().map(must_be);
        let first = holders.next()??;
        holders.all(|holder| holder == Some(first)).then_some(first)
    }

    /// The pod whose address it is now, beyond doubt.
    pub(super) fn must_be_now(&self) -> Option<Life> {
        self.inner.lock().unwrap().moments.last().and_then(must_be)
    }

    /// What was possible in a span, for messages.
    pub(super) fn describe(&self, span: Span) -> String {
        let inner = self.inner.lock().unwrap();
        let name = |mask: u8| {
            let states = [State::Absent, State::Idle, State::Running, State::Terminating, State::Refused];
            states.into_iter().filter(|state| mask & *state as u8 != 0).map(|state| format!("{state:?}")).collect::<Vec<_>>().join(" or ")
        };
        let moment = |at: usize| {
            let pods: Vec<_> = inner.moments[at].iter().map(|(life, mask)| format!("r-{life} {}", name(*mask))).collect();
            format!("moment {at}: {}", pods.join(", "))
        };
        (span.from..=span.to).map(moment).collect::<Vec<_>>().join("\n")
    }
}

impl Inner {
    fn note(&mut self) {
        let possible = self.pods.iter().map(|(life, history)| (*life, history.mask())).collect();
        self.moments.push(possible);
    }
}

/// Whether there is a reading of what is possible by which the pod has the address: it runs and no other does, or it is
/// terminating and no other has any claim.
fn may_be(possible: &Possible, life: Life) -> bool {
    let mask = possible.get(&life).copied().unwrap_or(State::Absent as u8);
    let (running, terminating) = (State::Running as u8, State::Terminating as u8);
    let rivals = running | State::Refused as u8;
    let others_can_be_without = |states: u8| possible.iter().all(|(other, mask)| *other == life || mask & !states != 0);
    mask & running != 0 && others_can_be_without(rivals) || mask & terminating != 0 && others_can_be_without(rivals | terminating)
}

/// The pod that has the address by every reading of what is possible.
fn must_be(possible: &Possible) -> Option<Life> {
    let (running, terminating) = (State::Running as u8, State::Terminating as u8);
    let all_rivals = running | State::Refused as u8;
    let only = |own: u8, rivals: u8| {
        let mut holders = possible.iter().filter(|(_, mask)| **mask == own).map(|(life, _)| *life);
        let holder = holders.next()?;
        possible.iter().all(|(other, mask)| *other == holder || mask & rivals == 0).then_some(holder)
    };
    only(running, all_rivals).or_else(|| only(terminating, all_rivals | terminating))
}

#[test]
fn a_state_is_possible_until_a_later_one_is_proven() {
    let ledger = Ledger::new();
    let span = |from| Span { from, to: ledger.now() };
    let running = ledger.told(1, State::Running);
    assert!(ledger.may_be(1, span(0)) && ledger.must_be(span(ledger.now())).is_none());
    ledger.proven(1, running);
    assert_eq!(ledger.must_be(span(ledger.now())), Some(1));
    let gone = ledger.told(1, State::Absent);
    let next = ledger.told(2, State::Running);
    assert!(ledger.may_be(1, span(ledger.now())) && ledger.may_be(2, span(ledger.now())));
    ledger.proven(1, gone);
    assert!(!ledger.may_be(1, span(ledger.now())) && ledger.must_be(span(ledger.now())).is_none());
    ledger.proven(2, next);
    assert_eq!((ledger.must_be(span(ledger.now())), ledger.must_be(span(0))), (Some(2), None));
}

#[test]
fn a_pod_that_runs_goes_before_one_that_ends_and_two_that_run_are_nobody() {
    let ledger = Ledger::new();
    let now = || Span { from: ledger.now(), to: ledger.now() };
    for (life, state) in [(1, State::Running), (1, State::Terminating), (2, State::Running)] {
        ledger.proven(life, ledger.told(life, state));
    }
    assert_eq!((ledger.must_be(now()), ledger.may_be(1, now())), (Some(2), false));
    ledger.proven(3, ledger.told(3, State::Running));
    assert!(ledger.must_be(now()).is_none() && !ledger.may_be(2, now()) && !ledger.may_be(3, now()));
    for life in [2, 3] {
        ledger.proven(life, ledger.told(life, State::Idle));
    }
    assert_eq!(ledger.must_be(now()), Some(1));
}

#[test]
fn a_claim_to_the_address_of_a_pod_that_runs_brings_it_to_nobody() {
    let ledger = Ledger::new();
    let now = || Span { from: ledger.now(), to: ledger.now() };
    ledger.proven(1, ledger.told(1, State::Running));
    let claimed = ledger.told(2, State::Running);
    assert_eq!((ledger.may_be(1, now()), ledger.may_be(2, now()), ledger.must_be_now()), (true, false, None));
    ledger.proven(2, claimed);
    assert_eq!((ledger.may_be(1, now()), ledger.may_be(2, now()), ledger.must_be_now()), (false, false, None));
    let withdrawn = ledger.told(2, State::Absent);
    assert_eq!((ledger.may_be(1, now()), ledger.may_be(2, now()), ledger.must_be_now()), (true, false, None));
    ledger.proven(2, withdrawn);
    assert_eq!(ledger.must_be_now(), Some(1));
}

#[test]
fn a_pod_that_is_to_be_refused_keeps_its_address_from_all_others() {
    let ledger = Ledger::new();
    let now = || Span { from: ledger.now(), to: ledger.now() };
    ledger.proven(1, ledger.told(1, State::Terminating));
    let refused = ledger.told(2, State::Refused);
    assert_eq!((ledger.may_be(1, now()), ledger.may_be(2, now()), ledger.must_be_now()), (true, false, None));
    ledger.proven(2, refused);
    assert_eq!((ledger.may_be(1, now()), ledger.may_be(2, now()), ledger.must_be_now()), (false, false, None));
    let running = ledger.told(2, State::Running);
    assert_eq!((ledger.may_be(2, now()), ledger.must_be_now()), (true, None));
    ledger.proven(2, running);
    assert_eq!(ledger.must_be_now(), Some(2));
    ledger.proven(3, ledger.told(3, State::Refused));
    assert_eq!((ledger.may_be(2, now()), ledger.must_be_now()), (false, None));
}

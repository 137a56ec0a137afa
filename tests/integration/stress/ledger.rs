//! The truth about one address: which pods the daemon may correctly take for its holder at which moment.
//!
//! Time is the order of entries, never a clock. A state of a pod is *possible* from before it is published until a later state
//! of the same pod is *proven*: until the daemon has shown that it processed something that was published afterwards. In
//! between, the daemon may know either, and both are correct.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// A pod: its number in the run, which is also in its role and its UID.
pub(super) type Life = u32;

/// The relation of a pod to its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The pod does not exist yet, or is gone.
    Absent = 1,
    /// The pod exists without a claim to the address: it has no address yet, or has finished.
    Idle = 2,
    Running = 4,
    Terminating = 8,
    /// The pod runs and has the address, so that no other pod gets it, but must not be served: its state cannot be read, or
    /// none of its containers has started since the node was booted.
    Refused = 16,
}

/// The states in which the daemon may take each pod to be.
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
    /// From the proven state to the latest.
    states: Vec<State>,
    /// The number of states before the first of `states`.
    before: usize,
}

/// The span from sending a request to receiving its answer.
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

    /// Returns the current moment.
    pub(super) fn now(&self) -> usize {
        self.inner.lock().unwrap().moments.len() - 1
    }

    /// Records that this state of a pod is about to be published. Returns its number among the pod's states.
    pub(super) fn told(&self, life: Life, state: State) -> usize {
        let mut inner = self.inner.lock().unwrap();
        let history = inner.pods.entry(life).or_insert_with(|| History { states: vec![State::Absent], before: 0 });
        history.states.push(state);
        let number = history.before + history.states.len() - 1;
        inner.note();
        number
    }

    /// Records that the daemon has processed this state of the pod, or a later one.
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

    /// Returns whether the address may have been this pod's at some moment of the span.
    pub(super) fn may_be(&self, life: Life, span: Span) -> bool {
        self.inner.lock().unwrap().moments[span.from..=span.to].iter().any(|possible| may_be(possible, life))
    }

    /// Returns the pod whose address it was, beyond doubt, during the whole span.
    pub(super) fn must_be(&self, span: Span) -> Option<Life> {
        let inner = self.inner.lock().unwrap();
        let mut holders = inner.moments[span.from..=span.to].iter().map(must_be);
        let first = holders.next()??;
        holders.all(|holder| holder == Some(first)).then_some(first)
    }

    /// Returns the pod whose address it is now, beyond doubt.
    pub(super) fn must_be_now(&self) -> Option<Life> {
        self.inner.lock().unwrap().moments.last().and_then(must_be)
    }

    /// Describes what was possible in a span, for messages.
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

/// Returns whether the pod has the address in some possible combination of states: it runs and no other pod does, or it is
/// terminating and no other pod has any claim.
fn may_be(possible: &Possible, life: Life) -> bool {
    let mask = possible.get(&life).copied().unwrap_or(State::Absent as u8);
    let (running, terminating) = (State::Running as u8, State::Terminating as u8);
    let rivals = running | State::Refused as u8;
    let others_can_be_without = |states: u8| possible.iter().all(|(other, mask)| *other == life || mask & !states != 0);
    mask & running != 0 && others_can_be_without(rivals) || mask & terminating != 0 && others_can_be_without(rivals | terminating)
}

/// Returns the pod that has the address in every possible combination of states.
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
fn a_running_pod_precedes_a_terminating_one() {
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
fn a_claim_to_a_running_pods_address_makes_it_ambiguous() {
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
fn a_refused_pod_keeps_its_address_from_others() {
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

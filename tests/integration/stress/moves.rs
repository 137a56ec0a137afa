//! The faults and hostile tenants of a round.
//!
//! To add a move, add it to [`ALL`]. A move does not define what is correct: that follows from what it records in the ledger.

use std::mem::take;

use rolegate_lab::kube::{Fault, Resource, Verb};

use super::ADDRESSES;
use super::cluster::Cluster;
use super::driver::Stage;
use super::floods::{AddressFlood, MetricsFlood};
use super::networks::{Reboot, SecondNetwork};
use super::tenants::{AnnotationLoop, ForgedStatus, LargePod, OtherRole};

/// The number of clients that send requests while the API cannot be reached.
const TURNS_OF_AN_OUTAGE: usize = 100;
/// The number of pods that are deleted while the API cannot be reached, in addition to the round's changes.
const DELETED_IN_AN_OUTAGE: usize = 8;
/// The number of clients that must get their credentials meanwhile.
const CREDENTIALS_OF_AN_OUTAGE: usize = 8;

/// An unusual event in one round.
pub(super) trait Move {
    /// Called before the round's changes.
    fn begin(&mut self, stage: &mut Stage<'_>);

    /// Called several times during the changes.
    fn amid(&mut self, _stage: &mut Stage<'_>) {}

    /// Called after the changes, before the daemon has to show that it knows them. Ends whatever keeps it from knowing them.
    fn calm(&mut self, _stage: &mut Stage<'_>) {}

    /// Called once all changes of the round are known and clients have sent requests. Ends whatever is not to last.
    fn end(&mut self, _stage: &mut Stage<'_>) {}
}

/// A move with its name in the tally.
type Named = (&'static str, fn() -> Box<dyn Move>);

const ALL: [Named; 13] = [
    ("watches cut", || Box::new(Cut)),
    ("history lost", || Box::new(HistoryLost)),
    ("stalled", || Box::new(Stall)),
    ("errors", || Box::new(Errors)),
    ("API away", || Box::new(Outage::default())),
    ("annotation loop", || Box::new(AnnotationLoop::default())),
    ("forged status", || Box::new(ForgedStatus::default())),
    ("large pod", || Box::new(LargePod::default())),
    ("answers for another role", || Box::new(OtherRole)),
    ("address flood", || Box::new(AddressFlood::default())),
    ("metrics flood", || Box::new(MetricsFlood::default())),
    ("reboot", || Box::new(Reboot::default())),
    ("second network", || Box::new(SecondNetwork)),
];

/// Only once, and late, because the daemon remembers it.
const PAGES: Named = ("lists in pages from here", || Box::new(Pages));

/// Deals every move once before any of them is repeated.
pub(super) struct Deck {
    left: Vec<Named>,
    paged: bool,
}

impl Deck {
    pub(super) fn new() -> Self {
        Self { left: Vec::new(), paged: false }
    }

    pub(super) fn deal(&mut self, cluster: &mut Cluster, is_late: bool) -> Box<dyn Move> {
        if is_late && !self.paged {
            self.paged = true;
            let (name, make) = PAGES;
            cluster.count(name);
            return make();
        }
        if self.left.is_empty() {
            self.left = ALL.to_vec();
        }
        let at = cluster.any_of(self.left.len());
        let (name, make) = self.left.swap_remove(at);
        cluster.count(name);
        make()
    }

    pub(super) fn assert_that_all_were_dealt(&self, cluster: &Cluster) {
        for (name, _) in ALL.iter().chain([&PAGES]) {
            assert!(cluster.tally().contains_key(name), "this run had no move {name:?}: {:?}", cluster.tally());
        }
    }
}

struct Cut;

impl Move for Cut {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        stage.cluster.api.cut_connections();
    }
}

struct HistoryLost;

impl Move for HistoryLost {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        stage.cluster.api.refuse_connections(true);
        stage.cluster.api.cut_connections();
    }

    fn calm(&mut self, stage: &mut Stage<'_>) {
        stage.cluster.api.compact();
        stage.cluster.api.refuse_connections(false);
    }
}

struct Stall;

impl Move for Stall {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        stage.cluster.api.stall(true);
    }

    fn calm(&mut self, stage: &mut Stage<'_>) {
        stage.cluster.api.stall(false);
    }
}

struct Errors;

impl Move for Errors {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        let (verb, status) = if stage.cluster.random.one_in(2) { (Verb::Watch, 500) } else { (Verb::List, 503) };
        let api = &stage.cluster.api;
        api.fail_next(Fault { resource: Some(Resource::Pods), verb: Some(verb), status, ..Fault::default() });
        api.compact();
        api.cut_connections();
    }
}

struct Pages;

impl Move for Pages {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        let api = &stage.cluster.api;
        api.without_streaming_lists(true);
        api.compact();
        api.cut_connections();
    }
}

/// The API cannot be reached while pods go, others come, and all of them send requests.
#[derive(Default)]
struct Outage {
    deleted: Vec<usize>,
}

impl Move for Outage {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        stage.cluster.api.refuse_connections(true);
        stage.cluster.api.cut_connections();
        let mut running = stage.cluster.undisputed(ADDRESSES.into());
        while self.deleted.len() < DELETED_IN_AN_OUTAGE && !running.is_empty() {
            let at = stage.cluster.any_of(running.len());
            let slot = running.swap_remove(at);
            if let Some(pod) = stage.cluster.slots[slot].current.take() {
                stage.cluster.end(slot, pod, super::ledger::State::Absent, "deleted while the API is away");
                self.deleted.push(slot);
            }
        }
    }

    fn calm(&mut self, stage: &mut Stage<'_>) {
        stage.clients.ask(stage.world, &take(&mut self.deleted));
        stage.clients.allow(TURNS_OF_AN_OUTAGE);
        stage.serve_some(CREDENTIALS_OF_AN_OUTAGE);
        stage.clients.wait_for_turns(stage.world);
        stage.cluster.api.refuse_connections(false);
    }
}

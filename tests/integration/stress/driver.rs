//! The course of a run: rounds of changes, some with a fault or a hostile tenant.

use super::ADDRESSES;
use super::clients::Clients;
use super::cluster::Cluster;
use super::ledger::{Life, State};
use super::moves::{Deck, Move};
use crate::world::World;

/// The number of changes between two checks of how far the daemon has come.
const CHANGES_OF_A_ROUND: u64 = 150;
/// The number of requests by clients for each change.
const TURNS_OF_A_CHANGE: usize = 1;
/// The number of requests once everything is known, before the next round begins.
const TURNS_OF_A_ROUND: usize = 150;
/// The number of those clients that must then get their credentials.
const CREDENTIALS_OF_A_ROUND: usize = 14;
/// The maximum number of previous pods of an address that are not gone yet.
const MAX_LEFT_OVER: usize = 3;
/// The maximum number of rounds until the next move, plus one.
const MOVE_WITHIN: u64 = 10;
/// The number of changes after which a move gets another turn.
const CHANGES_OF_A_TURN: u64 = 50;

/// Everything that a move can use.
pub(super) struct Stage<'a> {
    pub(super) world: &'a World,
    pub(super) cluster: Cluster,
    pub(super) clients: Clients,
}

impl Stage<'_> {
    /// Waits until the daemon has processed everything that was published.
    pub(super) fn prove(&mut self) {
        self.cluster.prove(self.world);
    }

    /// Makes clients of some addresses that belong to one pod beyond doubt get their credentials. Each of them must succeed.
    pub(super) fn serve_some(&mut self, count: usize) {
        let mut slots = self.cluster.undisputed(ADDRESSES.into());
        while slots.len() > count {
            let at = self.cluster.any_of(slots.len());
            slots.swap_remove(at);
        }
        self.clients.get_credentials(self.world, &slots);
    }
}

/// Runs the rounds for this many pods. At the end every address has a running pod, and the daemon has shown that it knows.
pub(super) fn live(stage: &mut Stage<'_>, lives: Life) {
    for tenant in usize::from(ADDRESSES)..stage.cluster.slots.len() {
        stage.cluster.start(tenant);
    }
    release_all(&mut stage.cluster);
    stage.prove();
    let mut deck = Deck::new();
    // Moves need pods.
    let mut quiet_rounds = 3;
    while stage.cluster.started < lives {
        let is_late = stage.cluster.started > lives / 2;
        let is_due = quiet_rounds == 0;
        quiet_rounds = if is_due { stage.cluster.random.below(MOVE_WITHIN) } else { quiet_rounds - 1 };
        let dealt = is_due.then(|| deck.deal(&mut stage.cluster, is_late));
        round(stage, dealt);
    }
    deck.assert_that_all_were_dealt(&stage.cluster);
    for slot in 0..usize::from(ADDRESSES) {
        for _ in 0..stage.cluster.slots[slot].left_over.len() {
            stage.cluster.delete_left_over(slot);
        }
        if stage.cluster.slots[slot].current.is_none() {
            stage.cluster.start(slot);
        }
    }
    release_all(&mut stage.cluster);
    stage.prove();
    stage.serve_some(usize::MAX);
}

fn round(stage: &mut Stage<'_>, mut dealt: Option<Box<dyn Move>>) {
    if let Some(dealt) = &mut dealt {
        dealt.begin(stage);
    }
    for number in 0..CHANGES_OF_A_ROUND {
        if let Some(dealt) = dealt.as_mut().filter(|_| number % CHANGES_OF_A_TURN == CHANGES_OF_A_TURN / 2) {
            dealt.amid(stage);
        }
        let slot = stage.cluster.any_of(ADDRESSES.into());
        stage.clients.allow(TURNS_OF_A_CHANGE);
        change(&mut stage.cluster, slot);
    }
    if let Some(dealt) = &mut dealt {
        dealt.calm(stage);
    }
    stage.prove();
    stage.clients.allow(TURNS_OF_A_ROUND);
    stage.serve_some(CREDENTIALS_OF_A_ROUND);
    stage.clients.wait_for_turns(stage.world);
    if let Some(dealt) = &mut dealt {
        dealt.end(stage);
    }
}

fn release_all(cluster: &mut Cluster) {
    while cluster.release_nth(0) {}
}

/// Makes one change at an address.
fn change(cluster: &mut Cluster, slot: usize) {
    let nth = cluster.any_of(24);
    cluster.release_nth(nth);
    let left_over = cluster.slots[slot].left_over.len();
    if left_over > 0 && (left_over == MAX_LEFT_OVER || cluster.random.one_in(2)) {
        return cluster.delete_left_over(slot);
    }
    match (cluster.slots[slot].current.take(), cluster.random.below(10)) {
        (None, _) => cluster.start(slot),
        (Some(pod), 0..=1) => cluster.end(slot, pod, State::Absent, "deleted while it ran"),
        (Some(pod), 2..=4) if pod.state == State::Running => {
            let pod = cluster.held_or_not(slot, pod);
            cluster.end(slot, pod, State::Terminating, "terminating");
        }
        (Some(pod), 5..=6) => cluster.end(slot, pod, State::Idle, "finished with its address"),
        (Some(pod), 7) => {
            // Its end is late: the next pod already has the address.
            cluster.slots[slot].left_over.push(pod);
            cluster.count("running beside the next");
            cluster.start(slot);
        }
        (Some(pod), _) => {
            let pod = cluster.held_or_not(slot, pod);
            cluster.end(slot, pod, State::Absent, "deleted while it ran");
        }
    }
}

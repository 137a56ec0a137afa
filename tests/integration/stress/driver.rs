//! The cluster: pods that come and go at their addresses, and an API that gives it out as an API may.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rolegate_lab::kube::{Fault, KubeApi, Resource, Verb};
use serde_json::json;
use tokio::sync::Semaphore;

use super::ledger::{Ledger, Life, State};
use super::{Random, address};
use crate::world::{Fakes, NODE, ROLES, World};

const NAMESPACE: &str = "shop";
/// What shows how far the daemon has come: events are in order, so that a change of this pod's role that it knows says that
/// it knows all that was given out before.
const MARKER: &str = "marker";
const MARKER_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 6, 1));
/// Changes between two looks at how far it has come.
const CHANGES_OF_A_ROUND: u64 = 150;
/// How often clients ask while something changes, for each change.
const TURNS_OF_A_CHANGE: usize = 1;
/// How often they ask when everything is known, before the next round begins.
const TURNS_OF_A_ROUND: usize = 150;
/// One round in so many has something go wrong with the API.
const TROUBLE_IN: u64 = 14;
/// Pods of one address that are not gone yet, besides the one that has it.
const MAX_LEFT_OVER: usize = 3;
const PATIENCE: Duration = Duration::from_secs(50);

pub(super) struct Driver {
    api: KubeApi,
    random: Random,
    slots: Vec<Slot>,
    lives: Life,
    started: Life,
    /// States that were given out since the last marker.
    given: Vec<Given>,
    /// States that are withheld, by the pod's name.
    held: BTreeMap<String, Vec<Given>>,
    markers: u64,
    tally: BTreeMap<&'static str, usize>,
}

/// One address and the pods that have to do with it.
struct Slot {
    ip: IpAddr,
    ledger: Arc<Ledger>,
    current: Option<Pod>,
    left_over: Vec<Pod>,
}

#[derive(Clone)]
struct Pod {
    life: Life,
    name: String,
    state: State,
}

/// A state of a pod, by its number in the ledger.
struct Given {
    slot: usize,
    life: Life,
    number: usize,
}

impl Driver {
    pub(super) fn new(fakes: &Fakes, random: Random, addresses: u8, lives: Life) -> Self {
        let slot = |number| Slot { ip: address(number), ledger: Arc::new(Ledger::new()), current: None, left_over: Vec::new() };
        let driver = Self {
            api: fakes.api.clone(),
            random,
            slots: (0..addresses).map(slot).collect(),
            lives,
            started: 0,
            given: Vec::new(),
            held: BTreeMap::new(),
            markers: 0,
            tally: BTreeMap::new(),
        };
        driver.mark();
        driver
    }

    pub(super) fn ledger(&self, number: u8) -> Arc<Ledger> {
        self.slots[usize::from(number)].ledger.clone()
    }

    /// How often what was done.
    pub(super) fn tally(&self) -> &BTreeMap<&'static str, usize> {
        &self.tally
    }

    /// Lets all pods live. At the end every address has one that runs, and the daemon has shown that it knows.
    pub(super) fn live(&mut self, world: &World, turns: &Semaphore) {
        while self.started < self.lives {
            let trouble = self.random.one_in(TROUBLE_IN).then(|| self.begin_trouble());
            for _ in 0..CHANGES_OF_A_ROUND {
                let slot = usize::try_from(self.random.below(self.slots.len() as u64)).unwrap();
                turns.add_permits(TURNS_OF_A_CHANGE);
                self.change(slot);
            }
            if let Some(trouble) = trouble {
                self.end_trouble(trouble);
            }
            self.prove(world, turns);
        }
        for slot in 0..self.slots.len() {
            for _ in 0..self.slots[slot].left_over.len() {
                self.delete_left_over(slot);
            }
            if self.slots[slot].current.is_none() {
                self.start(slot);
            }
        }
        while let Some(name) = self.held.keys().next().cloned() {
            self.release(&name);
        }
        self.prove(world, turns);
    }

    /// One change at an address.
    fn change(&mut self, slot: usize) {
        let held = self.held.keys().nth(usize::try_from(self.random.below(24)).unwrap()).cloned();
        if let Some(name) = held {
            self.release(&name);
        }
        let left_over = self.slots[slot].left_over.len();
        if left_over > 0 && (left_over == MAX_LEFT_OVER || self.random.one_in(2)) {
            return self.delete_left_over(slot);
        }
        match (self.slots[slot].current.take(), self.random.below(10)) {
            (None, _) => self.start(slot),
            (Some(pod), 0..=1) => self.tell(slot, pod, State::Absent, "deleted while it ran"),
            (Some(pod), 2..=4) if pod.state == State::Running => {
                let pod = self.held_or_not(pod);
                self.tell(slot, pod, State::Terminating, "terminating");
            }
            (Some(pod), 5..=6) => self.tell(slot, pod, State::Idle, "finished with its address"),
            (Some(pod), 7) => {
                // Its end is late: the next one has the address already.
                self.slots[slot].left_over.push(pod);
                self.count("running beside the next");
                self.start(slot);
            }
            (Some(pod), _) => {
                let pod = self.held_or_not(pod);
                self.tell(slot, pod, State::Absent, "deleted while it ran");
            }
        }
    }

    fn start(&mut self, slot: usize) {
        self.started += 1;
        let life = self.started;
        // Some have the names of those before, as a StatefulSet's.
        let lasting = format!("s-{slot}");
        let is_taken = self.slots[slot].left_over.iter().any(|pod| pod.name == lasting);
        let name = if is_taken || self.random.one_in(2) { format!("p-{life}") } else { lasting };
        let mut pod = Pod { life, name, state: State::Absent };
        if self.random.one_in(3) {
            pod = self.put(slot, pod, State::Idle, "pending without an address");
        }
        let pod = self.held_or_not(pod);
        let pod = self.put(slot, pod, State::Running, "started");
        self.slots[slot].current = Some(pod);
    }

    /// What happens to the pod from now on comes late, sometimes.
    fn held_or_not(&mut self, pod: Pod) -> Pod {
        if self.random.one_in(5) && !self.held.contains_key(&pod.name) {
            self.count("events withheld");
            self.api.hold_events(Resource::Pods, &pod.name);
            self.held.insert(pod.name.clone(), Vec::new());
        }
        pod
    }

    fn release(&mut self, name: &str) {
        self.given.extend(self.held.remove(name).unwrap_or_default());
        self.api.release_events(Resource::Pods, name);
    }

    fn delete_left_over(&mut self, slot: usize) {
        let at = usize::try_from(self.random.below(self.slots[slot].left_over.len() as u64)).unwrap();
        let pod = self.slots[slot].left_over.swap_remove(at);
        let pod = self.held_or_not(pod);
        self.tell(slot, pod, State::Absent, "deleted late");
    }

    /// The end of a pod's hold on its address, or of the pod.
    fn tell(&mut self, slot: usize, pod: Pod, state: State, what: &'static str) {
        let pod = self.put(slot, pod, state, what);
        if state != State::Absent {
            self.slots[slot].left_over.push(pod);
        }
    }

    /// Puts a state into the ledger, then into the API.
    fn put(&mut self, slot: usize, pod: Pod, state: State, what: &'static str) -> Pod {
        self.count(what);
        let number = self.slots[slot].ledger.told(pod.life, state);
        let given = Given { slot, life: pod.life, number };
        match self.held.get_mut(&pod.name) {
            Some(held) => held.push(given),
            None => self.given.push(given),
        }
        if state == State::Absent {
            assert!(self.api.delete(Resource::Pods, Some(NAMESPACE), &pod.name), "{} is not there", pod.name);
            return pod;
        }
        let finished = if pod.life.is_multiple_of(2) { "Succeeded" } else { "Failed" };
        let (phase, ip) = match state {
            State::Idle if pod.state == State::Absent => ("Pending", None),
            State::Idle => (finished, Some(self.slots[slot].ip)),
            _ => ("Running", Some(self.slots[slot].ip)),
        };
        let mut object = object(&pod.name, &format!("uid-{}", pod.life), &format!("r-{}", pod.life), phase, ip);
        if state == State::Terminating {
            // Its grace period lasts longer than the test.
            object["metadata"]["deletionTimestamp"] = "2125-01-01T00:00:00Z".into();
            object["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        }
        self.api.apply(Resource::Pods, object);
        Pod { state, ..pod }
    }

    fn begin_trouble(&mut self) -> u64 {
        let trouble = self.random.below(5);
        match trouble {
            0 => {
                self.count("watches cut");
                self.api.cut_connections();
            }
            1 => {
                self.count("history lost");
                self.api.refuse_connections(true);
                self.api.cut_connections();
            }
            2 => {
                self.count("stalled");
                self.api.stall(true);
            }
            3 => {
                self.count("errors");
                let (verb, status) = if self.random.one_in(2) { (Verb::Watch, 500) } else { (Verb::List, 503) };
                self.api.fail_next(Fault { resource: Some(Resource::Pods), verb: Some(verb), status, ..Fault::default() });
                self.api.compact();
                self.api.cut_connections();
            }
            _ => {
                self.count("lists in pages from here");
                self.api.without_streaming_lists(true);
                self.api.compact();
                self.api.cut_connections();
            }
        }
        trouble
    }

    fn end_trouble(&mut self, trouble: u64) {
        match trouble {
            1 => {
                self.api.compact();
                self.api.refuse_connections(false);
            }
            2 => self.api.stall(false),
            _ => {}
        }
    }

    fn mark(&self) {
        let role = format!("m-{}", self.markers);
        self.api.apply(Resource::Pods, object(MARKER, "uid-marker", &role, "Running", Some(MARKER_IP)));
    }

    /// Waits until the daemon has taken in everything that was given out, and until clients have asked for a while.
    fn prove(&mut self, world: &World, turns: &Semaphore) {
        self.markers += 1;
        self.mark();
        let wanted = format!("m-{}", self.markers);
        let deadline = Instant::now() + PATIENCE;
        let watches = || self.api.watchers(Resource::Pods);
        let wait = |what: &str, condition: &mut dyn FnMut() -> bool| {
            while !condition() {
                let now = Instant::now();
                assert!(now < deadline, "{what} takes too long; the API has {} watches; the log:\n{}", watches(), world.daemon.log());
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        wait("taking in what the API gives out", &mut || world.get(MARKER_IP, ROLES).text() == wanted);
        for Given { slot, life, number } in self.given.drain(..) {
            self.slots[slot].ledger.proven(life, number);
        }
        turns.add_permits(TURNS_OF_A_ROUND);
        wait("asking", &mut || turns.available_permits() == 0);
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }
}

fn object(name: &str, uid: &str, role: &str, phase: &str, ip: Option<IpAddr>) -> serde_json::Value {
    let status = match ip {
        Some(ip) => json!({ "phase": phase, "podIP": ip, "podIPs": [{ "ip": ip }] }),
        None => json!({ "phase": phase }),
    };
    json!({
        "metadata": { "namespace": NAMESPACE, "name": name, "uid": uid, "annotations": { "iam.amazonaws.com/role": role } },
        "spec": { "nodeName": NODE, "serviceAccountName": "default" },
        "status": status,
    })
}

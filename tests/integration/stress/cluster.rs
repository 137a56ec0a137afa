//! The cluster: pods with addresses, their history in the fake API, and how much of it the daemon has provably processed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rolegate_lab::kube::{KubeApi, Resource};
use serde_json::{Value, json};

use super::ledger::{Ledger, Life, State};
use super::{ADDRESSES, Random};
use crate::world::{Fakes, NODE, ROLES, World};

const NAMESPACE: &str = "shop";
/// A pod that shows how far the daemon has come. Events are in order: once the daemon knows a change of this pod's role, it
/// knows everything that was published before.
const MARKER: &str = "marker";
const MARKER_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 6, 1));
/// A time limit against hanging. It does not limit speed.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) struct Cluster {
    pub(super) api: KubeApi,
    pub(super) random: Random,
    pub(super) slots: Vec<Slot>,
    pub(super) started: Life,
    /// States that were published since the last marker.
    given: Vec<Given>,
    /// States that are withheld, by the pod's name.
    held: BTreeMap<String, Vec<Given>>,
    markers: u64,
    tally: BTreeMap<&'static str, usize>,
    /// What was published about the pods of each address, in order.
    record: Vec<(usize, String)>,
}

/// An address and its pods.
pub(super) struct Slot {
    pub(super) ip: IpAddr,
    pub(super) ledger: Arc<Ledger>,
    pub(super) current: Option<Pod>,
    pub(super) left_over: Vec<Pod>,
}

#[derive(Clone)]
pub(super) struct Pod {
    pub(super) life: Life,
    pub(super) name: String,
    pub(super) state: State,
    /// When its network was created and its container was started.
    pub(super) since: Timestamp,
}

/// The state of a pod at an address, by its number in the ledger.
struct Given {
    slot: usize,
    life: Life,
    number: usize,
}

impl Cluster {
    pub(super) fn new(fakes: &Fakes, random: Random, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let slot = |ip| Slot { ip, ledger: Arc::new(Ledger::new()), current: None, left_over: Vec::new() };
        let cluster = Self {
            api: fakes.api.clone(),
            random,
            slots: addresses.into_iter().map(slot).collect(),
            started: 0,
            given: Vec::new(),
            held: BTreeMap::new(),
            markers: 0,
            tally: BTreeMap::new(),
            record: Vec::new(),
        };
        cluster.mark();
        cluster
    }

    /// How often each kind of change was made.
    pub(super) fn tally(&self) -> &BTreeMap<&'static str, usize> {
        &self.tally
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// What was published about an address: each change with its version, and when events were withheld.
    pub(super) fn record_of(&self, slot: usize) -> String {
        let lines: Vec<_> = self.record.iter().filter(|(of, _)| *of == slot).map(|(_, line)| line.as_str()).collect();
        lines.join("\n")
    }

    fn note(&mut self, slot: usize, line: String) {
        self.record.push((slot, line));
    }

    /// Returns one of the first addresses at random.
    pub(super) fn any_of(&mut self, first: usize) -> usize {
        usize::try_from(self.random.below(first as u64)).unwrap()
    }

    /// Adds a pod at the address.
    pub(super) fn start(&mut self, slot: usize) {
        self.started += 1;
        let life = self.started;
        // Some reuse the names of earlier pods, as in a StatefulSet.
        let lasting = format!("s-{slot}");
        let is_taken = self.slots[slot].left_over.iter().any(|pod| pod.name == lasting);
        let name = if is_taken || self.random.one_in(2) { format!("p-{life}") } else { lasting };
        let mut pod = Pod { life, name, state: State::Absent, since: now() };
        if self.random.one_in(3) {
            pod = self.put(slot, pod, State::Idle, "pending without an address");
        }
        let pod = self.held_or_not(slot, pod);
        let pod = self.put(slot, pod, State::Running, "started");
        self.slots[slot].current = Some(pod);
    }

    /// Sometimes withholds everything that happens to the pod from now on.
    pub(super) fn held_or_not(&mut self, slot: usize, pod: Pod) -> Pod {
        if self.random.one_in(5) && !self.held.contains_key(&pod.name) {
            self.count("events withheld");
            self.note(slot, format!("withheld from here: the events of {}", pod.name));
            self.api.hold_events(Resource::Pods, &pod.name);
            self.held.insert(pod.name.clone(), Vec::new());
        }
        pod
    }

    /// Releases the events of the nth withheld name, if there is one.
    pub(super) fn release_nth(&mut self, nth: usize) -> bool {
        let Some(name) = self.held.keys().nth(nth).cloned() else { return false };
        let late = self.held.remove(&name).unwrap_or_default();
        self.api.release_events(Resource::Pods, &name);
        if let Some(slot) = late.first().map(|given| given.slot) {
            self.note(slot, format!("at version {}, withheld no more: the events of {name}", self.api.resource_version()));
        }
        self.given.extend(late);
        true
    }

    pub(super) fn delete_left_over(&mut self, slot: usize) {
        let at = usize::try_from(self.random.below(self.slots[slot].left_over.len() as u64)).unwrap();
        let pod = self.slots[slot].left_over.swap_remove(at);
        let pod = self.held_or_not(slot, pod);
        self.end(slot, pod, State::Absent, "deleted late");
    }

    /// Ends a pod's claim to its address, or the pod.
    pub(super) fn end(&mut self, slot: usize, pod: Pod, state: State, what: &'static str) {
        let pod = self.put(slot, pod, state, what);
        if state != State::Absent {
            self.slots[slot].left_over.push(pod);
        }
    }

    /// Records a state in the ledger, then publishes it.
    fn put(&mut self, slot: usize, pod: Pod, state: State, what: &'static str) -> Pod {
        self.count(what);
        self.say(slot, &pod, state);
        if state == State::Absent {
            assert!(self.api.delete(Resource::Pods, Some(NAMESPACE), &pod.name), "{} is not there", pod.name);
        } else {
            let finished = if pod.life.is_multiple_of(2) { "Succeeded" } else { "Failed" };
            let (phase, ips) = match state {
                State::Idle if pod.state == State::Absent => ("Pending", Vec::new()),
                State::Idle => (finished, vec![self.slots[slot].ip]),
                _ => ("Running", vec![self.slots[slot].ip]),
            };
            let mut object = object(&pod, &format!("r-{}", pod.life), phase, &ips);
            if state == State::Terminating {
                // Its grace period lasts longer than the test.
                object["metadata"]["deletionTimestamp"] = "2125-01-01T00:00:00Z".into();
                object["metadata"]["deletionGracePeriodSeconds"] = 30.into();
            }
            self.api.apply(Resource::Pods, object);
        }
        self.note(slot, format!("version {}: {} of r-{} is {state:?} ({what})", self.api.resource_version(), pod.name, pod.life));
        Pod { state, ..pod }
    }

    /// Records in an address's ledger what is about to be published about a pod.
    fn say(&mut self, slot: usize, pod: &Pod, state: State) {
        let number = self.slots[slot].ledger.told(pod.life, state);
        let given = Given { slot, life: pod.life, number };
        match self.held.get_mut(&pod.name) {
            Some(held) => held.push(given),
            None => self.given.push(given),
        }
    }

    /// Replaces the pod that has the address by another one, which is not published yet ([`Cluster::tell`]).
    pub(super) fn replace(&mut self, slot: usize) -> Life {
        if let Some(pod) = self.slots[slot].current.take() {
            self.end(slot, pod, State::Absent, "replaced");
        }
        self.started += 1;
        let life = self.started;
        self.slots[slot].current = Some(Pod { life, name: format!("p-{life}"), state: State::Absent, since: now() });
        life
    }

    /// Publishes this state of the pod that has the address, with an object that `change` modifies.
    pub(super) fn tell(&mut self, slot: usize, state: State, what: &'static str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.slots[slot].current.take().unwrap();
        self.count(what);
        self.say(slot, &pod, state);
        let mut object = object(&pod, &format!("r-{}", pod.life), "Running", &[self.slots[slot].ip]);
        change(&mut object);
        self.api.apply(Resource::Pods, object);
        self.note(slot, format!("version {}: {} of r-{} is {state:?} ({what})", self.api.resource_version(), pod.name, pod.life));
        pod.state = state;
        self.slots[slot].current = Some(pod);
    }

    /// Gives the pod that has the address a new network, created later than the previous one. This is not published yet.
    pub(super) fn restart_network(&mut self, slot: usize) {
        if let Some(pod) = &mut self.slots[slot].current {
            // The API's times have no fractions of a second.
            pod.since = now().max(pod.since + SignedDuration::from_secs(1));
        }
    }

    /// Returns up to this many addresses that belong beyond doubt to their latest pod, which runs.
    pub(super) fn settled(&mut self, count: usize) -> Vec<usize> {
        let is_settled = |slot: &usize| {
            let Slot { ledger, current, .. } = &self.slots[*slot];
            let current = current.as_ref().filter(|pod| pod.state == State::Running);
            current.is_some_and(|pod| ledger.must_be_now() == Some(pod.life))
        };
        let mut slots: Vec<_> = (0..usize::from(ADDRESSES)).filter(is_settled).collect();
        while slots.len() > count {
            let at = self.any_of(slots.len());
            slots.swap_remove(at);
        }
        slots
    }

    /// Makes a running pod claim the address of another slot in addition to its own.
    pub(super) fn forge(&mut self, slot: usize, other: usize) {
        let pod = self.slots[slot].current.clone().unwrap();
        self.count("status forged");
        self.say(other, &pod, State::Running);
        let ips = [self.slots[slot].ip, self.slots[other].ip];
        self.api.apply(Resource::Pods, object(&pod, &format!("r-{}", pod.life), "Running", &ips));
        self.note(other, format!("version {}: {} of r-{} says that it has this address", self.api.resource_version(), pod.name, pod.life));
    }

    /// Withdraws the claim.
    pub(super) fn mend(&mut self, slot: usize, other: usize) {
        let pod = self.slots[slot].current.clone().unwrap();
        self.say(other, &pod, State::Absent);
        self.api.apply(Resource::Pods, object(&pod, &format!("r-{}", pod.life), "Running", &[self.slots[slot].ip]));
        self.note(other, format!("version {}: {} of r-{} says so no more", self.api.resource_version(), pod.name, pod.life));
    }

    /// Returns the object of the pod that runs at this address, with another role of its own and other annotations.
    pub(super) fn with_annotations(&self, slot: usize, number: u64) -> Value {
        let pod = self.slots[slot].current.as_ref().unwrap();
        let mut object = object(pod, &format!("r-{}-{}", pod.life, number % 3), "Running", &[self.slots[slot].ip]);
        let annotations = &mut object["metadata"]["annotations"];
        annotations["iam.amazonaws.com/session-name"] = format!("session-{number}").into();
        annotations["iam.amazonaws.com/external-id"] = format!("external-{number}").into();
        object
    }

    fn mark(&self) {
        let marker = Pod { life: 0, name: MARKER.to_owned(), state: State::Running, since: now() };
        self.api.apply(Resource::Pods, object(&marker, &format!("m-{}", self.markers), "Running", &[MARKER_IP]));
    }

    /// Waits until the daemon has processed everything that was published.
    pub(super) fn prove(&mut self, world: &World) {
        self.markers += 1;
        self.mark();
        let wanted = format!("m-{}", self.markers);
        let api = self.api.clone();
        wait(
            world,
            || world.get(MARKER_IP, ROLES).text() == wanted,
            || format!("what the API gives out is not taken in; the API has {} watches", api.watchers(Resource::Pods)),
        );
        for Given { slot, life, number } in self.given.drain(..) {
            self.slots[slot].ledger.proven(life, number);
        }
    }

    /// Returns those of the first addresses that belong to one pod beyond doubt.
    pub(super) fn undisputed(&self, first: usize) -> Vec<usize> {
        (0..first).filter(|slot| self.slots[*slot].ledger.must_be_now().is_some()).collect()
    }
}

/// Waits for a condition that must become true.
pub(super) fn wait(world: &World, condition: impl Fn() -> bool, what: impl FnOnce() -> String) {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > PATIENCE {
            panic!("{}; the log:\n{}", what(), world.daemon.log());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[expect(clippy::disallowed_methods, reason = "the API's times are compared with the boot of this machine")]
fn now() -> Timestamp {
    Timestamp::now()
}

fn object(pod: &Pod, role: &str, phase: &str, ips: &[IpAddr]) -> Value {
    let uid = format!("uid-{}", pod.life);
    let mut status = json!({ "phase": phase });
    if let Some(ip) = ips.first() {
        status["podIP"] = json!(ip);
        status["podIPs"] = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    }
    let mut object = json!({
        "metadata": { "namespace": NAMESPACE, "name": pod.name, "uid": uid, "annotations": { "iam.amazonaws.com/role": role } },
        "spec": { "nodeName": NODE, "serviceAccountName": "default" },
        "status": status,
    });
    if phase == "Running" {
        set_started(&mut object, &pod.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    object
}

/// Sets when the pod's network was created and its container was started.
pub(super) fn set_started(object: &mut Value, time: &str) {
    object["status"]["conditions"] = json!([{ "type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": time }]);
    object["status"]["containerStatuses"] = json!([{ "name": "main", "state": { "running": { "startedAt": time } } }]);
}

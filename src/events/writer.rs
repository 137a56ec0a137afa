//! The task that writes Events: one write at a time, when the `ledger` says so.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::ledger::{Ledger, Moment, Next, TakenIn, Verb, Write, WriteOutcome};
use super::{EventCause, EventRecord, object};
use crate::advice::Advise as _;
use crate::backoff::fraction;
use crate::clock::Clock;
use crate::kubernetes::client::{Client, RequestError, encode};
use crate::log_once::{Condition, Conditions};
use crate::metrics::Metrics;
use crate::pods::{Pod, PodUid, Pods};
use crate::shares::Full;

mod turned_away;

use turned_away::DroppedEvents;

/// The least time between two looks at all pods.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Records that are taken in at one time.
const AT_ONCE: usize = 256;

/// Where Events are written: the Kubernetes API, or a test's idea of it.
pub(crate) trait EventsApi: Send + Sync + 'static {
    /// Creates an Event in a namespace.
    fn create(&self, namespace: &str, event: Vec<u8>) -> impl Future<Output = Result<(), WriteRefusal>> + Send;
    /// Changes one.
    fn amend(&self, namespace: &str, name: &str, patch: Vec<u8>) -> impl Future<Output = Result<(), WriteRefusal>> + Send;
}

/// Why something was not written.
#[derive(Debug)]
pub(crate) struct WriteRefusal {
    /// What the API answered, where it did.
    pub code: Option<u16>,
    /// The namespace is being deleted.
    pub namespace_ends: bool,
    /// How long the API asks not to be asked.
    pub retry_after: Duration,
    /// For the log.
    pub text: String,
}

impl From<RequestError> for WriteRefusal {
    fn from(error: RequestError) -> Self {
        Self {
            code: error.code(),
            namespace_ends: error.is_of_ending_namespace(),
            retry_after: error.retry_after(),
            text: error.with_advice(),
        }
    }
}

impl EventsApi for Client {
    async fn create(&self, namespace: &str, event: Vec<u8>) -> Result<(), WriteRefusal> {
        Ok(self.post(&target(namespace), event).await?)
    }

    async fn amend(&self, namespace: &str, name: &str, patch: Vec<u8>) -> Result<(), WriteRefusal> {
        Ok(self.merge_patch(&format!("{}/{}", target(namespace), encode(name)), patch).await?)
    }
}

fn target(namespace: &str) -> String {
    format!("/apis/events.k8s.io/v1/namespaces/{}/events", encode(namespace))
}

/// What the writer needs to run.
#[derive(Debug)]
pub(crate) struct Writer<A> {
    /// Where to write.
    pub api: A,
    /// This node's name.
    pub node: String,
    /// The pods that are here: others are told nothing.
    pub pods: Pods,
    /// What to tell.
    pub records: mpsc::Receiver<EventRecord>,
    /// The time that Events show.
    pub clock: Clock,
    /// Where it is counted what became of records.
    pub metrics: Metrics,
}

/// The state of the writer while it runs.
struct Desk {
    pods: Pods,
    clock: Clock,
    metrics: Metrics,
    ledger: Ledger,
    /// Pods in the node's network that have been told so: they are once.
    told_hosts: HashSet<PodUid>,
    looked_at: Instant,
    /// Whether the daemon may not write anywhere.
    forbidden: Condition,
    /// Namespaces in which alone it may not.
    forbidden_in: Conditions<String>,
    turned_away: DroppedEvents,
}

impl<A: EventsApi> Writer<A> {
    /// Writes for as long as the process.
    pub(crate) async fn run(self) {
        let Self { api, node, mut pods, mut records, clock, metrics } = self;
        let mut desk = Desk {
            pods: pods.clone(),
            clock,
            metrics,
            ledger: Ledger::default(),
            told_hosts: HashSet::new(),
            looked_at: Instant::now(),
            forbidden: Condition::default(),
            forbidden_in: Conditions::default(),
            turned_away: DroppedEvents::default(),
        };
        let mut look_at = Some(Instant::now());
        let mut received = Vec::with_capacity(AT_ONCE);
        let mut under_way = None;
        loop {
            if look_at.is_some_and(|at| at <= Instant::now()) {
                desk.look_at_pods();
                look_at = None;
            }
            let mut wake_at = look_at;
            if under_way.is_none() {
                match desk.next() {
                    Next::Write(write) => under_way = Some(Box::pin(send(&api, &node, write))),
                    Next::At(at) => wake_at = Some(wake_at.map_or(at.into(), |look| look.min(at.into()))),
                    Next::Nothing => {}
                }
            }
            let wake = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let answered = async {
                match &mut under_way {
                    Some(sending) => sending.await,
                    None => std::future::pending().await,
                }
            };
            // Records are taken in also while the API is slow.
            tokio::select! {
                count = records.recv_many(&mut received, AT_ONCE) => {
                    if count == 0 {
                        // Nobody is left to tell anything; the task lives as long as the process.
                        return std::future::pending().await;
                    }
                    received.drain(..).for_each(|record| desk.take(record));
                }
                (write, result) = answered => {
                    under_way = None;
                    desk.answered(&write, result);
                }
                () = pods.changed(), if look_at.is_none() => look_at = Some(desk.looked_at + LOOK_EVERY),
                () = wake => {}
            }
        }
    }
}

/// Sends a write, and gives it back with what became of it.
async fn send<A: EventsApi>(api: &A, node: &str, write: Write) -> (Write, Result<(), WriteRefusal>) {
    let pod = &write.key.pod;
    let body = match (write.verb, write.series) {
        (Verb::Amend, Some(series)) => object::amend(series),
        // An amendment is always a repeat.
        (Verb::Create | Verb::Amend, series) => object::create(&write.name, pod, node, write.key.cause, write.at, series),
    };
    let result = match body {
        Err(error) => Err(WriteRefusal { code: Some(422), namespace_ends: false, retry_after: Duration::ZERO, text: error.to_string() }),
        Ok(body) if write.verb == Verb::Amend => api.amend(&pod.namespace, &write.name, body).await,
        Ok(body) => api.create(&pod.namespace, body).await,
    };
    (write, result)
}

/// What an answer means for a write.
fn meaning(verb: Verb, result: &Result<(), WriteRefusal>) -> WriteOutcome {
    let Err(refusal) = result else {
        return WriteOutcome::Written;
    };
    match (refusal.code, verb) {
        _ if refusal.namespace_ends => WriteOutcome::Never,
        // Names are of one try alone: an earlier answer was lost.
        (Some(409), Verb::Create) => WriteOutcome::Written,
        (Some(404), Verb::Create) => WriteOutcome::Never,
        (Some(404), Verb::Amend) => WriteOutcome::Missing,
        (Some(403), _) => WriteOutcome::Forbidden,
        (Some(401 | 408 | 409 | 429), _) => WriteOutcome::Later(refusal.retry_after),
        (Some(400..500), _) => WriteOutcome::Never,
        _ => WriteOutcome::Later(refusal.retry_after),
    }
}

impl Desk {
    fn now(&self) -> Moment {
        Moment { instant: Instant::now().into_std(), wall: self.clock.now() }
    }

    fn take(&mut self, record: EventRecord) {
        let pod = record.pod.clone();
        let (turned_away, why) = match self.ledger.take(record, self.now()) {
            TakenIn::New => return,
            TakenIn::Repeat => return self.metrics.event("suppressed"),
            TakenIn::InPlaceOf(displaced) => (displaced, Full::All),
            TakenIn::Full(why) => (pod, why),
        };
        self.metrics.event("dropped");
        self.turned_away.dropped(&turned_away, why);
    }

    fn next(&mut self) -> Next {
        let now = self.now().instant;
        self.tidy(|_| true);
        loop {
            match self.ledger.next(now) {
                Next::Write(write) if !self.pods.contains(&write.key.pod.uid) => {
                    self.metrics.event("dropped");
                    self.ledger.forget(&write);
                }
                next => return next,
            }
        }
    }

    fn tidy(&mut self, is_here: impl Fn(&PodUid) -> bool) {
        let now = self.now().instant;
        for _ in 0..self.ledger.tidy(now, is_here) {
            self.metrics.event("dropped");
        }
    }

    /// Forgets pods that are gone, and tells those in the node's network that nobody here serves them: they never ask.
    fn look_at_pods(&mut self) {
        self.looked_at = Instant::now();
        let pods = self.pods.all();
        let here: HashSet<&PodUid> = pods.iter().map(|pod| &pod.uid).collect();
        let known = self.pods.clone();
        // An unreadable pod is not among them; its owner gets an Event for that.
        self.tidy(|uid| here.contains(uid) || known.contains(uid));
        self.told_hosts.retain(|uid| here.contains(uid));
        let namespaces: HashSet<&str> = pods.iter().map(|pod| &*pod.namespace).collect();
        self.forbidden_in.retain(|namespace| namespaces.contains(&**namespace));
        self.turned_away.retain(&namespaces);
        for pod in pods.iter().filter(|pod| pod.host_network && pod.role.is_some() && !pod.finished) {
            self.see_in_node_network(pod);
        }
    }

    fn see_in_node_network(&mut self, pod: &Arc<Pod>) {
        if !self.told_hosts.contains(&pod.uid) && !self.ledger.knows(pod, EventCause::HostNetwork) {
            self.take(EventRecord { pod: pod.clone(), cause: EventCause::HostNetwork });
        }
    }

    fn answered(&mut self, write: &Write, result: Result<(), WriteRefusal>) {
        let answer = meaning(write.verb, &result);
        self.ledger.answered(write, &answer, self.now(), fraction());
        if answer == WriteOutcome::Written && write.key.cause == EventCause::HostNetwork {
            self.told_hosts.insert(write.key.pod.uid.clone());
        }
        let outcome = match (&answer, &result) {
            (WriteOutcome::Written, _) => "written",
            (WriteOutcome::Never, Err(refusal)) if refusal.namespace_ends || refusal.code == Some(404) => "dropped",
            _ => "failed",
        };
        self.metrics.event(outcome);
        let (namespace, pod) = (&write.key.pod.namespace, &write.key.pod.name);
        let Err(refusal) = result else {
            self.forbidden.ends();
            self.forbidden_in.ends(namespace);
            return;
        };
        // The text of the refusal says where to look.
        if answer == WriteOutcome::Forbidden && self.ledger.is_forbidden_everywhere(write.verb) && self.forbidden.begins() {
            warn!(
                event = "events-forbidden",
                error = refusal.text,
                "rolegate may not write Events on pods in any namespace; serving pods without Events; add the rule 'apiGroups: \
                 [events.k8s.io], resources: [events], verbs: [create, patch]' to its ClusterRole, or set --events=false"
            );
        } else if answer == WriteOutcome::Forbidden && !self.forbidden.holds() && self.forbidden_in.begins(namespace.clone()) {
            warn!(
                event = "events-forbidden-in-namespace", %namespace, error = refusal.text,
                "rolegate may not write Events on pods of this namespace; serving its pods without Events; allow 'apiGroups: \
                 [events.k8s.io], resources: [events], verbs: [create, patch]', check admission webhooks if that is allowed already, or \
                 set --events=false"
            );
        } else {
            debug!(%namespace, %pod, reason = write.key.cause.reason(), "an Event was not written: {}", refusal.text);
        }
    }
}

#[cfg(test)]
mod tests;

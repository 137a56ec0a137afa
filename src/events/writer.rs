//! The task that writes Events: one write at a time, when the `ledger` allows it.

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
use crate::pods::{HostNetworkTreatment, Pod, PodUid, Pods};
use crate::shares::Full;

mod dropped;

use dropped::DroppedEvents;

/// The minimum interval between two scans of all pods.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The number of records taken from the queue at once.
const AT_ONCE: usize = 256;

/// The API that stores Events: the Kubernetes API, or a fake in tests.
pub(crate) trait EventsApi: Send + Sync + 'static {
    /// Creates an Event in a namespace.
    fn create(&self, namespace: &str, event: Vec<u8>) -> impl Future<Output = Result<(), WriteRefusal>> + Send;
    /// Amends an Event.
    fn amend(&self, namespace: &str, name: &str, patch: Vec<u8>) -> impl Future<Output = Result<(), WriteRefusal>> + Send;
}

/// The reason why a write failed.
#[derive(Debug)]
pub(crate) struct WriteRefusal {
    /// The HTTP status, if the API responded.
    pub code: Option<u16>,
    /// Whether the namespace is being deleted.
    pub namespace_ends: bool,
    /// How long the API asks clients to wait before retrying.
    pub retry_after: Duration,
    /// A description for the log.
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

/// The inputs of the writer task.
#[derive(Debug)]
pub(crate) struct Writer<A> {
    /// The API to write to.
    pub api: A,
    /// This node's name.
    pub node: String,
    /// The pods on this node; others get no Events.
    pub pods: Pods,
    /// The records to process.
    pub records: mpsc::Receiver<EventRecord>,
    /// The clock for the timestamps of Events.
    pub clock: Clock,
    /// Metrics that count the outcome of each record.
    pub metrics: Metrics,
}

/// The state of the running writer.
struct WriterState {
    pods: Pods,
    clock: Clock,
    metrics: Metrics,
    ledger: Ledger,
    /// Host-network pods that have had their Event; each gets one only once.
    reported_hosts: HashSet<PodUid>,
    looked_at: Instant,
    /// Whether the daemon lacks permission in every namespace.
    forbidden: Condition,
    /// Namespaces in which the daemon alone lacks permission.
    forbidden_in: Conditions<String>,
    dropped: DroppedEvents,
}

impl<A: EventsApi> Writer<A> {
    /// Runs the writer for the lifetime of the process.
    pub(crate) async fn run(self) {
        let Self { api, node, mut pods, mut records, clock, metrics } = self;
        let mut state = WriterState {
            pods: pods.clone(),
            clock,
            metrics,
            ledger: Ledger::default(),
            reported_hosts: HashSet::new(),
            looked_at: Instant::now(),
            forbidden: Condition::default(),
            forbidden_in: Conditions::default(),
            dropped: DroppedEvents::default(),
        };
        let mut look_at = Some(Instant::now());
        let mut received = Vec::with_capacity(AT_ONCE);
        let mut under_way = None;
        loop {
            if look_at.is_some_and(|at| at <= Instant::now()) {
                state.look_at_pods();
                look_at = None;
            }
            let mut wake_at = look_at;
            if under_way.is_none() {
                match state.next() {
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
            // Records are accepted even while the API is slow.
            tokio::select! {
                count = records.recv_many(&mut received, AT_ONCE) => {
                    if count == 0 {
                        // All senders are gone. The task must not end before the process does.
                        return std::future::pending().await;
                    }
                    received.drain(..).for_each(|record| state.take(record));
                }
                (write, result) = answered => {
                    under_way = None;
                    state.answered(&write, result);
                }
                () = pods.changed(), if look_at.is_none() => look_at = Some(state.looked_at + LOOK_EVERY),
                () = wake => {}
            }
        }
    }
}

/// Sends a write, and returns it with the result.
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

/// Interprets the result of a write.
fn meaning(verb: Verb, result: &Result<(), WriteRefusal>) -> WriteOutcome {
    let Err(refusal) = result else {
        return WriteOutcome::Written;
    };
    match (refusal.code, verb) {
        _ if refusal.namespace_ends => WriteOutcome::Never,
        // Each name is used for one write only, so a conflict means that an earlier response was lost.
        (Some(409), Verb::Create) => WriteOutcome::Written,
        (Some(404), Verb::Create) => WriteOutcome::Never,
        (Some(404), Verb::Amend) => WriteOutcome::Missing,
        (Some(403), _) => WriteOutcome::Forbidden,
        (Some(401 | 408 | 409 | 429), _) => WriteOutcome::Later(refusal.retry_after),
        (Some(400..500), _) => WriteOutcome::Never,
        _ => WriteOutcome::Later(refusal.retry_after),
    }
}

impl WriterState {
    fn now(&self) -> Moment {
        Moment { instant: Instant::now().into_std(), wall: self.clock.now() }
    }

    fn take(&mut self, record: EventRecord) {
        let pod = record.pod.clone();
        let (dropped_pod, why) = match self.ledger.take(record, self.now()) {
            TakenIn::New => return,
            TakenIn::Repeat => return self.metrics.event("suppressed"),
            TakenIn::InPlaceOf(displaced) => (displaced, Full::All),
            TakenIn::Full(why) => (pod, why),
        };
        self.metrics.event("dropped");
        self.dropped.dropped(&dropped_pod, why);
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

    /// Forgets pods that are gone, and reports to host-network pods that this node does not serve them: most never send a request
    /// to it.
    fn look_at_pods(&mut self) {
        self.looked_at = Instant::now();
        let pods = self.pods.all();
        let here: HashSet<&PodUid> = pods.iter().map(|pod| &pod.uid).collect();
        let known = self.pods.clone();
        // Unreadable pods are not listed here, but their owners get an Event too.
        self.tidy(|uid| here.contains(uid) || known.contains(uid));
        self.reported_hosts.retain(|uid| here.contains(uid));
        let namespaces: HashSet<&str> = pods.iter().map(|pod| &*pod.namespace).collect();
        self.forbidden_in.retain(|namespace| namespaces.contains(&**namespace));
        self.dropped.retain(&namespaces);
        for pod in pods.iter().filter(|pod| pod.host_network && pod.role.is_some() && !pod.finished) {
            self.see_in_node_network(pod);
        }
    }

    fn see_in_node_network(&mut self, pod: &Arc<Pod>) {
        let treatment = self.pods.host_network_treatment(pod);
        let cause = EventCause::HostNetwork(treatment);
        if treatment == HostNetworkTreatment::Served || self.reported_hosts.contains(&pod.uid) || self.ledger.knows(pod, cause) {
            return;
        }
        self.take(EventRecord { pod: pod.clone(), cause });
    }

    fn answered(&mut self, write: &Write, result: Result<(), WriteRefusal>) {
        let answer = meaning(write.verb, &result);
        self.ledger.answered(write, &answer, self.now(), fraction());
        if answer == WriteOutcome::Written && matches!(write.key.cause, EventCause::HostNetwork(_)) {
            self.reported_hosts.insert(write.key.pod.uid.clone());
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
            debug!(%namespace, %pod, reason = write.key.cause.reason(), "cannot write an Event: {}", refusal.text);
        }
    }
}

#[cfg(test)]
mod tests;

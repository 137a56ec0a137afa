//! Fetches sessions ahead of need. A pod's session is fetched when the pod appears, before it has an IP address, and renewed at
//! half of its life for as long as a pod on this node needs it. When no pod needs it any more, it is forgotten.
//!
//! The refresh follows the pods, asks the policy about each new or changed pod, and counts which pods need which session. A pod
//! whose namespace or service account is not known yet keeps its earlier session until they are. No session is requested before
//! the daemon's own AWS identity is known.
//!
//! Pods that were running before the daemon started usually have credentials already, and a restart of a whole fleet affects
//! many such pods. Their sessions are therefore fetched over a period of time, in random order. A session that a pod requests
//! goes first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::cache::{Ahead, SessionState, Sessions};
use super::caller::Caller;
use super::{AssumeRole, Credentials};
use crate::backoff::{fraction, spread};
use crate::pods::{Pod, PodContext, PodUid, Pods};
use crate::policy::{Decision, Policy, RoleRequest};

/// How much earlier than half of its life a session may be renewed, as a fraction of its life: a session of one hour is renewed
/// after 18 to 30 minutes. The sessions of a fleet that starts at once thus drift apart, and each has enough time left to
/// survive an hour in which STS serves half of the requests.
const EARLIER: f64 = 0.2;
/// The shortest pause before a session is retried.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// The pause before a session that STS refused is prefetched again. Whoever fixes the role usually has a pod that requests it
/// sooner.
const AFTER_REFUSAL: Duration = Duration::from_secs(30 * 60);
/// The interval of the sweep for sessions that no pod on this node needs. Such a session may belong to a request that was
/// decided before its pod was followed.
const SWEEP: Duration = Duration::from_secs(60);

/// Keeps the sessions of this node's pods.
#[derive(Debug)]
pub struct Refresh<A> {
    /// The pods that need sessions.
    pub pods: Pods,
    /// The policy that decides what each pod may have.
    pub policy: Arc<Policy>,
    /// The session cache.
    pub sessions: Arc<Sessions<A>>,
    /// Whether sessions are requested from STS before a pod requests them.
    pub prefetch: bool,
    /// The time over which the sessions of pods that were running before the daemon are fetched.
    pub spread: Duration,
}

/// A pod and the decision about it.
#[derive(Debug)]
struct FollowedPod {
    pod: Arc<Pod>,
    caller: Arc<Caller>,
    context: PodContext,
    node_version: u64,
    /// Whether the pod was running before the daemon.
    early: bool,
    /// Whether enough was known to decide.
    decided: bool,
    wants: Option<Arc<RoleRequest>>,
    /// The number of the last look that found the pod.
    look: u64,
}

/// A session that at least one pod needs.
#[derive(Debug, Default)]
struct WantedSession {
    /// The pods that need the session.
    pods: HashMap<PodUid, Arc<Caller>>,
    due: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct Follower<A> {
    of: Refresh<A>,
    followed: HashMap<PodUid, FollowedPod>,
    wanted: HashMap<Arc<RoleRequest>, WantedSession>,
    /// The sessions by the time at which they are requested from STS next. The number distinguishes sessions that are due at
    /// the same time.
    due: BTreeMap<(Instant, u64), Arc<RoleRequest>>,
    numbers: u64,
    looks: u64,
    /// Whether a complete list of pods has been seen.
    listed: bool,
    strays: HashSet<Arc<RoleRequest>>,
}

impl<A: AssumeRole> Refresh<A> {
    /// Runs until the process ends.
    pub async fn run(self) {
        let mut landings = self.sessions.landings();
        let mut pods = self.pods.clone();
        let mut node = self.policy.node_changes();
        let mut sweep = tokio::time::interval_at(Instant::now() + SWEEP, SWEEP);
        let mut follower = Follower::new(self);
        let mut decisions = follower.look().await;
        loop {
            let next = follower.due.keys().next().map(|(at, _)| *at);
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            if decisions > 0 {
                debug!(decisions, sessions = follower.wanted.len(), "looked up the roles of pods to prefetch their sessions");
                decisions = 0;
            }
            tokio::select! {
                () = pods.changed() => decisions = follower.look().await,
                Ok(()) = node.changed() => decisions = follower.look().await,
                Some(request) = landings.recv() => follower.schedule(&request).await,
                () = due => follower.begin().await,
                _ = sweep.tick() => follower.sweep().await,
            }
        }
    }
}

impl<A: AssumeRole> Follower<A> {
    fn new(of: Refresh<A>) -> Self {
        Self {
            of,
            followed: HashMap::new(),
            wanted: HashMap::new(),
            due: BTreeMap::new(),
            numbers: 0,
            looks: 0,
            listed: false,
            strays: HashSet::new(),
        }
    }

    /// Decides about the pods that are new or whose circumstances changed, and drops the sessions that no pod needs any more.
    /// Returns the number of decisions.
    async fn look(&mut self) -> usize {
        self.looks += 1;
        let (look, node_version) = (self.looks, self.of.policy.node_version());
        let (is_listed, pods) = self.of.pods.that_may_ask();
        let early = !self.listed;
        // Sessions are given up after the new ones are added, because pods may share a session.
        let (mut given_up, mut decisions) = (Vec::new(), 0);
        for (pod, context) in pods {
            let known = self.followed.get_mut(&pod.uid);
            let (early, before, caller) = match known {
                Some(known) if known.decided && known.is_of(&pod, &context, node_version) => {
                    known.look = look;
                    continue;
                }
                Some(known) => (known.early, known.wants.take(), known.caller.clone()),
                None => (early, None, Caller::of(&pod)),
            };
            decisions += 1;
            let verdict = self.decide(&pod, &context);
            let decided = verdict.is_some();
            let wants = verdict.unwrap_or_else(|| before.as_deref().cloned());
            let wants = match (wants, before) {
                (Some(request), Some(before)) if request == *before => Some(before),
                (wants, before) => {
                    given_up.extend(before.map(|before| (before, caller.uid.clone())));
                    match wants {
                        Some(request) => Some(self.want(request, &caller, early).await),
                        None => None,
                    }
                }
            };
            self.followed.insert(pod.uid.clone(), FollowedPod { pod, caller, context, node_version, early, decided, wants, look });
        }
        self.followed.retain(|uid, followed| {
            let stays = followed.look == look;
            if !stays {
                given_up.extend(followed.wants.take().map(|request| (request, uid.clone())));
            }
            stays
        });
        self.give_up(&given_up).await;
        self.listed |= is_listed;
        decisions
    }

    /// Returns what a pod may have; `None` while too little is known to decide.
    fn decide(&self, pod: &Pod, context: &PodContext) -> Option<Option<RoleRequest>> {
        if !self.of.policy.knows_node() || !self.of.policy.can_decide(pod, context) {
            return None;
        }
        Some(match self.of.policy.decide(pod, context) {
            Decision::Allow { request, .. } => Some(request),
            Decision::Deny(_) => None,
        })
    }

    /// Records that one more pod needs this session.
    async fn want(&mut self, request: RoleRequest, caller: &Arc<Caller>, early: bool) -> Arc<RoleRequest> {
        let request = self.wanted.get_key_value(&request).map_or_else(|| Arc::new(request), |(request, _)| request.clone());
        self.wanted.entry(request.clone()).or_default().pods.insert(caller.uid.clone(), caller.clone());
        if self.of.sessions.standing(&request).await.is_some() {
            if self.wanted.get(&request).is_some_and(|wanted| wanted.due.is_none()) {
                self.schedule(&request).await;
            }
        } else if self.of.prefetch {
            let late = if early { self.of.spread.mul_f64(fraction()) } else { Duration::ZERO };
            let at = Instant::now() + late;
            if self.wanted.get(&request).and_then(|wanted| wanted.due).is_none_or(|(due, _)| at < due) {
                self.set_due(&request, at);
            }
        }
        request
    }

    /// Records that these pods no longer need these sessions.
    async fn give_up(&mut self, given_up: &[(Arc<RoleRequest>, PodUid)]) {
        let mut unneeded = Vec::new();
        for (request, uid) in given_up {
            let Some(wanted) = self.wanted.get_mut(request) else {
                continue;
            };
            wanted.pods.remove(uid);
            if wanted.pods.is_empty() {
                if let Some(due) = wanted.due {
                    self.due.remove(&due);
                }
                self.wanted.remove(request);
                unneeded.push(request.clone());
            }
        }
        self.of.sessions.forget(&unneeded).await;
    }

    /// Sets when the session is requested next, according to its state.
    async fn schedule(&mut self, request: &Arc<RoleRequest>) {
        let now = Instant::now();
        let at = match self.of.sessions.standing(request).await {
            // The follower is notified when the request ends.
            Some(SessionState::UnderWay) | None => return,
            Some(SessionState::Held(credentials)) => now + self.until_renewal(&credentials),
            Some(SessionState::Failed { hopeless: true, .. }) => now + spread(AFTER_REFUSAL),
            Some(SessionState::Failed { until, hopeless: false }) => until.max(now + SHORTEST_PAUSE),
        };
        self.set_due(request, at);
    }

    /// Returns the time until renewal: half of the session's life minus a random part, so that nodes and sessions do not renew
    /// at the same time.
    fn until_renewal(&self, credentials: &Credentials) -> Duration {
        let age = Duration::try_from(self.of.sessions.now().duration_since(credentials.issued_at)).unwrap_or(Duration::ZERO);
        let at = credentials.life().mul_f64(0.5 - EARLIER * fraction());
        at.saturating_sub(age).max(SHORTEST_PAUSE)
    }

    fn set_due(&mut self, request: &Arc<RoleRequest>, at: Instant) {
        let Some(wanted) = self.wanted.get_mut(request) else {
            return;
        };
        self.numbers += 1;
        if let Some(before) = wanted.due.replace((at, self.numbers)) {
            self.due.remove(&before);
        }
        self.due.insert((at, self.numbers), request.clone());
    }

    /// Requests the sessions that are due.
    async fn begin(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.due.first_entry()
            && first.key().0 <= now
        {
            let request = first.remove();
            let mut callers = Vec::new();
            if let Some(wanted) = self.wanted.get_mut(&request) {
                wanted.due = None;
                callers.extend(wanted.pods.values().cloned());
            }
            if let Some(later) = self.of.sessions.gives_way(&request).await {
                self.set_due(&request, now + later);
                continue;
            }
            match self.of.sessions.ahead(&request, &callers).await {
                Ahead::UnderWay => {}
                // It failed meanwhile, for a pod that requested it.
                Ahead::NotBegun => self.schedule(&request).await,
                Ahead::Later(after) => self.set_due(&request, now + after),
            }
        }
    }

    /// Forgets the cached sessions that no pod needs and that no pod needed at the previous sweep either.
    async fn sweep(&mut self) {
        let strays = self.of.sessions.others(|request| self.wanted.contains_key(request));
        let (old, new): (Vec<_>, Vec<_>) = strays.into_iter().partition(|request| self.strays.contains(request));
        self.of.sessions.forget(&old).await;
        self.of.sessions.clean().await;
        self.strays = new.into_iter().collect();
    }
}

impl FollowedPod {
    fn is_of(&self, pod: &Arc<Pod>, context: &PodContext, node_version: u64) -> bool {
        Arc::ptr_eq(&self.pod, pod) && self.context == *context && self.node_version == node_version
    }
}

#[cfg(test)]
mod tests;

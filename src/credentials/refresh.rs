//! Sessions ahead of need: a pod's is fetched when the pod appears, before it has an address, and renewed at half of its life
//! for as long as a pod here needs it; with the last one it is forgotten.
//!
//! The pods decide: this follows them, asks policy about each that is new or has changed, and counts who needs which session.
//! A pod whose namespace or service account is not known yet keeps what it had until they are. Nothing is asked before it is
//! known who the daemon is to AWS.
//!
//! The pods that were here before the daemon have credentials, mostly, and a fleet that is restarted has many of them: their
//! sessions are fetched over a while, in an order of chance. One that a pod asks for goes first.

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

/// Of a session's life, how much earlier than at its half it may be renewed: of an hour, after 18 to 30 minutes. So the sessions of a
/// fleet that was started at once drift apart, and enough is left of each for an hour in which STS does half of what is needed.
const EARLIER: f64 = 0.2;
/// The shortest pause before a session is tried again.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// The pause before STS is asked again, ahead of need, for what it refused: whoever mends the role has a pod that asks.
const AFTER_REFUSAL: Duration = Duration::from_secs(30 * 60);
/// Between two looks at sessions that no pod here needs: a request may be decided before its pod is followed.
const SWEEP: Duration = Duration::from_secs(60);

/// Keeps the sessions of this node's pods.
#[derive(Debug)]
pub struct Refresh<A> {
    /// Whom they are for.
    pub pods: Pods,
    /// What each may have.
    pub policy: Arc<Policy>,
    /// Where they are.
    pub sessions: Arc<Sessions<A>>,
    /// Whether STS is asked before a pod is.
    pub prefetch: bool,
    /// The time over which the sessions of pods that were here before are fetched.
    pub spread: Duration,
}

/// A pod, as it was decided about.
#[derive(Debug)]
struct FollowedPod {
    pod: Arc<Pod>,
    caller: Arc<Caller>,
    context: PodContext,
    node_version: u64,
    /// It was here before the daemon.
    early: bool,
    /// Enough was known to decide.
    decided: bool,
    wants: Option<Arc<RoleRequest>>,
    /// The last look in which it was there.
    look: u64,
}

/// A session that is needed.
#[derive(Debug, Default)]
struct WantedSession {
    /// By whom.
    pods: HashMap<PodUid, Arc<Caller>>,
    due: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct Follower<A> {
    of: Refresh<A>,
    followed: HashMap<PodUid, FollowedPod>,
    wanted: HashMap<Arc<RoleRequest>, WantedSession>,
    /// When STS is to be asked next, and for what. The number tells apart what is due at one time.
    due: BTreeMap<(Instant, u64), Arc<RoleRequest>>,
    numbers: u64,
    looks: u64,
    /// The first complete list of pods has been seen.
    listed: bool,
    strays: HashSet<Arc<RoleRequest>>,
}

impl<A: AssumeRole> Refresh<A> {
    /// Runs for as long as the process.
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
                debug!(decisions, sessions = follower.wanted.len(), "pods were decided about, ahead of need");
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

    /// Decides about the pods that are new, have changed, or are in another world, and lets go of what none of them needs;
    /// how many it decided about.
    async fn look(&mut self) -> usize {
        self.looks += 1;
        let (look, node_version) = (self.looks, self.of.policy.node_version());
        let (is_listed, pods) = self.of.pods.that_may_ask();
        let early = !self.listed;
        // Given up after the new ones are taken: pods may share one.
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

    /// What a pod may have; `None` while it cannot be told.
    fn decide(&self, pod: &Pod, context: &PodContext) -> Option<Option<RoleRequest>> {
        if !self.of.policy.knows_node() || !self.of.policy.can_decide(pod, context) {
            return None;
        }
        Some(match self.of.policy.decide(pod, context) {
            Decision::Allow { request, .. } => Some(request),
            Decision::Deny(_) => None,
        })
    }

    /// One more pod needs this session.
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

    /// One pod less needs each of these sessions.
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

    /// Sets when STS is to be asked next, by where the session stands.
    async fn schedule(&mut self, request: &Arc<RoleRequest>) {
        let now = Instant::now();
        let at = match self.of.sessions.standing(request).await {
            // It is told when it lands.
            Some(SessionState::UnderWay) | None => return,
            Some(SessionState::Held(credentials)) => now + self.until_renewal(&credentials),
            Some(SessionState::Failed { hopeless: true, .. }) => now + spread(AFTER_REFUSAL),
            Some(SessionState::Failed { until, hopeless: false }) => until.max(now + SHORTEST_PAUSE),
        };
        self.set_due(request, at);
    }

    /// To half of its life, less by chance: another time on every node, and for every session.
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

    /// Asks STS for what is due.
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
                // It failed meanwhile, for a pod that asked.
                Ahead::NotBegun => self.schedule(&request).await,
                Ahead::Later(after) => self.set_due(&request, now + after),
            }
        }
    }

    /// Forgets the sessions that were asked for and that no pod needs, at this look and the one before.
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

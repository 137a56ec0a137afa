//! The nodes: each with the daemon's own cache, gate and refresh, and with pods that ask.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rolegate::clock::Clock;
use rolegate::config::{DEFAULT_ERROR_TTL, DEFAULT_PREFETCH_SPREAD, DEFAULT_STS_CONCURRENCY, DEFAULT_STS_RATE, DEFAULT_STS_RISE};
use rolegate::credentials::cache::{CacheSettings, Sessions};
use rolegate::credentials::gate::StsLimits;
use rolegate::credentials::refresh::Refresh;
use rolegate::metrics::Metrics;
use rolegate::pods::{Pod, PodContext, PodUid, Pods, PodsWriter, pods};
use rolegate::policy::node::NodeIdentity;
use rolegate::policy::{Decision, Policy, RoleRequest, Rules};
use rolegate::role::CallerIdentity;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::sts::{Calls, Client, Sts, TIMEOUT};

/// Roles of the cluster.
pub(crate) const ROLES: usize = 200;
/// Pods of a node.
pub(crate) const PODS: usize = 30;
/// STS's quota for an account and region, in calls per second.
pub(crate) const QUOTA: f64 = 600.0;
/// The fleet that it is set beside.
pub(crate) const NODES: usize = 5000;
/// A pod asks so often, half more or less: each time as a process that holds nothing.
pub(crate) const ASKS_EVERY: Duration = Duration::from_secs(300);
/// A pod that got nothing asks again after this.
pub(crate) const ASKS_AGAIN: Duration = Duration::from_secs(5);
/// The time in which the pods of a node that boots are started, one after the other.
pub(crate) const BOOT: Duration = Duration::from_secs(600);
/// A daemon that is restarted is away for so long.
const AWAY: Duration = Duration::from_secs(3);

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static PHASE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The virtual time since the fleet was started.
pub(crate) fn since_start() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |at| at.elapsed())
}

/// The virtual time since the phase was begun.
pub(crate) fn since_phase() -> Duration {
    PHASE.get().map_or(Duration::ZERO, |at| at.elapsed())
}

/// What pods met in one phase.
#[derive(Default)]
pub(crate) struct Met {
    pub(crate) asks: u64,
    /// Pods that waited for more than a second, at least once.
    pub(crate) waited: HashSet<u64>,
    /// Pods that were given none, at least once.
    pub(crate) without: HashSet<u64>,
    pub(crate) longest: Duration,
}

/// One phase, as it was.
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) lasted: Duration,
    pub(crate) quota: f64,
    pub(crate) calls: Calls,
    pub(crate) met: Met,
}

impl Phase {
    pub(crate) fn mean(&self) -> f64 {
        self.calls.total() as f64 / self.lasted.as_secs_f64()
    }
}

/// The seconds in which a part of the fleet does what the whole does in one.
pub(crate) fn window(nodes: usize) -> usize {
    (NODES / nodes.max(1)).max(1)
}

struct Node {
    writer: PodsWriter,
    pods: Pods,
    policy: Arc<Policy>,
    sessions: Mutex<Option<Arc<Sessions<Client>>>>,
    refresh: Mutex<Option<JoinHandle<()>>>,
}

struct Living {
    node: usize,
    uid: PodUid,
    task: JoinHandle<()>,
}

/// The whole fleet.
pub(crate) struct Fleet {
    nodes: Vec<Rc<Node>>,
    living: Vec<Living>,
    numbers: u64,
    sts: Sts,
    clock: Clock,
    metrics: Metrics,
    met: Arc<Mutex<Met>>,
    chance: Chance,
    pub(crate) quota: f64,
}

impl Fleet {
    /// Nodes whose pods are bound to them, and nothing else yet.
    pub(crate) fn new(nodes: usize, quota: f64) -> Self {
        BEGAN.set(Some(Instant::now()));
        PHASE.set(Some(Instant::now()));
        let clock = Clock::following_tokio(jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(24 * 365 * 56));
        let sts = Sts::new(quota, window(nodes), clock.clone());
        let nodes = (0..nodes).map(|number| Rc::new(Node::new(number))).collect();
        let (metrics, met) = (Metrics::new(), Arc::default());
        Self { nodes, living: Vec::new(), numbers: 0, sts, clock, metrics, met, chance: Chance::new(2), quota }
    }

    /// Every node boots at once, with all its pods.
    pub(crate) fn boot(&mut self) {
        for node in 0..self.nodes.len() {
            for _ in 0..PODS {
                let after = BOOT.mul_f64(self.chance.fraction());
                self.add(node, after);
            }
            let node = self.nodes[node].clone();
            self.start(&node);
        }
    }

    /// The daemon of a node, with nothing held.
    fn start(&self, node: &Node) {
        let (rate, max_rate) = (DEFAULT_STS_RATE, DEFAULT_STS_RATE * DEFAULT_STS_RISE);
        let limits = StsLimits { rate, max_rate, concurrency: usize::try_from(DEFAULT_STS_CONCURRENCY).unwrap_or(1) };
        let settings = CacheSettings { error_ttl: DEFAULT_ERROR_TTL, timeout: TIMEOUT, limits };
        let sessions = Sessions::new(Client::new(self.sts.clone()), settings, self.clock.clone(), self.metrics.clone());
        let (pods, policy) = (node.pods.clone(), node.policy.clone());
        let refresh = Refresh { pods, policy, sessions: sessions.clone(), prefetch: true, spread: DEFAULT_PREFETCH_SPREAD };
        *lock(&node.sessions) = Some(sessions);
        *lock(&node.refresh) = Some(tokio::spawn(refresh.run()));
    }

    /// A pod of a role of chance, that is started after a while.
    fn add(&mut self, node: usize, after: Duration) {
        self.numbers += 1;
        let (number, role) = (self.numbers, self.chance.below(ROLES));
        let pod = pod(number, role);
        let (uid, on) = (pod.uid.clone(), self.nodes[node].clone());
        let Decision::Allow { request, .. } = on.policy.decide(&pod, &PodContext::default()) else {
            return;
        };
        if lock(&on.refresh).is_some() {
            on.writer.write(|index| index.apply(pod.clone()));
        } else {
            // A list that grows until the daemon is there to see it whole.
            let known = |pod: &Arc<Pod>| Pod::clone(pod);
            on.writer.write(|index| index.reset(index.all().iter().map(known).chain([pod.clone()]).collect::<Vec<_>>()));
        }
        let (met, chance) = (self.met.clone(), Chance::new(number));
        let task = tokio::task::spawn_local(live(on, (pod, request), number, after, met, chance));
        self.living.push(Living { node, uid, task });
    }

    /// Lets time pass.
    pub(crate) async fn phase(&mut self, name: &'static str, lasts: Duration) -> Phase {
        self.begin();
        tokio::time::sleep(lasts).await;
        self.end(name, lasts)
    }

    /// A tenth of the pods goes in an hour, and as many come; each is started some seconds after it is bound.
    pub(crate) async fn churn(&mut self, name: &'static str, lasts: Duration) -> Phase {
        self.begin();
        let pause = Duration::from_secs(36_000).div_f64(self.living.len() as f64);
        let until = Instant::now() + lasts;
        while Instant::now() + pause < until {
            tokio::time::sleep(pause).await;
            let index = self.chance.below(self.living.len());
            let gone = self.living.swap_remove(index);
            gone.task.abort();
            self.nodes[gone.node].writer.write(|index| index.delete(&gone.uid));
            let after = Duration::from_secs_f64(self.chance.between(1.0, 5.0));
            self.add(gone.node, after);
        }
        tokio::time::sleep_until(until).await;
        self.end(name, lasts)
    }

    /// The daemons of all nodes are restarted, evenly over the time, in an order.
    pub(crate) async fn restart(&mut self, name: &'static str, over: Duration, lasts: Duration) -> Phase {
        self.begin();
        let (began, pause) = (Instant::now(), over.div_f64(self.nodes.len() as f64));
        for (number, node) in self.nodes.iter().enumerate() {
            let at = began + pause.mul_f64(number as f64);
            tokio::time::sleep_until(at).await;
            if let Some(refresh) = lock(&node.refresh).take() {
                refresh.abort();
            }
            *lock(&node.sessions) = None;
            // The one that was restarted AWAY before this one is back.
            let back = (AWAY.as_secs_f64() / pause.as_secs_f64()).ceil() as usize;
            if let Some(before) = number.checked_sub(back) {
                self.start(&self.nodes[before]);
            }
        }
        tokio::time::sleep(AWAY).await;
        for node in &self.nodes {
            if lock(&node.sessions).is_none() {
                self.start(node);
            }
        }
        tokio::time::sleep_until(began + lasts).await;
        self.end(name, lasts)
    }

    pub(crate) fn set_quota(&mut self, quota: f64) {
        self.quota = quota;
        self.sts.set_quota(quota, since_start());
    }

    fn begin(&self) {
        PHASE.set(Some(Instant::now()));
        self.sts.take_calls();
        *lock(&self.met) = Met::default();
    }

    fn end(&self, name: &'static str, lasted: Duration) -> Phase {
        let met = std::mem::take(&mut *lock(&self.met));
        Phase { name, lasted, quota: self.quota, calls: self.sts.take_calls(), met }
    }
}

impl Node {
    fn new(number: usize) -> Self {
        let (writer, pods) = pods();
        let identity = NodeIdentity::default();
        if let Ok(caller) = format!("arn:aws:sts::111122223333:assumed-role/nodes/i-{number}").parse::<CallerIdentity>() {
            identity.set_caller(caller);
        }
        let rules = Rules { base: "arn:aws:iam::111122223333:role/".parse().ok(), ..Rules::default() };
        #[expect(clippy::expect_used, reason = "rules without patterns have no mistake")]
        let policy = Arc::new(Policy::new(rules, identity).expect("rules"));
        Self { writer, pods, policy, sessions: Mutex::default(), refresh: Mutex::default() }
    }
}

/// A pod: asks when it is started, and again and again.
async fn live(node: Rc<Node>, (pod, request): (Pod, RoleRequest), number: u64, after: Duration, met: Arc<Mutex<Met>>, mut chance: Chance) {
    tokio::time::sleep(after).await;
    loop {
        let began = Instant::now();
        let sessions = loop {
            let sessions = lock(&node.sessions).clone();
            match sessions {
                Some(sessions) => break sessions,
                // The connection is refused.
                None => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        };
        let is_given = sessions.get(&request, &pod).await.is_ok();
        let waited = began.elapsed();
        {
            let mut met = lock(&met);
            met.asks += 1;
            met.longest = met.longest.max(waited);
            if waited > Duration::from_secs(1) {
                met.waited.insert(number);
            }
            if !is_given {
                met.without.insert(number);
            }
        }
        tokio::time::sleep(if is_given { ASKS_EVERY.mul_f64(chance.between(0.5, 1.5)) } else { ASKS_AGAIN }).await;
    }
}

fn pod(number: u64, role: usize) -> Pod {
    Pod { role: Some(format!("role-{role}")), ..Pod::for_test("default", &format!("pod-{number}")) }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

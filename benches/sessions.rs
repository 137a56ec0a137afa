//! The session cache by itself: what a request costs that finds its session, what one costs that does not, the memory of a
//! session, and how much longer requests for held sessions take while STS does not answer.
//!
//! The last is the measured side of a promise: pods whose sessions are held never wait for STS. It is looked at in one run, as
//! the ratio of two percentiles, and the run ends badly where it is above 2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::Criterion;
use rolegate::credentials::cache::{Sessions, Settings};
use rolegate::credentials::gate::Limits;
use rolegate::credentials::refresh::Refresh;
use rolegate::credentials::{AssumeRole, AssumeRoleError, Clock, Credentials};
use rolegate::metrics::Metrics;
use rolegate::pods::{Pod, PodUid, Surroundings, pods};
use rolegate::policy::node::NodeIdentity;
use rolegate::policy::{Decision, Policy, RoleRequest, Rules};
use rolegate::role::CallerIdentity;
use tokio::runtime::Runtime;

/// Pods of the node that is looked at.
const PODS: usize = 30;
/// STS does not answer for so long.
const STALL: Duration = Duration::from_secs(60);
/// Between two requests, so that a minute of them is not a measure of the clock alone.
const PAUSE: Duration = Duration::from_micros(100);
/// Sessions whose memory is measured.
const MANY: usize = 5_000;

/// An STS that answers at once, until it is stalled.
#[derive(Clone)]
struct Sts {
    clock: Clock,
    is_stalled: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    /// Of the sessions that it gives.
    life: jiff::SignedDuration,
}

impl Sts {
    fn new(seconds: i64) -> Self {
        let life = jiff::SignedDuration::from_secs(seconds);
        Self { clock: Clock::system(), is_stalled: Arc::default(), calls: Arc::default(), life }
    }
}

impl AssumeRole for Sts {
    async fn assume_role(&self, _request: &RoleRequest) -> Result<Credentials, AssumeRoleError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.is_stalled.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let now = self.clock.now();
        Ok(Credentials::new("ASIAEXAMPLE000000000".to_owned(), "s".repeat(40).into(), "t".repeat(800).into(), now, now + self.life))
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut criterion = Criterion::default().configure_from_args().sample_size(20).measurement_time(Duration::from_secs(5));
    // First: what others gave back would be taken for nothing.
    memory(&runtime);
    hit_and_miss(&runtime, &mut criterion);
    stall(&runtime);
    criterion.final_summary();
}

fn sessions(sts: &Sts) -> Arc<Sessions<Sts>> {
    let limits = Limits { rate: 1_000_000_000, concurrency: 1_000_000 };
    let settings = Settings { error_ttl: Duration::from_secs(30), timeout: Duration::from_secs(5), limits };
    Sessions::new(sts.clone(), settings, sts.clock.clone(), Metrics::new())
}

fn hit_and_miss(runtime: &Runtime, criterion: &mut Criterion) {
    let (policy, sts) = (policy(), Sts::new(3600));
    let (sessions, held) = (sessions(&sts), request(&policy, 0));
    runtime.block_on(sessions.get(&held)).unwrap();
    criterion.bench_function("hit", |bencher| bencher.to_async(runtime).iter(|| async { sessions.get(&held).await.unwrap() }));
    let mut number = 1;
    criterion.bench_function("miss, STS answers at once", |bencher| {
        bencher.iter_custom(|misses| {
            let requests: Vec<_> = (0..misses).map(|more| request(&policy, number + usize::try_from(more).unwrap())).collect();
            number += requests.len();
            runtime.block_on(async {
                let began = Instant::now();
                for request in &requests {
                    sessions.get(request).await.unwrap();
                }
                began.elapsed()
            })
        });
    });
}

/// What the process grows by for a session, its key and its document included.
fn memory(runtime: &Runtime) {
    let (policy, sts) = (policy(), Sts::new(3600));
    let sessions = sessions(&sts);
    let before = resident();
    runtime.block_on(async {
        for number in 0..MANY {
            let credentials = sessions.get(&request(&policy, number)).await.unwrap();
            credentials.document(|_| Ok::<_, ()>(vec![b'd'; 1100].into())).unwrap();
        }
    });
    let grown = resident().saturating_sub(before);
    println!("memory of a session, of {MANY}: {} bytes", grown / MANY as u64);
}

/// The resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// A node whose sessions are renewed all the time: first STS answers, then it does not, with every renewal under way.
fn stall(runtime: &Runtime) {
    let (policy, sts) = (policy(), Sts::new(200));
    let limits = Limits { rate: 20, concurrency: 16 };
    let settings = Settings { error_ttl: Duration::from_secs(30), timeout: Duration::from_secs(5), limits };
    let sessions = Sessions::new(sts.clone(), settings, sts.clock.clone(), Metrics::new());
    let (writer, pods) = pods();
    writer.write(|index| (0..PODS).for_each(|number| index.apply(pod(number))));
    let requests: Vec<_> = (0..PODS).map(|number| request(&policy, number)).collect();
    let (healthy, stalled, before) = runtime.block_on(async {
        let refresh = Refresh { pods, policy, sessions: sessions.clone(), prefetch: true, spread: Duration::ZERO };
        let refresh = tokio::spawn(refresh.run());
        for request in &requests {
            sessions.get(request).await.unwrap();
        }
        let healthy = ask(&sessions, &requests, STALL).await;
        let before = sts.calls.load(Ordering::Relaxed);
        sts.is_stalled.store(true, Ordering::Relaxed);
        let stalled = ask(&sessions, &requests, STALL).await;
        refresh.abort();
        (healthy, stalled, before)
    });
    let renewals = sts.calls.load(Ordering::Relaxed) - before;
    assert!(renewals > 0, "no renewal met the stalled STS: nothing was measured");
    let (healthy, stalled) = (percentile(healthy), percentile(stalled));
    let ratio = stalled.as_secs_f64() / healthy.as_secs_f64();
    println!(
        "p99 of requests for held sessions: {healthy:?} while STS answers, {stalled:?} while it is stalled for {STALL:?}: ratio {ratio:.2}"
    );
    println!("({renewals} renewals were under way without an answer)");
    assert!(ratio <= 2.0, "pods waited for STS");
}

/// The times of requests for the sessions, one after the other.
async fn ask(sessions: &Sessions<Sts>, requests: &[RoleRequest], lasts: Duration) -> Vec<Duration> {
    let mut took = Vec::new();
    let began = Instant::now();
    for request in requests.iter().cycle() {
        let asked = Instant::now();
        sessions.get(request).await.unwrap();
        took.push(asked.elapsed());
        if began.elapsed() >= lasts {
            break;
        }
        while asked.elapsed() < PAUSE {
            tokio::task::yield_now().await;
        }
    }
    took
}

fn percentile(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

fn policy() -> Arc<Policy> {
    let identity = NodeIdentity::default();
    identity.set_caller("arn:aws:sts::111122223333:assumed-role/nodes/i-0".parse::<CallerIdentity>().unwrap());
    let rules = Rules { base: Some("arn:aws:iam::111122223333:role/".parse().unwrap()), ..Rules::default() };
    Arc::new(Policy::new(rules, identity).unwrap())
}

fn request(policy: &Policy, number: usize) -> RoleRequest {
    match policy.decide(&pod(number), &Surroundings::default()) {
        Decision::Allow { request, .. } => request,
        Decision::Deny(denial) => panic!("{denial}"),
    }
}

fn pod(number: usize) -> Pod {
    Pod {
        service_account: "default".to_owned(),
        uid: PodUid(format!("0b6c21b0-6a2e-4b4e-9c58-{number:012}").into()),
        namespace: "default".to_owned(),
        name: format!("pod-{number}"),
        role: Some("web".to_owned()),
        external_id: None,
        session_name: None,
        ips: Vec::new(),
        finished: false,
        terminating: false,
        claims_until: None,
        host_network: false,
    }
}

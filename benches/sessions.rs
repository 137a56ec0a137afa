//! The session cache on its own: the cost of a request that finds its session, of one that does not, and the memory of a
//! session. Also the proxy in front of it: how much longer requests for held sessions take while STS does not answer.
//!
//! The last figure tests a promise: pods whose sessions are held never wait for STS. Pods send requests on a schedule, whether
//! or not the previous ones were answered, and each time counts from when the request was due. One run compares two
//! percentiles, and exits with status 1 if their ratio is above 2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::Criterion;
use http::request::Parts;
use rolegate::clock::Clock;
use rolegate::config::{MetadataProfile, PatternFormat, TokenMode};
use rolegate::credentials::cache::{CacheSettings, Sessions};
use rolegate::credentials::gate::StsLimits;
use rolegate::credentials::refresh::Refresh;
use rolegate::credentials::{AssumeRole, AssumeRoleError, Credentials};
use rolegate::events::Reporter;
use rolegate::metrics::Metrics;
use rolegate::pods::{Pod, PodContext, PodUid, pods};
use rolegate::policy::node::NodeIdentity;
use rolegate::policy::patterns::Patterns;
use rolegate::policy::{Decision, Policy, RoleRequest, Rules};
use rolegate::proxy::metadata::Access;
use rolegate::proxy::route::{Body, Hosts};
use rolegate::proxy::token::Tokens;
use rolegate::proxy::{Origin, Proxy};
use rolegate::role::CallerIdentity;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use common::pods::{address, uid};
use common::process::Memory;
use common::{BASE, CALLER, exit_code, quantile};

/// The number of pods on the measured node.
const PODS: usize = 300;
/// How long STS does not answer, and how long it answers before that.
const STALL: Duration = Duration::from_secs(60);
/// The interval between two requests of the schedule.
const EVERY: Duration = Duration::from_millis(1);
/// The age of the first sessions. They are renewed at 18 to 30 minutes: half of them soon, the others during the measured
/// minutes and afterwards.
const AGE: jiff::SignedDuration = jiff::SignedDuration::from_mins(24);
/// The timeout of a request to STS (`--sts-timeout`).
const TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum ratio of request times while STS does not answer.
const MOST: f64 = 2.0;
/// The number of sessions whose memory is measured.
const MANY: usize = 5_000;

/// An STS that answers at once until it is stalled.
#[derive(Clone)]
struct Sts {
    clock: Clock,
    is_stalled: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    /// The number of requests that got no answer in time.
    lost: Arc<AtomicU64>,
    /// Whether the sessions that it issues are already [`AGE`] old.
    gives_old: Arc<AtomicBool>,
}

impl Sts {
    fn new() -> Self {
        let (is_stalled, calls, lost, gives_old) = Default::default();
        Self { clock: Clock::system(), is_stalled, calls, lost, gives_old }
    }
}

impl AssumeRole for Sts {
    async fn assume_role(&self, _request: &RoleRequest, _: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.is_stalled.load(Ordering::Relaxed) {
            tokio::time::sleep(TIMEOUT).await;
            self.lost.fetch_add(1, Ordering::Relaxed);
            return Err(AssumeRoleError::Unreachable { message: "no answer in time".to_owned() });
        }
        let now = self.clock.now();
        let issued_at = if self.gives_old.load(Ordering::Relaxed) { now - AGE } else { now };
        let (secret, token) = ("s".repeat(40).into(), "t".repeat(800).into());
        Ok(Credentials::new("ASIAEXAMPLE000000000".to_owned(), secret, token, issued_at, issued_at + jiff::SignedDuration::from_hours(1)))
    }
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut criterion = Criterion::default().configure_from_args().sample_size(20).measurement_time(Duration::from_secs(5));
    // First, because memory that others freed would distort the result.
    memory(&runtime);
    hit_and_miss(&runtime, &mut criterion);
    let is_kept = stall(&runtime);
    criterion.final_summary();
    exit_code(is_kept)
}

fn sessions(sts: &Sts) -> Arc<Sessions<Sts>> {
    let limits = StsLimits { rate: 1_000_000_000, max_rate: 1_000_000_000, concurrency: 1_000_000 };
    let settings = CacheSettings { error_ttl: Duration::from_secs(30), timeout: Duration::from_secs(5), limits };
    Sessions::new(sts.clone(), settings, sts.clock.clone(), Metrics::new())
}

fn hit_and_miss(runtime: &Runtime, criterion: &mut Criterion) {
    let (policy, sts) = (policy(), Sts::new());
    let (sessions, held, holder) = (sessions(&sts), request(&policy, 0), pod(0));
    runtime.block_on(sessions.get(&held, &holder)).unwrap();
    criterion.bench_function("hit", |bencher| bencher.to_async(runtime).iter(|| async { sessions.get(&held, &holder).await.unwrap() }));
    let mut number = 1;
    criterion.bench_function("miss, STS answers at once", |bencher| {
        bencher.iter_custom(|misses| {
            let numbers = (0..misses).map(|more| number + usize::try_from(more).unwrap());
            let requests: Vec<_> = numbers.map(|number| (request(&policy, number), pod(number))).collect();
            number += requests.len();
            runtime.block_on(async {
                let began = Instant::now();
                for (request, pod) in &requests {
                    sessions.get(request, pod).await.unwrap();
                }
                began.elapsed()
            })
        });
    });
}

/// Prints how much the process grows for each session, including its key and its document.
fn memory(runtime: &Runtime) {
    let (policy, sts) = (policy(), Sts::new());
    let sessions = sessions(&sts);
    let before = Memory::of("self").resident;
    runtime.block_on(async {
        for number in 0..MANY {
            let credentials = sessions.get(&request(&policy, number), &pod(number)).await.unwrap();
            credentials.document(|_| Ok::<_, ()>(vec![b'd'; 1100].into())).unwrap();
        }
    });
    let grown = (Memory::of("self").resident.saturating_sub(before)) * 1024;
    println!("memory of a session, of {MANY}: {} bytes", grown / MANY as u64);
}

/// Runs a node whose sessions reach half of their lifetime: first STS answers, then it does not, with renewals in progress.
/// Returns whether requests took as long as before.
fn stall(runtime: &Runtime) -> bool {
    let (sts, policy) = (Sts::new(), policy());
    let (healthy, stalled, lost) = runtime.block_on(async {
        let (writer, pods) = pods();
        writer.write(|index| (0..PODS).for_each(|number| index.apply(pod(number))));
        let (metrics, clock) = (Metrics::new(), sts.clock.clone());
        let limits = StsLimits { rate: 20, max_rate: 100, concurrency: 16 };
        let settings = CacheSettings { error_ttl: Duration::from_secs(30), timeout: TIMEOUT, limits };
        let sessions = Sessions::new(sts.clone(), settings, clock.clone(), metrics.clone());
        let access = Access::new(MetadataProfile::Base, Patterns::new(PatternFormat::Glob, None, Vec::new()).unwrap());
        let of_proxy = rolegate::proxy::ProxySettings { policy: policy.clone(), tokens: TokenMode::Optional, pod_wait: TIMEOUT, access };
        let (events, _records) = Reporter::new(metrics.clone());
        let tokens = Tokens::new(clock.clone()).unwrap();
        let proxy = Arc::new(Proxy::new(of_proxy, pods.clone(), sessions.clone(), tokens, clock, metrics, events));
        // All sessions are requested once, and are already old. Then the renewal begins.
        sts.gives_old.store(true, Ordering::Relaxed);
        for number in 0..PODS {
            assert_eq!(ask(&proxy, number).await, http::StatusCode::OK);
        }
        sts.gives_old.store(false, Ordering::Relaxed);
        let before = sts.calls.load(Ordering::Relaxed);
        let refresh = tokio::spawn(Refresh { pods, policy, sessions, prefetch: true, spread: Duration::ZERO }.run());
        // Sessions that are already due are renewed first, so that both minutes have the same work.
        while sts.calls.load(Ordering::Relaxed) < before + PODS as u64 / 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let healthy = on_schedule(&proxy, STALL).await;
        sts.is_stalled.store(true, Ordering::Relaxed);
        let stalled = on_schedule(&proxy, STALL).await;
        refresh.abort();
        (healthy, stalled, sts.lost.load(Ordering::Relaxed))
    });
    assert!(lost > 0, "no renewal met the stalled STS: nothing was measured");
    let ratio = stalled.p99.as_secs_f64() / healthy.p99.as_secs_f64();
    println!("requests for held sessions, one every {EVERY:?} from {PODS} pods in turn, through the proxy:");
    for (name, times) in [("STS answers", &healthy), ("STS is stalled", &stalled)] {
        println!("  {name:<16} p50 {:?}   p99 {:?}   most {:?}   of {}", times.p50, times.p99, times.most, times.count);
    }
    println!("  ratio of the two p99: {ratio:.2}, {MOST} at the most; {lost} renewals were under way without an answer");
    ratio <= MOST
}

/// The times of requests.
struct Times {
    p50: Duration,
    p99: Duration,
    most: Duration,
    count: usize,
}

/// Sends requests on a schedule for this long, as independent pods do.
async fn on_schedule(proxy: &Arc<Proxy<Sts>>, lasts: Duration) -> Times {
    let (runtime, proxy) = (tokio::runtime::Handle::current(), proxy.clone());
    let (sender, mut receiver) = mpsc::unbounded_channel();
    // A thread of its own, whose clock is finer than the runtime's and which the runtime cannot delay.
    let schedule = std::thread::spawn(move || {
        let began = Instant::now();
        for number in 0.. {
            let meant = EVERY * number;
            if meant >= lasts {
                break;
            }
            std::thread::sleep(meant.saturating_sub(began.elapsed()));
            let (proxy, sender) = (proxy.clone(), sender.clone());
            runtime.spawn(async move {
                let status = ask(&proxy, usize::try_from(number).unwrap() * 7 % PODS).await;
                let _ = sender.send((status, (began + meant).elapsed()));
            });
        }
    });
    let mut took = Vec::new();
    while let Some((status, time)) = receiver.recv().await {
        assert_eq!(status, http::StatusCode::OK, "a pod was without credentials");
        took.push(time);
    }
    schedule.join().unwrap();
    let at = |part| quantile(&took, part);
    Times { p50: at(0.5), p99: at(0.99), most: at(1.0), count: took.len() }
}

/// Sends one request of a pod for its credentials.
async fn ask(proxy: &Proxy<Sts>, number: usize) -> http::StatusCode {
    let origin = Origin::new(address(number).into(), Hosts::default());
    proxy.handle(&origin, &credentials_of_web(), Body::Unread).await.status()
}

fn credentials_of_web() -> Parts {
    let request = http::Request::get("/latest/meta-data/iam/security-credentials/web").header("host", "169.254.169.254");
    request.body(()).unwrap().into_parts().0
}

fn policy() -> Arc<Policy> {
    let identity = NodeIdentity::default();
    identity.set_caller(CALLER.parse::<CallerIdentity>().unwrap());
    let rules = Rules { base: Some(BASE.parse().unwrap()), ..Rules::default() };
    Arc::new(Policy::new(rules, identity).unwrap())
}

fn request(policy: &Policy, number: usize) -> RoleRequest {
    match policy.decide(&pod(number), &PodContext::default()) {
        Decision::Allow { request, .. } => request,
        Decision::Deny(denial) => panic!("{denial}"),
    }
}

fn pod(number: usize) -> Pod {
    Pod {
        uid: PodUid(uid(number).into()),
        role: Some("web".to_owned()),
        ips: vec![address(number % PODS).into()],
        ..Pod::for_test("default", &format!("pod-{number}"))
    }
}

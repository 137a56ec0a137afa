//! The cost of a request before credentials: which pod sends it, and which role that pod may have. Also the cost of comparing
//! the node's own view with the API's, and the costs of the watch: one event, and a complete list.
//!
//! The cost of the comparison is the difference between a lookup in the index alone and one in the same index with a node's
//! view that has confirmed every pod. Both are measured alternately. With `witness` as the only argument, nothing else is
//! measured.
//!
//! Requests are measured on the index and the policy themselves, with the number of pods of small, large and very large nodes.
//! Events and lists come from a server in this program, as bytes that were prepared, through the real watch: HTTP, lines,
//! decoding, index.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod common;

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use rolegate::config::{PatternFormat, Restrictions};
use rolegate::links::witness::Fixed;
use rolegate::links::{Link, LinkKind};
use rolegate::pods::index::Index;
use rolegate::pods::{Lookup, Namespace, Pods, PodsWriter, pods_with};
use rolegate::policy::node::NodeIdentity;
use rolegate::policy::{Decision, Policy, Rules};
use rolegate::role::CallerIdentity;
use tokio::task::JoinHandle;

use common::pods::{self, NAMESPACES, address};
use common::{BASE, CALLER, exit_code, is_witness_only, median, selected, verdict};

const PODS: [usize; 3] = [110, 1000, 10_000];
/// The number of patterns of each namespace.
const PATTERNS: usize = 10;
/// The number of pods in the measured list.
const LISTED: usize = 1000;
/// The number of events that are sent at once.
const EVENTS: usize = 1000;

/// The number of requests that are timed together, how often that is repeated, and how much the node's view may add to one.
const REQUESTS: usize = 1000;
const ROUNDS: usize = 2001;
const MAY_ADD: f64 = 50.0;

fn main() -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let is_cheap = if is_witness_only() || selected().is_empty() { witness() } else { true };
    if is_witness_only() {
        return exit_code(is_cheap);
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(20).measurement_time(Duration::from_secs(3));
    decisions(&mut criterion);
    events(&mut criterion);
    lists(&mut criterion);
    criterion.final_summary();
    exit_code(is_cheap)
}

/// Returns a link that is only this pod's.
fn own_link(ip: IpAddr) -> Option<Link> {
    let IpAddr::V4(ip) = ip else { panic!("no pod has {ip}") };
    Some(Link { interface: ip.to_bits(), kind: LinkKind::Own })
}

/// Measures what the second witness adds to a request, and returns whether that is within the goal.
fn witness() -> bool {
    println!("what the second witness costs: nanoseconds of a request, medians of {ROUNDS} rounds");
    println!("{:<14}{:>16}{:>16}{:>12}{:>8}", "", "the index alone", "with a witness", "difference", "ratio");
    let mut worst = f64::MIN;
    for count in PODS {
        let (writer, pods) = pods_with(Arc::new(Fixed::seeing(own_link)), None);
        writer.write(|index| fill(index, count, PatternFormat::Glob));
        (0..count).for_each(|number| drop(pods.by_ip(address(number).into())));
        let mut number = 0;
        let mut alone = || time_of_one(count, &mut number, |ip| pods.by_api_alone(ip));
        let mut alone_times = Vec::new();
        let mut number = count / 2;
        let mut both = || time_of_one(count, &mut number, |ip| pods.by_ip(ip));
        let (mut both_times, mut differences) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            // Alternating which comes first spreads other load on the machine evenly.
            let (one, other) = if round % 2 == 0 {
                let one = alone();
                (one, both())
            } else {
                let other = both();
                (alone(), other)
            };
            alone_times.push(one);
            both_times.push(other);
            differences.push(other - one);
        }
        let [before, after, difference] = [alone_times, both_times, differences].map(|times| median(&times));
        worst = worst.max(difference);
        println!("{:<14}{before:>16.1}{after:>16.1}{difference:>12.1}{:>8.2}", format!("{count} pods"), after / before);
    }
    println!("the goal, less than {MAY_ADD} ns more for each request: {} with {worst:.1} ns", verdict(worst < MAY_ADD));
    worst < MAY_ADD
}

/// Returns the nanoseconds of one request, from the time of many for pods far apart. Each call continues with other pods.
fn time_of_one(count: usize, number: &mut usize, ask: impl Fn(IpAddr) -> Lookup) -> f64 {
    let began = Instant::now();
    for _ in 0..REQUESTS {
        *number = (*number + 7919) % count;
        let found = black_box(ask(address(*number).into()));
        assert!(matches!(found, Lookup::Found(..)));
    }
    began.elapsed().as_nanos() as f64 / REQUESTS as f64
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("who asks, and what may it have");
    let kinds = [
        ("no restrictions", Restrictions::Off, PatternFormat::Glob),
        ("globs", Restrictions::Enforce, PatternFormat::Glob),
        ("regular expressions", Restrictions::Enforce, PatternFormat::Regexp),
    ];
    for (name, restrictions, patterns) in kinds {
        let rules = Rules { base: Some(BASE.parse().unwrap()), restrictions, patterns, ..Rules::default() };
        let identity = NodeIdentity::default();
        identity.set_caller(CALLER.parse::<CallerIdentity>().unwrap());
        let policy = Policy::new(rules, identity).unwrap();
        for count in PODS {
            let (_writer, pods) = node(count, patterns);
            let mut number = 0;
            group.bench_with_input(BenchmarkId::new(name, format!("{count} pods")), &pods, |bencher, pods| {
                bencher.iter(|| {
                    // A step that visits all pods, far apart.
                    number = (number + 7919) % count;
                    let Lookup::Found(pod, context) = pods.by_ip(address(number).into()) else { panic!("the pod is known") };
                    let decision = policy.decide(&pod, &context);
                    assert!(matches!(decision, Decision::Allow { .. }), "{decision:?}");
                });
            });
        }
    }
    group.finish();
}

/// Returns the pods of a node in their namespaces. Each namespace allows its own roles with the last of its patterns.
fn node(count: usize, patterns: PatternFormat) -> (PodsWriter, Pods) {
    let (writer, pods) = rolegate::pods::pods();
    writer.write(|index| fill(index, count, patterns));
    (writer, pods)
}

fn fill(index: &mut Index, count: usize, patterns: PatternFormat) {
    let any = if patterns == PatternFormat::Glob { "*" } else { ".*" };
    for number in 0..NAMESPACES {
        let others = (1..PATTERNS).map(|other| format!("other-{other}-{any}"));
        let list: Vec<String> = others.chain([format!("team-{number}-{any}")]).collect();
        let allowed_roles = Some(serde_json::to_string(&list).unwrap());
        index.apply_namespace(Namespace { name: format!("team-{number}"), allowed_roles, permitted: None });
    }
    (0..count).for_each(|number| index.apply(pods::known(number)));
}

/// Measures one event, from the time of many that arrive together.
fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a watch event of a pod of 12 KB");
    group.throughput(Throughput::Elements(1));
    for count in PODS {
        let api = Api::start(count);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (_running, pods) = runtime.block_on(api.follow());
        let mut version = u64::try_from(count).unwrap() + 1;
        group.bench_function(format!("{count} pods known"), |bencher| {
            bencher.iter_custom(|events| {
                let mut took = Duration::ZERO;
                for _ in 0..events.div_ceil(EVENTS as u64) {
                    let lines: String = (0..EVENTS)
                        .map(|event| {
                            version += 1;
                            line("MODIFIED", &pod(event % count, version))
                        })
                        .collect();
                    let before = pods.generation();
                    let began = Instant::now();
                    api.send.send(lines.into_bytes()).unwrap();
                    runtime.block_on(async {
                        let mut pods = pods.clone();
                        while pods.generation() < before + EVENTS as u64 {
                            pods.changed().await;
                        }
                    });
                    took += began.elapsed();
                }
                let measured = events.div_ceil(EVENTS as u64) * EVENTS as u64;
                took.mul_f64(events as f64 / measured as f64)
            });
        });
    }
    group.finish();
}

fn lists(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a list of 1000 pods of 12 KB");
    let api = Api::start(LISTED);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    group.throughput(Throughput::Elements(LISTED as u64));
    group.bench_function("streamed", |bencher| {
        bencher.iter(|| {
            let (running, pods) = runtime.block_on(api.follow());
            assert_eq!(pods.count(), LISTED);
            running.abort();
        });
    });
    group.finish();
}

/// An API that streams one list, and then the lines that it is given.
struct Api {
    address: SocketAddr,
    send: Sender<Vec<u8>>,
}

impl Api {
    fn start(count: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let list: String = (0..count).map(|number| line("ADDED", &pod(number, 1 + number as u64))).collect();
        let end = format!(
            r#"{{"type":"BOOKMARK","object":{{"kind":"Pod","apiVersion":"v1","metadata":{{"resourceVersion":"{}","annotations":{{"k8s.io/initial-events-end":"true"}}}}}}}}"#,
            count + 1
        );
        let list: Arc<[u8]> = (list + &end + "\n").into_bytes().into();
        let (send, lines) = channel();
        let lines = Arc::new(Mutex::new(lines));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (list, lines) = (list.clone(), lines.clone());
                std::thread::spawn(move || answer(stream.unwrap(), &list, &lines));
            }
        });
        Self { address, send }
    }

    /// Starts the real watch of this API, and waits until its list is complete.
    async fn follow(&self) -> (JoinHandle<()>, Pods) {
        pods::watch(&format!("http://{}", self.address)).await
    }
}

/// Answers the requests of one connection: a list that continues as a watch, with a body that ends with the connection.
fn answer(stream: std::net::TcpStream, list: &[u8], lines: &Mutex<Receiver<Vec<u8>>>) {
    let mut request = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if request.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    assert!(head.contains("sendInitialEvents=true"), "{head}");
    let mut stream = stream;
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    if stream.write_all(head).and_then(|()| stream.write_all(list)).is_err() {
        return;
    }
    let lines = lines.lock().unwrap();
    while let Ok(more) = lines.recv() {
        if stream.write_all(&more).is_err() {
            return;
        }
    }
}

fn line(kind: &str, object: &serde_json::Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

/// Returns a large pod in one of its versions.
fn pod(number: usize, version: u64) -> serde_json::Value {
    let mut pod = pods::large(number);
    pod["metadata"]["resourceVersion"] = version.to_string().into();
    pod
}

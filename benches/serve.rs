//! Cached credential requests per second over loopback, compared with a bare hyper server that returns the same bytes.
//!
//! Both servers are processes of their own. The same client sends requests to them alternately in the same run, over kept
//! connections and over a new connection for each request. Absolute figures depend on the machine. The ratios that are printed at
//! the end are what counts.
//!
//! In the same way, requests with a service account token (Pod Identity) are compared with requests for metadata. The goal is a ratio of at
//! least 0.8. The token was verified before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use rolegate_lab::kube::PodToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use common::process::{self, Again};
use common::serve::{self, CREDENTIALS, ROLE, Served};
use common::{NODE, median};

const CONNECTIONS: usize = 16;
/// The number of pairs of runs whose median ratio is printed.
const PAIRS: usize = 15;
const REQUESTS_OF_A_RUN: u64 = 20_000;
const WORKERS: usize = 2;

/// One server under load.
#[derive(Clone)]
struct Target {
    name: &'static str,
    address: SocketAddr,
    request: Vec<u8>,
    answer_length: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Connections {
    Kept,
    NewEach,
}

fn main() {
    // The case of the bare server's process is the body of its answer.
    if let Some(body) = process::case() {
        return serve::bare_server(body, WORKERS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
    let world = World::start(&runtime);
    let targets = [&world.bare, &world.rolegate, &world.identity];
    let mut criterion = Criterion::default().configure_from_args().sample_size(20).measurement_time(Duration::from_secs(8));
    for (name, connections) in [("keep-alive", Connections::Kept), ("new connection each", Connections::NewEach)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        for target in targets {
            group.bench_with_input(BenchmarkId::from_parameter(target.name), target, |bencher, target| {
                bencher.iter_custom(|requests| runtime.block_on(load(target, connections, requests)));
            });
        }
        group.finish();
    }
    for (first, second) in [(&world.bare, &world.rolegate), (&world.rolegate, &world.identity)] {
        compare(&runtime, first, second);
    }
    criterion.final_summary();
}

/// Prints the rates of two servers under load in turn, and their ratio.
fn compare(runtime: &Runtime, first: &Target, second: &Target) {
    println!("\nrequests per second, {} and {} in turn, median of {PAIRS} pairs:", first.name, second.name);
    for (name, connections) in [("keep-alive", Connections::Kept), ("new connection each", Connections::NewEach)] {
        let rate = |target: &Target| {
            let took = runtime.block_on(load(target, connections, REQUESTS_OF_A_RUN));
            REQUESTS_OF_A_RUN as f64 / took.as_secs_f64()
        };
        let pairs: Vec<(f64, f64)> = (0..PAIRS).map(|_| (rate(first), rate(second))).collect();
        let of = |figure: fn(&(f64, f64)) -> f64| median(&pairs.iter().map(figure).collect::<Vec<_>>());
        let (one, other, ratio) = (of(|pair| pair.0), of(|pair| pair.1), of(|pair| pair.1 / pair.0));
        println!("  {name:<20} {} {one:>8.0}/s   {} {other:>8.0}/s   ratio {ratio:.2}", first.name, second.name);
    }
}

/// The two servers, and their dependencies.
struct World {
    rolegate: Target,
    bare: Target,
    identity: Target,
    _served: Served,
    _bare: Again,
}

impl World {
    fn start(runtime: &Runtime) -> World {
        let served = Served::start(runtime, |setup| {
            let setup = setup.argument("--pod-identity").argument("--pod-identity-host-port=0");
            // Not the address of the pod: a connection from the address that it goes to counts as one of the node.
            setup.argument("--pod-identity-addresses=127.0.0.2:0").env("TOKIO_WORKER_THREADS", WORKERS.to_string())
        });
        let request = served.request(&format!("{CREDENTIALS}{ROLE}"));
        let token = PodToken::new("shop", "web", &served.uid).node(NODE, None);
        let token = served.api.token_issuer().issue(&token);
        let listening = served.daemon.wait_for_event("pod-identity-listening").unwrap();
        let identity_address: SocketAddr = listening["address"].as_str().unwrap().parse().unwrap();
        let identity_request =
            format!("GET /v1/credentials HTTP/1.1\r\nHost: {identity_address}\r\nAuthorization: {token}\r\n\r\n").into_bytes();
        let child = Again::start(&served.document);
        let bare_address = child.line.parse().unwrap();
        let target = |name, address, request: &[u8]| Target {
            name,
            address,
            request: request.to_vec(),
            answer_length: runtime.block_on(answer_length(address, request)),
        };
        let (rolegate, bare) =
            (target("rolegate", served.daemon.metadata_address(), &request), target("bare hyper", bare_address, &request));
        let identity = target("Pod Identity", identity_address, &identity_request);
        assert_eq!(rolegate.answer_length, bare.answer_length, "the two must return the same bytes");
        World { rolegate, bare, identity, _served: served, _bare: child }
    }
}

/// Returns the length of the complete answer, which is the same for every request.
async fn answer_length(address: SocketAddr, request: &[u8]) -> usize {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    loop {
        stream.read_buf(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
        if length == Some(body.len()) {
            return answer.len();
        }
    }
}

/// Returns the time of `requests` requests over [`CONNECTIONS`] parallel connections.
async fn load(target: &Target, connections: Connections, requests: u64) -> Duration {
    let began = Instant::now();
    let each = requests.div_ceil(CONNECTIONS as u64);
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let target = target.clone();
            tokio::spawn(async move { client(&target, connections, each).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    // If the number does not divide evenly, slightly more was measured than requested.
    began.elapsed().mul_f64(requests as f64 / (each * CONNECTIONS as u64) as f64)
}

async fn client(target: &Target, connections: Connections, requests: u64) {
    let mut answer = vec![0; target.answer_length];
    let mut kept: Option<TcpStream> = None;
    for _ in 0..requests {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(target.address).await.unwrap();
                // Thousands of closed connections per second would use up the ports, so they end with a reset.
                stream.set_zero_linger().unwrap();
                stream
            }
        };
        stream.write_all(&target.request).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer.last(), Some(&b'}'), "the answer is the document");
        if connections == Connections::Kept {
            kept = Some(stream);
        }
    }
}

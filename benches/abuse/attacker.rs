//! The process that attacks.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::common::process::{Again, wait_for_end};
use super::world::{ATTACKER, CROWD, GHOST, HONEST, MISLED, crowd_ip};
use super::{floods, http};

/// The pause before a closed connection is replaced, in attacks whose point is not connecting.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// The number of connections that request credentials constantly, each as soon as it has an answer.
const ASKING: usize = 4;
/// The number of connections in a burst, and the time between two bursts.
const BURST: (usize, Duration) = (200, Duration::from_secs(1));
/// The timeout of a request. An SDK gives up after a few seconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The process, as its parent sees it.
pub(super) struct Attacker(Again);

impl Attacker {
    /// Starts the process, and waits until the attack runs.
    pub(super) fn start(attack: &str, daemon: SocketAddr, metrics: SocketAddr) -> Attacker {
        Attacker(Again::start(&format!("{attack} {daemon} {metrics}")))
    }

    /// Stops the process. Returns what it counted, in words, and the keys that it got, each with the address that got it.
    pub(super) fn end(self) -> (String, Vec<(IpAddr, String, String)>) {
        let mut lines = self.0.end().into_iter();
        let counts = lines.next().unwrap();
        let keys = lines.map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[0].parse().unwrap(), words[1].to_owned(), words[2].to_owned())
        });
        (counts, keys.collect())
    }
}

/// The attacker's counters.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) connections: AtomicU64,
    /// Answers with status 200.
    pub(super) served: AtomicU64,
    /// Other answers.
    pub(super) refused: AtomicU64,
    /// Connections that were closed without an answer, and answers that did not arrive in time.
    pub(super) failed: AtomicU64,
    /// The keys that were served, and the addresses that got them.
    keys: Mutex<BTreeSet<(IpAddr, String, String)>>,
}

/// Attacks until standard input ends. `words` are the attack, the address of the daemon and that of its metrics.
pub(super) fn run(words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    let (address, metrics): (SocketAddr, SocketAddr) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    let counts: Arc<Counts> = Arc::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let began = Instant::now();
    let asking = |from| many(&runtime, ASKING, &counts, move |counts| ask(from, address, Duration::ZERO, counts));
    match words[0] {
        "idle" => many(&runtime, 1000, &counts, move |counts| floods::idle(address, counts)),
        "slow" => many(&runtime, 1000, &counts, move |counts| floods::slow(address, counts)),
        // Twenty tasks with 500 connections a second each.
        "connect" => many(&runtime, 20, &counts, move |counts| floods::connect_and_reset(address, counts)),
        "pipeline" => {
            let token = runtime.block_on(async { http::token(&mut http::connect(ATTACKER, address).await?).await });
            let token = token.unwrap().body;
            many(&runtime, 128, &counts, move |counts| floods::pipeline(address, token.clone(), counts));
        }
        "addresses" => {
            (0..floods::STRANGERS).for_each(|n| many(&runtime, 1, &counts, move |counts| floods::stranger(address, n, counts)));
        }
        "metrics" => many(&runtime, 8, &counts, move |counts| floods::scrape(metrics, counts)),
        "annotations" | "fat-pod" => asking(ATTACKER),
        "api-outage" => asking(GHOST),
        "other-role" => asking(MISLED),
        "burst" => many(&runtime, 1, &counts, move |counts| bursts(address, counts)),
        "crowd" => (0..CROWD).for_each(|n| many(&runtime, 1, &counts, move |counts| ask(crowd_ip(n), address, PAUSE, counts))),
        other => panic!("{other}"),
    }
    println!("started");
    // Ends when the parent says so, or has ended.
    wait_for_end();
    let seconds = began.elapsed().as_secs_f64();
    let rate = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / seconds;
    let keys = counts.keys.lock().unwrap();
    println!(
        "{:.0} connections/s, {:.0} served/s, {:.1} refused/s, {:.1} without an answer/s, {} keys",
        rate(&counts.connections),
        rate(&counts.served),
        rate(&counts.refused),
        rate(&counts.failed),
        keys.len()
    );
    for (ip, key, secret) in &*keys {
        println!("{ip} {key} {secret}");
    }
    io::stdout().flush().unwrap();
}

fn many<F>(runtime: &Runtime, count: usize, counts: &Arc<Counts>, attack: impl Fn(Arc<Counts>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for _ in 0..count {
        runtime.spawn(attack(counts.clone()));
    }
}

/// Requests credentials repeatedly over a kept connection.
async fn ask(from: IpAddr, address: SocketAddr, pause: Duration, counts: Arc<Counts>) {
    loop {
        let connection = async {
            let mut stream = http::connect(from, address).await?;
            counts.connections.fetch_add(1, Ordering::Relaxed);
            while tokio::time::timeout(TIMEOUT, sequence(from, &mut stream, &counts)).await?? {
                tokio::time::sleep(pause).await;
            }
            io::Result::Ok(())
        };
        if connection.await.is_err() {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Requests a token, the role list and credentials. Returns whether the connection stays open.
async fn sequence(from: IpAddr, stream: &mut tokio::net::TcpStream, counts: &Counts) -> io::Result<bool> {
    let count = |answer: &http::Answer| {
        let is_served = answer.status == 200;
        if is_served { &counts.served } else { &counts.refused }.fetch_add(1, Ordering::Relaxed);
        is_served
    };
    let token = http::token(stream).await?;
    if !count(&token) || token.closes {
        return Ok(!token.closes);
    }
    let list = http::role(stream, "", &token.body).await?;
    if !count(&list) || list.closes {
        return Ok(!list.closes);
    }
    let document = http::role(stream, &list.body, &token.body).await?;
    if count(&document)
        && let Some((key, secret)) = http::keys(&document.body)
    {
        counts.keys.lock().unwrap().insert((from, key, secret));
    }
    Ok(!document.closes)
}

/// Acts like a process with 200 workers whose credentials expire: each worker connects and sends one request.
async fn bursts(address: SocketAddr, counts: Arc<Counts>) {
    let mut ticks = tokio::time::interval(BURST.1);
    loop {
        ticks.tick().await;
        for _ in 0..BURST.0 {
            let counts = counts.clone();
            tokio::spawn(async move {
                let once = async {
                    let mut stream = http::connect(HONEST, address).await?;
                    counts.connections.fetch_add(1, Ordering::Relaxed);
                    sequence(HONEST, &mut stream, &counts).await
                };
                if !matches!(tokio::time::timeout(TIMEOUT, once).await, Ok(Ok(_))) {
                    counts.failed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
}

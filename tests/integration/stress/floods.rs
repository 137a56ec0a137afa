//! Clients that send far too many requests: from addresses that no pod has, and for the metrics.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::clients::{connect, exchange};
use super::cluster::wait;
use super::driver::Stage;
use super::moves::Move;
use super::{LOOPER, address_of};
use crate::world::{ROLES, TOKEN, TOKEN_TTL, World};

/// The number of unknown addresses, many more than the daemon has places for.
const STRANGERS: usize = 400;
/// How often each of them requests a token and a role, while it can.
const ASKED_BY_A_STRANGER: usize = 2;
/// The number of pods that must get their credentials during a flood.
const CREDENTIALS_OF_A_FLOOD: usize = 8;

/// Addresses that no pod has, all of which send requests at the same time and keep their connections. None of them gets
/// anything, and pods are served as usual.
#[derive(Default)]
pub(super) struct AddressFlood {
    turned_away_before: f64,
    asking: Option<JoinHandle<Vec<Stranger>>>,
}

/// The outcome of one of them. Its connection ends with it.
#[derive(Default)]
struct Stranger {
    connection: Option<TcpStream>,
    asked: usize,
    answered: Vec<String>,
}

impl Move for AddressFlood {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        self.turned_away_before = turned_away(stage.world);
        let daemon = stage.world.daemon.metadata_address();
        let strangers = (0..STRANGERS).map(move |number| async move {
            let ip = IpAddr::from([127, 0, 64 + u8::try_from(number >> 7).unwrap(), u8::try_from(number & 127).unwrap() + 1]);
            let mut connection = connect(ip, daemon).await;
            let mut stranger = Stranger::default();
            let token = format!("PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n{TOKEN_TTL}: 600\r\n\r\n");
            let role = format!("GET {ROLES} HTTP/1.1\r\nHost: 169.254.169.254\r\n{TOKEN}: {ip}\r\n\r\n");
            for request in [token, role].iter().cycle().take(2 * ASKED_BY_A_STRANGER) {
                // A connection that was displaced is closed.
                let Ok(answer) = exchange(&mut connection, request.as_bytes()).await else { return stranger };
                stranger.asked += 1;
                if answer.status == 200 {
                    stranger.answered.push(format!("{ip} got {:?} for {request:?}", answer.body));
                }
            }
            stranger.connection = Some(connection);
            stranger
        });
        self.asking = Some(stage.world.fakes.runtime.spawn(join_all(strangers)));
    }

    fn amid(&mut self, stage: &mut Stage<'_>) {
        stage.serve_some(CREDENTIALS_OF_A_FLOOD);
    }

    fn end(&mut self, stage: &mut Stage<'_>) {
        stage.serve_some(CREDENTIALS_OF_A_FLOOD);
        let Some(asking) = self.asking.take() else { return };
        let strangers = stage.world.fakes.runtime.block_on(asking).unwrap();
        let answered: Vec<_> = strangers.iter().flat_map(|stranger| &stranger.answered).collect();
        assert!(answered.is_empty(), "addresses that no pod has were answered: {answered:?}");
        // Whether any of them is answered depends on how often other unknown addresses connect at the time.
        let turned_away = turned_away(stage.world) - self.turned_away_before;
        let closed = strangers.iter().filter(|stranger| stranger.asked == 0 && stranger.connection.is_none()).count();
        assert!(turned_away >= closed as f64, "{closed} strangers got no answer, but only {turned_away} were turned away");
        let open = strangers.iter().filter(|stranger| stranger.connection.is_some()).count();
        assert!(turned_away > 0.0, "of {STRANGERS} strangers none gave way, and {open} were answered to the end");
    }
}

/// Returns how many connections of unknown addresses were displaced or not accepted.
fn turned_away(world: &World) -> f64 {
    let of =
        |metric, reason| world.daemon.metric(None, &format!("rolegate_connections_{metric}_total{{reason=\"{reason}\"}}")).unwrap_or(0.0);
    let all = [("ended", "displaced"), ("ended", "made-room"), ("refused", "unknown-limit"), ("refused", "unknown-rate")];
    all.into_iter().map(|(metric, reason)| of(metric, reason)).sum()
}

const SCRAPERS: usize = 8;
/// The number of connections that one pod may have to the metrics port.
const LET_IN: usize = 4;
/// The minimum number of answers to the flood: many more than may be rendered meanwhile.
const SCRAPED: usize = 20;

/// A tenant that requests the metrics on several connections without a pause. It costs one rendering a second, whatever it
/// does; others are answered on both ports.
#[derive(Default)]
pub(super) struct MetricsFlood {
    flood: Arc<Flood>,
    asking: Option<JoinHandle<()>>,
    /// When the flood began, and how often the metrics had been rendered by then.
    before: Option<(Instant, f64)>,
    asked_by_others: usize,
}

#[derive(Default)]
struct Flood {
    stop: AtomicBool,
    connections: AtomicUsize,
    answers: AtomicUsize,
    leaks: AtomicUsize,
}

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

impl MetricsFlood {
    /// Requests the metrics once from another pod.
    fn scrape(&mut self, stage: &mut Stage<'_>) {
        self.asked_by_others += 1;
        let address = stage.world.daemon.metrics_address();
        let from = address_of(stage.cluster.any_of(LOOPER));
        let answer = stage.world.fakes.runtime.block_on(async { exchange(&mut connect(from, address).await, SCRAPE).await });
        assert!(answer.is_ok_and(|answer| answer.status == 200), "no metrics for {from} while another pod scrapes constantly");
    }
}

impl Move for MetricsFlood {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        self.before = Some((Instant::now(), renderings(stage.world)));
        let (address, from) = (stage.world.daemon.metrics_address(), address_of(LOOPER));
        let scrapers = (0..SCRAPERS).map(|_| {
            let flood = self.flood.clone();
            async move {
                let mut connection = connect(from, address).await;
                let mut is_first = true;
                while !flood.stop.load(Ordering::SeqCst) {
                    let Ok(answer) = exchange(&mut connection, SCRAPE).await else { return };
                    flood.connections.fetch_add(usize::from(std::mem::take(&mut is_first)), Ordering::SeqCst);
                    flood.leaks.fetch_add(usize::from(answer.body.contains("\"shop\"")), Ordering::SeqCst);
                    flood.answers.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let scrapers: Vec<_> = scrapers.collect();
        let all = async {
            join_all(scrapers).await;
        };
        self.asking = Some(stage.world.fakes.runtime.spawn(all));
    }

    fn amid(&mut self, stage: &mut Stage<'_>) {
        self.scrape(stage);
        stage.serve_some(CREDENTIALS_OF_A_FLOOD);
    }

    fn end(&mut self, stage: &mut Stage<'_>) {
        let flood = self.flood.clone();
        wait(stage.world, || flood.answers.load(Ordering::SeqCst) >= SCRAPED, || "the flood gets no metrics at all".to_owned());
        self.scrape(stage);
        flood.stop.store(true, Ordering::SeqCst);
        if let Some(asking) = self.asking.take() {
            stage.world.fakes.runtime.block_on(asking).unwrap();
        }
        let (connections, leaks) = (flood.connections.load(Ordering::SeqCst), flood.leaks.load(Ordering::SeqCst));
        assert!(connections <= LET_IN, "{connections} connections of one pod were let in");
        assert_eq!(leaks, 0, "a pod saw a namespace");
        let Some((began, before)) = self.before else { return };
        let rendered = renderings(stage.world) - before;
        // One for each second that has begun, and those that the node itself requested.
        let most = began.elapsed().as_secs_f64().floor() + 3.0;
        assert!(
            rendered <= most,
            "the metrics were rendered {rendered} times, {most} at most, for {} answers",
            flood.answers.load(Ordering::SeqCst)
        );
    }
}

fn renderings(world: &World) -> f64 {
    world.metric("rolegate_metrics_renderings_total")
}

//! The pod that is not involved in the attack: it sends requests at a fixed pace, and checks the answers.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::common::quantile;
use super::http;

/// The interval between the starts of two sequences.
const PACE: Duration = Duration::from_millis(20);
/// The timeout of a request. An SDK gives up after a few seconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Measured times, in no order.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn quantile(&self, part: f64) -> Duration {
        quantile(&self.0, part)
    }
}

/// What the victim saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The times of each request. The first of a sequence counts from when it was due, and includes the connection.
    pub(super) requests: Times,
    /// The time of each sequence, from when it was due.
    pub(super) sequences: Times,
    /// Access keys with their secrets.
    pub(super) keys: BTreeSet<(String, String)>,
    /// Descriptions of what was wrong.
    pub(super) wrong: Vec<String>,
}

/// A client.
#[derive(Clone)]
pub(super) struct Victim {
    pub(super) ip: IpAddr,
    pub(super) daemon: SocketAddr,
    pub(super) role: &'static str,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    /// Kept connections, for every second sequence.
    kept: Mutex<Vec<TcpStream>>,
}

impl Victim {
    /// Starts a sequence every [`PACE`], and waits for all of them.
    pub(super) fn ask_for(&self, duration: Duration) -> Seen {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shared: Arc<Shared> = Arc::default();
        runtime.block_on(async {
            let mut sequences = JoinSet::new();
            let began = Instant::now();
            for number in 0_u32.. {
                let due = began + PACE * number;
                if due >= began + duration {
                    break;
                }
                tokio::time::sleep_until(due.into()).await;
                let (victim, shared) = (self.clone(), shared.clone());
                sequences.spawn(async move { victim.sequence(number, due, &shared).await });
            }
            while let Some(ended) = sequences.join_next().await {
                ended.unwrap();
            }
        });
        drop(runtime);
        let shared = Arc::into_inner(shared).unwrap();
        shared.seen.into_inner().unwrap()
    }

    async fn sequence(&self, number: u32, due: Instant, shared: &Shared) {
        let keeps = number.is_multiple_of(2);
        let mut times = Vec::new();
        let outcome = tokio::time::timeout(TIMEOUT, self.exchange(keeps, due, &mut times, shared)).await;
        let mut seen = shared.seen.lock().unwrap();
        match outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(keys) => {
                seen.keys.insert(keys);
            }
            Err(error) => {
                seen.wrong.push(format!("the victim's request {} of sequence {number}: {error}", times.len() + 1));
                // The time of the failed request counts, too.
                times.push(due.elapsed().saturating_sub(times.iter().sum()));
            }
        }
        seen.sequences.0.push(due.elapsed());
        seen.requests.0.extend(times);
    }

    async fn exchange(&self, keeps: bool, due: Instant, times: &mut Vec<Duration>, shared: &Shared) -> io::Result<(String, String)> {
        let mut began = due;
        let mut lap = || times.push(std::mem::replace(&mut began, Instant::now()).elapsed());
        let kept = keeps.then(|| shared.kept.lock().unwrap().pop()).flatten();
        let (mut stream, token) = match kept {
            None => self.token_on_new_connection().await?,
            Some(mut stream) => match http::token(&mut stream).await {
                Ok(answer) => (stream, answer),
                // The daemon may close an idle connection. Every client reconnects then.
                Err(_) => self.token_on_new_connection().await?,
            },
        };
        let token = expect(token)?;
        lap();
        self.connect_again(token.closes, &mut stream).await?;
        let list = http::role(&mut stream, "", &token.body).await?;
        let list = expect(list)?;
        if list.body != self.role {
            return Err(io::Error::other(format!("the list of roles is {:?}", list.body)));
        }
        lap();
        self.connect_again(list.closes, &mut stream).await?;
        let document = http::role(&mut stream, self.role, &token.body).await?;
        let document = expect(document)?;
        lap();
        let keys = http::keys(&document.body).ok_or_else(|| io::Error::other(format!("no credentials: {}", document.body)))?;
        if keeps && !document.closes {
            shared.kept.lock().unwrap().push(stream);
        }
        Ok(keys)
    }

    /// Replaces a connection that the daemon closes after its answer.
    async fn connect_again(&self, is_closing: bool, stream: &mut TcpStream) -> io::Result<()> {
        if is_closing {
            *stream = http::connect(self.ip, self.daemon).await?;
        }
        Ok(())
    }

    async fn token_on_new_connection(&self) -> io::Result<(TcpStream, http::Answer)> {
        let mut stream = http::connect(self.ip, self.daemon).await?;
        let answer = http::token(&mut stream).await?;
        Ok((stream, answer))
    }
}

fn expect(answer: http::Answer) -> io::Result<http::Answer> {
    if answer.status == 200 { Ok(answer) } else { Err(io::Error::other(format!("status {}: {}", answer.status, answer.body))) }
}

//! The clients: one at each address, which sends requests continuously over new or kept connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;

use super::Random;
use super::cluster::wait;
use super::ledger::{Ledger, Life, Span};
use crate::world::{ROLES, TOKEN, TOKEN_TTL, World};

/// The clients of all addresses.
pub(super) struct Clients {
    all: Vec<Arc<Mutex<Client>>>,
    /// The requests that clients may send on their own, all together. Closed at the end.
    turns: Arc<Semaphore>,
    asking: Vec<JoinHandle<()>>,
    /// How many credentials were requested that had to be served.
    pub(super) owed: usize,
}

impl Clients {
    /// Starts the clients. The first `asking` of them send requests on their own, as far as allowed.
    pub(super) fn start(world: &World, all: impl IntoIterator<Item = Client>, asking: usize) -> Self {
        let all: Vec<_> = all.into_iter().map(|client| Arc::new(Mutex::new(client))).collect();
        let turns = Arc::new(Semaphore::new(0));
        let ask = |client: &Arc<Mutex<Client>>| {
            let (client, turns) = (client.clone(), turns.clone());
            world.fakes.runtime.spawn(async move {
                while let Ok(turn) = turns.acquire().await {
                    turn.forget();
                    client.lock().await.ask().await;
                }
            })
        };
        let asking = all.iter().take(asking).map(ask).collect();
        Self { all, turns, asking, owed: 0 }
    }

    pub(super) fn of(&self, slot: usize) -> Arc<Mutex<Client>> {
        self.all[slot].clone()
    }

    /// Allows this many more requests.
    pub(super) fn allow(&self, turns: usize) {
        self.turns.add_permits(turns);
    }

    pub(super) fn wait_for_turns(&self, world: &World) {
        wait(world, || self.turns.available_permits() == 0, || "clients do not get their answers".to_owned());
    }

    /// Makes the clients of these addresses send one request each.
    pub(super) fn ask(&self, world: &World, slots: &[usize]) {
        world.fakes.runtime.block_on(join_all(slots.iter().map(|slot| async { self.all[*slot].lock().await.ask().await })));
    }

    /// Makes the clients of these addresses get credentials. Each address belongs to one pod beyond doubt.
    pub(super) fn get_credentials(&mut self, world: &World, slots: &[usize]) {
        self.owed += slots.len();
        for slots in slots.chunks(AT_ONCE) {
            let get = slots.iter().map(|slot| async { self.all[*slot].lock().await.get_credentials().await });
            world.fakes.runtime.block_on(join_all(get));
        }
    }

    /// Stops all clients, and returns what each has seen together with its ledger.
    pub(super) fn finish(self, world: &World) -> Vec<(Arc<Ledger>, Seen)> {
        self.turns.close();
        for asking in self.asking {
            world.fakes.runtime.block_on(asking).unwrap();
        }
        let seen = |client: Arc<Mutex<Client>>| {
            let mut client = client.try_lock().unwrap();
            (client.ledger.clone(), std::mem::take(&mut client.seen))
        };
        self.all.into_iter().map(seen).collect()
    }
}

/// One in this many role lists is followed by a request for credentials.
const CREDENTIALS_OF: u64 = 16;
/// The maximum number of attempts to get credentials that are due.
const MOST_TRIES: usize = 300;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// The number of clients that get credentials at the same time.
const AT_ONCE: usize = 16;

/// The client at one address.
pub(super) struct Client {
    ip: IpAddr,
    daemon: SocketAddr,
    ledger: Arc<Ledger>,
    random: Random,
    /// A kept connection, and the moment at which it was opened.
    connection: Option<(TcpStream, usize)>,
    token: Option<String>,
    /// The path of the last credentials, for which the same request is sent again, like that of a client that polls.
    polled: Option<String>,
    seen: Seen,
}

/// What a client has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Role lists and credentials that were served.
    pub(super) served: usize,
    /// Those of them that had to be served.
    pub(super) had_to_be_served: usize,
    /// Requests that were refused while the address had no pod or was in doubt.
    pub(super) refused: usize,
    /// Credentials that had to be served and were.
    pub(super) paid: usize,
    /// Access keys that were served, to be judged once it is known whose they are.
    pub(super) keys: Vec<(String, Span)>,
    /// Pods whose credentials STS must have refused, because nothing else excuses the refusal; and the violation otherwise.
    pub(super) excused: Vec<(Life, String)>,
    pub(super) violations: Vec<String>,
}

pub(super) struct Answer {
    /// The status, or [`CLOSED`] if the connection ended instead.
    pub(super) status: u16,
    pub(super) body: String,
    /// Whether the daemon closes the connection afterwards.
    pub(super) closes: bool,
}

const CLOSED: u16 = 0;

/// The outcome of one request for credentials, from its first step on.
enum Got {
    Credentials,
    /// A step was refused, with this status and with a token that was requested for it or not.
    Refused {
        what: &'static str,
        status: u16,
        fresh: bool,
    },
    /// The request for this pod's credentials got a 500: STS failed, or the pod changed meanwhile.
    Failed {
        life: Life,
        fresh: bool,
    },
    /// Credentials were not requested.
    RoleAlone,
}

/// Returns the pod of a role. Each pod has a role of its own, with its number; some have several.
pub(super) fn life_of(role: &str) -> Option<Life> {
    role.strip_prefix("r-")?.split('-').next()?.parse().ok()
}

impl Client {
    pub(super) fn new(ip: IpAddr, daemon: SocketAddr, ledger: Arc<Ledger>, random: Random) -> Self {
        Self { ip, daemon, ledger, random, connection: None, token: None, polled: None, seen: Seen::default() }
    }

    /// Does what an SDK does: gets a token, the role, and sometimes credentials. The token may be an old one, even the previous
    /// pod's. A refusal is wrong if the address has belonged to one pod beyond doubt since before the token was requested.
    async fn ask(&mut self) {
        self.poll().await;
        let began = self.ledger.now();
        let fresh = self.token.is_none() || self.random.one_in(3);
        let further = self.random.one_in(CREDENTIALS_OF);
        match self.steps(fresh, further).await {
            Got::Refused { what, status, fresh: true } => self.was_refused(what, status, began),
            Got::Failed { life, fresh: true } => self.has_failed(life, began),
            _ => {}
        }
    }

    /// Sends the request for the last credentials again, some times over, usually on the same connection. Its pod may be gone.
    async fn poll(&mut self) {
        let (Some(path), true) = (self.polled.clone(), self.token.is_some()) else { return };
        for _ in 0..self.random.below(4) {
            let sent = self.ledger.now();
            let document = self.get(&path).await;
            if document.status != 200 {
                self.polled = None;
                return;
            }
            self.keep_key(&document.body, Span { from: sent, to: self.ledger.now() });
        }
    }

    /// Gets credentials with all steps. The address must belong to one pod until this returns. If STS fails, tries again as
    /// SDKs do, because on a slow machine a call may exceed the daemon's limit.
    async fn get_credentials(&mut self) {
        let began = self.ledger.now();
        let mut got = self.steps(true, true).await;
        for _ in 0..MOST_TRIES {
            let Got::Failed { life, .. } = got else { break };
            self.has_failed(life, began);
            tokio::time::sleep(BETWEEN_TRIES).await;
            got = self.steps(true, true).await;
        }
        let span = Span { from: began, to: self.ledger.now() };
        match got {
            Got::Credentials if self.ledger.must_be(span).is_some() => self.seen.paid += 1,
            Got::Refused { what, status, .. } => self.violation(format!("{what} was refused with {status} when it was due"), span),
            Got::Failed { .. } => self.violation("credentials that were due could not be had".to_owned(), span),
            _ => self.violation("the address is not one pod's beyond doubt when its credentials are due".to_owned(), span),
        }
    }

    /// Requests credentials from the address of one pod while STS answers for other roles only: none may be served.
    pub(super) async fn get_no_credentials(&mut self) {
        let began = self.ledger.now();
        let got = self.steps(true, true).await;
        let span = Span { from: began, to: self.ledger.now() };
        match got {
            Got::Failed { .. } => self.seen.refused += 1,
            Got::Credentials => self.violation("credentials were answered that STS gave for another role".to_owned(), span),
            Got::Refused { what, status, .. } => self.violation(format!("{what} was refused with {status}"), span),
            Got::RoleAlone => self.violation("nothing was asked for".to_owned(), span),
        }
    }

    /// Requests credentials when a refusal may have reasons other than the owner of the address.
    pub(super) async fn try_for_credentials(&mut self) {
        if !matches!(self.steps(true, true).await, Got::Credentials) {
            self.seen.refused += 1;
        }
    }

    async fn steps(&mut self, fresh: bool, further: bool) -> Got {
        if fresh {
            let answer = self.request("PUT", "/latest/api/token", &format!("{TOKEN_TTL}: 600\r\n")).await;
            self.token = (answer.status == 200).then_some(answer.body);
            if self.token.is_none() {
                return Got::Refused { what: "a token", status: answer.status, fresh };
            }
        }
        let sent = self.ledger.now();
        let answer = self.get(ROLES).await;
        if answer.status != 200 {
            self.token = None;
            return Got::Refused { what: "the list of roles", status: answer.status, fresh };
        }
        self.judge_list(&answer, Span { from: sent, to: self.ledger.now() });
        if !further {
            return Got::RoleAlone;
        }
        let (sent, path) = (self.ledger.now(), format!("{ROLES}{}", answer.body));
        let document = self.get(&path).await;
        if document.status != 200 {
            // With this token, the pod was known a moment ago.
            let fresh = fresh || self.ledger.must_be(Span { from: sent, to: self.ledger.now() }) == life_of(&answer.body);
            return match (document.status, life_of(&answer.body)) {
                (500, Some(life)) => Got::Failed { life, fresh },
                (status, _) => Got::Refused { what: "credentials", status, fresh },
            };
        }
        self.keep_key(&document.body, Span { from: sent, to: self.ledger.now() });
        self.polled = Some(path);
        Got::Credentials
    }

    /// Records a violation if the role is not one of the address.
    fn judge_list(&mut self, answer: &Answer, span: Span) {
        let right = life_of(&answer.body).is_some_and(|life| self.ledger.may_be(life, span));
        self.served(span);
        if !right {
            self.violation(format!("the list of roles was {:?}", answer.body), span);
        }
    }

    fn keep_key(&mut self, document: &str, span: Span) {
        self.served(span);
        let document: serde_json::Value = serde_json::from_str(document).unwrap();
        self.seen.keys.push((document["AccessKeyId"].as_str().unwrap().to_owned(), span));
    }

    fn served(&mut self, span: Span) {
        self.seen.served += 1;
        self.seen.had_to_be_served += usize::from(self.ledger.must_be(span).is_some());
    }

    fn was_refused(&mut self, what: &str, status: u16, began: usize) {
        let span = Span { from: began, to: self.ledger.now() };
        self.seen.refused += 1;
        if self.ledger.must_be(span).is_some() {
            self.violation(format!("{what} was refused with {status}"), span);
        }
    }

    fn has_failed(&mut self, life: Life, began: usize) {
        let span = Span { from: began, to: self.ledger.now() };
        self.seen.refused += 1;
        if self.ledger.must_be(span).is_some() {
            self.seen.excused.push((life, format!("credentials were refused with 500\n{}", self.ledger.describe(span))));
        }
    }

    fn violation(&mut self, what: String, span: Span) {
        self.seen.violations.push(format!("{what}\n{}", self.ledger.describe(span)));
    }

    async fn get(&mut self, target: &str) -> Answer {
        let token = format!("{TOKEN}: {}\r\n", self.token.as_deref().unwrap_or_default());
        self.request("GET", target, &token).await
    }

    async fn request(&mut self, method: &str, target: &str, headers: &str) -> Answer {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n");
        loop {
            let kept = self.connection.take().filter(|_| !self.random.one_in(4));
            let was_kept = kept.is_some();
            let (mut stream, made) = match kept {
                Some(kept) => kept,
                None => (self.connect().await, self.ledger.now()),
            };
            match exchange(&mut stream, request.as_bytes()).await {
                // On loopback, a connection outlives the pod that opened it. The daemon refuses it to the next pod.
                Ok(Answer { status: 500, closes: true, .. })
                    if was_kept && self.ledger.must_be(Span { from: made, to: self.ledger.now() }).is_none() => {}
                Ok(answer) => {
                    self.connection = (!answer.closes).then_some((stream, made));
                    return answer;
                }
                // The daemon may close connections that have been idle for long. The client reconnects.
                Err(_) if was_kept => {}
                // It may close connections of an address that no pod is known to have, at any time, but not those of a pod.
                Err(_) => return Answer { status: CLOSED, body: String::new(), closes: true },
            }
        }
    }

    async fn connect(&self) -> TcpStream {
        connect(self.ip, self.daemon).await
    }
}

pub(super) async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    let stream = socket.connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // Thousands of closed connections would use up the ports of the address, so they end with a reset.
    stream.set_zero_linger().unwrap();
    stream
}

pub(super) async fn exchange(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<Answer> {
    stream.write_all(request).await?;
    let mut bytes = Vec::with_capacity(2048);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
        if body.len() == length.unwrap_or(0) {
            let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap();
            let closes = head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
            return Ok(Answer { status, body: body.to_owned(), closes });
        }
    }
}

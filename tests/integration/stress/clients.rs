//! Who asks: one client at each address, all the while, over connections that are kept or not.

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
    /// How often those that ask by themselves may ask, all together; closed at the end.
    turns: Arc<Semaphore>,
    asking: Vec<JoinHandle<()>>,
    /// How often credentials were asked for that had to be had.
    pub(super) owed: usize,
}

impl Clients {
    /// The first so many ask by themselves, when they may.
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

    /// So many more may ask.
    pub(super) fn allow(&self, turns: usize) {
        self.turns.add_permits(turns);
    }

    pub(super) fn wait_for_turns(&self, world: &World) {
        wait(world, || self.turns.available_permits() == 0, || "clients do not get their answers".to_owned());
    }

    /// Has the clients of these addresses ask once.
    pub(super) fn ask(&self, world: &World, slots: &[usize]) {
        world.fakes.runtime.block_on(join_all(slots.iter().map(|slot| async { self.all[*slot].lock().await.ask().await })));
    }

    /// Has the clients of these addresses get credentials. Each address is one pod's, beyond doubt.
    pub(super) fn get_credentials(&mut self, world: &World, slots: &[usize]) {
        self.owed += slots.len();
        for slots in slots.chunks(AT_ONCE) {
            let get = slots.iter().map(|slot| async { self.all[*slot].lock().await.get_credentials().await });
            world.fakes.runtime.block_on(join_all(get));
        }
    }

    /// What all of them have seen, each with its ledger, when they have stopped.
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

/// One in so many lists of roles is followed by a request for the credentials.
const CREDENTIALS_OF: u64 = 16;
/// How often credentials that are due are tried for.
const MOST_TRIES: usize = 300;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// How many clients get credentials at one time.
const AT_ONCE: usize = 16;

/// One address, and who asks from there.
pub(super) struct Client {
    ip: IpAddr,
    daemon: SocketAddr,
    ledger: Arc<Ledger>,
    random: Random,
    /// A connection that is kept, and the moment at which it was made.
    connection: Option<(TcpStream, usize)>,
    token: Option<String>,
    seen: Seen,
}

/// What a client found.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Role lists and credentials that were answered.
    pub(super) served: usize,
    /// Of them: those that had to be.
    pub(super) had_to_be_served: usize,
    /// Those that were refused, when there was nobody or a doubt.
    pub(super) refused: usize,
    /// Credentials that were asked for because they had to be had, and were.
    pub(super) paid: usize,
    /// Access keys that were handed out, to be judged when it is known whose they are.
    pub(super) keys: Vec<(String, Span)>,
    /// Whose credentials STS must have failed to give, as nothing else can excuse that they were refused; and what it is if not.
    pub(super) excused: Vec<(Life, String)>,
    pub(super) violations: Vec<String>,
}

pub(super) struct Answer {
    /// [`CLOSED`] where the connection ended instead.
    pub(super) status: u16,
    pub(super) body: String,
    /// The daemon closes the connection after it.
    pub(super) closes: bool,
}

const CLOSED: u16 = 0;

/// What became of one request for credentials, from its first step on.
enum Got {
    Credentials,
    /// What was refused, with which status, by a token that was made for it or not.
    Refused {
        what: &'static str,
        status: u16,
        fresh: bool,
    },
    /// Credentials of this pod were answered with 500: STS failed, or the pod changed while it was asked.
    Failed {
        life: Life,
        fresh: bool,
    },
    /// Nothing more was asked for.
    RoleAlone,
}

/// Whose a role is: each pod has its own, by its number, some several.
pub(super) fn life_of(role: &str) -> Option<Life> {
    role.strip_prefix("r-")?.split('-').next()?.parse().ok()
}

impl Client {
    pub(super) fn new(ip: IpAddr, daemon: SocketAddr, ledger: Arc<Ledger>, random: Random) -> Self {
        Self { ip, daemon, ledger, random, connection: None, token: None, seen: Seen::default() }
    }

    /// What an SDK does: a token, the role, sometimes its credentials. A token may be an old one, also the last pod's.
    /// A refusal is wrong where the address was one pod's beyond doubt since before the token was asked for.
    async fn ask(&mut self) {
        let began = self.ledger.now();
        let fresh = self.token.is_none() || self.random.one_in(3);
        let further = self.random.one_in(CREDENTIALS_OF);
        match self.steps(fresh, further).await {
            Got::Refused { what, status, fresh: true } => self.was_refused(what, status, began),
            Got::Failed { life, fresh: true } => self.has_failed(life, began),
            _ => {}
        }
    }

    /// The same with all steps, where the address is one pod's beyond doubt, and will be until this has returned. Where STS
    /// fails, it is tried again, as SDKs do: a call may take longer than the daemon allows it, on a slow machine.
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

    /// The same where the address is one pod's beyond doubt, and no answer of STS is for its role: it gets none of them.
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

    /// The same where a refusal may be right for other reasons than who has the address.
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
        let sent = self.ledger.now();
        let document = self.get(&format!("{ROLES}{}", answer.body)).await;
        if document.status != 200 {
            // With this token the pod was known a moment ago.
            let fresh = fresh || self.ledger.must_be(Span { from: sent, to: self.ledger.now() }) == life_of(&answer.body);
            return match (document.status, life_of(&answer.body)) {
                (500, Some(life)) => Got::Failed { life, fresh },
                (status, _) => Got::Refused { what: "credentials", status, fresh },
            };
        }
        self.keep_key(&document.body, Span { from: sent, to: self.ledger.now() });
        Got::Credentials
    }

    /// A role that is not one of the address is a violation.
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
                // On loopback, a connection outlives the pod that made it. The daemon refuses it to the next pod.
                Ok(Answer { status: 500, closes: true, .. })
                    if was_kept && self.ledger.must_be(Span { from: made, to: self.ledger.now() }).is_none() => {}
                Ok(answer) => {
                    self.connection = (!answer.closes).then_some((stream, made));
                    return answer;
                }
                // The daemon closes connections that were quiet for long, as it may: a client asks again on another.
                Err(_) if was_kept => {}
                // It may close those of an address that no pod is known to have at any time. Those of a pod it may not.
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
    // Thousands of closed connections would use up the ports of the address: they end with a reset.
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

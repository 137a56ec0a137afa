//! Who asks: one client at each address, all the while, over connections that are kept or not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::Random;
use super::ledger::{Ledger, Life, Span};
use crate::world::{ROLES, TOKEN, TOKEN_TTL};

/// One in so many lists of roles is followed by a request for the credentials.
const CREDENTIALS_OF: u64 = 16;

/// One address, and who asks from there.
pub(super) struct Client {
    pub(super) ip: IpAddr,
    pub(super) daemon: SocketAddr,
    pub(super) ledger: Arc<Ledger>,
    /// How often all clients together may ask; closed at the end.
    pub(super) turns: Arc<Semaphore>,
    pub(super) random: Random,
    pub(super) connection: Option<TcpStream>,
    pub(super) token: Option<String>,
    pub(super) seen: Seen,
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
    /// Requests whose answer is STS's, which is not what is tried here.
    pub(super) failed: usize,
    /// Access keys that were handed out, to be judged when it is known whose they are.
    pub(super) keys: Vec<(String, Span)>,
    pub(super) violations: Vec<String>,
}

struct Answer {
    status: u16,
    body: String,
}

impl Client {
    pub(super) async fn run(mut self) -> Self {
        while let Ok(turn) = self.turns.clone().acquire_owned().await {
            turn.forget();
            self.ask().await;
        }
        self
    }

    /// What an SDK does: a token, the role, sometimes its credentials. A token may be an old one, also the last pod's.
    pub(super) async fn ask(&mut self) {
        let began = self.ledger.now();
        let fresh = self.token.is_none() || self.random.one_in(3);
        if fresh {
            let answer = self.request("PUT", "/latest/api/token", &format!("{TOKEN_TTL}: 600\r\n")).await;
            self.token = (answer.status == 200).then_some(answer.body);
            if self.token.is_none() {
                return self.was_refused("a token", answer.status, began);
            }
        }
        let sent = self.ledger.now();
        let answer = self.get(ROLES).await;
        let Some(life) = self.judge_list(&answer, Span { from: sent, to: self.ledger.now() }) else {
            self.token = None;
            if fresh {
                self.was_refused("the list of roles", answer.status, began);
            }
            return;
        };
        if self.random.one_in(CREDENTIALS_OF) {
            let sent = self.ledger.now();
            let answer = self.get(&format!("{ROLES}r-{life}")).await;
            let span = Span { from: sent, to: self.ledger.now() };
            match answer.status {
                200 => self.keep_key(&answer.body, span),
                500.. => self.seen.failed += 1,
                status if fresh => self.was_refused("credentials", status, began),
                _ => {}
            }
        }
    }

    /// Whose role it is; a role that is not one of the address is a violation.
    fn judge_list(&mut self, answer: &Answer, span: Span) -> Option<Life> {
        if answer.status != 200 {
            return None;
        }
        let life = answer.body.strip_prefix("r-").and_then(|life| life.parse().ok());
        let right = life.is_some_and(|life| self.ledger.may_be(life, span));
        self.served(span);
        if !right {
            self.violation(format!("the list of roles was {:?}", answer.body), span);
        }
        life
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

    /// A refusal is wrong where the address was one pod's beyond doubt since before the token was asked for.
    fn was_refused(&mut self, what: &str, status: u16, began: usize) {
        let span = Span { from: began, to: self.ledger.now() };
        self.seen.refused += 1;
        if self.ledger.must_be(span).is_some() {
            self.violation(format!("{what} was refused with {status}"), span);
        }
    }

    fn violation(&mut self, what: String, span: Span) {
        self.seen.violations.push(format!("{}: {what}\n{}", self.ip, self.ledger.describe(span)));
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
            let mut stream = match kept {
                Some(stream) => stream,
                None => self.connect().await,
            };
            match exchange(&mut stream, request.as_bytes()).await {
                Ok(answer) => {
                    self.connection = Some(stream);
                    return answer;
                }
                // The daemon closes connections that were quiet for long, as it may: a client asks again on another.
                Err(_) if was_kept => {}
                Err(error) => panic!("{method} {target} from {}: {error}", self.ip),
            }
        }
    }

    async fn connect(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(self.ip, 0)).unwrap();
        let stream = socket.connect(self.daemon).await.unwrap();
        stream.set_nodelay(true).unwrap();
        // Thousands of closed connections would use up the ports of the address: they end with a reset.
        stream.set_zero_linger().unwrap();
        stream
    }
}

async fn exchange(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<Answer> {
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
            return Ok(Answer { status, body: body.to_owned() });
        }
    }
}

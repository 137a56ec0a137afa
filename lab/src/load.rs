//! Clients that request their credentials continuously and tolerate no error: every connection that is refused, reset or closed
//! without an answer counts as a failure, and so does every wrong answer.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;

/// The path of a pod's credentials.
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// The number of requests with one session token before the client requests another. A token is thus also presented to a daemon
/// that started meanwhile.
const REQUESTS_OF_TOKEN: usize = 100;
/// The number of requests on a kept connection.
const REQUESTS_OF_CONNECTION: usize = 100;
/// The maximum number of failures whose description is kept.
const MAX_SHOWN: usize = 20;

/// Whether a client opens a connection for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One connection for each request.
    New,
    /// One connection until the other side sends `Connection: close`, or for a hundred requests.
    Kept,
}

/// Clients that run until [`Load::finish`].
#[derive(Debug, Default)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    answered: AtomicUsize,
    tally: Mutex<Tally>,
}

/// The outcome of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were answered correctly.
    pub answered: usize,
    /// Connections that were established.
    pub connections: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Descriptions of the first failures.
    pub failures: Vec<String>,
    /// Each access key ID that was issued, with the role of the client that got it.
    pub keys: BTreeSet<(String, String)>,
}

impl Load {
    /// Starts a client whose pod has `role` on a thread of its own, with connections made by `connect`. If it is called inside
    /// a network namespace, the client stays inside.
    pub fn start(&mut self, role: &str, connections: Connections, connect: impl Fn() -> io::Result<TcpStream> + Send + 'static) {
        self.clients.push(self.starter()(role, connections, Box::new(connect)));
    }

    /// Returns a function that starts a client elsewhere (on a thread in a namespace). Its handle is for [`Load::add`].
    pub fn starter(&self) -> impl Fn(&str, Connections, Connect) -> JoinHandle<()> + Send + 'static {
        let shared = self.shared.clone();
        move |role, connections, connect| {
            let (shared, role) = (shared.clone(), role.to_owned());
            std::thread::spawn(move || Client { role, connections, connect, bearer: None, token: String::new(), asked: 0 }.run(&shared))
        }
    }

    /// Starts a client that requests its credentials with a service account token (Pod Identity) from this host, on a thread of its own.
    pub fn start_with_token(
        &mut self,
        role: &str,
        connections: Connections,
        bearer: ServiceAccountToken,
        connect: impl Fn() -> io::Result<TcpStream> + Send + 'static,
    ) {
        let (shared, role) = (self.shared.clone(), role.to_owned());
        let (connect, bearer, token): (Connect, _, _) = (Box::new(connect), Some(bearer), String::new());
        let client = Client { role, connections, connect, bearer, token, asked: 0 };
        self.clients.push(std::thread::spawn(move || client.run(&shared)));
    }

    /// Adds a client.
    pub fn add(&mut self, client: JoinHandle<()>) {
        self.clients.push(client);
    }

    /// The number of requests answered correctly so far.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Waits until this many more requests have been answered correctly.
    ///
    /// # Panics
    /// If a client failed or has ended.
    pub fn wait_for_more(&self, more: usize) {
        let wanted = self.answered() + more;
        while self.answered() < wanted {
            assert!(self.clients.iter().all(|client| !client.is_finished()), "a client has ended");
            assert_eq!(self.tally().failures, Vec::<String>::new(), "after {} answers", self.answered());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// The outcome of the requests so far.
    pub fn tally(&self) -> Tally {
        self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the clients, each after its current request, and returns the outcome.
    ///
    /// # Panics
    /// If a client panicked.
    pub fn finish(self) -> Tally {
        self.shared.over.store(true, Ordering::SeqCst);
        for client in self.clients {
            if let Err(panic) = client.join() {
                std::panic::resume_unwind(panic);
            }
        }
        let mut tally = self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tally.answered = self.shared.answered.load(Ordering::SeqCst);
        tally
    }
}

/// How a client connects.
pub type Connect = Box<dyn Fn() -> io::Result<TcpStream> + Send>;

/// What a client of Pod Identity sends.
#[derive(Clone, Debug)]
pub struct ServiceAccountToken {
    /// The value of the header `Host`.
    pub host: String,
    /// The token.
    pub token: String,
}

struct Client {
    role: String,
    connections: Connections,
    connect: Connect,
    /// The client sends this token; otherwise, it uses the metadata service.
    bearer: Option<ServiceAccountToken>,
    token: String,
    asked: usize,
}

impl Client {
    fn run(mut self, shared: &Shared) {
        let is_over = || shared.over.load(Ordering::SeqCst);
        let note = |note: &mut dyn FnMut(&mut Tally)| note(&mut shared.tally.lock().unwrap_or_else(PoisonError::into_inner));
        while !is_over() {
            note(&mut |tally| tally.connections += 1);
            if let Err(error) = self.connection(shared) {
                note(&mut |tally| {
                    tally.failed += 1;
                    if tally.failures.len() < MAX_SHOWN {
                        tally.failures.push(format!("{}, after {} requests: {error}", self.role, self.asked));
                    }
                });
            }
        }
    }

    fn connection(&mut self, shared: &Shared) -> io::Result<()> {
        let mut stream = (self.connect)()?;
        let most = if self.connections == Connections::New { 1 } else { REQUESTS_OF_CONNECTION };
        for _ in 0..most {
            let closes = if let Some(ServiceAccountToken { host, token }) = &self.bearer {
                let head = format!("GET /v1/credentials HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\n\r\n");
                let (body, closes) = exchange(&mut stream, &head)?;
                self.issued(&body, |_| true, shared)?;
                closes
            } else if self.asked.is_multiple_of(REQUESTS_OF_TOKEN) {
                let head = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
                let (body, closes) = exchange(&mut stream, head)?;
                self.token = body;
                closes
            } else {
                let (role, token) = (&self.role, &self.token);
                let head = format!("GET {ROLES}{role} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
                let (body, closes) = exchange(&mut stream, &head)?;
                self.issued(&body, |document| document["Code"] == "Success", shared)?;
                closes
            };
            self.asked += 1;
            shared.answered.fetch_add(1, Ordering::SeqCst);
            if closes || shared.over.load(Ordering::SeqCst) {
                break;
            }
        }
        Ok(())
    }
}

impl Client {
    /// Notes the key in a document that is as it should be.
    fn issued(&self, body: &str, is_good: impl Fn(&Value) -> bool, shared: &Shared) -> io::Result<()> {
        let document: Value = serde_json::from_str(body).map_err(io::Error::other)?;
        let key = document["AccessKeyId"].as_str().filter(|_| is_good(&document));
        let key = key.ok_or_else(|| io::Error::other("the document has no credentials"))?.to_owned();
        shared.tally.lock().unwrap_or_else(PoisonError::into_inner).keys.insert((key, self.role.clone()));
        Ok(())
    }
}

/// Sends one request on an open connection. Returns the body of the answer, and whether the other side closes the connection
/// afterwards.
fn exchange(stream: &mut TcpStream, head: &str) -> io::Result<(String, bool)> {
    stream.write_all(head.as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk)? {
            0 => return Err(io::Error::other(format!("closed after {} bytes of an answer", answer.len()))),
            count => answer.extend_from_slice(&chunk[..count]),
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if length.is_some_and(|length| body.len() >= length) {
            if !head.starts_with("HTTP/1.1 200 ") {
                return Err(io::Error::other(head.to_owned()));
            }
            return Ok((body.to_owned(), lower.contains("connection: close")));
        }
    }
}

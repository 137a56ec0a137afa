//! One request of a pod: the curl command that a person can repeat, and its answer.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use http::StatusCode;
use rolegate_lab::node::PodNs;
use rolegate_lab::player::{self, PlayLimits};
use serde_json::Value;

/// The timeout of a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// The number of characters of a secret that are shown.
const SHOWN: usize = 14;
/// The fields of a credential document that must not be shown in full.
const SECRET: [&str; 2] = ["SecretAccessKey", "Token"];

/// A pod, or a client that is not a pod.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The pod's name: `namespace/name`.
    pub(crate) name: String,
    /// Its address.
    pub(crate) ip: Ipv4Addr,
    /// The pod's network namespace. Without one, it is an address of the loopback interface.
    pub(crate) ns: Option<PodNs>,
}

/// A request, as it is sent and as a curl command.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pod: &'a Pod,
    method: &'static str,
    path: String,
    header: Option<(&'static str, String)>,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status, or why there is none.
    pub(crate) status: Result<u16, std::io::Error>,
    /// The body.
    pub(crate) body: String,
    /// All bytes of the answer.
    pub(crate) raw: Vec<u8>,
}

impl Pod {
    /// Returns the prefix of a command that runs it in the pod's place.
    pub(crate) fn enter(&self) -> String {
        self.ns.as_ref().map_or_else(super::stage::enter_own_namespace, |ns| ns.enter())
    }

    /// Returns `curl` in the pod's place.
    pub(crate) fn curl(&self) -> String {
        let enter = self.enter();
        let curl = if self.ns.is_some() { "curl".to_owned() } else { format!("curl --interface {}", self.ip) };
        if enter.is_empty() { curl } else { format!("{enter} {curl}") }
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        match &self.ns {
            Some(ns) => ns.connect(to, CONNECT),
            None => {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
                socket.bind(&SocketAddr::from((self.ip, 0)).into())?;
                socket.connect_timeout(&to.into(), CONNECT)?;
                Ok(socket.into())
            }
        }
    }
}

impl<'a> Ask<'a> {
    /// Creates a request for a session token.
    pub(crate) fn token(pod: &'a Pod) -> Ask<'a> {
        let header = ("X-aws-ec2-metadata-token-ttl-seconds", "21600".to_owned());
        Ask { pod, method: "PUT", path: "/latest/api/token".to_owned(), header: Some(header) }
    }

    /// Creates any other request, without a token.
    pub(crate) fn get(pod: &'a Pod, path: impl Into<String>) -> Ask<'a> {
        Ask { pod, method: "GET", path: path.into(), header: None }
    }

    /// Adds this token, which is `$TOKEN` in the shell.
    pub(crate) fn with(mut self, token: &str) -> Ask<'a> {
        self.header = Some(("X-aws-ec2-metadata-token", token.to_owned()));
        self
    }

    /// Returns the curl command. With `capture`, it stores the answer in the shell's `$TOKEN` instead of showing it with its
    /// status.
    pub(crate) fn command(&self, to: SocketAddr, capture: bool) -> Vec<String> {
        let mut words: Vec<String> = self.pod.curl().split(' ').map(str::to_owned).collect();
        words.push(if capture { "-s" } else { "-si" }.to_owned());
        if self.method != "GET" {
            words.push(format!("-X {}", self.method));
        }
        match &self.header {
            Some((name, _)) if self.method == "GET" => words.push(format!("-H \"{name}: $TOKEN\"")),
            Some((name, value)) => words.push(format!("-H '{name}: {value}'")),
            None => {}
        }
        if self.path.starts_with("//") {
            words.push("--path-as-is".to_owned());
        }
        words.push(format!("http://{}{}", authority(to), self.path));
        if capture && let [first, .., last] = words.as_mut_slice() {
            *first = format!("TOKEN=$({first}");
            last.push(')');
        }
        words
    }

    /// Sends the request.
    pub(crate) fn send(&self, to: SocketAddr) -> Answer {
        let header = self.header.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
        let host = authority(to);
        let bytes = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n{header}Connection: close\r\n\r\n", self.method, self.path);
        let played = self.pod.connect(to).and_then(|stream| player::play(stream, bytes.as_bytes(), PlayLimits::default()));
        match played {
            Ok(mut transcript) => match transcript.responses.pop() {
                Some(response) => Answer { status: Ok(response.status), body: response.text(), raw: transcript.raw },
                None => Answer { status: Err(ErrorKind::UnexpectedEof.into()), body: String::new(), raw: transcript.raw },
            },
            Err(error) => Answer { status: Err(error), body: String::new(), raw: Vec::new() },
        }
    }
}

impl Answer {
    /// Returns whether the status is 200.
    pub(crate) fn is_ok(&self) -> bool {
        matches!(self.status, Ok(200))
    }

    /// Returns whether the answer is this status and nothing else.
    pub(crate) fn is_bare(&self, status: u16) -> bool {
        matches!(self.status, Ok(answered) if answered == status) && self.body.is_empty()
    }

    /// Returns whether the answer is this status and its name, such as "Unauthorized", and nothing else.
    pub(crate) fn names_only(&self, status: u16, name: &str) -> bool {
        matches!(self.status, Ok(answered) if answered == status) && self.body.trim_end() == name
    }

    /// Returns whether nothing listens.
    pub(crate) fn was_refused(&self) -> bool {
        matches!(&self.status, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
    }

    /// Returns a field of the credential document.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        serde_json::from_str::<Value>(&self.body).ok()?.get(name)?.as_str().map(str::to_owned)
    }

    /// Returns the answer for a person to read, with shortened secrets.
    pub(crate) fn shown(&self) -> String {
        let status = match &self.status {
            Ok(code) => StatusCode::from_u16(*code).map_or_else(|_| code.to_string(), |status| status.to_string()),
            Err(error) => format!("no answer: {error}"),
        };
        if self.body.is_empty() {
            return if self.status.is_ok() { format!("{status}, empty body") } else { status };
        }
        format!("{status}\n{}", document(&self.body).unwrap_or_else(|| self.body.clone()))
    }
}

/// Returns the first characters of a secret.
pub(crate) fn shortened(secret: &str) -> String {
    format!("{}...", secret.chars().take(SHOWN).collect::<String>())
}

/// Returns a credential document with shortened secrets.
fn document(body: &str) -> Option<String> {
    let mut document: Value = serde_json::from_str(body).ok()?;
    for name in SECRET {
        let field = document.get_mut(name)?;
        *field = shortened(field.as_str()?).into();
    }
    serde_json::to_string_pretty(&document).ok()
}

/// Returns the authority for a URL and for `Host`.
pub(crate) fn authority(to: SocketAddr) -> String {
    if to.port() == 80 { to.ip().to_string() } else { to.to_string() }
}

//! HTTP/1.1 parsed by hand, so that a test sees exactly what a client sent.
//!
//! Bodies are not read: their bytes are parsed as the next request. A client that sends none, which is all that is needed here,
//! does not notice; a proxy that forwards a pod's body is detected.

use std::fmt::Write as _;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::answer::Answer;
use super::state::{ImdsBehaviour, ImdsRequest, State};

/// The maximum size of a request's head, in bytes.
const LONGEST_HEAD: usize = 64 * 1024;

/// Serves one connection until either side closes it.
pub(super) async fn connection(state: Arc<State>, mut stream: TcpStream, peer: SocketAddr) {
    let mut unread = Vec::new();
    while let Some(head) = next_head(&mut stream, &mut unread).await {
        let (request, readable) = parse(&head, peer);
        let http11 = request.version == "HTTP/1.1";
        let asks_to_close = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let is_head = request.method == "HEAD";
        let Some(answer) = state.take(request, readable).await else {
            return;
        };
        let keep = readable && http11 && !asks_to_close;
        let bytes = answer.bytes(keep, is_head);
        if stream.write_all(&bytes).await.is_err() || !keep {
            break;
        }
    }
    // The other side may already have gone.
    let _ = stream.shutdown().await;
}

impl State {
    /// Records a request and answers it; `None` closes the connection.
    async fn take(&self, mut request: ImdsRequest, readable: bool) -> Option<Answer> {
        let (index, behaviour, answer) = {
            let mut known = self.lock();
            request.had_valid_token = known.has_valid_token(&request);
            let behaviour = known.behaviour.clone();
            let answer = match behaviour {
                ImdsBehaviour::Status(status) => Answer::empty(status),
                ImdsBehaviour::Hang | ImdsBehaviour::Close => Answer::empty(0),
                _ if !readable => Answer::page(400, "Bad Request"),
                _ => known.answer(&request),
            };
            known.requests.push(request);
            (known.requests.len() - 1, behaviour, answer)
        };
        self.changed.send_replace(());
        match behaviour {
            ImdsBehaviour::Hang => pending().await,
            ImdsBehaviour::Close => return None,
            ImdsBehaviour::Slow(delay) => tokio::time::sleep(delay).await,
            ImdsBehaviour::Normal | ImdsBehaviour::Status(_) => {}
        }
        self.lock().requests[index].status = answer.status;
        Some(answer)
    }
}

impl Answer {
    fn bytes(&self, keep: bool, is_head: bool) -> Vec<u8> {
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown");
        let date = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut head = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nDate: {}\r\nServer: EC2ws\r\n",
            self.status,
            self.content_type,
            self.body.len(),
            date.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        );
        for (name, value) in &self.headers {
            // Writing to a String cannot fail.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if !keep {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !is_head {
            bytes.extend_from_slice(self.body.as_bytes());
        }
        bytes
    }
}

/// Reads up to the next empty line, and returns the bytes before it; `None` at the end of the connection.
async fn next_head(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    loop {
        // Empty lines between requests are allowed (RFC 9112, section 2.2).
        while unread.starts_with(b"\r\n") {
            unread.drain(..2);
        }
        let end = unread.windows(END.len()).position(|window| window == END);
        if let Some(end) = end {
            let rest = unread.split_off(end + END.len());
            let mut head = std::mem::replace(unread, rest);
            head.truncate(end);
            return Some(head);
        }
        if unread.len() > LONGEST_HEAD {
            return None;
        }
        let read = stream.read_buf(unread).await.ok()?;
        if read == 0 {
            return None;
        }
    }
}

/// Returns the request, and whether it could be parsed completely.
fn parse(head: &[u8], peer: SocketAddr) -> (ImdsRequest, bool) {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let words: Vec<&str> = first.split(' ').collect();
    let (method, target, version, mut readable) = match words[..] {
        [method, target, version] => {
            let readable = matches!(version, "HTTP/1.1" | "HTTP/1.0");
            (method, target, version, readable)
        }
        _ => (first, "", "", false),
    };
    let mut headers = Vec::new();
    for line in lines {
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => {
                readable = false;
                headers.push((line.to_owned(), String::new()));
            }
        }
    }
    let request = ImdsRequest {
        method: method.to_owned(),
        target: target.to_owned(),
        version: version.to_owned(),
        headers,
        had_valid_token: false,
        peer,
        status: 0,
    };
    (request, readable)
}

//! Sending bytes and waiting for what comes back.

use std::borrow::Borrow;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::answer::{self, Response};

/// More than this is not read: no answer of the metadata protocol is near it.
const RAW_MAX: usize = 8 << 20;
/// What [`request`] says in `Host` unless told otherwise.
const HOST: &str = "169.254.169.254";

/// When to stop listening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlayLimits {
    /// How many answers are awaited. One more is noticed.
    pub max_responses: usize,
    /// How long they may take, all together.
    pub answer: Duration,
    /// How long to listen for more when they are here, and for the end of the connection when they are not and our
    /// side of it was ended.
    pub quiet: Duration,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// Every byte.
    pub raw: Vec<u8>,
    /// The whole answers in them, without interim ones.
    pub responses: Vec<Response>,
    /// The bytes after the last whole answer: part of one, or something that is not HTTP.
    pub rest: Vec<u8>,
    /// The server closed the connection, by itself.
    pub closed: bool,
    /// Too few answers came in time, so that we ended our side of the connection, and then the server closed it: it
    /// had been waiting for the rest of a request.
    pub closed_after_our_end: bool,
}

impl Default for PlayLimits {
    /// One answer within five seconds, then a tenth of a second of quiet.
    fn default() -> Self {
        Self { max_responses: 1, answer: Duration::from_secs(5), quiet: Duration::from_millis(100) }
    }
}

impl PlayLimits {
    /// The defaults, for a number of answers ([`Entry::max_responses`](super::Entry::max_responses)).
    pub fn answers(max_responses: usize) -> Self {
        Self { max_responses, ..Self::default() }
    }
}

/// Writes `bytes` and reads until the server closes, one answer too many is here, or nothing more comes. A server that
/// closes before it has read everything is no error.
///
/// # Errors
/// If the stream fails in any other way than by being closed.
pub fn play(stream: impl Borrow<TcpStream>, bytes: &[u8], limits: PlayLimits) -> io::Result<Transcript> {
    let mut stream = stream.borrow();
    let methods = answer::methods(bytes);
    let mut deadline = Instant::now() + limits.answer;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(limits.answer.max(Duration::from_millis(1))))?;
    match stream.write_all(bytes) {
        Err(error) if !is_close(&error) && !is_timeout(&error) => return Err(error),
        _ => {}
    }
    let mut raw = Vec::new();
    let (mut closed, mut ended, mut settled) = (false, false, false);
    let (responses, consumed) = loop {
        let (responses, consumed) = answer::responses(&raw, &methods, closed);
        if closed || responses.len() > limits.max_responses || raw.len() > RAW_MAX {
            break (responses, consumed);
        }
        if responses.len() == limits.max_responses && !settled {
            settled = true;
            deadline = Instant::now() + limits.quiet;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if settled || ended {
                break (responses, consumed);
            }
            ended = true;
            deadline = Instant::now() + limits.quiet;
            match stream.shutdown(Shutdown::Write) {
                Err(error) if error.kind() != ErrorKind::NotConnected => return Err(error),
                _ => continue,
            }
        }
        closed = read_some(stream, left, &mut raw)?;
    };
    Ok(Transcript { rest: raw[consumed..].to_vec(), raw, responses, closed: closed && !ended, closed_after_our_end: closed && ended })
}

/// Sends one request without a body and returns its answer; the connection can be used again. `Host` is the metadata
/// address unless `headers` has another.
///
/// # Errors
/// If no whole answer comes within ten seconds, or something comes that is not exactly one.
pub fn request(stream: impl Borrow<TcpStream>, method: &str, target: &str, headers: &[(&str, &str)]) -> io::Result<Response> {
    let host = [("Host", HOST)];
    let default = if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) { &[][..] } else { &host };
    let lines: String = default.iter().chain(headers).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut stream = stream.borrow();
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{method} {target} HTTP/1.1\r\n{lines}\r\n").as_bytes())?;

    let methods = [method.to_owned()];
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut raw = Vec::new();
    let mut closed = false;
    loop {
        let (mut responses, consumed) = answer::responses(&raw, &methods, closed);
        if responses.len() > 1 || (!responses.is_empty() && consumed < raw.len()) {
            return Err(io::Error::new(ErrorKind::InvalidData, "more came than one answer"));
        }
        if let Some(response) = responses.pop() {
            return Ok(response);
        }
        if closed {
            let seen = String::from_utf8_lossy(&raw).into_owned();
            return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("closed without a whole answer: {seen:?}")));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || raw.len() > RAW_MAX {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("no whole answer to {method} {target}")));
        }
        closed = read_some(stream, left, &mut raw)?;
    }
}

/// Reads what is here, or waits for it. `true`: the server closed the connection.
fn read_some(mut stream: &TcpStream, patience: Duration, raw: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
    match stream.read(&mut buffer) {
        Ok(0) => Ok(true),
        Ok(length) => {
            raw.extend_from_slice(&buffer[..length]);
            Ok(false)
        }
        Err(error) if is_close(&error) => Ok(true),
        Err(error) if is_timeout(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_close(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

//! Sends bytes, and waits for the answers.

use std::borrow::Borrow;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::answer::{self, Response};

/// The maximum number of bytes that are read. No answer of the metadata protocol is nearly as large.
const RAW_MAX: usize = 8 << 20;
/// The `Host` header of [`request`] by default.
const HOST: &str = "169.254.169.254";

/// When to stop reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlayLimits {
    /// The number of answers to wait for. One more is detected.
    pub max_responses: usize,
    /// The time for all answers together.
    pub answer: Duration,
    /// How long to wait for more once all answers have arrived, or for the end of the connection if they have not and we have
    /// closed our side.
    pub quiet: Duration,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// All bytes.
    pub raw: Vec<u8>,
    /// The complete answers in these bytes, without interim ones.
    pub responses: Vec<Response>,
    /// The bytes after the last complete answer: part of an answer, or something that is not HTTP.
    pub rest: Vec<u8>,
    /// Whether the server closed the connection by itself.
    pub closed: bool,
    /// Whether the server closed the connection only after we closed our side, because too few answers arrived in time: it had
    /// been waiting for the rest of a request.
    pub closed_after_our_end: bool,
}

impl Default for PlayLimits {
    /// Allows one answer within five seconds, then a tenth of a second of quiet.
    fn default() -> Self {
        Self { max_responses: 1, answer: Duration::from_secs(5), quiet: Duration::from_millis(100) }
    }
}

impl PlayLimits {
    /// Returns the defaults for a number of answers ([`Entry::max_responses`](super::Entry::max_responses)).
    pub fn answers(max_responses: usize) -> Self {
        Self { max_responses, ..Self::default() }
    }
}

/// Writes `bytes`, and reads until the server closes the connection, one answer too many arrives, or nothing more comes. It is
/// no error if the server closes before it has read everything.
///
/// # Errors
/// If the stream fails in any way other than by being closed.
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

/// Sends one request without a body, and returns its answer. The connection can be used again. `Host` is the metadata address
/// unless `headers` contains another.
///
/// # Errors
/// If no complete answer arrives within ten seconds, or if the answer is not exactly one.
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

/// Reads what has arrived, or waits for it. Returns `true` if the server closed the connection.
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

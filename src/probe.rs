//! `rolegate probe`: the kubelet's probes of the daemon in the same pod, over a Unix socket.
//!
//! While two daemons on a node overlap, only one of them has the metrics port, so an HTTP probe could reach the wrong daemon.

use std::borrow::Cow;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::advice::Advise;
use crate::config::probe::ProbeQuestion;

/// The timeout of each part of the exchange. The kubelet's own timeout is 1 second by default and 3 seconds in the manifests of
/// this repository.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum size of an answer, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// Nothing answers on the socket.
    #[error("no daemon answers at {0}")]
    Unreachable(PathBuf, #[source] io::Error),
    /// The daemon accepts the connection and does not answer in time.
    #[error("the daemon at {0} did not answer within {seconds} seconds", seconds = TIMEOUT.as_secs())]
    Silent(PathBuf),
    /// The answer is not HTTP.
    #[error("the process that answers at {0} is not a rolegate daemon")]
    Odd(PathBuf),
}

impl Advise for ProbeError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Unreachable(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("run the command as the daemon's user".into())
            }
            Self::Unreachable(..) => Some("give --probe-socket the path that the daemon was started with".into()),
            Self::Silent(_) | Self::Odd(_) => None,
        }
    }
}

/// The daemon's answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProbeAnswer {
    /// Whether the daemon is ready or, for a liveness probe, alive.
    pub good: bool,
    /// The text of the answer.
    pub text: String,
}

/// Sends a probe to the daemon behind this socket.
pub(crate) fn ask(socket: &Path, question: ProbeQuestion) -> Result<ProbeAnswer, ProbeError> {
    let text = exchange(socket, question.path()).map_err(|error| match error.kind() {
        // What the end of a socket's time is called depends on the system.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ProbeError::Silent(socket.to_owned()),
        _ => ProbeError::Unreachable(socket.to_owned(), error),
    })?;
    read(&text).ok_or_else(|| ProbeError::Odd(socket.to_owned()))
}

fn exchange(socket: &Path, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn read(answer: &str) -> Option<ProbeAnswer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse::<u16>().ok()?;
    Some(ProbeAnswer { good: status == 200, text: body.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_status_200_is_good() {
        let answer = |text: &str| read(text).map(|answer| (answer.good, answer.text));
        assert_eq!(answer("HTTP/1.1 200 OK\r\na: b\r\n\r\nready\n"), Some((true, "ready".to_owned())));
        let waiting = "HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for: the packet rule\n";
        assert_eq!(answer(waiting), Some((false, "waiting for: the packet rule".to_owned())));
        for odd in ["", "\r\n\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 \r\n\r\n", "HTTP/1.1 200 OK\r\n"] {
            assert_eq!(answer(odd), None, "{odd:?}");
        }
    }
}

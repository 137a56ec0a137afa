//! `rolegate probe`: the kubelet's questions to the daemon of its own pod, over a Unix socket.
//!
//! While two daemons of a node overlap, the metrics port is that of one of them; a probe by HTTP would ask it about the other.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::probe::ProbeQuestion;

/// Time for each part of the exchange: the kubelet's patience is 1 second by default, 3 in the manifests here.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const MAX_ANSWER: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// Nobody there.
    #[error("no daemon answers at {0}: {1}; it listens there if it is started with the same --probe-socket")]
    Unreachable(PathBuf, io::Error),
    /// Not HTTP.
    #[error("what answers at {0} is no daemon")]
    Odd(PathBuf),
}

/// What the daemon says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProbeAnswer {
    /// Whether it is as asked.
    pub good: bool,
    /// In its words.
    pub text: String,
}

/// Asks the daemon whose socket this is.
pub(crate) fn ask(socket: &Path, question: ProbeQuestion) -> Result<ProbeAnswer, ProbeError> {
    let text = exchange(socket, question.path()).map_err(|error| ProbeError::Unreachable(socket.to_owned(), error))?;
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
    fn an_answer_is_good_with_the_status_200_alone() {
        let answer = |text: &str| read(text).map(|answer| (answer.good, answer.text));
        assert_eq!(answer("HTTP/1.1 200 OK\r\na: b\r\n\r\nready\n"), Some((true, "ready".to_owned())));
        let waiting = "HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for: the packet rule\n";
        assert_eq!(answer(waiting), Some((false, "waiting for: the packet rule".to_owned())));
        for odd in ["", "\r\n\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 \r\n\r\n", "HTTP/1.1 200 OK\r\n"] {
            assert_eq!(answer(odd), None, "{odd:?}");
        }
    }
}

//! Requests of this program's commands to the metrics port of a daemon, over plain HTTP.

use std::borrow::Cow;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use http::header::{CONTENT_LENGTH, HOST};
use http::uri::Authority;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::advice::Advise;
use crate::text::bounded;

/// Time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the whole request. A daemon that calls STS takes as long as STS does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// The port if none is given.
const HTTP: u16 = 80;

/// A page of a daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DaemonPage {
    /// The name of the command.
    pub name: &'static str,
    /// The maximum size of a response, in bytes.
    pub max_answer: usize,
    /// Why a server may not have the page.
    pub why_not: &'static str,
    /// What to do if it has not.
    pub instead: &'static str,
    /// How to do without a daemon on this machine.
    pub otherwise: &'static str,
}

/// A request for a page.
#[derive(Debug)]
pub(crate) struct DaemonQuestion {
    /// The page.
    pub page: DaemonPage,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// A header that the page wants.
    pub header: Option<&'static str>,
}

/// An error of a request to a daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The address cannot be reached.
    #[error("no daemon answers at {0}")]
    Unreachable(Authority, #[source] io::Error, DaemonPage),
    /// The daemon does not serve the page, or not to this client.
    #[error("{0} does not answer `{name}`: {why}", name = .1.name, why = .1.why_not)]
    NotThere(Authority, DaemonPage),
    /// The daemon cannot answer now, and says why.
    #[error("the daemon at {0} cannot answer now: {1}")]
    Later(Authority, String),
    /// The response is not a report.
    #[error("unexpected answer from the daemon at {0}: {1}")]
    Odd(Authority, String),
}

impl Advise for AskError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Unreachable(_, _, page) => Some(
                format!(
                    "run this command in the daemon's pod on the node (kubectl exec), use kubectl port-forward and --admin-url, or {}",
                    page.otherwise
                )
                .into(),
            ),
            Self::NotThere(_, page) => Some(page.instead.into()),
            Self::Later(..) => None,
            Self::Odd(..) => Some(concat!("use the daemon's version of this command; this is ", env!("CARGO_PKG_VERSION")).into()),
        }
    }
}

/// Asks the daemon at `daemon`, and parses its answer. `is_current` says whether the answer has the form of this version.
pub(crate) async fn ask<T: DeserializeOwned>(
    daemon: &Authority,
    question: &DaemonQuestion,
    is_current: impl Fn(&T) -> bool,
) -> Result<T, AskError> {
    let unreachable = |error: io::Error| AskError::Unreachable(daemon.clone(), error, question.page);
    let address = (daemon.host().trim_matches(['[', ']']), daemon.port_u16().unwrap_or(HTTP));
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
    ask_on(stream, daemon, question, is_current).await
}

/// Asks like [`ask`], on a connection that there is.
pub(crate) async fn ask_on<T: DeserializeOwned>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    daemon: &Authority,
    question: &DaemonQuestion,
    is_current: impl Fn(&T) -> bool,
) -> Result<T, AskError> {
    let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT, exchange(stream, daemon, question))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} seconds", ANSWER_TIMEOUT.as_secs())))
        .map_err(|what| AskError::Odd(daemon.clone(), what))?;
    let text = || bounded(String::from_utf8_lossy(&body).trim_end());
    match status {
        StatusCode::OK => match serde_json::from_slice::<T>(&body) {
            Ok(report) if is_current(&report) => Ok(report),
            _ => Err(AskError::Odd(daemon.clone(), "the report is malformed or of another version".to_owned())),
        },
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(AskError::NotThere(daemon.clone(), question.page)),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Err(AskError::Later(daemon.clone(), text())),
        other => Err(AskError::Odd(daemon.clone(), other.to_string())),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    daemon: &Authority,
    question: &DaemonQuestion,
) -> Result<(StatusCode, Bytes), String> {
    let request = Request::builder().method(&question.method).uri(&question.target).header(HOST, daemon.as_str());
    let request = question.header.into_iter().fold(request.header(CONTENT_LENGTH, "0"), |request, header| request.header(header, "1"));
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), question.page.max_answer).collect().await.map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    };
    let (mut answer, mut connection) = (pin!(answer), pin!(connection.fuse()));
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer,
            // The response may still have to be read after the connection has ended.
            _ = &mut connection, if !connection.is_terminated() => {}
        }
    }
}

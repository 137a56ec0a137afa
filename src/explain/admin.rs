//! The request of `rolegate explain` to the metrics port of a daemon, over plain HTTP.

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
use tokio::net::TcpStream;

use super::{HEADER, Report, VERSION};
use crate::advice::Advise;
use crate::config::explain_command::PodReference;
use crate::text::bounded;

/// Time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the whole request. A daemon that calls STS takes as long as STS does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// The maximum size of a response, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// The port if none is given.
const HTTP: u16 = 80;

/// An error of a request to a daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The address cannot be reached.
    #[error("no daemon answers at {0}")]
    Unreachable(Authority, #[source] io::Error),
    /// The daemon does not serve the page, or not to this client.
    #[error("{0} does not answer `explain`: it is not a rolegate metrics port, or it was not reached on a loopback address")]
    NotThere(Authority),
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
            Self::Unreachable(..) => Some(
                "run this command in the daemon's pod on the pod's node (kubectl exec), use kubectl port-forward and --admin-url, or give \
                 --kubeconfig to decide by the Kubernetes API"
                    .into(),
            ),
            Self::NotThere(_) => Some(
                "run this command in the daemon's pod (kubectl exec), or use kubectl port-forward and --admin-url=http://127.0.0.1:PORT"
                    .into(),
            ),
            Self::Later(..) => None,
            Self::Odd(..) => Some(concat!("use the daemon's version of this command; this is ", env!("CARGO_PKG_VERSION")).into()),
        }
    }
}

/// Asks the daemon at `daemon` to explain a pod; with `assume`, the daemon calls STS.
pub(crate) async fn ask(daemon: &Authority, pod: &PodReference, assume: bool) -> Result<Report, AskError> {
    let unreachable = |error: io::Error| AskError::Unreachable(daemon.clone(), error);
    let address = (daemon.host().trim_matches(['[', ']']), daemon.port_u16().unwrap_or(HTTP));
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
    let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT, exchange(stream, daemon, pod, assume))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} seconds", ANSWER_TIMEOUT.as_secs())))
        .map_err(|what| AskError::Odd(daemon.clone(), what))?;
    let text = || bounded(String::from_utf8_lossy(&body).trim_end());
    match status {
        StatusCode::OK => match serde_json::from_slice::<Report>(&body) {
            Ok(report) if report.version == VERSION => Ok(report),
            _ => Err(AskError::Odd(daemon.clone(), "the report is malformed or of another version".to_owned())),
        },
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(AskError::NotThere(daemon.clone())),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Err(AskError::Later(daemon.clone(), text())),
        other => Err(AskError::Odd(daemon.clone(), other.to_string())),
    }
}

async fn exchange(stream: TcpStream, daemon: &Authority, pod: &PodReference, assume: bool) -> Result<(StatusCode, Bytes), String> {
    // Both names contain only characters that need no escaping in a query.
    let query = format!("/explain?namespace={}&pod={}", pod.namespace(), pod.name());
    let (method, target) = if assume { (Method::POST, format!("{query}&assume=true")) } else { (Method::GET, query) };
    let request = Request::builder().method(method).uri(target).header(HOST, daemon.as_str()).header(CONTENT_LENGTH, "0");
    let request = request.header(HEADER, "1");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
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

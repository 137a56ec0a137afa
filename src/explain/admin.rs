//! The question to a daemon, at its operators' port: one request of plain HTTP.

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
use crate::config::explain_command::PodReference;
use crate::text::bounded;

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time of the question; a daemon that asks STS takes what STS takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Where no port is given.
const HTTP: u16 = 80;

/// Why a daemon did not explain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody there.
    #[error(
        "no daemon answers at {0}: {1}; run this in the daemon's pod on the pod's node (kubectl exec), give --admin-url the end of a \
         kubectl port-forward to it, or give --kubeconfig to ask the Kubernetes API instead"
    )]
    Unreachable(Authority, String),
    /// The page is not there for this asker.
    #[error(
        "{0} does not explain: it is no daemon's metrics port, or one of an earlier version, or it was not reached on its loopback \
         address; run this in the daemon's pod (kubectl exec), or through kubectl port-forward and http://127.0.0.1"
    )]
    NotThere(Authority),
    /// It says why not, and it may answer later.
    #[error("the daemon at {0} cannot say it now: {1}")]
    Later(Authority, String),
    /// Something else.
    #[error("the daemon at {0} answered {1}, which is no explanation; is it of this version ({version})?", version = env!("CARGO_PKG_VERSION"))]
    Odd(Authority, String),
}

/// Asks the daemon at `daemon` about a pod; with `assume`, it asks STS.
pub(crate) async fn ask(daemon: &Authority, pod: &PodReference, assume: bool) -> Result<Report, AskError> {
    let unreachable = |error: io::Error| AskError::Unreachable(daemon.clone(), error.to_string());
    let address = (daemon.host().trim_matches(['[', ']']), daemon.port_u16().unwrap_or(HTTP));
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
    let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT, exchange(stream, daemon, pod, assume))
        .await
        .unwrap_or_else(|_| Err(format!("nothing for {} seconds", ANSWER_TIMEOUT.as_secs())))
        .map_err(|what| AskError::Odd(daemon.clone(), what))?;
    let text = || bounded(String::from_utf8_lossy(&body).trim_end());
    match status {
        StatusCode::OK => match serde_json::from_slice::<Report>(&body) {
            Ok(report) if report.version == VERSION => Ok(report),
            _ => Err(AskError::Odd(daemon.clone(), "something else".to_owned())),
        },
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(AskError::NotThere(daemon.clone())),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Err(AskError::Later(daemon.clone(), text())),
        other => Err(AskError::Odd(daemon.clone(), other.to_string())),
    }
}

async fn exchange(stream: TcpStream, daemon: &Authority, pod: &PodReference, assume: bool) -> Result<(StatusCode, Bytes), String> {
    // Both names are of letters that stand for themselves in a query.
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
            // What it has brought is still to be read.
            _ = &mut connection, if !connection.is_terminated() => {}
        }
    }
}

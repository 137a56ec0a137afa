//! The client of the real metadata service: the only place that reads what pods may read.
//!
//! Each request has a connection of its own, and a method, path and headers that this module makes. It carries a session token
//! (IMDSv2; a hop limit of 1 is enough, because the daemon is in the node's network), and never a body.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::metadata_service::METADATA_PORT;
use crate::proxy::route::{MAX_TOKEN_TTL, TOKEN, TOKEN_TTL};

/// The timeout of one request, including its connection. The service is on the node.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The largest value, in bytes.
const MAX_VALUE: usize = 64 * 1024;
/// How long before its end a token is renewed.
const TOKEN_MARGIN: Duration = Duration::from_secs(600);

/// A value that is on every instance.
const REGION: &str = "meta-data/placement/region";

/// The reason why a value could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("it did not answer in time")]
    Silent,
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it gave no session token; it answered {0}")]
    NoToken(StatusCode),
    #[error("its answer is malformed")]
    Malformed,
}

impl UpstreamError {
    /// Whether the service as a whole failed, and not only one value.
    pub(super) fn is_of_service(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent | Self::NoToken(_) => true,
            // The service throttles (EC2 user guide, "Query throttling"), so that the next request would make it worse.
            Self::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) => true,
            Self::Status(status) => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Malformed => false,
        }
    }
}

/// How the service answers the daemon, for people.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MetadataAnswers {
    /// Why there is no value for the daemon; `None` if there is one.
    pub failure: Option<String>,
    /// Whether nothing answered in time.
    pub is_silent: bool,
    /// Whether it also answers without a session token (IMDSv1), if that is known.
    pub without_token: Option<bool>,
}

/// Asks the service at `authority` (`host` or `host:port`) for a value that every pod may read: with a session token, as the
/// daemon does, and without one.
pub(crate) async fn answers_of(authority: String) -> MetadataAnswers {
    let upstream = Upstream::new(authority);
    match upstream.get(REGION).await {
        Ok(_) => {}
        Err(error) => {
            let is_silent = matches!(error, UpstreamError::Silent);
            return MetadataAnswers { failure: Some(error.to_string()), is_silent, without_token: None };
        }
    }
    let without_token = match upstream.ask(Method::GET, REGION, None).await {
        Ok((StatusCode::UNAUTHORIZED, _)) => Some(false),
        Ok((status, _)) if status.is_success() => Some(true),
        _ => None,
    };
    MetadataAnswers { without_token, ..MetadataAnswers::default() }
}

/// The service at `--metadata-addr`.
#[derive(Debug)]
pub(super) struct Upstream {
    /// `host` or `host:port`.
    authority: String,
    token: Mutex<Option<Token>>,
}

struct Token {
    text: Zeroizing<String>,
    good_until: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Upstream {
    pub(super) fn new(authority: String) -> Self {
        Self { authority, token: Mutex::default() }
    }

    /// Returns the text at a path below `latest/`, or `None` if the service has nothing there.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Bytes>, UpstreamError> {
        let mut again = true;
        loop {
            let token = self.token().await?;
            let (status, body) = self.ask(Method::GET, path, Some(&token)).await?;
            match status {
                StatusCode::OK => return Ok(Some(body)),
                StatusCode::NOT_FOUND => return Ok(None),
                // The service has forgotten its tokens.
                StatusCode::UNAUTHORIZED if again => {
                    again = false;
                    *self.token.lock().await = None;
                }
                status => return Err(UpstreamError::Status(status)),
            }
        }
    }

    async fn token(&self) -> Result<Zeroizing<String>, UpstreamError> {
        let mut held = self.token.lock().await;
        if let Some(token) = held.as_ref().filter(|token| Instant::now() < token.good_until) {
            return Ok(token.text.clone());
        }
        let asked_at = Instant::now();
        let (status, body) = self.ask(Method::PUT, "api/token", None).await?;
        if status != StatusCode::OK {
            return Err(UpstreamError::NoToken(status));
        }
        let text = std::str::from_utf8(&body).map_err(|_| UpstreamError::Malformed)?;
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(UpstreamError::Malformed);
        }
        let text = Zeroizing::new(text.to_owned());
        let good_until = asked_at + Duration::from_secs(MAX_TOKEN_TTL.into()) - TOKEN_MARGIN;
        *held = Some(Token { text: text.clone(), good_until });
        Ok(text)
    }

    async fn ask(&self, method: Method, path: &str, token: Option<&str>) -> Result<(StatusCode, Bytes), UpstreamError> {
        let is_for_token = method == Method::PUT;
        let request =
            Request::builder().method(method).uri(format!("/latest/{path}")).header(HOST, &self.authority).header(CONNECTION, "close");
        let request = match token {
            Some(token) => request.header(TOKEN, token),
            None if is_for_token => request.header(TOKEN_TTL, MAX_TOKEN_TTL),
            None => request,
        };
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| UpstreamError::Malformed)?;
        tokio::time::timeout(TIMEOUT, self.exchange(request)).await.map_err(|_| UpstreamError::Silent)?
    }

    async fn exchange(&self, request: Request<Empty<Bytes>>) -> Result<(StatusCode, Bytes), UpstreamError> {
        let unreachable = |error: &dyn std::error::Error| UpstreamError::Unreachable(error.to_string());
        let stream = match self.authority.parse::<http::uri::Authority>() {
            Ok(authority) => {
                let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
                TcpStream::connect((host, authority.port_u16().unwrap_or(METADATA_PORT))).await.map_err(|error| unreachable(&error))?
            }
            Err(error) => return Err(unreachable(&error)),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
            let (status, mut body) = (answer.status(), answer.into_body());
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|error| unreachable(&error))?.into_data() else { continue };
                if bytes.len() + data.len() > MAX_VALUE {
                    return Err(UpstreamError::Malformed);
                }
                bytes.extend_from_slice(&data);
            }
            Ok((status, bytes.freeze()))
        };
        // The connection makes progress only while it is polled, and ends with its only response.
        let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
        tokio::select! {
            answered = &mut answer => answered,
            _ = &mut connection => answer.await,
        }
    }
}

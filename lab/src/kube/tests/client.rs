//! A small HTTP client with a connection per request, and a time limit on every step.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The time limit of a step, long enough for a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a stream has to be silent.
const QUIET: Duration = Duration::from_millis(60);

pub(super) const PARTIAL: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
pub(super) const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

#[derive(Debug, Clone)]
pub(super) struct Client {
    address: SocketAddr,
    token: Option<String>,
    accept: Option<&'static str>,
}

/// Returns the result of `future`, which must arrive in time.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap()
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Client {
        Client { address, token: None, accept: None }
    }

    pub(super) fn token(mut self, token: &str) -> Client {
        self.token = Some(token.to_owned());
        self
    }

    pub(super) fn accept(mut self, accept: &'static str) -> Client {
        self.accept = Some(accept);
        self
    }

    /// Sends a GET, and returns the status and document.
    pub(super) async fn get(&self, path: &str) -> (u16, Value) {
        let response = soon(self.send(self.request(Method::GET, path, None))).await;
        document(response.unwrap()).await
    }

    /// Sends a GET that must succeed, and returns the document.
    pub(super) async fn get_ok(&self, path: &str) -> Value {
        let (code, document) = self.get(path).await;
        assert_eq!(code, 200, "{document}");
        document
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(Method::POST, path, Some(("application/json", body)));
        document(soon(self.send(request)).await.unwrap()).await
    }

    pub(super) async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        let content_type = "application/merge-patch+json";
        let request = self.request(Method::PATCH, path, Some((content_type, body)));
        document(soon(self.send(request)).await.unwrap()).await
    }

    /// Opens a watch.
    pub(super) async fn watch(&self, path: &str) -> Lines {
        let response = soon(self.send(self.request(Method::GET, path, None)));
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        Lines { body: response.into_body(), buffer: BytesMut::new() }
    }

    /// Sends a request whose answer is ignored.
    pub(super) fn request(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(HOST, self.address.to_string());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(accept) = self.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some((content_type, _)) = body {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let body = body.map(|(_, body)| body.to_string()).unwrap_or_default();
        request.body(Full::new(Bytes::from(body))).unwrap()
    }

    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        send_on(stream, request).await
    }
}

/// Sends a request on a new connection.
pub(super) async fn send_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// Returns the status and body of an answer. A body that is not JSON becomes a string.
pub(super) async fn document(response: Response<Incoming>) -> (u16, Value) {
    let code = response.status().as_u16();
    let body = soon(response.into_body().collect()).await.unwrap();
    let body = body.to_bytes();
    let document = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
    (code, document)
}

/// The lines of a watch.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// Returns the next line; `None` at a clean end, and an error if the stream broke off.
    pub(super) async fn line(&mut self) -> Result<Option<String>, hyper::Error> {
        soon(self.read_line()).await
    }

    async fn read_line(&mut self) -> Result<Option<String>, hyper::Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error),
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap()),
            }
        }
    }

    /// Returns the type and object of the next event.
    pub(super) async fn event(&mut self) -> (String, Value) {
        let line = self.line().await.unwrap().unwrap();
        let mut event: Value = serde_json::from_str(&line).unwrap();
        let kind = event["type"].as_str().unwrap().to_owned();
        (kind, event["object"].take())
    }

    /// Returns the type of the next event and the name of its object.
    pub(super) async fn named(&mut self) -> (String, String) {
        let (kind, object) = self.event().await;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        (kind, name.to_owned())
    }

    /// Checks that the next events are these.
    pub(super) async fn expect(&mut self, expected: &[(&str, &str)]) {
        for &(kind, name) in expected {
            let got = self.named().await;
            assert_eq!((got.0.as_str(), got.1.as_str()), (kind, name));
        }
    }

    /// Checks that nothing arrives for a moment.
    pub(super) async fn expect_silence(&mut self) {
        let line = tokio::time::timeout(QUIET, self.read_line()).await;
        assert!(line.is_err(), "{line:?}");
    }
}

//! Requests to the Kubernetes API.

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use kube::client::Body;
use tokio::time::Instant;
use tracing::{info, warn};

use super::answer::FilteredAnswer;
use super::failure::{FailureKind, RequestFailure, Status};
use super::fields::Field;
use super::response::{ANSWER_TIMEOUT, ApiResponse, WHOLE_TIMEOUT};
use super::setup::{ClientError, SERVICE_ACCOUNT, Setup, fingerprint, make, told};
use crate::advice::{Advise, chain};
use crate::config::ApiConfig;
use crate::log_once::SharedConditions;

/// Time of a question that something waits for.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// What is still good for less is not used for a new connection.
const LEAST_VALID: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// Bytes of an answer that is kept whole: one object that no tenant writes, such as a node. Objects that tenants write are
/// never kept whole: see [`Client::ask_filtered`].
const MAX_ANSWER: usize = 32 << 20;
/// Bytes of an error's body that are read.
const MAX_ERROR: usize = 64 << 10;

/// The Kubernetes API; cheap to clone. Its identity is that of the files and the exec plugin it was given, as they are now:
/// when they change, when a certificate of the plugin's ends, or when the API no longer knows the identity, the next
/// connection is made with what they have become.
#[derive(Clone)]
pub struct Client(Arc<SharedClient>);

struct SharedClient {
    api: ApiConfig,
    connected: Mutex<Connected>,
    /// The set-up that is under way; held while it is waited for, so that there is one at a time.
    setup: tokio::sync::Mutex<Option<Setup>>,
    streaming_lists: AtomicBool,
    failures: SharedConditions<(&'static str, FailureKind)>,
}

struct Connected {
    client: kube::Client,
    files: u64,
    /// The API answered 401.
    refused: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server", &self.0.api.server).field("kubeconfig", &self.0.api.kubeconfig).finish_non_exhaustive()
    }
}

/// The client that the settings describe. Nothing is sent yet: an API that is not up is waited for by the watch.
pub async fn connect(api: &ApiConfig) -> Result<Client, ClientError> {
    let (client, files) = make(api, &mut None).await?;
    let connected = Mutex::new(Connected { client, files, refused: false });
    let (setup, failures) = (tokio::sync::Mutex::default(), SharedConditions::default());
    Ok(Client(Arc::new(SharedClient { api: api.clone(), connected, setup, streaming_lists: AtomicBool::new(true), failures })))
}

impl Client {
    /// A client with the identity that the files have now.
    pub(crate) async fn current(&self) -> kube::Client {
        if let Ok(client) = self.known_good() {
            return client;
        }
        let mut setup = self.0.setup.lock().await;
        // Whoever was before may have brought a new one.
        let known = match self.known_good() {
            Ok(client) => return client,
            Err(known) => known,
        };
        match make(&self.0.api, &mut setup).await {
            Ok((client, files)) => {
                if files != self.connected().files {
                    info!(
                        event = "kubernetes-identity-changed",
                        "the credentials for the Kubernetes API changed on disk; using the new ones"
                    );
                }
                *self.connected() = Connected { client: client.clone(), files, refused: false };
                client
            }
            // It may be half written. The files are looked at again with the next connection.
            Err(error) => {
                warn!(
                    event = "kubernetes-identity-unreadable",
                    error = chain(&error),
                    advice = error.advice().as_deref(),
                    "cannot reload the credentials for the Kubernetes API; retrying, using the last ones that worked; check the service \
                     account's token or the kubeconfig"
                );
                known
            }
        }
    }

    /// The client that there is; `Err` where it should be another by now.
    fn known_good(&self) -> Result<kube::Client, kube::Client> {
        let files = fingerprint(&self.0.api, Path::new(SERVICE_ACCOUNT));
        let connected = self.connected();
        let client = connected.client.clone();
        if files == connected.files && !connected.refused && !is_ending(&client) { Ok(client) } else { Err(client) }
    }

    fn connected(&self) -> MutexGuard<'_, Connected> {
        self.0.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The failures of watches that were logged, by resource.
    pub(crate) fn failures(&self) -> &SharedConditions<(&'static str, FailureKind)> {
        &self.0.failures
    }

    /// Whether lists may be asked for as watches.
    pub(crate) fn streams_lists(&self) -> bool {
        self.0.streaming_lists.load(Ordering::Relaxed)
    }

    /// The server does not stream lists: it is not asked to again.
    pub(crate) fn without_streaming_lists(&self) {
        if self.0.streaming_lists.swap(false, Ordering::Relaxed) {
            info!(event = "lists-not-streamed", "the Kubernetes API does not support streaming lists; reading lists in pages");
        }
    }

    /// Asks, and has an answer once its head is there.
    pub(crate) async fn ask(&self, target: &str) -> Result<ApiResponse, RequestFailure> {
        self.ask_for(target, "application/json").await
    }

    async fn ask_for(&self, target: &str, media_types: &str) -> Result<ApiResponse, RequestFailure> {
        let request = Request::get(target).header(ACCEPT, media_types).body(Body::empty());
        self.send(request.map_err(|_| RequestFailure::NotBuilt)?).await
    }

    async fn send(&self, request: Request<Body>) -> Result<ApiResponse, RequestFailure> {
        let client = self.current().await;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request)).await;
        let answer = answer.map_err(|_| RequestFailure::Silent)?.map_err(|error| RequestFailure::Unreachable(told(&error)))?;
        let status = answer.status();
        let mut answer = ApiResponse(answer.into_body());
        if status.is_success() {
            return Ok(answer);
        }
        if status == http::StatusCode::UNAUTHORIZED {
            // The identity may be one that a plugin gave, without saying for how long.
            self.connected().refused = true;
        }
        let mut body = Vec::new();
        // As much of it as there is says what it can.
        let _ = answer.whole(MAX_ERROR, &mut body).await;
        Err(RequestFailure::Status(Status::of_answer(status.as_u16(), &body)))
    }

    /// Requests an object that no tenant writes, and reads it whole.
    pub(crate) async fn ask_whole(&self, target: &str) -> Result<Vec<u8>, RequestFailure> {
        let mut body = Vec::new();
        self.ask(target).await?.whole(MAX_ANSWER, &mut body).await?;
        Ok(body)
    }

    /// Requests a JSON document of any size, of which these fields are used.
    pub(crate) async fn ask_filtered<'a>(&self, target: &str, fields: &'a Field) -> Result<FilteredAnswer<'a>, RequestFailure> {
        let answer = self.ask(target).await?;
        Ok(FilteredAnswer::new(answer, fields, Instant::now() + WHOLE_TIMEOUT))
    }

    /// Reads an object whole.
    pub async fn get(&self, target: &str) -> Result<Vec<u8>, RequestError> {
        tokio::time::timeout(QUESTION_TIMEOUT, self.ask_whole(target)).await.unwrap_or(Err(RequestFailure::Silent)).map_err(RequestError)
    }

    /// Reads a document of at most `at_most` bytes, in one of the media types.
    pub(crate) async fn get_document(&self, target: &str, media_types: &str, at_most: usize) -> Result<Vec<u8>, RequestError> {
        let read = async {
            let mut body = Vec::new();
            self.ask_for(target, media_types).await?.whole(at_most, &mut body).await?;
            Ok(body)
        };
        tokio::time::timeout(QUESTION_TIMEOUT, read).await.unwrap_or(Err(RequestFailure::Silent)).map_err(RequestError)
    }

    /// Creates an object from JSON.
    pub async fn post(&self, target: &str, object: Vec<u8>) -> Result<(), RequestError> {
        self.create(target, object).await.map(drop)
    }

    /// Creates an object from JSON, and returns what the API made of it.
    pub(crate) async fn create(&self, target: &str, object: Vec<u8>) -> Result<Vec<u8>, RequestError> {
        self.write(Request::post(target).header(CONTENT_TYPE, "application/json"), object).await
    }

    /// Changes an object by a JSON merge patch.
    pub async fn merge_patch(&self, target: &str, patch: Vec<u8>) -> Result<(), RequestError> {
        self.write(Request::patch(target).header(CONTENT_TYPE, "application/merge-patch+json"), patch).await.map(drop)
    }

    async fn write(&self, request: http::request::Builder, body: Vec<u8>) -> Result<Vec<u8>, RequestError> {
        let request = request.header(ACCEPT, "application/json").body(Body::from(body));
        let request = request.map_err(|_| RequestError(RequestFailure::NotBuilt))?;
        let sent = async {
            // Read to its end, so that the connection serves again.
            let mut answer = Vec::new();
            self.send(request).await?.whole(MAX_ERROR, &mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(QUESTION_TIMEOUT, sent).await.unwrap_or(Err(RequestFailure::Silent)).map_err(RequestError)
    }
}

/// The reason why a read or write failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RequestError(RequestFailure);

impl From<RequestFailure> for RequestError {
    fn from(failure: RequestFailure) -> Self {
        Self(failure)
    }
}

impl Advise for RequestError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        self.0.advice()
    }
}

impl RequestError {
    /// Returns the status code, if the API answered.
    pub fn code(&self) -> Option<u16> {
        self.0.code()
    }

    /// Returns how long the API asks clients to wait before the next request.
    pub fn retry_after(&self) -> Duration {
        self.0.retry_after()
    }

    /// Returns whether the API refuses new objects in the namespace because it is being deleted (`NamespaceTerminatingCause`,
    /// Kubernetes `core/v1`).
    pub fn is_of_ending_namespace(&self) -> bool {
        self.0.has_cause("NamespaceTerminating")
    }
}

/// Whether the certificate that a plugin gave ends soon. Its tokens are renewed by the client itself.
fn is_ending(client: &kube::Client) -> bool {
    client.valid_until().as_ref().is_some_and(|end| *end < now() + LEAST_VALID)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the end of a certificate is a time of the wall clock, also to kube, which compares it with this one"
)]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// A value as it stands in a path or a query.
pub(crate) fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests;

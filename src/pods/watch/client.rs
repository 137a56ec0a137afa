//! The connection to the Kubernetes API: where its address and identity come from, and what is asked of it.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Config;
use kube::client::{AuthError, Body};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use secrecy::ExposeSecret as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::answer::FilteredAnswer;
use super::complaints::Complaints;
pub(crate) use super::failure::jitter;
use super::failure::{RequestFailure, Status};
use super::fields::Field;
use crate::advice::{Advise, chain};
use crate::config::ApiConfig;

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time of one question, and to the head of any answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time of a question that something waits for.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Time of an answer that is read whole, however steadily it comes.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest set-up of a client: an exec plugin is a program of its own.
const SETUP_TIMEOUT: Duration = Duration::from_secs(30);
/// What is still good for less is not used for a new connection.
const LEAST_VALID: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// Where a pod has its service account: kube's own path.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Bytes of an answer that is kept whole: one object that no tenant writes, such as a node. Objects that tenants write are
/// never kept whole: see [`Client::ask_filtered`].
const MAX_ANSWER: usize = 32 << 20;
/// Bytes of an error's body that are read.
const MAX_ERROR: usize = 64 << 10;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a kubeconfig nor a service account.
    #[error("no credentials for the Kubernetes API: {0}")]
    NotInCluster(String),
    /// The client cannot be made of the settings.
    #[error("cannot set up the Kubernetes client: {0}")]
    Client(String),
}

impl Advise for ClientError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Kubeconfig { .. } => Some("check the file of --kubeconfig".into()),
            Self::NotInCluster(_) => Some("outside a pod, give --kubeconfig or --api-server".into()),
            Self::Client(_) => None,
        }
    }
}

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
    complaints: Complaints,
}

/// A client that is being made, in a thread of its own. A thread that hangs cannot be ended, so it is kept, and no other is
/// begun beside it.
struct Setup {
    made: JoinHandle<Result<kube::Client, ClientError>>,
    began: Instant,
    /// Of what it is made.
    files: u64,
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
    let (setup, complaints) = (tokio::sync::Mutex::default(), Complaints::default());
    Ok(Client(Arc::new(SharedClient { api: api.clone(), connected, setup, streaming_lists: AtomicBool::new(true), complaints })))
}

impl Client {
    /// A client with the identity that the files have now.
    pub(super) async fn current(&self) -> kube::Client {
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
                    info!("the identity for the Kubernetes API has changed on disk; the API is asked with what it is now");
                }
                *self.connected() = Connected { client: client.clone(), files, refused: false };
                client
            }
            // It may be half written. The files are looked at again with the next connection.
            Err(error) => {
                warn!("the identity for the Kubernetes API cannot be read anew; what it was is used on: {error}");
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

    /// Which failures of what is asked here have been told.
    pub(super) fn complaints(&self) -> &Complaints {
        &self.0.complaints
    }

    /// Whether lists may be asked for as watches.
    pub(super) fn streams_lists(&self) -> bool {
        self.0.streaming_lists.load(Ordering::Relaxed)
    }

    /// The server does not stream lists: it is not asked to again.
    pub(super) fn without_streaming_lists(&self) {
        if self.0.streaming_lists.swap(false, Ordering::Relaxed) {
            info!("the Kubernetes API does not stream lists; they are read page by page");
        }
    }

    /// Asks, and has an answer once its head is there.
    pub(super) async fn ask(&self, target: &str) -> Result<ApiResponse, RequestFailure> {
        let request = Request::get(target).header(ACCEPT, "application/json").body(Body::empty());
        self.send(request.map_err(|_| RequestFailure::Malformed("a request of ours"))?).await
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
    pub(super) async fn ask_whole(&self, target: &str) -> Result<Vec<u8>, RequestFailure> {
        let mut body = Vec::new();
        self.ask(target).await?.whole(MAX_ANSWER, &mut body).await?;
        Ok(body)
    }

    /// Requests a JSON document of any size, of which these fields are used.
    pub(super) async fn ask_filtered<'a>(&self, target: &str, fields: &'a Field) -> Result<FilteredAnswer<'a>, RequestFailure> {
        let answer = self.ask(target).await?;
        Ok(FilteredAnswer::new(answer, fields, Instant::now() + WHOLE_TIMEOUT))
    }

    /// Reads an object whole.
    pub async fn get(&self, target: &str) -> Result<Vec<u8>, RequestError> {
        tokio::time::timeout(QUESTION_TIMEOUT, self.ask_whole(target)).await.unwrap_or(Err(RequestFailure::Silent)).map_err(RequestError)
    }

    /// Creates an object from JSON.
    pub async fn post(&self, target: &str, object: Vec<u8>) -> Result<(), RequestError> {
        self.write(Request::post(target).header(CONTENT_TYPE, "application/json"), object).await
    }

    /// Changes an object by a JSON merge patch.
    pub async fn merge_patch(&self, target: &str, patch: Vec<u8>) -> Result<(), RequestError> {
        self.write(Request::patch(target).header(CONTENT_TYPE, "application/merge-patch+json"), patch).await
    }

    async fn write(&self, request: http::request::Builder, body: Vec<u8>) -> Result<(), RequestError> {
        let request = request.header(ACCEPT, "application/json").body(Body::from(body));
        let request = request.map_err(|_| RequestError(RequestFailure::Malformed("a request of ours")))?;
        let sent = async {
            // Read to its end, so that the connection serves again; nothing of it is needed.
            self.send(request).await?.whole(MAX_ERROR, &mut Vec::new()).await
        };
        tokio::time::timeout(QUESTION_TIMEOUT, sent).await.unwrap_or(Err(RequestFailure::Silent)).map_err(RequestError)
    }
}

/// Why a question was not answered, or something was not written. The text is for the log.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RequestError(RequestFailure);

impl RequestError {
    /// The status that the API answered, where it did.
    pub fn code(&self) -> Option<u16> {
        self.0.code()
    }

    /// How long the API asks not to be asked.
    pub fn retry_after(&self) -> Duration {
        self.0.retry_after()
    }

    /// Whether nothing is created in the namespace any more, because it is being deleted (`NamespaceTerminatingCause`,
    /// Kubernetes `core/v1`).
    pub fn is_of_ending_namespace(&self) -> bool {
        self.0.has_cause("NamespaceTerminating")
    }
}

/// An answer whose body is still to be read.
pub(super) struct ApiResponse(Body);

impl ApiResponse {
    /// The next bytes of it; `None` at its end. Nothing for so long is a failure.
    pub(super) async fn bytes(&mut self, within: Duration) -> Result<Option<Bytes>, RequestFailure> {
        loop {
            let frame = tokio::time::timeout(within, self.0.frame()).await.map_err(|_| RequestFailure::Silent)?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(RequestFailure::Unreachable(chain(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    // Trailers.
                    Err(_) => continue,
                },
            }
        }
    }

    async fn whole(&mut self, at_most: usize, body: &mut Vec<u8>) -> Result<(), RequestFailure> {
        let read = async {
            while let Some(bytes) = self.bytes(ANSWER_TIMEOUT).await? {
                if body.len() + bytes.len() > at_most {
                    return Err(RequestFailure::TooLarge);
                }
                body.extend_from_slice(&bytes);
            }
            Ok(())
        };
        tokio::time::timeout(WHOLE_TIMEOUT, read).await.unwrap_or(Err(RequestFailure::Slow))
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

/// A client, and of which files it is made: of the set-up that is under way, or of a new one. One that takes too long is left
/// in `setup`, and whoever asks next does not wait for it again, but has it if it has come to its end.
async fn make(api: &ApiConfig, setup: &mut Option<Setup>) -> Result<(kube::Client, u64), ClientError> {
    let under_way = match setup {
        Some(under_way) => under_way,
        None => setup.insert(begin(api).await?),
    };
    let left = SETUP_TIMEOUT.saturating_sub(under_way.began.elapsed());
    let made =
        if left.is_zero() && !under_way.made.is_finished() { None } else { tokio::time::timeout(left, &mut under_way.made).await.ok() };
    let Some(made) = made else {
        return Err(ClientError::Client(
            "the exec plugin of the kubeconfig does not end; it is not run again beside that: end its process".to_owned(),
        ));
    };
    let files = under_way.files;
    *setup = None;
    match made {
        Ok(made) => made.map(|client| (client, files)),
        Err(_) => Err(ClientError::Client("its set-up panicked".to_owned())),
    }
}

async fn begin(api: &ApiConfig) -> Result<Setup, ClientError> {
    let files = fingerprint(api, Path::new(SERVICE_ACCOUNT));
    let mut config = match (&api.kubeconfig, &api.server) {
        (Some(path), _) => {
            let wrap =
                |error: kube::config::KubeconfigError| ClientError::Kubeconfig { path: path.display().to_string(), reason: chain(&error) };
            let kubeconfig = Kubeconfig::read_from(path).map_err(wrap)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrap)?
        }
        (None, Some(_)) => Config::new(http::Uri::default()),
        (None, None) => Config::incluster().map_err(|error| ClientError::NotInCluster(chain(&error)))?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Silence is bounded where it is waited for; kube's bound counts the time that a connection is not in use.
    config.read_timeout = None;
    // Its retries have longer pauses than ours, and are not seen.
    config.default_retry = false;
    if let Some(server) = &api.server {
        config.cluster_url = server.parse().map_err(|_| ClientError::Client("--api-server is not a URL".to_owned()))?;
    }
    if let Some(token) = &api.token {
        config.auth_info = AuthInfo { token: Some(token.expose_secret().to_owned().into()), ..AuthInfo::default() };
    }
    if api.insecure {
        config.accept_invalid_certs = true;
    }
    // This runs an exec plugin, and waits for it: not where requests are served.
    let made = tokio::task::spawn_blocking(move || kube::Client::try_from(config).map_err(|error| ClientError::Client(told(&error))));
    Ok(Setup { made, began: Instant::now(), files })
}

/// What went wrong; of an exec plugin never its output, which is in kube's text and may hold a token.
fn told(error: &kube::Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(now) = cause {
        match now.downcast_ref() {
            // The command would be told with its arguments and its environment: a client's secret may be among them.
            Some(AuthError::AuthExecRun { out, .. }) => return format!("the exec plugin of the kubeconfig failed, {}", out.status),
            Some(AuthError::AuthExecParse(_)) => return "the exec plugin of the kubeconfig gave no ExecCredential".to_owned(),
            _ => cause = now.source(),
        }
    }
    chain(error)
}

/// What the files are now that the identity comes from: the kubeconfig and what it names, or the service account's token and
/// the API's certificate beside it. A digest, so that no key is kept; a file that cannot be read counts as empty.
fn fingerprint(api: &ApiConfig, service_account: &Path) -> u64 {
    let files = match &api.kubeconfig {
        Some(path) => std::iter::once(path.clone()).chain(named_by(path)).collect(),
        None if api.server.is_some() => Vec::new(),
        None => vec![service_account.join("token"), service_account.join("ca.crt")],
    };
    let mut digest = DefaultHasher::new();
    files.iter().for_each(|path| std::fs::read(path).unwrap_or_default().hash(&mut digest));
    digest.finish()
}

/// The certificates, keys and tokens that a kubeconfig names.
fn named_by(kubeconfig: &Path) -> Vec<PathBuf> {
    // Its paths are made absolute by this.
    let Ok(kubeconfig) = Kubeconfig::read_from(kubeconfig) else {
        return Vec::new();
    };
    let users = kubeconfig.auth_infos.into_iter().filter_map(|user| user.auth_info);
    let of_users = users.flat_map(|user| [user.client_certificate, user.client_key, user.token_file]);
    let clusters = kubeconfig.clusters.into_iter().filter_map(|cluster| cluster.cluster);
    let of_clusters = clusters.map(|cluster| cluster.certificate_authority);
    of_users.chain(of_clusters).flatten().map(PathBuf::from).collect()
}

/// Why a node's address is not known.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The API answered, and will not answer better when asked again.
    #[error("{0}")]
    Refused(String),
    /// It may answer later.
    #[error("{0}")]
    NotReached(String),
}

/// The internal addresses of a node, as its object says them.
pub async fn node_addresses(client: &Client, node: &str) -> Result<Vec<IpAddr>, NodeError> {
    let target = format!("/api/v1/nodes/{}", encode(node));
    let Ok(answer) = tokio::time::timeout(QUESTION_TIMEOUT, client.ask_whole(&target)).await else {
        return Err(NodeError::NotReached(RequestFailure::Silent.to_string()));
    };
    let answer = answer.map_err(|failure| match &failure {
        RequestFailure::Status(status) if (400..500).contains(&status.code) && status.code != 429 => {
            NodeError::Refused(failure.to_string())
        }
        _ => NodeError::NotReached(failure.to_string()),
    })?;
    let object: Node = serde_json::from_slice(&answer).map_err(|_| NodeError::Refused("the node's object cannot be read".to_owned()))?;
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    Ok(internal.filter_map(|address| address.address.parse().ok()).collect())
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

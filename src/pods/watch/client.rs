//! The connection to the Kubernetes API: where its address and identity come from, and what is asked of it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::ACCEPT;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Config;
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use secrecy::ExposeSecret as _;
use tracing::{info, warn};

use super::failure::{Failure, Status};
use crate::config::ApiConfig;
use crate::telemetry::chain;

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time of one question, and to the head of any answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time of a question that something waits for.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that is read whole: a page of 50 pods is some 600 kB, and the largest objects 3 MB each.
const MAX_ANSWER: usize = 192 << 20;
/// Bytes of an error's body that are read.
const MAX_ERROR: usize = 64 << 10;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {path}: {reason}; check --kubeconfig")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a kubeconfig nor a service account.
    #[error("no way to reach the Kubernetes API: {0}; outside a pod give --kubeconfig or --api-server")]
    NotInCluster(String),
    /// The client cannot be made of the settings.
    #[error("cannot set up the Kubernetes client: {0}")]
    Client(String),
}

/// The Kubernetes API; cheap to clone. Its identity is that of the files it was given, as they are now: when they change,
/// the next connection is made with what they have become.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    api: ApiConfig,
    connected: Mutex<Connected>,
    streaming_lists: AtomicBool,
}

struct Connected {
    client: kube::Client,
    files: u64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server", &self.0.api.server).field("kubeconfig", &self.0.api.kubeconfig).finish_non_exhaustive()
    }
}

/// The client that the settings describe. Nothing is sent yet: an API that is not up is waited for by the watch.
pub async fn connect(api: &ApiConfig) -> Result<Client, ClientError> {
    let files = fingerprint(api);
    let connected = Mutex::new(Connected { client: make(api).await?, files });
    Ok(Client(Arc::new(Shared { api: api.clone(), connected, streaming_lists: AtomicBool::new(true) })))
}

impl Client {
    /// A client with the identity that the files have now.
    pub(super) async fn current(&self) -> kube::Client {
        let files = fingerprint(&self.0.api);
        if files == self.connected().files {
            return self.connected().client.clone();
        }
        match make(&self.0.api).await {
            Ok(client) => {
                info!("the kubeconfig, or a file that it names, has changed; the Kubernetes API is asked with what it is now");
                *self.connected() = Connected { client: client.clone(), files };
                client
            }
            // It may be half written. The files are looked at again with the next connection.
            Err(error) => {
                warn!("the kubeconfig has changed, and what it is now cannot be used; what it was is used on: {error}");
                self.connected().client.clone()
            }
        }
    }

    fn connected(&self) -> MutexGuard<'_, Connected> {
        self.0.connected.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(super) async fn ask(&self, target: &str) -> Result<Answer, Failure> {
        let request = Request::get(target).header(ACCEPT, "application/json").body(Body::empty());
        let request = request.map_err(|_| Failure::Malformed("a request of ours"))?;
        let client = self.current().await;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request)).await;
        let answer = answer.map_err(|_| Failure::Silent)?.map_err(|error| Failure::Unreachable(chain(&error)))?;
        let status = answer.status();
        let mut answer = Answer(answer.into_body());
        if status.is_success() {
            return Ok(answer);
        }
        let mut body = Vec::new();
        // As much of it as there is says what it can.
        let _ = answer.whole(MAX_ERROR, &mut body).await;
        Err(Failure::Status(Status::of_answer(status.as_u16(), &body)))
    }

    /// Asks for something small, and reads it whole.
    pub(super) async fn ask_whole(&self, target: &str) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        self.ask_into(target, &mut body).await?;
        Ok(body)
    }

    /// The same into a buffer that was used before: the pages of a list need one of the same size each.
    pub(super) async fn ask_into(&self, target: &str, body: &mut Vec<u8>) -> Result<(), Failure> {
        body.clear();
        self.ask(target).await?.whole(MAX_ANSWER, body).await
    }
}

/// An answer whose body is still to be read.
pub(super) struct Answer(Body);

impl Answer {
    /// The next bytes of it; `None` at its end. Nothing for so long is a failure.
    pub(super) async fn bytes(&mut self, within: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = tokio::time::timeout(within, self.0.frame()).await.map_err(|_| Failure::Silent)?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::Unreachable(chain(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    // Trailers.
                    Err(_) => continue,
                },
            }
        }
    }

    async fn whole(&mut self, at_most: usize, body: &mut Vec<u8>) -> Result<(), Failure> {
        while let Some(bytes) = self.bytes(ANSWER_TIMEOUT).await? {
            if body.len() + bytes.len() > at_most {
                return Err(Failure::Malformed("an answer that is far too large"));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(())
    }
}

async fn make(api: &ApiConfig) -> Result<kube::Client, ClientError> {
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
    kube::Client::try_from(config).map_err(|error| ClientError::Client(chain(&error)))
}

/// What the kubeconfig and the certificates that it names are now. A digest, so that no key is kept; a file that cannot
/// be read counts as empty. Token files are read again by the client itself, and so is what a service account is given.
fn fingerprint(api: &ApiConfig) -> u64 {
    let mut digest = DefaultHasher::new();
    let mut add = |path: &Path| std::fs::read(path).unwrap_or_default().hash(&mut digest);
    if let Some(path) = &api.kubeconfig {
        add(path);
        named_by(path).iter().for_each(|path| add(path));
    }
    digest.finish()
}

/// The certificates and keys that a kubeconfig names.
fn named_by(kubeconfig: &Path) -> Vec<PathBuf> {
    // Its paths are made absolute by this.
    let Ok(kubeconfig) = Kubeconfig::read_from(kubeconfig) else {
        return Vec::new();
    };
    let users = kubeconfig.auth_infos.into_iter().filter_map(|user| user.auth_info);
    let of_users = users.flat_map(|user| [user.client_certificate, user.client_key]);
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
        return Err(NodeError::NotReached(Failure::Silent.to_string()));
    };
    let answer = answer.map_err(|failure| match &failure {
        Failure::Status(status) if (400..500).contains(&status.code) && status.code != 429 => NodeError::Refused(failure.to_string()),
        _ => NodeError::NotReached(failure.to_string()),
    })?;
    let object: Node = serde_json::from_slice(&answer).map_err(|_| NodeError::Refused("the node's object cannot be read".to_owned()))?;
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    Ok(internal.filter_map(|address| address.address.parse().ok()).collect())
}

/// A value as it stands in a path or a query.
pub(super) fn encode(value: &str) -> String {
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

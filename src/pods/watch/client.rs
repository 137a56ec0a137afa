//! The connection to the Kubernetes API: where its address and identity come from, and what its errors mean.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
pub use kube::Client;
use kube::Config;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use secrecy::ExposeSecret as _;

use crate::config::ApiConfig;
use crate::telemetry::chain;

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which nothing is read for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the server is asked to keep a watch open: it ends in good order before silence would end it.
pub(super) const WATCH_SECONDS: u32 = 50;
/// Time of one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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

/// The client that the settings describe. Nothing is sent yet: an API that is not up is waited for by the watch.
pub async fn connect(api: &ApiConfig) -> Result<Client, ClientError> {
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
    // A server that accepts and never answers must not be waited for: what it is asked is asked again.
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(SILENCE);
    if let Some(server) = &api.server {
        config.cluster_url = server.parse().map_err(|_| ClientError::Client("--api-server is not a URL".to_owned()))?;
    }
    if let Some(token) = &api.token {
        config.auth_info = AuthInfo { token: Some(token.expose_secret().to_owned().into()), ..AuthInfo::default() };
    }
    if api.insecure {
        config.accept_invalid_certs = true;
    }
    Client::try_from(config).map_err(|error| ClientError::Client(chain(&error)))
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
    let nodes = kube::Api::<Node>::all(client.clone());
    let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, nodes.get(node)).await else {
        return Err(NodeError::NotReached("the Kubernetes API does not answer".to_owned()));
    };
    let object = answer.map_err(|error| match &error {
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => NodeError::Refused(explain_request(&error)),
        _ => NodeError::NotReached(explain_request(&error)),
    })?;
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    Ok(internal.filter_map(|address| address.address.parse().ok()).collect())
}

/// What a failure of a watch means to the operator. Bodies of answers are not repeated.
pub(super) fn explain(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            explain_request(error)
        }
        watcher::Error::WatchError(status) => explain_status(status.code, &status.reason, &status.message),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

fn explain_request(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => explain_status(status.code, &status.reason, &status.message),
        other => format!("the Kubernetes API cannot be reached: {}", chain(other)),
    }
}

fn explain_status(code: u16, reason: &str, message: &str) -> String {
    let advice = match code {
        401 => "; the token or certificate is not valid for this API: check the service account or the kubeconfig",
        403 => "; allow it in the daemon's ClusterRole (see daemonset/rbac.yaml)",
        _ => "",
    };
    format!("the Kubernetes API answered {code} {reason}: {message}{advice}")
}

//! Sets up a client of the Kubernetes API: where its address and identity come from.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::client::AuthError;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use secrecy::ExposeSecret as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::advice::{Advise, chain};
use crate::config::ApiConfig;
use crate::text::without_userinfo;

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Where a pod has its service account: kube's own path.
pub(crate) const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The longest set-up of a client: an exec plugin is a program of its own.
pub(super) const SETUP_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The program of the kubeconfig does not end.
    #[error("cannot set up the Kubernetes client: the exec plugin of the kubeconfig is still running; not starting it a second time")]
    PluginHangs,
    /// The set-up panicked.
    #[error("cannot set up the Kubernetes client: internal error")]
    Panicked,
}

impl Advise for ClientError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Kubeconfig { .. } => Some("check the file of --kubeconfig".into()),
            Self::NotInCluster(_) => Some("outside a pod, give --kubeconfig or --api-server".into()),
            Self::PluginHangs => Some("stop its process".into()),
            Self::Panicked => Some("this is a bug in rolegate; please report it".into()),
            Self::Client(_) => None,
        }
    }
}

/// A client that is being made, in a thread of its own. A thread that hangs cannot be ended, so it is kept, and no other is
/// begun beside it.
pub(super) struct Setup {
    made: JoinHandle<Result<kube::Client, ClientError>>,
    began: Instant,
    /// Of what it is made.
    files: u64,
}

/// A client, and of which files it is made: of the set-up that is under way, or of a new one. One that takes too long is left
/// in `setup`, and whoever asks next does not wait for it again, but has it if it has come to its end.
pub(super) async fn make(api: &ApiConfig, setup: &mut Option<Setup>) -> Result<(kube::Client, u64), ClientError> {
    let under_way = match setup {
        Some(under_way) => under_way,
        None => setup.insert(begin(api).await?),
    };
    let left = SETUP_TIMEOUT.saturating_sub(under_way.began.elapsed());
    let made =
        if left.is_zero() && !under_way.made.is_finished() { None } else { tokio::time::timeout(left, &mut under_way.made).await.ok() };
    let Some(made) = made else {
        return Err(ClientError::PluginHangs);
    };
    let files = under_way.files;
    *setup = None;
    match made {
        Ok(made) => made.map(|client| (client, files)),
        Err(_) => Err(ClientError::Panicked),
    }
}

async fn begin(api: &ApiConfig) -> Result<Setup, ClientError> {
    let files = fingerprint(api, Path::new(SERVICE_ACCOUNT));
    let mut config = match (&api.kubeconfig, &api.server) {
        (Some(path), _) => {
            let wrap = |error: kube::config::KubeconfigError| ClientError::Kubeconfig {
                path: path.display().to_string(),
                reason: without_userinfo(&chain(&error)),
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(wrap)?;
            let names_proxy = names_proxy(&kubeconfig);
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrap)?;
            if !names_proxy {
                config.proxy_url = proxy_for(&config.cluster_url, config.proxy_url.take());
            }
            config
        }
        // As kube2iam: only with a token of its own does the address stand for another identity. The URL here is replaced below.
        (None, Some(_)) if is_of_service_account(api) => {
            Config::incluster_dns().map_err(|error| ClientError::NotInCluster(chain(&error)))?
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

/// Whether the kubeconfig names a proxy for its cluster.
fn names_proxy(kubeconfig: &Kubeconfig) -> bool {
    let context = kubeconfig.contexts.iter().find(|context| Some(&context.name) == kubeconfig.current_context.as_ref());
    let name = context.and_then(|context| context.context.as_ref()).map(|context| &context.cluster);
    let cluster = kubeconfig.clusters.iter().find(|cluster| Some(&cluster.name) == name).and_then(|cluster| cluster.cluster.as_ref());
    cluster.and_then(|cluster| cluster.proxy_url.as_ref()).is_some_and(|proxy| !proxy.is_empty())
}

/// The proxy that the environment names for the API. kube compares `NO_PROXY` with the address of the proxy itself, so that requests
/// to an API without a proxy would go through one. `of_kube` is what it takes: `HTTPS_PROXY`, with user and password.
fn proxy_for(url: &http::Uri, of_kube: Option<http::Uri>) -> Option<http::Uri> {
    let found = Matcher::from_env().intercept(url)?;
    of_kube.filter(|_| url.scheme() == Some(&http::uri::Scheme::HTTPS)).or_else(|| Some(found.uri().clone()))
}

/// What went wrong; of an exec plugin never its output, which is in kube's text and may hold a token.
pub(super) fn told(error: &kube::Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(now) = cause {
        match now.downcast_ref() {
            // The command would be told with its arguments and its environment: a client's secret may be among them.
            Some(AuthError::AuthExecRun { out, .. }) => return format!("the exec plugin of the kubeconfig failed, {}", out.status),
            Some(AuthError::AuthExecParse(_)) => return "the exec plugin of the kubeconfig gave no ExecCredential".to_owned(),
            _ => cause = now.source(),
        }
    }
    // The URL of a proxy is there, with its password.
    without_userinfo(&chain(error))
}

/// Whether the identity is that of the pod's service account. Its token is sent over TLS only.
pub(crate) fn is_of_service_account(api: &ApiConfig) -> bool {
    let of_pod = || Path::new(SERVICE_ACCOUNT).join("token").exists();
    match &api.server {
        _ if api.kubeconfig.is_some() => false,
        None => true,
        Some(server) => api.token.is_none() && server.starts_with("https://") && of_pod(),
    }
}

/// What the files are now that the identity comes from: the kubeconfig and what it names, or the service account's token and
/// the API's certificate beside it. A digest, so that no key is kept; a file that cannot be read counts as empty.
pub(super) fn fingerprint(api: &ApiConfig, service_account: &Path) -> u64 {
    let files = match &api.kubeconfig {
        Some(path) => std::iter::once(path.clone()).chain(named_by(path)).collect(),
        None if !is_of_service_account(api) => Vec::new(),
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

//! A fake Kubernetes API server over real sockets: everything that a node agent can see of one, and every way in which it can
//! fail.
//!
//! It serves lists, watches and gets of pods, namespaces, service accounts and nodes, accepts events, access reviews and token reviews, and
//! reports errors as `Status` objects, as <https://kubernetes.io/docs/reference/using-api/api-concepts/> describes and a real
//! server of version 1.33 does. Tests add objects with [`KubeApi::apply`], inject failures with the fault methods, and inspect
//! the requests with [`KubeApi::requests`].
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
//!
//! let api = KubeApi::start(std::net::TcpListener::bind("127.0.0.1:0")?)?;
//! api.apply(Resource::Pods, PodBuilder::new("team-a", "web-0").ip("10.42.0.2").build());
//! // ... start what watches pods at api.url() ...
//! api.wait_for_watchers(Resource::Pods, 1).await;
//! api.cut_connections();
//! # Ok(())
//! # }
//! ```
//!
//! Differences from a real server: patches are merge patches only, only events and reviews can be created over HTTP, a list at a future
//! resource version fails at once instead of after three seconds, port-forwards have one port, and a watch without
//! `timeoutSeconds` has no time limit.

mod builders;
mod certificates;
mod discovery;
mod documents;
mod events;
mod faults;
mod info;
mod issuer;
mod json;
mod list;
mod objects;
mod pod;
mod portforward;
mod request;
mod selector;
mod stall;
mod state;
mod status;
mod store;
mod subscription;
#[cfg(test)]
mod tests;
mod token_review;
mod watch;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub use self::builders::{namespace, node, service_account};
use self::certificates::Authorities;
pub use self::certificates::ClientIdentity;
pub use self::faults::{Fault, Verb};
pub use self::issuer::{Attack, PodToken, SigningKey, TokenIssuer};
pub use self::objects::Resource;
pub use self::pod::PodBuilder;
pub use self::request::RecordedRequest;
use self::state::State;
use crate::serve::Server;

/// A handle to a running server, which stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct KubeApi {
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    server: Server,
    state: Arc<State>,
}

impl KubeApi {
    /// Serves plain HTTP on `listener`, on the current tokio runtime.
    ///
    /// # Errors
    /// If the listener cannot be used.
    pub fn start(listener: TcpListener) -> io::Result<KubeApi> {
        KubeApi::serve(listener, None)
    }

    /// Serves TLS on `listener`, on the current tokio runtime, with a certificate from a CA of its own for `localhost`, the
    /// loopback addresses and the listener's address. Clients may use certificates from [`KubeApi::client_identity`].
    ///
    /// # Errors
    /// If the listener cannot be used, or no certificate can be created for its address.
    pub fn start_tls(listener: TcpListener) -> io::Result<KubeApi> {
        let authorities = Authorities::new(listener.local_addr()?.ip())?;
        KubeApi::serve(listener, Some(authorities))
    }

    fn serve(listener: TcpListener, authorities: Option<Authorities>) -> io::Result<KubeApi> {
        let tls = authorities.as_ref().map(Authorities::server).transpose()?;
        let state = Arc::new(State::new(authorities));
        let server = Server::start(listener, tls, Arc::clone(&state))?;
        Ok(KubeApi { running: Arc::new(Running { server, state }) })
    }

    /// The URL of the server, `http://ip:port` or `https://ip:port`, with a loopback address if the listener is on the
    /// unspecified one.
    #[must_use]
    pub fn url(&self) -> String {
        let mut address = self.addr();
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let scheme = match self.ca_pem() {
            Some(_) => "https",
            None => "http",
        };
        format!("{scheme}://{address}")
    }

    /// The address of the listener.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.running.server.address()
    }

    /// The certificate of the CA, if the server uses TLS.
    #[must_use]
    pub fn ca_pem(&self) -> Option<String> {
        self.state().authorities().as_ref().map(|authorities| authorities.ca_pem().to_owned())
    }

    /// A kubeconfig for the server's current state, with the token if one is required. It is JSON, which is valid YAML.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let mut cluster = json!({ "server": self.url() });
        if let Some(ca) = self.ca_pem() {
            cluster["certificate-authority-data"] = STANDARD.encode(ca).into();
        }
        let user = match &self.state().behaviour().token {
            Some(token) => json!({ "token": token }),
            None => json!({}),
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": "lab", "user": user }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
            "current-context": "lab",
        });
        format!("{config:#}\n")
    }

    /// Requires this bearer token from now on. Any other request gets 401, except health and version.
    pub fn require_token(&self, token: Option<&str>) {
        self.state().behaviour().token = token.map(str::to_owned);
    }

    /// Requires a client certificate from now on. Any other request gets 401, except health and version.
    pub fn require_client_certificate(&self, on: bool) {
        self.state().behaviour().client_certificate = on;
    }

    /// Creates a certificate that identifies a client as `name`; see [`RecordedRequest::client`].
    ///
    /// # Errors
    /// If the server does not use TLS, or no certificate can be created.
    pub fn client_identity(&self, name: &str) -> io::Result<ClientIdentity> {
        self.state().authorities().as_mut().ok_or_else(no_tls)?.issue_to_client(name)
    }

    /// Replaces the CA of clients. The handshakes of clients with earlier certificates fail from now on. Open connections are
    /// not affected.
    ///
    /// # Errors
    /// If the server does not use TLS, or no certificate can be created.
    pub fn replace_client_ca(&self) -> io::Result<()> {
        self.replace(Authorities::replace_of_clients)
    }

    /// Replaces the CA of the server and its certificate; [`KubeApi::ca_pem`] returns the new one. Open connections are not
    /// affected.
    ///
    /// # Errors
    /// If the server does not use TLS, or no certificate can be created.
    pub fn replace_server_ca(&self) -> io::Result<()> {
        self.replace(Authorities::replace_of_server)
    }

    fn replace(&self, which: impl FnOnce(&mut Authorities) -> io::Result<()>) -> io::Result<()> {
        let mut authorities = self.state().authorities();
        let authorities = authorities.as_mut().ok_or_else(no_tls)?;
        which(authorities)?;
        self.running.server.set_tls(authorities.server()?);
        Ok(())
    }

    fn state(&self) -> &Arc<State> {
        &self.running.state
    }
}

fn no_tls() -> io::Error {
    io::Error::other("this server does not speak TLS")
}

/// Methods for objects.
impl KubeApi {
    /// Creates or replaces an object, and returns it as stored.
    ///
    /// The object gets a new `resourceVersion`. If it has no uid or creation time, it gets those of the object that it
    /// replaces, or fresh ones. An object with another uid than the one that it replaces is another object: the old one is
    /// deleted first.
    pub fn apply(&self, resource: Resource, object: Value) -> Value {
        Value::clone(&self.state().store().apply(resource, object))
    }

    /// Deletes an object, and returns whether it existed. Cluster-scoped objects have no namespace.
    pub fn delete(&self, resource: Resource, namespace: Option<&str>, name: &str) -> bool {
        let key = (namespace.unwrap_or_default().to_owned(), name.to_owned());
        self.state().store().delete(resource, &key)
    }

    /// Returns an object as it is stored now.
    #[must_use]
    pub fn get(&self, resource: Resource, namespace: Option<&str>, name: &str) -> Option<Value> {
        let key = (namespace.unwrap_or_default().to_owned(), name.to_owned());
        let store = self.state().store();
        store.get(resource, &key).map(|object| Value::clone(object))
    }

    /// The version of the latest change.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        self.state().store().version()
    }
}

/// Methods for what clients did.
impl KubeApi {
    /// Every request that was read, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.state().requests().clone()
    }

    /// Discards the requests that were recorded so far.
    pub fn clear_requests(&self) {
        self.state().requests().clear();
    }

    /// Waits until a request that `matches` has been read, and returns the first one.
    pub async fn wait_for_request(&self, matches: impl Fn(&RecordedRequest) -> bool) -> RecordedRequest {
        loop {
            let found = |state: &State| state.requests().iter().find(|it| matches(it)).cloned();
            self.state().wait_until(|state| found(state).is_some()).await;
            if let Some(request) = found(self.state()) {
                return request;
            }
        }
    }

    /// The events that were posted, of both groups, in order, with later patches applied.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.state().events().all()
    }

    /// Waits until at least `n` events have been posted.
    pub async fn wait_for_events(&self, n: usize) {
        self.state().wait_until(|state| state.events().len() >= n).await;
    }

    /// How many watches of a resource are open.
    #[must_use]
    pub fn watchers(&self, resource: Resource) -> usize {
        self.state().store().watches(resource)
    }

    /// Waits until at least `n` watches of a resource are open.
    pub async fn wait_for_watchers(&self, resource: Resource, n: usize) {
        self.state().wait_until(|state| state.store().watches(resource) >= n).await;
    }

    /// Waits until no watch of a resource is open.
    pub async fn wait_for_no_watchers(&self, resource: Resource) {
        self.state().wait_until(|state| state.store().watches(resource) == 0).await;
    }
}

/// Methods for service account tokens.
impl KubeApi {
    /// The issuer of service account tokens, whose documents the server publishes. It is `https://kubernetes.default.svc`, and signs
    /// with RS256.
    #[must_use]
    pub fn token_issuer(&self) -> TokenIssuer {
        self.state().token_issuer().clone()
    }

    /// Returns the claims of a projected token of a pod, from the pod as it is stored, its service account and its node.
    #[must_use]
    pub fn pod_token(&self, namespace: &str, pod: &str) -> Option<PodToken> {
        let uid = |object: &Value| object["metadata"]["uid"].as_str().map(str::to_owned);
        let object = self.get(Resource::Pods, Some(namespace), pod)?;
        let mut token = PodToken::new(namespace, pod, &uid(&object)?);
        let account = object["spec"]["serviceAccountName"].as_str()?;
        if let Some(uid) = self.get(Resource::ServiceAccounts, Some(namespace), account).as_ref().and_then(uid) {
            token = token.service_account(account, &uid);
        } else {
            token = token.service_account_named(account);
        }
        let node = object["spec"]["nodeName"].as_str()?;
        let node_uid = self.get(Resource::Nodes, None, node).as_ref().and_then(uid);
        Some(token.node(node, node_uid.as_deref()))
    }
}

/// Methods for port-forwards.
impl KubeApi {
    /// Connects port-forwards to this pod with `to`, whatever port they name. Otherwise, the connection is refused, as by a
    /// kubelet if nothing listens on the port.
    pub fn forward_to(&self, namespace: &str, pod: &str, to: SocketAddr) {
        self.state().forwards().insert((namespace.to_owned(), pod.to_owned()), to);
    }
}

/// Methods for faults.
impl KubeApi {
    /// Resets every open connection at once, even in the middle of an answer: what a client has not read yet is lost. No watch
    /// is open when this returns.
    pub fn cut_connections(&self) {
        // In this order, because a watch that loses its place must not end cleanly before its connection is cut.
        self.running.server.cut();
        self.state().store().close_watches();
        self.state().changed();
    }

    /// While on, requests are read and recorded but not answered, and watches receive nothing. Afterwards everything is
    /// delivered.
    pub fn stall(&self, on: bool) {
        self.state().stall(on);
    }

    /// While on, writes of events are read and recorded but not answered. Everything else is answered.
    pub fn hold_event_writes(&self, on: bool) {
        self.state().hold_event_writes(on);
    }

    /// While on, patches of nodes are read and recorded but neither answered nor applied. Everything else is answered. A node
    /// can thus be changed between a client's read and its patch.
    pub fn hold_node_patches(&self, on: bool) {
        self.state().hold_node_patches(on);
    }

    /// While on, new connections are accepted and reset at once.
    pub fn refuse_connections(&self, on: bool) {
        self.running.server.refuse(on);
    }

    /// Answers the next requests that match with an error. Faults are used up in the order in which they were given.
    pub fn fail_next(&self, fault: Fault) {
        self.state().behaviour().fail_next(fault);
    }

    /// Revokes a permission, such as `list` of `"pods"`: requests get 403, and access reviews say so. Open watches stay open,
    /// as on a real server. A path, such as `/openid/v1/jwks`, is denied by `get` of it.
    pub fn deny(&self, verb: Verb, resource: &str) {
        self.state().behaviour().deny(verb, resource);
    }

    /// Restores a permission.
    pub fn allow(&self, verb: Verb, resource: &str) {
        self.state().behaviour().allow(verb, resource);
    }

    /// Discards the history before the current version. A watch from an older version gets an ERROR event with code 410, and a
    /// page of an older list gets 410. A watch can still start from the current version.
    pub fn compact(&self) {
        self.state().store().compact();
    }

    /// Withholds events of objects with this name from watches, as if the watches were behind. Events of other objects are
    /// still sent. Gets and lists return the current objects.
    pub fn hold_events(&self, resource: Resource, name: &str) {
        self.state().store().hold(resource, name);
    }

    /// Sends the events that were withheld. Each has the resource version of its change, as gets and lists have shown it, which
    /// is earlier than that of events sent meanwhile. A watch that resumes from any version before this call gets them, too.
    pub fn release_events(&self, resource: Resource, name: &str) {
        self.state().store().release(resource, name);
    }

    /// Sends a bookmark to the watches of a resource that allow bookmarks.
    pub fn send_bookmark(&self, resource: Resource) {
        self.state().store().bookmark_all(resource);
    }

    /// Sets how often watches that are opened from now on get a bookmark if they allow it. The default is every minute.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        self.state().behaviour().bookmark_interval = interval;
    }

    /// While on, `sendInitialEvents` is rejected with 422, as by a server without the `WatchList` feature.
    pub fn without_streaming_lists(&self, on: bool) {
        self.state().behaviour().streaming_lists = !on;
    }

    /// Sends an arbitrary line to the open watches of a resource.
    pub fn inject_raw_event(&self, resource: Resource, line: &str) {
        self.state().store().send_raw(resource, line);
    }

    /// Stops the server: closes the listener and resets every connection.
    pub fn shutdown(&self) {
        self.running.server.stop();
        self.state().store().close_watches();
        self.state().changed();
    }
}

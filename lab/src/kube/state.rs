//! The state of the server, and how it answers a request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::certificates::Authorities;
use super::discovery;
use super::events::Events;
use super::faults::{Behaviour, Verb};
use super::info::ResourceInfo;
use super::issuer::{SigningKey, TokenIssuer};
use super::list;
use super::objects::{Resource, Shape};
use super::portforward;
use super::request::{Call, RecordedRequest, Route};
use super::stall::unstalled;
use super::status::{ApiError, json_response};
use super::store::Store;
use super::token_review;
use crate::serve::{Body, Handler, Peer, full};

/// The media type of the key set.
const KEYS_TYPE: &str = "application/jwk-set+json";
/// The user name of every client in error messages.
const USER: &str = "system:serviceaccount:kube-system:rolegate";

/// The default name of the token issuer.
const ISSUER: &str = "https://kubernetes.default.svc";

#[derive(Debug)]
pub(super) struct State {
    store: Mutex<Store>,
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<RecordedRequest>>,
    events: Mutex<Events>,
    authorities: Mutex<Option<Authorities>>,
    forwards: Mutex<HashMap<(String, String), SocketAddr>>,
    token_issuer: TokenIssuer,
    pub(super) stall: watch::Sender<bool>,
    hold_event_writes: watch::Sender<bool>,
    hold_node_patches: watch::Sender<bool>,
    /// Notified of every change that a test may wait for.
    changes: watch::Sender<()>,
}

impl State {
    pub(super) fn new(authorities: Option<Authorities>) -> State {
        State {
            store: Mutex::new(Store::new()),
            behaviour: Mutex::new(Behaviour::new()),
            requests: Mutex::default(),
            events: Mutex::default(),
            authorities: Mutex::new(authorities),
            forwards: Mutex::default(),
            token_issuer: TokenIssuer::new(ISSUER, SigningKey::rs256()),
            stall: watch::Sender::new(false),
            hold_event_writes: watch::Sender::new(false),
            hold_node_patches: watch::Sender::new(false),
            changes: watch::Sender::new(()),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub(super) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        lock(&self.behaviour)
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Vec<RecordedRequest>> {
        lock(&self.requests)
    }

    pub(super) fn events(&self) -> MutexGuard<'_, Events> {
        lock(&self.events)
    }

    pub(super) fn token_issuer(&self) -> &TokenIssuer {
        &self.token_issuer
    }

    /// The certificate authorities. `None` without TLS.
    pub(super) fn authorities(&self) -> MutexGuard<'_, Option<Authorities>> {
        lock(&self.authorities)
    }

    /// Where port-forwards to a pod are connected with, by namespace and name.
    pub(super) fn forwards(&self) -> MutexGuard<'_, HashMap<(String, String), SocketAddr>> {
        lock(&self.forwards)
    }

    pub(super) fn stall(&self, on: bool) {
        self.stall.send_replace(on);
    }

    pub(super) fn hold_event_writes(&self, on: bool) {
        self.hold_event_writes.send_replace(on);
    }

    pub(super) fn hold_node_patches(&self, on: bool) {
        self.hold_node_patches.send_replace(on);
    }

    pub(super) fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Waits until `condition` is true, checking it after each change.
    pub(super) async fn wait_until(&self, condition: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        while !condition(self) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn answer(self: &Arc<State>, call: &Call) -> Result<Response<Body>, ApiError> {
        self.admit(call)?;
        match (&call.route, call.verb) {
            (Route::Health, _) => Ok(Response::new(full("ok"))),
            (Route::Version, _) => Ok(json_response(StatusCode::OK, &discovery::version())),
            (Route::Discovery(parts), _) => {
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                let document = discovery::document(&parts).ok_or_else(ApiError::unknown_path)?;
                Ok(json_response(StatusCode::OK, &document))
            }
            (Route::Unknown | Route::PortForward { .. }, _) => Err(ApiError::unknown_path()),
            (Route::TokenKeys, Some(Verb::Get)) => document_of_issuer(call, KEYS_TYPE, &self.token_issuer.jwks()),
            (Route::TokenConfiguration, Some(Verb::Get)) => {
                document_of_issuer(call, "application/json", &self.token_issuer.configuration())
            }
            (Route::AccessReview, Some(Verb::Create)) => self.review(call.json()?),
            (Route::TokenReview, Some(Verb::Create)) => {
                let review = token_review::answer(&self.token_issuer, &self.store(), call.json()?);
                Ok(json_response(StatusCode::CREATED, &review))
            }
            (Route::Objects { resource, namespace, name }, Some(verb)) => {
                self.objects(call, verb, *resource, namespace.as_deref(), name.as_deref())
            }
            (Route::Events { group, namespace, name }, Some(verb)) => self.event(call, verb, group, namespace, name.as_deref()),
            (
                Route::AccessReview
                | Route::TokenReview
                | Route::Objects { .. }
                | Route::Events { .. }
                | Route::TokenKeys
                | Route::TokenConfiguration,
                _,
            ) => Err(ApiError::method_not_allowed()),
        }
    }

    /// Checks authentication, injected faults and authorization.
    fn admit(&self, call: &Call) -> Result<(), ApiError> {
        let mut behaviour = self.behaviour();
        let open = matches!(call.route, Route::Health | Route::Version);
        if let Some(token) = &behaviour.token
            && !open
            && call.bearer() != Some(token)
        {
            return Err(ApiError::unauthorized());
        }
        if behaviour.client_certificate && !open && call.client.is_none() {
            return Err(ApiError::unauthorized());
        }
        let resource = match &call.route {
            Route::Objects { resource, .. } => Some(*resource),
            _ => None,
        };
        if let Some(error) = behaviour.take_fault(resource, call.verb) {
            return Err(error);
        }
        if matches!(call.route, Route::TokenKeys | Route::TokenConfiguration)
            && !behaviour.is_allowed("get", ResourceInfo { group: "", plural: &call.path })
        {
            let message = format!("forbidden: User \"{USER}\" cannot get path \"{}\"", call.path);
            return Err(ApiError::new(403, "Forbidden", message));
        }
        if let (Some((info, namespace, name)), Some(verb)) = (call.subject(), call.verb)
            && !behaviour.is_allowed(verb.as_str(), info)
        {
            let verb = verb.as_str();
            return Err(ApiError::forbidden(USER, verb, info, namespace, name));
        }
        Ok(())
    }

    fn forward(&self, call: &Call, upgrade: OnUpgrade) -> Result<Response<Body>, ApiError> {
        self.admit(call)?;
        let Route::PortForward { namespace, pod } = &call.route else { return Err(ApiError::unknown_path()) };
        let key = (namespace.clone(), pod.clone());
        if self.store().get(Resource::Pods, &key).is_none() {
            return Err(ApiError::not_found(Resource::Pods.info(), pod));
        }
        portforward::answer(call, upgrade, self.forwards().get(&key).copied())
    }

    fn objects(
        self: &Arc<State>,
        call: &Call,
        verb: Verb,
        resource: Resource,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<Response<Body>, ApiError> {
        let name = name.unwrap_or_default();
        let key = (namespace.unwrap_or_default().to_owned(), name.to_owned());
        match verb {
            Verb::List => {
                let shape = Shape::negotiate(&call.headers, true)?;
                let list = list::list(&self.store(), call, shape, resource, namespace)?;
                Ok(json_response(StatusCode::OK, &list))
            }
            Verb::Watch => self.open_watch(call, resource, namespace),
            Verb::Get => {
                let shape = Shape::negotiate(&call.headers, false)?;
                let store = self.store();
                let object = store.get(resource, &key);
                let object = object.ok_or_else(|| ApiError::not_found(resource.info(), name))?;
                Ok(json_response(StatusCode::OK, &shape.object(object)))
            }
            Verb::Patch => {
                require_merge_patch(call)?;
                let object = self.store().patch(resource, &key, &call.json()?)?;
                Ok(json_response(StatusCode::OK, &object))
            }
            Verb::Create => Err(ApiError::method_not_allowed()),
        }
    }

    fn event(&self, call: &Call, verb: Verb, group: &str, namespace: &str, name: Option<&str>) -> Result<Response<Body>, ApiError> {
        let (code, event) = match (verb, name) {
            (Verb::Create, None) => {
                self.require_living_namespace(namespace, call)?;
                let version = self.store().next_version();
                let created = self.events().create(group, namespace, version, call.json()?)?;
                (StatusCode::CREATED, created)
            }
            (Verb::Patch, Some(name)) => {
                require_merge_patch(call)?;
                let patched = self.events().patch(group, namespace, name, &call.json()?)?;
                (StatusCode::OK, patched)
            }
            _ => return Err(ApiError::method_not_allowed()),
        };
        self.changed();
        Ok(json_response(code, &event))
    }

    /// Rejects objects in a namespace that is being deleted (the admission plugin NamespaceLifecycle). Unlike on a real server,
    /// a namespace that was never applied counts as existing.
    fn require_living_namespace(&self, namespace: &str, call: &Call) -> Result<(), ApiError> {
        let key = (String::new(), namespace.to_owned());
        let ends = self.store().get(Resource::Namespaces, &key).is_some_and(|object| object["status"]["phase"] == "Terminating");
        if !ends {
            return Ok(());
        }
        let event = call.json()?;
        let name = event["metadata"]["name"].as_str().unwrap_or_default();
        let message =
            format!("events \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated");
        Err(ApiError::new(403, "Forbidden", message).with_details(json!({
            "name": name, "kind": "events",
            "causes": [{
                "reason": "NamespaceTerminating", "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }],
        })))
    }

    /// Answers a `SelfSubjectAccessReview`.
    fn review(&self, mut review: Value) -> Result<Response<Body>, ApiError> {
        let attributes = &review["spec"]["resourceAttributes"];
        let text = |field: &str| attributes[field].as_str().unwrap_or_default();
        let info = ResourceInfo { group: text("group"), plural: text("resource") };
        let allowed = self.behaviour().is_allowed(text("verb"), info);
        review["status"] = match allowed {
            true => json!({
                "allowed": true,
                "reason": format!("RBAC: allowed by ClusterRoleBinding \"rolegate\" of ClusterRole \"rolegate\" to {USER}"),
            }),
            false => json!({ "allowed": false }),
        };
        Ok(json_response(StatusCode::CREATED, &review))
    }
}

impl Handler for State {
    async fn handle(self: Arc<Self>, peer: Peer, mut request: Request<Incoming>) -> Response<Body> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                return ApiError::bad_request(format!("the body broke off: {error}")).response();
            }
        };
        let name = |certificate| self.authorities().as_ref().and_then(|authorities| authorities.name_of(certificate));
        let client = peer.certificate.as_ref().and_then(name);
        let call = Call::read(parts, body, client);
        self.requests().push(call.record());
        self.changed();
        unstalled(&mut self.stall.subscribe()).await;
        if matches!(call.route, Route::Events { .. }) {
            unstalled(&mut self.hold_event_writes.subscribe()).await;
        }
        if matches!(call.route, Route::Objects { resource: Resource::Nodes, .. }) && call.verb == Some(Verb::Patch) {
            unstalled(&mut self.hold_node_patches.subscribe()).await;
        }
        let answer = match &call.route {
            Route::PortForward { .. } => self.forward(&call, upgrade),
            _ => self.answer(&call),
        };
        answer.unwrap_or_else(|error| error.response())
    }
}

/// Answers with a document of the token issuer. Unlike for objects, the API server knows one media type for each of them.
fn document_of_issuer(call: &Call, media_type: &'static str, document: &Value) -> Result<Response<Body>, ApiError> {
    let accept = call.header(&ACCEPT).unwrap_or("*/*");
    let accepted = |range: &str| matches!(range.split(';').next().unwrap_or_default().trim(), "*/*") || range.trim() == media_type;
    if !accept.split(',').any(accepted) {
        return Err(ApiError::new(406, "NotAcceptable", "406: Not Acceptable"));
    }
    let mut answer = Response::new(full(document.to_string()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(answer)
}

fn require_merge_patch(call: &Call) -> Result<(), ApiError> {
    let content_type = call.header(&CONTENT_TYPE).unwrap_or_default();
    if content_type.split(';').next() == Some("application/merge-patch+json") {
        return Ok(());
    }
    Err(ApiError::new(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: application/merge-patch+json",
    ))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

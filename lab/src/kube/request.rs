//! A parsed request: what it is for, and what tests may inspect later.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, header};
use serde_json::Value;
use tokio::time::Instant;

use super::events::NEW_GROUP;
use super::faults::Verb;
use super::info::ResourceInfo;
use super::issuer;
use super::objects::Resource;
use super::status::ApiError;

/// A request that the server received, for tests to assert on.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// The HTTP method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The decoded query parameters, in order.
    pub query: Vec<(String, String)>,
    /// The `Accept` header.
    pub accept: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The body, if it was JSON; otherwise null.
    pub body: Value,
    /// The name that the client's certificate was issued to, if it presented one.
    pub client: Option<String>,
    /// The RBAC verb; `None` for paths that are not resources.
    pub verb: Option<Verb>,
    /// When the request had been read.
    pub at: Instant,
}

impl RecordedRequest {
    /// Returns the first value of a query parameter.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        let pair = self.query.iter().find(|(key, _)| key == name);
        pair.map(|(_, value)| value.as_str())
    }
}

/// The target of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/healthz` and similar paths.
    Health,
    Version,
    /// The parts of an API discovery path, such as `["apis", "events.k8s.io", "v1"]`.
    Discovery(Vec<String>),
    Objects {
        resource: Resource,
        namespace: Option<String>,
        name: Option<String>,
    },
    Events {
        group: &'static str,
        namespace: String,
        name: Option<String>,
    },
    AccessReview,
    TokenReview,
    /// The key set of the token issuer.
    TokenKeys,
    /// The configuration of the token issuer.
    TokenConfiguration,
    /// `pods/portforward`.
    PortForward {
        namespace: String,
        pod: String,
    },
    Unknown,
}

impl Route {
    fn of(path: &str) -> Route {
        match path {
            issuer::KEYS => return Route::TokenKeys,
            issuer::CONFIGURATION => return Route::TokenConfiguration,
            _ => {}
        }
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            ["healthz" | "readyz" | "livez", ..] => Route::Health,
            ["version"] => Route::Version,
            ["api"] | ["api", "v1"] | ["apis"] | ["apis", _] | ["apis", _, "v1"] => {
                Route::Discovery(parts.iter().map(|&part| part.to_owned()).collect())
            }
            ["api", "v1", rest @ ..] => Route::core(rest),
            ["apis", NEW_GROUP, "v1", "namespaces", namespace, "events", name @ ..] => Route::events(NEW_GROUP, namespace, name),
            ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => Route::AccessReview,
            ["apis", "authentication.k8s.io", "v1", "tokenreviews"] => Route::TokenReview,
            _ => Route::Unknown,
        }
    }

    fn core(parts: &[&str]) -> Route {
        let (namespace, plural, name) = match *parts {
            [plural] => (None, plural, None),
            ["namespaces", name] => (None, "namespaces", Some(name)),
            ["namespaces", namespace, "events", ref name @ ..] => {
                return Route::events("", namespace, name);
            }
            ["namespaces", namespace, "pods", pod, "portforward"] => {
                return Route::PortForward { namespace: namespace.to_owned(), pod: pod.to_owned() };
            }
            ["namespaces", namespace, plural] => (Some(namespace), plural, None),
            ["namespaces", namespace, plural, name] => (Some(namespace), plural, Some(name)),
            [plural, name] => (None, plural, Some(name)),
            _ => return Route::Unknown,
        };
        match Resource::from_plural(plural) {
            // A namespaced object is only addressed within its namespace, and a cluster-scoped object never is.
            Some(resource)
                if namespace.is_none() && (name.is_none() || !resource.is_namespaced())
                    || namespace.is_some() && resource.is_namespaced() =>
            {
                Route::Objects { resource, namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) }
            }
            _ => Route::Unknown,
        }
    }

    fn events(group: &'static str, namespace: &str, name: &[&str]) -> Route {
        let name = match name {
            [] => None,
            [name] => Some((*name).to_owned()),
            _ => return Route::Unknown,
        };
        Route::Events { group, namespace: namespace.to_owned(), name }
    }
}

/// A request and its route.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    body: Bytes,
    pub(super) route: Route,
    pub(super) verb: Option<Verb>,
    pub(super) client: Option<String>,
}

impl Call {
    pub(super) fn read(parts: Parts, body: Bytes, client: Option<String>) -> Call {
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let query: Vec<_> = form_urlencoded::parse(query).into_owned().collect();
        let mut call = Call {
            route: Route::of(parts.uri.path()),
            path: parts.uri.path().to_owned(),
            method: parts.method,
            query,
            headers: parts.headers,
            body,
            verb: None,
            client,
        };
        call.verb = call.find_verb();
        call
    }

    fn find_verb(&self) -> Option<Verb> {
        let named = match &self.route {
            Route::Objects { name, .. } | Route::Events { name, .. } => name.is_some(),
            Route::AccessReview | Route::TokenReview => false,
            // What a WebSocket is authorized as since Kubernetes 1.35, whatever its method.
            Route::PortForward { .. } => return Some(Verb::Create),
            Route::TokenKeys | Route::TokenConfiguration => return (self.method == Method::GET).then_some(Verb::Get),
            _ => return None,
        };
        match self.method.as_str() {
            "GET" if named => Some(Verb::Get),
            "GET" if self.flag("watch") == Some(true) => Some(Verb::Watch),
            "GET" => Some(Verb::List),
            "POST" if !named => Some(Verb::Create),
            "PATCH" if named => Some(Verb::Patch),
            _ => None,
        }
    }

    pub(super) fn record(&self) -> RecordedRequest {
        RecordedRequest {
            method: self.method.clone(),
            path: self.path.clone(),
            query: self.query.clone(),
            accept: self.header(&header::ACCEPT).map(str::to_owned),
            user_agent: self.header(&header::USER_AGENT).map(str::to_owned),
            body: serde_json::from_slice(&self.body).unwrap_or_default(),
            client: self.client.clone(),
            verb: self.verb,
            at: Instant::now(),
        }
    }

    /// Returns the resource, namespace and name of the request for RBAC.
    pub(super) fn subject(&self) -> Option<(ResourceInfo<'static>, Option<&str>, Option<&str>)> {
        match &self.route {
            Route::Objects { resource, namespace, name } => Some((resource.info(), namespace.as_deref(), name.as_deref())),
            Route::Events { group, namespace, name } => {
                let plural = "events";
                let info = ResourceInfo { group, plural };
                Some((info, Some(namespace), name.as_deref()))
            }
            Route::PortForward { namespace, pod } => {
                let info = ResourceInfo { group: "", plural: "pods/portforward" };
                Some((info, Some(namespace), Some(pod)))
            }
            Route::AccessReview => {
                let group = "authorization.k8s.io";
                let plural = "selfsubjectaccessreviews";
                Some((ResourceInfo { group, plural }, None, None))
            }
            Route::TokenReview => {
                let (group, plural) = ("authentication.k8s.io", "tokenreviews");
                Some((ResourceInfo { group, plural }, None, None))
            }
            _ => None,
        }
    }

    pub(super) fn header(&self, name: &header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn bearer(&self) -> Option<&str> {
        self.header(&header::AUTHORIZATION)?.strip_prefix("Bearer ")
    }

    /// Returns a query parameter that is present and not empty.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let pair = self.query.iter().find(|(key, _)| key == name);
        let value = pair.map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Parses a boolean as the server's query decoder does: `0` and `false` are false, anything else is true.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        let (_, value) = self.query.iter().find(|(key, _)| key == name)?;
        Some(!matches!(value.as_str(), "0" | "false"))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.parameter(name) else {
            return Ok(None);
        };
        value.parse().map(Some).map_err(|_| ApiError::bad_request(format!("{name}: Invalid value: \"{value}\": not a number")))
    }

    /// Parses the body: an object whose metadata is an object, too.
    pub(super) fn json(&self) -> Result<Value, ApiError> {
        let unrecognized = |error: &dyn std::fmt::Display| {
            ApiError::bad_request(format!("the object provided is unrecognized (must be of type JSON): {error}"))
        };
        let object: Value = serde_json::from_slice(&self.body).map_err(|error| unrecognized(&error))?;
        let metadata = object.get("metadata");
        if !object.is_object() || metadata.is_some_and(|it| !it.is_object() && !it.is_null()) {
            return Err(unrecognized(&"not an object"));
        }
        Ok(object)
    }
}

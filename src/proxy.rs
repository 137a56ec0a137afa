//! The pipeline of one request of a pod, from its head to the response.
//!
//! ```text
//! route ──▶ who is this? ──▶ is its token good? ──▶ which role may it have? ──▶ get its credentials ──▶ respond
//! ```
//!
//! The identity is the address of the connection's peer, from the kernel; for pods in the node's network, it is the control group of
//! the process that connected. No header is read for it. Nothing of a request is ever passed on to the real metadata service.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use http_body_util::Full;
use jiff::Timestamp;
use tracing::{Level, debug, warn};

use crate::advice::Advise as _;
use crate::clock::Clock;
use crate::config::TokenMode;
use crate::credentials::cache::Sessions;
use crate::credentials::{AssumeRole, Credentials};
use crate::events::{EventCause, Reporter};
use crate::log_once::{EachDigest, LOG_EVERY};
use crate::metrics::{Metrics, RouteMeters};
use crate::pods::{HostNetworkTreatment, Identifier, Lookup, Objection, Pod, PodContext, Pods};
use crate::policy::{Decision, Denial, Policy, RoleRequest};
use crate::report::recorder::{CredentialProtocol, Recorder};

mod again;
pub(crate) mod documents;
pub(crate) mod memory;
pub mod metadata;
pub(crate) mod migration;
mod origin;
pub(crate) mod pod_identity;
mod refusal;
pub(crate) mod respond;
pub mod route;
pub mod token;

pub use origin::{ConnectedProcess, Origin};

use memory::{Decided, DecisionBasis, Memory};
use metadata::{Access, MetadataLookup, MetadataValues, table};
use migration::Migration;
use pod_identity::settings::PodIdentity;
use refusal::{Asked, Refusal};
use respond::Outcome;
use route::{Body, Rejection, Route, RouteContext};
use token::Tokens;

/// The time between two log lines that are written once.
const ONCE: Duration = Duration::MAX;
/// The most subjects and reasons whose lines are remembered.
const MAX_LOGGED: usize = 4096;
/// The most log lines that unknown addresses cause in a minute, for each reason.
const UNKNOWN_SUBJECTS: u8 = 16;

/// The settings of the pipeline.
#[derive(Debug)]
pub struct ProxySettings {
    /// Which role a pod may have.
    pub policy: Arc<Policy>,
    /// Whether requests without a token are refused.
    pub tokens: TokenMode,
    /// The longest wait for the pod behind an address, and for what its role depends on.
    pub pod_wait: Duration,
    /// Which metadata a pod may read.
    pub access: Access,
}

/// Answers the requests of this node's pods.
#[derive(Debug)]
pub struct Proxy<A> {
    settings: ProxySettings,
    pods: Pods,
    sessions: Arc<Sessions<A>>,
    tokens: Tokens,
    metadata: MetadataValues,
    clock: Clock,
    metrics: Metrics,
    meters: Meters,
    /// The refusals that were logged recently, by subject and reason, so that a pod cannot fill the log.
    logged: EachDigest,
    /// The pods that merely look for credentials, and for which that was logged.
    told: EachDigest,
    events: Reporter,
    migration: Migration,
    recorder: Recorder,
    pod_identity: Option<PodIdentity>,
}

#[derive(Debug)]
struct Meters {
    token: RouteMeters,
    role_list: RouteMeters,
    credentials: RouteMeters,
    info: RouteMeters,
    metadata: RouteMeters,
    unknown: RouteMeters,
    rejected: RouteMeters,
    pod_identity: RouteMeters,
    relative_uri: RouteMeters,
}

/// Maps an address to one of a few subjects of log lines, because anybody can forge addresses.
fn few(ip: IpAddr) -> u8 {
    let last = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    last % UNKNOWN_SUBJECTS
}

/// Counts and logs a request that began at this time.
fn answered<B>(origin: &Origin, method: &Method, path: &str, response: &Response<B>, meters: &RouteMeters, began: Instant) {
    let status = response.status().as_u16();
    meters.answered(status, began.elapsed());
    debug!(event = "request-answered", source = %origin.ip, %method, path, status, "answered");
}

impl<A: AssumeRole> Proxy<A> {
    /// Creates a proxy of these parts.
    pub fn new(
        settings: ProxySettings,
        pods: Pods,
        sessions: Arc<Sessions<A>>,
        tokens: Tokens,
        clock: Clock,
        metrics: Metrics,
        events: Reporter,
    ) -> Self {
        let metadata = MetadataValues::new(settings.access.of_somebody());
        let meters = Meters {
            token: metrics.route("token"),
            role_list: metrics.route("role-list"),
            credentials: metrics.route("credentials"),
            info: metrics.route("info"),
            metadata: metrics.route("metadata"),
            unknown: metrics.route("unknown"),
            rejected: metrics.route("rejected"),
            pod_identity: metrics.route("pod-identity"),
            relative_uri: metrics.route("relative-uri"),
        };
        let (logged, told) = (EachDigest::new(LOG_EVERY, MAX_LOGGED), EachDigest::new(ONCE, MAX_LOGGED));
        let (migration, recorder, pod_identity) = (Migration::default(), Recorder::default(), None);
        Self { settings, pods, sessions, tokens, metadata, clock, metrics, meters, logged, told, events, migration, recorder, pod_identity }
    }

    /// Records what the strict settings would refuse.
    #[must_use]
    pub(crate) fn with_migration(self, migration: Migration) -> Self {
        Self { migration, ..self }
    }

    /// Records which protocols pods use.
    #[must_use]
    pub(crate) fn with_recorder(self, recorder: Recorder) -> Self {
        Self { recorder, ..self }
    }

    /// Returns the metadata values, for the task that keeps them up to date.
    pub fn values(&self) -> MetadataValues {
        self.metadata.clone()
    }

    /// Returns the pods of this node.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// Answers one request.
    pub async fn handle(&self, origin: &Origin, request: &Parts, body: Body) -> Response<Full<Bytes>> {
        self.handle_with(origin, request, body, None).await
    }

    /// Answers one request. If `memory` is given, the answer may be remembered there for the same request again.
    pub(crate) async fn handle_with(&self, origin: &Origin, request: &Parts, body: Body, memory: Option<&Memory>) -> Response<Full<Bytes>> {
        let began = Instant::now();
        let path = request.uri.path();
        let context = RouteContext { hosts: &origin.hosts, body, now: self.clock.now() };
        let (meters, outcome) = match route::route(&request.method, &request.uri, request.version, &request.headers, context) {
            Ok(route) => (self.meters(&route), self.answer(origin, route, request, memory).await),
            Err(rejection) => (&self.meters.rejected, self.reject(origin, rejection, path)),
        };
        let response = respond::respond(outcome, &request.method);
        answered(origin, &request.method, path, &response, meters, began);
        response
    }

    async fn answer(&self, origin: &Origin, route: Route, head: &Parts, memory: Option<&Memory>) -> Outcome {
        let asked = Asked::by(&route, head.uri.path());
        // Taken before the first lookup, so that no later change is missed.
        let seen = self.basis();
        // The limit of all waits until the decision.
        let until = tokio::time::Instant::now() + self.settings.pod_wait;
        let Some(identifier) = origin.identifier() else { return self.refuse(origin, Refusal::UnknownCgroup, asked) };
        let (pod, context) = match self.identify(origin, &identifier).await {
            Ok(found) => found,
            Err(refusal) => return self.refuse(origin, refusal, asked),
        };
        if !origin.is_of(&pod) {
            return self.refuse(origin, Refusal::Changed(pod), asked);
        }
        let with_token = matches!(route, Route::NewToken { .. }) || head.headers.contains_key(route::TOKEN);
        let protocol = if with_token { CredentialProtocol::Imdsv2 } else { CredentialProtocol::Imdsv1 };
        self.recorder.requested(&pod, protocol);
        if let Route::NewToken { ttl_seconds } = route {
            let token = self.tokens.issue(&pod.uid, origin.ip, Duration::from_secs(ttl_seconds.into()));
            return Outcome::Token { token, ttl_seconds };
        }
        let token_expires_at = match self.check_token(&head.headers, &pod, origin.ip) {
            Ok(expires_at) => expires_at,
            Err(given) => return self.refuse(origin, Refusal::Token { pod, given }, asked),
        };
        // Not before: an SDK without a token could send requests without one for as long as it lives.
        if self.is_denied(&pod) {
            return self.refuse(origin, Refusal::HostNetwork(pod), asked);
        }
        self.migration.asked(&pod, &route, head);
        let route = match route {
            Route::Unknown => return self.refuse(origin, Refusal::Path { pod, set: None }, asked),
            Route::Versions => return Outcome::Text(Bytes::from(route::VERSIONS.join("\n"))),
            Route::Metadata { path } => return self.metadata(origin, pod, &context, &path, asked).await,
            route => route,
        };
        let (pod, request, audit) = match self.decide(&identifier, pod, context, until).await {
            Ok(allowed) => allowed,
            Err(refusal) => return self.refuse(origin, refusal, asked),
        };
        self.migration.allowed(&pod, head);
        match route {
            Route::RoleList => Outcome::Text(Bytes::copy_from_slice(request.role().name().as_bytes())),
            Route::InstanceProfile => self.document(documents::instance_profile(request.role(), self.clock.now())),
            Route::Credentials { role, extended } if self.settings.policy.is_name_of(&role, request.role()) => {
                let credentials = match self.session(&identifier, &pod, &request, seen).await {
                    Ok(credentials) => credentials,
                    Err(refusal) => return self.refuse(origin, refusal, asked),
                };
                self.recorder.answered(&pod, protocol);
                if let (Some(memory), None, false) = (memory, audit, extended) {
                    self.remember(origin, memory, Decided { basis: seen, pod: &pod, request: &request, token_expires_at }).await;
                }
                self.document(match extended {
                    true => credentials.extended_document(|credentials| documents::extended_credentials(credentials, request.role())),
                    false => credentials.document(documents::credentials),
                })
            }
            Route::Credentials { .. } => self.refuse(origin, Refusal::OtherRole(pod), asked),
            // These are answered above.
            Route::NewToken { .. } | Route::Unknown | Route::Versions | Route::Metadata { .. } => Outcome::NotFound,
        }
    }

    /// Returns a value, or the listing of a directory. A listing contains what this pod may read, including the documents of its role.
    async fn metadata(&self, origin: &Origin, pod: Arc<Pod>, context: &PodContext, path: &str, asked: Asked<'_>) -> Outcome {
        let leads = documents::DIRECTORIES.contains(&path);
        let own = match leads.then(|| self.settings.policy.decide(&pod, context)) {
            Some(Decision::Allow { request, .. }) => documents::paths(request.role()),
            _ => Vec::new(),
        };
        let readable = self.settings.access.of(&pod.namespace);
        match self.metadata.find(path, readable, &own).await {
            MetadataLookup::Text(text) => Outcome::Text(text),
            MetadataLookup::Nothing => match table::set_of(path) {
                Some(set) if readable.contains(&set) => self.refuse(origin, Refusal::Absent(pod), asked),
                set => self.refuse(origin, Refusal::Path { pod, set }, asked),
            },
            MetadataLookup::Unavailable => self.refuse(origin, Refusal::Unavailable(pod), asked),
        }
    }

    /// Looks a pod up. If it is not known, waits until it is.
    async fn look_up(&self, identifier: &Identifier) -> Lookup {
        let found = self.pods.find(identifier);
        if matches!(found, Lookup::Found(..)) {
            return found;
        }
        let (began, _waiting) = (Instant::now(), self.metrics.pod_wait());
        let found = self.pods.wait_for(identifier, self.settings.pod_wait, |_, _| true).await;
        self.metrics.pod_waited(found != Lookup::Unknown, began.elapsed());
        found
    }

    /// Returns the pod that sent a request. If it is not known, waits until it is.
    async fn identify(&self, origin: &Origin, identifier: &Identifier) -> Result<(Arc<Pod>, PodContext), Refusal> {
        let (pod, context) = self.found(self.look_up(identifier).await)?;
        if origin.contradicts(&pod) {
            origin.close();
            return Err(Refusal::Objected(pod, Objection::OtherPodConnected));
        }
        // The pod should not have been redirected, and is not once its exemption is in effect.
        if pod.host_network && self.pods.host_network_treatment(&pod).is_left_alone() {
            origin.close();
            return Err(Refusal::HostNetworkExempt(pod));
        }
        Ok((pod, context))
    }

    /// Returns whether the pod is in the node's network, and nothing is served to such pods.
    fn is_denied(&self, pod: &Pod) -> bool {
        pod.host_network && self.pods.host_network_treatment(pod) != HostNetworkTreatment::Served
    }

    fn found(&self, lookup: Lookup) -> Result<(Arc<Pod>, PodContext), Refusal> {
        match lookup {
            Lookup::Found(pod, context) => Ok((pod, context)),
            Lookup::Ambiguous(pods) => Err(Refusal::AmbiguousAddress(pods)),
            Lookup::Unreadable(pod) => Err(Refusal::UnreadablePod(pod)),
            Lookup::Objected(pod, objection) => Err(Refusal::Objected(pod, objection)),
            Lookup::Unknown if !self.pods.is_listed() => Err(Refusal::PodsNotListed),
            Lookup::Unknown => Err(Refusal::UnknownPod),
        }
    }

    fn denied(&self, pod: Arc<Pod>, context: &PodContext, denial: Denial) -> Refusal {
        self.migration.denied(&self.settings.policy, &pod, context, denial);
        // Without a default role there is nothing to say about it.
        let by_default = denial != Denial::NoRole && self.settings.policy.names_no_role(&pod, context);
        Refusal::Denied { pod, denial, by_default }
    }

    /// Whether the pod has the default role, for what is said about its session.
    fn has_default_role(&self, identifier: &Identifier, pod: &Pod) -> bool {
        let found = self.pods.find(identifier);
        matches!(found, Lookup::Found(now, context) if now.uid == pod.uid && self.settings.policy.names_no_role(&now, &context))
    }

    /// Decides which role the pod may have. If something that the decision needs is not known yet, waits until it is. Also returns what
    /// would have been refused, if namespace restrictions are only audited.
    async fn decide(
        &self,
        identifier: &Identifier,
        mut pod: Arc<Pod>,
        mut context: PodContext,
        until: tokio::time::Instant,
    ) -> Result<(Arc<Pod>, RoleRequest, Option<Denial>), Refusal> {
        let policy = &self.settings.policy;
        if !policy.can_decide(&pod, &context) {
            let enough = |pod: &Pod, context: &PodContext| policy.can_decide(pod, context);
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let (now, now_around) = self.found(self.pods.wait_for(identifier, left, enough).await)?;
            // The token belongs to the first pod.
            if now.uid != pod.uid {
                return Err(Refusal::Changed(pod));
            }
            (pod, context) = (now, now_around);
        }
        match policy.decide(&pod, &context) {
            Decision::Allow { request, audit } => {
                if let Some(denial) = audit {
                    self.audited(&pod, &request, denial);
                }
                Ok((pod, request, audit))
            }
            Decision::Deny(denial) => Err(self.denied(pod, &context, denial)),
        }
    }

    /// Checks the token of a request, and returns when it expires. A token must be valid even if none is required. An error says whether
    /// there is one.
    fn check_token(&self, headers: &HeaderMap, pod: &Pod, ip: IpAddr) -> Result<Option<Timestamp>, bool> {
        let mut given = headers.get_all(route::TOKEN).iter();
        match (given.next(), given.next()) {
            (None, _) => {
                let served = self.settings.tokens == TokenMode::Optional;
                self.metrics.without_token(&pod.namespace, served);
                if served { Ok(None) } else { Err(false) }
            }
            (Some(token), None) => self.tokens.valid_until(token.as_bytes(), &pod.uid, ip).map(Some).ok_or(true),
            (Some(_), Some(_)) => Err(true),
        }
    }

    fn audited(&self, pod: &Arc<Pod>, request: &RoleRequest, denial: Denial) {
        self.metrics.audited(denial.name());
        self.migration.restricted(pod, request, denial);
        self.events.tell(pod, EventCause::would_be_denied(denial));
        if self.logged.is_due((&pod.uid, denial.name())) {
            warn!(
                event = "would-be-refused", namespace = %pod.namespace, pod = %pod.name, role = %request.refused_role(denial),
                reason = denial.name(),
                error = %denial, advice = denial.advice().as_deref(),
                "served because of --namespace-restrictions=audit; would be refused with --namespace-restrictions=true"
            );
        }
    }

    fn basis(&self) -> DecisionBasis {
        DecisionBasis {
            pods: self.pods.generation(),
            node: self.settings.policy.node_version(),
            tokens: self.tokens.generation(),
            sessions: self.sessions.generation(),
        }
    }

    /// Returns the credentials of an allowed session, if the pod may still have them once they are there.
    async fn session(
        &self,
        identifier: &Identifier,
        pod: &Arc<Pod>,
        request: &RoleRequest,
        seen: DecisionBasis,
    ) -> Result<Arc<Credentials>, Refusal> {
        let answer = self.sessions.get(request, pod).await;
        // On a bridge, a pod that takes over the address receives the response. That may have happened since the connection
        // began.
        self.pods.catch_up_on_bridges();
        let policy = &self.settings.policy;
        // A failure of STS is reported as one, even while nothing is known of the node.
        let other_node = policy.node_version() != seen.node || !policy.knows_node();
        let is_old = self.pods.generation() != seen.pods || (answer.is_ok() && other_node);
        if is_old {
            self.look_again(identifier, pod, request)?;
        }
        answer.map_err(|error| {
            let by_default = self.has_default_role(identifier, pod);
            Refusal::Session { pod: pod.clone(), request: Box::new(request.clone()), error, by_default }
        })
    }

    /// Checks again, after waiting for STS, that the address or the UID is still the pod's and that the pod may still have the role, by what is
    /// known now of the pod and of the node itself.
    fn look_again(&self, identifier: &Identifier, pod: &Arc<Pod>, request: &RoleRequest) -> Result<(), Refusal> {
        let changed = || Refusal::Changed(pod.clone());
        match self.pods.find(identifier) {
            // Nothing is served until the daemon's own identity is known.
            _ if !self.settings.policy.knows_node() => Err(changed()),
            Lookup::Found(now, context) if now.uid == pod.uid => match self.settings.policy.decide(&now, &context) {
                Decision::Allow { request: allowed, .. } if allowed == *request => Ok(()),
                Decision::Deny(denial) if denial.is_about_node() => Err(self.denied(now, &context, denial)),
                _ => Err(changed()),
            },
            Lookup::Objected(now, objection) if now.uid == pod.uid => Err(Refusal::Objected(now, objection)),
            _ => Err(changed()),
        }
    }

    fn document(&self, rendered: Result<Bytes, serde_json::Error>) -> Outcome {
        rendered.map_or(Outcome::Failed, Outcome::Text)
    }

    fn reject(&self, origin: &Origin, rejection: Rejection, path: &str) -> Outcome {
        self.refuse(origin, Refusal::Rejected(self.sender(origin), rejection), Asked::for_value(path))
    }

    /// Returns the pod that probably sent a request, for the log and the owner alone. A connection may be older than the pod that has
    /// its address now.
    fn sender(&self, origin: &Origin) -> Option<Arc<Pod>> {
        match origin.identifier().map(|identifier| self.pods.find(&identifier)) {
            Some(Lookup::Found(pod, _)) if origin.may_be_of(&pod) => Some(pod),
            _ => None,
        }
    }

    fn refuse(&self, origin: &Origin, refusal: Refusal, asked: Asked<'_>) -> Outcome {
        self.report(origin, &refusal, asked);
        refusal.outcome(asked.kind)
    }

    /// Counts a refusal, logs it (at most once a minute for each pod and reason, whatever the path), and reports it to the pod's owner.
    fn report(&self, origin: &Origin, refusal: &Refusal, asked: Asked<'_>) {
        let ip = origin.ip;
        let reason = refusal.reason();
        self.metrics.denied(refusal.metric_reason());
        self.migration.refused(refusal);
        if refusal.is_silent() {
            return;
        }
        if let Refusal::AmbiguousAddress(pods) = refusal {
            pods.iter().for_each(|pod| self.events.tell(pod, EventCause::AddressAmbiguous));
        }
        let mut again = false;
        let is_due = match (refusal, refusal.pod()) {
            (Refusal::AmbiguousAddress(_), _) => self.logged.is_due((ip, reason)),
            (_, Some(pod)) => {
                self.metrics.pod_refused(&pod.namespace, refusal.metric_reason());
                again = refusal.is_probe() && !self.told.is_due((&pod.uid, reason));
                if !again {
                    self.events.tell(pod, refusal.event());
                }
                if refusal.is_probe() { !again || tracing::enabled!(Level::DEBUG) } else { self.logged.is_due((&pod.uid, reason)) }
            }
            // Unknown addresses share a few lines, because forged ones could fill the log. The UID of a control group is not forged.
            (_, None) => match origin.process.as_ref().and_then(|process| process.owner.as_ref()) {
                Some(owner) => self.logged.is_due((&owner.pod, reason)),
                None => self.logged.is_due((few(ip), reason)),
            },
        };
        if is_due {
            refusal.log(origin, asked, again);
        }
    }

    fn meters(&self, route: &Route) -> &RouteMeters {
        match route {
            Route::NewToken { .. } => &self.meters.token,
            Route::RoleList => &self.meters.role_list,
            Route::Credentials { .. } => &self.meters.credentials,
            Route::InstanceProfile => &self.meters.info,
            Route::Versions | Route::Metadata { .. } => &self.meters.metadata,
            Route::Unknown => &self.meters.unknown,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! The pipeline of one request for credentials with a service account token (the protocol of EKS Pod Identity).
//!
//! ```text
//! route ──▶ is the token valid? ──▶ did its pod send it? ──▶ which role may it have? ──▶ get its credentials ──▶ respond
//! ```
//!
//! A token is signed by the cluster and bound to a pod. In addition, the connection must come from the address of that pod or, for a pod in
//! the node's network, from the node. A token that was stolen from one pod is therefore of no use at another address.
//!
//! At the address of the relative URI (`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`), there is no token: the pod is identified by its address, as
//! for metadata.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::Full;

use super::memory::DecisionBasis;
use super::origin::Origin;
use super::refusal::{Asked, Refusal};
use super::{Proxy, answered, documents, respond};
use crate::credentials::AssumeRole;
use crate::metrics::RouteMeters;
use crate::pod_identity::keys::KeyRequester;
use crate::pod_identity::token::{BearerToken, TokenError, UnprovenClaims};
use crate::pod_identity::verifier::Examined;
use crate::pods::{Identifier, Lookup, Objection, Pod, PodContext};
use crate::report::recorder::CredentialProtocol;

mod errors;
mod route;
pub(crate) mod settings;

use settings::PodIdentity;

/// When a request came.
struct Since {
    /// What was known before the pod was looked up.
    seen: DecisionBasis,
    /// The end of the wait for what the decision depends on.
    until: tokio::time::Instant,
}

impl<A: AssumeRole> Proxy<A> {
    /// Also serves credentials for service account tokens, if `pod_identity` is given.
    #[must_use]
    pub(crate) fn with_pod_identity(self, pod_identity: Option<PodIdentity>) -> Self {
        Self { pod_identity, ..self }
    }

    /// Answers one request on a connection to `local`, an address of Pod Identity.
    pub(crate) async fn handle_pod_identity(&self, origin: &Origin, local: SocketAddr, request: &Parts) -> Response<Full<Bytes>> {
        self.answer_identity(origin, request, &self.meters.pod_identity, self.credentials_by_token(origin, local, request)).await
    }

    /// Answers one request on a connection to `local`, the address of the relative URI.
    pub(crate) async fn handle_relative_uri(&self, origin: &Origin, local: SocketAddr, request: &Parts) -> Response<Full<Bytes>> {
        self.answer_identity(origin, request, &self.meters.relative_uri, self.credentials_by_address(origin, local, request)).await
    }

    async fn answer_identity(
        &self,
        origin: &Origin,
        request: &Parts,
        meters: &RouteMeters,
        credentials: impl Future<Output = Result<Bytes, Refusal>>,
    ) -> Response<Full<Bytes>> {
        let began = Instant::now();
        let response = match credentials.await {
            Ok(document) => respond::identity_document(document),
            Err(refusal) => {
                self.report(origin, &refusal, Asked::for_identity(request.uri.path()));
                respond::identity_error(&refusal.identity_error(self.events.is_on()))
            }
        };
        answered(origin, &request.method, request.uri.path(), &response, meters, began);
        response
    }

    async fn credentials_by_token(&self, origin: &Origin, local: SocketAddr, request: &Parts) -> Result<Bytes, Refusal> {
        // The address of the node does not identify the sender.
        let sender = || if origin.is_of_node && origin.process.is_none() { None } else { self.sender(origin) };
        if let Err(rejection) = route::check(&request.method, &request.uri, &request.headers, Some(local)) {
            return Err(Refusal::IdentityRejected(sender(), rejection));
        }
        let Some(PodIdentity { verifier, node, reviews }) = &self.pod_identity else {
            return Err(Refusal::ServiceAccountToken(sender(), TokenError::NoKeys));
        };
        let refused = |error| Refusal::ServiceAccountToken(sender(), error);
        let token = route::token(&request.headers).and_then(BearerToken::new).map_err(refused)?;
        // Taken before the first lookup, so that no later change is missed.
        let seen = self.basis();
        let claims = match verifier.examine(&token).await.map_err(refused)? {
            Examined::Valid(claims) => claims,
            Examined::UnknownKey(token) => {
                let requester = self.key_requester(origin, token.claimed(), node).await?;
                token.verify(&requester).await.map_err(refused)?
            }
        };
        if claims.node.as_ref().is_some_and(|of_token| of_token.name != *node) {
            return Err(Refusal::TokenOfOtherNode(sender(), claims));
        }
        let until = tokio::time::Instant::now() + self.settings.pod_wait;
        // Connections of pods in the node's network have the node's address. The token says which of these pods it is. Where the kernel
        // tells the pod of the client's socket, it must be the same.
        let identifier = match origin.is_of_node {
            true => Identifier::HostNetwork(claims.pod_uid.0.clone()),
            false => Identifier::Address(origin.ip),
        };
        let (pod, context) = match self.look_up(&identifier).await {
            // A pod with a network of its own never connects from the node.
            Lookup::Objected(_, Objection::NotInHostNetwork) => return Err(Refusal::TokenOfOtherPod(sender(), claims)),
            found => self.found(found)?,
        };
        if origin.contradicts(&pod) {
            return Err(Refusal::TokenOfOtherPod(sender(), claims));
        }
        if !origin.is_of(&pod) {
            return Err(Refusal::Changed(pod));
        }
        if pod.uid != claims.pod_uid {
            return Err(Refusal::TokenOfOtherPod(Some(pod), claims));
        }
        let protocol = CredentialProtocol::PodIdentity;
        self.recorder.requested(&pod, protocol);
        if pod.host_network && self.pods.denies_in_host_network(&pod) {
            return Err(Refusal::HostNetwork(pod));
        }
        if let Some(reviews) = reviews {
            reviews.confirm(&token, &claims).await.map_err(|error| Refusal::ServiceAccountToken(Some(pod.clone()), error))?;
        }
        self.container_credentials(&identifier, pod, context, Since { until, seen }, protocol).await
    }

    /// Returns the credentials of the pod at the source address of the connection. As for metadata, no header is read for the identity, and
    /// that includes a token: SDKs also send one here if their environment has one.
    async fn credentials_by_address(&self, origin: &Origin, local: SocketAddr, request: &Parts) -> Result<Bytes, Refusal> {
        let checked = route::check(&request.method, &request.uri, &request.headers, Some(local));
        if let Err(rejection) = checked.and_then(|()| route::check_not_of_browser(&request.headers)) {
            let sender = if origin.is_of_node { None } else { self.sender(origin) };
            return Err(Refusal::IdentityRejected(sender, rejection));
        }
        if origin.is_of_node {
            return Err(Refusal::NodeWithoutToken);
        }
        let protocol = CredentialProtocol::RelativeUri;
        let since = Since { seen: self.basis(), until: tokio::time::Instant::now() + self.settings.pod_wait };
        let identifier = Identifier::Address(origin.ip);
        let (pod, context) = self.identify(origin, &identifier).await?;
        if !origin.is_of(&pod) {
            return Err(Refusal::Changed(pod));
        }
        self.recorder.requested(&pod, protocol);
        self.container_credentials(&identifier, pod, context, since, protocol).await
    }

    /// Returns the credentials of the role that the pod may have.
    async fn container_credentials(
        &self,
        identifier: &Identifier,
        pod: Arc<Pod>,
        context: PodContext,
        Since { until, seen }: Since,
        protocol: CredentialProtocol,
    ) -> Result<Bytes, Refusal> {
        let (pod, request, _) = self.decide(identifier, pod, context, until).await?;
        let credentials = self.session(identifier, &pod, &request, seen).await?;
        let document = credentials.container_document(|credentials| documents::container_credentials(credentials, request.role()));
        let document = document.map_err(|_| Refusal::Unavailable(pod.clone()))?;
        self.recorder.answered(&pod, protocol);
        Ok(document)
    }

    /// Returns whom to charge for the fetch of keys that a token with an unknown key causes. Refuses the token if it does not even claim to
    /// belong to the pod that sent it.
    async fn key_requester(&self, origin: &Origin, claimed: &UnprovenClaims, node: &str) -> Result<KeyRequester, Refusal> {
        let refused = |pod, error| Err(Refusal::ServiceAccountToken(pod, error));
        let is_of_other_node = claimed.node.as_ref().is_some_and(|of_token| of_token != node);
        if origin.is_of_node {
            // Does not wait for the pod, because the client could name any.
            return match self.pods.by_uid(&claimed.pod_uid.0) {
                _ if is_of_other_node => refused(None, TokenError::UnknownKey),
                Lookup::Found(pod, _) if !self.pods.denies_in_host_network(&pod) => Ok(KeyRequester::HostNetwork),
                Lookup::Unknown => refused(None, TokenError::KeysOutdated),
                _ => refused(None, TokenError::UnknownKey),
            };
        }
        let (pod, _) = self.found(self.look_up(&Identifier::Address(origin.ip)).await)?;
        if !origin.is_of(&pod) {
            return Err(Refusal::Changed(pod));
        }
        if is_of_other_node || pod.uid != claimed.pod_uid {
            return refused(Some(pod), TokenError::UnknownKey);
        }
        Ok(KeyRequester::Pod { namespace: pod.namespace.clone(), uid: pod.uid.clone() })
    }
}

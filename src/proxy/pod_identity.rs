//! The pipeline of one request for credentials with a service account token (the protocol of EKS Pod Identity).
//!
//! ```text
//! route ──▶ is the token valid? ──▶ did its pod send it? ──▶ which role may it have? ──▶ get its credentials ──▶ respond
//! ```
//!
//! A token is signed by the cluster and bound to a pod. In addition, the connection must come from the address of that pod or, for a pod in
//! the node's network, from the node. A token that was stolen from one pod is therefore of no use at another address.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::Full;
use tracing::debug;

use super::origin::Origin;
use super::refusal::{Asked, Refusal};
use super::{Proxy, documents, respond};
use crate::credentials::AssumeRole;
use crate::pod_identity::token::{BearerToken, TokenError};
use crate::pods::{Identifier, Lookup, Objection};
use crate::report::recorder::CredentialProtocol;

mod errors;
mod route;
pub(crate) mod settings;

use settings::PodIdentity;

impl<A: AssumeRole> Proxy<A> {
    /// Also serves credentials for service account tokens, if `pod_identity` is given.
    #[must_use]
    pub(crate) fn with_pod_identity(self, pod_identity: Option<PodIdentity>) -> Self {
        Self { pod_identity, ..self }
    }

    /// Answers one request on a connection to `local`, an address of Pod Identity.
    pub(crate) async fn handle_pod_identity(&self, origin: &Origin, local: SocketAddr, request: &Parts) -> Response<Full<Bytes>> {
        let (began, path) = (Instant::now(), request.uri.path());
        let response = match self.credentials_by_token(origin, local, request).await {
            Ok(document) => respond::identity_document(document),
            Err(refusal) => {
                self.report(origin, &refusal, Asked::for_value(path));
                respond::identity_error(&refusal.identity_error())
            }
        };
        self.meters.pod_identity.answered(response.status().as_u16(), began.elapsed());
        debug!(
            event = "request-answered",
            source = %origin.ip, method = %request.method, path, status = response.status().as_u16(),
            "answered"
        );
        response
    }

    async fn credentials_by_token(&self, origin: &Origin, local: SocketAddr, request: &Parts) -> Result<Bytes, Refusal> {
        // The address of the node tells nothing about the sender.
        let sender = || if origin.is_of_node && origin.process.is_none() { None } else { self.sender(origin) };
        if let Err(rejection) = route::check(&request.method, &request.uri, &request.headers, Some(local)) {
            return Err(Refusal::IdentityRejected(sender(), rejection));
        }
        let Some(PodIdentity { verifier, node }) = &self.pod_identity else {
            return Err(Refusal::ServiceAccountToken(sender(), TokenError::NoKeys));
        };
        let refused = |error| Refusal::ServiceAccountToken(sender(), error);
        // A missing header counts as an empty token, which is refused.
        let token = BearerToken::new(route::token(&request.headers).unwrap_or_default()).map_err(refused)?;
        let claims = verifier.verify(&token).await.map_err(refused)?;
        if claims.node.as_ref().is_some_and(|of_token| of_token.name != *node) {
            return Err(Refusal::TokenOfOtherNode(sender(), claims));
        }
        // Taken before the first lookup, so that no later change is missed.
        let seen = self.seen();
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
        if origin.late || !origin.belongs_to(&pod.uid) {
            return Err(Refusal::Changed(pod));
        }
        if pod.uid != claims.pod_uid {
            return Err(Refusal::TokenOfOtherPod(Some(pod), claims));
        }
        self.recorder.requested(&pod, CredentialProtocol::PodIdentity);
        if pod.host_network && self.pods.denies_in_host_network(&pod) {
            return Err(Refusal::HostNetwork(pod));
        }
        let (pod, request) = self.decide(&identifier, pod, context, until).await?;
        let credentials = self.session(&identifier, &pod, &request, seen).await?;
        let document = credentials.container_document(|credentials| documents::container_credentials(credentials, request.role()));
        let document = document.map_err(|_| Refusal::Unavailable(pod.clone()))?;
        self.recorder.answered(&pod, CredentialProtocol::PodIdentity);
        Ok(document)
    }
}

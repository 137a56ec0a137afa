//! The daemon's own credentials for STS, and what happens when STS rejects them or there are none.
//!
//! The SDK caches the credentials until they expire by this node's clock, but STS goes by its own clock. A node that is ten
//! minutes behind would send expired credentials for ten minutes of each hour. Credentials that STS rejects are therefore
//! dropped, and the request is repeated once with new ones. If the new ones are rejected too, they are kept for a while, so
//! that each request costs one call instead of two.

use std::error::Error;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_credential_types::Credentials as Keys;
use aws_sdk_sts::Client;
use aws_sdk_sts::config::IdentityCache;
use aws_sdk_sts::config::http::HttpResponse;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use tracing::info;

use super::translate::{refusal_of_credentials, translate};
use crate::credentials::identity::AskIdentity;
use crate::credentials::sts_errors::StsErrorKind;
use crate::credentials::{AssumeRoleError, Credentials};
use crate::metrics::Metrics;
use crate::policy::node::NodeIdentity;
use crate::role::{CallerIdentity, RoleArn};

/// How long new credentials are kept, even if STS rejects them.
const NOT_DROPPED_AGAIN: Duration = Duration::from_secs(60);
/// Advice for when STS does not identify the credentials. Every identity has this permission by default, so only a policy above
/// the identity's own can deny it.
const CHECK_POLICIES: &str =
    "the policy of the VPC endpoint for STS, if there is one, and the service control policies must allow sts:GetCallerIdentity";

/// One identity of the daemon, and its client for STS.
#[derive(Clone, Debug)]
pub(super) struct Own {
    signer: Arc<RwLock<Signer>>,
    /// Whether the SDK retries after a failure.
    retries: bool,
    /// Whether a rejected request is repeated with new credentials.
    asks_again: bool,
    /// The intermediate role, if this is its session.
    intermediate: Option<RoleArn>,
    /// Where the base identity is stored, for advice.
    node: NodeIdentity,
    metrics: Metrics,
}

/// A client and the credentials that it caches.
#[derive(Clone, Debug)]
struct Signer {
    client: Client,
    /// How often credentials were dropped.
    number: u64,
    dropped_at: Option<Instant>,
}

impl Own {
    /// Creates an identity that makes requests with `client`. The client has the credentials of `intermediate`, if that is
    /// given.
    pub(super) fn new(client: Client, intermediate: Option<RoleArn>, node: NodeIdentity, metrics: Metrics) -> Self {
        let signer = Arc::new(RwLock::new(Signer { client, number: 0, dropped_at: None }));
        Self { signer, retries: true, asks_again: true, intermediate, node, metrics }
    }

    /// Returns this identity with its credentials, without the SDK's retries.
    pub(super) fn without_retries(&self) -> Self {
        Self { retries: false, ..self.clone() }
    }

    /// Returns this identity, for requests that are never repeated.
    pub(super) fn asked_once(&self) -> Self {
        Self { asks_again: false, ..self.without_retries() }
    }

    /// Makes a request to STS. Repeats it once with new credentials if STS rejects the cached ones.
    pub(super) async fn ask<T, E, F>(&self, request: impl Fn(Client) -> F) -> Result<T, AssumeRoleError>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + Error + 'static,
    {
        let signer = self.signer();
        match request(signer.client).await {
            Err(error) if rejects_cached_credentials(&error) && self.drop_credentials(signer.number) && self.asks_again => {
                let again = request(self.signer().client).await;
                again.map_err(|error| self.explain(&error))
            }
            answer => answer.map_err(|error| self.explain(&error)),
        }
    }

    /// Makes a request to STS with the credentials of another role's session, where this identity would make it. What STS says of
    /// these credentials is nothing about the daemon's own.
    pub(super) async fn ask_as<T, E, F>(&self, session: &Credentials, request: impl Fn(Client) -> F) -> Result<T, AssumeRoleError>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + Error + 'static,
    {
        let (secret, token) = (session.secret_access_key.expose_secret(), session.session_token.expose_secret());
        let keys = Keys::from_keys(session.access_key_id.as_str(), secret, Some(token.to_owned()));
        let config = self.signer().client.config().to_builder().credentials_provider(keys);
        // The cache would keep the credentials after the request.
        let client = Client::from_conf(config.identity_cache(IdentityCache::no_cache()).build());
        request(client).await.map_err(|error| match translate(&error) {
            AssumeRoleError::OwnIdentity { message, .. } => AssumeRoleError::Failed {
                message: format!("it rejected the credentials of the pod's role, which it had just issued: {message}"),
            },
            error => error,
        })
    }

    fn signer(&self) -> Signer {
        let mut signer = self.signer.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !self.retries {
            let config = signer.client.config().to_builder().retry_config(RetryConfig::disabled()).build();
            signer.client = Client::from_conf(config);
        }
        signer
    }

    /// Drops the credentials with this number. Returns whether other credentials are in place now.
    fn drop_credentials(&self, number: u64) -> bool {
        let mut signer = self.signer.write().unwrap_or_else(PoisonError::into_inner);
        if signer.number != number {
            return true;
        }
        if signer.dropped_at.is_some_and(|at| at.elapsed() < NOT_DROPPED_AGAIN) {
            return false;
        }
        let config = signer.client.config().to_builder().identity_cache(IdentityCache::lazy().build()).build();
        *signer = Signer { client: Client::from_conf(config), number: number + 1, dropped_at: Some(Instant::now()) };
        drop(signer);
        self.metrics.own_credentials_dropped();
        info!(
            event = "own-credentials-dropped",
            credentials = if self.intermediate.is_some() { "intermediate-role" } else { "base" },
            "STS rejected rolegate's own credentials; fetching new ones and trying again; if this happens often, check the node's clock"
        );
        true
    }

    /// Translates an error of the SDK. A refused intermediate role has its own text, because the base credentials are not at fault.
    fn explain<E>(&self, error: &SdkError<E, HttpResponse>) -> AssumeRoleError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let role = self.intermediate.as_ref();
        match role.and_then(|role| Some((role, refusal_of_credentials(error)?))) {
            None => translate(error),
            Some((role, message)) => {
                let node = self.node.known();
                let base = node.caller.as_ref().map_or("not known yet", CallerIdentity::as_str);
                let advice = match StsErrorKind::of_text(&message) {
                    None | Some(StsErrorKind::AssumeRole) => format!(
                        "the trust policy of {role} must allow sts:AssumeRole for the daemon's base identity ({base}), and the \
                         policies of that identity must allow sts:AssumeRole on {role}; or change --assume-role-arn"
                    )
                    .into(),
                    Some(kind) => kind.advice().into(),
                };
                let message = format!("the role of --assume-role-arn, {role}, cannot be assumed: {message}");
                AssumeRoleError::OwnIdentity { message, advice }
            }
        }
    }
}

impl AskIdentity for Arc<Own> {
    async fn ask(&self) -> Result<CallerIdentity, AssumeRoleError> {
        let answer = Own::ask(self, |client| async move { client.get_caller_identity().send().await }).await;
        let answer = answer.map_err(|error| match error {
            AssumeRoleError::Denied { message } => AssumeRoleError::OwnIdentity { message, advice: CHECK_POLICIES.into() },
            AssumeRoleError::Invalid { message } => AssumeRoleError::Failed { message },
            other => other,
        })?;
        let arn = answer.arn.unwrap_or_default();
        arn.parse().map_err(|error| AssumeRoleError::Failed { message: format!("GetCallerIdentity: {error}") })
    }
}

fn rejects_cached_credentials<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    matches!(code, Some("ExpiredToken" | "ExpiredTokenException" | "InvalidClientTokenId"))
}

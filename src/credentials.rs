//! Credentials of role sessions, and the errors of requests for them.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::advice::Advise;
use crate::policy::RoleRequest;
use chain::ChainCall;
use not_asked::NotAsked;
use sts_errors::{StsErrorClass, StsErrorKind};

pub(crate) mod advice;
pub mod cache;
pub(crate) mod caller;
pub(crate) mod chain;
mod duration;
pub mod gate;
mod identity;
pub(crate) mod not_asked;
pub mod refresh;
pub(crate) mod sts;
pub(crate) mod sts_errors;

/// The credentials of one session. `Debug` shows no secrets. The secrets are zeroed when the last reference is dropped.
pub struct Credentials {
    /// The access key ID, `ASIA...`. It may be logged: operators find the session in CloudTrail by it.
    pub access_key_id: String,
    /// The secret key.
    pub secret_access_key: SecretString,
    /// The session token.
    pub session_token: SecretString,
    /// When STS issued the credentials.
    pub issued_at: Timestamp,
    /// When the credentials expire, by the wall clock.
    pub expires_at: Timestamp,
    /// When the credentials expire, by the monotonic clock.
    ends: Instant,
    /// The documents served to pods. Each is rendered at its first request, and zeroed like the other secrets.
    document: OnceLock<Bytes>,
    extended: OnceLock<Bytes>,
    container: OnceLock<Bytes>,
}

impl Credentials {
    /// Creates credentials that STS has just issued. `issued_at` is the current time.
    pub fn new(
        access_key_id: String,
        secret_access_key: SecretString,
        session_token: SecretString,
        issued_at: Timestamp,
        expires_at: Timestamp,
    ) -> Self {
        let ends = Instant::now() + Duration::try_from(expires_at.duration_since(issued_at)).unwrap_or(Duration::ZERO);
        let (document, extended, container) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { access_key_id, secret_access_key, session_token, issued_at, expires_at, ends, document, extended, container }
    }

    /// Returns how long the credentials remain valid; `now` is the wall clock time. Returns the smaller value of two clocks: the wall
    /// clock may be set back, and the monotonic clock stops while the machine sleeps.
    pub fn remaining(&self, now: Timestamp) -> Duration {
        let by_wall = Duration::try_from(self.expires_at.duration_since(now)).unwrap_or(Duration::ZERO);
        by_wall.min(self.ends.saturating_duration_since(Instant::now()))
    }

    /// Returns the total lifetime of the credentials.
    pub fn life(&self) -> Duration {
        self.expires_at.duration_since(self.issued_at).unsigned_abs()
    }

    /// Returns the credential document. The first call renders it; later calls return the cached bytes.
    pub fn document<E>(&self, render: impl FnOnce(&Self) -> Result<Zeroizing<Vec<u8>>, E>) -> Result<Bytes, E> {
        rendered_once(&self.document, || render(self))
    }

    /// Returns the credential document with the account ID. Like [`Self::document`], it is rendered once.
    pub fn extended_document<E>(&self, render: impl FnOnce(&Self) -> Result<Zeroizing<Vec<u8>>, E>) -> Result<Bytes, E> {
        rendered_once(&self.extended, || render(self))
    }

    /// Returns the document for requests with service account tokens. Like [`Self::document`], it is rendered once.
    pub fn container_document<E>(&self, render: impl FnOnce(&Self) -> Result<Zeroizing<Vec<u8>>, E>) -> Result<Bytes, E> {
        rendered_once(&self.container, || render(self))
    }
}

fn rendered_once<E>(document: &OnceLock<Bytes>, render: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, E>) -> Result<Bytes, E> {
    if let Some(document) = document.get() {
        return Ok(document.clone());
    }
    // The document is kept, so copy it into a buffer without spare capacity.
    let fitting = Bytes::from_owner(Zeroizing::new(render()?.as_slice().to_vec()));
    Ok(document.get_or_init(|| fitting).clone())
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access_key_id, issued_at, expires_at, .. } = self;
        write!(f, "Credentials({access_key_id}, {issued_at} to {expires_at}, secrets redacted)")
    }
}

/// The reason why no credentials were obtained from STS. Pods never see any part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssumeRoleError {
    /// The role's trust policy or the node role's permissions do not allow the request.
    #[error("STS denied AssumeRole: {message}")]
    Denied {
        /// The message from STS.
        message: String,
    },
    /// The request is invalid for this role, usually because of its duration.
    #[error("STS rejected the request: {message}")]
    Invalid {
        /// The message from STS.
        message: String,
    },
    /// The requested session is longer than STS allows for this role. The next request is for a shorter one.
    #[error("STS rejected --session-duration for this role: {message}")]
    TooLong {
        /// The message from STS.
        message: String,
    },
    /// The account makes too many requests.
    #[error("STS throttles the requests of this AWS account")]
    Throttled,
    /// The daemon's own credentials are missing, invalid or expired, or STS does not identify them.
    #[error("AWS does not accept rolegate's own credentials: {message}")]
    OwnIdentity {
        /// What is wrong.
        message: String,
        /// What to change.
        advice: Cow<'static, str>,
    },
    /// The daemon's AWS identity is not known yet, and a recent request for it failed. No new request was made.
    #[error("rolegate does not know its own AWS identity yet, and serves no credentials before: {0}")]
    IdentityUnknown(Box<AssumeRoleError>),
    /// STS did not respond.
    #[error("STS cannot be reached: {message}")]
    Unreachable {
        /// What happened.
        message: String,
    },
    /// STS returned a session whose role, account, partition, name or source identity differs from the request.
    #[error("STS returned a different session than the requested one: {message}")]
    OtherRole {
        /// The session that STS returned.
        message: String,
    },
    /// STS refused one of the two roles of a request with a target role.
    #[error("{call}: {error}")]
    InChain {
        /// Which of the two calls was refused.
        call: ChainCall,
        /// The refusal.
        error: Box<AssumeRoleError>,
    },
    /// No request to STS was made.
    #[error("{0}")]
    NotAsked(NotAsked),
    /// The credentials in the response have expired, or expire too soon to be used.
    #[error("STS failed: the credentials in its response are valid only until {at}")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// Any other failure of STS.
    #[error("STS failed: {message}")]
    Failed {
        /// The message from STS.
        message: String,
    },
}

/// Advice for STS responses that are for another role.
pub(in crate::credentials) const CHECK_ENDPOINT: &str = "check for a proxy or a wrong endpoint between this node and STS: \
     AWS_ENDPOINT_URL_STS, HTTPS_PROXY, the VPC endpoint and its DNS name";

impl AssumeRoleError {
    /// Returns the stable name of the error, used as a metric label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "denied",
            Self::Invalid { .. } => "invalid",
            Self::TooLong { .. } => "too-long",
            Self::Throttled => "throttled",
            Self::OwnIdentity { .. } => "own-identity",
            Self::IdentityUnknown(_) => "identity-unknown",
            Self::Unreachable { .. } => "unreachable",
            Self::OtherRole { .. } => "other-role",
            Self::InChain { error, .. } => error.name(),
            Self::NotAsked(why) => why.name(),
            Self::Expired { .. } | Self::Failed { .. } => "failed",
        }
    }

    /// Whether the failure is cached for a while. Failures without a request to STS are not: the next attempt may succeed.
    pub fn is_remembered(&self) -> bool {
        !matches!(self, Self::IdentityUnknown(_) | Self::NotAsked(_))
    }

    /// Whether STS refused this one role, which is no sign of an outage.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Invalid { .. } | Self::TooLong { .. } | Self::InChain { .. })
    }

    /// Returns this error as one of a call for a request with a target role. Only refusals are about one of the two roles.
    fn in_chain(self, call: Option<ChainCall>) -> Self {
        match call {
            Some(call) if self.is_refusal() => Self::InChain { call, error: Box::new(self) },
            _ => self,
        }
    }

    /// Returns which of the two calls of a request with a target role was refused.
    pub fn refused_call(&self) -> Option<ChainCall> {
        match self {
            Self::InChain { call, .. } => Some(*call),
            _ => None,
        }
    }

    /// Whether the request came too soon after others, for STS or for the limits of this node.
    pub fn is_throttled(&self) -> bool {
        matches!(self, Self::Throttled | Self::NotAsked(_))
    }

    /// Returns the meaning of STS's response; `None` if the failure is not a response of STS to this request.
    fn kind(&self) -> Option<StsErrorKind> {
        let of = |message: &str, class| StsErrorKind::of_text(message).filter(|kind| kind.class() == class);
        match self {
            Self::Denied { message } => of(message, StsErrorClass::Denied).or(Some(StsErrorKind::AssumeRole)),
            Self::Invalid { message } => of(message, StsErrorClass::Invalid).or(Some(StsErrorKind::OtherRequest)),
            Self::TooLong { message } => of(message, StsErrorClass::Invalid).or(Some(StsErrorKind::Duration)),
            Self::Throttled => Some(StsErrorKind::Throttled),
            Self::Failed { message } => of(message, StsErrorClass::Failed).or(Some(StsErrorKind::Service)),
            Self::InChain { error, .. } => error.kind(),
            Self::OwnIdentity { .. }
            | Self::IdentityUnknown(_)
            | Self::Unreachable { .. }
            | Self::OtherRole { .. }
            | Self::Expired { .. }
            | Self::NotAsked(_) => None,
        }
    }

    /// Returns the meaning of STS's response to this request.
    fn kind_for(&self, request: &RoleRequest) -> Option<StsErrorKind> {
        self.kind().map(|kind| kind.with(request, self.refused_call()))
    }

    /// Returns what to do about the failure of this request, for the node's operators.
    pub fn advice_for(&self, request: &RoleRequest) -> Option<Cow<'static, str>> {
        self.kind_for(request).map_or_else(|| self.advice(), |kind| Some(kind.advice().into()))
    }

    /// Returns a message about this request for the pod's owner, with what to do; `None` if the owner cannot fix the failure. It never
    /// includes the message from STS, which names the node role's session, accounts and other details meant only for the node's
    /// operators.
    pub fn for_owner(&self, request: &RoleRequest) -> Option<&'static str> {
        match self {
            Self::NotAsked(why) => why.for_owner(),
            error => error.kind_for(request)?.for_owner(),
        }
    }
}

impl Advise for AssumeRoleError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::OwnIdentity { advice, .. } => Some(advice.clone()),
            Self::IdentityUnknown(error) => error.advice(),
            Self::Unreachable { .. } => Some("check the node's route and DNS to the regional STS endpoint".into()),
            Self::OtherRole { .. } => Some(CHECK_ENDPOINT.into()),
            Self::NotAsked(why) => Some(why.advice().into()),
            Self::Expired { .. } => Some("check the node's clock".into()),
            Self::Denied { .. }
            | Self::Invalid { .. }
            | Self::TooLong { .. }
            | Self::Throttled
            | Self::Failed { .. }
            | Self::InChain { .. } => self.kind().map(|kind| kind.advice().into()),
        }
    }
}

/// A source of sessions: STS, or a fake in tests.
pub trait AssumeRole: Send + Sync + 'static {
    /// Makes one request to STS. If the request has a target role, two are needed: without `source`, this call returns the
    /// credentials of the source role. With these as `source`, it returns those of the target role, as for other requests.
    ///
    /// The only state kept between calls is the maximum session duration: after [`AssumeRoleError::TooLong`], the next call requests
    /// a shorter session.
    fn assume_role(
        &self,
        request: &RoleRequest,
        source: Option<&Credentials>,
    ) -> impl Future<Output = Result<Credentials, AssumeRoleError>> + Send;
}

/// STS with access to the daemon's own identity, for operator commands.
pub trait StsOfNode: AssumeRole {
    /// Returns the ARN of the caller that assumes pod roles. Also records it for the policy, which compares roles with it.
    fn own_identity(&self) -> impl Future<Output = Result<String, AssumeRoleError>> + Send;
}

#[cfg(test)]
pub(crate) mod tests;

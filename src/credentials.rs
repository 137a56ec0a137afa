//! Credentials of a role session, and where they come from.

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
use not_asked::NotAsked;

pub(crate) mod advice;
pub mod cache;
pub(crate) mod caller;
mod denied;
mod duration;
pub mod gate;
mod identity;
pub(crate) mod not_asked;
pub mod refresh;
pub(crate) mod sts;

/// The credentials of one session. `Debug` shows no secret; the secrets are wiped when the last holder lets go.
pub struct Credentials {
    /// `ASIA...`; may be logged: it is how an operator finds the session in CloudTrail.
    pub access_key_id: String,
    /// The secret key.
    pub secret_access_key: SecretString,
    /// The session token.
    pub session_token: SecretString,
    /// When STS gave them.
    pub issued_at: Timestamp,
    /// When they end, by the wall clock.
    pub expires_at: Timestamp,
    /// When they end, by the monotonic clock.
    ends: Instant,
    /// The documents that pods are given, each made at the first request for it and wiped like the rest.
    document: OnceLock<Bytes>,
    extended: OnceLock<Bytes>,
}

impl Credentials {
    /// Credentials that STS has just given: at `issued_at`, which is now.
    pub fn new(
        access_key_id: String,
        secret_access_key: SecretString,
        session_token: SecretString,
        issued_at: Timestamp,
        expires_at: Timestamp,
    ) -> Self {
        let ends = Instant::now() + Duration::try_from(expires_at.duration_since(issued_at)).unwrap_or(Duration::ZERO);
        let (document, extended) = (OnceLock::new(), OnceLock::new());
        Self { access_key_id, secret_access_key, session_token, issued_at, expires_at, ends, document, extended }
    }

    /// How long they are still good, at this time of the wall clock. That clock may be set back, which makes nothing last
    /// longer; and the other one stands still while the machine sleeps. So the lesser of the two counts.
    pub fn remaining(&self, now: Timestamp) -> Duration {
        let by_wall = Duration::try_from(self.expires_at.duration_since(now)).unwrap_or(Duration::ZERO);
        by_wall.min(self.ends.saturating_duration_since(Instant::now()))
    }

    /// How long they last in all.
    pub fn life(&self) -> Duration {
        self.expires_at.duration_since(self.issued_at).unsigned_abs()
    }

    /// The document of these credentials: rendered by the first caller, the same bytes for everybody after.
    pub fn document<E>(&self, render: impl FnOnce(&Self) -> Result<Zeroizing<Vec<u8>>, E>) -> Result<Bytes, E> {
        rendered_once(&self.document, || render(self))
    }

    /// The document of these credentials with the account ID, rendered once like [`Self::document`].
    pub fn extended_document<E>(&self, render: impl FnOnce(&Self) -> Result<Zeroizing<Vec<u8>>, E>) -> Result<Bytes, E> {
        rendered_once(&self.extended, || render(self))
    }
}

fn rendered_once<E>(document: &OnceLock<Bytes>, render: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, E>) -> Result<Bytes, E> {
    if let Some(document) = document.get() {
        return Ok(document.clone());
    }
    // It is kept: in no more room than it takes.
    let fitting = Bytes::from_owner(Zeroizing::new(render()?.as_slice().to_vec()));
    Ok(document.get_or_init(|| fitting).clone())
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access_key_id, issued_at, expires_at, .. } = self;
        write!(f, "Credentials({access_key_id}, {issued_at} to {expires_at}, secrets redacted)")
    }
}

/// Why STS gave no credentials. Nothing of it is shown to a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssumeRoleError {
    /// The trust policy of the role, or the permissions of the node's role, do not allow it.
    #[error("STS denied AssumeRole: {message}")]
    Denied {
        /// What STS says.
        message: String,
    },
    /// The request itself is wrong for this role: mostly its duration.
    #[error("STS rejected the request: {message}")]
    Invalid {
        /// What STS says.
        message: String,
    },
    /// The session is longer than STS gives for this role. The next question is for a shorter one.
    #[error("STS rejected --session-duration for this role: {message}; retrying with 1 hour")]
    TooLong {
        /// What STS says.
        message: String,
    },
    /// Too many requests of this account.
    #[error("STS throttles the requests of this AWS account")]
    Throttled,
    /// The daemon's own credentials are missing, wrong or expired, or STS does not tell whose they are.
    #[error("AWS does not accept rolegate's own credentials: {message}")]
    OwnIdentity {
        /// What was found.
        message: String,
        /// What to change.
        advice: Cow<'static, str>,
    },
    /// It is not known yet who the daemon is to STS, which was asked for that lately: nothing was asked now.
    #[error("rolegate does not know its own AWS identity yet, and serves no credentials before: {0}")]
    IdentityUnknown(Box<AssumeRoleError>),
    /// No answer.
    #[error("STS cannot be reached: {message}")]
    Unreachable {
        /// What happened.
        message: String,
    },
    /// STS returned a session of another role, account, partition, name or source identity than the requested one.
    #[error("STS returned a different session than the requested one: {message}")]
    OtherRole {
        /// The session that STS returned.
        message: String,
    },
    /// STS was not asked.
    #[error("{0}")]
    NotAsked(NotAsked),
    /// Everything else that STS may answer.
    #[error("STS failed: {message}")]
    Failed {
        /// What STS says.
        message: String,
    },
}

/// Advice for responses of STS that are for another role.
pub(in crate::credentials) const CHECK_ENDPOINT: &str = "check for a proxy or a wrong endpoint between this node and STS: \
     AWS_ENDPOINT_URL_STS, HTTPS_PROXY, the VPC endpoint and its DNS name";

impl AssumeRoleError {
    /// The stable name: a metric's label.
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
            Self::NotAsked(why) => why.name(),
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether the failure is the answer for a while. One that cost STS nothing is not: the next asker may have better luck.
    pub fn is_remembered(&self) -> bool {
        !matches!(self, Self::IdentityUnknown(_) | Self::NotAsked(_))
    }

    /// Whether it is an answer about this one role, and no sign that STS does not work.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Invalid { .. } | Self::TooLong { .. })
    }

    /// What the owner of a pod may know of it, and what to do; `None` where there is nothing that the owner could do. Not what
    /// STS says: that names the session of the node's role, accounts, and what else is for the node's operators alone.
    pub fn for_owner(&self) -> Option<&'static str> {
        match self {
            Self::Denied { message } if denied::is_about_source_identity(message) => Some(
                "AWS does not let this node set the source identity of the pod's session. To fix: allow sts:SetSourceIdentity in the \
                 role's trust policy for the node role, and in the policies of the node role for this role",
            ),
            Self::Denied { .. } => Some(
                "AWS does not let this node assume the pod's role. To fix: allow sts:AssumeRole in the role's trust policy for the node \
                 role (with the pod's external ID, if it requires one), and in the policies of the node role for this role",
            ),
            Self::Invalid { .. } | Self::TooLong { .. } => Some(
                "AWS rejected the session, usually because it is longer than the role's maximum session duration. To fix: raise the \
                 role's maximum session duration, or have --session-duration lowered",
            ),
            Self::NotAsked(why) => why.for_owner(),
            // These are the node's, for all of its pods at one time.
            Self::Throttled
            | Self::OwnIdentity { .. }
            | Self::IdentityUnknown(_)
            | Self::Unreachable { .. }
            | Self::OtherRole { .. }
            | Self::Failed { .. } => None,
        }
    }
}

impl Advise for AssumeRoleError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Denied { message } => Some(denied::what_to_allow(message).into()),
            Self::Invalid { .. } => Some("check --session-duration against the role's maximum session duration".into()),
            Self::OwnIdentity { advice, .. } => Some(advice.clone()),
            Self::IdentityUnknown(error) => error.advice(),
            Self::Unreachable { .. } => Some("check the node's route and DNS to the regional STS endpoint".into()),
            Self::OtherRole { .. } => Some(CHECK_ENDPOINT.into()),
            Self::NotAsked(why) => Some(why.advice().into()),
            // rolegate retries by itself.
            Self::TooLong { .. } | Self::Throttled | Self::Failed { .. } => None,
        }
    }
}

/// Where sessions come from: STS, or a test's idea of it.
pub trait AssumeRole: Send + Sync + 'static {
    /// Asks for a session. One call is one question, and one request to STS; nothing is remembered but how long a session may be:
    /// after [`AssumeRoleError::TooLong`] the next call asks for less.
    fn assume_role(&self, request: &RoleRequest) -> impl Future<Output = Result<Credentials, AssumeRoleError>> + Send;
}

/// STS as the node's operator asks it: who the daemon is to it, too.
pub trait StsOfNode: AssumeRole {
    /// The ARN of who asks. Known from then on, where the policy compares roles with it.
    fn own_identity(&self) -> impl Future<Output = Result<String, AssumeRoleError>> + Send;
}

#[cfg(test)]
mod tests;

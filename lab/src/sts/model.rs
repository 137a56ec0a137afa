//! The inputs of the fake STS (roles, callers, behaviours) and its records (calls and issued credentials).

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::signature::sha256;

/// The role of the node's instance profile. Roles trust it by default.
pub const NODE_ROLE_ARN: &str = "arn:aws:iam::111122223333:role/NODE-ROLE-MUST-NEVER-LEAK";

/// A role that can be assumed, with the part of its trust policy that matters here.
#[derive(Clone, Debug)]
pub struct Role {
    pub(super) arn: String,
    pub(super) max_session: Duration,
    pub(super) external_id: Option<String>,
    pub(super) trusted: Vec<String>,
    pub(super) denied: bool,
    pub(super) may_set_source_identity: bool,
    pub(super) may_tag: bool,
}

impl Role {
    /// Creates a role that trusts the node role, including for source identities and tags, without an external ID, and with IAM's
    /// default limit of one hour.
    pub fn new(arn: impl Into<String>) -> Role {
        Role {
            arn: arn.into(),
            max_session: Duration::from_secs(3600),
            external_id: None,
            trusted: vec![NODE_ROLE_ARN.to_owned()],
            denied: false,
            may_set_source_identity: true,
            may_tag: true,
        }
    }

    /// Sets the role's MaxSessionDuration.
    #[must_use]
    pub fn max_session(mut self, longest: Duration) -> Role {
        self.max_session = longest;
        self
    }

    /// Requires exactly this external ID.
    #[must_use]
    pub fn external_id(mut self, external_id: impl Into<String>) -> Role {
        self.external_id = Some(external_id.into());
        self
    }

    /// Replaces the trusted principals: ARNs of roles, of their sessions, of users, of an account's root, or `*`.
    #[must_use]
    pub fn trusted_by<A: Into<String>>(mut self, arns: impl IntoIterator<Item = A>) -> Role {
        self.trusted = arns.into_iter().map(Into::into).collect();
        self
    }

    /// Forbids `sts:SetSourceIdentity` in the trust policy.
    #[must_use]
    pub fn without_source_identity(mut self) -> Role {
        self.may_set_source_identity = false;
        self
    }

    /// Forbids `sts:TagSession` in the trust policy.
    #[must_use]
    pub fn without_tags(mut self) -> Role {
        self.may_tag = false;
        self
    }

    /// Denies every caller, whatever else the role allows.
    #[must_use]
    pub fn denied(mut self) -> Role {
        self.denied = true;
        self
    }

    pub(super) fn trusts(&self, caller: &Identity) -> bool {
        let root = root_of(&caller.arn);
        let known = |principal: &String| {
            principal == "*" || *principal == caller.arn || *principal == caller.role_arn || Some(principal) == root.as_ref()
        };
        !self.denied && self.trusted.iter().any(known)
    }
}

/// How the service answers a call whose signature is correct.
#[derive(Clone, Debug, Default)]
pub enum Behaviour {
    /// As AWS does.
    #[default]
    Normal,
    /// 403 `AccessDenied`.
    AccessDenied,
    /// 400 `Throttling`.
    Throttling,
    /// 403 `ExpiredToken`.
    ExpiredToken,
    /// 403 `InvalidClientTokenId`.
    InvalidClientTokenId,
    /// 403 `RegionDisabledException`: STS is not active in this region for the role's account.
    RegionDisabled,
    /// 503 `ServiceUnavailable`.
    ServiceUnavailable,
    /// 500 `InternalFailure`.
    InternalFailure,
    /// Any other error: its status, code and message.
    Error(u16, &'static str, &'static str),
    /// The normal answer with broken XML at the root, which no parser accepts.
    Malformed,
    /// The normal answer with its XML cut off within the session token. AWS's SDK for Rust (aws-sdk-sts 1.124) accepts it, with
    /// a short token and an expiration in 1970.
    Truncated,
    /// The normal answer without secret key, session token and expiration. AWS's SDK for Rust turns them into empty strings and
    /// 1970.
    MissingFields,
    /// The normal answer without one element, for example `SessionToken`.
    MissingField(&'static str),
    /// Closes the connection instead of answering.
    CloseBeforeAnswer,
    /// Closes the connection in the middle of the answer's body.
    CloseMidBody,
    /// Never answers.
    Hang,
    /// Answers normally once this is notified.
    Held(Arc<Notify>),
    /// Answers normally after this time.
    Slow(Duration),
    /// Issues credentials with this lifetime, whatever was requested (AWS's minimum is 900 s).
    ExpiresIn(Duration),
    /// Issues credentials for a session of the role with this ARN, whatever was requested, and names it in the response (AWS
    /// never does).
    AnswersFor(String),
    /// Uses one of these per call, then the normal behaviour.
    Then(Vec<Behaviour>),
}

impl Behaviour {
    /// Returns the behaviour of the next call, and advances a sequence.
    pub(super) fn take(&mut self) -> Behaviour {
        let Behaviour::Then(steps) = self else {
            return self.clone();
        };
        if steps.is_empty() {
            return Behaviour::Normal;
        }
        let mut first = steps.remove(0);
        let step = first.take();
        if matches!(&first, Behaviour::Then(rest) if !rest.is_empty()) {
            steps.insert(0, first);
        }
        step
    }
}

/// One request that reached the service.
#[derive(Clone, Debug)]
pub struct Call {
    /// The action that was called, such as `AssumeRole`; empty if there was none.
    pub action: String,
    /// The requested role.
    pub role_arn: Option<String>,
    /// The requested session name.
    pub session_name: Option<String>,
    /// The requested lifetime. Without one, STS uses an hour.
    pub duration_seconds: Option<u32>,
    /// The external ID in the request.
    pub external_id: Option<String>,
    /// The requested source identity.
    pub source_identity: Option<String>,
    /// Session tags in the order of their numbers.
    pub tags: Vec<(String, String)>,
    /// The keys of the transitive tags in the order of their numbers.
    pub transitive_tag_keys: Vec<String>,
    /// The access key ID of the signature, whether or not it was verified.
    pub caller_access_key_id: Option<String>,
    /// The caller, once its signature was verified.
    pub caller_arn: Option<String>,
    /// The region of the signature's scope.
    pub region: Option<String>,
    /// The User-Agent header.
    pub user_agent: Option<String>,
    /// When the call arrived.
    pub at: Instant,
    /// [`Call::PENDING`], [`Call::OK`], [`Call::CLOSED`], [`Call::ABANDONED`], or the error's code.
    pub outcome: String,
    /// The access key ID in the answer.
    pub access_key_id_issued: Option<String>,
}

impl Call {
    /// The call has not been answered yet.
    pub const PENDING: &'static str = "pending";
    /// The call was answered with 200, possibly with a body that was broken on purpose.
    pub const OK: &'static str = "ok";
    /// The service closed the connection instead of answering.
    pub const CLOSED: &'static str = "closed";
    /// The client left before the answer.
    pub const ABANDONED: &'static str = "abandoned";
}

/// Credentials that the service issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The access key ID: `ASIA…`, with the first letters of the role's name and a number in it.
    pub access_key_id: String,
    /// The secret key.
    pub secret_access_key: String,
    /// The session token.
    pub session_token: String,
    /// The role that was assumed.
    pub role_arn: String,
    /// The session's name.
    pub session_name: String,
    /// The session's source identity: the requested one, or the caller's own.
    pub source_identity: Option<String>,
    /// The session's tags: the requested ones, and the transitive ones of the caller.
    pub tags: Vec<(String, String)>,
    /// The end of the session on the service's clock.
    pub expires_at: Timestamp,
}

/// The identity that signed a request.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The ARN that GetCallerIdentity returns.
    pub(super) arn: String,
    /// The role behind a session; otherwise equal to `arn`.
    pub(super) role_arn: String,
    pub(super) user_id: String,
    /// Whether AssumeRole issued the session. What it assumes in turn lives an hour at most.
    pub(super) chained: bool,
    /// The source identity, which every session that this one assumes inherits.
    pub(super) source_identity: Option<String>,
    /// The transitive tags, which every session that this one assumes inherits.
    pub(super) transitive_tags: Vec<(String, String)>,
}

impl Identity {
    pub(super) fn of_caller(arn: String) -> Identity {
        let role_arn = role_behind(&arn).unwrap_or_else(|| arn.clone());
        let session = arn.rsplit('/').next().unwrap_or_default();
        let user_id = format!("{}:{session}", unique_id("AROA", &role_arn));
        Identity { arn, role_arn, user_id, chained: false, source_identity: None, transitive_tags: Vec::new() }
    }
}

/// An access key that the service knows.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) secret: String,
    pub(super) token: Token,
    pub(super) identity: Identity,
    pub(super) expires_at: Option<Timestamp>,
}

/// The session token that belongs to an access key.
#[derive(Clone, Debug)]
pub(super) enum Token {
    None,
    Required(String),
    /// The token of the node's own keys, which work both from a test's environment and from the fake IMDS, which always serves
    /// a token.
    Optional(String),
}

impl Token {
    pub(super) fn accepts(&self, presented: Option<&str>) -> bool {
        match (self, presented) {
            (Token::None | Token::Optional(_), None) => true,
            (Token::None, Some(_)) | (Token::Required(_), None) => false,
            (Token::Required(token) | Token::Optional(token), Some(presented)) => token == presented,
        }
    }
}

/// Returns the account of an ARN; empty if it has none.
pub(super) fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// Returns the partition of an ARN.
pub(super) fn partition_of(arn: &str) -> &str {
    arn.split(':').nth(1).unwrap_or_default()
}

fn root_of(arn: &str) -> Option<String> {
    let account = account_of(arn);
    (!account.is_empty()).then(|| format!("arn:{}:iam::{account}:root", partition_of(arn)))
}

/// Returns the role behind a session: `arn:aws:sts::1:assumed-role/NAME/SESSION` is a session of `arn:aws:iam::1:role/NAME`.
fn role_behind(arn: &str) -> Option<String> {
    let (_, resource) = arn.split_once(":assumed-role/")?;
    let (name, _) = resource.split_once('/')?;
    let (partition, account) = (partition_of(arn), account_of(arn));
    Some(format!("arn:{partition}:iam::{account}:role/{name}"))
}

/// Returns an IAM unique ID: the prefix of its type, and 17 characters derived from the ARN.
pub(super) fn unique_id(prefix: &str, arn: &str) -> String {
    let digest = sha256(arn.as_bytes()).to_ascii_uppercase();
    format!("{prefix}{}", &digest[..17])
}

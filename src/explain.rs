//! Explains why a pod gets its role, or none: every step of the decision.
//!
//! The decision is the daemon's own. The pod's addresses are looked up in the index from which requests are answered, and the
//! role is decided by the policy that decides requests. A [`Report`] is the result. It is made in the daemon, or from the
//! objects in the Kubernetes API. It has only texts: nothing in it can be sent to STS.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::advice::Advise as _;
use crate::config::explain_command::PodReference;
use crate::credentials::{AssumeRoleError, Credentials};
use crate::policy::trace::StepVerdict;
use crate::policy::{Denial, RoleRequest};

pub(crate) mod admin;
pub(crate) mod explainer;
pub(crate) mod look;
pub(crate) mod modes;
pub(crate) mod pod_identity;
pub(crate) mod render;

/// The version of the report's form. It grows if a field is removed or changes its meaning.
pub(crate) const VERSION: u32 = 1;

/// The header of a request to a daemon. A web page cannot send it without a preflight request, and fetching a URL does not send
/// it.
pub(crate) const HEADER: &str = "x-rolegate-explain";

/// The explanation of the decision about a pod, with every step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The namespace of the pod.
    pub namespace: String,
    /// The name of the pod.
    pub pod: String,
    /// The node on which the pod was looked up; empty if the pod is on none.
    pub node: String,
    /// The source of the decision.
    pub by: By,
    /// The decision.
    pub decision: ReportedDecision,
    /// The code of the reason, as in the metrics and the log; `sts-` and the outcome if STS failed.
    pub reason: Option<String>,
    /// What happened, and how to fix it.
    pub message: String,
    /// What to check, in this order, if STS failed.
    pub check: Vec<String>,
    /// What else keeps the pod from its credentials, or limits them.
    pub notes: Vec<String>,
    /// The steps that decide whether a request from the pod's addresses is the pod's.
    pub identity: Vec<ReportStep>,
    /// The steps that decide the role.
    pub policy: Vec<ReportStep>,
    /// What the pod needs to get credentials with Pod Identity; empty if neither the pod nor the daemon uses it.
    #[serde(default)]
    pub pod_identity: Vec<ReportStep>,
    /// The parameters of AssumeRole, if the pod may have the role.
    pub request: Option<StsParameters>,
    /// The answer of STS, if it was called.
    pub assume: Option<Assumed>,
}

/// The source of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum By {
    /// The daemon, with its settings and its current state.
    Daemon,
    /// The objects in the Kubernetes API, and the flags of the command.
    Cluster,
}

/// The decision about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReportedDecision {
    /// The pod gets credentials.
    Allowed,
    /// The pod gets no credentials.
    Denied,
    /// The decision is not known.
    Unknown,
}

/// A step of the decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportStep {
    /// The subject of the step.
    pub what: String,
    /// The flag, the annotation or the address.
    pub source: String,
    /// The value that was found there.
    pub detail: String,
    /// The result.
    pub verdict: StepVerdict,
}

/// The parameters of AssumeRole, to read only: they cannot become a `RoleRequest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StsParameters {
    /// The ARN of the role whose session the pod gets.
    pub role: String,
    /// The ARN of the role that assumes it, if it is a target role.
    #[serde(default)]
    pub source_role: Option<String>,
    /// The session's name.
    pub session_name: String,
    /// The session's source identity, if one is set.
    pub source_identity: Option<String>,
    /// Whether an external ID is sent. Its value is meant only for the role's account.
    pub external_id: bool,
    /// The session's tags.
    pub tags: Vec<ReportedTag>,
    /// Whether all tags are transitive.
    #[serde(default)]
    pub has_transitive_tags: bool,
    /// The requested duration of the session.
    pub duration_seconds: u64,
}

/// A session tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedTag {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// The answer of STS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assumed {
    /// The ARN of the caller, if it is known.
    pub identity: Option<String>,
    /// `ok`, or the name of the failure, as in the metrics.
    pub outcome: String,
    /// The access key ID of the source role's session, if there is a target role and the source role was assumed.
    #[serde(default)]
    pub source_access_key_id: Option<String>,
    /// The session's access key ID, by which CloudTrail finds it.
    pub access_key_id: Option<String>,
    /// The session's expiry, in RFC 3339 format.
    pub expires_at: Option<String>,
}

impl Report {
    /// Creates a report without a decision.
    pub(crate) fn unknown(pod: &PodReference, node: &str, by: By, reason: &str, message: String) -> Self {
        Self { reason: Some(reason.to_owned()), message, ..Self::undecided(pod.namespace(), pod.name(), node, by) }
    }

    /// Creates a report of a pod that is known, before the decision.
    pub(crate) fn undecided(namespace: &str, pod: &str, node: &str, by: By) -> Self {
        Self {
            version: VERSION,
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            node: node.to_owned(),
            by,
            decision: ReportedDecision::Unknown,
            reason: None,
            message: String::new(),
            check: Vec::new(),
            notes: Vec::new(),
            identity: Vec::new(),
            policy: Vec::new(),
            pod_identity: Vec::new(),
            request: None,
            assume: None,
        }
    }

    /// Adds the response that STS gave to `caller`.
    fn asked(&mut self, request: &RoleRequest, caller: Option<String>, asked: AskedSts) {
        let AskedSts { source_access_key_id, answer } = asked;
        let mut assumed =
            Assumed { identity: caller, outcome: "ok".to_owned(), source_access_key_id, access_key_id: None, expires_at: None };
        match answer {
            Ok(session) => {
                let caller = request.source_role().map(|role| role.as_str()).or(assumed.identity.as_deref()).unwrap_or("rolegate");
                self.message = format!("{}, and STS lets {caller} assume it", self.message);
                if session.life + A_MINUTE < request.duration() {
                    self.notes.push(format!(
                        "sessions of this role last {}, not {} as --session-duration says. To fix: raise the role's maximum session \
                         duration, or lower the flag (with --assume-role-arn, sessions last 1h at most)",
                        humantime::format_duration(Duration::from_secs(session.life.as_secs().next_multiple_of(60))),
                        humantime::format_duration(request.duration()),
                    ));
                }
                assumed.access_key_id = Some(session.access_key_id);
                assumed.expires_at = Some(session.expires_at);
            }
            Err(error) => {
                assumed.outcome = error.name().to_owned();
                // Only a refusal is about the role. Other failures do not decide whether the pod could have it.
                let refused = error.is_refusal();
                self.decision = if refused { ReportedDecision::Denied } else { ReportedDecision::Unknown };
                self.reason = Some(format!("sts-{}", error.name()));
                let diagnosis = error.diagnose(request, assumed.identity.as_deref());
                self.message = diagnosis.problem;
                self.check = diagnosis.check;
            }
        }
        self.assume = Some(assumed);
    }
}

/// What STS answered.
struct AskedSts {
    /// The access key ID of the source role's session, if there is one.
    source_access_key_id: Option<String>,
    /// The answer for the role whose session the pod gets, or the first failure.
    answer: Result<Session, AssumeRoleError>,
}

/// The public part of a session.
struct Session {
    access_key_id: String,
    expires_at: String,
    life: Duration,
}

impl Session {
    /// Takes the public part. The credentials are dropped.
    fn of(credentials: Credentials) -> Self {
        let (life, expires_at) = (credentials.life(), credentials.expires_at.to_string());
        Self { access_key_id: credentials.access_key_id, expires_at, life }
    }
}

/// Differences between durations below this come from the time of the request itself.
const A_MINUTE: Duration = Duration::from_secs(60);

impl StsParameters {
    fn of(request: &RoleRequest) -> Self {
        Self {
            role: request.role().to_string(),
            source_role: request.source_role().map(ToString::to_string),
            session_name: request.session_name().as_str().to_owned(),
            source_identity: request.source_identity().map(|identity| identity.as_str().to_owned()),
            external_id: request.external_id().is_some(),
            tags: request.tags().iter().map(|tag| ReportedTag { key: tag.key().to_owned(), value: tag.value().to_owned() }).collect(),
            has_transitive_tags: request.has_transitive_tags(),
            duration_seconds: request.duration().as_secs(),
        }
    }
}

/// Returns the code and the text of a refusal by policy.
fn refusal(denial: Denial) -> (Option<String>, String) {
    (Some(denial.name().to_owned()), denial.with_advice())
}

#[cfg(test)]
mod tests;

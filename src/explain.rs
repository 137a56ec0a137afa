//! Why a pod gets its role, or none: every step of the decision, for the people who ask.
//!
//! The decision is the daemon's own: who has the pod's addresses is asked of the same index that requests are answered
//! from, and which role it may have of the same policy, which notes its steps. A [`Report`] is what came of both. It is made
//! in the daemon, or from what the Kubernetes API says; it holds texts alone, and nothing that could be asked of STS.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::explain_command::PodReference;
use crate::credentials::AssumeRoleError;
use crate::policy::trace::StepVerdict;
use crate::policy::{Denial, RoleRequest};

pub(crate) mod admin;
pub(crate) mod explainer;
pub(crate) mod look;
pub(crate) mod render;

/// The version of the report's form; it grows when a field changes its meaning or goes.
pub(crate) const VERSION: u32 = 1;

/// The header of a question to a daemon. A page of a browser cannot send it without asking first, nor can a URL alone that
/// something on the node is made to fetch.
pub(crate) const HEADER: &str = "x-rolegate-explain";

/// What is known about a pod and its role, with every step to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The node that it is looked for on; empty where it is on none.
    pub node: String,
    /// By whose word.
    pub by: By,
    /// What came of all.
    pub decision: ReportedDecision,
    /// The name of the reason against it: the one of the metrics and the log, or how STS refused.
    pub reason: Option<String>,
    /// What came of it, in a sentence that says what to change.
    pub message: String,
    /// What to look at, in this order, where STS refused.
    pub check: Vec<String>,
    /// What should be known besides.
    pub notes: Vec<String>,
    /// Whether a request from the pod's addresses is told to be the pod's.
    pub identity: Vec<ReportStep>,
    /// Which role it may have.
    pub policy: Vec<ReportStep>,
    /// What STS is asked for, where it may be asked.
    pub request: Option<StsParameters>,
    /// What STS answered, where it was asked.
    pub assume: Option<Assumed>,
}

/// By whose word a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum By {
    /// The daemon's, by its settings and by what it knows now.
    Daemon,
    /// The Kubernetes API's, by the settings given.
    Cluster,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReportedDecision {
    /// The pod gets credentials.
    Allowed,
    /// It gets none.
    Denied,
    /// That could not be found out.
    Unknown,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportStep {
    /// What was looked at.
    pub what: String,
    /// Where.
    pub source: String,
    /// What was found there.
    pub detail: String,
    /// What came of it.
    pub verdict: StepVerdict,
}

/// What STS is asked for, for reading alone: a `RoleRequest` cannot be made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StsParameters {
    /// The role's ARN.
    pub role: String,
    /// The session's name.
    pub session_name: String,
    /// The session's source identity, if one is set.
    pub source_identity: Option<String>,
    /// Whether an external id is sent. Its value is for the role's account alone.
    pub external_id: bool,
    /// The session's tags.
    pub tags: Vec<ReportedTag>,
    /// How long the session is to last.
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

/// What STS answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assumed {
    /// Who asked, where that is known.
    pub identity: Option<String>,
    /// `ok`, or the name of the failure, as in the metrics.
    pub outcome: String,
    /// The session's key, by which CloudTrail finds it.
    pub access_key_id: Option<String>,
    /// The session's end, as RFC 3339 has it.
    pub expires_at: Option<String>,
}

impl Report {
    /// A report on which nothing is found out yet.
    pub(crate) fn unknown(pod: &PodReference, node: &str, by: By, reason: &str, message: String) -> Self {
        Self {
            version: VERSION,
            namespace: pod.namespace().to_owned(),
            pod: pod.name().to_owned(),
            node: node.to_owned(),
            by,
            decision: ReportedDecision::Unknown,
            reason: Some(reason.to_owned()),
            message,
            check: Vec::new(),
            notes: Vec::new(),
            identity: Vec::new(),
            policy: Vec::new(),
            request: None,
            assume: None,
        }
    }

    /// STS gave credentials, or did not; `who` asked.
    fn asked(&mut self, request: &RoleRequest, who: Option<String>, answer: Result<Session, AssumeRoleError>) {
        let mut assumed = Assumed { identity: who, outcome: "ok".to_owned(), access_key_id: None, expires_at: None };
        match answer {
            Ok(session) => {
                self.message = format!("{}; STS gives it to {}", self.message, caller(&assumed.identity));
                if session.life + A_MINUTE < request.duration() {
                    self.notes.push(format!(
                        "its sessions last {}, not the {} of --session-duration: raise the role's maximum session duration, or make \
                         the flag shorter (with a role between the node's and the pods', they never last more than 1h)",
                        humantime::format_duration(Duration::from_secs(session.life.as_secs().next_multiple_of(60))),
                        humantime::format_duration(request.duration()),
                    ));
                }
                assumed.access_key_id = Some(session.access_key_id);
                assumed.expires_at = Some(session.expires_at);
            }
            Err(error) => {
                assumed.outcome = error.name().to_owned();
                // Whether the role can be had is found out by these two alone; the others say something of the way there.
                let refused = error.is_refusal();
                self.decision = if refused { ReportedDecision::Denied } else { ReportedDecision::Unknown };
                self.reason = Some(format!("sts-{}", error.name()));
                let advice = error.advice(request, assumed.identity.as_deref());
                self.message = advice.problem;
                self.check = advice.check;
            }
        }
        self.assume = Some(assumed);
    }
}

/// What is told of a session.
struct Session {
    access_key_id: String,
    expires_at: String,
    life: Duration,
}

/// What an answer takes, and more, is no difference of durations.
const A_MINUTE: Duration = Duration::from_secs(60);

fn caller(identity: &Option<String>) -> &str {
    identity.as_deref().unwrap_or("whoever asked")
}

impl StsParameters {
    fn of(request: &RoleRequest) -> Self {
        Self {
            role: request.role().to_string(),
            session_name: request.session_name().as_str().to_owned(),
            source_identity: request.source_identity().map(|identity| identity.as_str().to_owned()),
            external_id: request.external_id().is_some(),
            tags: request.tags().iter().map(|tag| ReportedTag { key: tag.key().to_owned(), value: tag.value().to_owned() }).collect(),
            duration_seconds: request.duration().as_secs(),
        }
    }
}

/// The sentence of a refusal by policy.
fn refusal(denial: Denial) -> (Option<String>, String) {
    (Some(denial.name().to_owned()), denial.to_string())
}

#[cfg(test)]
mod tests;

//! A failure of STS in the words of whoever has to mend it: what is wrong, and what to look at, in the order in which it is
//! mostly found.

use std::fmt;

use super::denied::is_about_source_identity;
use super::{AssumeRoleError, CHECK_ENDPOINT};
use crate::policy::RoleRequest;
use crate::session_limits::LONGEST_CHAINED;

/// What to look at when the daemon's credentials are no good.
pub(super) const CHECK_CREDENTIALS: &str = "check the node's instance profile and that the daemon reaches the metadata service";

/// What is wrong, and what to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// A sentence without an end.
    pub problem: String,
    /// What to look at, in this order; one thing each.
    pub check: Vec<String>,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        self.check.iter().enumerate().try_for_each(|(at, check)| write!(f, "; {}. {check}", at + 1))
    }
}

impl AssumeRoleError {
    /// What is wrong with this request, and what to look at. `who` asked, where that is known.
    pub fn advice(&self, request: &RoleRequest, who: Option<&str>) -> Advice {
        let (problem, check) = match self {
            Self::Denied { message } => {
                let check = if is_about_source_identity(message) { source_identity_denied(request, who) } else { denied(request, who) };
                (format!("STS denies it: {message}"), check)
            }
            Self::Invalid { message } | Self::TooLong { message } => {
                (format!("STS refuses the request: {message}"), invalid(message, request))
            }
            Self::Throttled => (
                "STS throttles this account's requests".to_owned(),
                vec!["ask again later; if it stays so, look in CloudTrail for who asks STS so often in this account and region".to_owned()],
            ),
            Self::IdentityUnknown(error) => return error.advice(request, who),
            Self::OwnIdentity { message, advice } => {
                let more = [
                    "the node has an instance profile, and its role exists",
                    "the metadata service can be reached from where this runs (HttpEndpoint, HttpPutResponseHopLimit)",
                    "the clock of the node is right",
                ];
                // Where it is something else, that is all.
                let more = more.into_iter().filter(|_| advice == CHECK_CREDENTIALS).map(str::to_owned);
                let check = std::iter::once(advice.to_string()).chain(more).collect();
                (format!("the AWS identity of who asks cannot be used: {message}"), check)
            }
            Self::Unreachable { message } => (
                format!("STS cannot be reached: {message}"),
                vec!["route, DNS and firewall to the regional STS endpoint, or the VPC endpoint for it".to_owned()],
            ),
            Self::OtherRole { message } => {
                (format!("STS returned another session than the requested one: {message}"), vec![CHECK_ENDPOINT.to_owned()])
            }
            Self::NotAsked(why) => (why.to_string(), vec![why.advice().to_owned()]),
            Self::Failed { message } => {
                (format!("STS failed: {message}"), vec!["ask again; if it stays so, see the state of AWS in this region".to_owned()])
            }
        };
        Advice { problem, check }
    }
}

/// What to look at where the message names sts:SetSourceIdentity. Denials for other causes name sts:AssumeRole.
fn source_identity_denied(request: &RoleRequest, who: Option<&str>) -> Vec<String> {
    let (role, who) = (request.role(), who.unwrap_or("who asks"));
    let origin = match request.source_identity() {
        Some(identity) => format!(
            "the session of {who} has no source identity of its own, which STS would not change to {}, that of --source-identity",
            identity.as_str()
        ),
        None => format!(
            "--source-identity is not given, so the source identity is that of the session of {who}, which STS passes on: give that \
             session none, or allow the action"
        ),
    };
    vec![
        format!("the trust policy of {role} allows sts:SetSourceIdentity to the role of {who}, beside sts:AssumeRole"),
        format!("that role's own policies allow sts:SetSourceIdentity on {role}, and no permissions boundary or SCP takes it away"),
        "a condition on sts:SourceIdentity in one of these policies matches the source identity".to_owned(),
        origin,
    ]
}

/// AccessDenied does not tell why: not even whether there is such a role.
fn denied(request: &RoleRequest, who: Option<&str>) -> Vec<String> {
    let (role, who) = (request.role(), who.unwrap_or("who asks"));
    let mut check = vec![
        format!("the role {} exists in account {}, with this path", role.name(), role.account()),
        format!("its trust policy allows sts:AssumeRole to the role of {who}"),
        format!("that role's own policies allow sts:AssumeRole on {role}, and no permissions boundary or SCP takes it away"),
        match request.external_id() {
            Some(_) => "an external id was sent, from the pod's annotation: a condition on sts:ExternalId in the trust policy has the same"
                .to_owned(),
            None => "no external id was sent: the trust policy has no condition on sts:ExternalId; else give the pod the annotation for it"
                .to_owned(),
        },
    ];
    if let Some(identity) = request.source_identity() {
        check.push(format!(
            "the source identity {} was sent: the trust policy, and that role's own policies, allow sts:SetSourceIdentity, too; a \
             condition on sts:SourceIdentity matches it; and the session of {who} has no other source identity, which STS would not change",
            identity.as_str()
        ));
    }
    if !request.tags().is_empty() {
        check.push("session tags were sent: the trust policy, and that role's own policies, allow sts:TagSession, too".to_owned());
    }
    check
}

fn invalid(message: &str, request: &RoleRequest) -> Vec<String> {
    let duration = humantime::format_duration(request.duration());
    if message.contains("role chaining") {
        let longest = humantime::format_duration(LONGEST_CHAINED);
        return vec![format!(
            "--session-duration is {duration}, and who asks has its keys from AssumeRole itself: such sessions last {longest} at most"
        )];
    }
    if message.contains("DurationSeconds") || message.contains("MaxSessionDuration") {
        return vec![format!(
            "--session-duration is {duration}: raise the role's maximum session duration (MaxSessionDuration) to it, or make the flag shorter"
        )];
    }
    if message.contains("RegionDisabled") {
        return vec![format!(
            "STS is not active for this region in account {}: whoever owns it activates it (IAM, Account settings)",
            request.role().account()
        )];
    }
    if message.contains("PackedPolicy") {
        return vec!["the session's tags are too long together: give fewer --session-tags".to_owned()];
    }
    vec!["the role's ARN, the session's name, the source identity and the tags against what STS says".to_owned()]
}

#[cfg(test)]
mod tests;

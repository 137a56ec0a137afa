//! What to check after a failure of STS, most likely causes first.

use super::chain::{ChainCall, called_role};
use super::sts_errors::StsErrorKind;
use super::{AssumeRoleError, CHECK_ENDPOINT};
use crate::policy::RoleRequest;
use crate::role::RoleArn;

/// The name of the caller in texts, if its ARN is not known.
const UNKNOWN_CALLER: &str = "rolegate";

/// What to check when AWS does not accept the daemon's credentials.
pub(super) const CHECK_CREDENTIALS: &str = "check the node's instance profile, and that the daemon reaches the metadata service";

/// A failure of STS and what to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// What happened, without a closing full stop.
    pub problem: String,
    /// What should be true, in the order in which to check it.
    pub check: Vec<String>,
}

impl AssumeRoleError {
    /// Returns what happened to this request, and what to check. `caller` is the ARN that called STS, if it is known.
    pub fn diagnose(&self, request: &RoleRequest, caller: Option<&str>) -> Diagnosis {
        let check = match self {
            Self::Denied { .. }
            | Self::Invalid { .. }
            | Self::TooLong { .. }
            | Self::Throttled
            | Self::Failed { .. }
            | Self::InChain { .. } => {
                let call = self.refused_call();
                self.kind().map(|kind| checks(kind, &RefusedCall::of(request, call, caller))).unwrap_or_default()
            }
            Self::IdentityUnknown(error) => return error.diagnose(request, caller),
            Self::OwnIdentity { advice, .. } => {
                let more = [
                    "the node has an instance profile, and its role exists",
                    "the metadata service is reachable from here (HttpEndpoint, HttpPutResponseHopLimit)",
                    "the node's clock is right",
                ];
                // These apply only if nothing more specific is known.
                let more = more.into_iter().filter(|_| advice == CHECK_CREDENTIALS).map(str::to_owned);
                std::iter::once(advice.to_string()).chain(more).collect()
            }
            Self::Unreachable { .. } => {
                vec!["the node has a route, DNS and no firewall to the regional STS endpoint, or to a VPC endpoint for it".to_owned()]
            }
            Self::OtherRole { .. } => vec![CHECK_ENDPOINT.to_owned()],
            Self::NotAsked(why) => vec![why.advice().to_owned()],
            Self::Expired { .. } => vec!["the node's clock is right".to_owned()],
        };
        Diagnosis { problem: self.to_string(), check }
    }
}

/// A call that STS refused.
struct RefusedCall<'a> {
    request: &'a RoleRequest,
    /// Which of the two calls it is, if the request has a target role.
    chain: Option<ChainCall>,
    /// The role that was to be assumed.
    role: &'a RoleArn,
    /// The ARN of the caller: a session of the daemon's own role, or the pod's role, which assumes the target role.
    caller: &'a str,
    /// The caller's role, in a sentence.
    caller_role: String,
}

impl<'a> RefusedCall<'a> {
    fn of(request: &'a RoleRequest, chain: Option<ChainCall>, daemon: Option<&'a str>) -> Self {
        let role = called_role(request, chain);
        let (caller, caller_role) = match (chain, request.source_role()) {
            (Some(ChainCall::Target), Some(source)) => (source.as_str(), format!("the pod's role {source}")),
            _ => {
                let caller = daemon.unwrap_or(UNKNOWN_CALLER);
                (caller, format!("the role of {caller}"))
            }
        };
        Self { request, chain, role, caller, caller_role }
    }
}

/// Returns what to check after this error. Denials without a stated cause have a list of causes; all others have the advice of the
/// table.
fn checks(kind: StsErrorKind, call: &RefusedCall<'_>) -> Vec<String> {
    let RefusedCall { request, chain, role, .. } = *call;
    let advice = kind.with(request, chain).advice();
    match kind {
        StsErrorKind::AssumeRole => denied(call),
        StsErrorKind::SetSourceIdentity => source_identity_denied(call),
        StsErrorKind::Duration | StsErrorKind::Chained => {
            vec![format!("--session-duration is {}: {advice}", humantime::format_duration(request.duration()))]
        }
        StsErrorKind::RegionDisabled | StsErrorKind::RoleArn => vec![format!("the role is {role}: {advice}")],
        _ => vec![advice.to_owned()],
    }
}

/// Returns what to check if the message names sts:SetSourceIdentity. Denials for other causes name sts:AssumeRole.
fn source_identity_denied(call: &RefusedCall<'_>) -> Vec<String> {
    let RefusedCall { request, chain, role, caller, ref caller_role } = *call;
    let origin = match request.source_identity() {
        Some(identity) if chain == Some(ChainCall::Target) => {
            format!("the session of {caller_role} has the source identity {}, which --source-identity sets", identity.as_str())
        }
        Some(identity) => format!(
            "the session of {caller} has no source identity of its own; STS would not change it to {}, which --source-identity sets",
            identity.as_str()
        ),
        None => format!(
            "--source-identity is not given, so STS passes on the source identity of the session of {caller}: remove it from that \
             session, or allow the action"
        ),
    };
    vec![
        format!("the trust policy of {role} allows sts:SetSourceIdentity, besides sts:AssumeRole, for {caller_role}"),
        format!("the policies of the caller's role allow sts:SetSourceIdentity on {role}, and no permissions boundary or SCP denies it"),
        "a condition on sts:SourceIdentity in these policies, if there is one, matches the source identity".to_owned(),
        origin,
    ]
}

/// Returns what to check after AccessDenied, which does not say why: not even whether the role exists.
fn denied(call: &RefusedCall<'_>) -> Vec<String> {
    let RefusedCall { request, chain, role, caller, ref caller_role } = *call;
    let mut check = vec![
        format!("the role {} exists in account {}, with this path", role.name(), role.account()),
        format!("its trust policy allows sts:AssumeRole for {caller_role}"),
        format!("the policies of the caller's role allow sts:AssumeRole on {role}, and no permissions boundary or SCP denies it"),
        match request.external_id() {
            _ if chain == Some(ChainCall::Source) => {
                "no external ID was sent, because it is for the target role: the trust policy has no condition on sts:ExternalId".to_owned()
            }
            Some(_) => "an external ID was sent, from the pod's annotation: a condition on sts:ExternalId in the trust policy matches it"
                .to_owned(),
            None => "no external ID was sent: the trust policy has no condition on sts:ExternalId; if it has one, annotate the pod with \
                     the external ID"
                .to_owned(),
        },
    ];
    if let Some(identity) = request.source_identity() {
        let other = match chain {
            // Its session has the same one.
            Some(ChainCall::Target) => String::new(),
            _ => format!(", and the session of {caller} has no other source identity, which STS would not change"),
        };
        check.push(format!(
            "the source identity {} was sent: the trust policy and the policies of the caller's role allow sts:SetSourceIdentity, a \
             condition on sts:SourceIdentity matches it{other}",
            identity.as_str()
        ));
    }
    if !request.tags().is_empty() {
        check.push("session tags were sent: the trust policy and the policies of the caller's role allow sts:TagSession".to_owned());
    }
    check
}

#[cfg(test)]
mod tests;

//! What to check after a failure of STS, most likely causes first.

use super::sts_errors::StsErrorKind;
use super::{AssumeRoleError, CHECK_ENDPOINT};
use crate::policy::RoleRequest;

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
            Self::Denied { .. } | Self::Invalid { .. } | Self::TooLong { .. } | Self::Throttled | Self::Failed { .. } => {
                self.kind().map(|kind| checks(kind, request, caller)).unwrap_or_default()
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

/// Returns what to check after this error. Denials without a stated cause have a list of causes; all others have the advice of the
/// table.
fn checks(kind: StsErrorKind, request: &RoleRequest, caller: Option<&str>) -> Vec<String> {
    let advice = kind.with(request).advice();
    match kind {
        StsErrorKind::AssumeRole => denied(request, caller),
        StsErrorKind::SetSourceIdentity => source_identity_denied(request, caller),
        StsErrorKind::Duration | StsErrorKind::Chained => {
            vec![format!("--session-duration is {}: {advice}", humantime::format_duration(request.duration()))]
        }
        StsErrorKind::RegionDisabled | StsErrorKind::RoleArn => vec![format!("the role is {}: {advice}", request.role())],
        _ => vec![advice.to_owned()],
    }
}

/// Returns what to check if the message names sts:SetSourceIdentity. Denials for other causes name sts:AssumeRole.
fn source_identity_denied(request: &RoleRequest, caller: Option<&str>) -> Vec<String> {
    let (role, caller) = (request.role(), caller.unwrap_or(UNKNOWN_CALLER));
    let origin = match request.source_identity() {
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
        format!("the trust policy of {role} allows sts:SetSourceIdentity, besides sts:AssumeRole, for the role of {caller}"),
        format!("the policies of the caller's role allow sts:SetSourceIdentity on {role}, and no permissions boundary or SCP denies it"),
        "a condition on sts:SourceIdentity in these policies, if there is one, matches the source identity".to_owned(),
        origin,
    ]
}

/// Returns what to check after AccessDenied, which does not say why: not even whether the role exists.
fn denied(request: &RoleRequest, caller: Option<&str>) -> Vec<String> {
    let (role, caller) = (request.role(), caller.unwrap_or(UNKNOWN_CALLER));
    let mut check = vec![
        format!("the role {} exists in account {}, with this path", role.name(), role.account()),
        format!("its trust policy allows sts:AssumeRole for the role of {caller}"),
        format!("the policies of the caller's role allow sts:AssumeRole on {role}, and no permissions boundary or SCP denies it"),
        match request.external_id() {
            Some(_) => "an external ID was sent, from the pod's annotation: a condition on sts:ExternalId in the trust policy matches it"
                .to_owned(),
            None => "no external ID was sent: the trust policy has no condition on sts:ExternalId; if it has one, annotate the pod with \
                     the external ID"
                .to_owned(),
        },
    ];
    if let Some(identity) = request.source_identity() {
        check.push(format!(
            "the source identity {} was sent: the trust policy and the policies of the caller's role allow sts:SetSourceIdentity, a \
             condition on sts:SourceIdentity matches it, and the session of {caller} has no other source identity, which STS would not \
             change",
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

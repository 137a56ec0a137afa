//! The errors of STS: what each means, and what to do about it. The log, Events and `rolegate explain` take their advice from the
//! table in this module.
//!
//! The codes are those of the STS API reference ("Common error types", and the errors of each action). A code alone often does not
//! say what is wrong: `AccessDenied` and `ValidationError` have many causes, and their messages tell these apart.

use super::chain::ChainCall;
use crate::policy::RoleRequest;

/// The meaning of an error response of STS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StsErrorKind {
    /// `AccessDenied` for `sts:AssumeRole`. STS does not say why: not even whether the role exists.
    AssumeRole,
    /// Like [`Self::AssumeRole`], for a request without an external ID.
    WithoutExternalId,
    /// Like [`Self::AssumeRole`], for a request with an external ID.
    WithExternalId,
    /// Like [`Self::AssumeRole`], for the role that assumes the target role.
    SourceRole,
    /// Like [`Self::AssumeRole`], for a target role and a request without an external ID.
    TargetWithoutExternalId,
    /// Like [`Self::AssumeRole`], for a target role and a request with an external ID.
    TargetWithExternalId,
    /// `AccessDenied` for `sts:SetSourceIdentity`.
    SetSourceIdentity,
    /// Like [`Self::SetSourceIdentity`], for a target role.
    TargetSetSourceIdentity,
    /// `AccessDenied` for `sts:TagSession`.
    TagSession,
    /// Like [`Self::TagSession`], for a target role.
    TargetTagSession,
    /// `AccessDenied` by a policy above both roles: of the organization, of a VPC endpoint, or a permissions boundary.
    PolicyAbove,
    /// `AccessDenied` for `sts:AssumeRoleWithWebIdentity`, with which the daemon gets its own credentials.
    WebIdentityDenied,
    /// `ValidationError`: longer than the role's maximum session duration.
    Duration,
    /// `ValidationError`: longer than sessions by role chaining may be.
    Chained,
    /// `ValidationError`: the role's ARN.
    RoleArn,
    /// `ValidationError`: the external ID.
    ExternalIdForm,
    /// `ValidationError`: the session name, the source identity or the tags.
    Parameter,
    /// `RegionDisabledException`: STS is not activated for the region in the role's account.
    RegionDisabled,
    /// `PackedPolicyTooLarge`: the session tags.
    PackedPolicyTooLarge,
    /// `MalformedPolicyDocument`: a session policy, which rolegate never sends.
    MalformedPolicy,
    /// Another error that STS blames on the request.
    OtherRequest,
    /// `Throttling`, under each of its names.
    Throttled,
    /// `ExpiredToken`: the daemon's own credentials have expired.
    Expired,
    /// `InvalidClientTokenId`: STS does not know the daemon's access key.
    UnknownKey,
    /// `SignatureDoesNotMatch`, `RequestExpired`, `RequestTimeTooSkewed`: the time of the request, usually.
    Clock,
    /// `IncompleteSignature`, `MissingAuthenticationToken`: the request arrived without a whole signature.
    Unsigned,
    /// `OptInRequired`: the region or the service is not enabled in the daemon's account.
    OptIn,
    /// `InvalidIdentityToken`, `IDPRejectedClaim`: STS does not accept the daemon's web identity token.
    WebIdentityToken,
    /// `IDPCommunicationError`: STS cannot reach the issuer of the daemon's web identity token.
    Issuer,
    /// `InternalFailure`, `ServiceUnavailable`, `RequestTimeout`: STS itself fails.
    Service,
}

/// What an error concerns, which decides how rolegate reacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StsErrorClass {
    /// One role: permissions.
    Denied,
    /// One role: the request.
    Invalid,
    /// The account: too many requests.
    Throttled,
    /// The daemon's own credentials.
    OwnIdentity,
    /// STS, for a moment.
    Failed,
}

impl StsErrorKind {
    /// Returns the meaning of an error with this code and message; `None` for a code that is not in the table.
    pub(super) fn of(code: &str, message: &str) -> Option<Self> {
        Some(match code.strip_suffix("Exception").unwrap_or(code) {
            "AccessDenied" | "NotAuthorized" => Self::of_denial(message),
            "ValidationError" | "Validation" => Self::of_validation(message),
            "RegionDisabled" => Self::RegionDisabled,
            "PackedPolicyTooLarge" => Self::PackedPolicyTooLarge,
            "MalformedPolicyDocument" => Self::MalformedPolicy,
            "Throttling" | "Throttled" | "RequestThrottled" | "TooManyRequests" | "RequestLimitExceeded" | "SlowDown" => Self::Throttled,
            "ExpiredToken" => Self::Expired,
            "InvalidClientTokenId" | "UnrecognizedClient" => Self::UnknownKey,
            "SignatureDoesNotMatch" | "InvalidSignature" | "RequestExpired" | "RequestTimeTooSkewed" => Self::Clock,
            "IncompleteSignature" | "MissingAuthenticationToken" => Self::Unsigned,
            "OptInRequired" => Self::OptIn,
            "InvalidIdentityToken" | "IDPRejectedClaim" => Self::WebIdentityToken,
            "IDPCommunicationError" => Self::Issuer,
            "InternalFailure" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" => Self::Service,
            _ => return None,
        })
    }

    /// Returns the meaning of an error by its text in the log, which begins with the code.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let (code, message) = text.split_once(": ").unwrap_or((text, ""));
        Self::of(code, message)
    }

    /// The message names the denied action, and in newer versions the kind of policy: "User: ARN is not authorized to perform: ACTION
    /// on resource: ARN because no VPC endpoint policy allows the ACTION action" (IAM User Guide, "Troubleshoot access denied error
    /// messages").
    fn of_denial(message: &str) -> Self {
        let above = ["service control policy", "resource control policy", "VPC endpoint policy", "permissions boundary"];
        match message {
            _ if above.iter().any(|policy| message.contains(policy)) => Self::PolicyAbove,
            _ if message.contains("sts:AssumeRoleWithWebIdentity") => Self::WebIdentityDenied,
            _ if message.contains("perform: sts:SetSourceIdentity") => Self::SetSourceIdentity,
            _ if message.contains("perform: sts:TagSession") => Self::TagSession,
            _ => Self::AssumeRole,
        }
    }

    fn of_validation(message: &str) -> Self {
        match message {
            _ if message.contains("role chaining") => Self::Chained,
            _ if ["DurationSeconds", "durationSeconds", "MaxSessionDuration"].iter().any(|word| message.contains(word)) => Self::Duration,
            _ if message.contains("'externalId'") => Self::ExternalIdForm,
            _ if message.contains("'roleArn'") || message.contains(" is invalid") => Self::RoleArn,
            _ => Self::Parameter,
        }
    }

    /// Returns the meaning for this request, and for the call that was refused if it has a target role. Whether the request has an
    /// external ID says what a denial may be about.
    pub(super) fn with(self, request: &RoleRequest, call: Option<ChainCall>) -> Self {
        match (self, call, request.external_id()) {
            (Self::AssumeRole, None, None) => Self::WithoutExternalId,
            (Self::AssumeRole, None, Some(_)) => Self::WithExternalId,
            (Self::AssumeRole, Some(ChainCall::Source), _) => Self::SourceRole,
            (Self::AssumeRole, Some(ChainCall::Target), None) => Self::TargetWithoutExternalId,
            (Self::AssumeRole, Some(ChainCall::Target), Some(_)) => Self::TargetWithExternalId,
            (Self::SetSourceIdentity, Some(ChainCall::Target), _) => Self::TargetSetSourceIdentity,
            (Self::TagSession, Some(ChainCall::Target), _) => Self::TargetTagSession,
            (kind, ..) => kind,
        }
    }

    /// Returns what the error concerns.
    pub(super) fn class(self) -> StsErrorClass {
        match self {
            Self::AssumeRole
            | Self::WithoutExternalId
            | Self::WithExternalId
            | Self::SourceRole
            | Self::TargetWithoutExternalId
            | Self::TargetWithExternalId
            | Self::SetSourceIdentity
            | Self::TargetSetSourceIdentity
            | Self::TagSession
            | Self::TargetTagSession
            | Self::PolicyAbove
            | Self::WebIdentityDenied => StsErrorClass::Denied,
            Self::Duration
            | Self::Chained
            | Self::RoleArn
            | Self::ExternalIdForm
            | Self::Parameter
            | Self::RegionDisabled
            | Self::PackedPolicyTooLarge
            | Self::MalformedPolicy
            | Self::OtherRequest => StsErrorClass::Invalid,
            Self::Throttled => StsErrorClass::Throttled,
            Self::Expired | Self::UnknownKey | Self::Clock | Self::Unsigned | Self::OptIn | Self::WebIdentityToken => {
                StsErrorClass::OwnIdentity
            }
            Self::Issuer | Self::Service => StsErrorClass::Failed,
        }
    }

    /// Returns what the node's operators should do.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::AssumeRole => {
                "the role's trust policy must allow sts:AssumeRole for rolegate's own role (with the external ID, if it requires one), and \
                 the policies of that role must allow sts:AssumeRole on the pod's role"
            }
            Self::WithoutExternalId => {
                "check that the role exists; its trust policy must allow sts:AssumeRole for rolegate's own role, and the policies of that \
                 role must allow sts:AssumeRole on the pod's role; no external ID was sent, so if the trust policy has a condition on \
                 sts:ExternalId, set the external-id annotation of the pod"
            }
            Self::WithExternalId => {
                "check that the role exists; its trust policy must allow sts:AssumeRole for rolegate's own role, and the policies of that \
                 role must allow sts:AssumeRole on the pod's role; an external ID was sent, and a condition on sts:ExternalId in the trust \
                 policy must match it"
            }
            Self::SourceRole => {
                "check that the role exists; its trust policy must allow sts:AssumeRole for rolegate's own role, without an external ID, \
                 which is sent for the target role only, and the policies of rolegate's own role must allow sts:AssumeRole on this role"
            }
            Self::TargetWithoutExternalId => {
                "check that the target role exists; its trust policy must allow sts:AssumeRole for the pod's role, and the policies of the \
                 pod's role must allow sts:AssumeRole on the target role; no external ID was sent, so if the trust policy has a condition \
                 on sts:ExternalId, set the external-id annotation of the pod"
            }
            Self::TargetWithExternalId => {
                "check that the target role exists; its trust policy must allow sts:AssumeRole for the pod's role, and the policies of the \
                 pod's role must allow sts:AssumeRole on the target role; an external ID was sent, and a condition on sts:ExternalId in the \
                 trust policy must match it"
            }
            Self::TargetSetSourceIdentity => {
                "the target role's trust policy must allow sts:SetSourceIdentity for the pod's role, and the policies of the pod's role must \
                 allow sts:SetSourceIdentity on the target role; or remove --source-identity"
            }
            Self::TargetTagSession => {
                "the target role's trust policy must allow sts:TagSession for the pod's role, and the policies of the pod's role must allow \
                 sts:TagSession on the target role; or remove --session-tags"
            }
            Self::SetSourceIdentity => {
                "the role's trust policy must allow sts:SetSourceIdentity for rolegate's own role, and the policies of that role must allow \
                 sts:SetSourceIdentity on the pod's role; the source identity comes from --source-identity, or else from rolegate's own \
                 session"
            }
            Self::TagSession => {
                "the role's trust policy must allow sts:TagSession for rolegate's own role, and the policies of that role must allow \
                 sts:TagSession on the pod's role; or remove --session-tags"
            }
            Self::PolicyAbove => {
                "allow the action that the error names in the policy that it names: of the organization, of the VPC endpoint for STS, or a \
                 permissions boundary"
            }
            Self::WebIdentityDenied => {
                "the trust policy of the daemon's own role (AWS_ROLE_ARN) must allow sts:AssumeRoleWithWebIdentity for the daemon's service \
                 account"
            }
            Self::Duration => "raise the role's maximum session duration (MaxSessionDuration), or lower --session-duration",
            Self::Chained => {
                "set --session-duration to 1h: rolegate's own credentials come from AssumeRole, and sessions by role chaining last 1 hour at \
                 most"
            }
            Self::RoleArn => {
                "check the role that the pod names: its partition, its account, and whether the path is complete; check --base-role-arn for \
                 short names"
            }
            Self::ExternalIdForm => "correct the external-id annotation of the pod: 2 to 1224 letters, digits and characters of _+=,.@:/-",
            Self::Parameter => {
                "check the parameter that the error names: the session name (--session-name-template, or the pod's annotation), --source-identity or \
                 --session-tags"
            }
            Self::RegionDisabled => {
                "activate STS for this region in the account of the role (IAM console, Account settings), or set AWS_REGION to a region in \
                 which it is active"
            }
            Self::PackedPolicyTooLarge => "give fewer --session-tags: together they are too long",
            Self::MalformedPolicy => {
                "check for a proxy or a wrong endpoint between this node and STS (AWS_ENDPOINT_URL_STS, HTTPS_PROXY): rolegate sends no \
                 session policy"
            }
            Self::OtherRequest => {
                "compare the error with the role's ARN, the session name, the source identity and the tags; check that STS answers at the \
                 endpoint (AWS_ENDPOINT_URL_STS)"
            }
            Self::Throttled => {
                "nothing at first: rolegate retries with growing pauses; if it persists, find in CloudTrail who calls STS so often in this \
                 account and region, or let pods of a role share a session with --session-scope=role"
            }
            Self::Expired => {
                "check the node's clock, and that the daemon reaches the metadata service, which renews the credentials of the node's role"
            }
            Self::UnknownKey => {
                "check that the access key exists and is active, that it belongs to the partition of the region (AWS_REGION), and that the \
                 region is enabled in the account of the daemon's own identity"
            }
            Self::Clock => {
                "check the node's time synchronization: AWS refuses requests whose time is off by minutes; if the clock is \
                 right, check the daemon's secret key, and for a proxy that changes requests"
            }
            Self::Unsigned => {
                "check for a proxy between this node and STS that removes or changes the Authorization header: AWS_ENDPOINT_URL_STS, \
                 HTTPS_PROXY"
            }
            Self::OptIn => {
                "enable the region in the account of the daemon's own identity (Account settings, AWS Regions), or set AWS_REGION to a \
                 region that is enabled"
            }
            Self::WebIdentityToken => {
                "check that the account has an IAM OIDC provider for the cluster's issuer with the audience of the token, and that \
                 AWS_WEB_IDENTITY_TOKEN_FILE names a current token"
            }
            Self::Issuer => {
                "if it persists, check that the cluster's OIDC issuer can be reached from the Internet: STS reads its keys there"
            }
            Self::Service => "nothing at first: rolegate retries; if it persists, see the AWS Health Dashboard for this region",
        }
    }

    /// Returns the message for the owner of the pod, with what to do; `None` if the owner cannot change anything. It names no account
    /// and nothing of the node.
    pub(super) fn for_owner(self) -> Option<&'static str> {
        Some(match self {
            Self::AssumeRole => {
                "AWS does not let this node assume the pod's role. To fix: allow sts:AssumeRole in the role's trust policy for the node \
                 role (with the pod's external ID, if it requires one), and in the policies of the node role for this role"
            }
            Self::WithoutExternalId => {
                "AWS does not let this node assume the pod's role. To fix: check that the role exists, and allow sts:AssumeRole in its \
                 trust policy for the node role, and in the policies of the node role for this role. The pod sets no external ID: if the \
                 trust policy requires one, set the external-id annotation of the pod"
            }
            Self::WithExternalId => {
                "AWS does not let this node assume the pod's role. To fix: check that the role exists, and allow sts:AssumeRole in its \
                 trust policy for the node role, and in the policies of the node role for this role. The pod sets an external ID: check \
                 that it is the one that the trust policy requires"
            }
            Self::SourceRole => {
                "AWS does not let this node assume the pod's role, which assumes the target role. To fix: check that the role exists, and \
                 allow sts:AssumeRole in its trust policy for the node role, without an external ID, and in the policies of the node role \
                 for this role. The pod's external ID is for the target role only"
            }
            Self::TargetWithoutExternalId => {
                "AWS does not let the pod's role assume the target role. To fix: check that the target role exists, and allow \
                 sts:AssumeRole in its trust policy for the pod's role, and in the policies of the pod's role for the target role. The pod \
                 sets no external ID: if the trust policy requires one, set the external-id annotation of the pod"
            }
            Self::TargetWithExternalId => {
                "AWS does not let the pod's role assume the target role. To fix: check that the target role exists, and allow \
                 sts:AssumeRole in its trust policy for the pod's role, and in the policies of the pod's role for the target role. The pod \
                 sets an external ID: check that it is the one that the trust policy requires"
            }
            Self::TargetSetSourceIdentity => {
                "AWS does not let the pod's role set the source identity of the target role's session. To fix: allow sts:SetSourceIdentity \
                 in the target role's trust policy for the pod's role, and in the policies of the pod's role for the target role"
            }
            Self::TargetTagSession => {
                "AWS does not let the pod's role tag the target role's session. To fix: allow sts:TagSession in the target role's trust \
                 policy for the pod's role, and in the policies of the pod's role for the target role"
            }
            Self::SetSourceIdentity => {
                "AWS does not let this node set the source identity of the pod's session. To fix: allow sts:SetSourceIdentity in the \
                 role's trust policy for the node role, and in the policies of the node role for this role"
            }
            Self::TagSession => {
                "AWS does not let this node tag the pod's session. To fix: allow sts:TagSession in the role's trust policy for the node \
                 role, and in the policies of the node role for this role"
            }
            Self::PolicyAbove => {
                "a policy above the pod's role, such as one of the organization, does not let this node assume the role. To fix: ask the \
                 cluster's operators which policy it is"
            }
            Self::Duration | Self::Chained => {
                "AWS rejected the session, because it is longer than the role's maximum session duration. To fix: raise the role's maximum \
                 session duration, or have --session-duration lowered"
            }
            Self::RoleArn => {
                "AWS rejected the ARN of the role. To fix: check the partition, the account and the path in the annotation that names it: role, \
                 or target-role"
            }
            Self::ExternalIdForm => {
                "AWS rejected the external ID. To fix: correct the external-id annotation of the pod: 2 to 1224 letters, digits and \
                 characters of _+=,.@:/-"
            }
            Self::Parameter => {
                "AWS rejected a parameter of the session. To fix: check the session-name annotation of the pod, or ask the cluster's \
                 operators for the error in rolegate's log"
            }
            Self::RegionDisabled => {
                "STS is not activated for this node's region in the account of the role (of the target role, if the pod has one). To fix: \
                 activate it there (IAM console, Account settings)"
            }
            Self::PackedPolicyTooLarge => {
                "the session tags are too long for AWS. To fix: shorten the names of the pod and its service account, or ask the cluster's \
                 operators to set fewer --session-tags"
            }
            Self::OtherRequest => "AWS rejected the session. To fix: ask the cluster's operators for the error in rolegate's log",
            // These concern the node and all of its pods.
            Self::WebIdentityDenied
            | Self::MalformedPolicy
            | Self::Throttled
            | Self::Expired
            | Self::UnknownKey
            | Self::Clock
            | Self::Unsigned
            | Self::OptIn
            | Self::WebIdentityToken
            | Self::Issuer
            | Self::Service => return None,
        })
    }
}

#[cfg(test)]
mod tests;

//! What AWS says where it does not allow a session.

/// Whether STS's message denies to set a source identity. It names the action that is not allowed: "User: ARN is not authorized to
/// perform: sts:SetSourceIdentity on resource: ARN".
pub(super) fn is_about_source_identity(message: &str) -> bool {
    message.contains("perform: sts:SetSourceIdentity")
}

/// What must be allowed, in a sentence for the log, where STS denies a role with this message.
pub(super) fn what_to_allow(message: &str) -> &'static str {
    if is_about_source_identity(message) {
        "the role's trust policy must allow sts:SetSourceIdentity to the daemon's own role, and the daemon's role must be allowed \
         sts:SetSourceIdentity on it; the source identity comes from --source-identity, or else from the daemon's own session"
    } else {
        "the role's trust policy must name the daemon's own role (and the external id, if it asks for one), and the daemon's role must \
         be allowed sts:AssumeRole on it"
    }
}
